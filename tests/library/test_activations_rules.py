"""Which rows a store holds: spread over documents, none too long, and counts that add up."""

import itertools
import json
import os
from pathlib import Path

import pytest
import torch
from crashes import CrashError, crash_at
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_fixtures import FAMILIES, language_model, text_corpus

from sae_lib.activations import ActivationStore, ActivationStream, harvest, harvest_sites
from sae_lib.activations.manifest import Manifest
from sae_lib.activations.positions import median_norm, norms_of
from sae_lib.corpora import token_blocks
from sae_lib.normalisation import Normalisation

torch.set_num_threads(1)
SITE, SEPARATOR = "resid_post.1", 256
SMALL = {"n_tokens": 1000, "block_size": 16, "batch_blocks": 3, "shard_rows": 200, "skip_first": 1}
# about three rows in ten are longer
RULES = SMALL | {"max_norm": 1.1}
COUNTS = ("documents", "dropped_by_norm", "dropped_by_position")


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module")
def corpus():
    return text_corpus(40)


@pytest.fixture(scope="module")
def whole(lm, corpus, tmp_path_factory):
    return harvest(lm, corpus, SITE, tmp_path_factory.mktemp("whole"), **RULES)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def reference(lm, corpus, n_blocks, site=SITE, skip_first=1, seed=0):
    """The rows of the first blocks that positions leave, with the norms and places of each."""
    text = token_blocks(corpus, lm.tokenizer, 16, seed=seed)
    blocks = torch.stack(list(itertools.islice(text, n_blocks)))
    keep = blocks != SEPARATOR
    keep[:, :skip_first] = False
    acts = torch.cat([lm.activations(batch, site) for batch in blocks.split(3)])
    return acts[keep], norms_of(acts[keep]), keep.flatten().nonzero().squeeze(1), text.documents


def test_the_defaults_spread_and_drop(lm, corpus, tmp_path):
    store = harvest(lm, corpus, SITE, tmp_path, n_tokens=200, block_size=16)
    rules = {name: store.manifest.settings[name] for name in ("spread", "max_norm", "skip_first")}
    assert rules == {"spread": True, "max_norm": 3.0, "skip_first": 4}
    stream = ActivationStream(lm, corpus, SITE, block_size=16).describe()
    assert {name: stream[name] for name in rules} == rules


def test_rows_that_are_too_long_are_dropped_and_the_rest_is_the_models(lm, corpus, whole):
    manifest = whole.manifest
    rows, norms, places, documents = reference(lm, corpus, sum(s.blocks for s in manifest.shards))
    # the median of the first shard, of 12 blocks
    first = int((places < 12 * 16).sum())
    assert manifest.median_norm == median_norm(norms[:first])
    usual = norms <= 1.1 * manifest.median_norm
    assert 0.1 < (~usual).float().mean() < 0.5
    assert torch.equal(whole.rows(range(whole.n_rows)), rows[usual].half().float())
    blocks, positions = whole.places(range(whole.n_rows))
    assert torch.equal(blocks * 16 + positions, places[usual])
    assert manifest.dropped_by_norm == int((~usual).sum())
    # rows before dropping are counted by n_tokens, up to a block
    assert 1000 <= len(rows) < 1000 + 16
    assert manifest.n_documents == documents
    fitted = whole.rows(range(manifest.shards[0].rows))
    assert whole.normalisation == Normalisation.fit("scale", fitted)


@settings(deadline=None, max_examples=15)
@given(
    skip_first=st.integers(0, 6),
    max_norm=st.sampled_from([None, 1.001, 1.1, 1.5, 3.0]),
    spread=st.booleans(),
    seed=st.integers(0, 9),
)
def test_counts_add_up_to_all_tokens(lm, tmp_path_factory, skip_first, max_norm, spread, seed):
    corpus = text_corpus(20, seed=seed)
    settings = SMALL | {"skip_first": skip_first, "max_norm": max_norm, "spread": spread, "seed": seed}
    folder = tmp_path_factory.mktemp("counts")
    manifest = harvest(lm, corpus, SITE, folder, **settings).manifest
    for shard in manifest.shards:
        assert shard.rows + shard.dropped_by_norm + shard.dropped_by_position == 16 * shard.blocks
    n_blocks = sum(shard.blocks for shard in manifest.shards)
    assert manifest.n_rows + manifest.dropped_by_norm + manifest.dropped_by_position == 16 * n_blocks
    assert manifest.dropped_by_norm == 0 if max_norm is None else manifest.dropped_by_norm >= 0
    blocks = token_blocks(corpus, lm.tokenizer, 16, seed=seed, spread=spread)
    tokens = torch.stack(list(itertools.islice(blocks, n_blocks)))
    separators = int((tokens[:, skip_first:] == SEPARATOR).sum())
    assert manifest.dropped_by_position == skip_first * n_blocks + separators
    counts = [shard.documents for shard in manifest.shards]
    assert counts == sorted(counts)
    assert manifest.n_documents == counts[-1] == blocks.documents


def test_a_spread_store_touches_more_documents(lm, corpus, tmp_path):
    stores = {
        spread: harvest(lm, corpus, SITE, tmp_path / str(spread), spread=spread, **SMALL)
        for spread in (True, False)
    }
    assert stores[True].manifest.n_documents >= 15 > 7 >= stores[False].manifest.n_documents


def test_a_crash_around_any_renaming_costs_only_time(lm, corpus, whole, tmp_path, monkeypatch):
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crash_at(moment))
            try:
                harvest(lm, corpus, SITE, folder, **RULES)
            except CrashError:
                pass
            else:
                break
        harvest(lm, corpus, SITE, folder, **RULES)
        assert contents(folder) == contents(whole.folder)
    assert moment > 20


@pytest.mark.parametrize("index", [0, 2])
def test_a_damaged_shard_is_written_anew(lm, corpus, whole, tmp_path, index):
    harvest(lm, corpus, SITE, tmp_path, **RULES)
    path = tmp_path / f"shard-{index:05d}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=f"harvesting again from shard {index}"):
        harvest(lm, corpus, SITE, tmp_path, **RULES)
    assert contents(tmp_path) == contents(whole.folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_drop_their_own_rows(family, corpus, tmp_path):
    lm, sites = language_model(family), ("resid_post.0", "mlp_out.1", "resid_post.2")
    stores = harvest_sites(lm, corpus, {site: tmp_path / "all" / site for site in sites}, **RULES)
    for site in sites:
        single = harvest(lm, corpus, site, tmp_path / site, **RULES)
        assert contents(stores[site].folder) == contents(single.folder)
    total = {store.n_rows + store.manifest.dropped_by_norm for store in stores.values()}
    assert len(total) == 1
    assert len({store.manifest.median_norm for store in stores.values()}) == 3


def test_text_around_a_dropped_row_is_there_and_the_row_is_not(whole):
    blocks, positions = whole.places(range(whole.n_rows))
    has_row = set((blocks * 16 + positions).tolist())
    tokens, rows = whole.windows(range(whole.n_rows), before=3, after=3)
    gone = 0
    for i, (block, position) in enumerate(zip(blocks.tolist(), positions.tolist(), strict=True)):
        for column, offset in enumerate(range(-3, 4)):
            if 0 <= position + offset < 16:
                gave = block * 16 + position + offset in has_row
                assert (rows[i, column] >= 0) == gave
                assert tokens[i, column] >= 0
                gone += not gave
    assert gone > 100


# ---- numbers that do not fit


def long_rows(lm):
    """Make one letter's rows a thousand times as long, too long for float16."""
    lm.model.model.embed_tokens.weight.mul_(100)
    lm.model.model.embed_tokens.weight[lm.tokenizer("q").input_ids[0]] *= 1e5
    return lm


def test_rows_that_are_dropped_need_not_fit(corpus, tmp_path):
    lm = long_rows(language_model())
    store = harvest(lm, corpus, "resid_post.0", tmp_path / "a", **SMALL | {"max_norm": 30.0})
    assert store.manifest.dropped_by_norm > 10
    assert torch.isfinite(store.rows(range(store.n_rows))).all()
    message = r'does not fit torch\.float16; use dtype="bfloat16" or dtype="float32"'
    for max_norm in (None, 1e9):
        with pytest.raises(ValueError, match=message):
            harvest(lm, corpus, "resid_post.0", tmp_path / str(max_norm), **SMALL | {"max_norm": max_norm})


@pytest.mark.parametrize("max_norm", [1, 0.5, 0, -3, float("nan"), float("inf")])
def test_a_bad_limit_is_refused(lm, corpus, tmp_path, max_norm):
    message = r"max_norm is .*; expected above 1 \(times the median norm\), or None to keep all rows"
    with pytest.raises(ValueError, match=message):
        harvest(lm, corpus, SITE, tmp_path, **SMALL | {"max_norm": max_norm})
    with pytest.raises(ValueError, match=message):
        ActivationStream(lm, corpus, SITE, block_size=16, max_norm=max_norm)
    assert not any(tmp_path.iterdir())


# ---- stores from before


def as_version_1(folder: Path) -> dict:
    """Write the manifest as the first version did."""
    values = json.loads((folder / "manifest.json").read_text())
    values["version"] = 1
    del values["median_norm"]
    for shard in values["shards"]:
        for name in COUNTS:
            del shard[name]
    (folder / "manifest.json").write_text(json.dumps(values))
    return values


OLD = SMALL | {"spread": False, "max_norm": None}


def test_the_settings_of_an_old_store_have_no_new_entries(lm, corpus, tmp_path):
    settings = harvest(lm, corpus, SITE, tmp_path, **OLD).manifest.settings
    assert not {"spread", "max_norm"} & settings.keys()


def test_an_old_store_opens_and_is_left_alone(lm, corpus, tmp_path):
    rows = harvest(lm, corpus, SITE, tmp_path, **OLD).sample(50)
    as_version_1(tmp_path)
    before = contents(tmp_path)
    store = ActivationStore.open(tmp_path)
    assert torch.equal(store.sample(50), rows)
    assert store.manifest.n_documents is None
    assert store.manifest.dropped_by_norm == 0
    assert store.manifest.dropped_by_position > 0
    harvest(lm, corpus, SITE, tmp_path, **OLD)
    assert contents(tmp_path) == before


def test_an_old_harvest_goes_on(lm, corpus, tmp_path):
    expected = harvest(lm, corpus, SITE, tmp_path / "whole", **OLD)
    folder = tmp_path / "resumed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", crash_at(2 * 7))
        with pytest.raises(CrashError):
            harvest(lm, corpus, SITE, folder, **OLD)
    begun = len(as_version_1(folder)["shards"])
    assert 1 < begun < len(expected.manifest.shards)
    store = harvest(lm, corpus, SITE, folder, **OLD)
    shards = {name: data for name, data in contents(folder).items() if name != "manifest.json"}
    assert shards == {n: data for n, data in contents(expected.folder).items() if n != "manifest.json"}
    assert Manifest.read(folder) == store.manifest
    # counted from where it went on
    assert store.manifest.n_documents == expected.manifest.n_documents
    assert [shard.documents is None for shard in store.manifest.shards] == [
        number < begun for number in range(len(store.manifest.shards))
    ]
    with pytest.raises(
        ValueError, match=r"max_norm is None in the store and 3\.0 now; spread is None in the"
    ):
        harvest(lm, corpus, SITE, folder, **SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(median_norm=None), "median_norm is missing"),
        (lambda m: m.update(median_norm=-1.0), "median_norm is -1.0, expected a number ≥ 0"),
        (lambda m: m.update(median_norm="1"), "median_norm is '1', expected float"),
        (lambda m: m["settings"].update(max_norm="3"), "settings.max_norm is '3', expected a number above 1"),
        (lambda m: m["settings"].update(max_norm=0.5), "settings.max_norm is 0.5, expected a number above"),
        (lambda m: m["shards"][0].update(documents=-1), r"shards\[0\].documents is -1"),
        (lambda m: m["shards"][1].update(dropped_by_norm=0), r"shards\[1\] accounts for .* tokens, expected"),
        (
            lambda m: m["shards"][1].update(dropped_by_position=1.5),
            "dropped_by_position is 1.5, expected int",
        ),
    ],
)
def test_a_wrong_entry_is_refused_by_name(lm, corpus, tmp_path, change, message):
    harvest(lm, corpus, SITE, tmp_path, **RULES)
    values = json.loads((tmp_path / "manifest.json").read_text())
    change(values)
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"{message}.*restore it, or harvest into a new folder"):
        ActivationStore.open(tmp_path)


# ---- streams


def stream(lm, corpus, **options):
    small = {"block_size": 16, "batch_blocks": 3, "buffer_rows": 128, "skip_first": 1, "max_norm": 1.1}
    return ActivationStream(lm, corpus, SITE, **small | options)


def test_a_stream_drops_what_is_longer_than_the_first_rows_allow(lm, corpus):
    source = stream(lm, corpus)
    _, norms, _, _ = reference(lm, corpus, 9)
    assert source.longest == pytest.approx(1.1 * median_norm(norms))
    batches = torch.cat(list(itertools.islice(source.batches(32, seed=1), 40)))
    lengths = batches.norm(dim=1) / source.normalisation.scale
    assert lengths.max() <= source.longest * (1 + 1e-5)
    everything = torch.cat(list(itertools.islice(stream(lm, corpus, max_norm=None).batches(32, seed=1), 40)))
    assert everything.norm(dim=1).max() > 1.2 * batches.norm(dim=1).max()


@settings(deadline=None, max_examples=10)
@given(batch_size=st.sampled_from([1, 20, 64, 300]), seed=st.integers(0, 99), start=st.integers(0, 30))
def test_a_stream_that_drops_is_addressed_by_number(lm, corpus, batch_size, seed, start):
    source = stream(lm, corpus)
    from_start = source.batches(batch_size, seed=seed, start=start)
    tail = itertools.islice(source.batches(batch_size, seed=seed), start, None)
    for _ in range(2):
        batch = next(from_start)
        assert batch.shape == (batch_size, source.d_in)
        assert torch.equal(batch, next(tail))


def test_a_stream_with_a_given_scale_fits_the_limit_alone(lm, corpus):
    source = stream(lm, corpus, normalisation=Normalisation("scale", 0.5))
    assert source.normalisation.scale == 0.5
    assert source.longest == stream(lm, corpus).longest


def test_a_buffer_without_a_usual_row_is_refused(lm, corpus):
    source = stream(lm, corpus)
    source.longest = 0
    with pytest.raises(ValueError, match=r"all rows of a buffer are over 1\.1 times .* set max_norm=None"):
        next(source.batches(8, seed=0))

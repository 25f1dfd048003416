"""Several sites harvested in one pass: the stores are those that single harvests write, whatever happens."""

import inspect
import itertools
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from crashes import CrashError, crash_at
from lm_fixtures import FAMILIES, language_model, text_corpus

from sae_lib.activations import harvest, harvest_sites
from sae_lib.files.atomic import only_writer

torch.set_num_threads(1)
SITES = ("resid_post.2", "mlp_out.1", "resid_post.0")
SMALL = {"n_tokens": 1000, "block_size": 16, "batch_blocks": 3, "shard_rows": 200, "skip_first": 1}
SMALL |= {"spread": False, "max_norm": None}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


def stands(folder: Path) -> tuple[int, bool]:
    """Shards that the manifest lists, and whether the store is finished."""
    values = json.loads((folder / "manifest.json").read_text())
    return len(values["shards"]), values["finished"]


@pytest.fixture(scope="module")
def corpus():
    return text_corpus()


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module")
def alone(lm, corpus, tmp_path_factory):
    """A store a site, each by a harvest of its own: their bytes."""
    folder = tmp_path_factory.mktemp("alone")
    return {site: contents(harvest(lm, corpus, site, folder / site, **SMALL).folder) for site in SITES}


def counting(lm):
    """The blocks of every pass of the model from now on, as a list that grows."""
    seen: list[bytes] = []
    lm.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["input_ids"].numpy().tobytes()), with_kwargs=True
    )
    return seen


def test_one_site_has_the_options_of_several():
    one, several = (dict(inspect.signature(f).parameters) for f in (harvest, harvest_sites))
    named = {name: p for name, p in several.items() if p.kind is p.KEYWORD_ONLY}
    assert {name: p for name, p in one.items() if p.kind is p.KEYWORD_ONLY} == named


@pytest.mark.parametrize("family", FAMILIES)
def test_stores_have_the_bytes_of_single_harvests_and_the_model_runs_once(family, corpus, tmp_path):
    lm = language_model(family)
    stores = harvest_sites(lm, corpus, {site: tmp_path / "all" / site for site in SITES}, **SMALL)
    passes = counting(lm)
    for site in SITES:
        single = harvest(lm, corpus, site, tmp_path / site, **SMALL)
        assert contents(stores[site].folder) == contents(single.folder)
        assert stores[site].manifest == single.manifest
        assert stores[site].normalisation == single.normalisation
    of_one = len(passes) // len(SITES)
    passes.clear()
    harvest_sites(lm, corpus, {site: tmp_path / "again" / site for site in SITES}, **SMALL)
    assert len(passes) == of_one


def test_a_crash_around_any_renaming_costs_only_time(lm, corpus, tmp_path, monkeypatch):
    small = SMALL | {"n_tokens": 300}
    alone = {site: contents(harvest(lm, corpus, site, tmp_path / site, **small).folder) for site in SITES[:2]}
    uneven = 0
    for moment in itertools.count():
        folders = {site: tmp_path / str(moment) / site for site in SITES[:2]}
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crash_at(moment))
            try:
                harvest_sites(lm, corpus, folders, **small)
            except CrashError:
                pass
            else:
                break
        if all((folder / "manifest.json").exists() for folder in folders.values()):
            uneven += len({stands(folder) for folder in folders.values()}) == 2
        harvest_sites(lm, corpus, folders, **small)
        for site, folder in folders.items():
            assert contents(folder) == alone[site]
            assert not list(folder.glob(".*.tmp"))
    # for each site the empty manifest, two shards with a manifest each, the finished manifest
    assert moment == 2 * 2 * (1 + 2 * 2 + 1)
    # between the manifests of the two: once a shard, and at the end
    assert uneven == 2 * (2 + 1)


def test_those_behind_catch_up_and_finished_stores_are_left_alone(corpus, alone, tmp_path):
    lm = language_model()
    folders = [tmp_path / site for site in SITES]
    finished, third = folders[:2]
    harvest(lm, corpus, SITES[0], finished, **SMALL)
    passes = counting(lm)

    def stop(*_):
        if len(passes) > 3 * 4:
            raise InterruptedError

    handle = lm.model.register_forward_pre_hook(stop)
    with pytest.raises(InterruptedError):
        harvest(lm, corpus, SITES[1], third, **SMALL)
    handle.remove()
    assert [stands(folder) for folder in (finished, third)] == [(6, True), (3, False)]
    passes.clear()
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir() if path.suffix != ".lock"}
    harvest_sites(lm, corpus, dict(zip(SITES, folders, strict=True)), **SMALL)
    for site in SITES:
        assert contents(tmp_path / site) == alone[site]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    # no block was read twice for the sake of another site
    assert len(passes) == len(set(passes))
    passes.clear()
    harvest_sites(lm, corpus, dict(zip(SITES, folders, strict=True)), **SMALL)
    assert passes == []


def test_a_damaged_shard_is_written_anew_in_its_store_alone(lm, corpus, alone, tmp_path):
    folders = {site: tmp_path / site for site in SITES}
    harvest_sites(lm, corpus, folders, **SMALL)
    path = tmp_path / SITES[1] / "shard-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="harvesting again from shard 2"):
        harvest_sites(lm, corpus, folders, **SMALL)
    assert {site: contents(folder) for site, folder in folders.items()} == alone


def test_ctrl_c_says_where_every_store_stands(corpus, alone, tmp_path, request):
    lm = language_model()
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, previous))
    passes = counting(lm)
    handle = lm.model.register_forward_pre_hook(
        lambda *_: signal.raise_signal(signal.SIGINT) if len(passes) == 10 else None
    )
    folders = {site: tmp_path / site for site in SITES[:2]}
    said = rf"2 shards in {folders[SITES[0]]} and 2 shards in {folders[SITES[1]]}; the same"
    with pytest.raises(KeyboardInterrupt, match=said):
        harvest_sites(lm, corpus, folders, **SMALL)
    handle.remove()
    harvest_sites(lm, corpus, folders, **SMALL)
    assert {site: contents(folder) for site, folder in folders.items()} == {s: alone[s] for s in folders}


def test_every_folder_is_locked(lm, corpus, tmp_path):
    folders = {site: tmp_path / site for site in SITES}
    for folder in folders.values():
        with (
            only_writer(folder, "harvesting into"),
            pytest.raises(RuntimeError, match=re.escape(f"another process is harvesting into {folder}")),
        ):
            harvest_sites(lm, corpus, folders, **SMALL)
        assert not any(contents(folder) for folder in folders.values() if folder.exists())
    held = []

    def try_to_write(*_):
        for folder in folders.values():
            with pytest.raises(RuntimeError, match="another process"), only_writer(folder, "harvesting into"):
                pass
            held.append(folder)

    handle = lm.model.register_forward_pre_hook(try_to_write)
    harvest_sites(lm, corpus, folders, **SMALL)
    handle.remove()
    assert set(held) == set(folders.values())


def test_nothing_is_begun_where_one_folder_has_other_settings(lm, corpus, alone, tmp_path):
    folders = {site: tmp_path / site for site in SITES}
    harvest(lm, corpus, SITES[2], folders[SITES[2]], **SMALL)
    with pytest.raises(ValueError, match=rf"{SITES[2]} was begun with other settings: seed is 0"):
        harvest_sites(lm, corpus, folders, **SMALL, seed=1)
    assert [contents(folder) for folder in folders.values()] == [{}, {}, alone[SITES[2]]]
    harvest_sites(lm, corpus, folders, **SMALL)
    assert {site: contents(folder) for site, folder in folders.items()} == alone


def test_shards_without_a_manifest_are_not_overwritten(lm, corpus, tmp_path):
    folders = {site: tmp_path / site for site in SITES}
    harvest_sites(lm, corpus, folders, **SMALL)
    (tmp_path / SITES[1] / "manifest.json").unlink()
    shutil.rmtree(tmp_path / SITES[0])
    with pytest.raises(FileExistsError, match="holds shards but no manifest"):
        harvest_sites(lm, corpus, folders, **SMALL)
    assert contents(tmp_path / SITES[0]) == {}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "expected at least one, and none twice"),
        ({"resid_post.1": "a", "resid_post.01": "b"}, "expected at least one, and none twice"),
        ({"resid_post.1": "a", "resid_post.2": "b/../a"}, "expected a different one for each site"),
        ({"resid_post.1": "a", "resid_post.9": "b"}, r"layer 9 of 4: allowed 0\.\.3"),
    ],
)
def test_bad_sites_and_folders_are_refused(lm, corpus, tmp_path, monkeypatch, folders, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        harvest_sites(lm, corpus, folders, **SMALL)
    assert not any(tmp_path.iterdir())

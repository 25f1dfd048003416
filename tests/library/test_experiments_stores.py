"""The command that harvests the stores of the larger experiments."""

import shutil
from pathlib import Path

import pytest
import torch
from lm_fixtures import language_model, text_corpus

from sae_experiments import stores
from sae_experiments.stores import PLANS, Plan
from sae_lib import corpora
from sae_lib.activations import ActivationStore

torch.set_num_threads(1)
TINY = {
    "one": Plan("code", "train", (1,), 2000),
    "some": Plan("code", "held out", (0, 2), 500),
}


@pytest.fixture
def texts(monkeypatch):
    parts = dict(zip(("train", "held out"), text_corpus(80).split(0.3), strict=True))
    monkeypatch.setattr(stores, "texts", lambda corpus: parts)
    monkeypatch.setattr(stores, "SETTINGS", stores.SETTINGS | {"block_size": 32})
    return parts


def test_stores_are_harvested_and_opened_again(texts, tmp_path):
    one = stores.harvest("one", tmp_path, model=language_model(), plans=TINY)
    some = stores.harvest("some", tmp_path, model=language_model(), plans=TINY)
    assert {site: store.folder for site, store in one.items()} == {"resid_post.1": tmp_path / "one"}
    assert {site: store.folder for site, store in some.items()} == {
        f"resid_post.{layer}": tmp_path / "some" / f"resid_post.{layer}" for layer in (0, 2)
    }
    for part, found in (("train", one), ("held out", some)):
        for store in found.values():
            assert store.manifest.settings["corpus"] == texts[part].describe()
            assert store.manifest.settings["dtype"] == "float16"
            assert store.manifest.settings["spread"] is True
            assert store.manifest.settings["max_norm"] == 3.0
            assert store.manifest.settings["skip_first"] == 4
    again = stores.harvest("one", tmp_path, model=language_model(), plans=TINY)
    assert again["resid_post.1"].manifest == one["resid_post.1"].manifest
    assert (
        ActivationStore.open(tmp_path / "one").n_rows >= 2000 - one["resid_post.1"].manifest.dropped_by_norm
    )
    (line,) = stores.described(one)
    assert line.startswith("resid_post.1: 2,0")
    assert f"of {one['resid_post.1'].manifest.n_documents} documents" in line


def test_text_that_ends_is_no_warning(texts, tmp_path):
    plans = {"all": Plan("code", "held out", (0,), 10**7)}
    (store,) = stores.harvest("all", tmp_path, model=language_model(), plans=plans).values()
    assert store.manifest.n_documents == len(texts["held out"].documents)


def test_a_full_disk_is_said_before_the_harvest(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ValueError, match=r"0\.0 GB free; expected 0\.0 for one: make room, or .* --folder"):
        stores.harvest("one", tmp_path, model=language_model(), plans=TINY)


def test_plans_are_the_ones_asked_for():
    assert {name: (plan.layers, plan.part) for name, plan in PLANS.items()} == {
        "code-14": ((14,), "train"),
        "code-2-14-26": ((2, 14, 26), "train"),
        "wikipedia-2-14-26": ((2, 14, 26), "train"),
        "code-held-out": ((2, 14, 26), "held out"),
        "wikipedia-held-out": ((2, 14, 26), "held out"),
    }
    assert PLANS["code-14"].n_tokens >= 6_000_000
    # float16 rows of 576 numbers
    assert PLANS["code-14"].gigabytes == pytest.approx(7, rel=0.02)


def test_the_lock_names_the_projects(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text(
        "# a comment\nTorch==2.0\nnot_installed_at_all==1.0\nnumpy==1 ; platform_system == 'Linux'\n"
    )
    assert stores.locked_projects(lock) == ["numpy", "torch"]
    assert len(stores.locked_projects()) >= 60


def test_wikipedia_is_split_by_article():
    try:
        whole = corpora.wikipedia_summaries()
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    parts = stores.texts("wikipedia")
    ids = [{document.id for document in part.documents} for part in parts.values()]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == len(whole.documents)


def test_the_command_lists_and_harvests(texts, tmp_path, monkeypatch, capsys):
    stores.main([])
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == list(PLANS)
    stores.main(["--list", "code-14"])
    assert capsys.readouterr().out == listed
    with pytest.raises(SystemExit, match="no store code-15; expected some of code-14"):
        stores.main(["code-14", "code-15"])
    made = []
    monkeypatch.setattr(stores, "harvest", lambda name, folder: made.append((name, folder)) or {})
    stores.main(["code-held-out", "code-14", "--folder", str(tmp_path)])
    assert made == [("code-held-out", Path(tmp_path)), ("code-14", Path(tmp_path))]


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no store 'nothing'; expected one of one, some"):
        stores.harvest("nothing", tmp_path, plans=TINY)
    assert not any(tmp_path.iterdir())

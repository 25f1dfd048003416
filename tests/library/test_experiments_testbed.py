"""Part IV's testbed: parameters, places without the model, and what the search chose."""

import lm_fixtures
import pytest
import torch

from sae_experiments import testbed
from sae_experiments.records import nulls, reading
from sae_experiments.testbed import LAYERS, METHODS, LanguageTestbed
from sae_lib import activations, records
from tools.layout import REPOSITORY

SEARCH = REPOSITORY / "book" / "records" / "10_search.json"


def made_up(places):
    """Rows of a search: at every place two trials of each method, of which the second is chosen."""
    return [
        {"method": m, "corpus": corpus, "layer": layer, "knob": knob, "lr": 0.01, "chosen": knob == 2}
        for corpus, layer in places
        for m in METHODS
        for knob in (1, 2)
    ]


def test_a_place_is_what_the_testbed_holds(tmp_path):
    model, stores = lm_fixtures.language_model(), {}
    for part, seed in (("train", 0), ("held_out", 1)):
        stores[part] = activations.harvest(
            model, lm_fixtures.text_corpus(seed=seed), "resid_post.2",
            tmp_path / "quick" / "code" / part / "layer-2", n_tokens=500, block_size=32,
        )  # fmt: skip
    key = ("code", 2)
    bed = LanguageTestbed(model, {key: stores["train"]}, {key: stores["held_out"]}, 32, 10, 16)
    store, rows = testbed.open_place(*key, tmp_path)
    assert store.describe() == bed.stores[key].describe()
    assert torch.equal(rows, bed.test_rows(*key))
    # as the model has them: an autoencoder carries the constant of its training rows
    assert torch.equal(rows, stores["held_out"].rows(range(len(rows))))
    other, _ = testbed.open_place(*key, tmp_path, store=stores["held_out"])
    assert other is stores["held_out"]
    with pytest.raises(FileNotFoundError, match="layer-14"):
        testbed.open_place("code", 14, tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"profile": "quik"}, "profile is 'quik'; expected one of quick, full"),
        ({"profile": "full", "corpus": "prose"}, "corpus is 'prose'; expected one of code, wikipedia"),
        ({"profile": "quick", "layer": "14"}, "layer is '14'; expected one of 2, 14, 26"),
    ],
)
def test_wrong_parameters_are_refused_with_the_choices(given, message):
    testbed.check_parameters("quick", "wikipedia", 26)
    with pytest.raises(ValueError, match=message):
        testbed.check_parameters(**given)


def test_settings_are_the_chosen_rows_of_a_place():
    rows = made_up([("wikipedia", 2), ("code", 14)])
    assert testbed.searched_places(rows) == [("code", 14), ("wikipedia", 2)]
    found = testbed.settings(rows, "code", 14)
    assert list(found) == list(METHODS)
    assert all(row in rows and row["chosen"] and row["layer"] == 14 for row in found.values())
    with pytest.raises(ValueError, match="'code', 2; the search of chapter 10 has settings for code, 14; w"):
        testbed.settings(rows, "code", 2)
    # a place where one method is missing was not searched
    assert testbed.searched_places(rows[2:]) == [("code", 14)]
    with pytest.raises(ValueError, match="for none"):
        testbed.settings([], "code", 14)


def test_records_are_made_at_what_the_search_chose():
    rows = records.read(SEARCH).rows
    places = testbed.searched_places(rows)
    assert {("code", layer) for layer in LAYERS.values()} <= set(places)
    at = testbed.settings(rows, "code", 14)
    cells = reading.cells(14, ("gba", "topk"))
    assert [(c["method"], c["knob"], c["lr"]) for c in cells[:2]] == [
        (m, at[m]["knob"], at[m]["lr"]) for m in ("gba", "topk")
    ]
    at = testbed.settings(rows, "code", 2)["gba"]
    assert all(cell["methods"] == {"gba": (at["knob"], at["lr"])} for cell in nulls.twins())

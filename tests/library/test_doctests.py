"""The examples in the library's docstrings run, and give what they show."""

import ast
import doctest
import pkgutil
from pathlib import Path

import pytest
import torch
from lm_fixtures import language_model, text_corpus

import sae_lib
from sae_lib.methods import METHODS
from tools.layout import REPOSITORY, Book

torch.set_num_threads(1)
# what the first page of the reference promises, and nothing else (tests/site/test_reference.py)
NAMES = {"sae_lib": sae_lib, "torch": torch, "model": language_model(), "corpus": text_corpus()}
PARSER = doctest.DocTestParser()
LONGEST = 8  # statements
# where a reader of the reference begins, beside the methods
ENTRIES = {
    "activations": "harvest ActivationStore ActivationStream",
    "batches": "Rows",
    "corpora": "folder",
    "dashboards": "measure",
    "identifiability": "certify conditions from_autoencoder",
    "identifiability.bands": "resonance_band summary_band",
    "interventions": "ablate steer",
    "metrics": "best_cosines feature_recovery_rate mean_correlation_coefficient pairwise_mcc reconstruction",
    "metrics.cooccurrence": "cooccurrence",
    "metrics.faithfulness": "faithfulness",
    "metrics.nulls": "benjamini_hochberg empirical_p_values",
    "metrics.reading": "TokenTable purity",
    "metrics.spectrum": "estimate_frequencies log_distance",
    "metrics.splitting": "near_latents",
    "normalisation": "Normalisation",
    "records": "read",
    "sae_experiments.concepts": "code_concepts",
    "sae_experiments.probes": "ridge_probes",
    "sae_experiments.token_classes": "token_classes",
    "sae": "SparseAutoencoder SparseAutoencoder.save",
    "storage": "load",
    "sweeps": "summary sweep tune",
    "synthetic": " independent preset uniform_support",
    "training": "train",
}


def examples(text: str, name: str) -> doctest.DocTest:
    """The examples of a docstring."""
    return PARSER.get_doctest(text, dict(NAMES), name, None, None)


def within(node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str) -> list[doctest.DocTest]:
    """The examples of a module, class or function, and of what it holds, by where they stand."""
    inner = [
        test
        for child in node.body
        if isinstance(child, ast.ClassDef | ast.FunctionDef)
        for test in within(child, f"{name}.{child.name}")
    ]
    own = examples(ast.get_docstring(node) or "", name)
    return [own, *inner] if own.examples else inner


def run(test: doctest.DocTest) -> list[str]:
    """What a reader who types an example in sees that it does not say; empty if all is as shown."""
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    return said


TESTS = [
    test
    for folder in Book().packages
    for path in sorted(folder.rglob("*.py"))
    for test in within(
        ast.parse(path.read_text("utf8")),
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"),
    )
]


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_example_gives_what_it_shows(
    test: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    said = run(test)
    assert not said, "".join(said)


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_example_is_short_and_shows_something(test: doctest.DocTest) -> None:
    assert len(test.examples) <= LONGEST
    assert any(example.want for example in test.examples)


@pytest.mark.parametrize("module", [*ENTRIES, "methods"])
def test_entry_points_have_examples(module: str) -> None:
    names = ENTRIES.get(module, " ".join(method.__name__ for method in METHODS.values()))
    for name in names.split():
        package = "" if module.startswith("sae_experiments") else "sae_lib."
        found = pkgutil.resolve_name(f"{package}{module}:{name}")
        assert examples(found.__doc__ or "", name).examples, f"{module}.{name} shows no example"


@pytest.mark.parametrize("text", [">>> 1 + 1\n3", ">>> sae_lib.trian\n", ">>> data.rows"])
def test_wrong_example_is_noticed(text: str) -> None:
    assert run(examples(text, "wrong"))

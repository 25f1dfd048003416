"""The API reference shows what is public, each with a link to its source, its parameters and examples."""

import dataclasses
import doctest
import importlib
import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import reference
from bs4 import BeautifulSoup, Tag

import sae_lib

MODULES = [
    name
    for page in sorted((Path(__file__).parents[2] / "book").glob("api_*.md"))
    for name in re.findall(r"automodule:: (\S+)", page.read_text("utf8"))
]
STRAIGHT = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'"})


@pytest.fixture(scope="module")
def pages(built: Path) -> BeautifulSoup:
    """All pages of the reference as one."""
    texts = [path.read_text("utf8") for path in sorted((built / "book").glob("api*.html"))]
    return BeautifulSoup("\n".join(texts), "html.parser")


def public(module: ModuleType) -> dict[str, object]:
    """The functions and classes that a module offers."""
    own = [name for name, item in vars(module).items() if getattr(item, "__module__", "") == module.__name__]
    names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    items = {name: getattr(module, name) for name in names}
    return {name: item for name, item in items.items() if inspect.isclass(item) or inspect.isfunction(item)}


def test_every_public_module_is_on_one_page() -> None:
    assert len(MODULES) == len(set(MODULES))
    assert {f"sae_lib.{name}" for name in sae_lib._MODULES} <= set(MODULES)


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_entries_have_source_parameters_and_examples(pages: BeautifulSoup, module: str) -> None:
    assert pages.find(id=f"module-{module}")
    for name, item in public(importlib.import_module(module)).items():
        entry = pages.find("dt", id=f"{module}.{name}")
        assert isinstance(entry, Tag), f"{module}.{name}"
        assert entry.find(class_="viewcode-link"), f"{module}.{name}"
        # the site sets quotation marks as a book does
        shown = entry.find_parent("dl").get_text().translate(STRAIGHT)
        for example in doctest.DocTestParser().get_examples(item.__doc__ or ""):
            assert f">>> {example.source.splitlines()[0]}" in shown
        for parameter in dataclasses.fields(item) if dataclasses.is_dataclass(item) else ():
            if help_text := parameter.metadata.get("help"):
                assert " ".join(help_text.split()[:3]) in shown


@pytest.mark.slow
def test_names_of_the_package_lead_to_their_entries(pages: BeautifulSoup) -> None:
    linked = {str(link["href"]).partition("#")[2] for link in pages.find_all("a", class_="reference")}
    for name in sae_lib._EXPORTS:
        assert any(target.endswith(f".{name}") and pages.find(id=target) for target in linked), name
    for name in ("import torch", "import sae_lib", "model", "corpus"):
        assert any(code.get_text() == name for code in pages.find_all("code")), name


@dataclass
class Settings:
    """Two numbers.

    Attributes:
        first: One.
    """

    first: int
    second: int = field(default=2, metadata={"help": "Another |one|."})


def test_fields_with_help_are_parameters() -> None:
    lines = ["Two numbers.", "", ":ivar first, third: One,", "    |x|.", ""]
    reference.complete(None, "class", "Settings", Settings, None, lines)  # type: ignore[arg-type]
    assert lines == [
        "Two numbers.", "", ":param first,\N{ZERO WIDTH SPACE}third: One,", r"    \|x\|.",
        r":param second: Another \|one\|.", "",
    ]  # fmt: skip

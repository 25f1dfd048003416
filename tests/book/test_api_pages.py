"""The API reference says what the library is: against the imported modules, and by hand for the Markdown."""

import importlib
import inspect
import re
import subprocess
import sys

import pytest

import sae_lib
from tools import api, docstrings
from tools.layout import REPOSITORY, Book

BOOK = Book()
TEXTS = {page.PAGE: page.text(BOOK) for page in api.PAGES}
LIBRARY = api.Library(BOOK)
ITEMS = [
    (module, item)
    for part in api.CONTENTS
    for module in LIBRARY.modules(part)
    for item in LIBRARY.items(module)
]


def test_pages_stay_small() -> None:
    assert max(len(text.encode()) for text in TEXTS.values()) < 200_000


def test_everything_public_is_there() -> None:
    index = TEXTS["api.md"]
    missing = [
        name for name in sae_lib.__all__ if f"`{name}`]" not in index and f"`sae_lib.{name}`]" not in index
    ]
    assert not missing
    for module in LIBRARY.public_modules:
        for name in getattr(importlib.import_module(f"sae_lib.{module}"), "__all__", ()):
            assert f"[`{name}`](#api-" in index, f"{module}.{name}"


def test_every_link_has_one_target() -> None:
    whole = "\n".join(TEXTS.values())
    targets = re.findall(r"^\((api[\w-]*)\)=$", whole, re.MULTILINE)
    assert len(targets) == len(set(targets))
    assert set(re.findall(r"\]\(#([\w-]+)\)", whole)) <= set(targets)
    assert {item.target for _, item in ITEMS} <= set(targets)


@pytest.mark.parametrize(("module", "item"), ITEMS, ids=lambda value: getattr(value, "target", ""))
def test_signature_is_the_one_that_python_sees(module: str, item: api.Item) -> None:
    """Names, order and keyword-only arguments, as `inspect` finds them in the imported module."""
    value = getattr(importlib.import_module(api.full_name(module)), item.name)
    if not callable(value) or isinstance(value, dict):
        return
    shown = api.signature(item.node, item.home, LIBRARY.source)
    inside = shown.partition("(")[2].rpartition(")")[0]
    if inspect.isclass(value) and (getattr(value, "_is_protocol", False) or issubclass(value, Exception)):
        return
    expected = []
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not any(name.startswith("*") for name in expected):
            expected.append("*")
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        expected.append(f"{stars}{parameter.name}")
    names = [part.split(":")[0].split("=")[0].strip() for part in _apart(inside)]
    assert names == expected


def _apart(arguments: str) -> list[str]:
    """Split at the commas that stand in no bracket or string."""
    parts, depth, quoted = [""], 0, ""
    for character in arguments:
        if quoted or character in "'\"":
            quoted = ("" if character == quoted else quoted) if quoted else character
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def test_docstring_becomes_markdown() -> None:
    text = (
        "Do it (B, d), |a| < 1.\n\n>>> f(1)\n\nx, y: numbers, of\n    which :func:`train` takes one.\n"
        "k: at most ``d``.\n\n* one\n* two,\n  longer\n\nAs in::\n\n    a = b\n\n    c = d"
    )
    assert docstrings.markdown(text, lambda role: "#t" if role == "train" else "") == (
        "Do it (B, d), \\|a\\| \\< 1.\n\n```pycon\n>>> f(1)\n```\n\n"
        "- `x`, `y`: numbers, of which [`train`](#t) takes one.\n- `k`: at most `d`.\n\n"
        "- one\n- two, longer\n\nAs in:\n\n```text\na = b\n\nc = d\n```"
    )


def test_role_without_a_target_stays_code() -> None:
    assert docstrings.inline("see :meth:`Other.run`", lambda role: "") == "see `run`"


def test_reading_the_sources_imports_no_torch() -> None:
    code = (
        "import sys; from tools import api; api.PAGES[1].text(api.Book()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0

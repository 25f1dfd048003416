"""What of a module's source counts for the outputs of a chapter."""

import ast
from pathlib import Path

import pytest

from tools.layout import REPOSITORY, Book
from tools.provenance import code_of

FOLDERS = [*Book().packages, REPOSITORY / "tools"]
MODULES = sorted(path for folder in FOLDERS for path in folder.rglob("*.py"))
SOURCE = '''"""A module."""

# a remark
def f(x):
    """Doubles."""
    text = """a # no remark

b  """
    return 2 * x, text  # twice
'''


def without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None and len(node.body) > 1:
            node.body.pop(0)
    return ast.dump(tree)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_what_is_left_is_the_same_program(path: Path) -> None:
    source = path.read_text("utf8")
    assert ast.dump(ast.parse(code_of(source))) == without_docstrings(source)


@pytest.mark.parametrize(
    "change",
    [
        ("A module", "My module"),
        ("# a", "# some"),
        ("Doubles", "Twice"),
        ("  # twice", ""),
        ("\n# a remark", ""),
    ],
)
def test_words_do_not_count(change: tuple[str, str]) -> None:
    assert SOURCE.replace(*change) != SOURCE
    assert code_of(SOURCE.replace(*change)) == code_of(SOURCE)


@pytest.mark.parametrize(
    "change", [("2 * x", "3 * x"), ("a # no", "a # a"), ("remark\n\nb", "remark\nb"), ("b  ", "b")]
)
def test_code_and_strings_count(change: tuple[str, str]) -> None:
    assert SOURCE.replace(*change) != SOURCE
    assert code_of(SOURCE.replace(*change)) != code_of(SOURCE)

"""What an executed notebook was made from, and whether that is still what the tree holds."""

import ast
import hashlib
import io
import json
import tokenize
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from sae_lib.records import machine
from tools.layout import Book, read_source
from tools.notebook import code_cells
from tools.reach import Packages


def sha256(content: bytes) -> str:
    """Return the hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def code_of(source: str) -> str:
    """Return Python source without what changes no output: docstrings, comments, empty lines."""
    dropped = {row for node in ast.walk(ast.parse(source)) for row in _docstring_rows(node)}
    kinds: dict[int, set[int]] = defaultdict(set)
    ends: dict[int, int] = {}  # where the comment of a row begins
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        for row in range(token.start[0], token.end[0] + 1):
            kinds[row].add(token.type)
        if token.type == tokenize.COMMENT:
            ends[token.start[0]] = token.start[1]
    # an empty row within a string has the string's token and stays
    dropped |= {row for row, types in kinds.items() if types <= {tokenize.NL, tokenize.COMMENT}}
    rows = enumerate(source.split("\n"), start=1)
    return "\n".join(
        line[: ends[row]].rstrip() if row in ends else line for row, line in rows if row not in dropped
    )


def _docstring_rows(node: ast.AST) -> range:
    """The rows of a node's docstring; none where the docstring is all there is."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        match node.body:
            case [ast.Expr(value=ast.Constant(value=str())) as doc, _, *_]:
                return range(doc.lineno, (doc.end_lineno or doc.lineno) + 1)
    return range(0)


def inputs(book: Book, source: Path, profile: str) -> dict[str, Any]:
    """Return hashes of everything a chapter's outputs depend on: source, library, records, parameters."""
    cells = code_cells(read_source(source))
    # IPython's own syntax (`%magic`, `!command`) turned into Python
    code = "\n".join(TransformerManager().transform_cell(cell.source) for cell in cells)
    modules = {
        name: sha256(code_of(path.read_text("utf8")).encode())
        for name, path in Packages(*book.packages).reached_by(code).items()
    }
    # what the run sets in the cell tagged `parameters`
    values = {"profile": profile, "seed": book.seed}
    return {
        "source_sha256": sha256(source.read_bytes()),
        "reached_sha256": _hash_of(modules),
        "library_modules": modules,
        "records": {path.name: sha256(path.read_bytes()) for path in book.records(source)},
        "profile": profile,
        "parameters": values,
        "parameters_sha256": _hash_of(values),
        "threads": book.threads(source, profile),
    }


def recorded(notebook: Path) -> dict[str, Any]:
    """Return what a committed notebook was made from; empty where it is missing or does not say."""
    if not notebook.is_file():
        return {}
    made_from: dict[str, Any] = json.loads(notebook.read_text("utf8"))["metadata"].get("provenance", {})
    return made_from


def stale(book: Book, source: Path) -> list[str]:
    """Return why a chapter's committed notebook does not show what the tree would give; empty if it does."""
    path = book.notebook(source)
    if not path.is_file():
        return [f"{path.name} is missing"]
    old = recorded(path)
    if not old:
        return [f"{path.name} carries no provenance: it was not made by `make book`"]
    current = inputs(book, source, "quick")
    reasons = []
    if old["source_sha256"] != current["source_sha256"]:
        reasons.append(f"{source.name} has changed")
    reasons += _changed_modules(old["library_modules"], current["library_modules"])
    if old.get("records", {}) != current["records"]:
        reasons.append("a record of it in book/records has changed")
    for key in ("profile", "parameters", "threads"):
        if old[key] != current[key]:
            reasons.append(f"{key}: it ran with {old[key]}, expected {current[key]}")
    return reasons


def surroundings(profile: str) -> dict[str, Any]:
    """Return where and with what a run happens: versions, hardware, day. No host name, no paths."""
    return {
        "versions": machine.versions(),
        # quick runs are kept off the GPU, so that every machine shows the same numbers
        "hardware": machine.hardware() | ({"gpu": "not used"} if profile == "quick" else {}),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _hash_of(values: dict[str, Any]) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode())


def _changed_modules(old: dict[str, str], current: dict[str, str]) -> list[str]:
    reasons = []
    for name in sorted(old.keys() | current.keys()):
        if name not in current:
            reasons.append(f"{name} is no longer used")
        elif name not in old:
            reasons.append(f"{name} is newly used")
        elif old[name] != current[name]:
            reasons.append(f"{name} has changed")
    return reasons

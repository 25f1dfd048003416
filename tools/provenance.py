"""What an executed notebook was made from, and whether that is still what the tree holds."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from tools.layout import Book, read_source, threads
from tools.reach import Package

PACKAGES = ("torch", "numpy", "transformers", "sae_lib")


def sha256(content: bytes) -> str:
    """The hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def parameters(profile: str) -> dict[str, Any]:
    """What a run sets in the cell tagged `parameters`."""
    return {"profile": profile, "seed": 0}


def inputs(book: Book, source: Path, profile: str) -> dict[str, Any]:
    """Hashes of everything a chapter's outputs depend on: source, library modules, parameters."""
    modules = {name: sha256(path.read_bytes()) for name, path in _library_modules(book, source).items()}
    values = parameters(profile)
    return {
        "source_sha256": sha256(source.read_bytes()),
        "library_sha256": _hash_of(modules),
        "library_modules": modules,
        "profile": profile,
        "parameters": values,
        "parameters_sha256": _hash_of(values),
        "threads": threads(source, profile),
    }


def stale(book: Book, source: Path) -> list[str]:
    """Why a chapter's committed notebook does not show what the tree would give; empty if it does."""
    path = book.notebook(source)
    if not path.is_file():
        return [f"{path.name} is missing"]
    recorded = json.loads(path.read_text("utf8"))["metadata"].get("provenance")
    if not recorded:
        return [f"{path.name} carries no provenance: it was not made by `make book`"]
    current = inputs(book, source, "quick")
    reasons = []
    if recorded["source_sha256"] != current["source_sha256"]:
        reasons.append(f"{source.name} has changed")
    reasons += _changed_modules(recorded["library_modules"], current["library_modules"])
    for key in ("profile", "parameters", "threads"):
        if recorded[key] != current[key]:
            reasons.append(f"{key}: it ran with {recorded[key]}, expected {current[key]}")
    return reasons


def surroundings(profile: str) -> dict[str, Any]:
    """Where and with what a run happens: versions, hardware, day. No host name, no paths."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "hardware": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            # quick runs are kept off the GPU, so that every machine shows the same numbers
            "gpu": "not used" if profile == "quick" else _gpu(),
            "ram_gib": round(psutil.virtual_memory().total / 2**30),
        },
        "date": datetime.now(UTC).date().isoformat(),
    }


def _library_modules(book: Book, source: Path) -> dict[str, Path]:
    cells = [cell for cell in read_source(source).cells if cell.cell_type == "code"]
    return Package(book.library).reached_by("\n".join(_plain_python(cell) for cell in cells))


def _plain_python(cell: NotebookNode) -> str:
    """A cell's source with IPython's own syntax (`%magic`, `!command`) turned into Python."""
    return TransformerManager().transform_cell(cell.source)


def _hash_of(values: dict[str, Any]) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode())


def _changed_modules(recorded: dict[str, str], current: dict[str, str]) -> list[str]:
    reasons = [f"{name} is no longer used" for name in recorded.keys() - current.keys()]
    reasons += [f"{name} is newly used" for name in current.keys() - recorded.keys()]
    both = recorded.keys() & current.keys()
    return sorted(reasons + [f"{name} has changed" for name in both if recorded[name] != current[name]])


def _cpu() -> str:
    """The processor's model name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu() -> str:
    """The first GPU's name; asked from the driver's tool, because importing torch takes seconds."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return "none"
    query = [tool, "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines()[0].strip() if answer.returncode == 0 and answer.stdout else "none"

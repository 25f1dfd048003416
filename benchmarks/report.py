"""What the benchmarks' command lines share: their options, and what becomes of the rows."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lib import records


def parser(name: str, description: str, **numbers: int) -> argparse.ArgumentParser:
    """A command line with ``--json``, ``--record`` and whole numbers, by name with their defaults."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    for number, value in numbers.items():
        found.add_argument(f"--{number}", type=int, default=value, help=f"default {value}")
    found.add_argument("--json", action="store_true", help="rows as JSON on standard output")
    found.add_argument("--record", type=Path, help="write a record here")
    return found


def finish(
    rows: list[dict[str, Any]], options: argparse.Namespace, started: float, line: Callable[[Any], str]
) -> None:
    """Write the record and print the rows, as the options ask; ``line`` puts a row into words."""
    if options.record:
        records.write(options.record, rows, seconds=time.perf_counter() - started)
    print(json.dumps(rows, indent=1) if options.json else "\n".join(map(line, rows)))

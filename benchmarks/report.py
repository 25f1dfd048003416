"""Options and output that the benchmarks' command lines share."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lib import records


def parser(name: str, description: str, **numbers: int) -> argparse.ArgumentParser:
    """Return a command line with ``--json``, ``--record`` and whole numbers, by name with their defaults."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    for number, value in numbers.items():
        options.add_argument(f"--{number}", type=int, default=value, help=f"default {value}")
    options.add_argument("--json", action="store_true", help="rows as JSON on standard output")
    options.add_argument("--record", type=Path, help="write a record here")
    return options


def finish(
    rows: list[dict[str, Any]], options: argparse.Namespace, started: float, line: Callable[[Any], str]
) -> None:
    """Write the record and print the rows, as the options say; ``line`` puts a row into words."""
    if options.record:
        records.write(options.record, rows, seconds=time.perf_counter() - started)
    print(json.dumps(rows, indent=1) if options.json else "\n".join(map(line, rows)))

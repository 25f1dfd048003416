"""The record: one row a run, written as each ends, by any number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from sae_experiments.evidence.plans import STAGES
from sae_lib import records
from sae_lib.records.machine import hardware, library_sha256, versions

NAME = "10_evidence.json"
# of a row: what it was made with, where that is not what the record's head says
MADE = "made"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the record; none where there is no record yet."""
    return records.read(path).rows if path.exists() else []


def spent(rows: Iterable[Mapping[str, Any]]) -> float:
    """Return the seconds that runs took together, with their trials and measurements.

    Runs that differ in the seed share their trials, which count once.
    """
    rows = list(rows)
    trials = {tuple(trial.items()): trial["seconds"] for row in rows for trial in row["trials"]}
    own = sum(row["seconds"] + row["measuring_seconds"] for row in rows)
    return float(own + sum(trials.values()))


def add(path: Path, row: dict[str, Any], lock: Path) -> None:
    """Put a row into the record, in place of one of the same name.

    The head of the record says what the last rows were made with. Rows from before, made with other
    hardware, versions or state of the library, get an entry of their own.

    Args:
        path: The record.
        row: The row.
        lock: File that processes lock while they write.
    """
    with FileLock(lock):
        rows: list[dict[str, Any]] = []
        if path.exists():
            before = records.read(path)
            here = {"hardware": hardware(), "versions": versions(), "library_sha256": library_sha256()}
            there = {name: before.made[name] for name in here}
            entry = {} if here == there else {MADE: {"date": before.made["date"], **there}}
            rows = [entry | old for old in before.rows if old["name"] != row["name"]]
        rows.append(row)
        stages = {row["stage"] for row in rows}
        command = ["python", "-m", "sae_experiments.evidence", *(name for name in STAGES if name in stages)]
        records.write(path, rows, seconds=spent(rows), command=" ".join(command))

"""One record: rows of results with their provenance, as a JSON file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from sae_lib.files.atomic import replacing
from sae_lib.records.machine import command as this_command
from sae_lib.records.machine import hardware, library_sha256, versions

FORMAT = "sae_lib.record.1"


class RecordError(ValueError):
    """A file that is not a record, with the reason."""


@dataclass(frozen=True)
class Record:
    """Rows of results and what they were made with.

    Attributes:
        rows: One dictionary of plain values for each run.
        made: Command, date, hardware, versions, hash of the library, seconds.
    """

    rows: list[dict[str, Any]]
    made: dict[str, Any]

    @property
    def label(self) -> str:
        """Hardware, time and day in words, for captions: "2 cores of … CPU, 12 minutes, 5 May 2026"."""
        machine = self.made["hardware"]
        if machine["gpu"] != "none":
            where = f"one {machine['gpu']}"
        else:
            where = f"{machine['cores']} cores of an {machine['cpu']}"
        day = date.fromisoformat(self.made["date"])
        minutes = max(round(self.made["seconds"] / 60), 1)
        length = "1 minute" if minutes == 1 else f"{minutes} minutes"
        return f"{where}, {length}, {day.day} {day:%B %Y}"


def write(
    path: str | PathLike[str],
    rows: Sequence[dict[str, Any]],
    *,
    seconds: float,
    command: str | None = None,
) -> None:
    """Write a record in one step, creating its folder if need be.

    Args:
        path: File to write.
        rows: Dictionaries of plain JSON values, such as :func:`sae_lib.sweeps.sweep` returns.
        seconds: How long the runs took together, on the clock.
        command: Makes the record again; by default the command line of this process.

    Raises:
        ValueError: No rows.
    """
    if not rows:
        raise ValueError("no rows to record; expected at least one result")
    provenance = {
        "command": this_command() if command is None else command,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "library_sha256": library_sha256(),
        "seconds": round(seconds, 1),
    }
    path = Path(path)
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    head = json.dumps({"format": FORMAT, "made": provenance}, indent=1, ensure_ascii=False)
    with replacing(path) as temporary:
        text = head.removesuffix("\n}") + f',\n "rows": [\n{lines}\n ]\n}}\n'
        temporary.write_text(text, "utf8", newline="\n")


def read(path: str | PathLike[str]) -> Record:
    """Read a record.

    >>> sae_lib.records.write("07_sweep.json", [{"htf": 0.1, "frr": 0.98}], seconds=90)
    >>> record = sae_lib.records.read("07_sweep.json")
    >>> record.rows, sorted(record.made)
    ([{'htf': 0.1, 'frr': 0.98}], ['command', 'date', 'hardware', 'library_sha256', 'seconds', 'versions'])

    Raises:
        FileNotFoundError: No such file.
        RecordError: The file is not a record.
    """
    try:
        content = json.loads(Path(path).read_text("utf8"))
        if content["format"] != FORMAT:
            raise RecordError(f"{path} has format {content['format']!r}; expected {FORMAT!r}")
        return Record(content["rows"], content["made"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path} is not a record ({error}); make it again") from error

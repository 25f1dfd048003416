"""Runs parts one after the other, each in its own process and within its budget, and records each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.parts import Part
from sae_lib import records

# seconds of the limit for the last record; of each budget, between a part's deadline and its end by force
RESERVE, GRACE = 4.0, 3.0


@dataclass(frozen=True)
class Settings:
    """What all parts share.

    Attributes:
        out: Folder of the records.
        device: Device to check.
        toy: Whether this is the dry run.
        seed: Of everything random.
        limit: Seconds that the whole check may take.
        started: When it began, by ``time.monotonic``.
    """

    out: Path
    device: str
    toy: bool
    seed: int
    limit: float
    started: float

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started


def run(parts: Sequence[Part], settings: Settings) -> dict[str, str]:
    """Run the parts; return what became of each, by name.

    That is ``"finished"``, ``"failed"``, ``"over budget"``, ``"interrupted"`` or ``"not started"``. Whatever
    it is, the rows that the part had ready are in its record.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the record of the part at work.
    """
    told: dict[str, str] = {}
    for place, part in enumerate(parts):
        # time that earlier parts left is shared by those to come
        left = settings.limit - RESERVE - settings.elapsed()
        budget = left * part.share / sum(other.share for other in parts[place:])
        print(f"[{settings.elapsed():6.1f} s] {part.number} {part.name}: {budget:.0f} s", flush=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder) / "rows.jsonl"
            rows.touch()
            status = "not started" if budget < 1 else _run_one(part, settings, budget, rows)
            seconds = time.monotonic() - began
            head = {"name": "part", "part": part.name, "status": status, "seconds": round(seconds, 2)}
            head |= {"budget_s": round(budget, 1), "limit_s": settings.limit, "toy": settings.toy}
            head |= {"seed": settings.seed, "device": settings.device, **machine()}
            path = settings.out / f"gpu_{part.number}_{part.name}.json"
            records.write(path, [head, *_complete(rows)], seconds=seconds)
        told[part.name] = status
        print(f"[{settings.elapsed():6.1f} s] {part.number} {part.name}: {status}; {path}", flush=True)
        if status == "interrupted":
            raise KeyboardInterrupt
    return told


def _run_one(part: Part, settings: Settings, budget: float, rows: Path) -> str:
    """Run a part in a new process, ended by force after its budget; return what became of it."""
    end = time.monotonic() + budget
    command = [
        sys.executable, "-m", "benchmarks.gpu_check.part", part.run, f"--rows={rows}",
        f"--device={settings.device}", f"--seed={settings.seed}", f"--started={settings.started}",
        f"--deadline={end - min(GRACE, budget / 4)}", *(["--toy"] if settings.toy else []),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # a session of its own: Ctrl-C in a terminal then reaches only this process, which ends all of the part's
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return "finished" if process.wait(end - time.monotonic()) == 0 else "failed"
    except subprocess.TimeoutExpired:
        return "over budget"
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _complete(rows: Path) -> list[dict[str, Any]]:
    """Return the rows of a file whose last line may be cut off."""
    complete = []
    for line in rows.read_text("utf8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            complete.append(json.loads(line))
    return complete


def machine() -> dict[str, str | None]:
    """Return versions and properties of the GPU, without touching it; None for what is not there."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    facts: dict[str, str | None] = {"torch": torch.__version__, "triton": triton, "cuda": torch.version.cuda}
    names = ("driver_version", "compute_cap", "memory.total")
    answers: Sequence[str | None] = [None] * len(names)
    if tool := shutil.which("nvidia-smi"):
        query = [tool, f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        lines = answer.stdout.splitlines() if answer.returncode == 0 else []
        if lines and lines[0].count(",") == len(names) - 1:
            answers = [part.strip() for part in lines[0].split(",")]
    return facts | dict(zip(("driver", "capability", "memory"), answers, strict=True))

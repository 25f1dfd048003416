"""What a part is given to work with: device, sizes, clock, and a place for its rows."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
# after one of these the process can do nothing more on its GPU
_FATAL = (
    "illegal memory access", "illegal instruction", "misaligned address", "device-side assert",
    "launch failure", "unknown error", "uncorrectable",
)  # fmt: skip


@dataclass(frozen=True)
class Context:
    """One part at work.

    Attributes:
        device: Device to measure.
        toy: Whether sizes are those of the dry run.
        seed: Of everything random.
        rows: File that gets one JSON object a line, as soon as it is known: what is written there survives
            whatever ends the part.
        started: Start of the whole check, by ``time.monotonic``.
        deadline: When the part should be done, by the same clock; a little later it is killed.
    """

    device: torch.device
    toy: bool
    seed: int
    rows: Path
    started: float
    deadline: float

    @property
    def cuda(self) -> bool:
        """Whether the device is a CUDA one."""
        return self.device.type == "cuda"

    def left(self) -> float:
        """Return the seconds until the part should be done."""
        return self.deadline - time.monotonic()

    def generator(self) -> torch.Generator:
        """Return a fresh random stream on the device."""
        return torch.Generator(self.device).manual_seed(self.seed)

    def say(self, text: str) -> None:
        """Print a line with the time since the check began."""
        print(f"[{time.monotonic() - self.started:6.1f} s]   {text}", flush=True)

    def row(self, name: str, **values: Any) -> None:
        """Record a row, and print it."""
        values = {key: _plain(value) for key, value in values.items()}
        with self.rows.open("a", encoding="utf8") as file:
            file.write(json.dumps({"name": name, **values}) + "\n")
        self.say(f"{name}: " + ", ".join(f"{key} {_short(value)}" for key, value in values.items()))

    def skip(self, name: str, reason: str) -> None:
        """Record that something was not run, and why."""
        self.row(name, not_run=reason)

    def attempt(self, name: str, call: Callable[[], T]) -> T | None:
        """Return the call's result; if it fails, record the failure and return None.

        A failure after which the GPU is lost to this process is raised again, and so ends the part.
        """
        try:
            return call()
        except Exception as error:
            message = describe(error)
            if self.cuda and any(words in message for words in _FATAL):
                raise
            self.row(name, failed=message)
        # only now, as the exception held the tensors of the failed call
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
        return None


def describe(error: BaseException) -> str:
    """Return an exception's class and first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _plain(value: Any) -> Any:
    """Return a JSON value: None for NaN and infinity, a name for a type."""
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

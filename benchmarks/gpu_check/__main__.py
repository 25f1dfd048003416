"""Runs ``python -m benchmarks.gpu_check``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import STARTED, parser, runner
from benchmarks.gpu_check.parts import PARTS, Part

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """Run the check; return 0 if every part finished, 1 if not, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu" and not options.toy:
        raise SystemExit("PyTorch sees no GPU here; --toy runs every part at toy size without one")
    # a dry run must not take the place of results
    out = options.out or (ROOT / "runs" / "gpu_check" if options.toy else ROOT / "book" / "records")
    settings = runner.Settings(out, device, options.toy, options.seed, options.limit, STARTED)
    # whoever ends the command by a signal gets the records too
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        told = runner.run([part for part in parts if part.name in options.parts], settings)
    except KeyboardInterrupt:
        print(f"stopped; finished parts are in {out}", file=sys.stderr)
        return 130
    print(f"[{settings.elapsed():6.1f} s] " + ", ".join(f"{name} {status}" for name, status in told.items()))
    return 0 if set(told.values()) == {"finished"} else 1


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

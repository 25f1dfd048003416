"""All that only a GPU can tell, in one command of at most eight minutes on an H200.

    python -m benchmarks.gpu_check                    # five parts, five records in book/records
    python -m benchmarks.gpu_check --toy              # the same at toy size on any device, a minute
    python -m benchmarks.gpu_check --parts step screening --limit 200

The parts: (1) the Triton kernels against plain operations, (2) a training step against the encoder product
and other libraries, (3) at which density and size the sparse step pays, (4) the paper's run with random
weights, for two minutes, (5) screening by a product in float8. Each runs in a process of its own with a
share of the time; one that fails or takes too long is recorded as such, with what it had measured, and the
next begins. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.gpu_check.parts import PARTS

# read before anything heavy is imported, so that the limit counts the imports too
STARTED = time.monotonic()


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [part.name for part in PARTS]
    options.add_argument("--parts", nargs="+", choices=names, default=names, help="default: all")
    options.add_argument("--out", type=Path, help="default book/records, with --toy runs/gpu_check")
    options.add_argument("--limit", type=float, default=480, help="seconds in all, default 480")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", help="default cuda where there is one")
    options.add_argument("--toy", action="store_true", help="toy sizes, on a CPU too")
    return options

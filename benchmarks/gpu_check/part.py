"""One part in a process of its own, which may hang, crash or lose its GPU without harm to the others."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from pathlib import Path

import torch

from benchmarks.gpu_check.context import Context, describe


def main(arguments: list[str] | None = None) -> int:
    """Run the part; return 0, or 1 if it failed."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.part", description=__doc__)
    options.add_argument("run", help="module:function")
    options.add_argument("--rows", type=Path, required=True)
    options.add_argument("--device", required=True)
    options.add_argument("--seed", type=int, required=True)
    options.add_argument("--started", type=float, required=True)
    options.add_argument("--deadline", type=float, required=True)
    options.add_argument("--toy", action="store_true")
    given = options.parse_args(arguments)
    context = Context(
        torch.device(given.device), given.toy, given.seed, given.rows, given.started, given.deadline
    )
    torch.manual_seed(given.seed)
    if context.toy and not context.cuda:
        # toy sizes only lose by more threads, above all on a busy machine
        torch.set_num_threads(1)
    module, _, function = given.run.partition(":")
    try:
        getattr(importlib.import_module(module), function)(context)
    except Exception as error:
        traceback.print_exc()
        context.row("the part", failed=describe(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command line of the package: lists the runs, or makes those that are not on record."""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import sae_experiments.evidence as package
from sae_experiments import stores
from sae_experiments.evidence import plans, recording, training
from sae_experiments.evidence.data import MOST_FIRST_ROWS
from sae_experiments.evidence.plans import STAGES, NotReadyError
from sae_experiments.evidence.runs import Run
from sae_lib.training import checkpoint
from sae_lib.training.log import TrainingLog

FOLDER, RECORDS = stores.ROOT / "runs" / "evidence", stores.ROOT / "book" / "records"
# seconds for a row and latent before anything was measured
GUESS = 2.5e-8


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_experiments.evidence",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--list", action="store_true", help="list the runs; the default without a stage")
    parser.add_argument("--stores", type=Path, default=stores.FOLDER, help="of activations: %(default)s")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="keeps autoencoders and checkpoints: %(default)s"
    )
    parser.add_argument("--records", type=Path, default=RECORDS, help="gets the record: %(default)s")
    parser.add_argument(
        "--first-rows", type=int, default=0, metavar="N",
        help="search, and size up to N rows, read only the finished shards that hold the first N rows of a "
        f"store, which may be unfinished; at most {MOST_FIRST_ROWS:,}",
    )  # fmt: skip
    return parser


def estimate(run: Run, rows: Sequence[Mapping[str, Any]]) -> float:
    """Return about how many seconds a run takes, in proportion to the most similar run on record."""

    def distance(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
        apart = abs(math.log(row["rows"] / run.rows)) + abs(math.log(row["width"] / run.width))
        return row["method"] != run.method, row["tied"] != run.tied, apart

    # a run that failed took less time than it takes
    if not (known := [row for row in rows if row["fvu"] is not None]):
        return GUESS * run.rows * run.width
    nearest = min(known, key=distance)
    # later seeds use the trials of the first
    trials = 0.0 if run.seed else sum(trial["seconds"] for trial in nearest["trials"])
    for_a_row = (nearest["seconds"] + trials) / nearest["rows"]
    return float(run.width / nearest["width"] * (for_a_row * run.rows + nearest["measuring_seconds"]))


def spelt(seconds: float) -> str:
    """Return a time in words: "40 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def state(run: Run, done: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """Say whether a run is on record, in progress or to do."""
    if row := done.get(run.name):
        if row["fvu"] is None:
            return "on record: failed"
        return f"on record: FVU {row['fvu']:.4f}, L0 {row['l0']:.1f}, {spelt(recording.spent([row]))}"
    if (folder / run.name / checkpoint.NAME).exists():
        log = TrainingLog.read(folder / run.name, run.steps)
        return f"in progress: step {log[-1]['step'] if log else 0:,} of {run.steps:,}"
    return "to do"


def listing(stages: Sequence[str], path: Path, folder: Path) -> Iterator[str]:
    """Yield a line on every run and one on every stage, and the time for what is left."""
    rows = recording.read(path)
    done = {row["name"]: row for row in rows}
    seen: set[str] = set()
    total = 0.0
    for stage in stages:
        runs = plans.plan(stage, rows, guess=True)
        open_runs = [run for run in runs if run.name not in done and run.name not in seen]
        left = sum(estimate(run, rows) for run in open_runs)
        total += left
        waits = "" if _settled(stage, rows) else "; settings wait for the search, those shown are a guess"
        yield f"{stage}: {len(runs)} runs, {len(open_runs)} to do, about {spelt(left)}{waits}"
        for run in runs:
            said = state(run, done, folder)
            if run.name in done or run.name not in seen:
                time = "" if run.name in done else f", about {spelt(estimate(run, rows))}"
                yield f"  {run.name}  {said}{time}"
            else:
                yield f"  {run.name}  in a stage above"
        seen |= {run.name for run in runs}
    basis = "from the runs on record" if rows else "a guess: nothing is on record"
    yield f"left: about {spelt(total)} ({basis})"


def _settled(stage: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    try:
        plans.plan(stage, rows)
    except NotReadyError:
        return False
    return True


@contextlib.contextmanager
def claimed(run: Run, folder: Path) -> Iterator[bool]:
    """Hold a run's lock; yield whether no other process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{run.name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, which training answers with a checkpoint."""
    before = {
        signal.SIGTERM: signal.getsignal(signal.SIGTERM),
        signal.SIGINT: signal.getsignal(signal.SIGINT),
    }
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    # a shell starts what runs in the background with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def one(run: Run, options: argparse.Namespace, path: Path) -> dict[str, Any] | None:
    """Make a run and record it; None if another process has made it or is at it."""
    with claimed(run, options.folder) as mine:
        if not mine or run.name in {row["name"] for row in recording.read(path)}:
            return None
        row = training.make(run, stores=options.stores, folder=options.folder, first_rows=options.first_rows)
        recording.add(path, row, options.folder / "record.lock")
        # large, and not needed any more
        (options.folder / run.name / checkpoint.NAME).unlink(missing_ok=True)
        return row


def _told(row: Mapping[str, Any]) -> str:
    if row["fvu"] is None:
        return f"{row['name']}: failed, {row['failed']}"
    searched = f" with {len(row['trials'])} trials" if row["trials"] else ""
    return (
        f"{row['name']}: FVU {row['fvu']:.4f}, L0 {row['l0']:.1f}, dead {row['dead']:.3f}, "
        f"{spelt(recording.spent([row]))}{searched}"
    )


def work(options: argparse.Namespace, path: Path) -> list[str]:
    """Make the runs of the stages in order; return why some could not be made."""
    obstacles: list[str] = []
    for position, stage in enumerate(options.stages):
        try:
            runs = plans.plan(stage, recording.read(path))
        except NotReadyError as error:
            obstacles.append(f"{stage}: {error}")
            print(obstacles[-1], flush=True)
            continue
        for number, run in enumerate(runs, 1):
            rows = recording.read(path)
            if run.name in {row["name"] for row in rows}:
                continue
            try:
                row = one(run, options, path)
            except NotReadyError as error:
                if (obstacle := f"{stage}: {error}") not in obstacles:
                    obstacles.append(obstacle)
                    print(obstacle, flush=True)
                continue
            if row is not None:
                rows = recording.read(path)
                done = {row["name"] for row in rows}
                later = [
                    r for name in options.stages[position + 1 :] for r in plans.plan(name, rows, guess=True)
                ]
                open_runs = {r.name: r for r in [*runs, *later] if r.name not in done}.values()
                left = sum(estimate(r, rows) for r in open_runs)
                print(f"{stage} {number}/{len(runs)} {_told(row)}; {spelt(left)} left", flush=True)
    return obstacles


def main(arguments: Sequence[str] | None = None) -> None:
    """List the runs, or make those of some stages."""
    options = parser().parse_args(arguments)
    if unknown := [stage for stage in options.stages if stage not in STAGES]:
        raise SystemExit(f"no stage {', '.join(unknown)}; expected some of {', '.join(STAGES)}")
    if not 0 <= options.first_rows <= MOST_FIRST_ROWS:
        raise SystemExit(f"--first-rows is {options.first_rows:,}; expected at most {MOST_FIRST_ROWS:,}")
    path = options.records / recording.NAME
    if options.list or not options.stages:
        print(*listing(options.stages or list(STAGES), path, options.folder), sep="\n")
        return
    try:
        with stoppable():
            obstacles = work(options, path)
    except KeyboardInterrupt as interrupt:
        raise SystemExit(f"{str(interrupt) or 'stopped'}; the same command goes on") from None
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if obstacles:
        raise SystemExit("not all runs were made, as said above; the same command goes on")

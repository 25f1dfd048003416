"""Runs one process a chapter, to execute or compare it: as many at once as cores and memory allow."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sae_lib.records.machine import hardware
from tools import provenance
from tools.layout import REPOSITORY, Book, BookError, after, setting

# what every kernel sees, whether it executes a chapter or checks it
KERNEL_ENVIRONMENT = {
    "TQDM_DISABLE": "1",  # a progress bar would end up in the page
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    # a thread that waits by spinning takes the core another chapter needs
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
# quick runs are the same everywhere: no network, no GPU
QUICK_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
# of the machine's memory, for chapters side by side
MEMORY_SHARE = 0.6
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """A command to run for one chapter.

    memory_mib: peak of an earlier run, 0 if unknown.
    after: number of another chapter, whose job must have ended before, or "".
    alone: run it while nothing else runs, as it measures speed: `book: {alone: true}`.
    variables: environment variables of its own.
    """

    name: str
    command: Sequence[str]
    threads: int = 1
    memory_mib: int = 0
    profile: str = "quick"
    after: str = ""
    alone: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)

    def waits_for(self, other: "Job") -> bool:
        """Return whether the other one must have ended before."""
        return bool(self.after) and other.name.startswith(f"{self.after}_")


@dataclass(frozen=True)
class Outcome:
    """How a job ended: what it printed (what it wrote to stderr if it died without a word), its time."""

    status: int
    lines: list[str]
    seconds: float


def executing(book: Book, sources: Sequence[Path], profile: str = "quick", **options: Any) -> list[Job]:
    """Return jobs that execute chapters into notebooks. The options are those of :func:`jobs`."""

    def command(source: Path) -> list[str]:
        chapter = (str(book.root), str(source), profile, str(book.seed), str(book.fixed_threads))
        return [sys.executable, "-m", "tools.execute", *chapter]

    return jobs(book, sources, command, profile, **options)


def jobs(
    book: Book,
    sources: Sequence[Path],
    command: Callable[[Path], list[str]],
    profile: str = "quick",
    *,
    before: Book | None = None,
    variables: Mapping[str, str] | None = None,
) -> list[Job]:
    """Return a job for each chapter. The longest, with what waits for it, come first: so no core idles.

    before: the book whose notebooks say how long chapters took; this one by default.
    variables: environment variables for all of them.
    """
    earlier = {source: provenance.recorded((before or book).notebook(source)) for source in sources}

    def length(source: Path) -> float:
        waiting = [other for other in sources if source.stem.startswith(f"{after(other)}_")]
        seconds = {each: float(earlier[each].get("seconds", 0)) for each in (source, *waiting)}
        return seconds[source] + max((seconds[other] for other in waiting), default=0)

    return [
        Job(
            source.stem,
            command(source),
            book.threads(source, profile),
            int(earlier[source].get("peak_memory_mib", 0)),
            profile,
            after(source),
            bool(setting(source, "alone", False)),
            variables or {},
        )
        for source in sorted(sources, key=length, reverse=True)
    ]


def run_and_report(jobs: Sequence[Job], cores: int, verb: str) -> bool:
    """Run the jobs with a line of progress each, then show what failed; return whether nothing did."""
    # lets matplotlib build its font cache now: the first kernel would print a warning about it
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], capture_output=True, check=True)
    bars: dict[str, tqdm] = {}  # one for each running chapter, drawn on terminals only

    def on_line(job: Job, line: str) -> bool:
        if not line.startswith('{"done"'):
            return False
        if job.name not in bars:
            cells = json.loads(line)["cells"]
            bars[job.name] = tqdm(desc=job.name, total=cells, unit="cell", leave=False, disable=None)
        bars[job.name].update()
        return True

    def on_end(job: Job, outcome: Outcome) -> None:
        if job.name in bars:
            bars[job.name].close()
        tqdm.write(f"{job.name}: {'FAILED' if outcome.status else verb} in {outcome.seconds:.0f} s")
        sys.stdout.flush()

    ended = run(jobs, cores, on_line, on_end)
    failed = {name: outcome for name, outcome in ended.items() if outcome.status}
    for name, outcome in failed.items():
        print(f"\n{'─' * 20} {name} {'─' * 20}", *outcome.lines, sep="\n")
    print(f"chapters: {len(ended) - len(failed)} passed, {len(failed)} failed")
    return not failed


def run(
    jobs: Sequence[Job],
    cores: int,
    on_line: Callable[[Job, str], bool],
    on_end: Callable[[Job, Outcome], None],
) -> dict[str, Outcome]:
    """Run all jobs, in order as far as cores, memory, `after` and `alone` allow; failures stop nothing.

    `on_line` sees each line as it comes, and returns whether it was only about progress.
    """
    left = list(jobs)
    while free := [job for job in left if not any(job.waits_for(other) for other in left)]:
        left = [job for job in left if job not in free]
    if left:
        raise BookError(f"these chapters wait for each other: {', '.join(job.name for job in left)}")
    waiting, running, ended = list(jobs), dict[Future[Outcome], Job](), dict[str, Outcome]()
    with ThreadPoolExecutor(max_workers=cores) as pool:
        while waiting or running:
            for job in list(waiting):
                others = list(running.values())
                blocked = any(job.waits_for(other) for other in (*waiting, *others))
                if not blocked and _fits(job, others, cores):
                    waiting.remove(job)
                    running[pool.submit(_run, job, on_line)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                ended[job.name] = future.result()
                on_end(job, ended[job.name])
    return ended


def _fits(job: Job, others: Sequence[Job], cores: int) -> bool:
    """Whether a job may start beside others: with nothing running, always."""
    together = [job, *others]
    return not others or (
        not any(each.alone for each in together)
        and len(together) <= cores
        and sum(min(each.threads, cores) for each in together) <= cores
        and sum(each.memory_mib for each in together) <= MEMORY_SHARE * 1024 * hardware()["ram_gib"]
    )


def environment(job: Job) -> dict[str, str]:
    """Return the environment of a job's process and of the kernel that it starts."""
    inherited = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    limits = dict.fromkeys(THREAD_VARIABLES, str(job.threads))
    quick = QUICK_ENVIRONMENT if job.profile == "quick" else {}
    return {**inherited, **KERNEL_ENVIRONMENT, **limits, **quick, **job.variables}


def _run(job: Job, on_line: Callable[[Job, str], bool]) -> Outcome:
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            job.command,
            cwd=REPOSITORY,  # where the package `tools` is found
            env=environment(job),
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        lines = [line.rstrip("\n") for line in process.stdout if not on_line(job, line)]
        process.wait()
        if process.returncode and not lines:
            errors.seek(0)
            lines = errors.read().splitlines()
    return Outcome(process.returncode, lines, time.perf_counter() - start)

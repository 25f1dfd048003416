"""Runs one process a chapter, as many at once as cores and memory allow."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from sae_lib.records.machine import hardware
from tools.layout import REPOSITORY

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

    memory_mib: what it took before, 0 if unknown.
    after: the number of another chapter, whose job must have ended before, or "".
    alone: run it while nothing else runs.
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


@dataclass(frozen=True)
class Outcome:
    """How a job ended: what it printed (what it wrote to stderr if it died without a word), its time."""

    status: int
    lines: list[str]
    seconds: float


def run(
    jobs: Sequence[Job],
    cores: int,
    on_line: Callable[[Job, str], bool],
    on_end: Callable[[Job, Outcome], None],
) -> dict[str, Outcome]:
    """Run all jobs, in order as far as cores, memory, `after` and `alone` allow; failures stop nothing.

    `on_line` sees each line as it comes, and returns whether it was only about progress.
    """
    _refuse_circles(jobs)
    waiting, running, ended = list(jobs), dict[Future[Outcome], Job](), dict[str, Outcome]()
    with ThreadPoolExecutor(max_workers=cores) as pool:
        while waiting or running:
            for job in list(waiting):
                others = list(running.values())
                if _fits(job, others, cores) and not any(_waits(job, other) for other in (*waiting, *others)):
                    waiting.remove(job)
                    running[pool.submit(_run, job, on_line)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                ended[job.name] = future.result()
                on_end(job, ended[job.name])
    return ended


def _fits(job: Job, others: Sequence[Job], cores: int) -> bool:
    """Whether a job may start beside others: with nothing running, always."""
    if not others:
        return True
    together = [job, *others]
    return (
        not any(each.alone for each in together)
        and len(together) <= cores
        and sum(min(each.threads, cores) for each in together) <= cores
        and sum(each.memory_mib for each in together) <= MEMORY_SHARE * 1024 * hardware()["ram_gib"]
    )


def _waits(job: Job, other: Job) -> bool:
    return bool(job.after) and other.name.startswith(f"{job.after}_")


def _refuse_circles(jobs: Sequence[Job]) -> None:
    """Raise ValueError for jobs that wait for each other."""
    left = list(jobs)
    while free := [job for job in left if not any(_waits(job, other) for other in left)]:
        left = [job for job in left if job not in free]
    if left:
        raise ValueError(f"these chapters wait for each other: {', '.join(job.name for job in left)}")


def warm_up() -> None:
    """Let matplotlib build its font cache now: the first kernel would print a warning about it."""
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], capture_output=True, check=True)


def environment(job: Job) -> dict[str, str]:
    """The environment of a job's process and of the kernel that it starts."""
    inherited = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    limits = dict.fromkeys(THREAD_VARIABLES, str(job.threads))
    quick = QUICK_ENVIRONMENT if job.profile == "quick" else {}
    return {**inherited, **KERNEL_ENVIRONMENT, **limits, **quick, **job.variables}


def _run(job: Job, on_line: Callable[[Job, str], bool]) -> Outcome:
    start = time.perf_counter()
    lines = []
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
        for line in process.stdout:
            if not on_line(job, line):
                lines.append(line.rstrip("\n"))
        process.wait()
        if process.returncode and not lines:
            errors.seek(0)
            lines = errors.read().splitlines()
    return Outcome(process.returncode, lines, time.perf_counter() - start)

"""The jobs that execute chapters or compare them, with progress on the terminal."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from tools import parallel, provenance
from tools.layout import Book, after, alone
from tools.parallel import Job, Outcome


def executing(
    book: Book,
    sources: Sequence[Path],
    profile: str = "quick",
    *,
    before: Book | None = None,
    variables: Mapping[str, str] | None = None,
) -> list[Job]:
    """Jobs that execute chapters into notebooks. Arguments are those of :func:`jobs`."""

    def command(source: Path) -> list[str]:
        chapter = (str(book.root), str(source), profile, str(book.seed), str(book.fixed_threads))
        return [sys.executable, "-m", "tools.execute", *chapter]

    return jobs(book, sources, command, profile, before=before, variables=variables)


def jobs(
    book: Book,
    sources: Sequence[Path],
    command: Callable[[Path], list[str]],
    profile: str = "quick",
    *,
    before: Book | None = None,
    variables: Mapping[str, str] | None = None,
) -> list[Job]:
    """A job a chapter. What took longest before, with what waits for it, comes first: so no core idles.

    before: the book whose notebooks say what chapters took; this one where there is no other.
    variables: environment variables for all of them.
    """
    earlier = before or book
    recorded = {source: provenance.recorded(earlier.notebook(source)) for source in sources}

    def seconds(source: Path) -> float:
        return float(recorded[source].get("seconds", 0))

    def length(source: Path) -> float:
        waiting = [seconds(other) for other in sources if source.stem.startswith(f"{after(other)}_")]
        return seconds(source) + max(waiting, default=0)

    return [
        Job(
            source.stem,
            command(source),
            book.threads(source, profile),
            int(recorded[source].get("peak_memory_mib", 0)),
            profile,
            after(source),
            alone(source),
            variables or {},
        )
        for source in sorted(sources, key=length, reverse=True)
    ]


def run_and_report(jobs: Sequence[Job], cores: int, verb: str) -> bool:
    """Run the jobs with a line of progress each, then show what failed; returns whether nothing did."""
    parallel.warm_up()
    bars: dict[str, tqdm] = {}  # one for each running chapter, drawn on terminals only

    def on_line(job: Job, line: str) -> bool:
        if not line.startswith('{"done"'):
            return False
        progress = json.loads(line)
        if job.name not in bars:
            bars[job.name] = tqdm(
                desc=job.name, total=progress["cells"], unit="cell", leave=False, disable=None
            )
        bars[job.name].update()
        return True

    def on_end(job: Job, outcome: Outcome) -> None:
        if job.name in bars:
            bars[job.name].close()
        ending = "FAILED" if outcome.status else verb
        tqdm.write(f"{job.name}: {ending} in {outcome.seconds:.0f} s")
        sys.stdout.flush()

    ended = parallel.run(jobs, cores, on_line, on_end)
    failed = {name: outcome for name, outcome in ended.items() if outcome.status}
    for name, outcome in failed.items():
        print(f"\n{'─' * 20} {name} {'─' * 20}", *outcome.lines, sep="\n")
    print(f"chapters: {len(ended) - len(failed)} passed, {len(failed)} failed")
    return not failed

"""The book's command line: `python -m tools.book run | check | verify | editions | site`."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from tools import claims, cover, editions, generated, parallel, provenance, site
from tools.layout import REPOSITORY, Book, after, alone, threads

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Root = Annotated[Path, typer.Option(help="Folder that holds chapters/, book/ and sae_lib/.")]
Chapters = Annotated[
    list[str] | None, typer.Argument(help="Chapters by number or name; all if none is given.")
]
Cores = Annotated[int, typer.Option(min=1, help="Cores to use.")]
CORES = os.cpu_count() or 1


@app.command("run")
def run_chapters(
    chapters: Chapters = None,
    root: Root = REPOSITORY,
    profile: Annotated[
        str, typer.Option(help="quick: pages of the book; full: GPU runs, in runs/full.")
    ] = "quick",
    stale: Annotated[
        bool, typer.Option("--stale", help="Only chapters whose notebook is out of date.")
    ] = False,
    cores: Cores = CORES,
) -> None:
    """Execute chapters into notebooks; a chapter that fails keeps its old notebook."""
    if profile not in ("quick", "full"):
        raise typer.BadParameter(f"the profile is {profile!r}; it must be quick or full")
    book = Book(root.resolve())
    sources = _sources(book, chapters)
    if stale:
        sources = [source for source in sources if provenance.stale(book, source)]
    execute = (sys.executable, "-m", "tools.execute", str(book.root))
    jobs = _jobs(book, sources, lambda source: [*execute, str(source), profile], profile)
    _run_and_report(jobs, cores, "executed")
    cover.write(book)
    _write_generated(book)


@app.command()
def check(root: Root = REPOSITORY) -> None:
    """List the notebooks that are out of date, and why."""
    book = Book(root.resolve())
    found = {source.stem: provenance.stale(book, source) for source in book.sources()}
    for name, reasons in found.items():
        print(f"{name}: {'; '.join(reasons) if reasons else 'up to date'}")
    if any(found.values()):
        print("Run `python -m tools.book run --stale`.")
        raise typer.Exit(1)


@app.command()
def verify(chapters: Chapters = None, root: Root = REPOSITORY, cores: Cores = CORES) -> None:
    """Execute the committed notebooks again and compare every output (nbval)."""
    book = Book(root.resolve())
    pytest = (sys.executable, "-m", "pytest", "-p", "tools.nbval_tolerance", "--nbval", "--nbval-current-env")
    quiet = ("-q", "--no-header", "--color=no", "-p", "no:cacheprovider")
    jobs = _jobs(book, _sources(book, chapters), lambda s: [*pytest, *quiet, str(book.notebook(s))])
    _run_and_report(jobs, cores, "reproduced")


@app.command("editions")
def write_editions(root: Root = REPOSITORY) -> None:
    """Write the chapters as notebooks for students, with solutions and for instructors: _build/editions."""
    book = Book(root.resolve())
    target = book.root / "_build" / "editions"
    editions.write(book, target)
    print(f"Notebooks: {target}")


@app.command("site")
def build_site(
    root: Root = REPOSITORY,
    archive: Annotated[bool, typer.Option("--archive", help="Also write the site as one file.")] = False,
    repository: Annotated[
        str, typer.Option(help="Its address on GitHub: adds launch, repository and issue buttons.")
    ] = "",
    address: Annotated[
        str, typer.Option(help="Where the site will be served: adds canonical links, previews, a sitemap.")
    ] = "",
) -> None:
    """Build the site from the committed notebooks, executing nothing."""
    book = Book(root.resolve())
    _write_generated(book)
    try:
        pages = site.build(book, repository=repository, address=address)
    except site.SiteError as error:
        print(error)
        raise typer.Exit(1) from error
    print(f"The book: {pages / 'index.html'}")
    if archive:
        print(f"In one file, for reading without a network: {site.archive(pages)}")


def _write_generated(book: Book) -> None:
    try:
        generated.write(book)
    except claims.ClaimsError as error:
        print(error)
        raise typer.Exit(1) from error


def _sources(book: Book, chapters: list[str] | None) -> list[Path]:
    try:
        return book.sources(chapters or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _jobs(
    book: Book, sources: list[Path], command: Callable[[Path], list[str]], profile: str = "quick"
) -> list[parallel.Job]:
    """A job a chapter. What took longest before, with what waits for it, comes first: so no core idles."""
    before = {source: provenance.recorded(book.notebook(source)) for source in sources}

    def seconds(source: Path) -> float:
        return float(before[source].get("seconds", 0))

    def length(source: Path) -> float:
        waiting = [seconds(other) for other in sources if source.stem.startswith(f"{after(other)}_")]
        return seconds(source) + max(waiting, default=0)

    return [
        parallel.Job(
            source.stem,
            command(source),
            threads(source, profile),
            int(before[source].get("peak_memory_mib", 0)),
            profile,
            after(source),
            alone(source),
        )
        for source in sorted(sources, key=length, reverse=True)
    ]


def _run_and_report(jobs: list[parallel.Job], cores: int, verb: str) -> None:
    """Run the jobs with a line of progress each, then show what failed; exit 1 if anything did."""
    parallel.warm_up()
    bars: dict[str, tqdm] = {}  # one for each running chapter, drawn on terminals only

    def on_line(job: parallel.Job, line: str) -> bool:
        if not line.startswith('{"done"'):
            return False
        progress = json.loads(line)
        if job.name not in bars:
            bars[job.name] = tqdm(
                desc=job.name, total=progress["cells"], unit="cell", leave=False, disable=None
            )
        bars[job.name].update()
        return True

    def on_end(job: parallel.Job, outcome: parallel.Outcome) -> None:
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
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()

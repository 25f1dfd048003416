"""The book's command line: `python -m tools.book run | check | verify | editions | site`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tools import claims, cover, editions, generated, jobs, numerical_paths, provenance, site, verify_paths
from tools import words as carry_words
from tools.layout import REPOSITORY, Book

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
    _report(jobs.run_and_report(jobs.executing(book, sources, profile), cores, "executed"))
    cover.write(book)
    _write_generated(book)


@app.command()
def words(chapters: Chapters = None, root: Root = REPOSITORY) -> None:
    """Put changed prose and cell metadata into notebooks whose code is unchanged, executing nothing."""
    book = Book(root.resolve())
    passed = True
    for source in _sources(book, chapters):
        try:
            if carry_words.carry(book, source):
                print(f"{source.stem}: new words, the same outputs")
        except carry_words.WordsError as error:
            print(f"{error}; execute it")
            passed = False
    _write_generated(book)
    _report(passed)


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
def verify(
    chapters: Chapters = None,
    root: Root = REPOSITORY,
    cores: Cores = CORES,
    paths: Annotated[
        bool, typer.Option("--paths", help="Execute as other processors would, and with other seeds.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="With --paths: some of them, by name.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="With --paths: keep a summary for the status page.")
    ] = False,
) -> None:
    """Execute the committed notebooks again and compare every output (nbval)."""
    book = Book(root.resolve())
    if paths:
        try:
            chosen = numerical_paths.chosen(only or ())
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        _report(verify_paths.run(book, _sources(book, chapters), chosen, cores, record=record))
        return
    pytest = (sys.executable, "-m", "pytest", "-p", "tools.nbval_tolerance", "--nbval", "--nbval-current-env")
    quiet = ("-q", "--no-header", "--color=no", "-p", "no:cacheprovider")
    again = jobs.jobs(book, _sources(book, chapters), lambda s: [*pytest, *quiet, str(book.notebook(s))])
    _report(jobs.run_and_report(again, cores, "reproduced"))


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


def _report(passed: bool) -> None:
    if not passed:
        raise typer.Exit(1)


def _sources(book: Book, chapters: list[str] | None) -> list[Path]:
    try:
        return book.sources(chapters or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    app()

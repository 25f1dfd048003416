"""The book's command line: `python -m tools.book run | words | check | verify | editions | site`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tools import editions, generated, jobs, numerical_paths, provenance, site
from tools import words as carry_words
from tools.layout import REPOSITORY, Book, BookError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Root = Annotated[Path, typer.Option(help="Folder that holds chapters/, book/ and sae_lib/.")]
Chapters = Annotated[list[str] | None, typer.Argument(help="Chapters by number or name; all by default.")]
Profile = Annotated[str, typer.Option(help="quick: pages of the book; full: GPU runs, in runs/full.")]
Stale = Annotated[bool, typer.Option("--stale", help="Only chapters whose notebook is out of date.")]
Cores = Annotated[int, typer.Option(min=1, help="Cores to use.")]
Paths = Annotated[bool, typer.Option("--paths", help="As other processors would, and with other seeds.")]
Only = Annotated[list[str] | None, typer.Option(help="With --paths: some of them, by name.")]
Record = Annotated[bool, typer.Option("--record", help="With --paths: keep a summary for the status page.")]
Archive = Annotated[bool, typer.Option("--archive", help="Also write the site as one file.")]
Repository = Annotated[str, typer.Option(help="On GitHub: adds launch, repository and issue buttons.")]
Address = Annotated[str, typer.Option(help="Of the site: adds canonical links, previews, a sitemap.")]
CORES = os.cpu_count() or 1


@app.command("run")
def run_chapters(
    chapters: Chapters = None,
    root: Root = REPOSITORY,
    profile: Profile = "quick",
    stale: Stale = False,
    cores: Cores = CORES,
) -> None:
    """Execute chapters into notebooks; a chapter that fails keeps its old notebook."""
    if profile not in ("quick", "full"):
        raise BookError(f"the profile is {profile!r}; it must be quick or full")
    book = Book(root.resolve())
    sources = [s for s in book.sources(chapters or ()) if not stale or provenance.stale(book, s)]
    passed = jobs.run_and_report(jobs.executing(book, sources, profile), cores, "executed")
    generated.write_cover(book)
    raise typer.Exit(not passed)


@app.command()
def words(chapters: Chapters = None, root: Root = REPOSITORY) -> None:
    """Put changed prose and cell metadata into notebooks whose code is unchanged, executing nothing."""
    book, passed = Book(root.resolve()), True
    for source in book.sources(chapters or ()):
        try:
            if carry_words.carry(book, source):
                print(f"{source.stem}: new words, the same outputs")
        except BookError as error:
            print(f"{error}; execute it")
            passed = False
    raise typer.Exit(not passed)


@app.command()
def check(root: Root = REPOSITORY) -> None:
    """List the notebooks that are out of date, and why."""
    book = Book(root.resolve())
    reasons = {source.stem: provenance.stale(book, source) for source in book.sources()}
    for name, why in reasons.items():
        print(f"{name}: {'; '.join(why) or 'up to date'}")
    if any(reasons.values()):
        raise BookError("Run `python -m tools.book run --stale`.")


@app.command()
def verify(
    chapters: Chapters = None,
    root: Root = REPOSITORY,
    cores: Cores = CORES,
    paths: Paths = False,
    only: Only = None,
    record: Record = False,
) -> None:
    """Execute the committed notebooks again and compare every output (nbval)."""
    book = Book(root.resolve())
    sources = book.sources(chapters or ())
    if paths:
        chosen = numerical_paths.chosen(only or ())
        raise typer.Exit(not numerical_paths.run(book, sources, chosen, cores, record=record))
    pytest = (sys.executable, "-m", "pytest", "-p", "tools.nbval_tolerance", "--nbval", "--nbval-current-env")
    quiet = ("-q", "--no-header", "--color=no", "-p", "no:cacheprovider")
    again = jobs.jobs(book, sources, lambda source: [*pytest, *quiet, str(book.notebook(source))])
    raise typer.Exit(not jobs.run_and_report(again, cores, "reproduced"))


@app.command("editions")
def write_editions(root: Root = REPOSITORY) -> None:
    """Write the chapters as notebooks for students, with solutions and for instructors: _build/editions."""
    book = Book(root.resolve())
    target = book.root / "_build" / "editions"
    editions.write(book, target)
    print(f"Notebooks: {target}")


@app.command("site")
def build_site(
    root: Root = REPOSITORY, archive: Archive = False, repository: Repository = "", address: Address = ""
) -> None:
    """Build the site from the committed notebooks, executing nothing."""
    pages = site.build(Book(root.resolve()), repository, address)
    print(f"The book: {pages / 'index.html'}")
    if archive:
        print(f"In one file, for reading without a network: {site.archive(pages)}")


def main() -> None:
    """Run the command line; an error that someone can put right is a sentence."""
    try:
        app()
    except BookError as error:
        print(error)
        sys.exit(1)


if __name__ == "__main__":
    main()

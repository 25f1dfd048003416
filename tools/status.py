"""The status page: what each page and each record was made from, when, on what, and at what cost."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from sae_lib import records
from tools import provenance, verify_paths
from tools.layout import Book
from tools.nbval_tolerance import KINDS

PAGE = "status.md"

TEXT = """\
# Status

How the numbers of this edition were made. The page is written by the build from the records inside the
notebooks; nobody fills it in by hand. A *hash* is the beginning of a SHA-256: of the chapter's source, and of
those modules of the library that the chapter reaches. Where either no longer fits the tree, the tests fail:
what you read was computed by the code beside it. *Seconds* are wall time; chapters run
beside each other and so take longer than they would alone. *Core-seconds* are processor time on all cores:
alone on two of them, a chapter takes between half of these and all of them.

## Chapters

{chapters}

{machine}

{reproduction}## Records of longer runs

A record holds the numbers of runs that take longer than a chapter may. The chapter that shows it runs a part
of the same experiment live. Its library hash covers all of `sae_lib`, as it was on the day of the run.

{records}
"""

REPRODUCTION = """\
## On other processors

Each chapter was also executed as other processors would: with other code for products, sums and normal
draws (`make paths`). *Exact* numbers came out the same, *rounding* ones to a relative 1e-4, and *trained*
ones within the tolerances of their cells; *widest* is the largest share of a tolerance that any of them
used. The record `numerical_paths` has it cell by cell, for {names}; a seed is no path but another draw of
everything, which numbers need not survive.

{table}

"""


def text(book: Book) -> str:
    """The page as Markdown, from the committed notebooks and records."""
    made = {source.stem: provenance.recorded(book.notebook(source)) for source in book.sources()}
    made = {name: found for name, found in made.items() if found}
    chapters = [
        (
            f"[{name[:2]}]({name}.ipynb)", found["date"],
            f"{found['seconds']:.0f}", f"{found['core_seconds']:.0f}",
            f"{found['peak_memory_mib'] / 1024:.1f}", found["threads"], found["profile"],
            _short(found["source_sha256"]), _short(found["library_sha256"]),
        )
        for name, found in made.items()
    ]  # fmt: skip
    head = ("chapter", "made on", "seconds", "core-seconds", "GiB", "threads", "profile", "source", "library")
    rows = []
    for path in sorted((book.pages / "records").glob("*.json")):
        record = records.read(path)
        hardware = record.made["hardware"]
        on = hardware["gpu"] if hardware["gpu"] != "none" else f"{hardware['cores']} cores, {hardware['cpu']}"
        rows.append(
            (
                f"`{path.stem}`", record.made["date"], f"{record.made['seconds']:,.0f}", on,
                f"torch {record.made['versions']['torch']}", _short(record.made["library_sha256"]),
            )
        )  # fmt: skip
    record_head = ("record", "made on", "seconds", "hardware", "version", "library")
    return TEXT.format(
        reproduction=_reproduction(book),
        chapters=_table(head, chapters),
        machine=_machines(list(made.values())),
        records=_table(record_head, rows) if rows else "There are none.",
    )


def _reproduction(book: Book) -> str:
    """What other processors make of the numbers, from the record of `make paths`; "" where there is none."""
    path = book.pages / "records" / verify_paths.RECORD
    if not path.is_file():
        return ""
    by_chapter: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in records.read(path).rows:
        by_chapter[row["chapter"]].append(row)
    rows = []
    for chapter, cells in by_chapter.items():
        numbers = Counter(dict.fromkeys(KINDS, 0))
        for cell in cells:
            numbers[cell["kind"]] += cell["n_numbers"]
        trained = [cell for cell in cells if cell["kind"] == "trained"]
        widest = max((share for cell in trained for share in _moved_by_paths(cell).values()), default=0.0)
        rows.append((chapter, *(numbers[kind] for kind in KINDS), f"{widest:.0%}" if trained else "–"))
    names = ", ".join(f"`{name}`" for name in cells[0]["moved"])
    return REPRODUCTION.format(names=names, table=_table(("chapter", *KINDS, "widest"), rows))


def _moved_by_paths(cell: dict[str, Any]) -> dict[str, float]:
    """Without the other seeds."""
    return {name: share for name, share in cell["moved"].items() if not name.startswith("seed")}


def _machines(made: list[dict[str, Any]]) -> str:
    """One sentence a kind of machine and set of versions; as a rule there is one."""
    kinds = Counter(json.dumps([found["hardware"], found["versions"]]) for found in made)
    sentences = []
    for kind, number in kinds.most_common():
        hardware, versions = json.loads(kind)
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        sentences.append(
            f"{number} of {len(made)} chapters: {hardware['cpu']}, {hardware['cores']} cores, "
            f"{hardware['ram_gib']} GiB, GPU {hardware['gpu']}; {named}."
        )
    return "\n\n".join(sentences)


def _table(head: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _short(sha256: str) -> str:
    return f"`{sha256[:8]}`"

"""The stages, each a list of runs, and the settings that the first one finds for the others."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sae_experiments.evidence.runs import Run

Rows = Sequence[Mapping[str, Any]]
# learning rate and settings of a method, tied or untied
Best = Callable[[str, bool], dict[str, Any]]

MILLION = 1_000_000
# everybody that is compared at every size and place; what matters most comes first
CONTESTANTS = (("gba", False), ("topk", True), ("gba", True), ("topk", False), ("batch_topk", False))
FOUR = CONTESTANTS[:4]
MAIN: dict[str, Any] = {"width": 8192, "rows": 12 * MILLION}
SMALL: dict[str, Any] = {"width": 4096, "rows": MILLION}
SEEDS, LEVELS = (0, 1, 2), (16, 64, 128)
WIDTHS, ROWS = (1024, 2048, 4096, 8192), (100_000, 300_000, MILLION, 3 * MILLION, 12 * MILLION)
PLACES = (("code", 2), ("code", 26), ("wikipedia", 14), ("wikipedia", 2), ("wikipedia", 26))
# of the methods without a search here: what the search of chapter 10 chose
BASELINE_RATE = 0.003
# settings that are listed while the search is not over
PROVISIONAL = {"gba": {"lr": 0.01, "every": 2}, "topk": {"lr": 0.01}, "batch_topk": {"lr": 0.01}}
# log FVU falls by so much for each unit of log L0 where trials do not tell, and how far it is trusted
SLOPE, STEEPEST, FLATTEST, FARTHEST = -0.22, -0.6, -0.05, math.log(1.5)


class NotReadyError(ValueError):
    """A run that needs a result or a store which is not there yet; the message says which."""


def run(stage: str, method: str, tied: bool | None, lr: float, **options: Any) -> Run:
    """Make a run; options that are no fields of a run are settings of the method."""
    fields = {name: options.pop(name) for name in list(options) if name in Run.__dataclass_fields__}
    settings = options if tied is None else {"tied": tied, **options}
    if method in ("topk", "batch_topk"):
        settings["k"] = fields.get("l0", 32)
    return Run(stage, method, lr=lr, settings=settings, **fields)


def search() -> list[Run]:
    """Plan the search at the small size: twelve runs for each of three methods."""
    grids: dict[str, dict[str, tuple[Any, ...]]] = {
        "gba": {"tied": (False, True), "lr": (0.003, 0.01), "every": (1, 2, 10)},
        "topk": {"tied": (False, True), "lr": (0.003, 0.01, 0.02), "aux_coefficient": (0.0, 1 / 32)},
    }
    grids["batch_topk"] = grids["topk"]
    options: dict[str, Any]
    runs = []
    for method, grid in grids.items():
        for values in itertools.product(*grid.values()):
            options = dict(zip(grid, values, strict=True))
            runs.append(run("search", method, **options, **SMALL))
    return runs


def contest(
    stage: str, best: Best, contestants: Iterable[tuple[str, bool]] = CONTESTANTS, **options: Any
) -> list[Run]:
    """Plan a run of each contestant with the settings that the search found."""
    return [run(stage, method, tied, **best(method, tied), **options) for method, tied in contestants]


def frontier(best: Best) -> list[Run]:
    """Plan the main place: every contestant, seed by seed."""
    return [r for seed in SEEDS for r in contest("frontier", best, **MAIN, seed=seed)]


def baselines(best: Best) -> list[Run]:
    """Plan the other methods at the main place, untied first; rates are those of their nearest relative."""
    relatives = {"ba": "gba", "matryoshka": "batch_topk"}
    runs = [
        run("baselines", method, tied, **best(relative, tied), **MAIN)
        for tied in (False, True)
        for method, relative in relatives.items()
    ]
    penalised = [run("baselines", method, None, BASELINE_RATE, **MAIN) for method in ("jumprelu", "l1")]
    return [*runs[:2], *penalised, *runs[2:]]


def levels(best: Best) -> list[Run]:
    """Plan GBA and TopK at other sparsities."""
    return [r for l0 in LEVELS for r in contest("levels", best, FOUR, **MAIN, l0=l0)]


def size(best: Best) -> list[Run]:
    """Plan every contestant over rows and widths, the cheapest first.

    Among them are runs of the search and of the frontier, which are not made again.
    """
    sizes = sorted(itertools.product(ROWS, WIDTHS), key=lambda pair: (pair[0] * pair[1], pair))
    return [r for rows, width in sizes for r in contest("size", best, rows=rows, width=width)]


def places(best: Best) -> list[Run]:
    """Plan every contestant at other layers and in other text."""
    return [
        r for corpus, layer in PLACES for r in contest("places", best, **SMALL, corpus=corpus, layer=layer)
    ]


# in the order of importance
STAGES: dict[str, Callable[[Best], list[Run]]] = {
    "search": lambda best: search(), "frontier": frontier, "baselines": baselines, "levels": levels,
    "size": size, "places": places,
}  # fmt: skip


def provisional(method: str, tied: bool) -> dict[str, Any]:
    """Return plausible settings, for a list of runs before the search is over."""
    return dict(PROVISIONAL[method])


def frontier_slope(rows: Iterable[Mapping[str, Any]]) -> float:
    """Return how log FVU changes with log L0 at GBA's settings: pooled over the trials of each run.

    A run's trials differ in nothing but the knob. Those far from the wanted L0 do not count.
    """
    square = product = 0.0
    for row in rows:
        trials = [
            (math.log(trial["l0"]), math.log(trial["fvu"]))
            for trial in row.get("trials") or []
            if trial["fvu"] and trial["l0"] and abs(math.log(trial["l0"] / row["target"])) < 2 * FARTHEST
        ]
        if len(trials) > 1:
            middle = [statistics.fmean(values) for values in zip(*trials, strict=True)]
            square += sum((x - middle[0]) ** 2 for x, _ in trials)
            product += sum((x - middle[0]) * (y - middle[1]) for x, y in trials)
    # below that the trials are too near to each other to tell
    slope = product / square if square > 0.01 else SLOPE
    return min(max(slope, STEEPEST), FLATTEST)


def matched_fvu(row: Mapping[str, Any], slope: float) -> float:
    """Return the FVU that a run would have at the wanted L0; infinite where it is too far off to say."""
    if not row["fvu"] or not row["l0"] or abs(math.log(row["l0"] / row["target"])) > FARTHEST:
        return math.inf
    return float(row["fvu"] * (row["target"] / row["l0"]) ** slope)


def found(rows: Rows) -> Best:
    """Return the settings that the search found best by FVU at the wanted L0, from the rows of the record."""
    by_name = {row["name"]: row for row in rows}
    slope = frontier_slope(by_name[r.name] for r in search() if r.name in by_name)

    def best(method: str, tied: bool) -> dict[str, Any]:
        group = [r for r in search() if (r.method, r.tied) == (method, tied)]
        if missing := sum(r.name not in by_name for r in group):
            raise NotReadyError(
                f"{method} {'tied' if tied else 'untied'}: {missing} of {len(group)} runs of the search are "
                "missing; run the stage search first"
            )
        first = min(group, key=lambda r: matched_fvu(by_name[r.name], slope))
        if matched_fvu(by_name[first.name], slope) == math.inf:
            raise NotReadyError(f"no run of the search of {method} came near the wanted L0; see the record")
        settings = {name: value for name, value in first.settings.items() if name not in ("tied", first.knob)}
        return {"lr": first.lr, **settings}

    return best


def plan(stage: str, rows: Rows, *, guess: bool = False) -> list[Run]:
    """Return the runs of a stage, given the rows on record.

    Args:
        stage: Its name.
        rows: Of the record.
        guess: Whether provisional settings do where those of the search are missing.

    Raises:
        NotReadyError: The search that decides the settings is not over.
    """
    try:
        return STAGES[stage](found(rows))
    except NotReadyError:
        if not guess:
            raise
        return STAGES[stage](provisional)


def rows_of(stage: str, rows: Rows) -> list[Mapping[str, Any]]:
    """Return those of a record's rows that belong to a stage, whichever stage made them."""
    names = {run.name for run in plan(stage, rows)}
    return [row for row in rows if row["name"] in names]

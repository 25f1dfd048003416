"""Many runs over seeds, methods and settings: in parallel, kept on disk, resumable."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from sae_lib.checks import at_least
from sae_lib.files.atomic import replacing
from sae_lib.records.machine import library_sha256, versions
from sae_lib.sweeps.fingerprint import fingerprint, plain_cell

Row = dict[str, Any]


class SweepError(RuntimeError):
    """A failed run, with its settings; runs that finished before it stay in the folder."""


def sweep(
    run: Callable[..., Mapping[str, Any]],
    cells: Iterable[Mapping[str, Any]],
    *,
    folder: str | PathLike[str] | None = None,
    workers: int | None = None,
    progress: bool | None = None,
) -> list[Row]:
    """Call ``run(**cell)`` for every cell and return ``{**cell, **result}`` in the order of the cells.

    >>> def run(k, seed):
    ...     data = sae_lib.synthetic.uniform(n_rows=2000, seed=seed)
    ...     sae, log = sae_lib.train(data, sae_lib.TopK(k=k), width=64, steps=20, seed=seed)
    ...     return {"l0": log[-1]["l0"]}
    >>> rows = sae_lib.sweeps.sweep(run, [{"k": k, "seed": s} for k in (2, 4) for s in (0, 1)], workers=1)
    >>> len(rows), rows[0], rows[-1]
    (4, {'k': 2, 'seed': 0, 'l0': 2.0}, {'k': 4, 'seed': 1, 'l0': 4.0})

    Args:
        run: Returns plain JSON values by name. All its randomness has to come from the cell. It may be
            defined in a notebook.
        cells: Arguments, each a plain JSON value or a :class:`Method`, which a row shows as its description.
        folder: Keeps finished runs, one small file each. A later call with the same function, arguments,
            library and versions reads them and computes only the others. None keeps nothing.
        workers: Processes of one thread each, so that results do not depend on their number; by default as
            many as PyTorch has threads.
        progress: Show a bar; by default only where standard error is a terminal.

    Raises:
        SweepError: A run fails or returns what JSON cannot hold; the message names the cell.
        ValueError: A cell holds another kind of value, or ``run`` uses a variable that is none of these.
    """
    arguments = [dict(cell) for cell in cells]
    plain = [plain_cell(cell) for cell in arguments]
    workers = torch.get_num_threads() if workers is None else workers
    at_least(1, workers=workers)
    store = _Store(Path(folder), run) if folder is not None else None
    results = [store.get(cell) if store else None for cell in plain]
    todo = [i for i, result in enumerate(results) if result is None]
    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=len(plain), initial=len(plain) - len(todo), unit="run", disable=not shown) as bar:
        for i, result in _calls(run, [(i, arguments[i]) for i in todo], workers):
            if clash := sorted(result.keys() & plain[i].keys()):
                raise SweepError(
                    f"the run returns {clash[0]!r}, which is also an argument; rename one of them"
                )
            results[i] = result
            if store:
                store.put(plain[i], result)
            bar.update()
    return [{**cell, **(result or {})} for cell, result in zip(plain, results, strict=True)]


def _calls(
    run: Callable[..., Mapping[str, Any]], jobs: list[tuple[int, Row]], workers: int
) -> Iterator[tuple[int, Row]]:
    if workers == 1 or len(jobs) < 2:
        yield from (_call(run, i, cell) for i, cell in jobs)
        return
    # one run a task: a run takes seconds, and finished ones should reach the disk
    pool = Parallel(n_jobs=min(workers, len(jobs)), batch_size=1, return_as="generator_unordered")
    yield from pool(delayed(_call)(run, i, cell) for i, cell in jobs)


def _call(run: Callable[..., Mapping[str, Any]], index: int, cell: Row) -> tuple[int, Row]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # through JSON, so that a fresh result and a cached one are the same
        return index, json.loads(json.dumps(dict(run(**cell))))
    except Exception as error:
        settings = ", ".join(f"{k}={v}" for k, v in plain_cell(cell).items())
        raise SweepError(f"the run with {settings} failed: {type(error).__name__}: {error}") from error
    finally:
        torch.set_num_threads(before)


class _Store:
    """Finished runs of one function, a JSON file each, named by a hash of what the result depends on."""

    def __init__(self, folder: Path, run: Callable[..., Any]) -> None:
        self.folder = folder
        self.made_with = {
            "function": fingerprint(run), "library": library_sha256(), "versions": versions()
        }  # fmt: skip

    def _path(self, cell: Row) -> Path:
        content = json.dumps({"cell": cell, **self.made_with}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.json"

    def get(self, cell: Row) -> Row | None:
        try:
            content = json.loads(self._path(cell).read_text("utf8"))
            return dict(content["result"]) if content["cell"] == cell else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # missing or damaged: computed again

    def put(self, cell: Row, result: Row) -> None:
        with replacing(self._path(cell)) as path:
            path.write_text(json.dumps({"cell": cell, "result": result}), "utf8")

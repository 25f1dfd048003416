"""What each process of a job does in ``test_distributed``: all scenarios one after another, one job a size.

    python distributed_worker.py RANK SIZE FOLDER

Results lie in FOLDER as ``scenario-rank.pt``; what a process raised, as text in ``scenario-rank.txt``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rounding import InDouble, InDoubleRows

from sae_lib import (
    L1,
    BatchTopK,
    BiasAdaptation,
    Frozen,
    Gated,
    GroupBiasAdaptation,
    JumpReLU,
    ModifiedBiasAdaptation,
    TopK,
    kernels,
    synthetic,
    train,
)
from sae_lib.distributed import World
from sae_lib.files.atomic import only_writer
from sae_lib.kernels import reference

# neither divides by 4 or by 3
WIDTH, BATCH = 30, 50
HALF = 20
SITES = ("resid_post.1", "resid_post.2", "mlp_out.0")
RUN: dict[str, Any] = {
    "width": WIDTH, "batch_size": BATCH, "steps": 2 * HALF, "log_every": 10, "checkpoint_every": HALF,
    "lr": 0.02,
}  # fmt: skip
GBA = {"groups": 3, "htf": 0.3, "ltf": 0.02, "every": 4, "gamma": 1.0, "epsilon": 0.005}
METHODS = {
    "gba": GroupBiasAdaptation(**GBA),
    "gba-untied": GroupBiasAdaptation(**GBA, tied=False, centre=True),
    "ba": BiasAdaptation(target_frequency=0.1, every=4, centre=True),
    "l1": L1(0.01, centre=True),
    "jumprelu": JumpReLU(coefficient=0.02, bandwidth=0.05, threshold=0.05, warmup=10, centre=True),
    "topk": TopK(k=1, dead_after=3, centre=True),
    "gated": Gated(coefficient=0.05, centre=True),
    "frozen": Frozen(L1(0.01)),
}
# of these a job of more than two processes takes fewer, for the sake of time
FEW = ("gba-untied", "topk", "jumprelu")
REFUSED = [BatchTopK(k=2), ModifiedBiasAdaptation(0.5), Frozen(BatchTopK(k=2))]


class OftenReviewed(InDouble):
    """A method in float64 whose trainer looks for dead latents every ten steps."""

    def start(self, sae: Any, sample: Any) -> Any:
        trainer = super().start(sae, sample)
        trainer.REVIEW = 10
        return trainer


def data() -> InDoubleRows:
    return InDoubleRows(synthetic.preset("uniform", n_features=24, d_in=12, n_rows=2000).rows)


def run(method: Any, parallel: str = "auto", **options: Any) -> dict[str, Any]:
    """Weights and log of a run in float64."""
    method = OftenReviewed(method)
    sae, log = train(data(), method, parallel=parallel, **RUN | options)
    counters = {name: value.clone() for name, value in method.run.named_buffers()}
    return {"weights": sae.state_dict(), "log": list(log), "counters": counters}


def sparse(method: Any) -> dict[str, Any]:
    """The same through the sparse pass."""
    before = kernels.SMALLEST, kernels.DENSEST, kernels.backend
    # density falls below this on the way; the plain backend, as the other one would be compiled first
    kernels.SMALLEST, kernels.DENSEST, kernels.backend = {"cpu": 1}, {"cpu": 0.15}, lambda device: reference
    try:
        return run(method, steps=HALF)
    finally:
        kernels.SMALLEST, kernels.DENSEST, kernels.backend = before


def messages() -> dict[str, int]:
    """How often ten steps ask for a mean density where no sparse pass is possible, and where one is."""
    asked, ask = 0, World.average

    def counted(self: World, value: Any) -> Any:
        nonlocal asked
        asked += 1
        return ask(self, value)

    World.average = counted  # type: ignore[method-assign]
    found, smallest = {}, kernels.SMALLEST
    try:
        for name, least in (("small", smallest), ("large", {"cpu": 1})):
            kernels.SMALLEST, asked = least, 0
            run(METHODS["frozen"], steps=10)
            found[name] = asked
    finally:
        World.average, kernels.SMALLEST = ask, smallest  # type: ignore[method-assign]
    return found


class Apart:
    """A method whose autoencoder starts a little differently in every process."""

    def __init__(self, method: Any) -> None:
        self.method = method

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def build(self, *arguments: Any, **options: Any) -> Any:
        sae = self.method.build(*arguments, **options)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.add_(1e-3 * dist.get_rank())
        return sae


class Crash(Exception):
    pass


def crash_at(last: int) -> Callable[[int, Any], None]:
    def crash(step: int, sae: Any) -> None:
        if step == last:
            raise Crash

    return crash


def begun(folder: Path, method: Any) -> None:
    """A run that ends after its checkpoint."""
    try:
        run(method, folder=folder, callback=crash_at(HALF + 10))
    except Crash:
        return
    raise AssertionError("the run did not crash")


def harvested(folder: Path, last: int | None = None, sites: tuple[str, ...] = ("resid_post.1",)) -> None:
    """A small store, or one a site; ``last``: stop after so many forward passes of this process."""
    from lm_fixtures import language_model, text_corpus

    from sae_lib.activations import harvest_sites

    model, passes = language_model(), 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == last:
            raise Crash

    model.model.register_forward_pre_hook(count)
    options = {
        "n_tokens": 1000,
        "block_size": 16,
        "batch_blocks": 3,
        "shard_rows": 90,
        "skip_first": 1,
        "max_norm": 1.1,
    }
    with suppress(Crash):
        folders = {site: folder / site for site in sites} if len(sites) > 1 else {sites[0]: folder}
        harvest_sites(model, text_corpus(), folders, **options)


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )

    def keep(name: str, value: Any) -> None:
        torch.save(value, folder / f"{name}-{rank}.pt")

    for name in METHODS if size == 2 else FEW:
        # "auto", as by default, is "data"
        keep(f"data.{name}", run(METHODS[name], "data" if name == "topk" else "auto"))
    keep("sparse", sparse(METHODS["gba-untied"]))
    # from a checkpoint of one process, and to one that one process resumes from
    keep("resumed", run(METHODS["gba-untied"], folder=folder / "from-one", resume=True))
    begun(folder / "to-one", METHODS["gba-untied"])
    keep("apart", run(Apart(METHODS["frozen"])))
    keep("messages", messages())
    keep("files", run(METHODS["gba"], folder=folder / "files"))
    # in the job, but by itself
    keep("off", run(METHODS["gba"], "off"))

    refusals = []
    for method, options in [*((method, {}) for method in REFUSED), (L1(), {"batch_size": size - 1})]:
        try:
            train(data(), method, **RUN | options)
        except ValueError as error:
            refusals.append(str(error))
    # the last process looks into another folder, with an earlier step; then into one without a checkpoint
    for other in ("to-one", "nowhere"):
        try:
            run(
                METHODS["gba-untied"],
                folder=folder / ("from-one" if rank < size - 1 else other),
                resume=True,
            )
        except ValueError as error:
            refusals.append(str(error))
    with only_writer(folder / "locked", "harvesting into") if rank == 0 else nullcontext():
        try:
            harvested(folder / "locked")
        except (ValueError, RuntimeError) as error:
            refusals.append(str(error))
    keep("refusals", refusals)

    harvested(folder / "store")
    harvested(folder / "store-from-one")
    harvested(folder / "store-to-one", last=3)
    # one has all its shards, one the first three, one none
    harvested(folder / "stores", sites=SITES)

    def die(step: int, sae: Any) -> None:
        if step == HALF + 10 and rank == size - 1:
            os._exit(9)

    try:
        run(METHODS["gba"], folder=folder / "orphaned", callback=die)
    except RuntimeError as error:
        (folder / f"orphaned-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        # no goodbye to a process that is gone
        os._exit(3)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

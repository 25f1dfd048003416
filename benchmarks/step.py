"""One training step, optimiser included, as a multiple of the encoder product at the same shapes.

    python -m benchmarks.step                                  # d 576, width 9,216, batch 1,024, L0 32
    python -m benchmarks.step --d 1536 --width 65536 --batch 8192 --l0 64 --device cuda --bf16
    python -m benchmarks.step --json           # rows {name, ms, x_gemm, ...} on standard output
    python -m benchmarks.step --record book/records/14_step.json

All contestants are timed in one process, in turn, round after round; numbers are medians over the rounds,
with the quartiles of their ratio to the product of the same round. Each timed step follows an untimed one of
its own. Rows and weights are random; biases are set so that ``--l0`` latents fire on a row. Peers are timed
where they are installed (``pip install sae_lib[bench]``; sparsify and dictionary_learning by hand), in
float32 and, on a CPU, under bfloat16 autocast as well.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import sae_lib
from benchmarks import memory, peers, report
from sae_lib import kernels
from sae_lib.methods import BatchTopK, Gated, JumpReLU, Matryoshka
from sae_lib.methods.gated import GatedTrainer
from sae_lib.training.updating import Update

RATE = peers.RATE


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the benchmark and return its rows."""
    options = parser().parse_args(arguments)
    if options.bf16 and options.device == "cpu":
        raise SystemExit("--bf16 with --device cpu: compiled loops on a CPU use float32; leave out --bf16")
    started = time.perf_counter()
    x = normalize(torch.randn(options.batch, options.d, device=options.device), dim=1)
    precision = torch.autocast(x.device.type, torch.bfloat16, enabled=options.bf16)
    with precision:
        rows = [
            {"d": options.d, "width": options.width, "batch": options.batch, "l0": options.l0,
             "bf16": options.bf16, "threads": torch.get_num_threads(), "units": units(),
             "rounds": options.rounds, **row}
            for row in measure(x, options.width, options.l0, options.rounds, options.only)
        ]  # fmt: skip
    report.finish(
        rows, options, started,
        lambda row: f"{row['name']:38} {row['ms']:9.2f} ms {row['x_gemm']:7.2f} × product "
                    f"({row['x_gemm_low']:.2f} to {row['x_gemm_high']:.2f}) "
                    f"{row['peak_mib']:7.0f} MiB above the state",
    )  # fmt: skip
    return rows


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    sizes = {"d": 576, "width": 9216, "batch": 1024, "l0": 32, "rounds": 15}
    options = report.parser("step", __doc__.split("\n")[0], **sizes)
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--bf16", action="store_true", help="products in bfloat16 (autocast); on a GPU")
    options.add_argument("--only", default="", help="only contestants whose name contains this")
    return options


def measure(x: Tensor, width: int, l0: int, rounds: int, only: str = "") -> list[dict[str, Any]]:
    """Measure each contestant: median milliseconds, as a multiple of the product, and peak memory in MiB."""
    built = contestants(x, width, l0).items()
    steps = {name: build() for name, build in built if only.lower() in name.lower()}
    weight, out = torch.randn(width, x.shape[1], device=x.device), x.new_empty(len(x), width)
    steps = {"encoder product": lambda: torch.mm(x, weight.T, out=out)} | steps
    if torch.is_autocast_enabled(x.device.type):
        low, low_weight = x.bfloat16(), weight.bfloat16()
        steps["encoder product"] = lambda: low @ low_weight.T
    elif x.device.type == "cpu" and "encoder product".startswith(only.lower()):
        low, low_weight, low_out = x.bfloat16(), weight.bfloat16(), out.bfloat16()
        steps["encoder product, bfloat16"] = lambda: torch.mm(low, low_weight.T, out=low_out)
    peak = {}
    for name, step in steps.items():
        for _ in range(3):
            step()
        peak[name] = memory.peak(step, x.device) / 2**20
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            # a step follows one of its own, as in training, and finds in the cache what that left there
            step()
            times[name].append(seconds(step, x.device))
        print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    product = statistics.median(times["encoder product"])
    rows = []
    for name in steps:
        ratios = [time / in_turn for time, in_turn in zip(times[name], times["encoder product"], strict=True)]
        low_quartile, _, high_quartile = statistics.quantiles(ratios, n=4) if rounds > 1 else 3 * ratios
        rows.append(
            {"name": name, "ms": 1e3 * statistics.median(times[name]),
             "x_gemm": statistics.median(times[name]) / product,
             "x_gemm_low": low_quartile, "x_gemm_high": high_quartile, "peak_mib": peak[name]}
        )  # fmt: skip
    return rows


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Time one call, waiting for the device."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    # autocast would keep the weights it has cast, and a step after the first would not cast them again
    torch.clear_autocast_cache()
    wait()
    started = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - started


def contestants(x: Tensor, width: int, l0: int) -> dict[str, Callable[[], Callable[[], object]]]:
    """Return, by name, a builder of the step of each contestant: ours, sparse and dense, then the peers'."""
    ours = {
        "GBA": sae_lib.GroupBiasAdaptation(),
        "L1": sae_lib.L1(0.0),
        "TopK": sae_lib.TopK(k=l0),
        "TopK, tied": sae_lib.TopK(k=l0, tied=True),
        "BatchTopK": BatchTopK(k=l0),
        "Matryoshka": Matryoshka(k=l0),
        "JumpReLU": JumpReLU(0.0),
        "Gated": Gated(0.0),
    }
    builders: dict[str, Callable[[], Callable[[], object]]] = {
        f"sae_lib {name}": partial(ours_step, method, x, width, l0) for name, method in ours.items()
    }
    builders["sae_lib GBA, float32"] = partial(ours_step, ours["GBA"], x, width, l0, screened=False)
    builders["sae_lib GBA, dense"] = partial(ours_step, ours["GBA"], x, width, l0, dense=True)
    others = peers.available(x, width, l0)
    if x.device.type == "cpu":
        others |= {f"{name}, bfloat16": partial(in_bfloat16, build) for name, build in others.items()}
    return builders | others


def in_bfloat16(build: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """Build a contestant's step, to be made under bfloat16 autocast."""
    step = build()

    def low_step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            step()

    return low_step


def units() -> str:
    """Return those of the processor's units that decide the speed of products, as Linux names them."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text("utf8").split()) if info.is_file() else set()
    return " ".join(unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in flags)


def ours_step(
    method: sae_lib.methods.Method,
    x: Tensor,
    width: int,
    l0: int,
    *,
    dense: bool = False,
    screened: bool = True,
) -> Callable[[], object]:
    """Return a step as ``train`` makes it, at biases with which ``l0`` latents fire on a row."""
    sae = method.build(x.shape[1], width, normalisation=sae_lib.Normalisation(), seed=0).to(x.device)
    trainer = method.start(sae, x[: min(len(x), 1024)])
    with torch.no_grad():
        if sae.threshold is None or isinstance(method, JumpReLU | Gated):
            # a row's products with random unit rows are N(0, 1/d); a share l0 / M of them exceeds this level
            level = torch.distributions.Normal(0, x.shape[1] ** -0.5).icdf(torch.tensor(1 - l0 / width))
            of_gate = trainer.gate_bias if isinstance(trainer, GatedTrainer) else sae.bias
            of_gate.fill_(-level.item())
    if screened:
        trainer.screen = kernels.screen_for(x, width)
    backend = trainer.screen or kernels.backend(x.device)
    optimiser = method.optimiser(
        [p for p in (*sae.parameters(), *trainer.parameters()) if p.requires_grad], RATE, 0.0
    )
    update = Update(sae, trainer, optimiser)
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        forward = trainer.dense(sae, x) if dense else trainer.sparse(sae, x, backend)
        update(forward.loss)
        # never a number at which the bias rule acts: L0 has to stay
        trainer.after_step(sae, forward, 10 * number + 1)

    return step


if __name__ == "__main__":
    gc.disable()
    main()

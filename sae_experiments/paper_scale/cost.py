"""The cost of ``sae_experiments.paper_scale``: memory and disk by formulas, time by a short calibration."""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import sae_lib
from sae_experiments.paper_scale.setup import BATCH_BLOCKS, BLOCK, SKIP_FIRST, label, methods
from sae_lib.activations.positions import forward
from sae_lib.language_models import DEFAULT_MODEL, LanguageModel, Site
from sae_lib.methods import Method
from sae_lib.records.machine import memory_bytes

GIB = 2**30
# blocks in one forward pass when logits are needed, and batches shuffled together
SCORED_BLOCKS, BUFFER_BATCHES = 4, 8
# a size that a CPU manages in minutes
CPU_WIDTH, CPU_TOKENS = 16_384, 1_000_000
# copies of B × M float32 numbers alive at the worst moment of a step: 5.3 in a dense one of GBA, 6 to 7 in
# one of TopK with its auxiliary loss for dead latents, both measured on a CPU
STEP_COPIES = 8


@dataclass(frozen=True)
class Size:
    """The sizes that decide the cost of a run, apart from the language model.

    Attributes:
        width: Latents.
        batch_size: Rows of a step.
        tokens: Rows of a run.
        untied: Whether any method has a separate decoder.
        weight_bytes: Bytes of one number of the language model.
    """

    width: int
    batch_size: int
    tokens: int
    untied: bool
    weight_bytes: int


def parameters(config: Any) -> tuple[int, int]:
    """Count the parameters of a language model, in all and in one block, from its config alone."""
    with torch.device("meta"):
        model = LanguageModel(AutoModelForCausalLM.from_config(config), None, "meta")
    block = sum(p.numel() for p in model._blocks[0].parameters())
    return sum(p.numel() for p in model.model.parameters()), block


def memory(config: Any, size: Size) -> dict[str, float]:
    """Estimate bytes on the device at the worst moment, by part; not compared with a GPU's count yet."""
    config = config.get_text_config()
    d, rows = config.hidden_size, BATCH_BLOCKS * BLOCK
    matrices = 2 if size.untied else 1
    # bf16 or float32 logits of two runs, and a chunk of 256 rows as float32 probabilities
    scoring = config.vocab_size * (2 * SCORED_BLOCKS * BLOCK * size.weight_bytes + 4 * 256 * 4)
    reading = rows * size.weight_bytes * (6 * d + 3 * config.intermediate_size)
    return {
        "language model": parameters(config)[0] * size.weight_bytes,
        "autoencoder, gradient and Adam": 4 * 4 * matrices * size.width * d,
        "a step": STEP_COPIES * 4 * size.batch_size * size.width,
        "rows in waiting": 3 * 4 * d * BUFFER_BATCHES * size.batch_size,
        "reading text or scoring": max(scoring, reading),
    }


def disk(config: Any, size: Size, runs: int) -> tuple[float, float]:
    """Return bytes kept (encoder and decoder of every run) and bytes of checkpoints during a run."""
    matrix = 4 * size.width * config.get_text_config().hidden_size
    # weights and two moments; the old checkpoint stays until the new one is complete
    return 2 * matrix * runs, 2 * 3 * matrix * (2 if size.untied else 1)


def operations(config: Any, size: Size, layer: int) -> tuple[float, float]:
    """Count operations of one run: reading the text up to a layer, and the encoder's products."""
    _, block = parameters(config)
    d = config.get_text_config().hidden_size
    return 2.0 * size.tokens * block * (layer + 1), 2.0 * size.tokens * d * size.width


def available(device: torch.device) -> float:
    """Return bytes free on the device, or on the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.is_file():
        line = next(line for line in info.read_text("utf8").splitlines() if line.startswith("MemAvailable"))
        return 1024 * int(line.split()[1])
    return memory_bytes()


def reading_seconds(model: LanguageModel, layers: Iterable[int], blocks: Tensor) -> dict[int, float]:
    """Time a token to the residual stream of each layer, in seconds; median of three passes."""
    seconds = {}
    for layer in layers:
        times = []
        # the first pass warms up
        for _ in range(4):
            started = time.perf_counter()
            (rows,) = forward(model, [Site("resid_post", layer)], blocks, SKIP_FIRST)
            rows.sum().item()
            times.append((time.perf_counter() - started) / len(rows))
        seconds[layer] = statistics.median(times[1:])
    return seconds


def step_seconds(method: Method, rows: Tensor, width: int, batch_size: int, device: torch.device) -> float:
    """Time one training step on rows (N, d), in seconds; median of four after two."""
    times: list[float] = []

    def note(_step: int, sae: sae_lib.SparseAutoencoder) -> None:
        sae.bias.sum().item()
        times.append(time.perf_counter())

    enough = rows.repeat(-(-batch_size // len(rows)), 1)
    sae_lib.train(
        enough, method, width=width, steps=6, batch_size=batch_size, device=device, log_every=1,
        progress=False, callback=note,
    )  # fmt: skip
    return statistics.median(b - a for a, b in itertools.pairwise(times[1:]))


def statement(options: argparse.Namespace, config: Any) -> tuple[str, float]:
    """Return the cost in words, and the bytes of memory; formulas alone, the same on every machine."""
    size, runs = _size(options), len(options.corpora) * len(options.layers) * len(options.methods)
    total, parts = parameters(config)[0], memory(config, size)
    kept, passing = disk(config, size, runs)
    work = [operations(config, size, layer) for layer in options.layers]
    each = len(options.corpora) * len(options.methods) / 1e15
    local = options.random_weights or Path(options.model).exists() or options.model == DEFAULT_MODEL
    download = "nothing" if local else f"up to {2 * total / 1e9:.1f} GB of weights, once"
    lines = [
        f"{label(options)}: {total / 1e9:.2f} billion parameters, layers "
        + ", ".join(map(str, options.layers)),
        f"{runs} runs ({' and '.join(options.corpora)}; {', '.join(options.methods)}) of "
        f"{options.tokens:,} tokens, {options.width:,} latents, batches of {options.batch_size:,}",
        f"download: {download}",
        f"memory, estimated: {sum(parts.values()) / GIB:.1f} GiB; of these",
        "  " + ", ".join(f"{name} {part / GIB:.1f}" for name, part in parts.items()),
        f"disk, estimated: {kept / GIB:.1f} GiB, and {passing / GIB:.1f} GiB during a run",
        f"operations, estimated: {each * sum(w[0] for w in work):,.1f} × 10^15 to read the text, at least "
        f"{each * sum(w[1] for w in work):,.1f} × 10^15 to train",
    ]
    return "\n".join(lines), sum(parts.values())


def _size(options: argparse.Namespace) -> Size:
    weight_bytes = 2 if torch.device(options.device).type == "cuda" or options.estimate else 4
    return Size(options.width, options.batch_size, options.tokens, "topk" in options.methods, weight_bytes)


def obstacle(options: argparse.Namespace, config: Any, needed: float) -> str | None:
    """Say why the runs cannot be made here, and what to do; None where they can."""
    device, n_layers = torch.device(options.device), config.get_text_config().num_hidden_layers
    for layer in options.layers:
        if not 0 <= layer < n_layers:
            return f"layer {layer} of {n_layers}: allowed 0..{n_layers - 1}"
    if device.type == "cpu" and (options.width > CPU_WIDTH or options.tokens > CPU_TOKENS):
        return (
            f"there is no GPU here, and {options.width:,} latents on {options.tokens:,} tokens are too much "
            f"for a CPU. Run this where there is one, or ask for less: --width up to {CPU_WIDTH:,} and "
            f"--tokens up to {CPU_TOKENS:,}"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        return f"--device is {options.device}, and PyTorch sees no GPU here; run this where there is one"
    free = available(device)
    if needed > free:
        return (
            f"{needed / GIB:.1f} GiB are needed on {device}, {free / GIB:.1f} GiB are free; lower "
            f"--batch-size ({options.batch_size:,}) or --width ({options.width:,})"
        )
    return None


def calibrate(
    options: argparse.Namespace, model: LanguageModel, text: Tensor, left: list[tuple[str, int, str]]
) -> float:
    """Time a few passes and steps, print an estimate for the runs that are left and return their seconds."""
    device = torch.device(options.device)
    # a CPU is busy enough with a few blocks
    text = text[: BATCH_BLOCKS if device.type == "cuda" else 4]
    reading = reading_seconds(model, options.layers, text)
    deepest = model.site(f"resid_post.{max(options.layers)}")
    rows = forward(model, [deepest], text, SKIP_FIRST)[0].float().cpu()
    rows = sae_lib.Normalisation.fit("scale", rows).apply(rows)
    step = {
        name: step_seconds(methods(options.k)[name], rows, options.width, options.batch_size, device)
        for name in options.methods
    }
    total = 0.0
    for layer, name in itertools.product(options.layers, options.methods):
        token = reading[layer] + step[name] / options.batch_size
        runs = sum((layer, name) == run[1:] for run in left)
        total += runs * token * options.tokens
        print(
            f"  layer {layer}, {name}: {1 / token:,.0f} tokens/s (reading {1 / reading[layer]:,.0f}), "
            f"a step {1000 * step[name]:.0f} ms; {_hours(token * options.tokens)} a run, {runs} left"
        )
    price = (
        f", about {options.price * total / 3600:.2f} at {options.price:g} an hour" if options.price else ""
    )
    print(f"time, estimated from this calibration, without the measurements: {_hours(total)}{price}")
    return total


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"

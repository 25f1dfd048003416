"""Harvesting and streaming against the bare forward pass to the same layer.

    python -m benchmarks.harvest                              # SmolLM2-135M, layer 10, this machine
    python -m benchmarks.harvest --layer 14 --model-dtype bfloat16
    python -m benchmarks.harvest --random --layer 13 --device cuda --tokens 400000

The bare pass runs the model's own layers up to the hooked one on packed blocks of tokens that are ready,
and throws the result away. Harvesting tokenises, runs the model, and writes a store of float16 rows;
streaming tokenises, runs the model, shuffles and hands out batches. All three see the same number of
tokens, in turn, round after round.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import report
from benchmarks.step import seconds
from sae_lib import activations, corpora, language_models
from sae_lib.activations import ActivationStream
from sae_lib.activations.positions import enough

# rows a stream makes at a time; tokens are rounded to full buffers, so that all three make as many
BUFFER = 16_384
# positions of a block that give no row
SKIP_FIRST = 4


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the benchmark and return its rows."""
    options = parser().parse_args(arguments)
    options.tokens = max(1, round(options.tokens / BUFFER)) * BUFFER
    started = time.perf_counter()
    device = torch.device(options.device)
    model = load(options, device)
    corpus = corpora.standard_library()
    site = f"resid_post.{options.layer}"
    endless = itertools.cycle(corpora.token_blocks(corpus, model.tokenizer))
    blocks = torch.stack(list(enough(model, endless, SKIP_FIRST, options.tokens)))
    stream = ActivationStream(
        model, corpus, site, batch_blocks=options.blocks, buffer_rows=BUFFER, skip_first=SKIP_FIRST
    )

    def bare() -> None:
        for batch in blocks.split(options.blocks):
            model.activations(batch, site)

    def harvest() -> None:
        with tempfile.TemporaryDirectory() as folder:
            activations.harvest(
                model, corpus, site, folder, n_tokens=options.tokens, batch_blocks=options.blocks,
                skip_first=SKIP_FIRST,
            )  # fmt: skip

    def streamed() -> None:
        batches = stream.batches(1024, seed=0)
        for _ in range(options.tokens // 1024):
            next(batches)

    calls = {"bare forward": bare, "harvest": harvest, "stream": streamed}
    times = in_turn(calls, device, options.rounds)
    rows = [
        {"name": name, "model": model.name, "dtype": str(model.dtype).removeprefix("torch."),
         "layer": options.layer, "tokens": options.tokens,
         "tokens_per_s": options.tokens / statistics.median(durations),
         "of_bare": statistics.median(times["bare forward"]) / statistics.median(durations)}
        for name, durations in times.items()
    ]  # fmt: skip
    report.finish(
        rows, options, started,
        lambda row: f"{row['name']:14} {row['tokens_per_s']:10.0f} tokens/s {row['of_bare']:6.1%} of bare",
    )  # fmt: skip
    return rows


def in_turn(
    calls: dict[str, Callable[[], None]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Time each call in seconds, one after the other in every round; the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            duration = seconds(call, device)
            if number:
                times[name].append(duration)
        print(f"\rround {number} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return times


def load(options: argparse.Namespace, device: torch.device) -> language_models.LanguageModel:
    """Load the default model, or one of another shape with random weights and the default's tokenizer."""
    chosen = options.model_dtype or ("bfloat16" if device.type == "cuda" else "float32")
    dtype = language_models.model_dtype(chosen, device)
    model = language_models.load(device=device, dtype=dtype)
    if not options.random:
        return model
    from transformers import AutoModelForCausalLM, Qwen2Config

    # Qwen/Qwen2.5-1.5B's config.json
    config = Qwen2Config(
        vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
        num_attention_heads=12, num_key_value_heads=2, max_position_embeddings=131_072,
        rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True,
    )  # fmt: skip
    with device:
        random = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return language_models.LanguageModel(random.eval(), model.tokenizer, "Qwen2.5-1.5B, random weights")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    sizes = {"layer": 10, "tokens": BUFFER, "blocks": 8, "rounds": 3}
    options = report.parser("harvest", __doc__.split("\n")[0], **sizes)
    options.add_argument("--random", action="store_true", help="a Qwen2.5-1.5B with random weights")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    types = ("auto", "float32", "bfloat16")
    options.add_argument("--model-dtype", choices=types, help="default bfloat16 on cuda, else float32")
    return options


if __name__ == "__main__":
    main()

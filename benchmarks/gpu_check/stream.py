"""Part 4: the paper's run with random weights, some steps of it: speed, and where the time goes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

import sae_lib
from benchmarks.gpu_check.context import Context
from benchmarks.gpu_check.timing import precision
from sae_experiments.paper_scale import cost, setup
from sae_lib import corpora
from sae_lib.activations import ActivationStream
from sae_lib.language_models import LanguageModel

LAYERS, LAYER = (2, 13, 26), 13
METHODS = ("gba", "topk")
# a run of so few steps is measured first, to know how many fit
TRIAL_BUFFERS, RECORDS = 3, 10


@dataclass(frozen=True)
class Size:
    """Latents, rows of a batch, k of TopK, and layers of the model to time."""

    width: int
    batch: int
    k: int
    layers: tuple[int, ...]
    layer: int


def run(context: Context) -> None:
    """Build the model, time reading it, then train each method for an equal share of the time."""
    size = Size(64, 32, 4, (0, 1), 1) if context.toy else Size(65_536, 8192, 50, LAYERS, LAYER)
    model = build(context)
    text, _ = corpora.standard_library().split(0.1)
    with precision(context, "tf32" if context.cuda else "float32"):
        tokens = setup.blocks(text, model, setup.BATCH_BLOCKS * setup.BLOCK if context.cuda else setup.BLOCK)
        reading = cost.reading_seconds(model, size.layers, tokens)
        for layer, seconds in reading.items():
            context.row("reading", layer=layer, tokens_per_s=1 / seconds, model=model.name)
        stream = TimedStream(
            model, text, f"resid_post.{size.layer}", block_size=setup.BLOCK,
            batch_blocks=setup.BATCH_BLOCKS if context.cuda else 4, skip_first=setup.SKIP_FIRST,
            buffer_rows=cost.BUFFER_BATCHES * size.batch,
        )  # fmt: skip
        for place, name in enumerate(METHODS):
            share = context.left() / (len(METHODS) - place)

            def one(name: str = name, share: float = share) -> None:
                train(context, stream, name, size, share, reading)

            context.attempt(name, one)


def train(
    context: Context, stream: TimedStream, name: str, size: Size, share: float, reading: dict[int, float]
) -> None:
    """Train for about ``share`` seconds and record speed, loss and what the paper's run would take."""
    began = time.monotonic()
    steps = TRIAL_BUFFERS * cost.BUFFER_BATCHES
    log, clock = _steps(context, stream, name, size, steps, cost.BUFFER_BATCHES)
    if not context.toy:
        # the slower, first buffer of the trial is not among these
        rate = cost.BUFFER_BATCHES / (clock[-1].total - clock[-2].total)
        rest = share - 1.5 * (time.monotonic() - began)
        every = max(1, int(rate * rest) // (RECORDS * cost.BUFFER_BATCHES)) * cost.BUFFER_BATCHES
        steps = RECORDS * every
        log, clock = _steps(context, stream, name, size, steps, every)
    first, last = clock[0], clock[-1]
    seconds, read = last.total - first.total, last.reading - first.reading
    rows = (last.step - first.step) * size.batch
    of_step = (seconds - read) / rows
    context.row(
        name, layer=size.layer, width=size.width, batch=size.batch, steps=last.step, seconds=seconds,
        tokens_per_s=rows / seconds, share_of_model=read / seconds, share_of_autoencoder=1 - read / seconds,
        step_ms=1e3 * of_step * size.batch, loss=log[-1]["loss"], nmse=log[-1]["nmse"], l0=log[-1]["l0"],
        finite=all(math.isfinite(record["loss"]) for record in log),
        l0_by_step=[[record["step"], record["l0"]] for record in log],
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if context.cuda else None,
    )  # fmt: skip
    total = int(str(setup.PAPER["tokens"]))
    for layer, each in reading.items():
        context.row(
            f"{name}, projected", layer=layer, tokens=total, seconds=total * (each + of_step),
            note="reading and step of this machine; bytes as tokens, and no measurements at the end",
        )  # fmt: skip


@dataclass(frozen=True)
class Moment:
    """Seconds since the start, and those of them spent in the language model, at a step."""

    step: int
    total: float
    reading: float


def _steps(
    context: Context, stream: TimedStream, name: str, size: Size, steps: int, every: int
) -> tuple[list[dict[str, Any]], list[Moment]]:
    """Train for some steps; return the log and the clock at every logged step."""
    clock: list[Moment] = []

    def note(number: int, sae: sae_lib.SparseAutoencoder) -> None:
        sae.bias.sum().item()
        clock.append(Moment(number, time.perf_counter(), stream.seconds))

    _, log = sae_lib.train(
        stream, setup.methods(size.k)[name], width=size.width, steps=steps, batch_size=size.batch,
        seed=context.seed, device=context.device, log_every=every, progress=False, callback=note,
    )  # fmt: skip
    return log, clock


class TimedStream(ActivationStream):
    """A stream that knows how long the language model took.

    Attributes:
        seconds: Spent in the language model so far, waiting for the device before and after.
    """

    seconds = 0.0

    def _rows(self, blocks: list[Tensor]) -> Tensor:
        wait = torch.cuda.synchronize if self.model.device.type == "cuda" else lambda: None
        wait()
        started = time.perf_counter()
        rows = super()._rows(blocks)
        wait()
        self.seconds += time.perf_counter() - started
        return rows


class Bytes:
    """A tokenizer that needs no file: the bytes of a text, and one separator."""

    bos_token_id = None
    eos_token_id = 256
    all_special_tokens: tuple[str, ...] = ()

    class Encoding:
        """Tokens of texts."""

        def __init__(self, input_ids: list[Any]) -> None:
            self.input_ids = input_ids

    def __call__(self, text: str | list[str], **_: Any) -> Encoding:
        """Encode one text or several."""
        if isinstance(text, str):
            return self.Encoding(list(text.encode("utf8", "replace")))
        return self.Encoding([list(one.encode("utf8", "replace")) for one in text])

    def get_vocab(self) -> dict[str, int]:
        """Return all tokens with their numbers."""
        return {f"<{number}>": number for number in range(257)}


def build(context: Context) -> LanguageModel:
    """Return the paper's language model with random weights, made on the device, bfloat16 on a GPU."""
    if context.toy:
        config = Qwen2Config(
            vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=True,
        )  # fmt: skip
    else:
        config = setup.config_of(str(setup.PAPER["model"]))
    torch.manual_seed(context.seed)
    # on a CPU, drawing this many numbers takes longer than the measurement
    with context.device:
        dtype = torch.bfloat16 if context.cuda else torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    name = "toy Qwen2" if context.toy else setup.PAPER["model"]
    return LanguageModel(model.to(context.device), Bytes(), f"{name}, random weights, bytes as tokens")

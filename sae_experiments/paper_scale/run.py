r"""The paper's language-model run: Qwen2.5-1.5B, layers 2, 13 and 26, 65,536 latents, 100 million tokens.

    python -m sae_experiments.paper_scale --estimate          # what it would cost; starts nothing
    python -m sae_experiments.paper_scale                     # one GPU with some 32 GiB
    python -m sae_experiments.paper_scale --random-weights    # the same size where the hub is out of reach
    python -m sae_experiments.paper_scale --model smollm2-135m --layers 14 --width 2048 --tokens 60000 \
        --batch-size 256 --corpora code --methods gba    # a small one, minutes on a CPU

It states its cost before it starts: memory, disk and download by formulas, time from a calibration of a few
forward passes and training steps. Stopped or killed, the same command resumes. Rows come straight from the
model, one pass over the text for each run; a text that is too short is read again, its documents in another
order.

Choices. GBA runs twice: with the targets of the paper's ICLR version, 0.5 → 0.001 (``gba-iclr``), and with
this library's, 0.1 → 0.001 (``gba``). TopK has K = 50, the smallest of the published values. Learning rates
are the methods' defaults (see ``learning_rate`` there), b_pre starts at the mean row, everything else is as
in ``sae_lib.train``; nothing was tuned at this size. On a GPU the model is bfloat16 and products are TF32.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch

import sae_lib
from sae_experiments.paper_scale import cost
from sae_experiments.paper_scale.cost import BUFFER_BATCHES, GIB, SCORED_BLOCKS
from sae_experiments.paper_scale.setup import (
    BATCH_BLOCKS,
    BLOCK,
    PAPER,
    RECORD,
    SKIP_FIRST,
    blocks,
    config_of,
    corpus,
    load,
    methods,
    parser,
    passes,
)
from sae_lib import language_models, metrics, records
from sae_lib.activations import ActivationStream
from sae_lib.activations.positions import forward
from sae_lib.files.atomic import read_json, replacing
from sae_lib.language_models import LanguageModel
from sae_lib.metrics.faithfulness import faithfulness
from sae_lib.records.machine import hardware, peak_bytes
from sae_lib.training import checkpoint

HELD_OUT = 0.1
CHECKPOINT_EVERY = 500


class Clock:
    """Seconds spent on a run in all sittings, work lost in a crash included; saved beside it."""

    def __init__(self, path: Path) -> None:
        self.path, self.started = path, time.perf_counter()
        self.before = float(read_json(path)) if path.exists() else 0.0

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.before + time.perf_counter() - self.started

    def note(self, *_: Any) -> None:
        """Save the seconds so far."""
        with replacing(self.path) as path:
            path.write_text(json.dumps(self.seconds), "utf8")


def run(
    options: argparse.Namespace, model: LanguageModel, name: str, layer: int, method: str, folder: Path
) -> dict[str, Any]:
    """Train one autoencoder, or finish it, measure it on held-out text and return the row of the record."""
    device, site = torch.device(options.device), f"resid_post.{layer}"
    training, held_out = corpus(name, options.documents).split(HELD_OUT)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    clock = Clock(folder / "seconds.json")
    stream = ActivationStream(
        model, training, site, block_size=BLOCK, batch_blocks=BATCH_BLOCKS, skip_first=SKIP_FIRST,
        spread=False, max_norm=None, buffer_rows=BUFFER_BATCHES * options.batch_size,
    )  # fmt: skip
    sae, log = sae_lib.train(
        stream, methods(options.k)[method], width=options.width, tokens=options.tokens,
        batch_size=options.batch_size, seed=options.seed, device=device, folder=folder,
        resume=(folder / checkpoint.NAME).exists(), checkpoint_every=CHECKPOINT_EVERY, callback=clock.note,
    )  # fmt: skip
    clock.note()
    seconds = clock.seconds
    unseen = blocks(held_out, model, max(options.held_out_tokens, options.scored_tokens))
    few = unseen[: -(-options.held_out_tokens // BLOCK)].split(BATCH_BLOCKS)
    rows = torch.cat([forward(model, [model.site(site)], b, SKIP_FIRST)[0].float().cpu() for b in few])
    fit = metrics.reconstruction(sae, rows, batch_size=min(options.batch_size, 4096))
    scored = unseen[: -(-options.scored_tokens // BLOCK)]
    lost = faithfulness(model, {"it": sae}, site, scored, skip_first=SKIP_FIRST, batch_blocks=SCORED_BLOCKS)[
        "it"
    ]
    tokens = log[-1]["step"] * options.batch_size
    return {
        "model": model.name, "random_weights": options.random_weights, "corpus": name, "layer": layer,
        "method": method, "settings": methods(options.k)[method].describe(),
        "lr": sae.metadata["training"]["lr"],
        "width": options.width, "tokens": tokens, "passes": passes(training, model, unseen, tokens),
        "batch_size": options.batch_size, "seed": options.seed,
        "nmse": fit.nmse, "l0": fit.l0, "active_fraction": fit.l0 / options.width,
        "dead_share": fit.dead_share, "n_held_out": fit.n_rows,
        "ce_clean": lost.ce_clean, "ce_spliced": lost.ce_spliced, "ce_mean": lost.ce_mean,
        "ce_recovered": lost.ce_recovered, "kl_recovered": lost.kl_recovered, "n_scored": lost.n_tokens,
        "seconds": seconds, "tokens_per_second": tokens / seconds,
        "peak_memory_gib": _peak(device) / GIB,
    }  # fmt: skip


def _peak(device: torch.device) -> float:
    """Return the most bytes held: on a GPU by PyTorch during the run, else by the process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes()


def _home(options: argparse.Namespace) -> Path:
    """Return the folder of these settings, the same for all layers, texts and methods."""
    asked = {
        name: getattr(options, name)
        for name in (
            "model", "random_weights", "width", "tokens", "batch_size", "seed", "k", "documents",
            "held_out_tokens", "scored_tokens", "device",
        )
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    kind = "-random" if options.random_weights else ""
    home = options.folder / f"{Path(options.model).name}{kind}-{options.width}-{digest}"
    with replacing(home / "settings.json") as path:
        path.write_text(json.dumps(asked, indent=1), "utf8")
    return home


def main(arguments: list[str] | None = None) -> Path | None:
    """State the cost, train and measure what is not done yet; return the path of the record."""
    options = parser(__doc__).parse_args(arguments)
    config, model = config_of(options.model), None
    if config is None:
        model = language_models.load(options.model)
        config = model.model.config
    text, needed = cost.statement(options, config)
    print(text)
    trouble = cost.obstacle(options, config, needed)
    if options.estimate:
        print(f"here: {trouble}" if trouble else f"here: {hardware()['gpu']}, enough memory")
        return None
    if trouble:
        raise SystemExit(trouble)
    torch.backends.cuda.matmul.allow_tf32 = True
    model = load(options, config)
    home = _home(options)
    cells = list(itertools.product(options.corpora, options.layers, options.methods))
    folders = {c: home / f"{c[0].replace('/', '_').replace(':', '_')}-layer-{c[1]}-{c[2]}" for c in cells}
    left = [cell for cell in cells if not (folders[cell] / "row.json").exists()]
    for name in dict.fromkeys(cell[0] for cell in left):
        training, _ = corpus(name, options.documents).split(HELD_OUT)
        sample = blocks(training, model, BATCH_BLOCKS * BLOCK)
        print(f"{name}: a run reads it about {passes(training, model, sample, options.tokens):,.1f} times")
    if left:
        cost.calibrate(options, model, sample, left)
    rows = []
    for cell, folder in folders.items():
        if cell in left:
            row = run(options, model, *cell, folder)
            with replacing(folder / "row.json") as path:
                path.write_text(json.dumps(row), "utf8")
        # not needed once measured, and large
        (folder / checkpoint.NAME).unlink(missing_ok=True)
        rows.append(row := read_json(folder / "row.json"))
        print(
            f"{row['model']}, {row['corpus']}, layer {row['layer']}, {row['method']}: "
            f"NMSE {row['nmse']:.4f}, L0 {row['l0']:.1f}, CE recovered {row['ce_recovered']:.4f}, "
            f"{row['tokens_per_second']:,.0f} tokens/s"
        )
    record = options.record or (RECORD if at_paper_size(options) else home / "record.json")
    records.write(record, rows, seconds=sum(row["seconds"] for row in rows))
    print(f"record: {record}")
    return record


def at_paper_size(options: argparse.Namespace) -> bool:
    """Tell whether these are the paper's model, width and tokens; layers, texts and methods may be fewer."""
    return all(getattr(options, name) == value for name, value in PAPER.items())

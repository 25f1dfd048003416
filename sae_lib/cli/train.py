"""``sae train``: an autoencoder, from a store, a stream or a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sae_lib import distributed, training
from sae_lib.cli.common import (
    DEFAULT_SITE,
    PRESETS,
    CorpusName,
    DataSeed,
    Device,
    Model,
    ModelDtype,
    Seed,
    ShowConfig,
    SiteName,
    Timeout,
    say,
    show,
    source_of,
    stopping_cleanly,
)
from sae_lib.cli.methods import MethodName, method_of, with_method_options

Freeze = Literal["decoder", "encoder", "soft-decoder"]
Parallel = Literal["auto", "data"]


@with_method_options
def train(
    out: Annotated[Path, typer.Argument(help="Folder for the autoencoder, its log and checkpoints.")],
    data: Annotated[
        str,
        typer.Option(help=f"A preset ({PRESETS}), a store's folder, or stream."),
    ],
    method: Annotated[MethodName, typer.Option(help="How sparsity is enforced.")] = "gba",
    width: Annotated[int, typer.Option(min=1, help="Latents.")] = 512,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.  [default: 4000]")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Rows to train on, instead of --steps.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows a step, those of all processes.  [default: 512, for modified_ba by its target]"
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.  [default: by method]")] = None,
    schedule: Annotated[str, typer.Option(help="linear, cosine or constant.")] = "linear",
    warmup: Annotated[int, typer.Option(min=0, help="Steps until the peak rate.")] = 0,
    freeze: Annotated[Freeze | None, typer.Option(help="Baseline: leave this part to chance.")] = None,
    model: Model = "smollm2-135m",
    model_dtype: ModelDtype = "float32",
    corpus: CorpusName = "standard-library",
    site: SiteName = DEFAULT_SITE,
    device: Device = "cpu",
    seed: Seed = 0,
    data_seed: DataSeed = 0,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 1000,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT, bit for bit.")] = False,
    parallel: Annotated[Parallel, typer.Option(help="Under torchrun: share rows; auto is data.")] = "auto",
    timeout: Timeout = distributed.TIMEOUT,
    show_config: ShowConfig = False,
    **options: Any,
) -> None:
    """Train an autoencoder. --model, --model-dtype, --corpus and --site matter for --data stream alone.

    For example:

      sae train runs/toy --data imbalanced --width 512

      sae train runs/code-gba --data runs/code --width 2048 --htf 0.1 --ltf 0.001 --centre

      sae train runs/code-top32 --data runs/code --width 2048 --method batch_topk --k 32

      sae train runs/random --data imbalanced --method topk --k 3 --freeze decoder

      torchrun --nproc-per-node 8 -m sae_lib train runs/code-gba --data runs/code --device cuda
    """
    chosen = method_of(method, options, freeze)
    settings: dict[str, Any] = {
        "width": width, "steps": steps, "tokens": tokens, "batch_size": batch_size, "lr": lr,
        "schedule": schedule, "warmup": warmup, "seed": seed, "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    if show_config:
        settings["batch_size"] = chosen.batch_size(batch_size, None)
        show({"out": str(out), "data": data, "method": chosen.describe(), **settings})
        return
    distributed.join(timeout)
    source = source_of(
        data, data_seed, model=model, model_dtype=model_dtype, corpus=corpus, site=site, device=device
    )
    with stopping_cleanly():
        _, log = training.train(
            source, chosen, device=device, folder=out, resume=resume, parallel=parallel, **settings
        )
    last = log[-1]
    say(f"step {last['step']}: nmse {last['nmse']:.4f}, l0 {last['l0']:.1f}; saved in {out}")

"""The training loop: optimiser, schedule, log, checkpoints, exact resume."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sae_lib import distributed
from sae_lib.batches import BatchSource, Rows
from sae_lib.checks import at_least, bad_row, between, one_of
from sae_lib.files.atomic import only_writer
from sae_lib.methods.base import Method
from sae_lib.methods.trainer import Step
from sae_lib.sae import SparseAutoencoder
from sae_lib.training import checkpoint, sharding
from sae_lib.training.interruption import interruptible
from sae_lib.training.log import TrainingLog, record
from sae_lib.training.updating import Update

SCHEDULES = ("linear", "cosine", "constant")
# rows drawn once, before training, for centring and starting biases
SAMPLE_ROWS = 16_384
KEPT = "The last checkpoint, if any, is from before this step and intact"


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite."""


def learning_rate(step: int, steps: int, *, peak: float, warmup: int, schedule: str) -> float:
    """Return the rate of step ``step``, counted from 0: linear warm-up to ``peak``, then the schedule to 0.

    >>> rate = sae_lib.training.learning_rate
    >>> [round(rate(step, 10, peak=1.0, warmup=1, schedule="linear"), 2) for step in (0, 1, 5, 9)]
    [0.5, 1.0, 0.56, 0.11]
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(steps - warmup, 1)
    if schedule == "linear":
        return peak * (1 - progress)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak


def train(
    data: BatchSource | Tensor,
    method: Method,
    *,
    width: int,
    steps: int | None = None,
    tokens: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    schedule: str = "linear",
    warmup: int = 0,
    weight_decay: float = 0.0,
    seed: int = 0,
    device: str | torch.device = "cpu",
    parallel: str = "auto",
    folder: str | PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    resume: bool = False,
    log_every: int = 50,
    progress: bool | None = None,
    callback: Callable[[int, SparseAutoencoder], None] | None = None,
) -> tuple[SparseAutoencoder, TrainingLog]:
    """Train a sparse autoencoder.

    >>> data = sae_lib.synthetic.preset("imbalanced", n_rows=10_000)
    >>> method = sae_lib.GroupBiasAdaptation(groups=3, htf=0.2, ltf=0.02)
    >>> sae, log = sae_lib.train(data, method, width=128, steps=100)
    >>> sae.width, log.column("step")
    (128, [50, 100])
    >>> log[-1]["nmse"] < 0.3
    True

    Args:
        data: A :class:`BatchSource` (synthetic data, activation store or stream) or a tensor of rows (N, d).
        method: How sparsity is enforced, with its settings.
        width: Latents M.
        steps: Length of the run in optimiser steps; 4,000 if neither this nor ``tokens`` is given.
        tokens: Length of the run in rows seen (one a token, for a language model), instead of ``steps``.
        batch_size: Rows of a batch, of all processes together; by default as ``method.batch_size`` says,
            which is 512 except for modified bias adaptation.
        lr: Peak learning rate; default ``method.learning_rate(d)``.
        schedule: ``"linear"`` or ``"cosine"`` decay to 0, or ``"constant"``, after the warm-up.
        warmup: Steps of linear warm-up.
        weight_decay: Of AdamW, for encoder and decoder rows, not for biases, scales and thresholds; 0 is
            Adam. It shrinks rows that are free to shrink; rows of unit norm only turn faster.
        seed: Of the initial weights and the order of the data.
        device: Where to train; for ``"cuda"`` each of several processes takes a GPU of its own.
        parallel: How processes started by ``torchrun`` train: ``"data"`` together, sharing out the rows of
            every batch; ``"off"`` each by itself; ``"auto"`` as ``"data"`` where there are several.
        folder: Where to keep ``metrics.jsonl``, ``checkpoint.safetensors`` and, at the end, the autoencoder
            itself. None keeps nothing.
        checkpoint_every: Steps between two checkpoints. There is also one at the end and one on Ctrl-C; a
            second Ctrl-C ends training at once, without a checkpoint of that step.
        resume: Continue from the checkpoint in ``folder``; the result has the same bits as an unbroken run on
            the same machine.
        log_every: Steps between two records of the log; the loss is checked for NaN at the same steps.
        progress: Show a bar; default only where standard error is a terminal.
        callback: Called after every logged step with its number and the autoencoder, in every process.

    Rows must be finite: a tensor, a store or a stream refuses others, and where another source serves one,
    the error names the step and the row. Training continues after a spike of the loss as long as it is
    finite, and unit rows stay unit. Constant, zero and repeated rows are allowed; the NMSE of a batch of
    zeros is NaN. Latents that never fire keep finite weights; reviving them is up to the method. A single
    row, d = 1 and width = 1 are allowed.

    The process may be killed at any moment, and the disk may fill up: each file is then the old one or the
    new one, complete. One process at a time may train in a folder.

    Returns:
        The autoencoder and its log, in every process. Files are written by the first process and read by all;
        any number of processes may resume from them.

    Raises:
        ValueError: Impossible settings or rows.
        CheckpointError: Nothing to resume from, or not with these settings.
        NonFiniteLossError: Loss or weights became NaN or infinite.
        RuntimeError: Another process trains in the folder.
        LostProcessError: Another process of this job has died.
        OSError: A file cannot be written.
        KeyboardInterrupt: Ctrl-C, after saving.
    """
    source = Rows(data) if isinstance(data, Tensor) else data
    if not isinstance(source, BatchSource):
        raise ValueError(
            f"data is a {type(data).__name__}; expected a tensor (N, d), synthetic data, an activation store "
            "or a stream"
        )
    batch_size = method.batch_size(batch_size, source.describe().get("n_rows"))
    steps = _number_of_steps(steps, tokens, batch_size)
    lr = method.learning_rate(source.d_in) if lr is None else lr
    _check(
        steps=steps, batch_size=batch_size, lr=lr, schedule=schedule, warmup=warmup, log_every=log_every,
        weight_decay=weight_decay, checkpoint_every=checkpoint_every, resume=resume, folder=folder,
    )  # fmt: skip
    world = sharding.sharing(parallel, method, batch_size)
    device = distributed.local(device)
    folder = None if folder is None else Path(folder)
    world.by_first(lambda: _check_folder(folder, resume))
    settings = {
        "data": source.describe(), "normalisation": source.normalisation.to_dict(),
        "method": method.describe(), "width": width, "steps": steps, "batch_size": batch_size, "lr": lr,
        "schedule": schedule, "warmup": warmup, "weight_decay": weight_decay, "seed": seed,
    }  # fmt: skip

    sae = method.build(source.d_in, width, normalisation=source.normalisation, seed=seed).to(device)
    sae.metadata = {"training": settings}
    trainer = method.start(sae, _sample(source, batch_size, seed).to(device))
    sharding.begin(world, sae, trainer)
    parameters = [p for p in (*sae.parameters(), *trainer.parameters()) if p.requires_grad]
    optimiser = method.optimiser(parameters, lr, weight_decay)
    update = Update(sae, trainer, optimiser, world)
    log, first = TrainingLog(), 0
    state: dict[str, Any] = {"sae": sae, "trainer": trainer, "optimiser": optimiser}

    def save(step: int) -> None:
        bad = [name for name, value in sae.named_parameters() if not torch.isfinite(value).all()]
        if world.any(bool(bad)):
            name = bad[0] if bad else "a parameter of another process"
            raise NonFiniteLossError(f"{name} holds NaN or infinity after step {step}. {_advice(lr)}. {KEPT}")
        if folder and world.first:
            log.write(folder)
            checkpoint.write(folder, step=step, settings=settings, **state)

    def check(number: int, loss: float) -> None:
        if not math.isfinite(loss):
            # rows are looked at only now; the loss before this one was checked log_every steps ago or later
            since = max(first, number - log_every)
            suspects = source.batches(batch_size, seed=seed, start=since)
            row = _bad_row(itertools.islice(suspects, number - since), since)
            raise NonFiniteLossError(f"the loss is {loss} at step {number}. {row or _advice(lr)}. {KEPT}")

    shown = (sys.stderr.isatty() if progress is None else progress) and world.first
    with ExitStack() as held:
        world.by_first(lambda: _take(folder, resume, held))
        if resume and folder:
            first, tensors = checkpoint.read_alike(folder, settings, world)
            checkpoint.restore(tensors, **state)
            # the run has copies of its own
            del tensors
            log = TrainingLog.read(folder, first)
        batches = sharding.batches(world, source, batch_size, seed=seed, start=first)
        interrupted = held.enter_context(interruptible())
        bar = held.enter_context(_bar(shown, steps, first, method.name))
        for number in range(first + 1, steps + 1):
            rate = learning_rate(number - 1, steps, peak=lr, warmup=warmup, schedule=schedule)
            for group in optimiser.param_groups:
                group["lr"] = rate
            x = next(batches).to(device)
            step: Step = trainer(sae, x)._replace(world=world)
            update(step.loss)
            # an autocast around this call would keep using its copies of the old weights
            torch.clear_autocast_cache()
            trainer.after_step(sae, step, number)
            if number % log_every == 0 or number == steps:
                log.append(record(number, step, x, rate) | trainer.metrics(sae))
                check(number, log[-1]["loss"])
                bar.set_postfix(nmse=f"{log[-1]['nmse']:.4f}", l0=f"{log[-1]['l0']:.1f}", refresh=False)
                if callback:
                    callback(number, sae)
            bar.update()
            if world.stopped(interrupted.is_set(), number):
                check(number, world.mean(step.loss.detach()).item())
                save(number)
                where = f"; continue with resume=True, folder={str(folder)!r}" if folder else ""
                raise KeyboardInterrupt(f"training stopped after step {number} of {steps}{where}")
            if number % checkpoint_every == 0 and number < steps:
                check(number, world.mean(step.loss.detach()).item())
                save(number)
        save(steps)
        sae.eval().requires_grad_(False)
        if folder and world.first:
            sae.save(folder)
        world.wait()
    return sae, log


def _number_of_steps(steps: int | None, tokens: int | None, batch_size: int) -> int:
    if steps is not None and tokens is not None:
        raise ValueError(
            f"steps={steps} and tokens={tokens} both set the length of the run; give one of them"
        )
    at_least(1, batch_size=batch_size)
    if tokens is not None:
        return tokens // batch_size
    return 4000 if steps is None else steps


def _check(**s: Any) -> None:
    at_least(
        1, " (tokens: at least one batch)",
        steps=s["steps"], log_every=s["log_every"], checkpoint_every=s["checkpoint_every"],
    )  # fmt: skip
    if not (math.isfinite(s["lr"]) and s["lr"] > 0):
        raise ValueError(f"lr is {s['lr']}; expected a finite number above 0")
    one_of("schedule", s["schedule"], SCHEDULES)
    between(0, s["steps"], "the number of steps", warmup=s["warmup"])
    at_least(0, weight_decay=s["weight_decay"])
    if s["resume"] and s["folder"] is None:
        raise ValueError("resume=True needs the folder of the run to resume")


def _sample(source: BatchSource, batch_size: int, seed: int) -> Tensor:
    batches = source.batches(batch_size, seed=seed)
    sample = [next(batches) for _ in range(math.ceil(SAMPLE_ROWS / batch_size))]
    rows = torch.cat(sample)
    if not torch.isfinite(rows).all():
        raise ValueError(_bad_row(sample, 0))
    return rows


def _advice(lr: float) -> str:
    return (
        f"Try a lower learning rate than {lr:.3g} or a longer warm-up, and check that the rows are scaled "
        "(a norm around 1)"
    )


def _bad_row(batches: Iterable[Tensor], first: int) -> str | None:
    """Say which row holds NaN or infinity, if one does; the first batch is that of step ``first`` + 1."""
    for number, x in enumerate(batches, first + 1):
        if (row := bad_row(x)) is not None:
            return f"Row {row} of the batch of step {number} holds NaN or infinity; remove such rows"
    return None


def _check_folder(folder: Path | None, resume: bool) -> None:
    if folder and not resume and (folder / checkpoint.NAME).exists():
        raise ValueError(f"{folder} already holds a training run; pass resume=True or choose another folder")
    if folder and resume:
        checkpoint.find(folder)


def _take(folder: Path | None, resume: bool, locked: ExitStack) -> None:
    """Lock the folder, and make sure that no other run has begun there meanwhile."""
    if folder:
        locked.enter_context(only_writer(folder, "training in"))
        _check_folder(folder, resume)


def _bar(shown: bool, steps: int, first: int, name: str) -> tqdm[Any]:
    return tqdm(total=steps, initial=first, desc=name, unit="step", disable=not shown, leave=False)

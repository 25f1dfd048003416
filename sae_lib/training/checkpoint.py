"""The complete state of a training run in one safetensors file.

Weights, optimiser moments and counters are tensors; the step, the settings and a SHA-256 of everything
are in the header. Nothing is pickled. Batches are a function of (seed, step) and training draws no other
random number, so the step is also the random state and the position in the data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lib.distributed import World
from sae_lib.files.atomic import parsed, replacing, short
from sae_lib.files.tensors import read_metadata, read_tensors, tensors_sha256, write_tensors
from sae_lib.methods.trainer import Trainer
from sae_lib.sae import SparseAutoencoder

NAME = "checkpoint.safetensors"
FORMAT = "sae_lib.checkpoint.2"
REMEDY = "start without resume in a new folder"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why."""


def write(
    folder: Path,
    *,
    step: int,
    settings: dict[str, Any],
    sae: SparseAutoencoder,
    trainer: Trainer,
    optimiser: torch.optim.Optimizer,
) -> None:
    """Replace ``folder/checkpoint.safetensors`` with the state after ``step`` optimiser steps."""
    tensors = {f"sae.{k}": v for k, v in sae.state_dict().items()}
    tensors |= {f"run.{k}": v for k, v in trainer.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
    tensors = {k: v.detach().cpu() for k, v in tensors.items()}
    content = json.dumps({"step": step, "settings": settings}, sort_keys=True)
    header = {FORMAT: content, "sha256": tensors_sha256(tensors, content)}
    with replacing(folder / NAME) as path:
        write_tensors(path, tensors, header)


def find(folder: Path) -> Path:
    """Return the path of the checkpoint in ``folder``; CheckpointError if there is none."""
    path = folder / NAME
    if not path.is_file():
        raise CheckpointError(f"no checkpoint to resume from: {path} does not exist; start without resume")
    return path


def read_alike(folder: Path, settings: dict[str, Any], world: World) -> tuple[int, dict[str, Tensor]]:
    """Read the checkpoint in all processes of a world, as :func:`read` does.

    Raises:
        CheckpointError: A process cannot read it, or they find different steps; raised in all of them.
    """
    failure: CheckpointError | None = None
    try:
        step, tensors = read(folder, settings)
        answer = f"finds step {step}"
    except CheckpointError as error:
        failure, answer = error, f"says: {error}"
    answers = world.texts(answer)
    if failure:
        raise failure
    if len(set(answers)) > 1:
        different = "; ".join(f"process {rank} {answer}" for rank, answer in enumerate(answers, 1))
        raise CheckpointError(
            f"the processes do not read the same checkpoint in {folder} ({different}); "
            "all must see one folder with the same files"
        )
    return step, tensors


def read(folder: Path, settings: dict[str, Any]) -> tuple[int, dict[str, Tensor]]:
    """Return step and tensors of the checkpoint in ``folder``.

    Raises:
        CheckpointError: There is none, it is damaged, or other settings wrote it (the message names them).
    """
    path = find(folder)
    try:
        header = read_metadata(path)
        if FORMAT not in header:
            raise ValueError(f"{path} is not a {FORMAT} file")
        content = parsed(header[FORMAT], f"the header of {path}")
        # copies: Windows replaces no file that is mapped into memory
        tensors = {name: tensor.clone() for name, tensor in read_tensors(path).items()}
        if tensors_sha256(tensors, header[FORMAT]) != header.get("sha256"):
            raise ValueError(f"{path} is damaged: its SHA-256 is not the one in its header")
        step, saved = _checked(content, path)
    except ValueError as error:
        raise CheckpointError(f"{error}; {REMEDY}") from error
    settings = json.loads(json.dumps(settings))
    different = [
        f"{key}={saved.get(key)!r}, this run has {settings.get(key)!r}"
        for key in sorted(settings.keys() | saved.keys())
        if settings.get(key) != saved.get(key)
    ]
    if different:
        raise CheckpointError(
            f"{path} was written with {'; with '.join(different)}. "
            "Resume with the same settings or choose another folder"
        )
    return step, tensors


def _checked(content: Any, path: Path) -> tuple[int, dict[str, Any]]:
    if isinstance(content, dict):
        step, settings = content.get("step"), content.get("settings")
        if type(step) is int and step >= 0 and isinstance(settings, dict):
            return step, settings
    raise ValueError(f"the header of {path} is {short(content)}; expected a step from 0 on and settings")


def restore(
    tensors: dict[str, Tensor],
    *,
    sae: SparseAutoencoder,
    trainer: Trainer,
    optimiser: torch.optim.Optimizer,
) -> None:
    """Put the tensors that :func:`read` returned back where :func:`write` found them.

    Raises:
        CheckpointError: They do not fit the autoencoder, the trainer or the optimiser.
    """

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        sae.load_state_dict(part("sae."))
        trainer.load_state_dict(part("run."))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimiser.").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint does not fit this version of sae_lib ({error}); {REMEDY}"
        ) from error

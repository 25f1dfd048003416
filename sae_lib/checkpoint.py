"""The complete state of a training run in one safetensors file.

Weights, optimiser moments and counters are tensors; the step and the settings stand in the header as
JSON. Nothing is pickled. Batches are a function of (seed, step) and training draws no other random
number, so the step is also the random state and the position in the data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_lib.files import replacing
from sae_lib.methods.base import Run
from sae_lib.sae import SparseAutoencoder

NAME = "checkpoint.safetensors"
FORMAT = "sae_lib.checkpoint.1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why."""


def write(
    folder: Path,
    *,
    step: int,
    settings: dict[str, Any],
    sae: SparseAutoencoder,
    run: Run,
    optimiser: torch.optim.Optimizer,
) -> None:
    """Replace ``folder/checkpoint.safetensors`` by the state after ``step`` optimiser steps."""
    tensors = {f"sae.{k}": v for k, v in sae.state_dict().items()}
    tensors |= {f"run.{k}": v for k, v in run.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
    # one key: safetensors writes several in no fixed order, and equal states should be equal files
    header = {FORMAT: json.dumps({"step": step, "settings": settings}, sort_keys=True)}
    with replacing(folder / NAME) as path:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, metadata=header)


def read(folder: Path, settings: dict[str, Any]) -> tuple[int, dict[str, Tensor]]:
    """Step and tensors of the checkpoint in ``folder``.

    Raises CheckpointError if there is none, if it is damaged, or if it was written with other settings
    (the message names them).
    """
    path = folder / NAME
    if not path.is_file():
        raise CheckpointError(f"no checkpoint to resume from: {path} does not exist; start without resume")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if FORMAT not in header:
                raise CheckpointError(f"{path} is not a {FORMAT} file; start without resume in a new folder")
            content = json.loads(header[FORMAT])
            step, saved = int(content["step"]), content["settings"]
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); start without resume in a new folder") from error
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


def restore(
    tensors: dict[str, Tensor], *, sae: SparseAutoencoder, run: Run, optimiser: torch.optim.Optimizer
) -> None:
    """Put the tensors of :func:`read` back where :func:`write` took them from."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    sae.load_state_dict(part("sae."))
    run.load_state_dict(part("run."))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in part("optimiser.").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})

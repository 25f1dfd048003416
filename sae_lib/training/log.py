"""The log of a training run: its records, and the file that keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lib.files.atomic import parsed, replacing
from sae_lib.methods.trainer import Step

NAME = "metrics.jsonl"


class TrainingLog(list[dict[str, Any]]):
    """One dictionary of metrics for each logged step.

    Its keys are ``step`` (from 1), ``loss``, ``nmse`` and ``l0`` of that batch, ``lr``, and the method's own.
    Where a screen served the step (:mod:`sae_lib.kernels.screen`), ``candidates`` says how many entries it
    computed for each that is a code.
    """

    def column(self, name: str) -> list[Any]:
        """Return the values of one metric over the logged steps; KeyError if there is none of that name."""
        if self and name not in self[0]:
            raise KeyError(f"the log has no {name!r}; it has {', '.join(self[0])}")
        return [record[name] for record in self]

    def write(self, folder: Path) -> None:
        """Replace ``folder/metrics.jsonl``, one record a line."""
        with replacing(folder / NAME) as temporary:
            text = "".join(json.dumps(record) + "\n" for record in self)
            temporary.write_text(text, "utf8", newline="\n")

    @classmethod
    def read(cls, folder: Path, last_step: int) -> TrainingLog:
        """Return the records up to the checkpoint, as later steps will be logged again; none without a file.

        Raises:
            ValueError: A line is not a record; the message names it.
        """
        path = folder / NAME
        lines = path.read_text("utf8", "replace").splitlines() if path.exists() else []
        log = cls()
        for number, line in enumerate(lines, 1):
            record = parsed(line, f"line {number} of {path}")
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError(f"line {number} of {path} is not a record; restore it, or delete the file")
            if record["step"] <= last_step:
                log.append(record)
        return log


def record(number: int, step: Step, x: Tensor, rate: float) -> dict[str, Any]:
    """Return what every method logs of step ``number``, on its rows x (B, d), at this learning rate."""
    world = step.world
    values = torch.stack(
        [
            world.mean(step.loss.detach()),
            world.sum(step.error.square().sum()) / world.sum(x.square().sum()),
            world.sum(step.codes.count_nonzero()).float() / step.rows,
        ]
    ).tolist()
    logged = {"step": number, "loss": values[0], "nmse": values[1], "l0": values[2], "lr": rate}
    if step.candidates is not None:
        logged["candidates"] = step.candidates / max(int(step.codes.count_nonzero()), 1)
    return logged

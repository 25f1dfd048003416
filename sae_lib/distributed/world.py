"""What the processes of a job share out.

A run has two things that can be shared out, the rows of a batch and the latents. Each is a
:class:`Partition`; a :class:`World` is the pair of them, one of which is shared among all processes. On one
process both are whole: nothing is sent, and every tensor comes back as it was given.

* Rows (``parallel="data"``): every process holds the whole autoencoder and takes a fixed slice of each batch.
  Gradients and counts are added up, peaks compared, so that all processes make the same step.
* Latents (``parallel="latents"``): every process holds a block of consecutive latents with their optimiser
  state and counters, and sees all rows. What the blocks write is added up before the error is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from sae_lib.checks import one_of
from sae_lib.distributed.process_group import all_reduce, broadcast, join, launched

WAYS = ("auto", "data", "latents", "off")
# steps between two questions whether someone has pressed Ctrl-C
_ASK_EVERY = 10


class _Sum(torch.autograd.Function):
    """Sum over processes. What follows is the same in all of them, and so is the gradient that comes back."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return all_reduce(part.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@dataclass(frozen=True)
class Partition:
    """``total`` things in a row, shared out among ``size`` processes in consecutive parts; this is ``rank``.

    With size 1 every method gives back what it is given.
    """

    total: int = 0
    rank: int = 0
    size: int = 1

    def part(self, rank: int | None = None) -> slice:
        """The part of a process, by default of this one."""
        if self.size == 1:
            return slice(None)
        rank = self.rank if rank is None else rank
        return slice(self.total * rank // self.size, self.total * (rank + 1) // self.size)

    def whole(self, mine: int) -> int:
        """How many things all processes have, if this one has ``mine``."""
        return mine if self.size == 1 else self.total

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes; the gradient is that of a sum whose every use is the same in all of them."""
        return value if self.size == 1 else cast(Tensor, _Sum.apply(value))

    def max(self, value: Tensor) -> Tensor:
        """Largest over processes, without gradient."""
        return value if self.size == 1 else all_reduce(value.detach().clone(), dist.ReduceOp.MAX)

    def share(self, mean: Tensor) -> Tensor:
        """What a mean over this part adds to the mean over all."""
        part = self.part()
        return mean if self.size == 1 else mean * ((part.stop - part.start) / self.total)

    def mean(self, mean: Tensor) -> Tensor:
        """The mean over all, from the mean over this part."""
        return self.sum(self.share(mean))

    def once(self, shared: Tensor) -> Tensor:
        """What all processes hold, with a gradient in the first one alone: gradients are added up later."""
        return shared if self.rank == 0 else shared.detach()

    def gather(self, part: Tensor, keep: bool = True) -> Tensor:
        """All parts of a tensor (n, …) as one on the CPU; empty where it is not to be kept."""
        if self.size == 1:
            return part
        length = self.total if keep else 0
        whole = torch.empty(length, *part.shape[1:], dtype=part.dtype)
        for rank in range(self.size):
            here = self.part(rank)
            block = part.contiguous() if rank == self.rank else part.new_empty(
                here.stop - here.start, *part.shape[1:]
            )  # fmt: skip
            broadcast(block, rank)
            if keep:
                whole[here] = block.cpu()
        return whole


@dataclass(frozen=True)
class World:
    """The processes of a job, and what they share out."""

    rank: int = 0
    size: int = 1
    rows: Partition = field(default_factory=Partition)
    latents: Partition = field(default_factory=Partition)

    @classmethod
    def join_all(cls, parallel: str) -> World:
        """All processes of the job, with nothing shared out; one process alone for ``"off"``."""
        one_of("parallel", parallel, WAYS)
        if parallel == "off" or not launched():
            return cls()
        join()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Mean over processes of one number each, so that all go by the same."""
        return value if self.size == 1 else all_reduce(value.double()) / self.size

    def stopped(self, flag: bool, step: int) -> bool:
        """Whether any process is to stop after this step, said to all alike; asked now and then."""
        return flag if self.size == 1 else step % _ASK_EVERY == 0 and self.any(flag)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return flag if self.size == 1 else bool(all_reduce(torch.tensor(int(flag)), dist.ReduceOp.MAX))

    def texts(self, text: str) -> list[str]:
        """A text from every process, in their order."""
        if self.size == 1:
            return [text]
        mine = torch.tensor(list(text.encode()), dtype=torch.uint8)
        found = []
        for rank in range(self.size):
            length = broadcast(torch.tensor(len(mine)), rank)
            found.append(mine if rank == self.rank else torch.empty(int(length), dtype=torch.uint8))
            if length:
                broadcast(found[-1], rank)
        return [bytes(part.tolist()).decode() for part in found]

    def by_first(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives in the first process, a JSON value; its errors end all processes."""
        if self.size == 1:
            return work()
        answer: dict[str, Any] = {}
        failure: Exception | None = None
        if self.first:
            try:
                answer = {"value": work()}
            except (OSError, RuntimeError, ValueError) as error:
                answer, failure = {"error": str(error)}, error
        answer = json.loads(self.texts(json.dumps(answer))[0])
        if failure:
            raise failure
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["value"]

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.any(False)


ALONE = World()

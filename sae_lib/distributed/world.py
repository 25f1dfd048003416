"""The processes of a job, and how they share out the rows of a batch.

Every process holds a complete autoencoder and takes a fixed slice of each batch. Gradients and counts are
added up and peaks compared, so that all processes make the same step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sae_lib.checks import one_of
from sae_lib.distributed.process_group import all_reduce, broadcast, join, launched

WAYS = ("auto", "data", "off")
# steps between two questions whether someone has pressed Ctrl-C
_ASK_EVERY = 10


@dataclass(frozen=True)
class World:
    """``size`` processes that share out batches of ``rows`` rows in consecutive parts; this one is ``rank``.

    With size 1 nothing is sent, and every method gives back what it is given. Only training shares out rows;
    elsewhere ``rows`` is 0.
    """

    rank: int = 0
    size: int = 1
    rows: int = 0

    @classmethod
    def join_all(cls, parallel: str) -> World:
        """All processes of the job, with no rows to share out; one process alone for ``"off"``."""
        one_of("parallel", parallel, WAYS)
        if parallel == "off" or not launched():
            return cls()
        join()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    @property
    def part(self) -> slice:
        """The rows of a batch that this process takes."""
        if self.size == 1:
            return slice(None)
        return slice(self.rows * self.rank // self.size, self.rows * (self.rank + 1) // self.size)

    def batch(self, rows: int) -> int:
        """Rows in the batch of all processes, of which this one has ``rows``."""
        return rows if self.size == 1 else self.rows

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes, without gradient."""
        if self.size == 1:
            return value
        return all_reduce(value.detach().clone(memory_format=torch.contiguous_format))

    def max(self, value: Tensor) -> Tensor:
        """Largest over processes, without gradient."""
        return value if self.size == 1 else all_reduce(value.detach().clone(), dist.ReduceOp.MAX)

    def share(self, mean: Tensor) -> Tensor:
        """What the mean over the rows of this process adds to the mean over the batch."""
        part = self.part
        return mean if self.size == 1 else mean * ((part.stop - part.start) / self.rows)

    def mean(self, mean: Tensor) -> Tensor:
        """Mean over the batch, without gradient, from the mean over the rows of this process."""
        return self.sum(self.share(mean))

    def average(self, value: Tensor) -> Tensor:
        """Average of one number from each process, however many rows they have."""
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

"""The processes of a job, and how they share out the rows of a batch.

Every process holds a complete autoencoder and takes a fixed slice of each batch. Gradients and counts are
added up and peaks compared, so that all processes make the same step.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

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
    """The processes of a job. With one alone nothing is sent, and every method returns its argument.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        rows: Rows of a batch, shared out in consecutive parts; 0 outside training.
    """

    rank: int = 0
    size: int = 1
    rows: int = 0

    @classmethod
    def join_all(cls, parallel: str) -> Self:
        """Return all processes of the job, with no rows to share out; for ``"off"`` this one alone."""
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
        """This process's rows of a batch."""
        if self.size == 1:
            return slice(None)
        return slice(self.rows * self.rank // self.size, self.rows * (self.rank + 1) // self.size)

    def batch(self, rows: int) -> int:
        """Return the rows in the batch of all processes, of which this one has ``rows``."""
        return rows if self.size == 1 else self.rows

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over processes, without gradient."""
        if self.size == 1:
            return value
        return all_reduce(value.detach().clone(memory_format=torch.contiguous_format))

    def max(self, value: Tensor) -> Tensor:
        """Return the largest over processes, without gradient."""
        return value if self.size == 1 else all_reduce(value.detach().clone(), dist.ReduceOp.MAX)

    def share(self, mean: Tensor) -> Tensor:
        """Return what the mean over this process's rows contributes to the mean over the batch."""
        part = self.part
        return mean if self.size == 1 else mean * ((part.stop - part.start) / self.rows)

    def mean(self, mean: Tensor) -> Tensor:
        """Return the mean over the batch, without gradient, from the mean over this process's rows."""
        return self.sum(self.share(mean))

    def average(self, value: Tensor) -> Tensor:
        """Return the average of one number from each process, however many rows each has."""
        return value if self.size == 1 else all_reduce(value.double()) / self.size

    def stopped(self, flag: bool, step: int) -> bool:
        """Return whether to stop after this step, alike in all processes, which ask each other at times."""
        return flag if self.size == 1 else step % _ASK_EVERY == 0 and self.any(flag)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return flag if self.size == 1 else bool(all_reduce(torch.tensor(int(flag)), dist.ReduceOp.MAX))

    def texts(self, text: str) -> list[str]:
        """Return the texts of all processes, by rank."""
        if self.size == 1:
            return [text]
        encoded = torch.tensor(list(text.encode()), dtype=torch.uint8)
        messages = []
        for rank in range(self.size):
            length = broadcast(torch.tensor(len(encoded)), rank)
            messages.append(encoded if rank == self.rank else torch.empty(int(length), dtype=torch.uint8))
            if length:
                broadcast(messages[-1], rank)
        return [bytes(message.tolist()).decode() for message in messages]

    def by_first(self, work: Callable[[], Any]) -> Any:
        """Return the result of ``work``, a JSON value, in the first process; an error is raised in all."""
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
        """Wait for all processes to arrive here."""
        self.any(False)


ALONE = World()

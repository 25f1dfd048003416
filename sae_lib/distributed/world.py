"""What the processes of a job share out.

A run has two things that can be shared out, the rows of a batch and the latents. Each is an :class:`Axis`;
a :class:`World` is the pair of them, one of which is shared among all processes. On one process both are
whole: nothing is sent, and every tensor comes back as it was given.

* Rows (``parallel="data"``): every process holds the whole autoencoder and takes a fixed slice of each batch.
  Gradients and counts are added up, peaks compared, so that all processes make the same step.
* Latents (``parallel="latents"``): every process holds a block of consecutive latents with their optimiser
  state and counters, and sees all rows. What the blocks write is added up before the error is taken.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sae_lib.distributed.process_group import all_reduce, broadcast, join, launched

if TYPE_CHECKING:
    from sae_lib.batches import BatchSource
    from sae_lib.methods.base import Method, Run
    from sae_lib.sae import SparseAutoencoder

WAYS = ("auto", "data", "latents", "off")
# numbers from which on a tensor is sent by itself
_LARGE = 2**20
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
class Axis:
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

    def joined(self, part: Tensor, keep: bool = True) -> Tensor:
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
    rows: Axis = field(default_factory=Axis)
    latents: Axis = field(default_factory=Axis)

    @classmethod
    def joined(cls, parallel: str) -> World:
        """All processes of the job, with nothing shared out; one process alone for ``"off"``."""
        if parallel not in WAYS:
            raise ValueError(f"parallel is {parallel!r}; expected one of {', '.join(WAYS)}")
        if parallel == "off" or not launched():
            return cls()
        join()
        return cls(dist.get_rank(), dist.get_world_size())

    @classmethod
    def sharing(cls, parallel: str, method: Method, *, batch_size: int, width: int) -> World:
        """The processes that train together. Raises ValueError for what cannot be shared out."""
        world = cls.joined(parallel)
        way = "data" if parallel == "auto" and world.size > 1 else parallel
        if way in ("data", "latents") and way not in (possible := method.parallel()):
            remedy = " or ".join(f"parallel={other!r}" for other in possible) or "a single process"
            raise ValueError(
                f"method {method.name} looks at more than one process sees with parallel={way!r}; "
                f"use {remedy} (parallel='off' lets every process train by itself)"
            )
        if world.size == 1:
            return world
        n, what = (width, "width") if way == "latents" else (batch_size, "batch_size")
        if n < world.size:
            raise ValueError(f"{what} is {n}; expected at least {world.size}, one for each process")
        axis = Axis(n, world.rank, world.size)
        shared = {"latents": axis} if way == "latents" else {"rows": axis}
        return cls(world.rank, world.size, **shared)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    # ---- training

    def cut(self, sae: SparseAutoencoder) -> SparseAutoencoder:
        """The latents of this process, in place."""
        if self.latents.size > 1:
            here = self.latents.part()
            for name, value in list(sae.named_parameters()):
                if name != "pre_bias":
                    part = nn.Parameter(value.detach()[here].clone(), requires_grad=value.requires_grad)
                    setattr(sae, name, part)
            sae.width, sae.block = here.stop - here.start, (here.start, self.latents.total)
        return sae

    def whole(self, sae: SparseAutoencoder) -> SparseAutoencoder:
        """The inverse of :meth:`cut`, in every process, on the CPU."""
        if self.latents.size > 1:
            for name, value in list(sae.named_parameters()):
                if name != "pre_bias":
                    setattr(sae, name, nn.Parameter(self.latents.joined(value.detach())))
            sae.cpu()
            sae.width, sae.block = self.latents.total, (0, self.latents.total)
        return sae

    def begin(self, sae: SparseAutoencoder, run: Run) -> None:
        """Let the run know of the other processes, and start from the numbers of the first one."""
        for part in cast("list[Run]", list(run.modules())):
            part.world = self
        # machines of different make may differ in the last bit of a mean or a quantile
        shared: list[Tensor] = [sae.pre_bias] if self.latents.size > 1 else []
        if self.rows.size > 1:
            # buffers that are not saved, too: others are put back from them
            shared = [tensor for part in (sae, run) for tensor in (*part.parameters(), *part.buffers())]
        for tensor in shared:
            broadcast(tensor.detach(), 0)

    def batches(self, source: BatchSource, batch_size: int, *, seed: int, start: int) -> Iterator[Tensor]:
        """This process's rows of every batch."""
        serve, part = source.batches, self.rows.part()
        if self.rows.size == 1:
            return serve(batch_size, seed=seed, start=start)
        if "part" in inspect.signature(serve).parameters:
            return cast("Callable[..., Iterator[Tensor]]", serve)(
                batch_size, seed=seed, start=start, part=part
            )
        return (batch[part] for batch in serve(batch_size, seed=seed, start=start))

    def reduce_gradients(self, sae: SparseAutoencoder, parameters: list[nn.Parameter]) -> None:
        """Add up the gradients of what all processes hold."""
        if self.size == 1:
            return
        shared = [p for p in parameters if self.rows.size > 1 or p is sae.pre_bias]
        for parameter in shared:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [cast(Tensor, p.grad) for p in shared]
        for gradient in gradients:
            if gradient.numel() >= _LARGE:
                all_reduce(gradient)
        # small ones together, as each message has its price
        if small := [g for g in gradients if g.numel() < _LARGE]:
            together = all_reduce(torch.cat([g.flatten() for g in small]))
            for gradient, total in zip(small, together.split([g.numel() for g in small]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def mean(self, value: Tensor) -> Tensor:
        """Mean over processes of one number each, so that all go by the same."""
        return value if self.size == 1 else all_reduce(value.double()) / self.size

    def gathered(self, tensors: dict[str, Tensor], shared: tuple[str, ...]) -> dict[str, Tensor] | None:
        """State tensors by name with all latents, in the first process; None in the others.

        shared: beginnings of the names that every process holds whole, as it does all single numbers.
        """
        if self.latents.size > 1:
            tensors = {
                name: value if not value.ndim or name.startswith(shared)
                else self.latents.joined(value.detach(), keep=self.first)
                for name, value in tensors.items()
            }  # fmt: skip
        return tensors if self.first else None

    def parted(self, tensors: dict[str, Tensor], shared: tuple[str, ...]) -> dict[str, Tensor]:
        """The inverse of :meth:`gathered`: the part of the state that belongs to this process."""
        here = self.latents.part()
        return {n: v if not v.ndim or n.startswith(shared) else v[here] for n, v in tensors.items()}

    # ---- messages

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

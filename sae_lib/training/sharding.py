"""How a training run is shared out among the processes of a world, and put together again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from sae_lib.batches import BatchSource
from sae_lib.distributed import Partition, World
from sae_lib.distributed.process_group import all_reduce, broadcast
from sae_lib.methods.base import Method, Trainer
from sae_lib.sae import SparseAutoencoder

# numbers from which on a tensor is sent by itself
_LARGE = 2**20


def sharing(parallel: str, method: Method, *, batch_size: int, width: int) -> World:
    """The processes that train together. Raises ValueError for what cannot be shared out."""
    world = World.join_all(parallel)
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
    part = Partition(n, world.rank, world.size)
    shared = {"latents": part} if way == "latents" else {"rows": part}
    return World(world.rank, world.size, **shared)


def cut(world: World, sae: SparseAutoencoder) -> SparseAutoencoder:
    """The latents of this process, in place."""
    if world.latents.size > 1:
        here = world.latents.part()
        for name, value in list(sae.named_parameters()):
            if name != "pre_bias":
                part = nn.Parameter(value.detach()[here].clone(), requires_grad=value.requires_grad)
                setattr(sae, name, part)
        sae.width, sae.block = here.stop - here.start, (here.start, world.latents.total)
    return sae


def whole(world: World, sae: SparseAutoencoder) -> SparseAutoencoder:
    """The inverse of :func:`cut`, in every process, on the CPU."""
    if world.latents.size > 1:
        for name, value in list(sae.named_parameters()):
            if name != "pre_bias":
                setattr(sae, name, nn.Parameter(world.latents.gather(value.detach())))
        sae.cpu()
        sae.width, sae.block = world.latents.total, (0, world.latents.total)
    return sae


def begin(world: World, sae: SparseAutoencoder, trainer: Trainer) -> None:
    """Let the trainer know of the other processes, and start from the numbers of the first one."""
    for part in cast("list[Trainer]", list(trainer.modules())):
        part.world = world
    # machines of different make may differ in the last bit of a mean or a quantile
    shared: list[Tensor] = [sae.pre_bias] if world.latents.size > 1 else []
    if world.rows.size > 1:
        # buffers that are not saved, too: others are put back from them
        shared = [tensor for part in (sae, trainer) for tensor in (*part.parameters(), *part.buffers())]
    for tensor in shared:
        broadcast(tensor.detach(), 0)


def batches(world: World, source: BatchSource, batch_size: int, *, seed: int, start: int) -> Iterator[Tensor]:
    """This process's rows of every batch."""
    serve, part = source.batches, world.rows.part()
    if world.rows.size == 1:
        return serve(batch_size, seed=seed, start=start)
    if "part" in inspect.signature(serve).parameters:
        return cast("Callable[..., Iterator[Tensor]]", serve)(batch_size, seed=seed, start=start, part=part)
    return (batch[part] for batch in serve(batch_size, seed=seed, start=start))


def reduce_gradients(world: World, sae: SparseAutoencoder, parameters: list[nn.Parameter]) -> None:
    """Add up the gradients of what all processes hold."""
    if world.size == 1:
        return
    shared = [p for p in parameters if world.rows.size > 1 or p is sae.pre_bias]
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


def gathered(world: World, tensors: dict[str, Tensor], shared: tuple[str, ...]) -> dict[str, Tensor] | None:
    """State tensors by name with all latents, in the first process; None in the others.

    shared: beginnings of the names that every process holds whole, as it does all single numbers.
    """
    if world.latents.size > 1:
        tensors = {
            name: value if not value.ndim or name.startswith(shared)
            else world.latents.gather(value.detach(), keep=world.first)
            for name, value in tensors.items()
        }  # fmt: skip
    return tensors if world.first else None


def parted(world: World, tensors: dict[str, Tensor], shared: tuple[str, ...]) -> dict[str, Tensor]:
    """The inverse of :func:`gathered`: the part of the state that belongs to this process."""
    here = world.latents.part()
    return {n: v if not v.ndim or n.startswith(shared) else v[here] for n, v in tensors.items()}

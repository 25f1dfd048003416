"""How the rows of every batch are shared out among processes, and their gradients added up."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from sae_lib.batches import BatchSource
from sae_lib.distributed import World
from sae_lib.distributed.process_group import all_reduce, broadcast
from sae_lib.methods.base import Method
from sae_lib.methods.trainer import Trainer
from sae_lib.sae import SparseAutoencoder

# gradients with at least this many numbers are sent one by one
_LARGE = 2**20


def sharing(parallel: str, method: Method, batch_size: int) -> World:
    """Return the processes that train together.

    Raises:
        ValueError: The method cannot share out rows, or a batch has fewer rows than there are processes.
    """
    world = World.join_all(parallel)
    if (parallel == "data" or world.size > 1) and not method.data_parallel:
        raise ValueError(
            f"method {method.name} needs all rows of a batch in one process; use a single process "
            "(under torchrun, parallel='off' lets every process train by itself)"
        )
    if world.size == 1:
        return world
    if batch_size < world.size:
        raise ValueError(f"batch_size is {batch_size}; expected at least {world.size}, one for each process")
    return World(world.rank, world.size, batch_size)


def begin(world: World, sae: SparseAutoencoder, trainer: Trainer) -> None:
    """Tell the trainer of the other processes, and start from the numbers of the first one."""
    for part in cast("list[Trainer]", list(trainer.modules())):
        part.world = world
    if world.size > 1:
        # machines may differ in the last bit of a mean or a quantile; unsaved buffers too, as some weights
        # are restored from them
        for tensor in (*sae.parameters(), *sae.buffers(), *trainer.parameters(), *trainer.buffers()):
            broadcast(tensor.detach(), 0)


def batches(world: World, source: BatchSource, batch_size: int, *, seed: int, start: int) -> Iterator[Tensor]:
    """Return an iterator over this process's rows of every batch."""
    serve, part = source.batches, world.part
    if world.size == 1:
        return serve(batch_size, seed=seed, start=start)
    if "part" in inspect.signature(serve).parameters:
        return cast("Callable[..., Iterator[Tensor]]", serve)(batch_size, seed=seed, start=start, part=part)
    return (batch[part] for batch in serve(batch_size, seed=seed, start=start))


def reduce_gradients(world: World, parameters: list[nn.Parameter]) -> None:
    """Add up the gradients of all processes."""
    if world.size == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [cast(Tensor, p.grad) for p in parameters]
    for gradient in gradients:
        if gradient.numel() >= _LARGE:
            all_reduce(gradient)
    # small ones together, as each message has its price
    if small := [g for g in gradients if g.numel() < _LARGE]:
        together = all_reduce(torch.cat([g.flatten() for g in small]))
        for gradient, total in zip(small, together.split([g.numel() for g in small]), strict=True):
            gradient.copy_(total.view_as(gradient))

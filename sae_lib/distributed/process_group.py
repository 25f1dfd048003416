"""How the processes that ``torchrun`` has started find one another, and what they can send."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# seconds after which a process that says nothing counts as lost; one that has died is noticed at once.
# Others wait this long while the first one checks a store or writes a checkpoint
TIMEOUT = 1800.0


class LostProcessError(RuntimeError):
    """Another process of the job has died, or hung for longer than the timeout."""


def launched() -> bool:
    """Whether this is one of several processes that ``torchrun`` has started, or that have been joined."""
    if not dist.is_available():
        return False
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return dist.is_initialized() or (dist.is_torchelastic_launched() and several)


def join(timeout: float = TIMEOUT) -> None:
    """Join the processes ``torchrun`` has started: NCCL between GPUs, gloo between CPUs.

    timeout: seconds after which a process that says nothing counts as lost.

    :func:`sae_lib.train` and :func:`sae_lib.activations.harvest` do this by themselves. Nothing happens on a
    process that is alone, or where ``torch.distributed`` has been initialised already.
    """
    if dist.is_initialized() or not launched():
        return
    backend, neighbours = "gloo", int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # NCCL wants a GPU for each process
    if dist.is_nccl_available() and torch.cuda.device_count() >= neighbours:
        torch.cuda.set_device(local("cuda"))
        backend = "cpu:gloo,cuda:nccl"
    with _talking():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    atexit.register(_leave)


def local(device: str | torch.device) -> torch.device:
    """The device of this process: of several processes on a machine each takes its own GPU for ``"cuda"``."""
    device = torch.device(device)
    if device.type != "cuda" or device.index is not None or not launched():
        return device
    rank = os.environ.get("LOCAL_RANK") or (dist.get_rank() if dist.is_initialized() else 0)
    # where there is no GPU, PyTorch is to say so
    return torch.device("cuda", int(rank) % max(torch.cuda.device_count(), 1))


def place() -> str:
    """Which process this is, for messages: ``" (process 1 of 4)"``, nothing for one that is alone."""
    if not launched():
        return ""
    return f" (process {int(os.environ.get('RANK', '0')) + 1} of {os.environ.get('WORLD_SIZE', '?')})"


_lost = False


def _leave() -> None:
    # where a process is missing, saying goodbye could wait for ever
    if dist.is_initialized() and not _lost:
        dist.destroy_process_group()


@contextmanager
def _talking() -> Iterator[None]:
    """Say plainly what a failure of communication means."""
    global _lost
    try:
        yield
    except RuntimeError as error:
        _lost = True
        raise LostProcessError(
            "another process of this job has died, or said nothing for longer than the timeout. What was "
            "saved last is intact: start the job again with as many processes as you like, training with "
            f"resume=True (--resume). What was noticed: {str(error).splitlines()[0]}"
        ) from error


@cache
def _cpu_group() -> Any:
    """The group for tensors on the CPU: the common one if it can, otherwise one of its own."""
    return None if "cpu:" in dist.get_backend_config() else dist.new_group(backend="gloo")


def _group(tensor: Tensor) -> Any:
    return _cpu_group() if tensor.device.type == "cpu" else None


def all_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Put into the tensor, in place, what comes of those of all processes; gives it back."""
    with _talking():
        dist.all_reduce(tensor, op, group=_group(tensor))
    return tensor


def broadcast(tensor: Tensor, source: int) -> Tensor:
    """Put into the tensor, in place, that of the process ``source``; gives it back."""
    with _talking():
        dist.broadcast(tensor, source, group=_group(tensor))
    return tensor

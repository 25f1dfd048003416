"""How the processes that ``torchrun`` has started find one another, and what they can send."""

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

# seconds of silence after which a process counts as lost; one that has died is noticed at once. The others
# wait this long while the first one checks a store or writes a checkpoint
TIMEOUT = 1800.0


class LostProcessError(RuntimeError):
    """Another process of the job has died, or hung for longer than the timeout."""


def launched() -> bool:
    """Return whether this is one of several processes, started by ``torchrun`` or joined already."""
    if not dist.is_available():
        return False
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return dist.is_initialized() or (dist.is_torchelastic_launched() and several)


def join(timeout: float = TIMEOUT) -> None:
    """Join the processes that ``torchrun`` has started: NCCL between GPUs, gloo between CPUs.

    :func:`sae_lib.train` and :func:`sae_lib.activations.harvest` call it. It does nothing in a process that
    is alone, or where ``torch.distributed`` has been initialised already.

    Args:
        timeout: Seconds of silence after which another process counts as lost.

    Raises:
        LostProcessError: Another process has died or did not answer.
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
    """Return the device of this process: for ``"cuda"``, each of several on a machine has its own GPU."""
    device = torch.device(device)
    if device.type != "cuda" or device.index is not None or not launched():
        return device
    rank = os.environ.get("LOCAL_RANK") or (dist.get_rank() if dist.is_initialized() else 0)
    # without a GPU, PyTorch raises the error
    return torch.device("cuda", int(rank) % max(torch.cuda.device_count(), 1))


def place() -> str:
    """Return ``" (process 1 of 4)"`` for messages; nothing for a process that is alone."""
    if not launched():
        return ""
    return f" (process {int(os.environ.get('RANK', '0')) + 1} of {os.environ.get('WORLD_SIZE', '?')})"


_lost = False


def _leave() -> None:
    # where a process is missing, this could wait for ever
    if dist.is_initialized() and not _lost:
        dist.destroy_process_group()


@contextmanager
def _talking() -> Iterator[None]:
    """Turn a failure of communication into a :class:`LostProcessError`."""
    global _lost
    try:
        yield
    except RuntimeError as error:
        _lost = True
        raise LostProcessError(
            "another process of this job has died, or was silent for longer than the timeout. What was "
            "saved last is intact: start the job again with as many processes as you like, training with "
            f"resume=True (--resume). The failure: {str(error).splitlines()[0]}"
        ) from error


@cache
def _cpu_group() -> Any:
    """Return the group for tensors on the CPU: the default one where it can send them, else a second one."""
    return None if "cpu:" in dist.get_backend_config() else dist.new_group(backend="gloo")


def _group(tensor: Tensor) -> Any:
    return _cpu_group() if tensor.device.type == "cpu" else None


def all_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduce the tensors of all processes in place, and return the tensor."""
    with _talking():
        dist.all_reduce(tensor, op, group=_group(tensor))
    return tensor


def broadcast(tensor: Tensor, source: int) -> Tensor:
    """Overwrite the tensor with that of the process ``source``, and return it."""
    with _talking():
        dist.broadcast(tensor, source, group=_group(tensor))
    return tensor

"""Safetensors files: compared with expected shapes and types before memory is allocated."""

import contextlib
import hashlib
import json
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_lib.files.atomic import short

# names in safetensors of the types that this library writes or reads
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def tensors_sha256(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Hash a text together with names, types, shapes and bits of tensors on the CPU."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {_NAMES[tensor.dtype]} {list(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor.contiguous()))
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; equal arguments give equal bytes.

    After a crash safetensors' own ``save_file`` leaves files whose names do not show where they belong; its
    files are readable for their owner alone, and their metadata have no fixed order.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    # wide types first, so that every tensor is aligned
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(_bytes(tensors[name].detach().cpu().contiguous()))


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file; ValueError if it is damaged."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def read_tensors(
    path: Path,
    expected: Mapping[str, tuple[Collection[torch.dtype], tuple[int, ...]]] | None = None,
    source: str = "safetensors",
) -> dict[str, Tensor]:
    """Return tensors of a safetensors file, mapped into memory.

    Args:
        path: The file.
        expected: Possible types, and the shape, of each tensor to read; compared with the header before
            anything is read. None reads all tensors; the header cannot claim more than the file holds.
        source: Origin of ``expected``, for the message.

    Raises:
        ValueError: The file is damaged or differs from ``expected``; names the file and the tensor.
    """
    with _opened(path) as file:
        names = list(file.keys())
        for name in expected or names:
            if name not in names:
                raise ValueError(f"{path} lacks {name}; it has {short(names)}")
            part = file.get_slice(name)
            dtype, actual = _DTYPES.get(part.get_dtype()), tuple(part.get_shape())
            dtypes, shape = expected[name] if expected else (_NAMES, actual)
            if dtype not in dtypes or actual != shape:
                raise ValueError(
                    f"{path}: {name} is {dtype or part.get_dtype()} {short(actual)}; {source} says "
                    f"{' or '.join(map(str, dtypes))} {short(shape)}"
                )
        return {name: file.get_tensor(name) for name in expected or names}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    # RuntimeError: more bytes than can be mapped
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({error})") from None

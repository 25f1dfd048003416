"""The files of an activation store: safetensors shards and the manifest that lists them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lib.checks import at_least, between
from sae_lib.files.atomic import read_json, replacing, short
from sae_lib.files.tensors import write_tensors
from sae_lib.normalisation import Normalisation

FORMAT = "sae_lib activations"
# 2 added the counts of a shard and the median norm; files of version 1 are read as well
VERSION = 2
MANIFEST = "manifest.json"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# JSON types of the fields below
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "bool": (bool,), "str": (str,), "list[Shard]": (list,),
    "dict[str, Any]": (dict,), "dict[str, Any] | None": (dict, type(None)),
    "int | None": (int, type(None)), "float | None": (float, type(None)),
}  # fmt: skip
# missing in files of version 1
_NEWER = {"documents", "dropped_by_norm", "dropped_by_position", "median_norm"}
RESUME = "call harvest again with the same arguments"


@dataclass(frozen=True)
class Shard:
    """A file with three tensors.

    They are ``acts (rows, d_in)``, the ``blocks (n_blocks, block_size)`` of tokens they come from, and
    ``places (rows,)``, the position of each row in the flattened blocks.

    Attributes:
        file: Name.
        rows: Rows in it.
        blocks: Blocks in it.
        bytes: Size.
        sha256: Hexadecimal hash of its bytes.
        documents: Documents touched by its blocks and all before them; None in a store of version 1, as are
            the other two.
        dropped_by_norm: Tokens of its blocks without a row because that would be too long.
        dropped_by_position: Tokens of its blocks that are separators or among the first.
    """

    file: str
    rows: int
    blocks: int
    bytes: int
    sha256: str
    documents: int | None = None
    dropped_by_norm: int | None = None
    dropped_by_position: int | None = None


@dataclass
class Manifest:
    """The contents of a store and how they were made; no dates, so that equal stores are equal files.

    Attributes:
        settings: Everything that decides the rows, as :func:`sae_lib.activations.harvest` writes it.
        d_in: Dimension of the rows.
        finished: Whether the harvest has ended.
        normalisation: Fitted on the first shard; None until that is written.
        median_norm: Median norm of the first shard's rows, before those too long were dropped; None until
            that is written, and where rows of any length are kept.
        shards: The complete files in order.
        format: Name of the format.
        version: Version of the format.
    """

    settings: dict[str, Any]
    d_in: int
    finished: bool = False
    normalisation: dict[str, Any] | None = None
    median_norm: float | None = None
    shards: list[Shard] = field(default_factory=list)
    format: str = FORMAT
    version: int = VERSION

    @property
    def n_rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def n_documents(self) -> int | None:
        """Documents touched by the blocks; None where that was not counted."""
        return self.shards[-1].documents if self.shards else 0

    @property
    def dropped_by_norm(self) -> int:
        """Tokens without a row because that would be too long; 0 where that was not counted."""
        return sum(shard.dropped_by_norm or 0 for shard in self.shards)

    @property
    def dropped_by_position(self) -> int:
        """Tokens without a row because they are separators or among the first of a block."""
        tokens = sum(shard.blocks for shard in self.shards) * self.block_size
        return tokens - self.n_rows - self.dropped_by_norm

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return int(self.settings["block_size"])

    @property
    def blocks_per_shard(self) -> int:
        """Blocks in every shard but the last, which may have fewer."""
        return int(self.settings["blocks_per_shard"])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the stored rows."""
        return DTYPES[self.settings["dtype"]]

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest in one step: readers see the old one or the new one."""
        with replacing(folder / MANIFEST) as path:
            text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8", newline="\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a folder's manifest and check it.

        Raises:
            FileNotFoundError: The folder has none.
            ValueError: A field is wrong; says which.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"no activation store in {folder}: it has no {MANIFEST}; harvest one first"
            )
        remedy = "restore it, or harvest into a new folder"
        try:
            values = read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}; {remedy}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds a {type(values).__name__}; expected an object; {remedy}")
        for name, expected in (("format", [FORMAT]), ("version", [1, VERSION])):
            if values.get(name) not in expected:
                raise ValueError(
                    f"{path}: {name} is {short(values.get(name))}; this version of sae_lib reads "
                    f"{' and '.join(map(repr, expected))}"
                )
        try:
            manifest = _built(cls, "manifest", values)
            manifest.shards = [_built(Shard, f"shards[{i}]", s) for i, s in enumerate(manifest.shards)]
            manifest._check()
            # what is written from now on has the newer entries
            manifest.version = VERSION
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}; {remedy}") from None
        return manifest

    def _check(self) -> None:
        at_least(1, d_in=self.d_in)
        for name in ("block_size", "blocks_per_shard"):
            value = self.settings.get(name)
            if type(value) is not int or value < 1:
                raise ValueError(f"settings.{name} is {short(value)}, expected a whole number ≥ 1")
        # a tuple, as unhashable values such as lists cannot be looked up in a dictionary
        if self.settings.get("dtype") not in tuple(DTYPES):
            raise ValueError(
                f"settings.dtype is {short(self.settings.get('dtype'))}, expected {', '.join(DTYPES)}"
            )
        if self.shards and self.normalisation is None:
            raise ValueError("normalisation is missing")
        max_norm = self.settings.get("max_norm")
        if max_norm is not None and not (type(max_norm) in (int, float) and 1 < max_norm < math.inf):
            raise ValueError(f"settings.max_norm is {short(max_norm)}, expected a number above 1")
        if self.median_norm is not None and not 0 <= self.median_norm < math.inf:
            raise ValueError(f"median_norm is {self.median_norm}, expected a number ≥ 0")
        if self.shards and max_norm is not None and self.median_norm is None:
            raise ValueError("median_norm is missing")
        if self.normalisation is not None:
            try:
                Normalisation(**self.normalisation)
            # TypeError and OverflowError come from entries or numbers that no normalisation has
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(
                    f"normalisation is {short(self.normalisation)}, expected a kind and a scale ({error})"
                ) from None
        if self.finished and not any(shard.rows > 0 for shard in self.shards):
            raise ValueError("finished is True but there are no rows")
        for i, shard in enumerate(self.shards):
            if shard.file != shard_name(i):
                raise ValueError(f"shards[{i}].file is {short(shard.file)}, expected {shard_name(i)!r}")
            least = self.blocks_per_shard if i < len(self.shards) - 1 else 1
            between(least, self.blocks_per_shard, "blocks_per_shard", **{f"shards[{i}].blocks": shard.blocks})
            tokens = shard.blocks * self.block_size
            between(0, tokens, "tokens in its blocks", **{f"shards[{i}].rows": shard.rows})
            for name in ("documents", "dropped_by_norm", "dropped_by_position"):
                if (count := getattr(shard, name)) is not None:
                    at_least(0, **{f"shards[{i}].{name}": count})
            if shard.dropped_by_norm is not None and shard.dropped_by_position is not None:
                accounted = shard.rows + shard.dropped_by_norm + shard.dropped_by_position
                if accounted != tokens:
                    raise ValueError(
                        f"shards[{i}] accounts for {accounted} tokens, expected the {tokens} of its blocks"
                    )
            # sizes of files are compared, so that no reader allocates more than a file really holds
            least = shard.rows * (self.d_in * self.dtype.itemsize + 4) + tokens * 4
            if shard.bytes < least:
                raise ValueError(f"shards[{i}].bytes is {shard.bytes}, but its rows alone take {least}")


def _built(cls: type, where: str, values: Any) -> Any:
    """Build a dataclass from JSON values, each of the type its field is annotated with."""
    if not isinstance(values, dict):
        raise TypeError(f"{where} is a {type(values).__name__}, expected an object")
    for name, annotation in cls.__annotations__.items():
        if name not in values:
            if name in _NEWER:
                continue
            raise ValueError(f"{where}.{name} is missing")
        # exact types, as True would pass for a count of rows
        if type(values[name]) not in _JSON_TYPES[annotation]:
            raise TypeError(f"{where}.{name} is {short(values[name])}, expected {annotation}")
    if unknown := values.keys() - cls.__annotations__.keys():
        raise ValueError(f"{where} has unknown entries {short(sorted(unknown))}")
    return cls(**values)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shard_name(index: int) -> str:
    """Return the file name of shard ``index``."""
    return f"shard-{index:05d}.safetensors"


def write_shard(
    folder: Path, index: int, acts: Tensor, blocks: Tensor, places: Tensor, **counts: int
) -> Shard:
    """Write acts (rows, d_in), blocks (n_blocks, block_size) and places (rows,), all or nothing.

    ``counts`` are the last three attributes of :class:`Shard`.
    """
    target = folder / shard_name(index)
    with replacing(target) as path:
        write_tensors(path, {"acts": acts, "blocks": blocks.int(), "places": places.int()}, {})
        digest, size = _sha256(path), path.stat().st_size
    return Shard(target.name, len(acts), len(blocks), size, digest, **counts)


def check_shard(folder: Path, shard: Shard, hashes: bool) -> None:
    """Compare a file's size, and with ``hashes`` its SHA-256, with its entry in the manifest.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file differs.
    """
    path = folder / shard.file
    remedy = f"{RESUME} to write it again"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {remedy}")
    if (size := path.stat().st_size) != shard.bytes:
        raise ValueError(f"{path} has {size} bytes, the manifest says {shard.bytes}; {remedy}")
    if hashes and _sha256(path) != shard.sha256:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the manifest's; {remedy}")

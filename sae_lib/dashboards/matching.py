"""Latents of several autoencoders to show side by side."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_lib.sae import SparseAutoencoder


class Match(NamedTuple):
    """A latent of one autoencoder, and the cosine of its direction with that of its counterpart."""

    number: int
    cosine: float


@torch.no_grad()
def match(
    autoencoders: Mapping[str, SparseAutoencoder], latents: Sequence[int] | Tensor
) -> list[dict[str, Match]]:
    """Match latents of the first autoencoder to the one of each other that points most nearly the same way.

    That is the largest cosine of signed decoder directions, whatever its size; the smaller index if equal.
    Two latents may get the same counterpart: a coarse latent of one autoencoder can be split in another.

    Args:
        autoencoders: Autoencoders by name, all for the same rows (equal d).
        latents: Latents of the first.

    Returns:
        For each of the latents its match by name; in the first autoencoder itself, with cosine 1.

    Raises:
        ValueError: No autoencoders, unequal d, or a latent out of range.
    """
    if not autoencoders:
        raise ValueError("0 autoencoders given; expected at least one")
    directions = {name: normalize(sae.directions.float(), dim=1).cpu() for name, sae in autoencoders.items()}
    dimensions = {name: rows.shape[1] for name, rows in directions.items()}
    if len(set(dimensions.values())) > 1:
        raise ValueError(f"the autoencoders have d_in {dimensions}; expected equal ones, of the same site")
    first = next(iter(directions))
    numbers = torch.as_tensor(latents, dtype=torch.long).flatten()
    width = len(directions[first])
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= width):
        raise ValueError(f"latents {numbers.min()}..{numbers.max()} of {first}: allowed 0..{width - 1}")
    rows: list[dict[str, Match]] = [{first: Match(number, 1.0)} for number in numbers.tolist()]
    for name in list(directions)[1:]:
        best = (directions[first][numbers] @ directions[name].T).max(dim=1)
        for row, number, cosine in zip(rows, best.indices.tolist(), best.values.tolist(), strict=True):
            row[name] = Match(number, cosine)
    return rows

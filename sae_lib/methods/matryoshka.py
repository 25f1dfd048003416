"""Matryoshka: Bussmann, Nabeshima, Karvonen & Nanda (2025), arXiv 2503.17547.

BatchTopK whose first latents have to rebuild the input without the later ones, at several sizes at once. The
general features then come first, and a later latent cannot take cases away from an earlier one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from sae_lib.kernels import Pass, SparseCodes
from sae_lib.methods.batch_top_k import BatchTopK, BatchTopKTrainer
from sae_lib.normalisation import Normalisation
from sae_lib.sae import SparseAutoencoder


def prefix_sizes(prefixes: Sequence[float], width: int) -> list[int]:
    """Return the sizes of the prefixes in latents, increasing, the last of them ``width``.

    Args:
        prefixes: Shares of the width if none is above 1, otherwise numbers of latents. A share becomes the
            nearest number of latents, at least 1; shares that give the same number count once.
        width: Number of latents.

    Raises:
        ValueError: The last prefix is larger than the width.

    Example:
        >>> from sae_lib.methods.matryoshka import prefix_sizes
        >>> prefix_sizes((0.25, 0.5), width=512)
        [128, 256, 512]
    """
    if max(prefixes) <= 1:
        sizes = [max(1, round(share * width)) for share in prefixes]
    else:
        sizes = [int(size) for size in prefixes]
        if sizes[-1] > width:
            raise ValueError(f"prefixes end at {sizes[-1]}; expected at most {width} (the width)")
    return list(dict.fromkeys([*sizes, width]))


@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """Σ_m ½‖f_m(x) − x‖², averaged over the batch, where f_m decodes the first m latents alone.

    The codes are those of BatchTopK, chosen once among all latents; the auxiliary loss models the error of
    the full autoencoder. The source trains 65,536 latents with prefixes of 2,048, 6,144, 14,336 and 30,720;
    the default has the same shares.

    Example:
        >>> data = sae_lib.synthetic.uniform(n_rows=2000)
        >>> method = sae_lib.Matryoshka(k=3, prefixes=(0.25, 0.5))
        >>> sae, log = sae_lib.train(data, method, width=128, steps=50, batch_size=128)
        >>> log[-1]["l0"], sae.activation
        (3.0, 'threshold')
    """

    prefixes: tuple[float, ...] = field(
        default=(1 / 32, 3 / 32, 7 / 32, 15 / 32),
        metadata={
            "help": "Sizes m of the prefixes, increasing, as shares of the width (all at most 1) or as "
            "numbers of latents; the full width is always the last, named or not."
        },
    )
    name: ClassVar[str] = "matryoshka"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "prefixes", tuple(self.prefixes))
        if not self.prefixes:
            raise ValueError("prefixes is empty; expected at least one size, such as 0.25")
        rising = all(a < b for a, b in itertools.pairwise(self.prefixes))
        if not (rising and self.prefixes[0] > 0):
            raise ValueError(
                f"prefixes is {self.prefixes}; expected sizes above 0, each larger than the last"
            )
        if max(self.prefixes) > 1 and any(size != int(size) for size in self.prefixes):
            raise ValueError(
                f"prefixes is {self.prefixes}; expected shares of at most 1, or whole numbers of latents"
            )

    def build(self, d_in: int, width: int, *, normalisation: Normalisation, seed: int) -> SparseAutoencoder:
        """Build as BatchTopK does."""
        prefix_sizes(self.prefixes, width)
        return super().build(d_in, width, normalisation=normalisation, seed=seed)

    def start(self, sae: SparseAutoencoder, sample: Tensor) -> MatryoshkaTrainer:
        """Turn on the gradients of the biases; centre on the sample if asked to."""
        self.prepare(sae, sample)
        return MatryoshkaTrainer(self, sae.width).to(sae.weight.device)


class MatryoshkaTrainer(BatchTopKTrainer):
    """Trainer of BatchTopK with an error for every prefix."""

    def __init__(self, method: Matryoshka, width: int) -> None:
        super().__init__(method, width)
        self.sizes = prefix_sizes(method.prefixes, width)

    def errors(self, sae: SparseAutoencoder, codes: Tensor, x: Tensor) -> list[Tensor]:
        """Return the error (B, d) of each prefix, the smallest first; the last is that of all latents."""
        parts = [b - a for a, b in itertools.pairwise([0, *self.sizes])]
        scaled, rows = (codes * sae.scale).split(parts, dim=1), sae.decoder_rows.split(parts)
        # every latent is decoded once: a prefix adds its part to the one before
        error, errors = sae.pre_bias - x, []
        for part, directions in zip(scaled, rows, strict=True):
            error = error + part @ directions
            errors.append(error)
        return errors

    def sparse_errors(
        self, sae: SparseAutoencoder, sparse_pass: Pass, codes: SparseCodes, x: Tensor
    ) -> list[Tensor]:
        """Return the same from sparse codes."""
        scaled = codes.values * sparse_pass.support.at_latents(sae.scale)
        error, errors = sae.pre_bias - x, []
        for part in sparse_pass.decode_parts(scaled, sae.decoder_rows, self.sizes):
            error = error + part
            errors.append(error)
        return errors

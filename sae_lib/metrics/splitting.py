"""Feature splitting and absorption: what becomes of a latent when there is room for more of them.

*Splitting*: several latents of a wider autoencoder share out the firings of one of a narrower. *Absorption*
(Chanin et al. 2024, arXiv 2409.14507): a latent that stands for a class is silent on some members of it,
because a latent for just those members has taken over the direction. Codes are sparse tables (N, M) on the
same N rows, from :func:`sae_lib.metrics.reading.code_table`; the null for both is
:func:`sae_lib.metrics.reading.scattered`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_array, csr_array
from torch import Tensor

from sae_lib.checks import cosine
from sae_lib.metrics.recovery import cosines, directions
from sae_lib.sae import SparseAutoencoder


def near_latents(
    narrow: SparseAutoencoder | Tensor, wide: SparseAutoencoder | Tensor, threshold: float = 0.5
) -> np.ndarray:
    """For each latent of ``narrow`` how many of ``wide`` have a cosine with it above ``threshold``: (m,).

    >>> from sae_lib.metrics.splitting import near_latents
    >>> near_latents(torch.eye(2), torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.0, 1.0]]))
    array([2, 1])

    Decoder rows count. Given twice the same autoencoder, a latent finds itself too.
    """
    cosine(threshold=threshold)
    return (cosines(wide, directions(narrow)) > threshold).sum(dim=1).cpu().numpy()


@dataclass(frozen=True)
class Splitting:
    """How latents of a narrow autoencoder are shared out in a wide one.

    parents: (p,) narrow latents with enough firings; the others are left out.
    members: for each parent the wide latents that are its children.
    covered: (p,) share of the parent's firings on which at least one child fires.
    """

    parents: np.ndarray
    members: tuple[np.ndarray, ...]
    covered: np.ndarray

    @property
    def children(self) -> np.ndarray:
        """(p,) number of children of each parent."""
        return np.array([len(young) for young in self.members])

    def split(self, covered: float = 0.5) -> np.ndarray:
        """(p,) bool: at least two children, and together on at least this share of the firings."""
        return (self.children >= 2) & (self.covered >= covered)


def splitting(
    narrow: csr_array,
    wide: csr_array,
    *,
    inside: float = 0.8,
    part: float = 0.05,
    most: float = 0.8,
    min_firings: int = 50,
) -> Splitting:
    """Find the children of each narrow latent among the wide ones.

    A child fires (almost) only where its parent does, on a part of its firings: with c rows on which both
    fire, c ≥ inside · (firings of the child) and part ≤ c / (firings of the parent) ≤ most. A wide latent
    that takes over more than ``most`` is the parent again, not a child.

    narrow: codes (N, m). wide: codes (N, M), of the same rows. The three shares are this book's.
    min_firings: latents of ``narrow`` that fire on fewer rows are left out.
    """
    if narrow.shape[0] != wide.shape[0]:
        raise ValueError(f"codes of {narrow.shape[0]} and of {wide.shape[0]} rows; need the same rows")
    if not (0 < inside <= 1 and 0 < part < most <= 1):
        raise ValueError(
            f"inside={inside}, part={part}, most={most}; expected 0 < part < most ≤ 1, inside ≤ 1"
        )
    parent_fires, child_fires = _fires(narrow), _fires(wide)
    parents = np.flatnonzero(np.diff(parent_fires.indptr) >= min_firings)
    if len(parents) == 0:
        raise ValueError(
            f"no latent of the narrow autoencoder fires on {min_firings} rows; lower min_firings"
        )
    sizes = np.diff(child_fires.indptr)
    shared = (parent_fires[:, parents].T @ child_fires).tocsr()
    members, covered = [], np.zeros(len(parents))
    for i, parent in enumerate(parents):
        entries = slice(shared.indptr[i], shared.indptr[i + 1])
        latents, together = shared.indices[entries], shared.data[entries]
        own = parent_fires.indices[parent_fires.indptr[parent] : parent_fires.indptr[parent + 1]]
        share = together / len(own)
        young = latents[(together >= inside * sizes[latents]) & (share >= part) & (share <= most)]
        members.append(young)
        if len(young):
            covered[i] = np.isin(own, child_fires[:, young].indices).mean()
    return Splitting(parents, tuple(members), covered)


@dataclass(frozen=True)
class Absorption:
    """Absorption of one class.

    main: the latent whose firings match the class best, on the rows of choice; f1, recall: of that, there.
    found: rows of the class that the probe recognises. missed: those on which the main latent is silent.
    absorbed: missed rows on which a more specific latent writes most of the class's direction.
    absorbers: how many different latents do so.
    """

    main: int
    f1: float
    recall: float
    found: int
    missed: int
    absorbed: int
    absorbers: int

    @property
    def rate(self) -> float:
        """absorbed / found, NaN where the probe finds nothing."""
        return self.absorbed / self.found if self.found else float("nan")


def main_latent(codes: csr_array, label: np.ndarray) -> tuple[int, float, float]:
    """The latent whose firings match the rows of a class best, by F1; with that F1 and its recall.

    codes: (N, M). label: bool (N,).
    """
    fires = _fires(codes)
    hits = fires.T @ label.astype(np.int64)
    f1 = 2 * hits / np.maximum(np.diff(fires.indptr) + label.sum(), 1)
    main = int(f1.argmax())
    return main, float(f1[main]), float(hits[main] / max(label.sum(), 1))


def absorption(
    sae: SparseAutoencoder,
    chosen_on: tuple[csr_array, np.ndarray],
    codes: csr_array,
    label: np.ndarray,
    recognised: np.ndarray,
    direction: Tensor,
    *,
    others: csr_array | None = None,
    precise: float = 0.8,
    min_firings: int = 10,
) -> Absorption:
    """Measure how much of a class its main latent has lost to more specific latents.

    Other latents are *specific* if, on the rows of choice, at least ``precise`` of their firings are in the
    class, they fire on ``min_firings`` rows or more and on fewer than the main latent. A row of the class
    that the probe recognises is *missed* if the main latent is silent, and *absorbed* if in addition the
    latent that contributes most to the probe's score, a_j z_j (v_j · direction), is specific.

    chosen_on: codes (N₀, M) and label (N₀,) of the rows on which main and specific latents are chosen.
    codes: (N, M) of other rows, times |a|, with their label and whether the probe ``recognised`` them, (N,).
    direction: (d,) of the probe (:func:`sae_experiments.probes.ridge_probes`).
    others: (N, M) codes of the latents beside the main one, if not those in ``codes``: for the null,
        :func:`sae_lib.metrics.reading.scattered` ones, with which a specific latent is there by chance.

    Chanin et al. ablate each latent and ask by how much; as the score is linear, the contribution is that
    effect exactly. Their margin over the second latent and their threshold on the cosine are left out; that
    the absorber must be specific is ours.
    """
    if codes.shape[0] != len(label) or label.shape != recognised.shape:
        raise ValueError(f"{codes.shape[0]} rows of codes, {len(label)} labels; need equal numbers")
    before, label_before = chosen_on
    main, f1, recall = main_latent(before, label_before)
    fires = _fires(before)
    firings = np.diff(fires.indptr)
    pure = fires.T @ label_before.astype(np.int64) >= precise * firings
    specific = pure & (firings >= min_firings) & (firings < firings[main])
    found = np.flatnonzero(label & recognised)
    silent = codes[found][:, [main]].toarray().ravel() == 0
    # codes hold |a|; directions turn a row round where a is negative
    writes = (sae.directions @ direction.to(sae.weight)).detach().cpu().numpy()
    # silent on every row that is looked at
    writes[main] = 0
    others, absorbers = codes if others is None else others, []
    for row in found[silent]:
        entries = slice(others.indptr[row], others.indptr[row + 1])
        latents = others.indices[entries]
        effect = others.data[entries] * writes[latents]
        if len(latents) and effect.max() > 0 and specific[latents[effect.argmax()]]:
            absorbers.append(int(latents[effect.argmax()]))
    return Absorption(
        main, f1, recall, len(found), int(silent.sum()), len(absorbers), len(set(absorbers))
    )  # fmt: skip


def _fires(codes: csr_array) -> csc_array:
    """Firings (N, M) as whole numbers, by latent."""
    columns = csc_array(codes)
    return csc_array((np.ones(columns.nnz, dtype=np.int64), columns.indices, columns.indptr), columns.shape)

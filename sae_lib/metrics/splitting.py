"""Feature splitting and absorption: how latents change when there is room for more of them.

*Splitting*: several latents of a wider autoencoder share the firings of one of a narrower. *Absorption*
(Chanin et al. 2024, arXiv 2409.14507): a latent that stands for a class is silent on some of its members,
because a latent for just those members has taken over the direction. Codes are sparse tables (N, M) on the
same N rows, from :func:`sae_lib.metrics.reading.code_table`; the null for both is
:func:`sae_lib.metrics.reading.scattered`.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csc_array, csr_array
from torch import Tensor

from sae_lib.checks import cosine
from sae_lib.metrics.recovery import Latents, cosines, directions
from sae_lib.sae import SparseAutoencoder


def near_latents(narrow: Latents, wide: Latents, threshold: float = 0.5) -> np.ndarray:
    """Count for each latent of ``narrow`` those of ``wide`` with a cosine above ``threshold``: (m,).

    >>> from sae_lib.metrics.splitting import near_latents
    >>> near_latents(torch.eye(2), torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.0, 1.0]]))
    array([2, 1])

    Cosines are those of decoder rows. Given the same autoencoder twice, a latent finds itself too.
    """
    cosine(threshold=threshold)
    return (cosines(wide, directions(narrow)) > threshold).sum(dim=1).cpu().numpy()


@dataclass(frozen=True)
class Splitting:
    """How latents of a narrow autoencoder split in a wide one.

    Attributes:
        parents: (p,), narrow latents with enough firings; the others are left out.
        members: For each parent the wide latents that are its children.
        covered: (p,), share of the parent's firings on which at least one child fires.
    """

    parents: np.ndarray
    members: tuple[np.ndarray, ...]
    covered: np.ndarray

    @property
    def children(self) -> np.ndarray:
        """Number of children of each parent, (p,)."""
        return np.array([len(children) for children in self.members])

    def split(self, covered: float = 0.5) -> np.ndarray:
        """Return which parents (p,) split: at least two children, on at least this share of the firings."""
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
    fire, c ≥ inside · (firings of the child) and part ≤ c / (firings of the parent) ≤ most. These shares are
    this book's choice.

    Args:
        narrow: Codes (N, m).
        wide: Codes (N, M) of the same rows.
        inside: Least share of the child's firings that the parent shares.
        part: Least share of the parent's firings that the child shares.
        most: Largest such share; a wide latent with more is the parent again, not a child.
        min_firings: Narrow latents that fire on fewer rows are left out.

    Raises:
        ValueError: Codes of different rows, impossible shares, or no narrow latent with enough firings.
    """
    if narrow.shape[0] != wide.shape[0]:
        raise ValueError(f"codes of {narrow.shape[0]} and of {wide.shape[0]} rows; need the same rows")
    if not (0 < inside <= 1 and 0 < part < most <= 1):
        raise ValueError(f"inside={inside}, part={part}, most={most}; expected all in (0, 1], part < most")
    parent_fires, child_fires = _fires(narrow), _fires(wide)
    parents = np.flatnonzero(np.diff(parent_fires.indptr) >= min_firings)
    if len(parents) == 0:
        raise ValueError(f"no latent of the narrow one fires on {min_firings} rows; lower min_firings")
    sizes = np.diff(child_fires.indptr)
    shared = (parent_fires[:, parents].T @ child_fires).tocsr()
    members, covered = [], np.zeros(len(parents))
    for i, parent in enumerate(parents):
        entries = slice(shared.indptr[i], shared.indptr[i + 1])
        latents, together = shared.indices[entries], shared.data[entries]
        rows = parent_fires.indices[parent_fires.indptr[parent] : parent_fires.indptr[parent + 1]]
        share = together / len(rows)
        children = latents[(together >= inside * sizes[latents]) & (share >= part) & (share <= most)]
        members.append(children)
        if len(children):
            covered[i] = np.isin(rows, child_fires[:, children].indices).mean()
    return Splitting(parents, tuple(members), covered)


@dataclass(frozen=True)
class Absorption:
    """Absorption of one class.

    Attributes:
        main: The latent whose firings match the class best on the selection rows.
        f1: Its F1 there.
        recall: Its recall there.
        found: Rows of the class that the probe recognises.
        missed: Those of them on which the main latent is silent.
        absorbed: Missed rows on which a more specific latent writes most of the class's direction.
        absorbers: Number of distinct latents that do so.
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
        """Share absorbed / found, NaN where the probe finds nothing."""
        return self.absorbed / self.found if self.found else float("nan")


def main_latent(codes: csr_array, label: np.ndarray) -> tuple[int, float, float]:
    """Return the latent whose firings in codes (N, M) match a class best by F1, that F1, and its recall.

    The label (N,) says which rows belong to the class, as bool.
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

    Another latent is *specific* if, on the selection rows, at least a share ``precise`` of its firings is in
    the class and it fires on ``min_firings`` rows or more, but fewer than the main latent. A row of the class
    that the probe recognises is *missed* if the main latent is silent, and *absorbed* if in addition the
    latent that contributes most to the probe's score, a_j z_j (v_j · direction), is specific.

    Chanin et al. measure the effect of ablating each latent; as the score is linear, the contribution is
    exactly that. Their margin over the second latent and their threshold on the cosine are left out; that
    the absorber must be specific is our addition.

    Args:
        sae: The autoencoder.
        chosen_on: Codes (N₀, M) and label (N₀,) of the selection rows, which decide on the latents.
        codes: (N, M), codes times |a| of other rows.
        label: Bool (N,), which of these belong to the class.
        recognised: Bool (N,), which of them the probe recognises.
        direction: (d,), the probe's direction (:func:`sae_experiments.probes.ridge_probes`).
        others: (N, M), codes of all but the main latent, if not ``codes``: for the null,
            :func:`sae_lib.metrics.reading.scattered` ones, where a specific latent fires by chance.
        precise: Least share of a specific latent's firings that are in the class.
        min_firings: Least number of firings of a specific latent.

    Raises:
        ValueError: Unequal numbers of rows.
    """
    if codes.shape[0] != len(label) or label.shape != recognised.shape:
        raise ValueError(f"{codes.shape[0]} rows of codes, {len(label)} labels; need equal numbers")
    selection, selection_label = chosen_on
    main, f1, recall = main_latent(selection, selection_label)
    fires = _fires(selection)
    firings = np.diff(fires.indptr)
    pure = fires.T @ selection_label.astype(np.int64) >= precise * firings
    specific = pure & (firings >= min_firings) & (firings < firings[main])
    members = np.flatnonzero(label & recognised)
    silent = codes[members][:, [main]].toarray().ravel() == 0
    # codes hold |a|; directions are reversed where a is negative
    writes = (sae.directions @ direction.to(sae.weight)).detach().cpu().numpy()
    # the main latent is silent on all rows below, though not in scattered codes
    writes[main] = 0
    others, absorbers = codes if others is None else others, []
    for row in members[silent]:
        entries = slice(others.indptr[row], others.indptr[row + 1])
        latents = others.indices[entries]
        effect = others.data[entries] * writes[latents]
        if len(latents) and effect.max() > 0 and specific[latents[effect.argmax()]]:
            absorbers.append(int(latents[effect.argmax()]))
    n_found, n_missed = len(members), int(silent.sum())
    return Absorption(main, f1, recall, n_found, n_missed, len(absorbers), len(set(absorbers)))


def _fires(codes: csr_array) -> csc_array:
    """Return firings (N, M) as integers, by latent."""
    columns = csc_array(codes)
    return csc_array((np.ones(columns.nnz, dtype=np.int64), columns.indices, columns.indptr), columns.shape)

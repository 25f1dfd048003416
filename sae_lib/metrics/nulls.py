"""p-values from draws of a null, and corrections for testing many latents at once (arXiv 2512.18792).

The null says how statistics come out where there is nothing to find: the complete search repeated on a
re-initialised model, or with permuted labels. A p-value is valid if, under the null, the observation and the
draws are exchangeable; so a draw must repeat *every* step of the search, choices included. Statistics are
larger where there is more to see; otherwise take the absolute value or flip the sign first.
"""

from collections.abc import Callable

import torch
from scipy.stats import false_discovery_control
from torch import Tensor

from sae_lib.randomness import generator

# p-values from R draws are multiples of 1/(R + 1), which binary fractions miss by a last digit
_ROUNDING = 1e-12


def empirical_p_values(
    observed: Tensor, null: Tensor, *, two_sided: bool = False, level: float = 0.05
) -> Tensor:
    """Return p = (1 + #{draws ≥ observed}) / (R + 1) of each statistic separately, (F,) float64.

    >>> from sae_lib.metrics import nulls
    >>> null = torch.linspace(-1, 1, 99)[:, None].expand(99, 2)
    >>> nulls.empirical_p_values(torch.tensor([2.5, 0.0]), null)
    tensor([0.0100, 0.5100], dtype=torch.float64)

    The observed value counts as one of the draws, which keeps P(p ≤ α) ≤ α at every α, ties included
    (Phipson & Smyth 2010). The number of statistics is not corrected for: see
    :func:`max_statistic_p_values` and :func:`benjamini_hochberg`.

    Args:
        observed: (F,).
        null: (R, F), column f draws of statistic f.
        two_sided: Return twice the smaller of the two tails, at most 1; the least p is then 2/(R + 1).
        level: Largest p that counts as a discovery; only checked against what R draws can attain.

    Raises:
        ValueError: Shapes that do not fit, NaN, or too few draws for the level.
    """
    observed, null = _checked(observed, null, level, tails=1 + two_sided)
    _same_width(observed, null)
    larger = _p(null >= observed)
    return (2 * torch.minimum(larger, _p(null <= observed))).clamp(max=1) if two_sided else larger


def max_statistic_p_values(
    observed: Tensor, null: Tensor, *, step_down: bool = False, level: float = 0.05
) -> Tensor:
    """Return family-wise p-values (F,), float64: each statistic against the *maxima* of the draws.

    Where there is nothing to find, the chance of any p ≤ α is at most α, however the statistics depend on
    each other: single-step maxT of Westfall & Young (1993), with the observed maximum counted as a draw. The
    statistics must share a scale, or the widest one alone sets the maxima.

    Args:
        observed: (F,).
        null: (R, F₀). A column need not be the same latent as in ``observed``, and a re-initialised model may
            have another number of them: only the maxima count, and maxima (R, 1) suffice.
        step_down: Compare the k-th largest statistic only with those not larger than itself, which finds
            more. Needs null (R, F) with a column for each statistic, and a null under which a statistic that
            shows nothing comes out as in the draws even where others show something.
        level: Largest p that counts as a discovery.
    """
    observed, null = _checked(observed, null, level)
    if not step_down:
        return _p(null.amax(dim=1, keepdim=True) >= observed)
    _same_width(observed, null)
    order = observed.argsort(descending=True, stable=True)
    # maxima over the k-th and all smaller statistics
    maxima = null[:, order].flip(1).cummax(dim=1).values.flip(1)
    p = torch.empty_like(observed)
    # a smaller statistic must not get a smaller p
    p[order] = _p(maxima >= observed[order]).cummax(dim=0).values
    return p


def studentised(observed: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """Scale observed (F,) and null (R, F), R ≥ 2, to standard deviations from the mean of *the others*.

    Each of the R + 1 values of a statistic, the observed one like every draw, is compared with mean and
    sample standard deviation of the other R: for the observed value this is the usual z-score. All are
    treated alike, so they stay exchangeable and p-values valid, as they would not if the draws were scaled
    by their own spread and the observed value by theirs. Where the others are all equal, the result is 0 if
    the value equals them, else ±∞.
    """
    observed, null = (torch.as_tensor(x, dtype=torch.float64).cpu() for x in (observed, null))
    if observed.ndim != 1 or null.ndim != 2 or len(null) < 2:
        raise ValueError(
            f"observed has shape {tuple(observed.shape)} and null {tuple(null.shape)}; "
            "expected (F,) and (R, F) with R at least 2"
        )
    _same_width(observed, null)
    values = torch.cat([observed[None], null])
    z = torch.empty_like(values)
    for i, row in enumerate(values):
        others = torch.cat([values[:i], values[i + 1 :]])
        gap = row - others.mean(dim=0)
        # equal values can differ from their mean by a rounding error
        gap = torch.where((others == row).all(dim=0), 0.0, gap)
        z[i] = torch.where(gap == 0, 0.0, gap / others.std(dim=0))
    return z[0], z[1:]


def benjamini_hochberg(p: Tensor) -> Tensor:
    """Return adjusted p-values (F,), float64: the least false-discovery rate at which each is a discovery.

    >>> from sae_lib.metrics import nulls
    >>> nulls.benjamini_hochberg(torch.tensor([0.01, 0.02, 0.9, 0.04]))
    tensor([0.0400, 0.0400, 0.9000, 0.0533], dtype=torch.float64)

    Benjamini & Hochberg (1995): on average, at most a share q of those with adjusted p ≤ q are false, for
    independent or positively dependent p-values. From R draws p is at least 1/(R + 1), so k discoveries among
    F need R + 1 ≥ F/(kq): 19 draws and q = 0.05 find all or nothing.
    """
    return torch.from_numpy(false_discovery_control(_probabilities(p).numpy()))


def discoveries(p: Tensor, level: float = 0.05) -> Tensor:
    """Return which p-values (F,), adjusted or not, are at most ``level``: bool; 3 · (1/60) counts as 0.05."""
    _check_level(level)
    return _probabilities(p) <= level * (1 + _ROUNDING)


def label_permutation_null(
    statistic: Callable[[Tensor, Tensor], Tensor],
    values: Tensor,
    labels: Tensor,
    draws: int,
    *,
    seed: int = 0,
) -> Tensor:
    """Draw the statistics with the labels in random order, R = ``draws`` times: (R, F) float64.

    This null only asks whether values and labels are related, not whether training made them so: an untrained
    model passes too. And rows must be exchangeable, which tokens of one document are not.

    Args:
        statistic: Maps values (N, …) and labels (N, …) to statistics (F,).
        values: (N, …).
        labels: (N, …).
        draws: Number of draws R.
        seed: Seed of the orders.

    Raises:
        ValueError: Unequal numbers of values and labels, fewer than 2 labels, or no draws.
    """
    if len(values) != len(labels) or len(labels) < 2 or draws < 1:
        raise ValueError(
            f"{len(values)} values, {len(labels)} labels, {draws} draws; "
            "expected as many labels as values, at least 2, and at least 1 draw"
        )
    stream = generator(seed, "label permutation")
    orders = (torch.randperm(len(labels), generator=stream).to(labels.device) for _ in range(draws))
    return torch.stack([statistic(values, labels[order]).double() for order in orders])


def _p(at_least_as_large: Tensor) -> Tensor:
    """Return (1 + count) / (R + 1) over the draws of a table (R, F)."""
    return (1 + at_least_as_large.sum(dim=0).double()) / (len(at_least_as_large) + 1)


def _checked(observed: Tensor, null: Tensor, level: float, tails: int = 1) -> tuple[Tensor, Tensor]:
    observed, null = (torch.as_tensor(x, dtype=torch.float64).cpu() for x in (observed, null))
    if observed.ndim != 1 or null.ndim != 2 or 0 in (*observed.shape, null.shape[1]):
        raise ValueError(
            f"observed has shape {tuple(observed.shape)} and null {tuple(null.shape)}; "
            "expected (F,) and (R, F), F at least 1"
        )
    for name, x in {"observed": observed, "null": null}.items():
        if x.isnan().any():
            place = tuple(x.isnan().nonzero()[0].tolist())
            raise ValueError(f"{name} is NaN at {place}; expected numbers")
    _check_level(level)
    if tails / (len(null) + 1) > level * (1 + _ROUNDING):
        needed = int(-(-tails // (level * (1 + _ROUNDING)))) - 1
        raise ValueError(
            f"{len(null)} draws of the null; the least p attainable is {tails}/(R + 1) = "
            f"{tails / (len(null) + 1):.3g}, above the level {level:g}: "
            f"expected at least {needed} draws"
        )
    return observed, null


def _same_width(observed: Tensor, null: Tensor) -> None:
    if null.shape[1] != len(observed):
        raise ValueError(f"null has {null.shape[1]} columns for {len(observed)} statistics; need equal")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected 0 < level < 1")


def _probabilities(p: Tensor) -> Tensor:
    p = torch.as_tensor(p, dtype=torch.float64).cpu()
    if p.ndim != 1 or len(p) == 0:
        raise ValueError(f"p has shape {tuple(p.shape)}; expected (F,), F at least 1")
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        f = int(wrong.nonzero()[0])
        raise ValueError(f"p[{f}] is {p[f].item():g}; expected 0 ≤ p ≤ 1")
    return p

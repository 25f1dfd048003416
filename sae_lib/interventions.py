"""Changing a language model's computation through the latents of an autoencoder.

``splice``, ``ablate`` and ``steer`` return context managers. While one is open, forward passes continue with
the changed activations; they may be nested, and the one opened last acts last. Rows are in the model's units.
Entries that an intervention does not change stay the same bit for bit.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from sae_lib.checks import indices, one_of
from sae_lib.language_models import LanguageModel, Site
from sae_lib.language_models.unembedding import through_final_norm
from sae_lib.sae import SparseAutoencoder

ERRORS = ("kept", "dropped")


def _chosen(sae: SparseAutoencoder, latents: Sequence[int] | Tensor) -> Tensor:
    """Return latents as an index (n,) on the autoencoder's device."""
    index = indices(latents, sae.width)
    if len(index.unique()) < len(index):
        raise ValueError(f"{len(index)} latents, {len(index.unique())} of them distinct; name each once")
    return index.to(sae.weight.device)


def _checked_width(model: LanguageModel, sae: SparseAutoencoder) -> None:
    if sae.d_in != model.d_model:
        raise ValueError(f"the autoencoder reads {sae.d_in} numbers a row, {model.name} has {model.d_model}")


def _at(
    model: LanguageModel,
    site: str | Site,
    sae: SparseAutoencoder,
    change: Callable[[Tensor], Tensor],
    positions: Tensor | None,
) -> AbstractContextManager[None]:
    """Replace the rows (N, d) at the positions by ``change(rows)``."""
    site = model.site(site)
    _checked_width(model, sae)

    def replace(acts: Tensor) -> Tensor:
        mask = torch.ones(acts.shape[:2], dtype=torch.bool) if positions is None else positions
        if mask.dtype != torch.bool or mask.shape != acts.shape[:2]:
            raise ValueError(
                f"positions have shape {tuple(mask.shape)} and type {mask.dtype}; "
                f"expected torch.bool {tuple(acts.shape[:2])}, one for every token"
            )
        mask, changed = mask.to(acts.device), acts.clone()
        changed[mask] = change(acts[mask]).to(acts.dtype)
        return changed

    return model.replaced(site, replace)


def _moved(rows: Tensor, shift: Tensor) -> Tensor:
    """Return rows + shift in the type of the rows, with unmoved entries as they are: −0.0 + 0.0 is 0.0."""
    return torch.where(shift == 0, rows, (rows + shift).to(rows.dtype))


def ablate(
    model: LanguageModel,
    site: str | Site,
    sae: SparseAutoencoder,
    latents: Sequence[int] | Tensor,
    value: float | Tensor = 0.0,
    *,
    error: str = "kept",
    positions: Tensor | None = None,
) -> AbstractContextManager[None]:
    """Set the codes of some latents to a value.

    >>> sae = sae_lib.SparseAutoencoder(model.d_model, width=64)
    >>> blocks = torch.arange(20).view(2, 10)
    >>> before = model.logits(blocks)
    >>> with sae_lib.interventions.ablate(model, "resid_post.1", sae, latents=[5, 7]):
    ...     changed = model.logits(blocks)
    >>> torch.equal(before, model.logits(blocks)), torch.equal(before, changed)
    (True, False)

    Args:
        model: The language model.
        site: Where to act.
        sae: An autoencoder of this site.
        latents: n distinct latents; none changes nothing.
        value: One number or one for each latent (n,), for instance their mean codes; above 0 clamps.
        error: ``"kept"`` moves the activation only by the change of these codes, which keeps its
            reconstruction error; ``"dropped"`` replaces it by the reconstruction from the changed codes.
        positions: Bool (B, T), where to act; by default everywhere.

    Raises:
        ValueError: A latent out of range or repeated, a value that is not finite, or another d.
    """
    index = _chosen(sae, latents)
    one_of("error", error, ERRORS)
    values = torch.as_tensor(value, dtype=sae.weight.dtype, device=sae.weight.device)
    if values.shape not in ((), index.shape) or not values.isfinite().all():
        raise ValueError(
            f"value has shape {tuple(values.shape)} and {int(values.isfinite().sum())} finite numbers; "
            f"expected finite numbers only, one or ({len(index)},)"
        )
    values = values.expand_as(index)

    def change(rows: Tensor) -> Tensor:
        x = rows.to(sae.weight.dtype)
        codes = sae.encode(x)
        if error == "dropped":
            codes = codes.index_copy(1, index, values.expand(len(codes), -1))
            return sae.decode(codes, like=x)
        shift = ((values - codes[:, index]) * sae.scale[index]) @ sae.decoder_rows[index]
        return _moved(rows, sae.normalisation.invert(shift, x))

    return _at(model, site, sae, change, positions)


def splice(
    model: LanguageModel,
    site: str | Site,
    sae: SparseAutoencoder,
    *,
    error: str = "dropped",
    positions: Tensor | None = None,
) -> AbstractContextManager[None]:
    """Replace the activations by their reconstruction; arguments as for :func:`ablate`.

    With ``error="kept"`` the error is added back and nothing changes, bit for bit.
    """
    return ablate(model, site, sae, [], error=error, positions=positions)


def steer(
    model: LanguageModel,
    site: str | Site,
    sae: SparseAutoencoder,
    latent: int,
    coefficient: float,
    *,
    positions: Tensor | None = None,
) -> AbstractContextManager[None]:
    """Add ``coefficient`` times the latent's unit decoder direction.

    >>> from sae_lib.metrics import predictions
    >>> sae = sae_lib.SparseAutoencoder(model.d_model, width=64)
    >>> blocks = torch.arange(20).view(2, 10)
    >>> push = sae_lib.interventions.steer(model, "resid_post.1", sae, latent=5, coefficient=4.0)
    >>> changes = predictions.next_token_changes(model, blocks, [push])
    >>> bool(changes.max() > 0 > changes.min())
    True

    Args:
        model: The language model.
        site: Where to act.
        sae: An autoencoder of this site.
        latent: The latent.
        coefficient: On the scale of the latent's own contribution a_m z_m, in normalised units. Undoing the
            normalisation divides the vector by its scale, or, where rows have unit norm, multiplies it by
            the norm of each row. 0 changes nothing, bit for bit.
        positions: Bool (B, T), where to act; by default everywhere.

    Raises:
        ValueError: A latent out of range, a coefficient that is not finite, or another d.
    """
    index = _chosen(sae, [latent])
    if not math.isfinite(coefficient):
        raise ValueError(f"coefficient is {coefficient}; expected a finite number")

    def change(rows: Tensor) -> Tensor:
        x = rows.to(sae.weight.dtype)
        shift = (coefficient * sae.decoder_rows[index]).expand_as(x)
        return _moved(rows, sae.normalisation.invert(shift, x))

    return _at(model, site, sae, change, positions)


@torch.no_grad()
def logit_weights(model: LanguageModel, sae: SparseAutoencoder, latents: Sequence[int] | Tensor) -> Tensor:
    """Return the direct effect of n latents' decoder directions on the logits: (n, vocabulary), float32.

    Unit directions pass through the linear part of the final norm and the unembedding. The norm's division by
    the length of the stream, one factor for all tokens, is left out, and so is any bias. Meant for
    autoencoders of the residual stream; the later the layer, the more informative.
    """
    index = _chosen(sae, latents)
    _checked_width(model, sae)
    directions = sae.decoder_rows[index].to(model.device, torch.float32)
    unembedding: Tensor = model.model.get_output_embeddings().weight
    return through_final_norm(model, directions) @ unembedding.float().T

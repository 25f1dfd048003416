"""The sparse autoencoder: encoder, gate, decoder (paper, section 2)."""

from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sae_lib import kernels
from sae_lib.checks import at_least, between, one_of
from sae_lib.normalisation import Normalisation
from sae_lib.randomness import generator

if TYPE_CHECKING:
    from sae_lib.kernels.screen import Screen

ACTIVATIONS = ("jumprelu", "relu", "threshold", "topk")


class SparseAutoencoder(nn.Module):
    """f(x) = Σ_m a_m v_m z_m + b_pre with z = gate(W (x − b_pre)).

    >>> sae = sae_lib.SparseAutoencoder(d_in=16, width=64, activation="topk", k=4)
    >>> codes = sae.encode(torch.eye(16))
    >>> codes.shape, codes.count_nonzero(dim=1).unique(), sae.decode(codes).shape
    (torch.Size([16, 64]), tensor([4]), torch.Size([16, 16]))

    The gate, with u = W (x − b_pre):

    * ``"jumprelu"``: z = u · 1(u + b > 0). The bias decides *whether* a latent fires, never how strongly.
    * ``"relu"``: z = max(0, u + b).
    * ``"threshold"``: z = y · 1(y > θ) with y = u + b. Bias and threshold are separate, as in JumpReLU, gated
      and BatchTopK autoencoders after training.
    * ``"topk"``: z = max(0, u + b) for the k largest entries of a row, 0 elsewhere.

    Rows of the decoder always have unit norm. A tied autoencoder decodes with its encoder rows (v = w),
    so these have unit norm too; an untied one keeps unit encoder rows unless ``free_encoder``.

    Args:
        d_in: Dimension d.
        width: Number of latents M.
        tied: Whether the encoder uses the decoder's rows.
        free_encoder: Whether the rows of an untied encoder may have any norm.
        activation: The gate.
        k: Latents a row of ``"topk"``; None for the other gates.
        normalisation: Scaling of the rows; by default none.
        seed: Seed of the initial weights.

    Attributes:
        weight: (M, d), encoder rows w_m.
        decoder: (M, d), decoder rows v_m; None when tied.
        scale: (M,), output scale a_m.
        bias: (M,), gate bias b_m; has no gradient unless a method turns it on.
        threshold: (M,), θ_m ≥ 0 of the ``"threshold"`` gate, without gradient; None for the others.
        pre_bias: (d,), input centre b_pre; has no gradient unless a method turns it on.
        metadata: Origin of the autoencoder, saved with it.
    """

    def __init__(
        self,
        d_in: int,
        width: int,
        *,
        tied: bool = True,
        free_encoder: bool = False,
        activation: str = "jumprelu",
        k: int | None = None,
        normalisation: Normalisation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        at_least(1, d_in=d_in, width=width)
        one_of("activation", activation, ACTIVATIONS)
        if (k is not None) != (activation == "topk"):
            raise ValueError(f"activation {activation!r} with k={k}; k belongs to 'topk' and to it alone")
        if k is not None:
            between(1, width, "the width", k=k)
        if tied and free_encoder:
            raise ValueError("a tied encoder has unit rows; free_encoder needs tied=False")
        self.d_in, self.width = d_in, width
        self.activation, self.k = activation, k
        self.free_encoder = free_encoder
        self.normalisation = normalisation or Normalisation()
        self.metadata: dict[str, Any] = {}
        self._screen: Screen | None = None
        rows = normalize(torch.randn(width, d_in, generator=generator(seed, "weights")), dim=1)
        self.weight = nn.Parameter(rows)
        self.decoder = None if tied else nn.Parameter(rows.clone())
        self.scale = nn.Parameter(torch.ones(width), requires_grad=not free_encoder)
        self.bias = nn.Parameter(torch.zeros(width), requires_grad=False)
        threshold = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.threshold = threshold if activation == "threshold" else None
        self.pre_bias = nn.Parameter(torch.zeros(d_in), requires_grad=False)

    @property
    def tied(self) -> bool:
        """Whether encoder and decoder share their rows."""
        return self.decoder is None

    @property
    def decoder_rows(self) -> Tensor:
        """Unit directions (M, d) that the latents write, for comparison with a dictionary of features."""
        return self.weight if self.decoder is None else self.decoder

    @property
    def directions(self) -> Tensor:
        """Direction in which each latent pushes when it fires, (M, d): decoder row, reversed if a_m < 0."""
        sign = torch.where(self.scale < 0, -1.0, 1.0)
        return (self.decoder_rows * sign[:, None]).detach()

    def magnitudes(self, rows: Tensor) -> Tensor:
        """Return codes times |a_m|, (…, M), of rows (…, d): how far each latent pushes when normalised."""
        return self.encode(rows) * self.scale.abs()

    def project(self, rows: Tensor) -> Tensor:
        """Return u = W (x − b_pre), (…, M), the pre-activations without the bias, of rows (…, d)."""
        return self.project_normalised(self._normalised(rows))

    def _normalised(self, rows: Tensor) -> Tensor:
        if rows.ndim == 0 or rows.shape[-1] != self.d_in:
            raise ValueError(
                f"rows have shape {tuple(rows.shape)}; this autoencoder expects (…, {self.d_in}), "
                f"{self.d_in} numbers a row"
            )
        if rows.dtype != self.weight.dtype:
            dtype = self.weight.dtype
            raise ValueError(f"rows are {rows.dtype}, the autoencoder is {dtype}; pass rows.to({dtype})")
        return self.normalisation.apply(rows)

    def project_normalised(self, x: Tensor) -> Tensor:
        """Return u, (B, M), of rows that are normalised already, as training batches (B, d) are."""
        # as a bias of the product: the gradient of b_pre then costs a vector, not a third product
        return torch.nn.functional.linear(x, self.weight, -(self.weight @ self.pre_bias))

    def gate(self, projection: Tensor) -> Tensor:
        """Return the codes z (B, M) of the projection u (B, M)."""
        if self.activation == "jumprelu":
            # u > −b rather than u + b > 0: the same floats without a temporary
            return torch.where(projection > -self.bias, projection, 0.0)
        if self.threshold is not None:
            y = projection + self.bias
            return torch.where(y > self.threshold, y, 0.0)
        y = torch.relu(projection + self.bias)
        if self.k is None:
            return y
        top = y.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(y).scatter(-1, top.indices, top.values)

    def encode(self, rows: Tensor) -> Tensor:
        """Return the codes z (…, M) of rows (…, d) as the model has them.

        Many rows at once are screened where that is faster (:mod:`sae_lib.kernels.screen`), unless a gradient
        is needed: the same codes, up to the order of their sums.

        Raises:
            ValueError: The rows have another width or dtype than the autoencoder.
        """
        x = self._normalised(rows)
        differentiable = torch.is_grad_enabled() and (
            x.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        )
        screen = None if differentiable else kernels.screen_for(x.reshape(-1, self.d_in), self.width)
        if screen is None:
            return self.gate(self.project_normalised(x))
        # the first one has the rounded weights already
        self._screen = screen = self._screen or screen
        blocks = [self._screened(screen, block) for block in x.reshape(-1, self.d_in).split(4096)]
        return torch.cat(blocks).view(*x.shape[:-1], self.width)

    @torch.no_grad()
    def _screened(self, screen: "Screen", x: Tensor) -> Tensor:
        """Return the codes (B, M) of normalised rows (B, d)."""
        centred = x - self.pre_bias
        if self.k is None:
            bar = -self.bias if self.threshold is None else self.threshold - self.bias
            entries = screen.above(centred, self.weight, bar)
        else:
            entries = screen.top(centred, self.weight, self.bias, self.k)
        if entries is None:
            return self.gate(self.project_normalised(x))
        rows, latents, u = entries
        z = u if self.activation == "jumprelu" else torch.relu(u + self.bias[latents])
        return x.new_zeros(len(x), self.width).index_put((rows, latents), z)

    def decode(self, codes: Tensor, *, like: Tensor | None = None) -> Tensor:
        """Return the reconstruction (…, d), in the model's units, of codes (…, M).

        Args:
            codes: As :meth:`encode` returns them.
            like: The rows (…, d) that the codes belong to. Needed where each row is normalised to unit norm,
                since its codes then say nothing of its length.

        Raises:
            ValueError: The codes have another width than the autoencoder, or ``like`` is missing.
        """
        if codes.ndim == 0 or codes.shape[-1] != self.width:
            raise ValueError(f"codes have shape {tuple(codes.shape)}; expected (…, {self.width})")
        if self.normalisation.kind == "unit" and like is None:
            raise ValueError(
                "this autoencoder normalises every row to unit norm; pass the rows themselves to restore "
                "their lengths: decode(codes, like=rows)"
            )
        written = self.decode_normalised(codes)
        return self.normalisation.invert(written, written if like is None else like)

    def decode_normalised(self, codes: Tensor) -> Tensor:
        """Return the reconstruction (B, d) of codes (B, M) in normalised units, as training compares it."""
        return (codes * self.scale) @ self.decoder_rows + self.pre_bias

    def reconstruct(self, rows: Tensor) -> Tensor:
        """Return the reconstruction (…, d) of rows (…, d), both as the model has them."""
        return self.decode(self.encode(rows), like=rows)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the reconstruction, as :meth:`reconstruct` does."""
        return self.reconstruct(rows)

    @property
    def unit_rows(self) -> list[nn.Parameter]:
        """Those of encoder and decoder rows that must have unit norm."""
        unit = [] if self.free_encoder else [self.weight]
        return unit if self.decoder is None else [*unit, self.decoder]

    @torch.no_grad()
    def unit_rows_(self, parameters: list[nn.Parameter] | None = None) -> None:
        """Rescale the rows that must have unit norm, or some parameters' (after an optimiser step)."""
        for rows in self.unit_rows if parameters is None else parameters:
            # as torch.nn.functional.normalize, in place: without a second copy of the weights
            rows.div_(rows.norm(dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def centre_(self, sample: Tensor) -> None:
        """Set b_pre to the mean of normalised rows (N, d), and make it trainable."""
        self.pre_bias.copy_(sample.mean(dim=0))
        self.pre_bias.requires_grad_(True)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write ``cfg.json`` and ``sae_weights.safetensors`` in SAELens's layout; see ``sae_lib.storage``.

        >>> sae = sae_lib.SparseAutoencoder(d_in=16, width=64)
        >>> sae.save("my_sae")
        >>> torch.allclose(sae_lib.load("my_sae").encode(torch.eye(16)), sae.encode(torch.eye(16)))
        True
        """
        from sae_lib.storage import save

        save(self, folder)

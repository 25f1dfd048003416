"""A method at work: one pass over a batch, and what follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_lib import kernels
from sae_lib.distributed import ALONE, World
from sae_lib.kernels import Operations, RowSum, SparseCodes, Support
from sae_lib.sae import SparseAutoencoder

if TYPE_CHECKING:
    from sae_lib.kernels.screen import Screen


class Step(NamedTuple):
    """One forward pass.

    Attributes:
        loss: Scalar to differentiate.
        projection: u = W (x − b_pre), (B, M), without gradient; None after a sparse pass.
        codes: Codes (B, M), without gradient; after a sparse pass only the entries that may be nonzero.
        error: Reconstruction minus input, (B, d), without gradient.
        peak: Largest u of each latent, (M,), if the pass computes it.
        world: Processes that share the batch; ``codes`` and the others hold the rows of this one.
        candidates: Entries that a screen computed exactly; None without one.
    """

    loss: Tensor
    projection: Tensor | None
    codes: Tensor | SparseCodes
    error: Tensor
    peak: Tensor | None = None
    world: World = ALONE
    candidates: int | None = None

    @property
    def rows(self) -> int:
        """Number of rows in the full batch."""
        return self.world.batch(len(self.error))

    def fired(self) -> Tensor:
        """Count the rows of the full batch that each latent fired on (M,)."""
        return self.world.sum(self.codes.count_nonzero(dim=0))

    def highest(self) -> Tensor:
        """Return the largest u of each latent over the full batch (M,)."""
        peak = self.peak if self.projection is None else self.projection.amax(dim=0)
        assert peak is not None
        return self.world.max(peak)


class Trainer(nn.Module):
    """A method at work on one autoencoder.

    Its buffers are its counters, its parameters are trained with those of the autoencoder; checkpoints hold
    both.

    Attributes:
        density: Share of the codes that a sparse pass looks at, or would have looked at, in the last step, 1
            before the first; measured in runs large enough for such a pass. It decides how the next step is
            made, in all processes by their mean, and is a buffer so that a resumed run decides alike.
        world: Processes that train together.
        screen: Screen of the encoder product, if one serves the batches; found in the first sparse step.
        sums: Where the gradients of rows are collected in screened steps, if the caller can use them so.
    """

    density: Tensor
    world: World = ALONE
    screen: Screen | None = None
    sums: list[tuple[Tensor, RowSum]] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("density", torch.ones((), dtype=torch.float64))
        self._looked_for_screen = False

    def forward(self, sae: SparseAutoencoder, x: Tensor) -> Step:
        """Make one pass over a batch x (B, d): sparse where that is possible and faster, otherwise dense."""
        # of an average process, as all have to come to the same answer
        rows = self.world.batch(len(x)) / self.world.size
        if not (self.has_sparse_pass(sae) and kernels.supported(x, rows * sae.width)):
            return self.dense(sae, x)
        step = self._sparse(sae, x) if kernels.pays(x, self.density.item()) else self.dense(sae, x)
        self.density.copy_(self.world.average(self.entries(sae, step) / (len(x) * sae.width)))
        return step

    def _sparse(self, sae: SparseAutoencoder, x: Tensor) -> Step:
        if not self._looked_for_screen:
            self.screen, self._looked_for_screen = kernels.screen_for(x, sae.width), True
        if self.screen is None:
            return self.sparse(sae, x)
        return self.sparse(sae, x, self.screen)._replace(candidates=self.screen.candidates)

    def entries(self, sae: SparseAutoencoder, step: Step) -> Tensor:
        """Count the entries that a sparse pass would look at in place of this one: here the nonzero codes."""
        return step.codes.count_nonzero()

    def dense(self, sae: SparseAutoencoder, x: Tensor) -> Step:
        """Make one pass over a batch x (B, d) with all (B, M) codes, from the three parts below."""
        projection = sae.project_normalised(x)
        codes = self.codes(sae, projection)
        errors = self.errors(sae, codes, x)
        return Step(self.loss(codes, errors), projection.detach(), codes.detach(), errors[-1].detach())

    def has_sparse_pass(self, sae: SparseAutoencoder) -> bool:
        """Tell whether :meth:`sparse` equals :meth:`dense`; a subclass that changes one of them decides."""
        return False

    def sparse(self, sae: SparseAutoencoder, x: Tensor, backend: Operations | None = None) -> Step:
        """Make the same pass, working only where codes are nonzero; equal up to rounding.

        ``backend`` is by default that of the device of x.
        """
        sparse_pass, u, peak = self.begin_pass(sae, x, backend)
        codes = SparseCodes(self.values(sae, u, sparse_pass.support), sparse_pass.support)
        errors = self.sparse_errors(sae, sparse_pass, codes, x)
        return Step(self.loss(codes, errors), None, codes.detach(), errors[-1].detach(), peak)

    def begin_pass(
        self, sae: SparseAutoencoder, x: Tensor, backend: Operations | None = None
    ) -> tuple[kernels.Pass, Tensor, Tensor | None]:
        """Begin a sparse pass over x (B, d): the pass, u (E,) on its support, and peaks (M,) if known."""
        backend = backend or kernels.backend(x.device)
        centred = x - sae.pre_bias.detach()
        peak, support, u = self.select(sae, backend, centred)
        sums = self.sums if backend is self.screen else None
        sparse_pass = kernels.Pass(backend, support, tied=sae.tied, sums=sums)
        return sparse_pass, sparse_pass.encode(u, centred, sae.weight, sae.pre_bias), peak

    @torch.no_grad()
    def select(
        self, sae: SparseAutoencoder, backend: Operations, centred: Tensor
    ) -> tuple[Tensor | None, Support, Tensor]:
        """Find entries that may be nonzero for x − b_pre (B, d): peaks (M,) if known, support, u (E,)."""
        bar = -sae.bias if sae.threshold is None else sae.threshold - sae.bias
        return backend.scan(centred, sae.weight, bar)

    def sparse_errors(
        self, sae: SparseAutoencoder, sparse_pass: kernels.Pass, codes: SparseCodes, x: Tensor
    ) -> list[Tensor]:
        """Return the same as :meth:`errors`, from sparse codes."""
        scaled = codes.values * sparse_pass.support.at_latents(sae.scale)
        return [sparse_pass.decode(scaled, sae.decoder_rows) + (sae.pre_bias - x)]

    def values(self, sae: SparseAutoencoder, u: Tensor, support: Support) -> Tensor:
        """Return the codes (E,) from u (E,) on the support."""
        return u if sae.activation == "jumprelu" else u + support.at_latents(sae.bias)

    def codes(self, sae: SparseAutoencoder, projection: Tensor) -> Tensor:
        """Return the codes z (B, M) while training, from the projection u (B, M); here those of the gate."""
        return sae.gate(projection)

    def errors(self, sae: SparseAutoencoder, codes: Tensor, x: Tensor) -> list[Tensor]:
        """Return the errors (B, d) that the loss squares; the last, here the only one, of all latents."""
        return [sae.decode_normalised(codes) - x]

    def loss(self, codes: Tensor | SparseCodes, errors: list[Tensor]) -> Tensor:
        """Return ½‖error‖², averaged over the batch and summed over ``errors``: the loss of the paper."""
        first, *others = (0.5 * error.square().sum(dim=1).mean() for error in errors)
        return sum(others, start=first)

    def after_step(self, sae: SparseAutoencoder, step: Step, number: int) -> None:
        """Do what the method does after a step of the optimiser; here nothing.

        Args:
            sae: Autoencoder, its weights moved.
            step: Forward pass of that step, from before the weights moved.
            number: Number of the step, from 1.
        """

    def metrics(self, sae: SparseAutoencoder) -> dict[str, Any]:
        """Return extra entries of the log, as plain JSON values; by default none."""
        return {}

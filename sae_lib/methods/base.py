"""Interface of a way of enforcing sparsity: its settings and its trainer."""

from __future__ import annotations

import inspect
import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import Field, asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sae_lib import kernels
from sae_lib.distributed import ALONE, World
from sae_lib.kernels import Operations, RowSum, SparseCodes, Support
from sae_lib.normalisation import Normalisation
from sae_lib.sae import SparseAutoencoder

if TYPE_CHECKING:
    from sae_lib.kernels.screen import Screen

# metadata of the fields that several methods have
CENTRE = {"help": "Start b_pre at the mean of the data and train it; otherwise b_pre stays 0."}
COEFFICIENT = {"help": "λ, the weight of the penalty, at least 0."}
TIED = {"help": "Share encoder and decoder rows."}


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


def adamw(
    parameters: list[nn.Parameter],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.AdamW:
    """Return AdamW whose decay acts on rows of weights (M, d), not on biases, scales and thresholds (M,)."""
    # neighbours of a kind together, so that parameters keep their numbers in a checkpoint
    groups = [
        {"params": list(part), "weight_decay": weight_decay if rows else 0.0}
        for rows, part in itertools.groupby(parameters, key=lambda parameter: parameter.ndim > 1)
    ]
    # fused: one pass over the weights instead of five
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


@dataclass(frozen=True)
class Method(ABC):
    """Settings of one method. Instances are immutable and compare by value.

    Each setting is a field whose metadata hold its description, ``field(default=…, metadata={"help": "…"})``:
    the source of ``sae train --help``, of the reference and of the class's docstring.
    """

    name: ClassVar[str]
    # description of each setting, inherited ones first
    helps: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Append the settings to the docstring."""
        super().__init_subclass__(**options)
        fields = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        cls.helps = cls.helps | {
            name: f.metadata["help"] for name, f in fields.items() if "help" in f.metadata
        }
        if cls.__doc__ and cls.helps:
            entries = [f"    {name}: {text}" for name, text in cls.helps.items()]
            cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__), "", "Attributes:", *entries])

    @abstractmethod
    def build(self, d_in: int, width: int, *, normalisation: Normalisation, seed: int) -> SparseAutoencoder:
        """Return a new autoencoder of the kind that this method trains."""

    @abstractmethod
    def start(self, sae: SparseAutoencoder, sample: Tensor) -> Trainer:
        """Prepare ``sae`` for training on data like the normalised rows ``sample`` (N, d)."""

    def learning_rate(self, d_in: int) -> float:
        """Return the default peak learning rate."""
        return 3e-3

    def batch_size(self, chosen: int | None, n_rows: int | None) -> int:
        """Return the rows of a batch: as chosen, or 512.

        Args:
            chosen: By the caller; None for the default.
            n_rows: Rows of the data; None where they have no end.

        Raises:
            ValueError: The method cannot work with the choice.
        """
        return 512 if chosen is None else chosen

    def optimiser(
        self, parameters: list[nn.Parameter], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """Return the optimiser, :func:`adamw`. The training loop sets ``lr`` before every step."""
        return adamw(parameters, lr, weight_decay)

    @property
    def data_parallel(self) -> bool:
        """Whether several processes may divide the rows of a batch; by default not.

        They may if loss and gradient are means over rows, and ``after_step`` sees the rows only through the
        :class:`Step`.
        """
        return False

    def describe(self) -> dict[str, Any]:
        """Return name and settings as plain values."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Baseline(Method):
    """Common part of the other methods: biases trained by the gradient, free encoder rows."""

    centre: bool = field(default=False, kw_only=True, metadata=CENTRE)

    @abstractmethod
    def kind(self) -> dict[str, Any]:
        """Return arguments of :class:`SparseAutoencoder` that set what is trained, ``activation`` first."""

    def build(self, d_in: int, width: int, *, normalisation: Normalisation, seed: int) -> SparseAutoencoder:
        """Build it untied, unless ``kind`` differs; free encoder rows start equal to the decoder's."""
        kind = {"tied": False, "free_encoder": True} | self.kind()
        return SparseAutoencoder(d_in, width, normalisation=normalisation, seed=seed, **kind)

    def prepare(self, sae: SparseAutoencoder, sample: Tensor) -> None:
        """Turn on the gradients of the biases; centre on the sample (N, d) if asked to."""
        sae.bias.requires_grad_(True)
        if self.centre:
            sae.centre_(sample)


@dataclass(frozen=True)
class Penalised(Baseline):
    """Common part of the baselines with a penalty: its coefficient."""

    coefficient: float = field(default=0.03, metadata=COEFFICIENT)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coefficient) and self.coefficient >= 0):
            raise ValueError(f"coefficient is {self.coefficient}; expected a finite number, at least 0")


class MomentumFree(Penalised):
    """Common part of JumpReLU and the gated autoencoder: bias and threshold apart, Adam without momentum."""

    def kind(self) -> dict[str, Any]:
        """Choose a gate with bias and threshold."""
        return {"activation": "threshold"}

    def optimiser(
        self, parameters: list[nn.Parameter], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """Return AdamW with β₁ = 0, β₂ = 0.999, as both were published."""
        return adamw(parameters, lr, weight_decay, betas=(0.0, 0.999))

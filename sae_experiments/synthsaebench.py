"""SynthSAEBench (Chanin & Garriga-Alonso 2026, arXiv 2602.14687) through ``sae-lens``: an outside benchmark.

The data, the training of SAELens's autoencoders and every score are SAELens's own code (extra ``bench``,
6.54 or later). This module connects the two libraries::

    data = Benchmark(n_features=1024, d_in=128, roots=8)              # a source of batches for sae_lib.train
    sae, _ = sae_lib.train(data, method, width=256, seed=0)
    data.score(save(sae, "runs/ours"))                                # scored by SAELens after reloading
    train_sae_lens(data, "batchtopk", {"k": 6}, folder="runs/theirs", width=256, steps=2000)
    data.score("runs/theirs")

The published tensors lie on a hub. :class:`Benchmark` rebuilds the model from its published configuration
(experiments/create_synth_bench_16k_model.py of decoderesearch/synth-sae-bench-experiments): the same
distribution, not the same tensors.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from sae_lib.checks import at_least
from sae_lib.normalisation import Normalisation
from sae_lib.randomness import generator

# the published recipe of the benchmark's own autoencoders; Benchmark() is the published model
PUBLISHED_TRAINING = {"width": 4096, "batch_size": 1024, "lr": 3e-4, "steps": 200_000_000 // 1024}
# rows from which a scale is fitted
SCALE_ROWS = 8192


def _sae_lens() -> Any:
    """Import the package when first needed: it takes seconds."""
    os.environ.setdefault("WANDB_MODE", "disabled")
    try:
        import sae_lens
        import sae_lens.synthetic
    except ImportError as error:
        raise ImportError("SynthSAEBench needs sae-lens; install it: pip install sae_lib[bench]") from error
    return sae_lens


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep SAELens's log messages and progress bars out of notebooks."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w", encoding="utf8") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Seed the global generators, from which SAELens draws, for one block and put them back."""
    with torch.random.fork_rng():
        torch.manual_seed(generator(seed, *purpose).initial_seed())
        yield


@dataclass(frozen=True)
class Benchmark:
    """The benchmark's data as a :class:`sae_lib.BatchSource`; the defaults are SynthSAEBench-16k.

    Attributes:
        n_features: Number n of true features.
        d_in: Dimension d.
        roots: Trees of the hierarchy, each of 85 features (depth 3, four children a parent, siblings exclude
            each other, a child fires only with its parent); 0 leaves the features without hierarchy.
        correlation: Scale of the low-rank correlation (rank 25) between firings; 0 leaves them independent.
        bias: Length of the constant added to every row.
        seed: Of the model: dictionary, hierarchy, magnitudes. Not of the batches.
        normalise: ``"none"``, ``"unit"`` or ``"scale"``, of the batches served; see :class:`Normalisation`.
        distinct: Number of distinct batches, kept in memory, after which the first comes again. None draws
            new rows without end, as the published protocol does.
        device: Holds the model and draws the rows.
    """

    n_features: int = 16_384
    d_in: int = 768
    roots: int = 128
    correlation: float = 0.1
    bias: float = 0.5
    seed: int = 42
    normalise: str = "none"
    distinct: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least(1, n_features=self.n_features, d_in=self.d_in)
        if not 0 <= 85 * self.roots <= self.n_features:
            raise ValueError(
                f"roots is {self.roots}, each of 85 features; expected 0 … {self.n_features // 85} "
                f"for {self.n_features} features"
            )
        if not 0 <= self.correlation < 1:
            raise ValueError(f"correlation is {self.correlation}; expected at least 0, below 1")
        if not self.bias >= 0:
            raise ValueError(f"bias is {self.bias}; expected a length, at least 0")
        if self.distinct is not None and self.distinct < 1:
            raise ValueError(f"distinct is {self.distinct}; expected at least 1 batch, or None")

    def config(self) -> Any:
        """Return SAELens's ``SyntheticModelConfig``."""
        s = _sae_lens().synthetic
        hierarchy = s.HierarchyConfig(
            total_root_nodes=max(self.roots, 1),
            branching_factor=4,
            max_depth=3,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
            scale_children_by_parent=True,
        )
        return s.SyntheticModelConfig(
            num_features=self.n_features,
            hidden_dim=self.d_in,
            firing_probability=s.ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
            hierarchy=hierarchy if self.roots else None,
            orthogonalization=s.OrthogonalizationConfig(num_steps=100, lr=3e-4),
            correlation=(
                s.LowRankCorrelationConfig(rank=25, correlation_scale=self.correlation)
                if self.correlation
                else None
            ),
            mean_firing_magnitudes=s.LinearMagnitudeConfig(start=5.0, end=4.0),
            std_firing_magnitudes=s.FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
            bias=self.bias,
            seed=self.seed,
        )

    @property
    def model(self) -> Any:
        """SAELens's ``SyntheticModel``; built once in a process."""
        return _model(replace(self, normalise="none", distinct=None))

    @property
    def dictionary(self) -> Tensor:
        """True features (n, d), unit rows."""
        return self.model.feature_dict.feature_vectors.detach()

    def sample(self, rows: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Draw raw rows (rows, d), bias included, and their coefficients (rows, n), float32."""
        with _seeded(seed, "synthsaebench", "sample"), torch.no_grad():
            coefficients = self.model.activation_generator.sample(rows)
            return self.model.feature_dict(coefficients), coefficients

    @cached_property
    def normalisation(self) -> Normalisation:
        """The scaling of the batches."""
        if self.normalise != "scale":
            return Normalisation(self.normalise)
        return Normalisation.fit("scale", self.sample(SCALE_ROWS)[0])

    def batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[Tensor]:
        """Yield training batches (batch_size, d); see :class:`sae_lib.BatchSource`."""
        number = start
        while True:
            if self.distinct is None:
                x = _draw(self.model, batch_size, seed, number)
            else:
                raw = replace(self, normalise="none", distinct=None)
                x = _kept(raw, batch_size, seed, number % self.distinct)
            yield self.normalisation.apply(x)
            number += 1

    def describe(self) -> dict[str, Any]:
        """Return the settings."""
        return {"source": "SynthSAEBench", **asdict(self)}

    def score(self, folder: str | PathLike[str], *, rows: int = 50_000, seed: int = 0) -> dict[str, float]:
        """Score a saved autoencoder by SAELens's own evaluation of what it loads from ``folder``.

        Returns:
            ``mcc``, mean |cosine| after the best one-to-one matching of latents and true features; ``f1``,
            ``precision``, ``recall`` of a latent as a detector of the feature nearest to it, mean over
            latents; ``uniqueness``, distinct nearest features over the number of latents;
            ``explained_variance``, R² of the reconstruction; ``l0``, mean number of active latents a row;
            ``dead``, share of latents silent on all ``rows``; ``true_l0``, active true features a row.
        """
        from sae_lens.synthetic import eval_sae_on_synthetic_data

        sae = _sae_lens().SAE.load_from_disk(str(folder), device=self.device)
        model = self.model
        with _seeded(seed, "synthsaebench", "score"):
            evaluation = eval_sae_on_synthetic_data(
                sae, model.feature_dict, model.activation_generator, num_samples=rows, batch_size=1024
            )
        return {
            "mcc": evaluation.mcc,
            "f1": evaluation.classification.f1_score,
            "precision": evaluation.classification.precision,
            "recall": evaluation.classification.recall,
            "uniqueness": evaluation.uniqueness,
            "explained_variance": evaluation.explained_variance,
            "l0": evaluation.sae_l0,
            "dead": evaluation.dead_latents / sae.cfg.d_sae,
            "true_l0": evaluation.true_l0,
        }


@lru_cache(maxsize=4)
def _model(benchmark: Benchmark) -> Any:
    # building the model makes its dictionary more orthogonal by gradient descent
    with _quiet(), torch.enable_grad():
        return _sae_lens().synthetic.SyntheticModel(benchmark.config(), device=benchmark.device)


@torch.no_grad()
def _draw(model: Any, batch_size: int, seed: int, number: int) -> Tensor:
    with _seeded(seed, "synthsaebench", batch_size, number):
        return model.sample(batch_size)


@lru_cache(maxsize=1024)
def _kept(benchmark: Benchmark, batch_size: int, seed: int, number: int) -> Tensor:
    return _draw(benchmark.model, batch_size, seed, number)


def train_sae_lens(
    data: Benchmark,
    architecture: str,
    settings: dict[str, Any],
    *,
    folder: str | PathLike[str],
    width: int,
    steps: int,
    batch_size: int = 1024,
    lr: float = 3e-4,
    seed: int = 0,
    own_rows: bool = False,
    trainer: dict[str, Any] | None = None,
) -> None:
    """Train one of SAELens's autoencoders with SAELens's trainer and save it to ``folder``.

    This calls the trainer of SAELens's ``SyntheticSAERunner`` with the runner's configuration and defaults.
    Only the rows differ: they are the batches that ``sae_lib.train`` sees for this seed, but raw.

    Args:
        data: The benchmark.
        architecture: SAELens's name: ``"topk"``, ``"batchtopk"``, ``"matryoshka_batchtopk"``, ``"jumprelu"``…
        settings: Fields of that architecture's training configuration, such as ``{"k": 25}``.
        folder: Where it is saved.
        width: Number of latents.
        steps: Of training; 0 saves the untrained autoencoder.
        batch_size: Rows of a step.
        lr: Learning rate.
        seed: Of the weights and of the order of batches.
        own_rows: Take the rows from SAELens's own iterator instead; the outcome then equals the runner's, bit
            for bit, for the same state of PyTorch's generators.
        trainer: Further fields of ``SyntheticSAERunnerConfig``, such as ``{"lr_decay_steps": 500}``.

    Raises:
        ValueError: Unknown architecture.
    """
    config, sae = _fresh(data, architecture, settings, width, seed, own_rows)
    s = _sae_lens().synthetic
    runner = s.SyntheticSAERunnerConfig(
        synthetic_model=data.config(), sae=config, training_samples=steps * batch_size,
        batch_size=batch_size, lr=lr, device=data.device,
        logger=_sae_lens().LoggingConfig(log_to_wandb=False), **(trainer or {}),
    )  # fmt: skip
    # raw rows: SAELens scales them itself where told to
    rows: Iterator[Tensor] = replace(data, normalise="none").batches(batch_size, seed=seed)
    if own_rows:
        rows = s.SyntheticActivationIterator(
            data.model.feature_dict, data.model.activation_generator, batch_size
        )
    if steps:
        from sae_lens.training.sae_trainer import SAETrainer

        with _quiet():
            sae = SAETrainer(cfg=runner.to_sae_trainer_config(), sae=sae, data_provider=rows).fit()
    with _quiet():
        sae.save_inference_model(str(folder))


def _fresh(
    data: Benchmark, architecture: str, settings: dict[str, Any], width: int, seed: int, own_rows: bool
) -> tuple[Any, Any]:
    """Return configuration and initial weights of one of SAELens's autoencoders."""
    _sae_lens()
    from sae_lens.registry import get_sae_training_class

    try:
        sae_class, config_class = get_sae_training_class(architecture)
    except KeyError as error:
        raise ValueError(f"architecture is {architecture!r}; SAELens knows no such training class") from error
    config = config_class(d_in=data.d_in, d_sae=width, device=data.device, **settings)
    if own_rows:
        return config, sae_class(config)
    with _seeded(seed, "synthsaebench", "weights"):
        return config, sae_class(config)

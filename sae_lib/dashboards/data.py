"""The contents of feature dashboards, as plain data that goes to JSON and back."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Self

from sae_lib.files.atomic import parsed, replacing, short

FORMAT = "sae_lib.dashboards.1"


@dataclass(frozen=True)
class Context:
    """A stretch of text around one row, with the activation of one latent on each of its tokens.

    Attributes:
        row: Index of the row in its store.
        position: Index of the row's own token among the tokens.
        tokens: Token ids, in order.
        activations: One for each token; None where the store has no row for it.
        quantile: None for one of the strongest; else the quantile of the latent's activations it represents.
    """

    row: int
    position: int
    tokens: tuple[int, ...]
    activations: tuple[float | None, ...]
    quantile: float | None = None

    @property
    def activation(self) -> float:
        """The latent's activation on the row itself."""
        value = self.activations[self.position]
        assert value is not None
        return value


@dataclass(frozen=True)
class Latent:
    """The dashboard of one latent.

    An activation is |a_m| z_m: the length of the latent's contribution to the reconstruction, in normalised
    units.

    Attributes:
        number: Index of the latent in the autoencoder.
        firings: Number of rows on which its code is not 0.
        firing_rate: Their share of all rows.
        peak: Largest activation, 0 if it never fires.
        mean: Mean activation where it fires, 0 if it never does.
        histogram: Firings in equal bins between 0 and the peak.
        purity: Share of ``token`` in a random sample of its firings (all, if few); None if it never fires.
        token: Most common token there; None if it never fires.
        top: Strongest contexts, each from another block, the strongest first.
        lower: Contexts from lower quantiles of its activations, the highest quantile first.
        promoted: (token id, logit weight), the largest first.
        demoted: (token id, logit weight), the smallest first.
        nearest: (latent, cosine of the decoder directions), the nearest first.
        together: (latent, φ of their firings), the strongest association first.
    """

    number: int
    firings: int
    firing_rate: float
    peak: float
    mean: float
    histogram: tuple[int, ...]
    purity: float | None
    token: int | None
    top: tuple[Context, ...]
    lower: tuple[Context, ...]
    promoted: tuple[tuple[int, float], ...]
    demoted: tuple[tuple[int, float], ...]
    nearest: tuple[tuple[int, float], ...]
    together: tuple[tuple[int, float], ...]

    @property
    def full_shade(self) -> float:
        """The activation with full shading: that of the median of the strongest contexts.

        At the peak, a single outlier would make everything else pale.
        """
        return self.top[len(self.top) // 2].activation if self.top else self.peak

    @property
    def token_ids(self) -> list[int]:
        """All token ids that the dashboard shows, repeated as often as it shows them."""
        shown = [token for context in (*self.top, *self.lower) for token in context.tokens]
        shown += (token for token, _ in (*self.promoted, *self.demoted))
        return shown if self.token is None else [*shown, self.token]


@dataclass(frozen=True)
class Dashboards:
    """Dashboards of some latents of one autoencoder, measured on one store.

    Attributes:
        name: Name of the autoencoder, for headings.
        width: Number of all latents of the autoencoder, M.
        n_rows: Number of rows measured.
        n_alive: Number of latents that fire on any of them.
        chosen: How the latents were chosen, in words.
        latents: The dashboards.
        tokens: Text of every token id that occurs, as :func:`sae_lib.dashboards.tokens.texts` returns it.
        origin: Origin of the rows, from the store's manifest: model, site, corpus and its licence.
    """

    name: str
    width: int
    n_rows: int
    n_alive: int
    chosen: str
    latents: tuple[Latent, ...]
    tokens: dict[int, str]
    origin: dict[str, Any]

    def __len__(self) -> int:
        return len(self.latents)

    def __iter__(self) -> Iterator[Latent]:
        return iter(self.latents)

    def __getitem__(self, number: int) -> Latent:
        """Return the dashboard of latent ``number`` of the autoencoder; KeyError if it was not measured."""
        try:
            return self._by_number[number]
        except KeyError:
            raise KeyError(f"latent {number} was not measured; {len(self)} others were") from None

    @cached_property
    def _by_number(self) -> dict[int, Latent]:
        return {latent.number: latent for latent in self.latents}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the dashboards that :meth:`to_dict` wrote, with or without a detour through JSON.

        Raises:
            ValueError: Values of another format, incomplete or damaged.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            version = values.get("format") if isinstance(values, dict) else values
            raise ValueError(f"no dashboards: format is {short(version)}; expected {FORMAT!r}")
        try:
            settings = {field.name: values[field.name] for field in fields(cls)}
            settings["latents"] = tuple(_latent(latent) for latent in settings["latents"])
            settings["tokens"] = {int(token): text for token, text in settings["tokens"].items()}
            return cls(**settings)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"dashboards incomplete or damaged ({error!r}); measure them again") from None

    def save(self, path: str | PathLike[str]) -> None:
        """Write a JSON file, completely or not at all."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read the dashboards that :meth:`save` wrote; a ValueError names the file."""
        values = parsed(Path(path).read_text(encoding="utf-8"), path)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _latent(values: dict[str, Any]) -> Latent:
    pairs = {
        name: tuple((int(number), float(value)) for number, value in values[name])
        for name in ("promoted", "demoted", "nearest", "together")
    }
    contexts = {
        name: tuple(
            Context(**c | {"tokens": tuple(c["tokens"]), "activations": tuple(c["activations"])})
            for c in values[name]
        )
        for name in ("top", "lower")
    }
    return Latent(**values | pairs | contexts | {"histogram": tuple(values["histogram"])})

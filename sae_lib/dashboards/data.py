"""What a feature dashboard says, as plain data that goes to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from sae_lib.files.atomic import parsed, replacing, short

FORMAT = "sae_lib.dashboards.1"


@dataclass(frozen=True)
class Context:
    """A stretch of text around one row, with what one latent does on every token of it.

    row: number of the row in its store.
    position: which of the tokens is the row's own.
    tokens: token ids, in order.
    activations: one for each token; None where the store holds no row for it.
    quantile: None for one of the strongest; else the quantile of the latent's activations it stands for.
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

    An activation is |a_m| z_m: the length of what the latent adds to the reconstruction, in normalised units.

    number: which latent of the autoencoder.
    firings: rows on which its code is not 0; firing_rate: their share of all rows.
    peak, mean: of its activations where it fires; 0 if it never does.
    histogram: firings in equal bins between 0 and the peak.
    purity: share of a random sample of its firings (all, if few) that falls on ``token``, the commonest token
        there. Both None if it never fires.
    top: its strongest contexts, each from another block, the strongest first.
    lower: contexts from lower quantiles of its activations, the highest quantile first.
    promoted, demoted: (token id, logit weight), the most extreme first.
    nearest: (latent, cosine of the decoder directions), the nearest first.
    together: (latent, φ of their firings), those that fire with it most beyond chance first.
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
        """The activation that is shaded in full: the middle one of the strongest contexts.

        Not the peak, beside which all else is pale where one row sticks out.
        """
        return self.top[len(self.top) // 2].activation if self.top else self.peak


@dataclass(frozen=True)
class Dashboards:
    """Dashboards of some latents of one autoencoder, measured on one store.

    name: of the autoencoder, for headings.
    width: M, all latents of the autoencoder; n_rows: rows measured; n_alive: latents that fire on any.
    chosen: how the latents were chosen, in words.
    tokens: text of every token id that occurs, as :func:`sae_lib.dashboards.tokens.texts` gives it.
    origin: where the rows come from, from the store's manifest; model, site, corpus and its licence.
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
        """The dashboard of latent ``number`` of the autoencoder. Raises KeyError if it was not measured."""
        try:
            return self._by_number[number]
        except KeyError:
            raise KeyError(f"latent {number} was not measured; there are {len(self)} others here") from None

    @cached_property
    def _by_number(self) -> dict[int, Latent]:
        return {latent.number: latent for latent in self.latents}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Dashboards:
        """What :meth:`to_dict` gave, also after a detour through JSON. Raises ValueError for other things."""
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else values
            raise ValueError(f"no dashboards: format is {short(found)}; expected {FORMAT!r}")
        try:
            parts = {field.name: values[field.name] for field in fields(cls)}
            parts["latents"] = tuple(_latent(latent) for latent in parts["latents"])
            parts["tokens"] = {int(token): text for token, text in parts["tokens"].items()}
            return cls(**parts)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"dashboards are incomplete or damaged ({error!r}); measure them again"
            ) from None

    def save(self, path: str | PathLike[str]) -> None:
        """Write a JSON file, whole or not at all."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Dashboards:
        """Read what :meth:`save` wrote. Raises ValueError naming the file."""
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

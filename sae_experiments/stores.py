"""Harvest the stores of the larger experiments into runs/stores, or go on with a harvest that was stopped.

    python -m sae_experiments.stores --list
    python -m sae_experiments.stores code-14
    python -m sae_experiments.stores code-held-out wikipedia-held-out --folder /data/stores

The rows are float16, from SmolLM2-135M in bfloat16 on blocks of 256 tokens, spread over documents, without
rows that are too long. Code is that of the projects in requirements.lock which are installed; no project,
and no article of Wikipedia, is on both sides. Stores of several layers are read in one pass, a folder each.
"""

from __future__ import annotations

import argparse
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from sae_lib import activations, corpora, language_models
from sae_lib.activations.store import ActivationStore
from sae_lib.corpora.packages import canonical
from sae_lib.language_models import LanguageModel

ROOT = Path(__file__).resolve().parents[1]
FOLDER, LOCK = ROOT / "runs" / "stores", ROOT / "requirements.lock"
# what every store has in common
SETTINGS: dict[str, Any] = {
    "block_size": 256,
    "dtype": "float16",
    "spread": True,
    "max_norm": 3.0,
    "skip_first": 4,
}
# of the groups of documents: projects, and articles
HELD_OUT = {"code": 0.1, "wikipedia": 0.025}


@dataclass(frozen=True)
class Plan:
    """A store, or one for each of several layers.

    Attributes:
        corpus: ``"code"`` or ``"wikipedia"``.
        part: ``"train"`` or ``"held out"``.
        layers: Whose ``resid_post`` is read.
        n_tokens: Rows, those dropped for their length among them; fewer if the text ends.
    """

    corpus: str
    part: str
    layers: tuple[int, ...]
    n_tokens: int

    def folders(self, name: str, folder: Path = FOLDER) -> dict[str, Path]:
        """Return the folder of each site: that of the store itself if there is one layer."""
        if len(self.layers) == 1:
            return {f"resid_post.{self.layers[0]}": folder / name}
        return {f"resid_post.{layer}": folder / name / f"resid_post.{layer}" for layer in self.layers}

    @property
    def gigabytes(self) -> float:
        """Size of the files, at most: a number takes two bytes, a token and a place four each."""
        return len(self.layers) * self.n_tokens * (2 * 576 + 8) / 1e9


# a hundredth above the round number, for the rows that are too long
PLANS = {
    "code-14": Plan("code", "train", (14,), 6_060_000),
    "code-2-14-26": Plan("code", "train", (2, 14, 26), 1_111_000),
    "wikipedia-2-14-26": Plan("wikipedia", "train", (2, 14, 26), 1_111_000),
    "code-held-out": Plan("code", "held out", (2, 14, 26), 132_000),
    "wikipedia-held-out": Plan("wikipedia", "held out", (2, 14, 26), 132_000),
}


def locked_projects(lock: Path = LOCK) -> list[str]:
    """Return the installed projects among those of a lock file: others in the environment do not count."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    named = {canonical(match[0]) for line in lines if (match := re.match(r"[A-Za-z0-9][\w.-]*", line))}
    return sorted(named & {canonical(found.metadata["Name"]) for found in distributions()})


def texts(corpus: str) -> dict[str, corpora.Corpus]:
    """Return the documents to train on and those held out, of ``"code"`` or ``"wikipedia"``."""
    documents = (
        corpora.installed_packages(locked_projects()) if corpus == "code" else corpora.wikipedia_summaries()
    )
    return dict(zip(("train", "held out"), documents.split(HELD_OUT[corpus]), strict=True))


def harvest(
    name: str, folder: Path = FOLDER, *, model: LanguageModel | None = None, plans: Mapping[str, Plan] = PLANS
) -> dict[str, ActivationStore]:
    """Harvest the stores of one name, or finish them; return them by site.

    Raises:
        ValueError: No such name, or too little room on the disk; the message says what there is.
    """
    if name not in plans:
        raise ValueError(f"no store {name!r}; expected one of {', '.join(plans)}")
    plan = plans[name]
    folders = plan.folders(name, folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = sum(file.stat().st_size for file in (folder / name).rglob("*.safetensors"))
    free = shutil.disk_usage(folder).free
    if free < (needed := plan.gigabytes * 1e9 - written):
        raise ValueError(
            f"{folder} has {free / 1e9:.1f} GB free; expected {needed / 1e9:.1f} for {name}: make room, or "
            "choose another disk with --folder"
        )
    model = model or language_models.load(dtype=torch.bfloat16)
    text = texts(plan.corpus)[plan.part]
    with warnings.catch_warnings():
        # that the text has ended: stores of all the text are planned so
        warnings.filterwarnings("ignore", message=r"corpus .* gave")
        return activations.harvest_sites(model, text, folders, n_tokens=plan.n_tokens, **SETTINGS)


def described(stores: Mapping[str, ActivationStore]) -> list[str]:
    """Return a line on each store."""
    return [
        f"{site}: {store.n_rows:,} rows of {store.manifest.n_documents:,} documents; dropped by "
        f"norm {store.manifest.dropped_by_norm:,}, by position {store.manifest.dropped_by_position:,}; "
        f"{store.folder}"
        for site, store in stores.items()
    ]


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sae_experiments.stores",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PLANS))
    parser.add_argument("--list", action="store_true", help="list the stores; the default without a name")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where they are kept: %(default)s")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """List the stores, or harvest some, one after the other."""
    options = parser().parse_args(arguments)
    if options.list or not options.names:
        for name, plan in PLANS.items():
            layers = ", ".join(map(str, plan.layers))
            print(
                f"{name:20}{plan.n_tokens:>10,} rows a layer, {plan.part} {plan.corpus}, "
                f"layers {layers}, at most {plan.gigabytes:.1f} GB"
            )
        return
    if unknown := [name for name in options.names if name not in PLANS]:
        raise SystemExit(f"no store {', '.join(unknown)}; expected some of {', '.join(PLANS)}")
    for name in options.names:
        print(name, flush=True)
        print(*described(harvest(name, options.folder)), sep="\n", flush=True)


if __name__ == "__main__":
    main()

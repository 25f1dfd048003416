"""``sae dashboard``: texts on which each latent fires, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sae_lib import storage
from sae_lib.cli.common import Device, ModelDtype, Seed, ShowConfig, say, show


def dashboard(
    autoencoder: Annotated[Path, typer.Argument(help="Folder with cfg.json and sae_weights.safetensors.")],
    data: Annotated[Path, typer.Option(help="Folder of an activation store of the same site.")],
    out: Annotated[Path, typer.Option(help="HTML file to write; one that exists is replaced.")],
    model: Annotated[
        str | None, typer.Option(help="As for harvest.  [default: the name that the store gives]")
    ] = None,
    model_dtype: ModelDtype = "float32",
    latents: Annotated[
        str, typer.Option(help="How many, drawn at random from those that fire; or all.")
    ] = "1000",
    name: Annotated[str | None, typer.Option(help="Heading.  [default: the folder's name]")] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    show_config: ShowConfig = False,
) -> None:
    """Write the feature dashboards of an autoencoder: one searchable HTML file that needs no network.

    About 1.5 kB a latent. The texts shown are the store's; the page names their licence.

    For example:

      sae dashboard runs/code-gba --data runs/code --out runs/code-gba.html

      sae dashboard runs/code-gba --data runs/code --out all.html --latents all --name "GBA, layer 10"
    """
    if latents != "all" and not (latents.isascii() and latents.isdigit() and int(latents)):
        raise ValueError(f"--latents is {latents!r}; expected a whole number above 0, or all")
    settings: dict[str, Any] = {
        "latents": None if latents == "all" else int(latents), "name": name or autoencoder.resolve().name,
        "seed": seed,
    }  # fmt: skip
    if show_config:
        show({
            "autoencoder": str(autoencoder), "data": str(data), "out": str(out), "model": model,
            "model_dtype": model_dtype, **settings
        })  # fmt: skip
        return
    if out.is_dir():
        raise ValueError(f"--out is {out}, a folder; expected an HTML file")
    from sae_lib import dashboards, language_models
    from sae_lib.activations import ActivationStore

    try:
        sae, store = storage.load(autoencoder, device=device), ActivationStore.open(data)
        lm = language_models.load(
            model or store.describe()["model"]["name"], device=device, dtype=model_dtype
        )
        board = dashboards.measure(sae, lm, store, **settings)
        dashboards.html(board, out, seed=seed)
    except KeyboardInterrupt:
        typer.echo(f"sae: stopped; {out} is as it was before", err=True)
        raise typer.Exit(130) from None
    say(f"{len(board):,} dashboards in {out}, {out.stat().st_size / 1e6:.1f} MB")

"""``sae harvest``: activations of a language model, to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sae_lib import distributed
from sae_lib.cli.common import (
    DEFAULT_SITE,
    CorpusName,
    Device,
    Model,
    ModelDtype,
    Seed,
    ShowConfig,
    Split,
    Timeout,
    corpus_part,
    say,
    show,
    stopping_cleanly,
)

Kind = Literal["none", "scale", "unit"]


def harvest(
    out: Annotated[Path, typer.Argument(help="Folder of the store; an unfinished one is continued.")],
    model: Model = "smollm2-135m",
    model_dtype: ModelDtype = "float32",
    corpus: CorpusName = "standard-library",
    site: Annotated[
        list[str], typer.Option(help="Where to read; several, read in one pass, go to OUT/SITE each.")
    ] = [DEFAULT_SITE],  # noqa: B006
    tokens: Annotated[int, typer.Option(min=1, help="Rows to store, one a token.")] = 150_000,
    split: Annotated[Split, typer.Option(help="Documents to read; evaluate uses held-out.")] = "train",
    normalisation: Annotated[Kind, typer.Option(help="Scaling of rows.")] = "scale",
    block_size: Annotated[int, typer.Option(min=2, help="Tokens a block.")] = 256,
    spread: Annotated[
        bool, typer.Option(help="Read an excerpt of every document before a second of any.")
    ] = True,
    skip_first: Annotated[int, typer.Option(min=0, help="First tokens of a block that give no row.")] = 4,
    max_norm: Annotated[
        float, typer.Option(min=0, help="Drop rows longer than this many times the median; 0: none.")
    ] = 3.0,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32, on disk.")] = "float16",
    device: Device = "cpu",
    seed: Seed = 0,
    timeout: Timeout = distributed.TIMEOUT,
    show_config: ShowConfig = False,
) -> None:
    """Run a language model over a corpus and store its activations.

    For example:

      sae harvest runs/code --site resid_post.10 --tokens 150000

      sae harvest runs/code --site resid_post.2 --site resid_post.14  (runs/code/resid_post.2, …)

    Stop it at any time; the same command continues from there.

    On several GPUs or machines:  torchrun --nproc-per-node 8 -m sae_lib harvest runs/code --device cuda
    """
    settings: dict[str, Any] = {
        "n_tokens": tokens, "normalisation": normalisation, "block_size": block_size, "dtype": dtype,
        "spread": spread, "skip_first": skip_first, "max_norm": max_norm or None, "seed": seed,
    }  # fmt: skip
    if show_config:
        show(
            {
                "out": str(out),
                "model": model,
                "model_dtype": model_dtype,
                "corpus": corpus,
                "split": split,
                "sites": site,
                **settings,
            }
        )
        return
    from sae_lib import activations, language_models

    distributed.join(timeout)
    documents = corpus_part(corpus, split)
    folders = {site[0]: out} if len(site) == 1 else {place: out / place for place in site}
    with stopping_cleanly():
        lm = language_models.load(model, device=str(distributed.local(device)), dtype=model_dtype)
        stores = activations.harvest_sites(lm, documents, folders, **settings)
    for store in stores.values():
        long = f" ({dropped:,} longer ones dropped)" if (dropped := store.manifest.dropped_by_norm) else ""
        say(f"{store.n_rows:,} rows of dimension {store.d_in}{long} in {store.folder}")

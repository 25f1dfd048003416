"""``sae harvest``: activations of a language model, to disk."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sae_lib import distributed
from sae_lib.cli import common

Kind = Literal["none", "scale", "unit"]


def harvest(
    out: Annotated[Path, typer.Argument(help="Folder of the store; an unfinished one is continued.")],
    model: common.Model = "smollm2-135m",
    corpus: common.CorpusName = "standard-library",
    site: Annotated[
        list[str], typer.Option(help="Where to read; several, read in one pass, go to OUT/SITE each.")
    ] = [common.DEFAULT_SITE],  # noqa: B006
    tokens: Annotated[int, typer.Option(min=1, help="Rows to store, one a token.")] = 150_000,
    split: Annotated[common.Split, typer.Option(help="Documents to read; evaluate uses held-out.")] = "train",
    normalisation: Annotated[Kind, typer.Option(help="Scaling of rows.")] = "scale",
    block_size: Annotated[int, typer.Option(min=2, help="Tokens a block.")] = 256,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32, on disk.")] = "float16",
    device: common.Device = "cpu",
    seed: common.Seed = 0,
    timeout: common.Timeout = distributed.TIMEOUT,
    show_config: common.ShowConfig = False,
) -> None:
    """Run a language model over a corpus and store its activations.

    For example:

      sae harvest runs/code --site resid_post.10 --tokens 150000

      sae harvest runs/code --site resid_post.2 --site resid_post.14  (runs/code/resid_post.2, …)

    Stop it at any time; the same command continues from there.

    On several GPUs or machines:  torchrun --nproc-per-node 8 -m sae_lib harvest runs/code --device cuda
    """
    settings: dict[str, Any] = {
        "n_tokens": tokens, "normalisation": normalisation, "block_size": block_size,
        "dtype": dtype, "seed": seed,
    }  # fmt: skip
    if show_config:
        common.show({
            "out": str(out), "model": model, "corpus": corpus, "split": split, "sites": site, **settings
        })  # fmt: skip
        return
    from sae_lib import activations, language_models

    distributed.join(timeout)
    documents = common.corpus_part(corpus, split)
    folders = {site[0]: out} if len(site) == 1 else {place: out / place for place in site}
    with common.stopping_cleanly():
        lm = language_models.load(model, device=str(distributed.local(device)))
        stores = activations.harvest_sites(lm, documents, folders, **settings)
    for store in stores.values():
        common.say(f"{store.n_rows:,} rows of dimension {store.d_in} in {store.folder}")

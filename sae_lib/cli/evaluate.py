"""``sae evaluate``: measurements of an autoencoder, as JSON."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sae_lib import metrics, storage, synthetic
from sae_lib.cli.common import (
    CorpusName,
    DataSeed,
    Device,
    Model,
    ModelDtype,
    Seed,
    ShowConfig,
    corpus_part,
    show,
    source_of,
)
from sae_lib.sae import SparseAutoencoder


def evaluate(
    autoencoder: Annotated[Path, typer.Argument(help="Folder with cfg.json and sae_weights.safetensors.")],
    data: Annotated[str | None, typer.Option(help="A preset or a store's folder.")] = None,
    n_rows: Annotated[int, typer.Option(min=1, help="Rows of the data to measure on.")] = 20_000,
    faithfulness_tokens: Annotated[
        int, typer.Option(min=0, help="Held-out tokens on which to splice it into the model; 0 for none.")
    ] = 0,
    model: Model = "smollm2-135m",
    model_dtype: ModelDtype = "float32",
    corpus: CorpusName = "standard-library",
    site: Annotated[
        str | None, typer.Option(help="Where to splice it in.  [default: where it was trained]")
    ] = None,
    block_size: Annotated[int, typer.Option(min=2, help="Tokens a block.")] = 256,
    device: Device = "cpu",
    seed: Seed = 0,
    data_seed: DataSeed = 0,
    show_config: ShowConfig = False,
) -> None:
    """Measure an autoencoder; prints JSON.

    On any data: nmse, explained variance, l0, dead share. On a preset also recovery of the true features.
    With --faithfulness-tokens: cross-entropy and divergence recovered on held-out documents. For an
    autoencoder that was not trained here give the model, and the site if the file does not name it.

    For example:

      sae evaluate runs/toy --data imbalanced

      sae evaluate runs/code-gba --data runs/code --faithfulness-tokens 8000

      sae evaluate downloads/other --model folder --site resid_post.7 --faithfulness-tokens 8000
    """
    if show_config:
        show({
            "autoencoder": str(autoencoder), "data": data, "n_rows": n_rows, "model": model,
            "model_dtype": model_dtype, "corpus": corpus,
            "faithfulness_tokens": faithfulness_tokens, "site": site, "block_size": block_size, "seed": seed,
        })  # fmt: skip
        return
    if data is None and not faithfulness_tokens:
        raise ValueError("nothing to measure; give --data, --faithfulness-tokens or both")
    sae = storage.load(autoencoder, device=device)
    result: dict[str, Any] = {}
    if data is not None:
        result |= _on_data(sae, data, data_seed, n_rows, seed)
    if faithfulness_tokens:
        result |= _on_model(
            sae, model, model_dtype, corpus, site, faithfulness_tokens, block_size, device, seed
        )
    show(result)


def _on_data(sae: SparseAutoencoder, data: str, data_seed: int, n_rows: int, seed: int) -> dict[str, Any]:
    if data == "stream":
        raise ValueError("evaluate takes a preset or a store; use --faithfulness-tokens for the model itself")
    source = source_of(data, data_seed, model="", model_dtype="float32", corpus="", site="", device="cpu")
    if source.d_in != sae.d_in:
        raise ValueError(f"the autoencoder has d_in {sae.d_in}, the data {source.d_in}; they must be equal")
    if isinstance(source, synthetic.SyntheticData):
        rows = source.rows[:n_rows]
    else:
        from sae_lib.activations import ActivationStore

        assert isinstance(source, ActivationStore)
        rows = source.sample(min(n_rows, source.n_rows), seed=seed)
    scores = metrics.reconstruction(sae, rows)
    result: dict[str, Any] = {
        "nmse": scores.nmse, "explained_variance": scores.explained_variance, "l0": scores.l0,
        "dead_share": scores.dead_share, "n_rows": scores.n_rows,
    }  # fmt: skip
    if isinstance(source, synthetic.SyntheticData):
        result |= {
            f"frr_{tau}": metrics.feature_recovery_rate(sae, source.dictionary, tau) for tau in (0.8, 0.9)
        }
        result["mcc"] = metrics.mean_correlation_coefficient(sae, source.dictionary)
    return result


def _on_model(
    sae: SparseAutoencoder, model: str, model_dtype: str, corpus: str, site: str | None, tokens: int,
    block_size: int, device: str, seed: int,
) -> dict[str, Any]:  # fmt: skip
    from sae_lib import corpora, language_models
    from sae_lib.metrics.faithfulness import faithfulness

    origin = sae.metadata.get("training", {}).get("data", {})
    foreign = sae.metadata.get(storage.FOREIGN, {})
    where = site or origin.get("site") or foreign.get("hook_name")
    if not isinstance(where, str):
        raise ValueError(
            "this autoencoder does not say which site of a model it reads; name it with --site, such as "
            "--site resid_post.10"
        )
    try:
        place = language_models.Site.parse(where)
    except ValueError as error:
        raise ValueError(f"{error}; name the site with --site") from None
    lm = language_models.load(model, device=device, dtype=model_dtype)
    if lm.d_model != sae.d_in:
        made_on = origin.get("model", {}).get("name") or foreign.get("model_name", "one it does not name")
        raise ValueError(
            f"the autoencoder reads {sae.d_in} numbers a row, {lm.name} has {lm.d_model}; the model it "
            f"was trained on is {made_on}: name that with --model"
        )
    skip = origin.get("skip_first", 2)
    held_out = corpus_part(corpus, "held-out")
    spread = origin.get("spread", False)
    blocks = corpora.token_blocks(held_out, lm.tokenizer, block_size, seed=seed, spread=spread)
    tokens_held_out = torch.stack(list(itertools.islice(blocks, -(-tokens // block_size))))
    scores = faithfulness(lm, {"sae": sae}, place, tokens_held_out, skip_first=skip)["sae"]
    return {
        **dataclasses.asdict(scores), "ce_recovered": scores.ce_recovered, "kl_recovered": scores.kl_recovered
    }  # fmt: skip

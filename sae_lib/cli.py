"""The command line: ``sae harvest``, ``sae train``, ``sae evaluate``, ``sae dashboard``."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from sae_lib import distributed, metrics, storage, synthetic
from sae_lib.batches import BatchSource
from sae_lib.cli_methods import MethodName, method_of, with_method_options
from sae_lib.distributed import LostProcessError
from sae_lib.sae import SparseAutoencoder
from sae_lib.store import ActivationStore
from sae_lib.training import NonFiniteLossError, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Sparse autoencoders by bias adaptation: harvest activations, train, evaluate, read.",
)

Freeze = Literal["decoder", "encoder", "soft-decoder"]
Kind = Literal["none", "scale", "unit"]
Split = Literal["train", "held-out", "all"]
Parallel = Literal["auto", "data", "latents"]
HELD_OUT = 0.1
DEFAULT_SITE = "resid_post.10"
PRESETS = ", ".join(sorted(synthetic.PRESETS))

Model = Annotated[str, typer.Option(help="smollm2-135m, a hub id, a folder or a .gguf file.")]
CorpusName = Annotated[str, typer.Option(help="standard-library, wikipedia, or a folder of .txt files.")]
SiteName = Annotated[str, typer.Option(help="Where to read, such as resid_post.10, mlp_out.3, attn_out.0.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice of this command.")]
DataSeed = Annotated[int, typer.Option(help="Seed of a synthetic preset.")]
Timeout = Annotated[
    float, typer.Option(min=1, help="Under torchrun: seconds until a process that hangs counts as lost.")
]
ShowConfig = Annotated[bool, typer.Option("--show-config", help="Print the settings as JSON and stop.")]


def _corpus_part(name: str, split: Split) -> Any:
    from sae_lib import corpora

    whole = corpora.corpus(name)
    if split == "all":
        return whole
    kept, held_out = whole.split(HELD_OUT)
    return kept if split == "train" else held_out


def _say(text: str) -> None:
    """Print a line, once for all processes."""
    if not distributed.launched() or distributed.World.joined("auto").first:
        typer.echo(text)


def _print(values: dict[str, Any]) -> None:
    typer.echo(json.dumps(values, indent=2))


@app.command()
def harvest(
    out: Annotated[Path, typer.Argument(help="Folder of the store; an unfinished one is continued.")],
    model: Model = "smollm2-135m",
    corpus: CorpusName = "standard-library",
    site: Annotated[
        list[str], typer.Option(help="Where to read; several, read in one pass, go to OUT/SITE each.")
    ] = [DEFAULT_SITE],  # noqa: B006
    tokens: Annotated[int, typer.Option(min=1, help="Rows to store, one a token.")] = 150_000,
    split: Annotated[Split, typer.Option(help="Documents to read; evaluate uses held-out.")] = "train",
    normalisation: Annotated[Kind, typer.Option(help="Scaling of rows.")] = "scale",
    block_size: Annotated[int, typer.Option(min=2, help="Tokens a block.")] = 256,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32, on disk.")] = "float16",
    device: Device = "cpu",
    seed: Seed = 0,
    timeout: Timeout = distributed.TIMEOUT,
    show_config: ShowConfig = False,
) -> None:
    """Run a language model over a corpus and store its activations.

    Examples:

      sae harvest runs/code --site resid_post.10 --tokens 150000

      sae harvest runs/code --site resid_post.2 --site resid_post.14  (runs/code/resid_post.2, …)

    Stop it at any time; the same command goes on where it was.

    On several GPUs or machines:  torchrun --nproc-per-node 8 -m sae_lib harvest runs/code --device cuda
    """
    settings: dict[str, Any] = {
        "n_tokens": tokens, "normalisation": normalisation, "block_size": block_size,
        "dtype": dtype, "seed": seed,
    }  # fmt: skip
    if show_config:
        _print(
            {
                "out": str(out),
                "model": model,
                "corpus": corpus,
                "split": split,
                "sites": site,
                **settings,
            }
        )
        return
    from sae_lib import activations, language_models

    distributed.join(timeout)
    documents = _corpus_part(corpus, split)
    folders = {site[0]: out} if len(site) == 1 else {place: out / place for place in site}
    with _stopping_cleanly():
        lm = language_models.load(model, device=str(distributed.local(device)))
        stores = activations.harvest_sites(lm, documents, folders, **settings)
    for store in stores.values():
        _say(f"{store.n_rows:,} rows of dimension {store.d_in} in {store.folder}")


def _source(data: str, data_seed: int, *, model: str, corpus: str, site: str, device: str) -> BatchSource:
    if data in synthetic.PRESETS:
        return synthetic.preset(data, seed=data_seed)
    from sae_lib import activations

    if data == "stream":
        from sae_lib import language_models

        return activations.ActivationStream(
            language_models.load(model, device=str(distributed.local(device))),
            _corpus_part(corpus, "train"),
            site,
        )
    if not Path(data).is_dir():
        raise ValueError(f"no data {data!r}; expected a preset ({PRESETS}), 'stream', or a store's folder")
    return activations.ActivationStore.open(data)


@app.command("train")
@with_method_options
def train_command(
    out: Annotated[Path, typer.Argument(help="Folder for the autoencoder, its log and checkpoints.")],
    data: Annotated[
        str,
        typer.Option(help=f"A preset ({PRESETS}), a store's folder, or stream."),
    ],
    method: Annotated[MethodName, typer.Option(help="How sparsity is enforced.")] = "gba",
    width: Annotated[int, typer.Option(min=1, help="Latents.")] = 512,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.  [default: 4000]")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Rows to train on, instead of --steps.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 512,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.  [default: by method]")] = None,
    schedule: Annotated[str, typer.Option(help="linear, cosine or constant.")] = "linear",
    warmup: Annotated[int, typer.Option(min=0, help="Steps.")] = 0,
    freeze: Annotated[Freeze | None, typer.Option(help="Baseline: leave this part to chance.")] = None,
    model: Model = "smollm2-135m",
    corpus: CorpusName = "standard-library",
    site: SiteName = DEFAULT_SITE,
    device: Device = "cpu",
    seed: Seed = 0,
    data_seed: DataSeed = 0,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 1000,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT, bit for bit.")] = False,
    parallel: Annotated[
        Parallel, typer.Option(help="Under torchrun: share out rows (data) or latents. auto is data.")
    ] = "auto",
    timeout: Timeout = distributed.TIMEOUT,
    show_config: ShowConfig = False,
    **options: Any,
) -> None:
    """Train an autoencoder. --model, --corpus and --site matter for --data stream alone.

    Examples:

      sae train runs/toy --data imbalanced --width 512

      sae train runs/code-gba --data runs/code --width 2048 --htf 0.1 --ltf 0.001 --centre

      sae train runs/code-top32 --data runs/code --width 2048 --method batch_topk --k 32

      sae train runs/random --data imbalanced --method topk --k 3 --freeze decoder

      torchrun --nproc-per-node 8 -m sae_lib train runs/code-gba --data runs/code --device cuda
    """
    chosen = method_of(method, options, freeze)
    settings: dict[str, Any] = {
        "width": width, "steps": steps, "tokens": tokens, "batch_size": batch_size, "lr": lr,
        "schedule": schedule, "warmup": warmup, "seed": seed, "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    if show_config:
        _print({"out": str(out), "data": data, "method": chosen.describe(), **settings})
        return
    distributed.join(timeout)
    source = _source(data, data_seed, model=model, corpus=corpus, site=site, device=device)
    with _stopping_cleanly():
        _, log = train(
            source, chosen, device=device, folder=out, resume=resume, parallel=parallel, **settings
        )
    last = log[-1]
    _say(f"step {last['step']}: nmse {last['nmse']:.4f}, l0 {last['l0']:.1f}; saved in {out}")


@app.command()
def evaluate(
    autoencoder: Annotated[Path, typer.Argument(help="Folder with cfg.json and sae_weights.safetensors.")],
    data: Annotated[str | None, typer.Option(help="A preset or a store's folder.")] = None,
    n_rows: Annotated[int, typer.Option(min=1, help="Rows of the data to measure on.")] = 20_000,
    faithfulness_tokens: Annotated[
        int, typer.Option(min=0, help="Held-out tokens on which to splice it into the model; 0 for none.")
    ] = 0,
    model: Model = "smollm2-135m",
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

    Examples:

      sae evaluate runs/toy --data imbalanced

      sae evaluate runs/code-gba --data runs/code --faithfulness-tokens 8000

      sae evaluate downloads/other --model folder --site resid_post.7 --faithfulness-tokens 8000
    """
    if show_config:
        _print({
            "autoencoder": str(autoencoder), "data": data, "n_rows": n_rows, "model": model, "corpus": corpus,
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
        result |= _on_model(sae, model, corpus, site, faithfulness_tokens, block_size, device, seed)
    _print(result)


def _on_data(sae: SparseAutoencoder, data: str, data_seed: int, n_rows: int, seed: int) -> dict[str, Any]:
    if data == "stream":
        raise ValueError("evaluate takes a preset or a store; use --faithfulness-tokens for the model itself")
    source = _source(data, data_seed, model="", corpus="", site="", device="cpu")
    if source.d_in != sae.d_in:
        raise ValueError(f"the autoencoder has d_in {sae.d_in}, the data {source.d_in}; they must be equal")
    if isinstance(source, synthetic.SyntheticData):
        rows = source.rows[:n_rows]
    else:
        assert isinstance(source, ActivationStore)
        rows = sae.normalisation.apply(source.sample(min(n_rows, source.n_rows), seed=seed))
    found = metrics.reconstruction(sae, rows)
    result: dict[str, Any] = {
        "nmse": found.nmse, "explained_variance": found.explained_variance, "l0": found.l0,
        "dead_share": found.dead_share, "n_rows": found.n_rows,
    }  # fmt: skip
    if isinstance(source, synthetic.SyntheticData):
        result |= {
            f"frr_{tau}": metrics.feature_recovery_rate(sae, source.dictionary, tau) for tau in (0.8, 0.9)
        }
        result["mcc"] = metrics.mean_correlation_coefficient(sae, source.dictionary)
    return result


def _on_model(
    sae: SparseAutoencoder, model: str, corpus: str, site: str | None, tokens: int, block_size: int,
    device: str, seed: int,
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
    lm = language_models.load(model, device=device)
    if lm.d_model != sae.d_in:
        made_on = origin.get("model", {}).get("name") or foreign.get("model_name", "one it does not name")
        raise ValueError(
            f"the autoencoder reads {sae.d_in} numbers a row, {lm.name} has {lm.d_model}; the model it "
            f"was trained on is {made_on}: name that with --model"
        )
    skip = origin.get("skip_first", 2)
    blocks = corpora.token_blocks(_corpus_part(corpus, "held-out"), lm.tokenizer, block_size, seed=seed)
    taken = torch.stack(list(itertools.islice(blocks, -(-tokens // block_size))))
    found = faithfulness(lm, {"sae": sae}, place, taken, skip_first=skip)["sae"]
    return {
        **dataclasses.asdict(found), "ce_recovered": found.ce_recovered, "kl_recovered": found.kl_recovered
    }  # fmt: skip


@app.command()
def dashboard(
    autoencoder: Annotated[Path, typer.Argument(help="Folder with cfg.json and sae_weights.safetensors.")],
    data: Annotated[Path, typer.Option(help="Folder of an activation store of the same site.")],
    out: Annotated[Path, typer.Option(help="HTML file to write; one that exists is replaced.")],
    model: Annotated[
        str | None, typer.Option(help="As for harvest.  [default: the name that the store gives]")
    ] = None,
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

    Examples:

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
        _print({
            "autoencoder": str(autoencoder), "data": str(data), "out": str(out), "model": model, **settings
        })  # fmt: skip
        return
    if out.is_dir():
        raise ValueError(f"--out is {out}, a folder; expected an HTML file")
    from sae_lib import dashboards, language_models

    try:
        sae, store = storage.load(autoencoder, device=device), ActivationStore.open(data)
        lm = language_models.load(model or store.describe()["model"]["name"], device=device)
        board = dashboards.measure(sae, lm, store, **settings)
        dashboards.html(board, out, seed=seed)
    except KeyboardInterrupt:
        typer.echo(f"sae: stopped; {out} is as it was before", err=True)
        raise typer.Exit(130) from None
    _say(f"{len(board):,} dashboards in {out}, {out.stat().st_size / 1e6:.1f} MB")


@contextmanager
def _stopping_cleanly() -> Iterator[None]:
    """Say how to go on after Ctrl-C (the library has saved by then), instead of click's bare "Aborted!"."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        typer.echo(f"sae{distributed.place()}: {interrupt}", err=True)
        raise typer.Exit(130) from interrupt


def main() -> None:
    """Entry point of ``sae``: errors a user can mend are one line on standard error, exit status 2."""
    try:
        app()
    except (ValueError, OSError, ImportError, NonFiniteLossError, LostProcessError) as error:
        typer.echo(f"sae: error{distributed.place()}: {error}", err=True)
        sys.exit(2)

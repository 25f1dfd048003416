"""Common parts of the commands: options, data, output."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sae_lib import distributed, synthetic
from sae_lib.batches import BatchSource

ModelType = Literal["auto", "float32", "bfloat16"]
Split = Literal["train", "held-out", "all"]
HELD_OUT = 0.1
DEFAULT_SITE = "resid_post.10"
PRESETS = ", ".join(sorted(synthetic.PRESETS))

Model = Annotated[str, typer.Option(help="smollm2-135m, a hub id, a folder or a .gguf file.")]
CorpusName = Annotated[
    str, typer.Option(help="standard-library, wikipedia, installed-packages, or a folder of .txt files.")
]
ModelDtype = Annotated[
    ModelType, typer.Option(help="Type of the model's numbers; auto: bfloat16 where it is fast.")
]
SiteName = Annotated[str, typer.Option(help="Where to read, such as resid_post.10, mlp_out.3, attn_out.0.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice of this command.")]
DataSeed = Annotated[int, typer.Option(help="Seed of a synthetic preset.")]
Timeout = Annotated[
    float, typer.Option(min=1, help="Under torchrun: seconds until a process that hangs counts as lost.")
]
ShowConfig = Annotated[bool, typer.Option("--show-config", help="Print the settings as JSON and stop.")]


def corpus_part(name: str, split: Split) -> Any:
    """Return the documents of a corpus to train on, those held out, or all."""
    from sae_lib import corpora

    documents = corpora.corpus(name)
    if split == "all":
        return documents
    training, held_out = documents.split(HELD_OUT)
    return training if split == "train" else held_out


def source_of(
    data: str, data_seed: int, *, model: str, model_dtype: str, corpus: str, site: str, device: str
) -> BatchSource:
    """Return what --data names: a preset, a store's folder, or a stream from a model."""
    if data in synthetic.PRESETS:
        return synthetic.preset(data, seed=data_seed)
    from sae_lib import activations

    if data == "stream":
        from sae_lib import language_models

        return activations.ActivationStream(
            language_models.load(model, device=str(distributed.local(device)), dtype=model_dtype),
            corpus_part(corpus, "train"),
            site,
        )
    if not Path(data).is_dir():
        raise ValueError(f"no data {data!r}; expected a preset ({PRESETS}), 'stream', or a store's folder")
    return activations.ActivationStore.open(data)


def say(text: str) -> None:
    """Print a line, once for all processes."""
    if not distributed.launched() or distributed.World.join_all("auto").first:
        typer.echo(text)


def show(values: dict[str, Any]) -> None:
    """Print values as JSON."""
    typer.echo(json.dumps(values, indent=2))


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Say after Ctrl-C, when the library has saved, how to continue, instead of click's bare "Aborted!"."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        typer.echo(f"sae{distributed.place()}: {interrupt}", err=True)
        raise typer.Exit(130) from interrupt

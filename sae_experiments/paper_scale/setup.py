"""Options, methods, model and text of ``sae_experiments.paper_scale``."""

from __future__ import annotations

import argparse
import functools
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sae_lib import corpora, language_models
from sae_lib.files.atomic import read_json
from sae_lib.language_models import DEFAULT_MODEL, LanguageModel
from sae_lib.methods import GroupBiasAdaptation, Method, TopK

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "book" / "records" / "10_paper_scale.json"
PAPER = {"model": "Qwen/Qwen2.5-1.5B", "width": 65_536, "tokens": 100_000_000}
# the config on the hub, as of this edition
CONFIG = Path(__file__).with_name("qwen2.5-1.5b.json")
# tokens the model sees at once, blocks in one forward pass, positions of a block that give no row
BLOCK, BATCH_BLOCKS, SKIP_FIRST = 256, 32, 2


def methods(k: int) -> dict[str, Method]:
    """Return the contestants by name."""
    return {
        "gba-iclr": GroupBiasAdaptation(htf=0.5, ltf=1e-3, centre=True),
        "gba": GroupBiasAdaptation(htf=0.1, ltf=1e-3, centre=True),
        "topk": TopK(k=k, centre=True),
    }


def parser(description: str) -> argparse.ArgumentParser:
    """Return the command line."""
    options = argparse.ArgumentParser(
        prog="python -m sae_experiments.paper_scale",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("--model", default=PAPER["model"], help="hub id, folder or .gguf file")
    add("--random-weights", action="store_true", help="the model's architecture, but nothing it has learned")
    add("--layers", type=int, nargs="+", default=[2, 13, 26])
    add(
        "--corpora",
        nargs="+",
        default=["code", "wikipedia"],
        help="code, wikipedia (both packaged), a folder of .txt files, or a hub data set as id or id:column",
    )
    add("--documents", type=int, default=300_000, help="documents to take of a hub data set, at most")
    add("--methods", nargs="+", default=list(methods(1)), choices=list(methods(1)))
    add("--k", type=int, default=50, help="of TopK")
    add("--width", type=int, default=PAPER["width"])
    add("--tokens", type=int, default=PAPER["tokens"], help="of each run")
    add("--batch-size", type=int, default=8192)
    add("--held-out-tokens", type=int, default=50_000, help="rows for NMSE and L0")
    add("--scored-tokens", type=int, default=16_384, help="tokens for cross-entropy and divergence")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--price", type=float, help="of an hour on this machine, to state what the run costs")
    add("--estimate", action="store_true", help="say what it needs without a calibration, and stop")
    add("--folder", type=Path, default=ROOT / "runs" / "paper-scale")
    add("--record", type=Path, help=f"default {RECORD.name} at the paper's size, else in the folder")
    return options


def config_of(name: str) -> Any:
    """Return the config without the weights; None where only loading tells. SystemExit for a missing one."""
    if name == PAPER["model"]:
        values = read_json(CONFIG)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    if name == DEFAULT_MODEL or name.endswith(".gguf"):
        return None
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise SystemExit(f"no config of a language model {name!r}: {str(error).splitlines()[0]}") from error


def load(options: argparse.Namespace, config: Any) -> LanguageModel:
    """Load the language model, trained or random; SystemExit says what to do without a network."""
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if not options.random_weights:
        try:
            return language_models.load(options.model, device=device, dtype=dtype)
        except FileNotFoundError as error:
            raise SystemExit(
                f"{error}. Where the hub cannot be reached, --random-weights runs the same architecture with "
                "random weights, and says so in every label"
            ) from error
    tokenizer = language_models.load().tokenizer
    if len(tokenizer) > config.get_text_config().vocab_size:
        raise SystemExit(
            f"{options.model} knows {config.get_text_config().vocab_size} tokens, the tokenizer of "
            f"{DEFAULT_MODEL} that stands in has {len(tokenizer)}; expected at least as many"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return LanguageModel(model.to(device), tokenizer, label(options))


def label(options: argparse.Namespace) -> str:
    """Return the model in words."""
    name = Path(options.model).name if Path(options.model).exists() else options.model
    return f"{name} (random weights, seed {options.seed})" if options.random_weights else name


@functools.lru_cache
def corpus(name: str, documents: int) -> corpora.Corpus:
    """Return a text by its name on the command line; read once. SystemExit names a missing one."""
    packaged = {"code": corpora.standard_library, "wikipedia": corpora.wikipedia_summaries}
    if name in packaged:
        return packaged[name]()
    if Path(name).is_dir():
        return corpora.folder(name)
    dataset, _, column = name.partition(":")
    try:
        return corpora.hugging_face(dataset, column=column or "text", max_documents=documents)
    except (OSError, ImportError, ValueError) as error:
        raise SystemExit(f"no corpus {name!r}: {error}. The packaged ones are code and wikipedia") from error


def passes(part: corpora.Corpus, model: LanguageModel, sample: Tensor, tokens: int) -> float:
    """Return how often a run of so many tokens reads a text, by the characters per token of ``sample``."""
    each = len(model.tokenizer.decode(sample.flatten())) / sample.numel()
    return tokens * each / sum(len(document.text) for document in part.documents)


def blocks(part: corpora.Corpus, model: LanguageModel, tokens: int, seed: int = 0) -> Tensor:
    """Return the first blocks (n, 256), n · 256 ≥ tokens, or all there are; SystemExit if there is none."""
    endless = corpora.token_blocks(part, model.tokenizer, BLOCK, seed=seed, spread=False)
    first = list(itertools.islice(endless, -(-tokens // BLOCK)))
    if not first:
        raise SystemExit(f"{part.name} does not fill one block of {BLOCK} tokens; take a longer text")
    return torch.stack(first)

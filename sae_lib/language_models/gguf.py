"""Models in GGUF files, converted once to transformers' own format and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


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

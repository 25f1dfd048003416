"""Models derived from another: its first blocks alone, and twins with random weights."""

import copy

import torch
from transformers import AutoModelForCausalLM

from sae_lib.language_models.model import LanguageModel


def first_blocks(model: LanguageModel, n: int) -> LanguageModel:
    """Copy a model without the blocks after its first ``n``: same activations there, other logits.

    This is enough to read an early site, and twins of it (:func:`reinitialised`) are drawn much sooner.

    Raises:
        ValueError: The model has no ``n`` blocks, or n < 1.
    """
    if not 1 <= n <= model.n_layers:
        raise ValueError(f"n is {n}; expected 1..{model.n_layers}, the blocks that {model.name} has")
    config = copy.deepcopy(model.model.config)
    part = config.get_text_config()
    part.num_hidden_layers = n
    if getattr(part, "layer_types", None):
        part.layer_types = part.layer_types[:n]
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        cut = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    weights = model.model.state_dict()
    cut.load_state_dict({name: weights[name] for name in cut.state_dict()})
    return LanguageModel(cut.to(model.device), model.tokenizer, f"{model.name} (first {n} blocks)")


def reinitialised(model: LanguageModel, seed: int, *, keep_embedding: bool = False) -> LanguageModel:
    """Build a twin with fresh random weights, drawn by the architecture's own scheme.

    The twin is a null model: what an autoencoder finds in it owes nothing to training. It is determined by
    the seed on any device, and the caller's random state is left alone.

    Args:
        model: Model to copy the architecture of.
        seed: Seed of the weights.
        keep_embedding: Keep the trained token embedding (also where it is the output layer): the twin then
            knows tokens, but not how to read them together.
    """
    config = copy.deepcopy(model.model.config)
    # drawn on the CPU in float32, so that device and type do not change the draw
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        twin = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if keep_embedding:
        with torch.no_grad():
            twin.get_input_embeddings().weight.copy_(model.model.get_input_embeddings().weight)
    twin = twin.to(device=model.device, dtype=model.dtype)
    label = "random blocks" if keep_embedding else "random weights"
    return LanguageModel(twin, model.tokenizer, f"{model.name} ({label}, seed {seed})")

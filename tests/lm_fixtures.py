"""Tiny random language models of five families, and a tokenizer that needs no download."""

from __future__ import annotations

import tokenizers
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from sae_lib.corpora import Corpus, Document
from sae_lib.language_models import LanguageModel

VOCABULARY = 300
CONTEXT = 64
N_LAYERS = 4
D_MODEL = 32


def tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, plus ``<|endoftext|>``, ``<|im_start|>`` and, if asked, a BOS before every text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<bos>"]
    backend.add_special_tokens(special)
    if bos:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", backend.token_to_id("<bos>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        # the EOS of a chat model: it ends a turn, not a document
        eos_token="<|im_start|>",
        unk_token="<|endoftext|>",
        bos_token="<bos>",
        model_max_length=16,
    )


_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    # large enough for attention and MLP to matter beside the embedding
    "initializer_range": 0.2,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**_COMMON, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_COMMON, num_key_value_heads=2),
    "gemma3": lambda: Gemma3TextConfig(**_COMMON, num_key_value_heads=2, head_dim=8, sliding_window=16),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=4, n_positions=CONTEXT,
        initializer_range=0.2, bos_token_id=0, eos_token_id=0,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_COMMON),
}  # fmt: skip
FAMILIES = tuple(CONFIGS)


def language_model(family: str = "llama", seed: int = 0) -> LanguageModel:
    """A random model of 4 layers, d = 32, 300 tokens; the same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[family]())
    return LanguageModel(model, tokenizer(), f"tiny-{family}")


def text_corpus(n_documents: int = 12, seed: int = 0) -> Corpus:
    """Documents of a few hundred random letters."""
    generator = torch.Generator().manual_seed(seed)
    documents = []
    for i in range(n_documents):
        length = int(torch.randint(100, 400, (), generator=generator))
        letters = torch.randint(97, 123, (length,), generator=generator)
        documents.append(Document(f"document-{i}", "".join(map(chr, letters.tolist()))))
    return Corpus("letters", "none", tuple(documents))


def random_blocks(n: int = 3, length: int = 20, seed: int = 0) -> torch.Tensor:
    """Token blocks (n, length)."""
    return torch.randint(0, VOCABULARY, (n, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def log_prob_changes(model, blocks, intervention, positions=None):
    """What an intervention does to the next token's log-probabilities (V,), by two passes and one mean."""
    if positions is None:
        positions = torch.zeros(blocks.shape, dtype=torch.bool)
        positions[:, -1] = True
    clean = model.logits(blocks)[positions].log_softmax(dim=-1)
    with intervention:
        changed = model.logits(blocks)[positions].log_softmax(dim=-1)
    return (changed - clean).mean(dim=0)

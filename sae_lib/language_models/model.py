"""A causal language model whose activations can be read and replaced at its sites."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sae_lib.language_models.site import Site

# the names that model families give to the parts of a block
_ATTENTION_NAMES = ("self_attn", "attn", "attention")
_MLP_NAMES = ("mlp",)
# entries of a config that do not change what the model computes
_VOLATILE = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "quantization_config", "use_cache",
}  # fmt: skip


class _StopForward(Exception):
    """Raised by a hook to end a forward pass whose later layers are not needed."""


def _blocks(model: nn.Module, n_layers: int) -> nn.ModuleList:
    """Find the transformer blocks: the only outermost ModuleList of the length that the config says."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and not inside:
            lists[name] = module
    if len(lists) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(lists)} lists of {n_layers} modules "
            f"({', '.join(lists) or 'none'}); expected exactly one, the transformer blocks"
        )
    return next(iter(lists.values()))


class LanguageModel:
    """A causal language model, its tokenizer, and its sites.

    Args:
        model: Any causal LM that transformers builds; put into evaluation mode, parameters frozen.
        tokenizer: The model's own.
        name: Short, for reports and manifests.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        # a multimodal model keeps the sizes of its text part in a separate config
        config = model.config.get_text_config()
        self.n_layers: int = config.num_hidden_layers
        self.d_model: int = config.hidden_size
        self.vocabulary: int = config.vocab_size
        self.context_length: int | None = getattr(config, "max_position_embeddings", None)
        self._blocks = _blocks(model, self.n_layers)

    @property
    def device(self) -> torch.device:
        """Device of the weights, to which blocks are moved."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and so of the activations."""
        return next(self.model.parameters()).dtype

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over class, config, data type and up to 64 evenly spaced numbers of every weight tensor.

        It is cheap, and changes with the checkpoint, seed or precision, though not with edits between the
        sampled numbers. New versions of transformers may change it, as they add entries to configs.
        """
        config = {
            k: v for k, v in self.model.config.to_dict().items() if k not in _VOLATILE and v is not None
        }
        digest = hashlib.sha256(type(self.model).__name__.encode())
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for name, weight in sorted(self.model.named_parameters()):
            numbers = weight.detach().flatten()[:: max(1, weight.numel() // 64)][:64]
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            digest.update(numbers.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def site(self, site: str | Site) -> Site:
        """Parse a site and refuse a layer that this model lacks.

        Raises:
            ValueError: Not a site of this model.
        """
        site = Site.parse(site) if isinstance(site, str) else site
        if not 0 <= site.layer < self.n_layers:
            raise ValueError(f"layer {site.layer} of {self.n_layers}: allowed 0..{self.n_layers - 1}")
        return site

    def _module(self, site: str | Site) -> nn.Module:
        site = self.site(site)
        block = self._blocks[site.layer]
        if site.kind == "resid_post":
            return block
        names = _ATTENTION_NAMES if site.kind == "attn_out" else _MLP_NAMES
        children = dict(block.named_children())
        for name in names:
            if name in children:
                return children[name]
        raise ValueError(
            f"{site}: block {type(block).__name__} has the parts {', '.join(children)}; "
            f"expected one named {' or '.join(names)}. Use resid_post.{site.layer} instead"
        )

    def _checked(self, blocks: Tensor) -> Tensor:
        if blocks.ndim != 2 or blocks.is_floating_point() or 0 in blocks.shape:
            raise ValueError(
                f"blocks have shape {tuple(blocks.shape)} and type {blocks.dtype}; "
                "expected whole numbers (B, T), both at least 1"
            )
        if self.context_length is not None and blocks.shape[1] > self.context_length:
            raise ValueError(
                f"blocks of {blocks.shape[1]} tokens exceed the {self.context_length} that {self.name} "
                "can read; use a smaller block_size"
            )
        # on an accelerator the check would wait for the device
        if blocks.device.type == "cpu" and (blocks.min() < 0 or blocks.max() >= self.vocabulary):
            raise ValueError(
                f"tokens range over {int(blocks.min())}..{int(blocks.max())}; expected "
                f"0..{self.vocabulary - 1} for {self.name}. Use the model's own tokenizer"
            )
        return blocks.to(self.device).long()

    def activations(self, blocks: Tensor, site: str | Site) -> Tensor:
        """Return activations (B, T, d_model) at a site for token blocks (B, T), in the model's type.

        The forward pass ends at the site: later layers and the logits are not computed.
        """
        return self.activations_at(blocks, [site])[0]

    @torch.no_grad()
    def activations_at(self, blocks: Tensor, sites: Sequence[str | Site]) -> list[Tensor]:
        """Return activations (B, T, d_model) at different sites, in their order, from one forward pass.

        The pass ends at the last site; the numbers are those of :meth:`activations`.
        """
        if not sites or len({self.site(site) for site in sites}) < len(sites):
            raise ValueError(f"sites are {[str(s) for s in sites]}; expected at least one, and none twice")
        modules, ids = [self._module(site) for site in sites], self._checked(blocks)
        caught: dict[int, Tensor] = {}

        def catching(number: int) -> Callable[..., None]:
            def catch(_module: nn.Module, _inputs: Any, output: Any) -> None:
                caught[number] = output if isinstance(output, Tensor) else output[0]
                if len(caught) == len(modules):
                    raise _StopForward
                # a copy, as later layers of some families add to this tensor in place
                caught[number] = caught[number].clone()

            return catch

        with ExitStack() as hooks:
            for number, module in enumerate(modules):
                hooks.enter_context(module.register_forward_hook(catching(number)))
            with suppress(_StopForward):
                self.model(input_ids=ids, use_cache=False)
        return [caught[number] for number in range(len(modules))]

    @contextmanager
    def replaced(self, site: str | Site, fn: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Have forward passes continue with ``fn(activations)`` in place of the activations, while open.

        ``fn`` takes and returns (B, T, d_model). Results of another shape raise a ValueError in the pass.
        """
        site = self.site(site)

        def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            acts = output if isinstance(output, Tensor) else output[0]
            new = fn(acts)
            if new.shape != acts.shape:
                raise ValueError(
                    f"the replacement at {site} has shape {tuple(new.shape)}; expected {tuple(acts.shape)}"
                )
            new = new.to(acts.dtype)
            return new if isinstance(output, Tensor) else (new, *output[1:])

        with self._module(site).register_forward_hook(replace):
            yield

    @contextmanager
    def resumed(self, layer: int, blocks: Tensor) -> Iterator[None]:
        """Have passes over these tokens (B, T) start after block ``layer``, whose output is kept, while open.

        They give the same numbers as full passes, sooner; interventions at that layer or later still act.
        Passes over other tokens would give wrong results.
        """
        site = self.site(f"resid_post.{layer}")
        caught: list[Any] = []
        with self._module(site).register_forward_hook(lambda _m, _inputs, output: caught.append(output)):
            self.activations(blocks, site)
        skipped = self._blocks[: layer + 1]

        def recall(*_args: Any, **_kwargs: Any) -> Any:
            # a copy, as a later block may add to it in place
            output = caught[0]
            return output.clone() if isinstance(output, Tensor) else (output[0].clone(), *output[1:])

        for block in skipped:
            block.forward = recall
        try:
            yield
        finally:
            for block in skipped:
                del block.forward

    @torch.no_grad()
    def logits(self, blocks: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return next-token logits (B, T, vocabulary) for token blocks (B, T).

        With ``positions``, bool (B, T), only the logits (n, vocabulary) of these tokens are computed.
        """
        ids = self._checked(blocks)
        if positions is None:
            output: Tensor = self.model(input_ids=ids, use_cache=False).logits
            return output
        mask = positions.to(self.device)
        with self.model.get_output_embeddings().register_forward_pre_hook(
            lambda _module, inputs: (inputs[0][mask][None], *inputs[1:])
        ):
            selected: Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
        return selected

"""Named places of a causal language model."""

import re
from dataclasses import dataclass

from sae_lib.checks import one_of

KINDS = ("resid_post", "attn_out", "mlp_out")
# TransformerLens's name of a site, which SAELens keeps as hook_name
_HOOK = re.compile(r"blocks\.([0-9]+)\.hook_(resid_pre|resid_post|attn_out|mlp_out)")


@dataclass(frozen=True)
class Site:
    """A place in the network, written ``kind.layer``: ``resid_post.10``.

    Attributes:
        kind: ``resid_post``, the residual stream after block ``layer``; or ``attn_out`` or ``mlp_out``, the
            output of the block's attention or MLP module. Models that normalise this output before adding
            it to the stream (Gemma 3) are read before that normalisation.
        layer: The block, from 0.
    """

    kind: str
    layer: int

    def __post_init__(self) -> None:
        one_of("site kind", self.kind, KINDS)

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read ``"resid_post.10"``, or TransformerLens's name for it, ``"blocks.10.hook_resid_post"``.

        ``hook_resid_pre`` of block n > 0 is the output of the block before it.

        Raises:
            ValueError: The text names no site.
        """
        if hook := _HOOK.fullmatch(text):
            before = hook[2] == "resid_pre"
            if before and hook[1] == "0":
                raise ValueError(
                    f"site is {text!r}, the embedding; expected an output of a block or its parts"
                )
            return cls("resid_post" if before else hook[2], int(hook[1]) - before)
        kind, _, layer = text.partition(".")
        if not (layer.isascii() and layer.isdigit()):
            raise ValueError(
                f"site is {text!r}; expected kind.layer, for instance resid_post.10 "
                "(or blocks.10.hook_resid_post)"
            )
        return cls(kind, int(layer))

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

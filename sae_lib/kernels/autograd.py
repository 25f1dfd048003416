"""The operations of a backend, made differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from sae_lib.kernels.sparse_codes import Support


class Pass:
    """One forward pass over a batch: what its encoding and its decoding have in common.

    backend: see ``sae_lib.kernels``. support: the entries in play. tied: whether encoder and decoder share
    their rows, whose gradient is then written once, when both shares of it are known.
    """

    def __init__(self, backend: ModuleType, support: Support, *, tied: bool) -> None:
        self.backend, self.support, self.tied = backend, support, tied
        self.decoded: list[tuple[Tensor, Support, Tensor]] = []

    def encode(self, values: Tensor, centred: Tensor, weight: Tensor, pre_bias: Tensor) -> Tensor:
        """u (E,) = W (x − b_pre) on the support, differentiable in the weight and b_pre.

        values: u, as the backend's ``scan`` found it. centred: x − b_pre (B, d).
        """
        return _Encode.apply(self, values.detach(), centred.detach(), weight, pre_bias)

    def decode(self, values: Tensor, directions: Tensor) -> Tensor:
        """Σ value × direction over the entries of each row, (B, d); differentiable in both.

        values: (E,). directions: (M, d), of a tied pass the weight given to :meth:`encode`.
        """
        return self.decode_parts(values, directions, [len(directions)])[0]

    def decode_parts(self, values: Tensor, directions: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        """The same for each of several blocks of latents by itself.

        sizes: latents up to the end of each block, increasing, the last one M.
        """
        return cast("tuple[Tensor, ...]", _Decode.apply(self, values, directions, sizes))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sparse_pass: Pass, values: Tensor, centred: Tensor, weight: Tensor, pre_bias: Tensor
    ) -> Tensor:
        ctx.sparse_pass = sparse_pass
        ctx.save_for_backward(centred, weight)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sparse_pass: Pass = ctx.sparse_pass
        centred, weight = ctx.saved_tensors
        of_weight = of_pre_bias = None
        if ctx.needs_input_grad[3]:
            of_weight = torch.zeros_like(weight)
            sparse_pass.backend.accumulate(gradient, sparse_pass.support, centred, of_weight)
            for codes, support, errors in sparse_pass.decoded:
                sparse_pass.backend.accumulate(codes, support, errors, of_weight)
            sparse_pass.decoded.clear()
        if ctx.needs_input_grad[4]:
            of_pre_bias = -(sparse_pass.support.by_latent(gradient) @ weight)
        return None, None, None, of_weight, of_pre_bias


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sparse_pass: Pass, values: Tensor, directions: Tensor, sizes: Sequence[int]
    ) -> tuple[Tensor, ...]:
        ctx.sparse_pass, ctx.parts = sparse_pass, sparse_pass.support.parts(sizes)
        ctx.save_for_backward(values, directions)
        return tuple(sparse_pass.backend.decode(values[here], part, directions) for here, part in ctx.parts)

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        sparse_pass: Pass = ctx.sparse_pass
        values, directions = ctx.saved_tensors
        parts = [
            (here, part, error.contiguous()) for (here, part), error in zip(ctx.parts, errors, strict=True)
        ]
        of_values = of_directions = None
        if ctx.needs_input_grad[1]:
            dots = sparse_pass.backend.dots
            of_values = torch.cat([dots(error, part, directions) for _, part, error in parts])
        if ctx.needs_input_grad[2]:
            if sparse_pass.tied:
                # the codes depend on the weight, so the backward pass comes to _Encode after this
                sparse_pass.decoded += [(values[here], part, error) for here, part, error in parts]
            else:
                of_directions = torch.zeros_like(directions)
                for here, part, error in parts:
                    sparse_pass.backend.accumulate(values[here], part, error, of_directions)
        return None, of_values, of_directions, None

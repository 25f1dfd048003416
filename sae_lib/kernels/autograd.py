"""The operations of a backend, made differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sae_lib.kernels.operations import Operations
from sae_lib.kernels.row_sums import RowSum
from sae_lib.kernels.sparse_codes import Support


class Pass:
    """One forward pass over a batch, whose encoding and decoding share a support.

    Args:
        backend: See ``sae_lib.kernels``.
        support: Entries at which codes are computed.
        tied: Whether encoder and decoder share their rows, whose gradient is then written once, when both
            parts of it are known.
        sums: Where given, the backward pass appends the gradients of weight and directions here, each beside
            its parameter, in place of writing them out.
    """

    def __init__(
        self,
        backend: Operations,
        support: Support,
        *,
        tied: bool,
        sums: list[tuple[Tensor, RowSum]] | None = None,
    ) -> None:
        self.backend, self.support, self.tied, self.sums = backend, support, tied, sums
        self.decoded: list[tuple[Tensor, Support, Tensor]] = []

    def encode(self, values: Tensor, centred: Tensor, weight: Tensor, pre_bias: Tensor) -> Tensor:
        """Return u (E,) = W (x − b_pre) on the support, differentiable in the weight W and b_pre.

        ``values`` is u as the backend's ``scan`` computed it, ``centred`` is x − b_pre (B, d).
        """
        return _Encode.apply(self, values.detach(), centred.detach(), weight, pre_bias)

    def decode(self, values: Tensor, directions: Tensor) -> Tensor:
        """Return Σ value (E,) × direction (M, d) over each row's entries, (B, d); differentiable in both.

        The directions of a tied pass are the weight given to :meth:`encode`.
        """
        return self.decode_parts(values, directions, [len(directions)])[0]

    def decode_parts(self, values: Tensor, directions: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        """Decode each of several blocks of latents separately; ``sizes`` as for :meth:`Support.parts`."""
        return cast("tuple[Tensor, ...]", _Decode.apply(self, values, directions, sizes))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sparse_pass: Pass, values: Tensor, centred: Tensor, weight: Tensor, pre_bias: Tensor
    ) -> Tensor:
        ctx.sparse_pass, ctx.parameter = sparse_pass, weight
        ctx.save_for_backward(centred, weight)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sparse_pass: Pass = ctx.sparse_pass
        centred, weight = ctx.saved_tensors
        of_weight = of_pre_bias = None
        if ctx.needs_input_grad[3] and sparse_pass.sums is not None:
            parts = [RowSum.over(sparse_pass.support, gradient, centred)]
            if sparse_pass.decoded:
                parts.append(RowSum.of_parts(sparse_pass.support, sparse_pass.decoded))
            sparse_pass.sums += [(ctx.parameter, part) for part in parts]
        elif ctx.needs_input_grad[3]:
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
        ctx.parameter = directions
        ctx.save_for_backward(values, directions)
        return tuple(sparse_pass.backend.decode(values[span], part, directions) for span, part in ctx.parts)

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        sparse_pass: Pass = ctx.sparse_pass
        values, directions = ctx.saved_tensors
        parts = [
            (span, part, error.contiguous()) for (span, part), error in zip(ctx.parts, errors, strict=True)
        ]
        with_values = [(values[span], part, error) for span, part, error in parts]
        of_values = of_directions = None
        if ctx.needs_input_grad[1]:
            dots = sparse_pass.backend.dots
            of_values = torch.cat([dots(error, part, directions) for _, part, error in parts])
        if ctx.needs_input_grad[2]:
            if sparse_pass.tied:
                # the codes depend on the weight, so the backward pass reaches _Encode later
                sparse_pass.decoded += with_values
            elif sparse_pass.sums is not None:
                sparse_pass.sums.append((ctx.parameter, RowSum.of_parts(sparse_pass.support, with_values)))
            else:
                of_directions = torch.zeros_like(directions)
                for codes, part, error in with_values:
                    sparse_pass.backend.accumulate(codes, part, error, of_directions)
        return None, of_values, of_directions, None

"""Attention and the gate of the feed-forward network for training on a CPU, with their gradients written out.

torch's `scaled_dot_product_attention` takes seven times as long backward as forward on a CPU, and rotary positions
over heads of 16 dimensions hardly vectorise. Here queries, keys and values are turned once to `(channels, tokens)`:
rotary positions, copies and products then run along the tokens. Attention weights are kept from forward to backward,
so memory grows with the sum of the squared lengths; crops bound it.

Which one computes is decided by `rinalmo.model.attention`; both give the same numbers but for rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rinalmo.model.packing import Layout, Run, planes, put_planes
from rinalmo.model.rotary import Rotation


def attend(
    qkv: Float[Tensor, "tokens three_hidden"], layout: Layout, by: Rotation, heads: int, dropout: float
) -> Float[Tensor, "tokens hidden"]:
    """Rotary positions and softmax attention of each sequence to itself; `dropout` on the attention weights."""
    cos, sin = (table[:, 0].t().to(qkv.dtype).contiguous() for table in by)
    with torch.autocast("cpu", enabled=False):
        return _Attention.apply(qkv, cos, sin, layout.runs, heads, dropout)


def gated_swish(
    gate: Float[Tensor, "tokens ffn"], up: Float[Tensor, "tokens ffn"], beta: Float[Tensor, 1]
) -> Float[Tensor, "tokens ffn"]:
    """`gate · σ(beta · gate) · up`."""
    with torch.autocast("cpu", enabled=False):
        return _GatedSwish.apply(gate, up, beta)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, runs: tuple[Run, ...], heads: int, dropout: float
    ) -> Tensor:
        tokens, rows = qkv.shape
        size = rows // (3 * heads)
        channels = qkv.t().contiguous().view(3, heads, size, tokens)
        turned = _rotate(channels[:2], cos, sin)
        q, k, v = turned[0].mul_(size**-0.5), turned[1], channels[2]
        out, kept = torch.empty_like(v), []
        for run in runs:
            qs, ks, vs = planes(q, run), planes(k, run), planes(v, run)
            weights = torch.bmm(qs.transpose(1, 2), ks).softmax(-1)
            seen, mask = torch.native_dropout(weights, dropout, True) if dropout else (weights, None)
            put_planes(out, run, torch.bmm(vs, seen.transpose(1, 2)))
            kept += [qs, ks, vs, weights, *([seen, mask] if dropout else [])]
        ctx.save_for_backward(cos, sin, *kept)
        ctx.runs, ctx.heads, ctx.dropout = runs, heads, dropout
        return out.view(-1, tokens).t().contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, *kept = ctx.saved_tensors
        tokens, hidden = grad.shape
        size, each = hidden // ctx.heads, 6 if ctx.dropout else 4
        outer = grad.t().contiguous().view(ctx.heads, size, tokens)
        inner = torch.empty(3, ctx.heads, size, tokens, dtype=grad.dtype)
        for number, run in enumerate(ctx.runs):
            qs, ks, vs, weights, *dropped = kept[each * number : each * (number + 1)]
            outs = planes(outer, run)
            put_planes(inner[2], run, torch.bmm(outs, dropped[0] if dropped else weights))
            found = torch.bmm(outs.transpose(1, 2), vs)
            if dropped:
                found.mul_(dropped[1]).div_(1 - ctx.dropout)
            scores = torch._softmax_backward_data(found, weights, -1, weights.dtype)
            put_planes(inner[0], run, torch.bmm(ks, scores.transpose(1, 2)))
            put_planes(inner[1], run, torch.bmm(qs, scores))
        inner[0].mul_(size**-0.5)
        inner[:2] = _rotate(inner[:2], cos, -sin)
        return inner.view(-1, tokens).t().contiguous(), None, None, None, None, None


class _GatedSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, beta: Tensor) -> Tensor:
        scaled = gate * beta.to(gate.dtype)
        swish = scaled.sigmoid().mul_(gate)
        ctx.save_for_backward(gate, up, scaled, swish)
        ctx.beta_dtype = beta.dtype
        return swish * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, scaled, swish = ctx.saved_tensors
        inner = grad * up
        # d swish / d gate is the derivative of x·σ(x) at beta·gate; d swish / d beta is gate² σ (1 − σ).
        slope = (inner * swish).mul_(gate - swish).sum(dtype=ctx.beta_dtype).view(1)
        return torch.ops.aten.silu_backward(inner, scaled), grad * swish, slope


def _rotate(x: Float[Tensor, "two heads head tokens"], cos: Tensor, sin: Tensor) -> Tensor:
    """`rinalmo.model.rotary.rotate` with the tokens last, in the type of `x`."""
    a, b = x.unflatten(2, (2, -1)).unbind(2)
    out = torch.empty_like(x)
    first, second = out.unflatten(2, (2, -1)).unbind(2)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return out

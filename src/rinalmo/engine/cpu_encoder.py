"""The encoder for inference on a CPU, its weights packed for oneDNN once, in fp32, bf16 or 8 bits.

fp32 is never bf16 inside, whatever torch's global setting. In 8 bits activations are unsigned bytes around 128, with
one scale per call after a layer norm and one per token elsewhere; weights have one scale per output.

oneDNN's operators are looked up when a layer is made or called, and never at import: torch on a Mac has none. There
`Linear` computes the same in fp32 by torch's own products.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rinalmo.engine.cpu_attention import Plan, best_attention, make_plan
from rinalmo.engine.devices import has_onednn
from rinalmo.model.encoder import Encoder, EncoderBlock, drop_tokens
from rinalmo.model.packing import Layout

PackedPrecision = Literal["fp32", "bf16", "int8"]


class Linear:
    """A linear layer whose weight is packed for oneDNN; without oneDNN's operators, plain torch.

    With `channels_first` the output is `(out, tokens)`: the tokens are the "weights" of oneDNN's product then, so the
    layer's own are not packed. Such a layer has no bias.
    """

    def __init__(
        self,
        weight: Float[Tensor, "out into"],
        bias: Float[Tensor, " out"] | None,
        dtype: torch.dtype,
        channels_first: bool = False,
    ) -> None:
        self.onednn, self.channels_first = has_onednn(), channels_first
        packs = self.onednn and not channels_first
        weight = weight.to(dtype, copy=not packs)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if packs else weight
        self.bias = None if bias is None else bias.to(dtype, copy=True)

    def __call__(self, x: Float[Tensor, "tokens into"], activation: str = "none") -> Float[Tensor, "rows columns"]:
        """`x · weightᵀ + bias`, then "none" or "swish", which oneDNN fuses."""
        if self.channels_first:
            if self.onednn:
                return torch.ops.mkldnn._linear_pointwise(self.weight, x, None, "none", [], "")
            return self.weight @ x.t()
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, activation, [], "")
        y = F.linear(x, self.weight, self.bias)
        return F.silu(y, inplace=True) if activation == "swish" else y

    def add_to(self, x: Float[Tensor, "tokens into"], y: Float[Tensor, "tokens out"]) -> Float[Tensor, "tokens out"]:
        """`y` plus the product, in place. The bias is added first: oneDNN takes 3 ms more to add both at once."""
        y = y if self.bias is None else y.add_(self.bias)
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise(x, y, self.weight, None, "add")
        return y.addmm_(x, self.weight.t())


@dataclass(frozen=True)
class Quantised:
    """Activations as unsigned bytes around 128; `scale` is one number or a column with one per token."""

    values: Tensor
    scale: Tensor


class LinearInt8:
    """As `Linear`, with weights of one byte and one scale per output."""

    def __init__(self, weight: Float[Tensor, "out into"], bias: Float[Tensor, " out"] | None = None) -> None:
        weight = weight.float()
        self.scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        self.weight = torch.ops.onednn.qlinear_prepack((weight / self.scale[:, None]).round().to(torch.int8), None)
        self.zero = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = bias

    def __call__(self, x: Quantised, activation: str = "none") -> Float[Tensor, "tokens out"]:
        return self._product(x.values, x.scale.item(), self.bias, activation)

    def add_to(self, x: Quantised, y: Float[Tensor, "tokens out"]) -> Float[Tensor, "tokens out"]:
        """`y` plus the product, in place."""
        y = y if self.bias is None else y.add_(self.bias)
        return y.addcmul_(self._product(x.values, 1.0, None, "none"), x.scale)

    def _product(self, x: Tensor, scale: float, bias: Tensor | None, activation: str) -> Tensor:
        weight, out = (self.weight, self.scale, self.zero), torch.bfloat16
        return torch.ops.onednn.qlinear_pointwise(x, scale, 128, *weight, bias, 1.0, 0, out, activation, [], "")


def quantise(x: Float[Tensor, "tokens hidden"], *, per_token: bool) -> Quantised:
    """Round to 253 steps between minus and plus the largest magnitude, of each token or of all."""
    largest = x.abs().amax(1, keepdim=True) if per_token else torch.stack(x.aminmax()).abs().amax()
    scale = largest.clamp(min=1e-12) / 126  # not 127: the scale is itself rounded to bf16, and 128 would wrap round
    # By way of int8: torch's conversion of bf16 to uint8 is five times as slow.
    return Quantised((x / scale).round_().to(torch.int8).view(torch.uint8).add_(128), scale)


class FastBlock:
    """One `EncoderBlock` with packed weights; see there for the order of norms and residuals."""

    def __init__(self, block: EncoderBlock, precision: PackedPrecision) -> None:
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self.int8 = precision == "int8"
        size, width = block.attention.head_size, len(block.attention.output.weight)
        self.attention = best_attention(width // size, size, self.dtype)
        self.attention_norm, self.ffn_norm = _layer_norm(block.attention_norm), _layer_norm(block.ffn_norm)
        # In 8 bits the norm's weight and bias are part of the next layer: one scale for all columns then costs half
        # the error.
        self.standardise = partial(F.layer_norm, normalized_shape=(width,), eps=block.ffn_norm.eps)
        qkv, ffn = self.attention.arrange(block.attention.qkv.weight.detach()), block.ffn
        gate_up, bias = ffn.gate_up.weight.detach().float(), ffn.gate_up.bias.detach().float()
        linear: Any = LinearInt8 if self.int8 else partial(Linear, dtype=self.dtype)
        if self.int8:
            gate_up, bias = _fold(block.ffn_norm, gate_up, bias)
            self.qkv: Any = LinearInt8(*_fold(block.attention_norm, qkv))
        else:
            self.qkv = Linear(qkv, None, self.dtype, self.attention.is_channels_first)
        # x·σ(βx)·u is silu(βx)·u/β; a β of 0 gives x/2·u, and so does a very small one.
        beta = ffn.beta.detach().float() if ffn.beta.abs() > 1e-4 else torch.full((1,), 1e-4)
        (gate, up), (gate_bias, up_bias) = gate_up.chunk(2), bias.chunk(2)
        self.gate, self.up = linear(gate * beta, gate_bias * beta), linear(up / beta, up_bias / beta)
        self.output = linear(block.attention.output.weight.detach(), None)
        self.down = linear(ffn.down.weight.detach(), ffn.down.bias.detach())

    def __call__(self, x: Float[Tensor, "padded hidden"], plan: Plan) -> Float[Tensor, "padded hidden"]:
        normed = self.attention_norm(x)
        if not self.int8:
            x = self.output.add_to(self.attention(self.qkv(normed), plan), normed)
            y = self.ffn_norm(x)
            return self.down.add_to(self.gate(y, "swish").mul_(self.up(y)), x)
        qkv = self.qkv(quantise(self.standardise(x), per_token=False))
        y = self.attention(qkv.t().contiguous() if self.attention.is_channels_first else qkv, plan)
        x = self.output.add_to(quantise(y, per_token=True), normed)
        z = quantise(self.standardise(x), per_token=False)
        return self.down.add_to(quantise(self.gate(z, "swish").mul_(self.up(z)), per_token=True), x)


def _layer_norm(norm: torch.nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """The norm with copies of its weights in fp32, which keep nothing of the mapped file alive."""
    weight, bias = (parameter.detach().to(torch.float32, copy=True) for parameter in (norm.weight, norm.bias))
    return partial(F.layer_norm, normalized_shape=norm.normalized_shape, weight=weight, bias=bias, eps=norm.eps)


def _fold(norm: torch.nn.LayerNorm, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear layer after `norm`, for an input without the norm's own weight and bias."""
    shift = weight @ norm.bias.detach().float()
    return weight * norm.weight.detach().float(), shift if bias is None else shift + bias


class FastEncoder:
    """An `Encoder` packed for inference on a CPU.

    Its weights are copied once: from the encoder here, or block by block before, where the encoder's own are not kept.
    """

    def __init__(
        self, encoder: Encoder, precision: PackedPrecision = "bf16", blocks: Sequence[FastBlock] | None = None
    ) -> None:
        self.config = encoder.config
        self.embedding, self.final_norm = copy.deepcopy(encoder.embedding).float(), _layer_norm(encoder.final_norm)
        self.blocks = blocks or [FastBlock(block, precision) for block in encoder.blocks]  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(self, ids: Int[Tensor, " tokens"], layout: Layout, layers: Sequence[int]) -> list[Tensor]:
        """Packed states `(tokens, hidden)`, fp32, of the chosen layers: 0 the embedding, n the output of block n.

        The last block's output comes after the final layer norm.
        """
        config = self.config
        if layout.total == 0:
            return [torch.zeros(0, config.hidden_size) for _ in layers]
        first = self.blocks[0]
        plan = make_plan(layout, first.attention)
        embedded = self.embedding(ids)
        if config.token_dropout:
            embedded = drop_tokens(embedded, ids == config.mask_token_id, layout)
        x = torch.zeros(plan.total, config.hidden_size, dtype=first.dtype)
        x[plan.index] = embedded.to(first.dtype)
        states = {0: x[plan.index].float()} if 0 in layers else {}
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, plan)
            if number in layers:
                states[number] = x[plan.index].float()
        if (last := len(self.blocks)) in states:
            states[last] = self.final_norm(states[last])
        return [states[layer] for layer in layers]

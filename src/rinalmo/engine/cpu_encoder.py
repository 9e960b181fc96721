"""Linear layers for inference on a CPU, their weights packed for oneDNN once, in fp32, bf16 or 8 bits.

fp32 is never bf16 inside, whatever torch's global setting. In 8 bits activations are unsigned bytes around 128, with
one scale per call after a layer norm and one per token elsewhere; weights have one scale per output.

oneDNN's operators are looked up when a layer is made or called, and never at import: torch on a Mac has none. There
`PlainLinear` and `PlainTransposedLinear` do the same in fp32 by torch's own products.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rinalmo.engine.cpu_attention import Plan, best_attention, plan
from rinalmo.engine.devices import has_onednn
from rinalmo.model.encoder import Encoder, EncoderBlock, drop_tokens
from rinalmo.model.packing import Layout


class Linear:
    """A linear layer packed for oneDNN; the last argument of `__call__` is fused into the multiplication."""

    def __init__(self, weight: Float[Tensor, "out into"], bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))
        self.bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: Float[Tensor, "tokens into"], then: str = "none") -> Float[Tensor, "tokens out"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, then, [], "")

    def add_to(self, x: Float[Tensor, "tokens into"], y: Float[Tensor, "tokens out"]) -> Float[Tensor, "tokens out"]:
        """`y` plus the product. The bias is added first: oneDNN takes 3 ms more for it beside a second operand."""
        y = y if self.bias is None else y.add_(self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, y, self.weight, None, "add")


class TransposedLinear:
    """A linear layer without bias whose result comes out channels first: the tokens are the "weights" here."""

    def __init__(self, weight: Float[Tensor, "out into"], dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype)

    def __call__(self, x: Float[Tensor, "tokens into"]) -> Float[Tensor, "out tokens"]:
        return torch.ops.mkldnn._linear_pointwise(self.weight, x, None, "none", [], "")


class PlainLinear:
    """As `Linear` in fp32, without oneDNN's operators."""

    def __init__(self, weight: Float[Tensor, "out into"], bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype, copy=True)
        self.bias = None if bias is None else bias.to(dtype, copy=True)

    def __call__(self, x: Float[Tensor, "tokens into"], then: str = "none") -> Float[Tensor, "tokens out"]:
        y = F.linear(x, self.weight, self.bias)
        return F.silu(y, inplace=True) if then == "swish" else y

    def add_to(self, x: Float[Tensor, "tokens into"], y: Float[Tensor, "tokens out"]) -> Float[Tensor, "tokens out"]:
        """`y`, to which the product has been added in place."""
        y = y if self.bias is None else y.add_(self.bias)
        return y.addmm_(x, self.weight.t())


class PlainTransposedLinear:
    """As `TransposedLinear`, without oneDNN's operators."""

    def __init__(self, weight: Float[Tensor, "out into"], dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype, copy=True)

    def __call__(self, x: Float[Tensor, "tokens into"]) -> Float[Tensor, "out tokens"]:
        return self.weight @ x.t()


@dataclass(frozen=True)
class Quantised:
    """Activations as unsigned bytes around 128; `scale` is one number or a column with one per token."""

    values: Tensor
    scale: Tensor


class LinearInt8:
    """As `Linear`, with weights of one byte and one scale per output."""

    def __init__(self, weight: Float[Tensor, "out into"], bias: Tensor | None) -> None:
        weight = weight.float()
        self.scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        self.weight = torch.ops.onednn.qlinear_prepack((weight / self.scale[:, None]).round().to(torch.int8), None)
        self.zero = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = bias

    def __call__(self, x: Quantised, then: str = "none") -> Float[Tensor, "tokens out"]:
        return self._product(x.values, x.scale.item(), self.bias, then)

    def add_to(self, x: Quantised, y: Float[Tensor, "tokens out"]) -> Float[Tensor, "tokens out"]:
        """`y`, to which the product has been added in place."""
        y = y if self.bias is None else y.add_(self.bias)
        return y.addcmul_(self._product(x.values, 1.0, None, "none"), x.scale)

    def _product(self, x: Tensor, scale: float, bias: Tensor | None, then: str) -> Tensor:
        weight, out = (self.weight, self.scale, self.zero), torch.bfloat16
        return torch.ops.onednn.qlinear_pointwise(x, scale, 128, *weight, bias, 1.0, 0, out, then, [], "")


def quantise(x: Float[Tensor, "tokens hidden"], *, per_token: bool) -> Quantised:
    """Round to 253 steps between minus and plus the largest magnitude, of each token or of all."""
    largest = x.abs().amax(1, keepdim=True) if per_token else torch.stack(x.aminmax()).abs().amax()
    scale = largest.clamp(min=1e-12) / 126  # not 127: the scale is itself rounded to bf16, and 128 would wrap round
    # By way of int8: torch's conversion of bf16 to uint8 is five times as slow.
    return Quantised((x / scale).round_().to(torch.int8).view(torch.uint8).add_(128), scale)


Precision = Literal["fp32", "bf16", "int8"]
M = TypeVar("M", bound=torch.nn.Module)


class FastBlock:
    """One `EncoderBlock` with packed weights; see there for the order of norms and residuals."""

    def __init__(self, block: EncoderBlock, precision: Precision) -> None:
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self.int8, self.onednn = precision == "int8", has_onednn()
        size, hidden = block.attention.head_size, len(block.attention.output.weight)
        self.attention = best_attention(hidden // size, size, self.dtype)
        self.attention_norm, self.ffn_norm = _own(block.attention_norm), _own(block.ffn_norm)
        self.qkv = self._packed_qkv(block)
        ffn = block.ffn
        gate_up, bias = ffn.gate_up.weight.detach().float(), ffn.gate_up.bias.detach().float()
        if self.int8:
            gate_up, bias = _fold(block.ffn_norm, gate_up, bias)
        # x·σ(βx)·u is silu(βx)·u/β; a β of 0 gives x/2·u, and so does a very small one.
        beta = ffn.beta.detach().float() if ffn.beta.abs() > 1e-4 else torch.full((1,), 1e-4)
        (gate, up), (gate_bias, up_bias) = gate_up.chunk(2), bias.chunk(2)
        self.gate, self.up = self._pack(gate * beta, gate_bias * beta), self._pack(up / beta, up_bias / beta)
        self.output = self._pack(block.attention.output.weight.detach())
        self.down = self._pack(ffn.down.weight.detach(), ffn.down.bias.detach())

    def __call__(self, x: Float[Tensor, "filled hidden"], by: Plan) -> Float[Tensor, "filled hidden"]:
        normed = _norm(self.attention_norm, x)
        y = self.attention(self._queries_keys_values(x, normed), by)
        x = self.output.add_to(self._input(y), normed)
        z: Any = quantise(_standardise(self.ffn_norm, x), per_token=False) if self.int8 else _norm(self.ffn_norm, x)
        hidden = self.gate(z, "swish").mul_(self.up(z))
        return self.down.add_to(self._input(hidden), x)

    def _packed_qkv(self, block: EncoderBlock) -> Any:
        qkv = block.attention.qkv.weight.detach()
        weight = self.attention.arrange(qkv, torch.float32 if self.int8 else self.dtype)
        if self.int8:
            return LinearInt8(*_fold(block.attention_norm, weight))
        if not self.attention.transposed:
            return self._pack(weight)
        return (TransposedLinear if self.onednn else PlainTransposedLinear)(weight, self.dtype)

    def _queries_keys_values(self, x: Tensor, normed: Tensor) -> Tensor:
        """Laid out as the attention wants them."""
        if not self.int8:
            return self.qkv(normed)
        qkv = self.qkv(quantise(_standardise(self.attention_norm, x), per_token=False))
        return qkv.t().contiguous() if self.attention.transposed else qkv

    def _pack(self, weight: Tensor, bias: Tensor | None = None) -> Any:
        if self.int8:
            return LinearInt8(weight, bias)
        return (Linear if self.onednn else PlainLinear)(weight, bias, self.dtype)

    def _input(self, x: Tensor) -> Any:
        return quantise(x, per_token=True) if self.int8 else x


def _own(module: M) -> M:
    """A copy in fp32 that keeps nothing of the mapped file alive."""
    return copy.deepcopy(module).float()


def _norm(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _standardise(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    """The norm without its weight and bias: one scale for all columns then costs half the error."""
    return F.layer_norm(x, norm.normalized_shape, eps=norm.eps)


def _fold(norm: torch.nn.LayerNorm, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The linear layer after `norm` as one after `_standardise`."""
    shift = weight @ norm.bias.detach().float()
    return weight * norm.weight.detach().float(), shift if bias is None else shift + bias


class FastEncoder:
    """An `Encoder` packed for inference on a CPU.

    Its weights are copied, once, here: from the encoder, or block by block beforehand, where the encoder's own were
    not kept.
    """

    def __init__(
        self, encoder: Encoder, precision: Precision = "bf16", blocks: Sequence[FastBlock] | None = None
    ) -> None:
        self.config = encoder.config
        self.embedding, self.final_norm = _own(encoder.embedding), _own(encoder.final_norm)
        self.blocks = blocks or [FastBlock(block, precision) for block in encoder.blocks]  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(self, ids: Int[Tensor, " tokens"], layout: Layout, layers: Sequence[int]) -> list[Tensor]:
        """Packed states `(tokens, hidden)`, fp32, of the chosen layers: 0 the embedding, n block n's output.

        The last block's number stands for its output after the final layer norm.
        """
        if layout.total == 0:
            return [torch.zeros(0, self.config.hidden_size) for _ in layers]
        first = self.blocks[0]
        by = plan(layout, first.attention)
        x = torch.zeros(by.total, self.config.hidden_size, dtype=first.dtype)
        x[by.index] = self._embed(ids, layout).to(first.dtype)
        found = {0: x[by.index].float()} if 0 in layers else {}
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, by)
            if number in layers:
                found[number] = x[by.index].float()
        if (last := len(self.blocks)) in found:
            found[last] = self.final_norm(found[last])
        return [found[layer] for layer in layers]

    def _embed(self, ids: Tensor, layout: Layout) -> Tensor:
        x = self.embedding(ids)
        return drop_tokens(x, ids == self.config.mask_token_id, layout) if self.config.token_dropout else x

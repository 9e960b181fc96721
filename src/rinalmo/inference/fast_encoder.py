"""The encoder for inference on a CPU: the numbers of `rinalmo.model.encoder.Encoder`, several times as fast.

Matrix products go to oneDNN with weights packed once, or to torch in fp32 where it has no oneDNN operators
(`packed_linear`); attention goes to whichever of two forms this processor does best (`fast_attention`). Axis names are
those of `rinalmo.model`; `filled` is the token axis after filling up to few shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rinalmo.inference.cpu import has_onednn
from rinalmo.inference.fast_attention import Plan, best_attention, plan
from rinalmo.inference.packed_linear import (
    Linear,
    LinearInt8,
    PlainLinear,
    PlainTransposedLinear,
    TransposedLinear,
    quantise,
)
from rinalmo.model.block import EncoderBlock
from rinalmo.model.embedding import drop_tokens
from rinalmo.model.encoder import Encoder
from rinalmo.model.packing import Layout

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

"""The encoder for inference on a CPU: the numbers of `rinalmo.model.encoder.Encoder`, several times as fast.

Axis names are those of `rinalmo.model`. What surprises:

    transposed   queries, keys and values are kept channels first, `(rows, tokens)`: rotary positions and attention
                 then run along the tokens, which vectorises for every head size
    no maximum   attention weights are 2^score, summed by a row of ones under the values; the usual maximum is not
                 subtracted. Sums out of `SAFE` send the layer to `scaled_dot_product_attention`.
    padding      sequences of nearly equal length are filled up to the same one, so that they share few kernels
                 (oneDNN builds one per shape, about 1 ms each). The zero in the row of ones hides the fill.

Matrix work goes to oneDNN with weights packed once: fp32 (never bf16 inside, whatever the global setting), bf16, or
u8 × s8 with one scale per call after a layer norm, one scale per token elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rinalmo.model.block import EncoderBlock
from rinalmo.model.encoder import Encoder
from rinalmo.model.packing import Layout, Run
from rinalmo.model.rotary import rotation

Precision = Literal["fp32", "bf16", "int8"]

LOG2_E = 1.4426950408889634
SAFE = (2.0**-100, 2.0**100)
SCORES = 1 << 20  # elements of the attention matrix that are held at a time
STEP, SLACK = 8, 0.02  # lengths are filled up to a multiple of this, and to a neighbour's that is this much longer

_linear = torch.ops.mkldnn._linear_pointwise
_linear_int8 = torch.ops.onednn.qlinear_pointwise


class Linear:
    """A linear layer packed for oneDNN; the last argument of `__call__` is fused into the multiplication."""

    def __init__(self, weight: Float[Tensor, "out into"], bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype))
        self.bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: Float[Tensor, "tokens into"], then: str = "none") -> Float[Tensor, "tokens out"]:
        return _linear(x, self.weight, self.bias, then, [], "")

    def add_to(self, x: Float[Tensor, "tokens into"], y: Float[Tensor, "tokens out"]) -> Float[Tensor, "tokens out"]:
        """`y` plus the product. The bias is added first: oneDNN takes 3 ms more for it beside a second operand."""
        return _linear(x, y if self.bias is None else y.add_(self.bias), self.weight, None, "add")


@dataclass(frozen=True)
class Quantised:
    """Activations as unsigned bytes around 128; `scale` is one number or a column with one per token."""

    values: Tensor
    scale: Tensor


class LinearInt8:
    """As `Linear`, with weights of one byte and one scale per output."""

    def __init__(self, weight: Float[Tensor, "out into"], bias: Tensor | None) -> None:
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
        return _linear_int8(x, scale, 128, *weight, bias, 1.0, 0, out, then, [], "")


def quantise(x: Float[Tensor, "tokens hidden"], *, per_token: bool) -> Quantised:
    """Round to 253 steps between minus and plus the largest magnitude, of each token or of all."""
    largest = x.abs().amax(1, keepdim=True) if per_token else torch.stack(x.aminmax()).abs().amax()
    scale = largest.clamp(min=1e-12) / 126  # not 127: the scale is itself rounded to bf16, and 128 would wrap round
    # By way of int8: torch's conversion of bf16 to uint8 is five times as slow.
    return Quantised((x / scale).round_().to(torch.int8).view(torch.uint8).add_(128), scale)


@dataclass(frozen=True)
class Plan:
    """How a packed batch is laid out inside: its runs after filling up, and where its own tokens lie."""

    runs: tuple[Run, ...]
    index: Int[Tensor, " tokens"]
    hidden: Int[Tensor, " fill"]  # the columns that nothing may attend to
    cos: Float[Tensor, "half filled"]
    sin: Float[Tensor, "half filled"]


def plan(layout: Layout, head_size: int, dtype: torch.dtype) -> Plan:
    """Sort by length and fill up each sequence to a multiple of `STEP` or, within `SLACK`, to a longer neighbour."""
    order = sorted(range(len(layout.lengths)), key=lambda i: -layout.lengths[i])
    filled, longest = [], 0
    for i in order:
        length = -(-layout.lengths[i] // STEP) * STEP
        longest = longest if longest * (1 - SLACK) <= length <= longest else length
        filled.append(longest)
    inner = Layout(tuple(filled))
    starts = torch.zeros(len(order), dtype=torch.long)
    starts[order] = torch.tensor(inner.offsets[:-1])
    real = torch.tensor([layout.real_lengths[i] for i in order])
    hidden = torch.nonzero(inner.positions >= real[inner.sequence_ids])[:, 0]
    cos, sin = (table[:, 0].t().contiguous().to(dtype) for table in rotation(inner.positions, head_size))
    return Plan(inner.runs, starts[layout.sequence_ids] + layout.positions, hidden, cos, sin)


class FastBlock:
    """One `EncoderBlock` with packed weights; see there for the order of norms and residuals."""

    def __init__(self, block: EncoderBlock, precision: Precision) -> None:
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self.int8 = precision == "int8"
        self.heads = block.attention.output.weight.shape[0] // block.attention.head_size
        self.head_size = block.attention.head_size
        self.attention_norm, self.ffn_norm = block.attention_norm, block.ffn_norm
        qkv = _with_row_of_ones(block.attention.qkv.weight.detach(), self.heads, self.head_size)
        # In bf16 and fp32 the tokens are the "weights" of this product: it then comes out channels first.
        self.qkv: Any = LinearInt8(*_fold(block.attention_norm, qkv)) if self.int8 else qkv.to(self.dtype)
        ffn = block.ffn
        gate_up, bias = ffn.gate_up.weight.detach(), ffn.gate_up.bias.detach()
        if self.int8:
            gate_up, bias = _fold(block.ffn_norm, gate_up, bias)
        # x·σ(βx)·u is silu(βx)·u/β; a β of 0 gives x/2·u, and so does a very small one.
        beta = ffn.beta.detach() if ffn.beta.abs() > 1e-4 else torch.full((1,), 1e-4)
        (gate, up), (gate_bias, up_bias) = gate_up.chunk(2), bias.chunk(2)
        self.gate, self.up = self._pack(gate * beta, gate_bias * beta), self._pack(up / beta, up_bias / beta)
        self.output = self._pack(block.attention.output.weight.detach())
        self.down = self._pack(ffn.down.weight.detach(), ffn.down.bias.detach())

    def __call__(self, x: Float[Tensor, "filled hidden"], by: Plan) -> Float[Tensor, "filled hidden"]:
        normed = _norm(self.attention_norm, x)
        y = self._attention(self._qkv(x, normed), by).t().contiguous()
        x = self.output.add_to(self._input(y), normed)
        z: Any = quantise(_standardise(self.ffn_norm, x), per_token=False) if self.int8 else _norm(self.ffn_norm, x)
        hidden = self.gate(z, "swish").mul_(self.up(z))
        return self.down.add_to(self._input(hidden), x)

    def _pack(self, weight: Tensor, bias: Tensor | None = None) -> Any:
        return LinearInt8(weight, bias) if self.int8 else Linear(weight, bias, self.dtype)

    def _input(self, x: Tensor) -> Any:
        return quantise(x, per_token=True) if self.int8 else x

    def _qkv(self, x: Float[Tensor, "filled hidden"], normed: Float[Tensor, "filled hidden"]) -> Tensor:
        """Queries, keys, values and their row of ones, channels first."""
        if not self.int8:
            return _linear(self.qkv, normed, None, "none", [], "")
        return self.qkv(quantise(_standardise(self.attention_norm, x), per_token=False)).t().contiguous()

    def _attention(self, qkv: Float[Tensor, "rows filled"], by: Plan) -> Float[Tensor, "hidden filled"]:
        heads, size, tokens = self.heads, self.head_size, qkv.shape[1]
        qk = rotate(qkv[: 2 * heads * size].view(2 * heads, 2, size // 2, tokens), by)
        qk = qk.view(2, heads, size, tokens)
        values = qkv[2 * heads * size :].view(heads, size + 1, tokens)
        values[:, size] = 1.0
        values.index_fill_(2, by.hidden, 0.0)
        out = torch.empty_like(values)
        for run in by.runs:
            attend(qk, values, out, run)
        low, high = out[:, size].aminmax()
        if not (SAFE[0] < low.item() and high.item() < SAFE[1]):
            attend_safely(qk, values, out, by)
        return (out[:, :size] / out[:, size:]).flatten(0, 1)


def _norm(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _standardise(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    """The norm without its weight and bias: one scale for all columns then costs half the error."""
    return F.layer_norm(x, norm.normalized_shape, eps=norm.eps)


def _fold(norm: torch.nn.LayerNorm, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The linear layer after `norm` as one after `_standardise`."""
    shift = weight @ norm.bias.detach()
    return weight * norm.weight.detach(), shift if bias is None else shift + bias


def _with_row_of_ones(weight: Float[Tensor, "three_hidden hidden"], heads: int, size: int) -> Tensor:
    """The qkv matrix with the scale of the scores in its queries and a zero row after the values of each head."""
    q, k, v = weight.chunk(3)
    v = F.pad(v.view(heads, size, -1), (0, 0, 0, 1)).flatten(0, 1)
    return torch.cat((q * (LOG2_E * size**-0.5), k, v))


def rotate(x: Float[Tensor, "heads 2 half filled"], by: Plan) -> Float[Tensor, "heads 2 half filled"]:
    """`rinalmo.model.rotary.rotate` with the tokens last."""
    (a, b), out = x.unbind(1), torch.empty_like(x)
    torch.mul(a, by.cos, out=out[:, 0]).addcmul_(b, by.sin, value=-1)
    torch.mul(b, by.cos, out=out[:, 1]).addcmul_(a, by.sin)
    return out


def attend(
    qk: Float[Tensor, "2 heads head filled"],
    values: Float[Tensor, "heads head_and_one filled"],
    out: Float[Tensor, "heads head_and_one filled"],
    run: Run,
) -> None:
    """Write each head's weighted sum of the values, and of the row of ones, into this run's columns of `out`."""
    q, k = (_planes(x, run) for x in qk)
    v = _planes(values, run)
    result = torch.empty_like(v)
    for planes, columns in _blocks(len(v), run.length):
        scores = torch.bmm(k[planes].transpose(1, 2), q[planes, :, columns])
        torch.bmm(v[planes], scores.exp2_(), out=result[planes, :, columns])
    heads, rows, _ = out.shape
    out[..., run.start : run.stop].view(heads, rows, run.count, run.length).copy_(
        result.view(run.count, heads, rows, run.length).permute(1, 2, 0, 3)
    )


def _planes(x: Float[Tensor, "heads rows filled"], run: Run) -> Float[Tensor, "planes rows length"]:
    heads, rows, _ = x.shape
    x = x[..., run.start : run.stop].view(heads, rows, run.count, run.length)
    return x.permute(2, 0, 1, 3).reshape(-1, rows, run.length)


def _blocks(planes: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of planes and of queries whose scores stay within `SCORES` elements."""
    step = min(planes, max(4, SCORES // length**2))
    columns = min(length, max(64, SCORES // (step * length) // 64 * 64))
    for first in range(0, planes, step):
        for column in range(0, length, columns):
            yield slice(first, first + step), slice(column, column + columns)


def attend_safely(qk: Tensor, values: Tensor, out: Tensor, by: Plan) -> None:
    """As `attend` for every run, by torch's own kernel; the row of ones becomes 1."""
    for run in by.runs:
        q, k = (_planes(x, run).transpose(1, 2) for x in qk)
        v = _planes(values, run)
        hidden = torch.where(v[:, -1] > 0, 0.0, float("-inf")).to(v.dtype)[:, None]
        # The queries carry log2(e), for which 2^score needs no scale; e^score needs it back.
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), attn_mask=hidden, scale=1 / LOG2_E)
        heads, rows, _ = out.shape
        out[..., run.start : run.stop].view(heads, rows, run.count, run.length).copy_(
            y.view(run.count, heads, run.length, rows).permute(1, 3, 0, 2)
        )


class FastEncoder:
    """An `Encoder` packed for inference on a CPU. The encoder's weights are copied, once, here."""

    def __init__(self, encoder: Encoder, precision: Precision = "bf16") -> None:
        self.config = encoder.config
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self.embedding, self.final_norm = encoder.embedding, encoder.final_norm
        self.blocks = [FastBlock(block, precision) for block in encoder.blocks if isinstance(block, EncoderBlock)]

    @torch.inference_mode()
    def __call__(self, ids: Int[Tensor, " tokens"], layout: Layout, layers: Sequence[int]) -> list[Tensor]:
        """Packed states `(tokens, hidden)`, fp32, of the chosen layers: 0 the embedding, n block n's output.

        The last block's number stands for its output after the final layer norm.
        """
        if layout.total == 0:
            return [torch.zeros(0, self.config.hidden_size) for _ in layers]
        by = plan(layout, self.config.head_size, self.dtype)
        x = torch.zeros(by.cos.shape[1], self.config.hidden_size, dtype=self.dtype)
        x[by.index] = self.embedding(ids, layout).to(self.dtype)
        found = {0: x[by.index].float()} if 0 in layers else {}
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, by)
            if number in layers:
                found[number] = x[by.index].float()
        if (last := len(self.blocks)) in found:
            found[last] = self.final_norm(found[last])
        return [found[layer] for layer in layers]


def is_available() -> bool:
    """Whether this build of torch has the oneDNN operators that the fast encoder is made of."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.onednn, "qlinear_pointwise")
    )

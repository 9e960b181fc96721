"""The encoder for inference on a CPU: weights packed for oneDNN once, in fp32, bf16 or 8 bits, and its own attention.

fp32 is never bf16 inside, whatever torch's global setting. In 8 bits activations are unsigned bytes around 128, with
one scale per call after a layer norm and one per token elsewhere; weights have one scale per output.

oneDNN's operators are looked up when a layer is made or called, and never at import: torch on a Mac has none. There
`Linear` computes the same in fp32 by torch's own products.

Attention has two memory layouts of queries, keys and values; each is faster somewhere:

    ChannelsFirst   `(rows, tokens)`: rotary positions and scores run along the tokens, which vectorizes for every
                    head size; narrow heads in fp32, all in bf16 on processors without matrix tiles (AMX)
    TokensFirst     `(tokens, rows)`: wide heads in fp32, all in bf16 on processors with AMX

Sequences from `long` on go to torch's `scaled_dot_product_attention`. For shorter ones, attention weights are 2^score,
summed by a column of ones beside the values, and the usual maximum is not subtracted. Where a sum leaves the range
`SAFE_SUMS`, torch's kernel, which subtracts it, computes again.

`benchmarks/attention_speed.py` measures where each layout wins.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rinalmo.engine.devices import has_onednn
from rinalmo.model.kernels import Rotation, channels_first, rotate_channels_first, rotation
from rinalmo.model.packing import EqualLengthGroup, Layout, gather_heads, scatter_heads
from rinalmo.model.rinalmo import Encoder, EncoderBlock, drop_tokens
from rinalmo.weights.adapters import LowRank

LOG2_E = 1.4426950408889634
SAFE_SUMS = (2.0**-100, 2.0**100)
SCORES = 5 << 18  # elements of the attention matrix that are held at a time


@dataclass(frozen=True)
class Plan:
    """A packed batch as the fast encoder computes it: sorted by length and padded.

    There are few shapes: oneDNN builds a kernel for each, which takes about a millisecond and keeps 0.6 MB. Lengths are
    padded to 16 sizes per doubling, the number of tokens to 32, and a group has 1, 4, 16, … sequences. Nothing attends
    to padding.

    groups          the sequences, padded, by equal length
    has_padding     whether a group has padding
    end             number of tokens in all groups
    total           `end`, padded
    index           `(tokens,)` where the batch's own tokens are
    pad_positions   `(padding,)` where the groups' padding is
    rope            rotary positions in the memory layout of the attention
    """

    groups: tuple[EqualLengthGroup, ...]
    has_padding: tuple[bool, ...]
    end: int
    total: int
    index: Int[Tensor, " tokens"]
    pad_positions: Int[Tensor, " padding"]
    rope: Rotation


def make_plan(layout: Layout, attention: ChannelsFirst | TokensFirst) -> Plan:
    """Sort by length, pad all but `long` sequences, and split groups of equal length."""
    order = sorted(range(len(layout.lengths)), key=layout.lengths.__getitem__, reverse=True)
    long = float("inf") if attention.long is None else attention.long
    lengths = [layout.lengths[i] for i in order]
    padded = Layout(tuple(n if n >= long else _padded(n, 16, minimum=8) for n in lengths))
    groups = [
        part for group in padded.groups for part in ([group] if group.length >= long else _split(group, attention))
    ]
    total = _padded(padded.total, 32, minimum=32)
    starts = torch.zeros(len(order), dtype=torch.long)
    starts[order] = torch.tensor(padded.offsets[:-1])
    is_padding = padded.indices >= torch.tensor(layout.valid_lengths)[order][padded.sequence_ids]
    rope = rotation(F.pad(padded.indices, (0, total - padded.total)), attention.head_size)
    if isinstance(attention, ChannelsFirst):
        rope = channels_first(rope, attention.dtype)
    else:
        rope = Rotation(rope.cos[:, :, None].to(attention.dtype), rope.sin[:, :, None].to(attention.dtype))
    return Plan(
        groups=tuple(groups),
        has_padding=tuple([bool(is_padding[group.start : group.stop].any()) for group in groups]),
        end=padded.total,
        total=total,
        index=starts[layout.sequence_ids] + layout.indices,
        pad_positions=is_padding.nonzero()[:, 0],
        rope=rope,
    )


def _padded(size: int, steps: int, *, minimum: int) -> int:
    """The size rounded up to one of `steps` sizes for each doubling, which are multiples of `minimum`."""
    step = max(minimum, (1 << (size - 1).bit_length()) // (2 * steps))
    return -(-size // step) * step


def _split(group: EqualLengthGroup, attention: ChannelsFirst | TokensFirst) -> Iterator[EqualLengthGroup]:
    """Groups of 1, 4, 16, … sequences, the largest first, with at most `SCORES` attention weights or one sequence."""
    start, count = group.start, 1
    while 4 * count * attention.heads * group.length**2 <= SCORES:
        count *= 4
    while start < group.stop:
        while start + count * group.length > group.stop:
            count //= 4
        yield replace(group, start=start, stop=start + count * group.length, count=count)
        start += count * group.length


class ChannelsFirst:
    """Queries, keys and values as `(rows, tokens)`; below the values of each head is a row of ones."""

    is_channels_first = True

    def __init__(self, heads: int, head_size: int, dtype: torch.dtype) -> None:
        self.heads, self.head_size, self.dtype = heads, head_size, dtype
        # From this length on torch's kernel is the faster one; in bf16 without matrix tiles it never is.
        self.long: int | None = 256 if dtype == torch.float32 else None

    def arrange(self, weight: Float[Tensor, "three_hidden hidden"]) -> Float[Tensor, "rows hidden"]:
        """The qkv matrix in fp32 with scaled queries and, after the values of each head, a row of zeros."""
        q, k, v = _with_scaled_queries(weight, self.head_size)
        return torch.cat((q, k, F.pad(v.view(self.heads, self.head_size, -1), (0, 0, 0, 1)).flatten(0, 1)))

    def __call__(self, qkv: Float[Tensor, "rows padded"], plan: Plan) -> Float[Tensor, "padded hidden"]:
        heads, size, tokens = self.heads, self.head_size, qkv.shape[1]
        q, k = rotate_channels_first(qkv[: 2 * heads * size].view(2, heads, size, tokens), *plan.rope)
        values = qkv[2 * heads * size :].view(heads, size + 1, tokens)
        values[:, size] = 1.0
        values.index_fill_(2, plan.pad_positions, 0.0)
        out = torch.empty_like(values)
        out[..., plan.end :] = 1.0
        for group, has_padding in zip(plan.groups, plan.has_padding, strict=True):
            if self.long is not None and group.length >= self.long:
                self._attend_by_kernel(q, k, values, out, group, has_padding)
            else:
                self._attend(q, k, values, out, group)
        if not _are_safe(out[:, size]):
            for group, has_padding in zip(plan.groups, plan.has_padding, strict=True):
                self._attend_by_kernel(q, k, values, out, group, has_padding)
        return (out[:, :size] / out[:, size:]).flatten(0, 1).t().contiguous()

    def _attend(self, q: Tensor, k: Tensor, values: Tensor, out: Tensor, group: EqualLengthGroup) -> None:
        """Write each head's weighted sum of the values, and of the row of ones, into this group's columns of `out`."""
        q, k, v = gather_heads(q, group), gather_heads(k, group), gather_heads(values, group)
        result = torch.empty_like(v)
        matrices, length = len(v), group.length
        step, columns = matrices, length
        while step * length * columns > SCORES:  # of one sequence; halves, so that all parts have one shape
            if step % 2 == 0 and step >= 8:
                step //= 2
            elif columns > 64:
                columns = -(-columns // 2)
            else:
                break
        for first in range(0, matrices, step):
            block = slice(first, first + step)
            for column in range(0, length, columns):
                queries = slice(column, column + columns)
                scores = torch.bmm(k[block].transpose(1, 2), q[block, :, queries])
                torch.bmm(v[block], scores.exp2_(), out=result[block, :, queries])
        scatter_heads(out, group, result)

    def _attend_by_kernel(
        self, q: Tensor, k: Tensor, values: Tensor, out: Tensor, group: EqualLengthGroup, has_padding: bool
    ) -> None:
        """As `_attend`, by torch's own kernel; the row of ones becomes 1."""
        size, shape = self.head_size, (group.count, self.heads)
        q, k, v = (
            gather_heads(x, group).transpose(1, 2).contiguous().unflatten(0, shape) for x in (q, k, values[:, :size])
        )
        ones = values[0, size, group.start : group.stop].view(group.count, 1, 1, group.length)
        y = _softmax_attention(q, k, v, ones if has_padding else None)
        scatter_heads(out[:, :size], group, y.flatten(0, 1).transpose(1, 2))
        out[:, size, group.start : group.stop] = 1.0


class TokensFirst:
    """Queries, keys and values as `(tokens, rows)`.

    The order of the matrix's rows brings together, for all heads, the halves that rotary positions mix.
    """

    is_channels_first = False

    def __init__(self, heads: int, head_size: int, dtype: torch.dtype) -> None:
        self.heads, self.head_size, self.dtype = heads, head_size, dtype
        self.long: int | None = 256 if head_size < 32 else 144  # from this length on torch's kernel is the faster one

    def arrange(self, weight: Float[Tensor, "three_hidden hidden"]) -> Float[Tensor, "rows hidden"]:
        """The qkv matrix in fp32 with scaled queries, and halves before heads in queries and keys."""
        shape = (self.heads, 2, self.head_size // 2, weight.shape[1])
        q, k, v = _with_scaled_queries(weight, self.head_size)
        q, k = q.view(shape).transpose(0, 1).flatten(0, 2), k.view(shape).transpose(0, 1).flatten(0, 2)
        return torch.cat((q, k, v))

    def __call__(self, qkv: Float[Tensor, "padded rows"], plan: Plan) -> Float[Tensor, "padded hidden"]:
        heads, size, width = self.heads, self.head_size, self.heads * self.head_size
        a, b = qkv[:, : 2 * width].view(len(qkv), 2, 2, heads, size // 2).unbind(2)
        rotated = torch.empty(len(qkv), 2, heads, 2, size // 2, dtype=qkv.dtype)
        torch.mul(a, plan.rope.cos, out=rotated[:, :, :, 0]).addcmul_(b, plan.rope.sin, value=-1)
        torch.mul(b, plan.rope.cos, out=rotated[:, :, :, 1]).addcmul_(a, plan.rope.sin)
        q, k = rotated.flatten(3).unbind(1)
        v = qkv[:, 2 * width :].view(-1, heads, size)
        v.index_fill_(0, plan.pad_positions, 0.0)
        ones = v.new_ones(plan.total, 1, 1).index_fill_(0, plan.pad_positions, 0.0).expand(-1, heads, -1)
        out = torch.empty(plan.total, heads, size, dtype=qkv.dtype)
        out[plan.end :] = 0.0
        for group, has_padding in zip(plan.groups, plan.has_padding, strict=True):
            qs, ks, vs, ones_s = (_heads_of(x, group) for x in (q, k, v, ones))
            key_padding_mask = ones_s[:, :1, None, :, 0] if has_padding else None
            if self.long is not None and group.length >= self.long:
                result = _softmax_attention(qs, ks, vs, key_padding_mask)
            else:
                result = self._attend(qs, ks, vs, ones_s, key_padding_mask)
            _heads_of(out, group).copy_(result)
        return out.flatten(1)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, ones: Tensor, key_padding_mask: Tensor | None
    ) -> Float[Tensor, "count heads length head"]:
        shape = q.shape[:2]
        scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
        sums = torch.bmm(scores.exp2_(), torch.cat((v, ones), -1).flatten(0, 1)).unflatten(0, shape)
        total = sums[..., self.head_size :]
        if not _are_safe(total):
            return _softmax_attention(q, k, v, key_padding_mask)
        return sums[..., : self.head_size] / total


def best_attention(heads: int, head_size: int, dtype: torch.dtype) -> ChannelsFirst | TokensFirst:
    """The faster of the two on this processor."""
    if dtype == torch.float32:
        return (TokensFirst if head_size >= 32 else ChannelsFirst)(heads, head_size, dtype)
    return (TokensFirst if torch.cpu._is_amx_tile_supported() else ChannelsFirst)(heads, head_size, dtype)


def _with_scaled_queries(weight: Tensor, head_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices of queries, keys and values; queries have the factor of the scores, for powers of 2."""
    q, k, v = weight.float().chunk(3)
    return q * (LOG2_E * head_size**-0.5), k, v


def _are_safe(sums: Tensor) -> bool:
    """Whether sums of 2^score are accurate although the maximum was not subtracted."""
    low, high = sums.aminmax()
    return SAFE_SUMS[0] < low.item() and high.item() < SAFE_SUMS[1]


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """Attention by torch's kernel. Queries have the factor log2(e) of `_with_scaled_queries`, which is taken back.

    `key_padding_mask`, `(count, 1, 1, length)`, is 0 where nothing may attend; None stands for no padding.
    """
    mask = None if key_padding_mask is None else torch.where(key_padding_mask > 0, 0.0, float("-inf")).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1 / LOG2_E)


def _heads_of(x: Float[Tensor, "padded heads any"], group: EqualLengthGroup) -> Float[Tensor, "count heads length any"]:
    return x[group.start : group.stop].unflatten(0, (group.count, group.length)).transpose(1, 2)


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

    def add_to(
        self, x: Float[Tensor, "tokens into"], y: Float[Tensor, "rows columns"]
    ) -> Float[Tensor, "rows columns"]:
        """`y` plus the product, in place. The bias is added first: oneDNN takes 3 ms more to add both at once."""
        if self.channels_first:
            return y.addmm_(self.weight, x.t())
        y = y if self.bias is None else y.add_(self.bias)
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise(x, y, self.weight, None, "add")
        return y.addmm_(x, self.weight.t())


@dataclass(frozen=True)
class Quantised:
    """Activations as unsigned bytes around 128; `scale` is one number or a column with one per token.

    `exact` are those that were rounded.
    """

    values: Tensor
    scale: Tensor
    exact: Tensor


class LinearInt8:
    """As `Linear`, with weights of one byte and one scale per output."""

    def __init__(self, weight: Float[Tensor, "out into"], bias: Float[Tensor, " out"] | None = None) -> None:
        weight = weight.float()
        self.scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        self.weight = torch.ops.onednn.qlinear_prepack((weight / self.scale[:, None]).round_().to(torch.int8), None)
        self.zero = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if bias is None else bias.to(torch.float32, copy=True)  # a view would keep the file mapped

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
    return Quantised((x / scale).round_().to(torch.int8).view(torch.uint8).add_(128), scale, x)


class LowRankLinear:
    """A packed layer, and beside it the change of its weight by an adapter, B A, which 8 bits do not round.

    In 8 bits the layer may take activations without the weight and bias of the `norm` before it, as A does then.
    """

    def __init__(
        self,
        layer: Linear | LinearInt8 | LowRankLinear,
        a: Float[Tensor, "rank into"],
        b: Float[Tensor, "out rank"],
        dtype: torch.dtype,
        norm: partial[Tensor] | None = None,
    ) -> None:
        self.layer, self.channels_first = layer, getattr(layer, "channels_first", False)
        weight, bias = (a.float(), None) if norm is None else _fold(norm, a.float())
        self.a = Linear(weight, bias, dtype)
        self.b = Linear(b, None, dtype, self.channels_first)

    def __call__(self, x: Any, activation: str = "none") -> Float[Tensor, "rows columns"]:
        y = self._change(x, self.layer(x))
        return F.silu(y, inplace=True) if activation == "swish" else y

    def add_to(self, x: Any, y: Float[Tensor, "tokens out"]) -> Float[Tensor, "tokens out"]:
        """`y` plus the product, in place."""
        return self._change(x, self.layer.add_to(x, y))

    def _change(self, x: Any, y: Tensor) -> Tensor:
        return self.b.add_to(self.a(x.exact if isinstance(x, Quantised) else x), y)


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
            gate_up, bias = _fold(self.ffn_norm, gate_up, bias)
            self.qkv: Any = LinearInt8(*_fold(self.attention_norm, qkv))
        else:
            self.qkv = Linear(qkv, None, self.dtype, self.attention.is_channels_first)
        # x·σ(βx)·u is silu(βx)·u/β; a β of 0 gives x/2·u, and so does a very small one.
        self.beta = beta = ffn.beta.detach().float().clone() if ffn.beta.abs() > 1e-4 else torch.full((1,), 1e-4)
        (gate, up), (gate_bias, up_bias) = gate_up.chunk(2), bias.chunk(2)
        self.gate: Any = linear(gate * beta, gate_bias * beta)
        self.up: Any = linear(up / beta, up_bias / beta)
        self.output: Any = linear(block.attention.output.weight.detach(), None)
        self.down: Any = linear(ffn.down.weight.detach(), ffn.down.bias.detach())

    def with_adapter(self, changes: Mapping[str, LowRank]) -> FastBlock:
        """The block with changes beside its packed weights, which the two share."""
        block = copy.copy(self)
        for name, change in changes.items():
            a, b = change.a, change.b.float() * change.scale
            low_rank = partial(LowRankLinear, a=a, dtype=self.dtype)
            norms = (self.attention_norm, self.ffn_norm) if self.int8 else (None, None)
            match name:
                case "attention.qkv.weight":
                    block.qkv = low_rank(self.qkv, b=self.attention.arrange(b), norm=norms[0])
                case "attention.output.weight":
                    block.output = low_rank(self.output, b=b)
                case "ffn.gate_up.weight":
                    gate, up = b.chunk(2)
                    block.gate = low_rank(self.gate, b=gate * self.beta, norm=norms[1])
                    block.up = low_rank(self.up, b=up / self.beta, norm=norms[1])
                case "ffn.down.weight":
                    block.down = low_rank(self.down, b=b)
                case _:
                    raise ValueError(f"no matrix {name}")
        return block

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


def _layer_norm(norm: torch.nn.LayerNorm) -> partial[Tensor]:
    """The norm with copies of its weights in fp32, which keep nothing of the mapped file alive."""
    weight, bias = (parameter.detach().to(torch.float32, copy=True) for parameter in (norm.weight, norm.bias))
    return partial(F.layer_norm, normalized_shape=norm.normalized_shape, weight=weight, bias=bias, eps=norm.eps)


def _fold(norm: partial[Tensor], weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear layer after `norm`, for an input without the norm's own weight and bias."""
    shift = weight @ norm.keywords["bias"]
    return weight * norm.keywords["weight"], shift if bias is None else shift + bias


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

    def with_adapter(self, changes: Sequence[Mapping[str, LowRank]]) -> FastEncoder:
        """The encoder with changes of each block's matrices beside the packed weights, which the two share."""
        encoder = copy.copy(self)
        encoder.blocks = [block.with_adapter(own) for block, own in zip(self.blocks, changes, strict=True)]
        return encoder

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

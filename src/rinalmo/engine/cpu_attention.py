"""Attention of the fast encoder, in two memory layouts of queries, keys and values; each is faster somewhere.

    ChannelsFirst   `(rows, tokens)`: rotary positions and scores run along the tokens, which vectorises for every
                    head size; narrow heads in fp32, all in bf16 on processors without matrix tiles (AMX)
    TokensFirst     `(tokens, rows)`: wide heads in fp32, all in bf16 on processors with AMX

Sequences from `long` on go to torch's `scaled_dot_product_attention`. For shorter ones, attention weights are 2^score,
summed by a column of ones beside the values, and the usual maximum is not subtracted. Where a sum leaves the range
`SAFE_SUMS`, torch's kernel, which subtracts it, computes again.

`benchmarks/attention_speed.py` measures where each layout wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rinalmo.model.kernels import Rotation, channels_first, rotate_channels_first, rotation
from rinalmo.model.packing import EqualLengthGroup, Layout, gather_heads, scatter_heads

LOG2_E = 1.4426950408889634
SAFE_SUMS = (2.0**-100, 2.0**100)
SCORES = 1 << 20  # elements of the attention matrix that are held at a time
STEP, SLACK = 8, 0.02  # lengths are padded to a multiple of STEP, and to a neighbour's that is longer by up to SLACK
ROWS = 32  # the number of tokens is padded to a multiple of this


@dataclass(frozen=True)
class Plan:
    """A packed batch as the fast encoder computes it: sorted by length and padded.

    Lengths and the number of tokens are padded so that there are few shapes: oneDNN builds a kernel for each, in about
    a millisecond. Nothing attends to padding.

    groups          the sequences, padded, by equal length
    has_padding     whether a group has padding
    end             number of tokens in all groups
    total           `end`, rounded up to a multiple of `ROWS`
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
    """Sort by length; pad all but `long` sequences to a multiple of `STEP` or, within `SLACK`, to a longer one."""
    order = sorted(range(len(layout.lengths)), key=layout.lengths.__getitem__, reverse=True)
    lengths, longest = [], 0
    for i in order:
        length = layout.lengths[i]
        if attention.long is None or length < attention.long:
            length = -(-length // STEP) * STEP
            longest = longest if longest * (1 - SLACK) <= length <= longest else length
            length = longest
        lengths.append(length)
    padded = Layout(tuple(lengths))
    total = -(-padded.total // ROWS) * ROWS
    starts = torch.zeros(len(order), dtype=torch.long)
    starts[order] = torch.tensor(padded.offsets[:-1])
    is_padding = padded.indices >= torch.tensor(layout.valid_lengths)[order][padded.sequence_ids]
    rope = rotation(F.pad(padded.indices, (0, total - padded.total)), attention.head_size)
    if isinstance(attention, ChannelsFirst):
        rope = channels_first(rope, attention.dtype)
    else:
        rope = Rotation(rope.cos[:, :, None].to(attention.dtype), rope.sin[:, :, None].to(attention.dtype))
    return Plan(
        groups=padded.groups,
        has_padding=tuple([bool(is_padding[group.start : group.stop].any()) for group in padded.groups]),
        end=padded.total,
        total=total,
        index=starts[layout.sequence_ids] + layout.indices,
        pad_positions=is_padding.nonzero()[:, 0],
        rope=rope,
    )


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
        step = min(matrices, max(4, SCORES // length**2))
        columns = min(length, max(64, SCORES // (step * length) // 64 * 64))
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

"""Attention of the fast encoder: two ways to lay out queries, keys and values, each the faster one somewhere.

    ChannelsFirst   `(rows, tokens)`: rotary positions and scores run along the tokens, which vectorises for every
                    head size; narrow heads in fp32, all in bf16 on processors without matrix tiles (AMX)
    TokensFirst     `(tokens, rows)`: wide heads in fp32, all in bf16 on processors with AMX

Sequences from `long` on go to torch's `scaled_dot_product_attention`. What surprises in the rest: attention weights are
2^score, summed by a column of ones beside the values, and the usual maximum is not subtracted. Sums out of `SAFE` send
the work to torch's kernel, which subtracts it.

`benchmarks/attention_speed.py` measures where each wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rinalmo.model.kernels import rotation
from rinalmo.model.packing import EqualLengthGroup, Layout, gather_heads, scatter_heads

LOG2_E = 1.4426950408889634
SAFE = (2.0**-100, 2.0**100)
SCORES = 1 << 20  # elements of the attention matrix that are held at a time
STEP, SLACK = 8, 0.02  # lengths are filled up to a multiple of this, and to a neighbour's that is this much longer
ROWS = 32  # the number of tokens is filled up to a multiple of this


@dataclass(frozen=True)
class Plan:
    """How a packed batch is laid out inside: its runs after filling up, and where its own tokens lie.

    Lengths and the number of tokens are filled up so that there are few shapes: oneDNN builds a kernel for each, in
    about a millisecond. Nothing attends to what was filled in.
    """

    groups: tuple[EqualLengthGroup, ...]
    filled: tuple[bool, ...]  # whether a run has places that nothing may attend to
    total: int
    index: Int[Tensor, " tokens"]
    hidden: Int[Tensor, " fill"]  # those places
    cos: Tensor
    sin: Tensor

    @property
    def end(self) -> int:
        """One past the last run."""
        return self.groups[-1].stop if self.groups else 0


def plan(layout: Layout, attention: ChannelsFirst | TokensFirst) -> Plan:
    """Sort by length and fill up each sequence to a multiple of `STEP` or, within `SLACK`, to a longer neighbour."""
    order = sorted(range(len(layout.lengths)), key=lambda i: -layout.lengths[i])
    inner = Layout(tuple(_filled([layout.lengths[i] for i in order], attention.long)))
    total = -(-inner.total // ROWS) * ROWS
    starts = torch.zeros(len(order), dtype=torch.long)
    starts[order] = torch.tensor(inner.offsets[:-1])
    real = torch.tensor([layout.valid_lengths[i] for i in order])
    fill = inner.indices >= real[inner.sequence_ids]
    filled = tuple(bool(fill[run.start : run.stop].any()) for run in inner.groups)
    hidden = torch.nonzero(fill)[:, 0]
    positions = F.pad(inner.indices, (0, total - inner.total))
    index = starts[layout.sequence_ids] + layout.indices
    return Plan(inner.groups, filled, total, index, hidden, *attention.tables(positions))


def _filled(lengths: Sequence[int], long: int | None) -> list[int]:
    """Lengths after filling up; descending, as they came. What `long` says is left as it is."""
    filled, longest = [], 0
    for length in lengths:
        if long is not None and length >= long:
            filled.append(length)
            continue
        length = -(-length // STEP) * STEP
        longest = longest if longest * (1 - SLACK) <= length <= longest else length
        filled.append(longest)
    return filled


class ChannelsFirst:
    """Queries, keys and values as `(rows, tokens)`; a row of ones stands under the values of each head."""

    transposed = True

    def __init__(self, heads: int, size: int, dtype: torch.dtype) -> None:
        self.heads, self.size, self.dtype = heads, size, dtype
        # From this length on torch's kernel is the faster one; in bf16 without matrix tiles it never is.
        self.long: int | None = 256 if dtype == torch.float32 else None

    def arrange(self, weight: Float[Tensor, "three_hidden hidden"], dtype: torch.dtype) -> Float[Tensor, "rows hidden"]:
        """The qkv matrix with the scale of the scores in its queries and a zero row after the values of each head."""
        q, k, v = _scaled(weight, self.size, dtype)
        return torch.cat((q, k, F.pad(v.view(self.heads, self.size, -1), (0, 0, 0, 1)).flatten(0, 1)))

    def tables(self, positions: Int[Tensor, " filled"]) -> tuple[Tensor, Tensor]:
        """Cosines and sines `(half, filled)`."""
        cos, sin = (table[:, 0].t().contiguous().to(self.dtype) for table in rotation(positions, self.size))
        return cos, sin

    def __call__(self, qkv: Float[Tensor, "rows filled"], by: Plan) -> Float[Tensor, "filled hidden"]:
        heads, size, tokens = self.heads, self.size, qkv.shape[1]
        qk = self._rotated(qkv[: 2 * heads * size].view(2 * heads, 2, size // 2, tokens), by)
        values = qkv[2 * heads * size :].view(heads, size + 1, tokens)
        values[:, size] = 1.0
        values.index_fill_(2, by.hidden, 0.0)
        out = torch.empty_like(values)
        out[..., by.end :] = 1.0
        for run, filled in zip(by.groups, by.filled, strict=True):
            if self.long is not None and run.length >= self.long:
                self._attend_by_kernel(qk, values, out, run, filled)
            else:
                self._attend(qk, values, out, run)
        if not _safe(out[:, size]):
            for run, filled in zip(by.groups, by.filled, strict=True):
                self._attend_by_kernel(qk, values, out, run, filled)
        return (out[:, :size] / out[:, size:]).flatten(0, 1).t().contiguous()

    def _rotated(self, x: Float[Tensor, "heads 2 half filled"], by: Plan) -> Float[Tensor, "2 heads head filled"]:
        (a, b), out = x.unbind(1), torch.empty_like(x)
        torch.mul(a, by.cos, out=out[:, 0]).addcmul_(b, by.sin, value=-1)
        torch.mul(b, by.cos, out=out[:, 1]).addcmul_(a, by.sin)
        return out.view(2, self.heads, self.size, x.shape[-1])

    def _attend(self, qk: Tensor, values: Tensor, out: Tensor, run: EqualLengthGroup) -> None:
        """Write each head's weighted sum of the values, and of the row of ones, into this run's columns of `out`."""
        q, k = (gather_heads(x, run) for x in qk)
        v = gather_heads(values, run)
        result = torch.empty_like(v)
        for block, columns in _blocks(len(v), run.length):
            scores = torch.bmm(k[block].transpose(1, 2), q[block, :, columns])
            torch.bmm(v[block], scores.exp2_(), out=result[block, :, columns])
        scatter_heads(out, run, result)

    def _attend_by_kernel(self, qk: Tensor, values: Tensor, out: Tensor, run: EqualLengthGroup, filled: bool) -> None:
        """As `_attend`, by torch's own kernel; the row of ones becomes 1."""
        heads = (run.count, self.heads)
        q, k, v = (
            gather_heads(x, run).transpose(1, 2).contiguous().unflatten(0, heads) for x in (*qk, values[:, : self.size])
        )
        shown = values[0, self.size, run.start : run.stop].view(run.count, 1, 1, run.length) if filled else None
        y = _softmax_attention(q, k, v, shown)
        scatter_heads(out[:, : self.size], run, y.flatten(0, 1).transpose(1, 2))
        out[:, self.size, run.start : run.stop] = 1.0


class TokensFirst:
    """Queries, keys and values as `(tokens, rows)`.

    The halves that rotary positions turn against each other are brought together, for all heads, by the order of the
    matrix's rows.
    """

    transposed = False

    def __init__(self, heads: int, size: int, dtype: torch.dtype) -> None:
        self.heads, self.size, self.dtype = heads, size, dtype
        self.long: int | None = 256 if size < 32 else 144  # from this length on torch's kernel is the faster one

    def arrange(self, weight: Float[Tensor, "three_hidden hidden"], dtype: torch.dtype) -> Float[Tensor, "rows hidden"]:
        """The qkv matrix with the scale of the scores in its queries and halves before heads in queries and keys."""
        q, k, v = (x.view(self.heads, 2, self.size // 2, -1) for x in _scaled(weight, self.size, dtype))
        return torch.cat((q.transpose(0, 1).flatten(0, 2), k.transpose(0, 1).flatten(0, 2), v.flatten(0, 2)))

    def tables(self, positions: Int[Tensor, " filled"]) -> tuple[Tensor, Tensor]:
        """Cosines and sines `(filled, 1, 1, half)`."""
        cos, sin = (table[:, :, None].to(self.dtype) for table in rotation(positions, self.size))
        return cos, sin

    def __call__(self, qkv: Float[Tensor, "filled rows"], by: Plan) -> Float[Tensor, "filled hidden"]:
        hidden = self.heads * self.size
        q, k = self._rotated(qkv[:, : 2 * hidden], by).unbind(1)
        v = qkv[:, 2 * hidden :].view(-1, self.heads, self.size)
        v.index_fill_(0, by.hidden, 0.0)
        ones = v.new_ones(by.total, 1, 1).index_fill_(0, by.hidden, 0.0).expand(-1, self.heads, -1)
        out = torch.empty(by.total, self.heads, self.size, dtype=qkv.dtype)
        out[by.end :] = 0.0
        for run, filled in zip(by.groups, by.filled, strict=True):
            a, b, c, d = (_per_head(x, run) for x in (q, k, v, ones))
            shown = d[:, :1, None, :, 0] if filled else None
            long = self.long is not None and run.length >= self.long
            _per_head(out, run).copy_(_softmax_attention(a, b, c, shown) if long else self._attend(a, b, c, d, shown))
        return out.flatten(1)

    def _rotated(self, x: Float[Tensor, "filled two_hidden"], by: Plan) -> Float[Tensor, "filled 2 heads head"]:
        a, b = x.view(len(x), 2, 2, self.heads, self.size // 2).unbind(2)
        out = torch.empty(len(x), 2, self.heads, 2, self.size // 2, dtype=x.dtype)
        torch.mul(a, by.cos, out=out[:, :, :, 0]).addcmul_(b, by.sin, value=-1)
        torch.mul(b, by.cos, out=out[:, :, :, 1]).addcmul_(a, by.sin)
        return out.flatten(3)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, ones: Tensor, shown: Tensor | None
    ) -> Float[Tensor, "count heads length head"]:
        shape = q.shape[:2]
        scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
        sums = torch.bmm(scores.exp2_(), torch.cat((v, ones), -1).flatten(0, 1)).unflatten(0, shape)
        total = sums[..., self.size :]
        if not _safe(total):
            return _softmax_attention(q, k, v, shown)
        return sums[..., : self.size] / total


def best_attention(heads: int, size: int, dtype: torch.dtype) -> ChannelsFirst | TokensFirst:
    """The faster of the two on this processor."""
    if dtype == torch.float32:
        return (TokensFirst if size >= 32 else ChannelsFirst)(heads, size, dtype)
    return (TokensFirst if torch.cpu._is_amx_tile_supported() else ChannelsFirst)(heads, size, dtype)


def _scaled(weight: Tensor, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries with the scale of the scores, keys, values."""
    q, k, v = weight.chunk(3)
    return (q.float() * (LOG2_E * size**-0.5)).to(dtype), k.to(dtype), v.to(dtype)


def _safe(sums: Tensor) -> bool:
    """Whether sums of 2^score lost nothing by not subtracting the maximum."""
    low, high = sums.aminmax()
    return SAFE[0] < low.item() and high.item() < SAFE[1]


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, shown: Tensor | None) -> Tensor:
    """The queries carry log2(e), for which 2^score needs no scale; e^score needs it back.

    Nothing attends where `shown`, `(count, 1, 1, length)`, is 0; None if that is nowhere.
    """
    mask = None if shown is None else torch.where(shown > 0, 0.0, float("-inf")).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1 / LOG2_E)


def _per_head(x: Float[Tensor, "filled heads any"], run: EqualLengthGroup) -> Float[Tensor, "count heads length any"]:
    return x[run.start : run.stop].unflatten(0, (run.count, run.length)).transpose(1, 2)


def _blocks(planes: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of planes and of queries whose scores stay within `SCORES` elements."""
    step = min(planes, max(4, SCORES // length**2))
    columns = min(length, max(64, SCORES // (step * length) // 64 * 64))
    for first in range(0, planes, step):
        for column in range(0, length, columns):
            yield slice(first, first + step), slice(column, column + columns)

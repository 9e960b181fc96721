"""The border between Hugging Face's padded `(batch, length)` tensors and our packed ones.

Only real tokens cross it; padding may be on the left or on the right, and comes back as zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rinalmo.errors import InputError
from rinalmo.model.config import ModelConfig
from rinalmo.model.heads import ends
from rinalmo.model.packing import Layout


@dataclass(frozen=True)
class Grid:
    """Where each packed token stands in a `(batch, width)` tensor."""

    layout: Layout
    rows: Int[Tensor, " tokens"]
    columns: Int[Tensor, " tokens"]
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """`(batch, width)`."""
        return len(self.layout.lengths), self.width

    def scatter(self, x: Tensor) -> Tensor:
        """A packed `(tokens, …)` tensor as `(batch, width, …)`, zeros elsewhere."""
        padded = x.new_zeros((*self.shape, *x.shape[1:]))
        padded[self.rows, self.columns] = x
        return padded

    def gather(self, padded: Tensor) -> Tensor:
        """The entries of a `(batch, width, …)` tensor at the packed tokens' places."""
        return padded[self.rows.to(padded.device), self.columns.to(padded.device)]

    def scatter_pairs(self, maps: list[Tensor]) -> Tensor:
        """Per-sequence `(length, length, …)` maps as one `(batch, width, width, …)` tensor."""
        padded = maps[0].new_zeros((len(maps), self.width, self.width, *maps[0].shape[2:]))
        for row, (start, pairs) in enumerate(zip(self._starts(), maps, strict=True)):
            padded[row, start : start + len(pairs), start : start + len(pairs)] = pairs
        return padded

    def gather_pairs(self, padded: Tensor) -> list[Tensor]:
        """The per-sequence squares of a `(batch, width, width, …)` tensor."""
        squares = zip(self._starts(), self.layout.lengths, strict=True)
        return [padded[row, s : s + n, s : s + n] for row, (s, n) in enumerate(squares)]

    def _starts(self) -> list[int]:
        first = self.layout.cu_seqlens[:-1].long().tolist()
        return [int(self.columns[at]) if n else 0 for at, n in zip(first, self.layout.lengths, strict=True)]


def unpad(
    input_ids: Int[Tensor, "batch width"], attention_mask: Tensor | None, pad_token_id: int | None
) -> tuple[Int[Tensor, " tokens"], Grid]:
    """The real tokens end to end, and where they came from. Without a mask, pad tokens are what is not real."""
    if input_ids.dim() != 2:
        raise InputError(f"input_ids has shape {tuple(input_ids.shape)}; expected (batch, length)")
    if len(input_ids) == 0:
        raise InputError("input_ids has no rows")
    real = _real(input_ids, attention_mask, pad_token_id)
    rows, columns = real.nonzero(as_tuple=True)
    layout = Layout(tuple(real.sum(dim=1).tolist()), input_ids.device)
    return input_ids[real], Grid(layout, rows, columns, input_ids.shape[1])


def _real(input_ids: Tensor, attention_mask: Tensor | None, pad_token_id: int | None) -> Bool[Tensor, "batch width"]:
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool) if pad_token_id is None else input_ids != pad_token_id
    if attention_mask.shape != input_ids.shape:
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids has {tuple(input_ids.shape)}; "
            "they must agree"
        )
    if bool((attention_mask < 0).any()):
        raise InputError("attention_mask has negative values; give 1 for a token and 0 for padding, not what is added")
    return attention_mask.bool()


def inner(ids: Tensor, grid: Grid, config: ModelConfig) -> tuple[Bool[Tensor, " tokens"], Grid]:
    """Which tokens are neither a leading CLS nor a trailing EOS, and the grid, narrower by these, that they fill."""
    leading, trailing = ends(ids, grid.layout, config)
    keep = ~(leading | trailing)
    shift = int(bool(leading.any()))
    narrower = replace(
        grid,
        layout=grid.layout.select(keep),
        rows=grid.rows[keep],
        columns=grid.columns[keep] - shift,
        width=grid.width - shift - int(bool(trailing.any())),
    )
    return keep, narrower

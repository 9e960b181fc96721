"""The border between Hugging Face's padded `(batch, length)` tensors and our packed ones.

Only real tokens cross it; padding may be on the left or on the right, and comes back as zeros.
"""

from __future__ import annotations

from collections.abc import Callable
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
        for row, (columns, pairs) in enumerate(zip(self._columns(), maps, strict=True)):
            if len(pairs):
                padded[(row, *_square_of(columns))] = pairs
        return padded

    def gather_pairs(self, padded: Tensor) -> list[Tensor]:
        """The per-sequence squares of a `(batch, width, width, …)` tensor."""
        squares = (_square_of(columns.to(padded.device)) for columns in self._columns())
        return [padded[(row, *square)] for row, square in enumerate(squares)]

    def padder(self, padded: list[Tensor]) -> Callable[[Tensor], Tensor]:
        """A hook that keeps packed states in padded form, and goes on with what it kept: it lies on the graph."""

        def hook(x: Tensor) -> Tensor:
            padded.append(self.scatter(x))
            return self.gather(padded[-1])

        return hook

    def pair_padder(self, padded: list[Tensor]) -> Callable[[list[Tensor]], list[Tensor]]:
        """As `padder`, for attention weights: per sequence `(heads, length, length)`."""

        def hook(layer: list[Tensor]) -> list[Tensor]:
            maps = self.scatter_pairs([weights.permute(1, 2, 0) for weights in layer])
            padded.append(maps.permute(0, 3, 1, 2))
            return [square.permute(2, 0, 1) for square in self.gather_pairs(padded[-1].permute(0, 2, 3, 1))]

        return hook

    def _columns(self) -> tuple[Tensor, ...]:
        return self.layout.split(self.columns)


def _square_of(columns: Tensor) -> tuple[slice, slice] | tuple[Tensor, Tensor]:
    """Index of the pairs of these columns; slices where there is no gap between them."""
    if len(columns) == 0:
        return slice(0, 0), slice(0, 0)
    first, last = int(columns[0]), int(columns[-1])
    if last - first + 1 == len(columns):
        return slice(first, last + 1), slice(first, last + 1)
    return columns[:, None], columns


def grid_of(
    name: str,
    shape: tuple[int, int],
    device: torch.device,
    real: Bool[Tensor, "batch width"] | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
) -> Grid:
    """Where the real tokens of a padded batch are.

    Args:
        name: Of the tensor that the batch came in, for errors.
        shape: `(batch, width)`.
        device: Where the batch is.
        real: Which tokens are real if there is no mask; None for all.
        attention_mask: 1 for a token, 0 for padding. Holes keep their places: rotary positions count them.
        position_ids: `(width,)`, `(1, width)` or `(batch, width)`; None counts columns.

    Raises:
        InputError: If shapes disagree or the mask is not one of 0 and 1.
    """
    if shape[0] == 0:
        raise InputError(f"{name} has no rows")
    if attention_mask is not None:
        real = _checked(attention_mask, name, shape)
    if real is None:
        real = torch.ones(shape, dtype=torch.bool, device=device)
    rows, columns = real.to(device).nonzero(as_tuple=True)
    layout = Layout(tuple(real.sum(dim=1).tolist()), device)
    return Grid(_positioned(layout, rows, columns, shape, position_ids), rows, columns, shape[1])


def _positioned(layout: Layout, rows: Tensor, columns: Tensor, shape: tuple[int, int], given: Tensor | None) -> Layout:
    """The layout with rotary positions of its own where tokens are not simply counted.

    Rotary attention depends on differences alone, so positions that are off by a constant in each row are counted.
    """
    positions = columns
    if given is not None:
        if given.shape not in ((shape[1],), (1, shape[1]), shape) or given.is_floating_point():
            raise InputError(f"position_ids have shape {tuple(given.shape)}; expected whole numbers of shape {shape}")
        positions = given.to(columns.device).expand(shape)[rows, columns]
    offset = positions - layout.indices
    first = layout.cu_seqlens.long()[layout.sequence_ids]
    if layout.total == 0 or bool((offset == offset[first]).all()):
        return layout
    return replace(layout, position_ids=positions)


def _checked(attention_mask: Tensor, name: str, shape: tuple[int, int]) -> Bool[Tensor, "batch width"]:
    if attention_mask.shape != shape:
        raise InputError(f"attention_mask has shape {tuple(attention_mask.shape)}, {name} has {shape}; they must agree")
    if bool((attention_mask < 0).any()):
        raise InputError("attention_mask has negative values; give 1 for a token and 0 for padding, not what is added")
    return attention_mask.bool()


def inner(ids: Tensor | None, grid: Grid, config: ModelConfig) -> tuple[Bool[Tensor, " tokens"], Grid]:
    """Which tokens are neither a leading CLS nor a trailing EOS, and the grid, narrower by these, that they fill.

    A row without CLS is not moved. Where ids are unknown, the first and the last token of each row are CLS and EOS.
    """
    layout = grid.layout
    if ids is None:
        last = layout.cu_seqlens.long().diff()[layout.sequence_ids] - 1
        leading, trailing = layout.indices == 0, (layout.indices == last) & (last > 0)
    else:
        leading, trailing = ends(ids, layout, config)
    keep = ~(leading | trailing)
    counts = torch.zeros(2, len(layout.lengths), dtype=torch.long, device=keep.device)
    for count, where in zip(counts, (leading, trailing), strict=True):
        count[layout.sequence_ids[where]] = 1
    columns = grid.columns[keep] - counts[0][layout.sequence_ids[keep]]
    width = max(grid.width - int(counts.sum(dim=0).max()), int(columns.max()) + 1 if len(columns) else 0)
    return keep, Grid(layout.select(keep), grid.rows[keep], columns, width)

"""Packed batches: the sequences lie end to end along one axis, and a `Layout` says where each begins.

No padding token is ever multiplied. Neighbours of equal length form an `EqualLengthGroup`, which attention can view as
one `(sequences, length, …)` block without copying; sort a batch by length and there are few groups.

On CUDA nothing here waits for the device: numbers that the host knows are copied from pinned memory, and shapes never
depend on values that only the device has. `Layout.select` is the exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_CPU = torch.device("cpu")
Item = TypeVar("Item")


@dataclass(frozen=True)
class EqualLengthGroup:
    """`count` neighbouring sequences of the same length: tokens `start` to `stop` of the batch.

    `valid_length` is the number of leading tokens of each that are not padding.
    """

    start: int
    stop: int
    count: int
    length: int
    valid_length: int


@dataclass
class Layout:
    """Where each sequence of a packed batch lies.

    Args:
        lengths: Tokens of each sequence.
        device: Where the batch and the tensors of this layout are.
        valid_lengths: Leading tokens of each sequence that are not padding; by default all. Only one published model
            needs padding: the ribosome-load head was trained on padded sequences and sees the states of pad tokens.
            Pad tokens attend to valid ones, nothing attends to them, and token dropout ignores them (`pack_padded`).
        position_ids: Rotary position of each token `(tokens,)`; by default they count from 0 in each sequence.

    Attributes:
        offsets: Start of each sequence, and the total at the end.
        total: Number of tokens in the batch.
        max_seqlen: Length of the longest sequence, 0 for an empty batch.
        groups: Maximal stretches of neighbouring sequences of equal, positive length.
        has_padding: Whether a sequence has tokens that are not valid.

    Examples:
        >>> from rinalmo.model.packing import Layout
        >>> layout = Layout((3, 2))
        >>> layout.cu_seqlens.tolist(), layout.sequence_ids.tolist()
        ([0, 3, 5], [0, 0, 0, 1, 1])
    """

    lengths: tuple[int, ...]
    device: torch.device = _CPU
    valid_lengths: tuple[int, ...] = ()
    position_ids: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        self.valid_lengths = self.valid_lengths or self.lengths
        self.has_padding = self.valid_lengths != self.lengths
        self.offsets = (0, *accumulate(self.lengths))
        self.total = self.offsets[-1]
        self.max_seqlen = max(self.lengths, default=0)
        groups, start = [], 0
        for (length, valid), group in groupby(zip(self.lengths, self.valid_lengths, strict=True)):
            count = len(list(group))
            if length:
                groups.append(EqualLengthGroup(start, start + count * length, count, length, valid))
            start += count * length
        self.groups = tuple(groups)

    @cached_property
    def cu_seqlens(self) -> Int[Tensor, " sequences_and_one"]:
        """`offsets` as the int32 tensor that variable-length attention kernels take."""
        return to_device(torch.tensor(self.offsets, dtype=torch.int32), self.device)

    @cached_property
    def nonempty_offsets(self) -> Int[Tensor, " nonempty_and_one"]:
        """`offsets` of the sequences that have tokens, int64; nested tensors take no empty ones."""
        return to_device(torch.tensor(list(dict.fromkeys(self.offsets))), self.device)

    @cached_property
    def sequence_ids(self) -> Int[Tensor, " tokens"]:
        """The index of each token's sequence."""
        numbers = torch.arange(len(self.lengths), device=self.device)
        # Without the size, torch would fetch it from the device.
        return torch.repeat_interleave(numbers, self.cu_seqlens.long().diff(), output_size=self.total)

    @cached_property
    def indices(self) -> Int[Tensor, " tokens"]:
        """The index of each token in its sequence."""
        return torch.arange(self.total, device=self.device) - self.cu_seqlens.long()[self.sequence_ids]

    @property
    def starts(self) -> Int[Tensor, " sequences"]:
        """The index of each sequence's first token."""
        return self.cu_seqlens[:-1].long()

    @property
    def valid_counts(self) -> Float[Tensor, " sequences"]:
        """`valid_lengths` as fp32."""
        return to_device(torch.tensor(self.valid_lengths, dtype=torch.float32), self.device)

    def sums(self, x: Float[Tensor, " tokens"]) -> Float[Tensor, " sequences"]:
        """The sum over each sequence's tokens."""
        return x.new_zeros(len(self.lengths)).index_add_(0, self.sequence_ids, x)

    def means(self, x: Float[Tensor, "tokens features"]) -> Float[Tensor, "sequences features"]:
        """The mean over each sequence's tokens."""
        return torch.stack([states.mean(dim=0) for states in self.split(x)])

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """One view per sequence of a packed tensor `(tokens, …)`."""
        return x.split(list(self.lengths))

    def select(self, keep: Bool[Tensor, " tokens"]) -> Layout:
        """The layout of the tokens in `keep` alone. Waits for the device."""
        counts = torch.zeros(len(self.lengths), dtype=torch.long, device=self.device)
        counts.index_add_(0, self.sequence_ids, keep.long())
        return Layout(tuple(counts.tolist()), self.device)


class PaddedLayout(Layout):
    """A padded batch `(batch, width)` as packed tokens, the padding among them, for exported programs.

    No shape depends on the mask's values, so a trace holds for any batch. `lengths`, which are such values, are empty.
    Rotary positions are columns.
    """

    def __init__(self, mask: Bool[Tensor, "batch width"], position_ids: Int[Tensor, " tokens"] | None = None) -> None:
        self.lengths = self.valid_lengths = ()
        self.mask, self.device, self.position_ids, self.has_padding = mask, mask.device, position_ids, True

    @cached_property
    def sequence_ids(self) -> Int[Tensor, " tokens"]:
        return torch.arange(self.mask.shape[0], device=self.device)[:, None].expand(self.mask.shape).flatten()

    @cached_property
    def indices(self) -> Int[Tensor, " tokens"]:
        return torch.arange(self.mask.shape[1], device=self.device).expand(self.mask.shape).flatten()

    @property
    def starts(self) -> Int[Tensor, " sequences"]:
        batch, width = self.mask.shape
        return torch.arange(batch, device=self.device) * width + self.mask.long().argmax(dim=1)

    @property
    def valid_counts(self) -> Float[Tensor, " sequences"]:
        return self.mask.float().sum(dim=1)

    def sums(self, x: Float[Tensor, " tokens"]) -> Float[Tensor, " sequences"]:
        return (x.unflatten(0, self.mask.shape) * self.mask).sum(dim=1)

    def means(self, x: Float[Tensor, "tokens features"]) -> Float[Tensor, "sequences features"]:
        padded = x.unflatten(0, self.mask.shape) * self.mask[..., None]
        return padded.sum(dim=1) / self.valid_counts.clamp(min=1)[:, None]


def pack(sequences: Iterable[Sequence[int] | Tensor], device: torch.device | str = "cpu") -> tuple[Tensor, Layout]:
    """Concatenate token-id sequences: the int64 ids `(tokens,)` and their layout."""
    parts = [torch.as_tensor(sequence, dtype=torch.long) for sequence in sequences]
    layout = Layout(tuple(map(len, parts)), torch.device(device))
    ids = torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
    return to_device(ids, layout.device), layout


def chunked(items: Iterable[Item], size: Callable[[Item], int], max_size: int, max_items: int) -> Iterator[list[Item]]:
    """Consecutive items in lists, each of which ends where its sizes sum to `max_size` or it has `max_items`."""
    chunk: list[Item] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += size(item)
        if total >= max_size or len(chunk) == max_items:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def token_batches(lengths: Sequence[int], batch_tokens: int, order: Sequence[int] | None = None) -> Iterator[list[int]]:
    """Indices of sequences in groups of at most `batch_tokens` tokens; a longer sequence is a group of its own.

    Groups are consecutive in `order`, which is by length unless given.
    """
    if order is None:
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batch: list[int] = []
    total = 0
    for i in order:
        if batch and total + lengths[i] > batch_tokens:
            yield batch
            batch, total = [], 0
        batch.append(i)
        total += lengths[i]
    if batch:
        yield batch


def pack_padded(
    sequences: Iterable[Sequence[int] | Tensor], length: int, pad_id: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Layout]:
    """As `pack`, with each shorter sequence padded to `length` tokens.

    Args:
        sequences: Token ids.
        length: Minimum number of tokens of each sequence after padding.
        pad_id: The id of the pad token.
        device: Where the batch is to be.

    Returns:
        The int64 ids `(tokens,)`, and their layout, whose `valid_lengths` are the lengths before padding.

    Examples:
        >>> from rinalmo.model.packing import pack_padded
        >>> ids, layout = pack_padded([[1, 6, 2], [1, 2]], length=3, pad_id=0)
        >>> ids.tolist(), layout.lengths, layout.valid_lengths
        ([1, 6, 2, 1, 2, 0], (3, 3), (3, 2))
    """
    parts = [torch.as_tensor(sequence, dtype=torch.long) for sequence in sequences]
    padded = [torch.nn.functional.pad(part, (0, max(0, length - len(part))), value=pad_id) for part in parts]
    ids, layout = pack(padded, device)
    return ids, Layout(layout.lengths, layout.device, tuple(map(len, parts)))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, without waiting for it: host memory is pinned and copied asynchronously."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def gather_heads(
    x: Float[Tensor, "heads rows tokens"], group: EqualLengthGroup
) -> Float[Tensor, "matrices rows length"]:
    """A group's part of a tensor with the tokens last: one matrix per sequence and head, for batched products."""
    heads, rows, _ = x.shape
    block = x[..., group.start : group.stop].view(heads, rows, group.count, group.length)
    return block.permute(2, 0, 1, 3).reshape(-1, rows, group.length)


def scatter_heads(
    out: Float[Tensor, "heads rows tokens"], group: EqualLengthGroup, matrices: Float[Tensor, "matrices rows length"]
) -> None:
    """The reverse of `gather_heads`: write the matrices into the group's part of `out`."""
    heads, rows, _ = out.shape
    block = out[..., group.start : group.stop].view(heads, rows, group.count, group.length)
    block.copy_(matrices.reshape(group.count, heads, rows, group.length).permute(1, 2, 0, 3))

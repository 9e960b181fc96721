"""Packed batches: the sequences lie end to end along one axis, and a `Layout` says where each begins.

No padding token is ever multiplied. Neighbours of equal length form a *run*, which attention can view as one
`(sequences, length, …)` block without copying; sort a batch by length and there are few runs.

On CUDA nothing here waits for the device: numbers that the host knows are copied from pinned memory, and shapes never
depend on values that only the device has. `Layout.select` is the exception.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class EqualLengthGroup:
    """`count` neighbouring sequences of the same `length`, from token `start` on."""

    start: int
    count: int
    length: int

    @property
    def stop(self) -> int:
        """One past the last token."""
        return self.start + self.count * self.length


@dataclass(frozen=True)
class Layout:
    """Where each sequence of a packed batch lies.

    `real` is None but for one quirk: the published ribosome-load model was trained on sequences filled up with pad
    tokens whose states its head sees. There `real[i]` is how many leading tokens of sequence i are its own; the rest
    attend to them, nothing attends to the rest, and token dropout does not count it (`pack_padded`).

    `position_ids` overrides the rotary position of each token; None counts from 0 in each sequence.
    """

    lengths: tuple[int, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    real: tuple[int, ...] | None = None
    position_ids: Tensor | None = field(default=None, compare=False)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each sequence, and the total at the end."""
        return (0, *accumulate(self.lengths))

    @property
    def total(self) -> int:
        """Number of tokens in the batch."""
        return self.offsets[-1]

    @property
    def max_seqlen(self) -> int:
        """Length of the longest sequence, 0 for an empty batch."""
        return max(self.lengths, default=0)

    @cached_property
    def runs(self) -> tuple[EqualLengthGroup, ...]:
        """Maximal stretches of neighbouring sequences of equal, positive length."""
        runs, start = [], 0
        for length, group in groupby(self.lengths):
            count = len(list(group))
            if length:
                runs.append(EqualLengthGroup(start, count, length))
            start += count * length
        return tuple(runs)

    @cached_property
    def cu_seqlens(self) -> Int[Tensor, " sequences_and_one"]:
        """`offsets` as the int32 tensor that variable-length attention kernels take."""
        return to_device(torch.tensor(self.offsets, dtype=torch.int32), self.device)

    @cached_property
    def nonempty_offsets(self) -> Int[Tensor, " nonempty_and_one"]:
        """`offsets` of the sequences that have tokens, int64; nested tensors take no empty ones."""
        ends = dict.fromkeys(self.offsets)
        return to_device(torch.tensor(list(ends)), self.device)

    @cached_property
    def real_counts(self) -> Int[Tensor, " sequences"]:
        """`real_lengths` as a tensor."""
        return to_device(torch.tensor(self.real_lengths, dtype=torch.long), self.device)

    @cached_property
    def sequence_ids(self) -> Int[Tensor, " tokens"]:
        """For each token the index of its sequence."""
        numbers = torch.arange(len(self.lengths), device=self.device)
        # The size is given because it would be fetched from the device otherwise.
        return torch.repeat_interleave(numbers, self.cu_seqlens.long().diff(), output_size=self.total)

    @property
    def positions(self) -> Int[Tensor, " tokens"]:
        """For each token its rotary position: its index, unless `position_ids` are given."""
        return self.indices if self.position_ids is None else self.position_ids

    @cached_property
    def indices(self) -> Int[Tensor, " tokens"]:
        """For each token its place in its sequence, from 0."""
        return torch.arange(self.total, device=self.device) - self.cu_seqlens.long()[self.sequence_ids]

    @property
    def real_lengths(self) -> tuple[int, ...]:
        """Number of each sequence's own tokens."""
        return self.lengths if self.real is None else self.real

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """One view per sequence of a packed tensor `(tokens, …)`."""
        return x.split(list(self.lengths))

    def select(self, keep: Bool[Tensor, " tokens"]) -> Layout:
        """The layout that is left when only the tokens in `keep` stay. Waits for the device."""
        counts = torch.zeros(len(self.lengths), dtype=torch.long, device=self.device)
        counts.index_add_(0, self.sequence_ids, keep.long())
        return Layout(tuple(counts.tolist()), self.device)


def pack(sequences: Iterable[Sequence[int] | Tensor], device: torch.device | str = "cpu") -> tuple[Tensor, Layout]:
    """Lay token-id sequences end to end.

    Returns the int64 ids `(tokens,)` and their layout.
    """
    parts = [torch.as_tensor(sequence, dtype=torch.long) for sequence in sequences]
    layout = Layout(tuple(len(part) for part in parts), torch.device(device))
    ids = torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
    return to_device(ids, layout.device), layout


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, without waiting for it: what lies on the host is copied from pinned memory.

    Args:
        tensor: Of any shape and type.
        device: Where it is to be.

    Returns:
        The tensor itself if it is there already, else a copy, which later work of the current stream may use.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def pack_padded(
    sequences: Iterable[Sequence[int] | Tensor], length: int, pad_id: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Layout]:
    """As `pack`, with each sequence filled up to `length` tokens; see `Layout.real` for why one would want that."""
    parts = [torch.as_tensor(sequence, dtype=torch.long) for sequence in sequences]
    filled = [torch.nn.functional.pad(part, (0, max(0, length - len(part))), value=pad_id) for part in parts]
    ids, layout = pack(filled, device)
    return ids, Layout(layout.lengths, layout.device, tuple(len(part) for part in parts))


def planes(x: Float[Tensor, "heads rows tokens"], run: EqualLengthGroup) -> Float[Tensor, "planes rows length"]:
    """A run's part of a tensor with the tokens last: one matrix per sequence and head, for batched products."""
    heads, rows, _ = x.shape
    block = x[..., run.start : run.stop].view(heads, rows, run.count, run.length)
    return block.permute(2, 0, 1, 3).reshape(-1, rows, run.length)


def put_planes(
    out: Float[Tensor, "heads rows tokens"], run: EqualLengthGroup, found: Float[Tensor, "planes rows length"]
) -> None:
    """The reverse of `planes`: write them into the run's part of `out`."""
    heads, rows, _ = out.shape
    block = out[..., run.start : run.stop].view(heads, rows, run.count, run.length)
    block.copy_(found.reshape(run.count, heads, rows, run.length).permute(1, 2, 0, 3))

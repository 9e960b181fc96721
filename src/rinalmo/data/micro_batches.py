"""From the items of a step to packed, masked tensors: cut into micro-batches, encoded by table, masked by key.

Micro-batches do not depend on the rank that computes them, only their number is rounded up to a multiple of the
ranks, since under FSDP every rank must take part in every forward pass. Where items run out, a *silent* batch fills
the gap: a copy with no selected position, which adds nothing to loss or gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from rinalmo.alphabet import Alphabet
from rinalmo.data.masking import Masking, mask
from rinalmo.data.sampler import Item
from rinalmo.data.store import TokenStore
from rinalmo.model.packing import Layout


@dataclass(frozen=True)
class Batch:
    """A packed micro-batch, masked.

    `positions` are the selected tokens on the packed axis and `targets` their true ids; `source_ids` has the source of
    each sequence. A batch may have no position at all: its loss is then zero, not undefined.
    """

    ids: Int[Tensor, " tokens"]
    layout: Layout
    positions: Int[Tensor, " selected"]
    targets: Int[Tensor, " selected"]
    source_ids: Int[Tensor, " sequences"]

    @property
    def target_sources(self) -> Int[Tensor, " selected"]:
        """For each target the source of its sequence."""
        return self.source_ids[self.layout.sequence_ids[self.positions]]

    def silent(self) -> Batch:
        """The same tokens with nothing selected."""
        return replace(self, positions=self.positions[:0], targets=self.targets[:0])


def make_batches(
    store: TokenStore, alphabet: Alphabet, parts: Sequence[list[Item]], masking: Masking, rank: int, world: int
) -> list[Batch]:
    """One rank's share of the micro-batches, silent ones included: the same number on every rank."""
    own = list(parts[rank::world])
    batches = [encoded(store, alphabet, part, masking) for part in own]
    missing = -(-len(parts) // world) - len(own)
    return batches + [encoded(store, alphabet, parts[-1], masking).silent()] * missing


def divided(items: Sequence[Item], micro_tokens: int, world: int = 1) -> list[list[Item]]:
    """Cut a step, sorted by length, into micro-batches of at most `micro_tokens` and as equal as can be.

    Their number is a multiple of `world` unless there are fewer items than that; an oversized item goes alone.
    """
    ordered = sorted(items, key=lambda item: item.tokens)
    lengths = [item.tokens for item in ordered]
    limit = max(micro_tokens, lengths[-1])
    count = world * -(-sum(lengths) // (limit * world))
    while len(_cuts(lengths, limit)) > count:
        count += world
    low, high = sum(lengths) // count, limit
    while low < high:  # the smallest limit that still gives at most `count` parts
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cuts(lengths, middle)) <= count else (middle + 1, high)
    cuts = _cuts(lengths, max(high, lengths[-1]))
    return [ordered[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(ordered)], strict=True)]


def divided_exactly(items: Sequence[Item], micro_tokens: int) -> list[list[Item]]:
    """Cut a step whose items fill micro-batches of exactly `micro_tokens`; each is sorted by length."""
    cuts = _cuts([item.tokens for item in items], micro_tokens)
    return [
        sorted(items[start:stop], key=lambda item: item.tokens)
        for start, stop in zip(cuts, [*cuts[1:], len(items)], strict=True)
    ]


def _cuts(lengths: Sequence[int], limit: int) -> list[int]:
    """Where parts begin if each takes what fits; an oversized item goes alone."""
    cuts, total = [0], 0
    for i, length in enumerate(lengths):
        if total and total + length > limit:
            cuts.append(i)
            total = 0
        total += length
    return cuts


def encoded(store: TokenStore, alphabet: Alphabet, items: Sequence[Item], masking: Masking) -> Batch:
    """Encode, pack and mask items."""
    lengths = np.array([item.tokens for item in items])
    ids = _ids(store, alphabet, items, lengths)
    keys = np.array([item.key for item in items], dtype=np.uint64)
    masked = mask(ids, lengths, keys, alphabet, masking)
    sources = store.source_ids[[item.sequence for item in items]].astype(np.int64)
    return Batch(
        torch.from_numpy(masked.ids),
        Layout(tuple(lengths.tolist())),
        torch.from_numpy(masked.positions),
        torch.from_numpy(masked.targets),
        torch.from_numpy(sources),
    )


def _ids(store: TokenStore, alphabet: Alphabet, items: Sequence[Item], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Letters through the vocabulary's table, with `<cls>` and `<eos>` around the whole sequences."""
    border = np.zeros(1, dtype=np.uint8)
    pieces: list[NDArray[np.uint8]] = []
    for item in items:
        letters = store[item.sequence][item.start : item.start + item.length]
        pieces += (border, letters, border) if item.whole else (letters,)
    ids = alphabet.table[np.concatenate(pieces)]
    whole = np.array([item.whole for item in items])
    ends = np.cumsum(lengths)
    ids[(ends - lengths)[whole]], ids[ends[whole] - 1] = alphabet.cls_id, alphabet.eos_id
    return ids

"""From the items of a step to packed, masked tensors: cut into micro-batches, encoded by table, masked by key.

Micro-batches do not depend on the rank that computes them, only their number is rounded up to a multiple of the
ranks, since under FSDP every rank must take part in every forward pass. Where items run out, a *silent* batch fills
the gap: a copy with no selected position, which adds nothing to loss or gradient.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from rinalmo.data import sampling
from rinalmo.data.sampling import MAX_LENGTH, ClusterSampler, Item, Masking, Weights, mask
from rinalmo.data.store import TokenStore
from rinalmo.errors import InputError
from rinalmo.model.packing import Layout
from rinalmo.rna.alphabet import Alphabet


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


_CHOICE, _CROP, _MASK = 0, 1, 2  # which number of a sequence's key
_VALIDATION = 3  # what a key is for; 1 and 2 are the sampler's


class FixedMasked:
    """At most `per_source` sequences of each source from a split, with masks and crops fixed by the seed.

    Choice, crop and mask of a sequence depend on the seed and its index in the store alone.
    """

    def __init__(
        self,
        store: TokenStore,
        alphabet: Alphabet,
        *,
        seed: int = 0,
        per_source: int = 256,
        micro_tokens: int = 4096,
        max_length: int = MAX_LENGTH,
        masking: Masking | None = None,
        split: str = "validation",
    ) -> None:
        self.store, self.alphabet = store, alphabet
        self.micro_tokens, self.masking = micro_tokens, masking or Masking()
        self.items = _items(store, split, seed, per_source, max_length)

    def batches(self, rank: int = 0, world: int = 1) -> list[Batch]:
        """This rank's micro-batches, the same number on every rank; none if the split is empty."""
        if not self.items:
            return []
        parts = divided(self.items, self.micro_tokens, world)
        return make_batches(self.store, self.alphabet, parts, self.masking, rank, world)


def _items(store: TokenStore, split: str, seed: int, per_source: int, max_length: int) -> list[Item]:
    span = store.sequence_range(split)
    indices = np.arange(span.start, span.stop)
    keys = sampling.random_key(seed, _VALIDATION, indices)
    sources = store.source_ids[span.start : span.stop]
    chosen: list[int] = []
    for source in np.unique(sources).tolist():
        own = np.flatnonzero(sources == source)
        first = np.argsort(sampling.random_bits(keys[own], _CHOICE), kind="stable")[:per_source]
        chosen += np.sort(own[first]).tolist()
    return [_item(store, int(indices[i]), keys[i], max_length) for i in chosen]


def _item(store: TokenStore, sequence: int, key: np.uint64, max_length: int) -> Item:
    length = int(store.lengths[sequence])
    shown = min(length, max_length)
    keys = np.asarray(key)
    start = int(sampling.random_uniform(keys, _CROP) * (length - shown + 1))
    cluster = int(store.clusters_of(np.array([sequence]))[0])
    return Item(sequence, cluster, start, shown, shown == length, int(sampling.random_bits(keys, _MASK)))


_CHUNK = 512  # items drawn at once
_FIT = 1  # what a key derived from an item's is for


@dataclass(frozen=True)
class BatchOptions:
    """What a step consists of: a number of sequences or a budget of tokens, one of the two.

    `micro_tokens` is the most that goes through the model at once; a longer sequence goes alone.
    """

    seed: int = 0
    sequences_per_batch: int | None = None
    tokens_per_batch: int | None = None
    micro_tokens: int = 4096
    fixed_tokens: bool = False
    max_length: int = MAX_LENGTH
    weights: Weights = field(default_factory=Weights)
    masking: Masking = field(default_factory=Masking)

    def __post_init__(self) -> None:
        sizes = [size for size in (self.sequences_per_batch, self.tokens_per_batch) if size is not None]
        if len(sizes) != 1 or min(sizes[0], self.micro_tokens) < 1:
            raise InputError(
                "a batch has a size: give sequences_per_batch or tokens_per_batch, and micro_tokens above 0"
            )
        if self.fixed_tokens and (self.tokens_per_batch is None or self.tokens_per_batch % self.micro_tokens):
            raise InputError(
                f"fixed_tokens needs a tokens_per_batch that is a multiple of micro_tokens ({self.micro_tokens}), "
                f"not {self.tokens_per_batch}"
            )


@dataclass(frozen=True)
class Place:
    """Where a step begins in the stream of items."""

    step: int = 0
    epoch: int = 0
    position: int = 0


class MaskedBatches:
    """The training stream. Iterating gives, step after step, this rank's micro-batches, made ahead by threads.

    `place` is where the next step begins: that after the last one handed out, whatever has been made ahead.
    """

    def __init__(
        self,
        store: TokenStore,
        alphabet: Alphabet,
        options: BatchOptions,
        *,
        rank: int = 0,
        world: int = 1,
        workers: int = 1,
        ahead: int = 2,
    ) -> None:
        self.store, self.alphabet, self.options = store, alphabet, options
        self.rank, self.world, self.workers, self.ahead = rank, world, workers, ahead
        self.sampler = ClusterSampler(store, options.seed, options.weights, max_length=options.max_length)
        self.place = Place()

    def plan(self, place: Place) -> tuple[list[Item], Place]:
        """The items of the step that begins at a place, and the place of the step after it."""
        while True:
            items, position = self._take(place.epoch, place.position)
            if items:
                return items, Place(place.step + 1, place.epoch, position)
            if place.position == 0:
                raise InputError(f"{self.store.path}: a whole epoch ({len(self.sampler)} clusters) fills no batch")
            place = Place(place.step, place.epoch + 1)

    def batch(self, place: Place, rank: int = 0, world: int = 1) -> list[Batch]:
        """One rank's micro-batches of the step that begins at a place; the same number on every rank."""
        return self._made(self.plan(place)[0], rank, world)

    def __iter__(self) -> Iterator[list[Batch]]:
        if not self.workers:
            while True:
                items, after = self.plan(self.place)
                self.place = after
                yield self._made(items, self.rank, self.world)
        waiting: deque[tuple[Future[list[Batch]], Place]] = deque()
        planned = self.place
        with ThreadPoolExecutor(self.workers, thread_name_prefix="batches") as pool:
            while True:
                while len(waiting) <= self.ahead:
                    items, planned = self.plan(planned)
                    waiting.append((pool.submit(self._made, items, self.rank, self.world), planned))
                made, after = waiting.popleft()
                batches = made.result()
                self.place = after
                yield batches

    def steps_per_epoch(self) -> int:
        """Steps of an epoch: with a token budget an estimate from the first items, and without what weights repeat."""
        if (size := self.options.sequences_per_batch) is not None:
            return len(self.sampler) // size
        tokens = [item.tokens for item in self.sampler.items(0, 0, 8 * _CHUNK)]
        return int(len(self.sampler) * sum(tokens) / len(tokens)) // (self.options.tokens_per_batch or 1)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the next step, on any number of ranks."""
        return {**asdict(self.place), "store": self.store.fingerprint, "options": asdict(self.options)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`. Raises InputError if store or options are not those it was made with."""
        if state["store"] != self.store.fingerprint:
            raise InputError(f"{self.store.path}: is not the store that the run was started with")
        mine = asdict(self.options)
        free = set() if self.options.fixed_tokens else {"micro_tokens"}  # which then only says how steps are cut
        changed = sorted(name for name in mine.keys() - free if state["options"].get(name) != mine[name])
        if changed:
            raise InputError(f"the run was started with another {', '.join(changed)}; its batches cannot be continued")
        self.place = Place(state["step"], state["epoch"], state["position"])

    def _take(self, epoch: int, position: int) -> tuple[list[Item], int]:
        """The items of one step from a position on, and the position after them; no items if the epoch ends first."""
        step = _Step(self.options)
        for item in self._stream(epoch, position):
            if step.is_closed_to(item):
                return step.items, position
            position += 1
            step.offer(item)
        return (step.items, position) if step.complete else ([], position)

    def _stream(self, epoch: int, position: int) -> Iterator[Item]:
        while items := self.sampler.items(epoch, position, position + _CHUNK):
            yield from items
            position += len(items)

    def _made(self, items: list[Item], rank: int, world: int) -> list[Batch]:
        options = self.options
        if options.fixed_tokens:
            parts = divided_exactly(items, options.micro_tokens)
        else:
            parts = divided(items, options.micro_tokens, world)
        return make_batches(self.store, self.alphabet, parts, options.masking, rank, world)


class _Step:
    """A step being filled: each cluster once, and with `fixed_tokens` not a token too many."""

    def __init__(self, options: BatchOptions) -> None:
        self._options = options
        self._clusters: set[int] = set()
        self._tokens = 0
        self.items: list[Item] = []

    @property
    def complete(self) -> bool:
        """Whether the batch has exactly its size."""
        return len(self.items) == self._options.sequences_per_batch or self._tokens == self._options.tokens_per_batch

    def is_closed_to(self, item: Item) -> bool:
        """Whether the batch is full without this item; one that is too long for any batch is a batch of its own."""
        budget = None if self._options.fixed_tokens else self._options.tokens_per_batch
        too_much = budget is not None and bool(self.items) and self._tokens + item.tokens > budget
        return self.complete or (too_much and item.cluster not in self._clusters)

    def offer(self, item: Item) -> None:
        """Take an item if its cluster is new and, in a fixed number of tokens, if it can be made to fit."""
        if self._options.fixed_tokens:
            micro = self._options.micro_tokens
            item = _fitted(item, micro - self._tokens % micro)
        if item.tokens and item.cluster not in self._clusters:
            self.items.append(item)
            self._clusters.add(item.cluster)
            self._tokens += item.tokens


def _fitted(item: Item, room: int) -> Item:
    """The item, or the crop of it that fills the room, or nothing of it.

    Nothing if it is one nucleotide short of the room: whole it would need two tokens more, cropped it leaves one.
    """
    if item.tokens <= room:
        return item
    length = room if room <= item.length else 0
    place = sampling.random_uniform(sampling.random_key(item.key, _FIT))
    start = item.start + int(place * (item.length - length + 1))
    return item._replace(start=start, length=length, whole=False)

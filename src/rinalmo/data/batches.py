"""Training batches: a step's items, cut into micro-batches, encoded by table, packed and masked by key.

Micro-batches do not depend on the rank that computes them; only their number is rounded up to a multiple of the ranks,
since under FSDP every rank takes part in every forward pass. A rank without a micro-batch of its own gets a copy of one
with no position selected, which adds nothing to loss or gradient.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from rinalmo.data import sampling
from rinalmo.data.sampling import MAX_LENGTH, ClusterSampler, Item, Masking, Weights, mask
from rinalmo.data.store import TokenStore
from rinalmo.errors import InputError
from rinalmo.io.recipe_files import Section
from rinalmo.model.packing import Layout
from rinalmo.rna.alphabet import Alphabet

_CHUNK = 512  # items drawn at once
_AHEAD = 2  # steps prepared in advance
_CHOICE = 0  # index of a random number under a validation sequence's key; the sampler uses 1 and 2
_VALIDATION = 3  # purpose of a key; 1 and 2 are the sampler's
_FIT = 1  # purpose of a key derived from an item's


@dataclass(frozen=True)
class Batch:
    """A packed micro-batch, masked.

    `positions` are the selected tokens on the packed axis and `targets` their original ids; `source_ids` has the source
    of each sequence. A batch may have no position at all: its loss is then zero, not undefined.
    """

    ids: Int[Tensor, " tokens"]
    layout: Layout
    positions: Int[Tensor, " selected"]
    targets: Int[Tensor, " selected"]
    source_ids: Int[Tensor, " sequences"]

    @property
    def target_sources(self) -> Int[Tensor, " selected"]:
        """The source of each target's sequence."""
        return self.source_ids[self.layout.sequence_ids[self.positions]]

    def without_targets(self) -> Batch:
        """The same tokens with no position selected."""
        return replace(self, positions=self.positions[:0], targets=self.targets[:0])


def letters_of(store: TokenStore, item: Item) -> np.ndarray:
    """The nucleotides of an item, as ASCII."""
    return store[item.sequence][item.start : item.start + item.length]


def make_batches(
    store: TokenStore,
    alphabet: Alphabet,
    parts: Sequence[list[Item]],
    masking: Masking,
    rank: int,
    world: int,
    letters: Callable[[TokenStore, Item], np.ndarray] = letters_of,
) -> list[Batch]:
    """One rank's share of the micro-batches; the same number on every rank."""
    own = list(parts[rank::world])
    missing = -(-len(parts) // world) - len(own)
    batches = []
    for items in own + [parts[-1]] * missing:
        lengths = np.array([item.tokens for item in items])
        ends, whole = np.cumsum(lengths), np.array([item.whole for item in items])
        border = np.zeros(1, dtype=np.uint8)  # room for <cls> and <eos>
        pieces: list[np.ndarray] = []
        for item in items:
            nucleotides = letters(store, item)
            pieces += (border, nucleotides, border) if item.whole else (nucleotides,)
        ids = alphabet.table[np.concatenate(pieces)]
        ids[(ends - lengths)[whole]], ids[ends[whole] - 1] = alphabet.cls_id, alphabet.eos_id
        keys = np.array([item.key for item in items], dtype=np.uint64)
        masked = mask(ids, lengths, keys, alphabet, masking)
        sources = store.source_ids[[item.sequence for item in items]].astype(np.int64)
        tensors = [torch.from_numpy(a) for a in (masked.ids, masked.positions, masked.targets, sources)]
        batches.append(Batch(tensors[0], Layout(tuple(lengths.tolist())), *tensors[1:]))
    return batches[: len(own)] + [batch.without_targets() for batch in batches[len(own) :]]


def divided(items: Sequence[Item], micro_tokens: int, world: int = 1) -> list[list[Item]]:
    """Cut a step, sorted by length, into micro-batches of at most `micro_tokens` and as equal as possible.

    Their number is a multiple of `world` unless there are fewer items than that; an oversized item goes alone.
    """
    ordered = sorted(items, key=attrgetter("tokens"))
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
    parts = zip(cuts, [*cuts[1:], len(items)], strict=True)
    return [sorted(items[start:stop], key=attrgetter("tokens")) for start, stop in parts]


def _cuts(lengths: Sequence[int], limit: int) -> list[int]:
    """Where parts begin if each takes what fits; an oversized item goes alone."""
    cuts, total = [0], 0
    for i, length in enumerate(lengths):
        if total and total + length > limit:
            cuts.append(i)
            total = 0
        total += length
    return cuts


class DataRecipe(Section):
    """The token store and its batches.

    store                  token store, from `rinalmo data prepare`
    fingerprint            fingerprint of the store, recorded when a run starts; any other store is then refused
    sequences_per_batch    sequences per optimizer step, over all processes
    tokens_per_batch       tokens per optimizer step, instead of `sequences_per_batch`
    micro_tokens           maximum tokens per forward and backward pass; set it according to the device's memory
    fixed_tokens           crop sequences so that every pass has exactly `micro_tokens` tokens
    max_length             longer sequences are cropped to this many nucleotides, at a new random position each time
    workers                threads that prepare batches in advance
    """

    store: str | None = None
    fingerprint: str | None = None
    sequences_per_batch: PositiveInt | None = None
    tokens_per_batch: PositiveInt | None = None
    micro_tokens: PositiveInt = 4096
    fixed_tokens: bool = False
    max_length: PositiveInt = MAX_LENGTH
    weights: Weights = Weights()
    masking: Masking = Masking()
    workers: NonNegativeInt = 1


class FixedMasked:
    """At most `per_source` sequences of each source for validation, with masks and crops fixed by the seed.

    Choice, crop and mask of a sequence depend on the seed and its index in the store alone.
    """

    def __init__(
        self, store: TokenStore, alphabet: Alphabet, data: DataRecipe, per_source: int = 256, seed: int = 0
    ) -> None:
        self.store, self.alphabet, self.data = store, alphabet, data
        span = store.sequence_range("validation")
        all_keys = sampling.random_key(seed, _VALIDATION, np.arange(span.start, span.stop))
        sources = store.source_ids[span.start : span.stop]
        chosen = [np.empty(0, dtype=np.int64)]
        for source in np.unique(sources):
            own = np.flatnonzero(sources == source)
            order = np.argsort(sampling.random_bits(all_keys[own], _CHOICE), kind="stable")
            chosen.append(np.sort(own[order[:per_source]]))
        places = np.concatenate(chosen)
        sequences, keys = places + span.start, all_keys[places]
        self.items = sampling.cropped_items(store, sequences, store.clusters_of(sequences), keys, data.max_length)

    def batches(self, rank: int = 0, world: int = 1) -> list[Batch]:
        """This rank's micro-batches, the same number on every rank; none if the split is empty."""
        if not self.items:
            return []
        parts = divided(self.items, self.data.micro_tokens, world)
        return make_batches(self.store, self.alphabet, parts, self.data.masking, rank, world)


@dataclass(frozen=True)
class Place:
    """The beginning of a step in the stream of items."""

    step: int = 0
    epoch: int = 0
    position: int = 0


class MaskedBatches:
    """The training stream. Iterating gives this rank's micro-batches step by step, prepared in advance by threads.

    `place` is the beginning of the next step: after the last one returned, whatever has been prepared in advance.
    """

    def __init__(
        self, store: TokenStore, alphabet: Alphabet, data: DataRecipe, seed: int = 0, *, rank: int = 0, world: int = 1
    ) -> None:
        tokens = data.tokens_per_batch
        if (data.sequences_per_batch is None) == (tokens is None):
            raise InputError("the batch size is missing: set either sequences_per_batch or tokens_per_batch")
        if data.fixed_tokens and (tokens is None or tokens % data.micro_tokens):
            raise InputError(
                f"fixed_tokens needs a tokens_per_batch that is a multiple of micro_tokens ({data.micro_tokens}), "
                f"not {tokens}; or set data.fixed_tokens=false"
            )
        self.store, self.alphabet, self.data, self.rank, self.world = store, alphabet, data, rank, world
        self.sampler = ClusterSampler(store, seed, data.weights, max_length=data.max_length)
        self.place = Place()

    def plan(self, place: Place) -> tuple[list[Item], Place]:
        """The items of the step at a place, and the place of the next step."""
        while True:
            items, position = self._plan_in_epoch(place.epoch, place.position)
            if items:
                return items, Place(place.step + 1, place.epoch, position)
            if place.position == 0:
                raise InputError(
                    f"{self.store.path}: an epoch ({len(self.sampler)} clusters) is less than a batch; use smaller ones"
                )
            place = Place(place.step, place.epoch + 1)

    def _plan_in_epoch(self, epoch: int, position: int) -> tuple[list[Item], int]:
        """The items of one step from a position on, and the next position; no items if the epoch ends first.

        A step takes one item of each cluster. With a budget of tokens it ends before the item that exceeds it; an item
        that is too long for any batch is a batch of its own. With `fixed_tokens` items are cropped to fit exactly.
        """
        data = self.data
        budget = None if data.fixed_tokens else data.tokens_per_batch
        items: list[Item] = []
        clusters: set[int] = set()
        tokens = 0
        while drawn := self.sampler.items(epoch, position, position + _CHUNK):
            for item in drawn:
                known = item.cluster in clusters
                if budget and items and not known and tokens + item.tokens > budget:
                    return items, position
                position += 1
                if data.fixed_tokens:
                    item = _fitted(item, data.micro_tokens - tokens % data.micro_tokens)
                if item.tokens and not known:
                    items.append(item)
                    clusters.add(item.cluster)
                    tokens += item.tokens
                if len(items) == data.sequences_per_batch or tokens == data.tokens_per_batch:
                    return items, position
        return [], position

    def batch(self, place: Place, rank: int = 0, world: int = 1) -> list[Batch]:
        """One rank's micro-batches of the step at a place; the same number on every rank."""
        return self._make(self.plan(place)[0], rank, world)

    def _make(self, items: list[Item], rank: int, world: int) -> list[Batch]:
        if self.data.fixed_tokens:
            parts = divided_exactly(items, self.data.micro_tokens)
        else:
            parts = divided(items, self.data.micro_tokens, world)
        return self.make(parts, rank, world)

    def make(self, parts: Sequence[list[Item]], rank: int, world: int) -> list[Batch]:
        """One rank's share of a step's micro-batches, given their items. A subclass may add to them here."""
        return make_batches(self.store, self.alphabet, parts, self.data.masking, rank, world)

    def __iter__(self) -> Iterator[list[Batch]]:
        if not self.data.workers:
            while True:
                items, after = self.plan(self.place)
                self.place = after
                yield self._make(items, self.rank, self.world)
        waiting: deque[tuple[Future[list[Batch]], Place]] = deque()
        planned = self.place
        with ThreadPoolExecutor(self.data.workers, thread_name_prefix="batches") as pool:
            while True:
                while len(waiting) <= _AHEAD:
                    items, planned = self.plan(planned)
                    waiting.append((pool.submit(self._make, items, self.rank, self.world), planned))
                future, after = waiting.popleft()
                batches = future.result()
                self.place = after
                yield batches

    def steps_per_epoch(self) -> int:
        """Steps of an epoch; with a token budget an estimate from the first items that ignores repeated clusters."""
        if (size := self.data.sequences_per_batch) is not None:
            return len(self.sampler) // size
        tokens = [item.tokens for item in self.sampler.items(0, 0, 8 * _CHUNK)]
        return int(len(self.sampler) * sum(tokens) / len(tokens)) // (self.data.tokens_per_batch or 1)

    def state_dict(self) -> dict[str, Any]:
        """The state from which a resumed run continues with the next step, on any number of ranks."""
        options = self.data.model_dump(exclude={"store", "fingerprint", "workers"})
        options["seed"] = self.sampler.seed
        return {**asdict(self.place), "store": self.store.fingerprint, "options": options}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`. Raises InputError if store or options have changed."""
        if state["store"] != self.store.fingerprint:
            raise InputError(f"{self.store.path}: is not the store that the run was started with")
        options = self.state_dict()["options"]
        # Without fixed_tokens, micro_tokens only decides how steps are cut.
        fixed = options.keys() - (set() if self.data.fixed_tokens else {"micro_tokens"})
        changed = sorted(name for name in fixed if state["options"].get(name) != options[name])
        if changed:
            raise InputError(f"{', '.join(changed)} changed since the run was started; its batches cannot be continued")
        self.place = Place(state["step"], state["epoch"], state["position"])


def _fitted(item: Item, room: int) -> Item:
    """The item, or the crop of it that fills `room` tokens, or nothing of it.

    Nothing if it is one nucleotide short of the room: whole it would need two tokens more, cropped it leaves one.
    """
    if item.tokens <= room:
        return item
    length = room if room <= item.length else 0
    place = sampling.random_uniform(sampling.random_key(item.key, _FIT))
    start = item.start + int(place * (item.length - length + 1))
    return item._replace(start=start, length=length, whole=False)

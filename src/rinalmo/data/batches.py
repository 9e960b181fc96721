"""Global batches: the same for any number of ranks and workers, and to be had again from their place in the stream.

    sampler ─► items of a step (`plan`) ─► micro-batches (`divided`) ─► every world-th is this rank's ─► encoded, masked

A step takes items in the stream's order until the batch is full, and passes over an item whose cluster it already
has. What is left at the end of an epoch fills no batch and is left out, so that every step is of the same size.

The surprise is `fixed_tokens`: every micro-batch then has exactly `micro_tokens` tokens, because its last sequence is
cropped to fit. On a CPU each new number of tokens costs new kernels, so that training with varying numbers is 2–3
times slower and its memory grows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from rinalmo.alphabet import Alphabet
from rinalmo.data import draws
from rinalmo.data.masking import Masking
from rinalmo.data.micro_batches import Batch, divided, divided_exactly, make_batches
from rinalmo.data.sampler import MAX_LENGTH, ClusterSampler, Item, Weights
from rinalmo.data.store import TokenStore
from rinalmo.errors import InputError

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
    place = draws.uniform(draws.key(item.key, _FIT))
    start = item.start + int(place * (item.length - length + 1))
    return item._replace(start=start, length=length, whole=False)

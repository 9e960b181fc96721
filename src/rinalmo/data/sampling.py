"""Random numbers that depend on nothing but what they are for: a seed and counters such as epoch and item.

No generator is carried along. Whoever asks for number `index` of a key gets the same one in any order, on any rank
and in any process, and thousands at once. This is SplitMix64 read as a function of its counter.

The surprise is that numpy's Philox is not used: a generator for each item costs more than masking the item, and
numpy does not promise the same numbers from one version to the next (NEP 19), which a resumed run needs.

Reference: Steele, Lea, Flood 2014 (doi:10.1145/2660193.2660195); the mixing constants are Stafford's variant 13.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rinalmo.data.store import TokenStore
from rinalmo.errors import InputError
from rinalmo.rna.alphabet import Alphabet

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_WORD = (1 << 64) - 1
_ROUNDS = 6


def random_key(seed: int, *counters: ArrayLike) -> Keys:
    """A 64-bit key for a seed and non-negative counters; arrays of counters give arrays of keys."""
    state = _mix(np.asarray(seed & _WORD, dtype=np.uint64))
    for counter in counters:
        state = _mix(_mix(state) ^ _mix(np.asarray(counter).astype(np.uint64)))
    return state


def random_bits(keys: Keys, index: ArrayLike = 0) -> Keys:
    """The 64 random bits with this index under each key."""
    with np.errstate(over="ignore"):
        return _mix(keys + np.asarray(index).astype(np.uint64) * _GOLDEN)


def random_uniform(keys: Keys, index: ArrayLike = 0) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each key and index."""
    return (random_bits(keys, index) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_permutation(places: NDArray[np.int64], size: int, keys: Keys) -> NDArray[np.int64]:
    """Where a random permutation of 0 … size − 1 takes each place, without ever making the permutation.

    A Feistel network permutes the next larger power of four; whatever it takes beyond `size` is sent through it again.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    values = _feistel(places.astype(np.uint64), half, keys)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def _feistel(values: Keys, half: np.uint64, keys: Keys) -> Keys:
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & low
    for turn in range(_ROUNDS):
        left, right = right, left ^ (_mix(right ^ random_bits(keys, turn)) & low)
    return (left << half) | right


def _mix(x: Keys) -> Keys:
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _FIRST
        x = (x ^ (x >> np.uint64(27))) * _SECOND
        return x ^ (x >> np.uint64(31))


MAX_LENGTH = 1022
"""Nucleotides of the longest input of the published models: 1,024 tokens with `<cls>` and `<eos>`."""

_ORDER, _ITEM = 1, 2  # what a key is for
_MEMBER, _CROP = 0, 1  # which number of an item's key
_BLOCK = 1 << 16


class Item(NamedTuple):
    """A sequence to show, or the crop of it from `start` on; only a `whole` one gets `<cls>` and `<eos>`."""

    sequence: int
    cluster: int
    start: int
    length: int
    whole: bool
    key: int
    """Random bits of this item, for its mask."""

    @property
    def tokens(self) -> int:
        """Length with the special tokens."""
        return self.length + 2 * self.whole


@dataclass(frozen=True)
class Weights:
    """How often clusters are drawn, relative to each other.

    A sequence weighs the product of its source's and its family's weight (1 where none is given; 0 leaves it out), a
    cluster the mean weight of its members times its size to the power of `cluster_exponent`. Members are drawn in
    proportion to their weight.
    """

    source: Mapping[str, float] = field(default_factory=dict)
    family: Mapping[str, float] = field(default_factory=dict)
    cluster_exponent: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether every cluster weighs the same."""
        return self.cluster_exponent == 0 and all(
            value == 1 for value in (*self.source.values(), *self.family.values())
        )


class ClusterSampler:
    """Items of a store's split by epoch and position; each epoch has one position for each cluster.

    Memory: nothing that grows with the store, but for `weights` 8 bytes a sequence.
    """

    def __init__(
        self,
        store: TokenStore,
        seed: int,
        weights: Weights | None = None,
        *,
        max_length: int = MAX_LENGTH,
        split: str = "train",
    ) -> None:
        if max_length < 1:
            raise InputError(f"max_length is {max_length}; a crop has at least one nucleotide")
        self.store, self.seed, self.max_length = store, seed, max_length
        self._clusters = store.cluster_range(split)
        if not self._clusters:
            raise InputError(f"{store.path}: has no sequence in its {split} split")
        self._first = store.sequence_range(split).start
        self._line = None if weights is None or weights.equal else _line(store, split, weights)

    def __len__(self) -> int:
        """Positions of an epoch: as many as there are clusters."""
        return len(self._clusters)

    def item(self, epoch: int, position: int) -> Item:
        """The item at a position of an epoch, from 0 on."""
        return self.items(epoch, position, position + 1)[0]

    def items(self, epoch: int, start: int, stop: int) -> list[Item]:
        """The items at the positions `start` to `stop` − 1 of an epoch."""
        positions = np.arange(start, min(stop, len(self)))
        keys = random_key(self.seed, _ITEM, epoch, positions)
        strata = random_permutation(positions, len(self), random_key(self.seed, _ORDER, epoch))
        sequences, clusters = self._draw(strata, random_uniform(keys, _MEMBER))
        lengths = self.store.lengths[sequences].astype(np.int64)
        shown = np.minimum(lengths, self.max_length)
        starts = (random_uniform(keys, _CROP) * (lengths - shown + 1)).astype(np.int64)
        columns = (sequences, clusters, starts, shown, shown == lengths, random_bits(keys, _CROP + 1))
        return [Item(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def _draw(
        self, strata: NDArray[np.int64], within: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sequences and their clusters, for strata and a random place within each."""
        if self._line is None:
            clusters = strata + self._clusters.start
            starts, stops = self.store.spans(clusters)
            return starts + (within * (stops - starts)).astype(np.int64), clusters
        points = (strata + within) * (self._line[-1] / len(self))
        sequences = np.minimum(np.searchsorted(self._line, points, side="right"), len(self._line) - 1) + self._first
        return sequences, self.store.clusters_of(sequences)


def _line(store: TokenStore, split: str, weights: Weights) -> NDArray[np.float64]:
    """Where each sequence of the split ends on the line of weights; a block of clusters at a time."""
    by_source = _by_label(weights.source, store.sources, "source")
    by_family = _by_label(weights.family, store.families, "family")
    clusters, sequences = store.cluster_range(split), store.sequence_range(split)
    line = np.empty(len(sequences))
    for first in range(clusters.start, clusters.stop, _BLOCK):
        starts, stops = store.spans(np.arange(first, min(first + _BLOCK, clusters.stop)))
        block = slice(int(starts[0]), int(stops[-1]))
        size = (stops - starts).astype(np.float64)
        with np.errstate(over="ignore"):  # an exponent beyond reason is refused below
            share = np.repeat(size ** (weights.cluster_exponent - 1), stops - starts)
        weight = by_source[store.source_ids[block]] * by_family[store.family_ids[block]] * share
        line[block.start - sequences.start : block.stop - sequences.start] = weight
    np.cumsum(line, out=line)
    if not (np.isfinite(line[-1]) and line[-1] > 0):
        raise InputError(f"the sampling weights leave nothing to draw from {store.path}")
    return line


def _by_label(given: Mapping[str, float], labels: Sequence[str], kind: str) -> NDArray[np.float64]:
    weights = np.ones(len(labels))
    index = {label: i for i, label in enumerate(labels)}
    for label, weight in given.items():
        if label not in index:
            near = difflib.get_close_matches(label, labels, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"sampling weights: the store has no {kind} {label!r}{hint}")
        if not (np.isfinite(weight) and weight >= 0):
            raise InputError(f"sampling weights: {kind} {label!r} weighs {weight}; weights are 0 or more")
        weights[index[label]] = weight
    return weights


Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Masking:
    """Share of the nucleotides that are selected, and of those the shares shown as `<mask>` and as another one."""

    selected: float = 0.15
    masked: float = 0.8
    replaced: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.selected, self.masked, self.replaced)
        if not all(0 <= share <= 1 for share in shares) or self.masked + self.replaced > 1 + 1e-9:
            raise InputError(f"masking shares {shares}: each is between 0 and 1, and masked + replaced at most 1")


class Masked(NamedTuple):
    """Ids as the model sees them `(tokens,)`, and the positions and true ids of the selected ones `(selected,)`."""

    ids: Ids
    positions: Ids
    targets: Ids


def mask(ids: Ids, lengths: Ids, keys: Keys, alphabet: Alphabet, options: Masking | None = None) -> Masked:
    """Mask packed sequences: ids `(tokens,)`, the tokens of each sequence and a random key for each `(sequences,)`.

    What happens to a sequence depends on its key alone, not on its neighbours. `ids` is not changed.
    """
    options = options or Masking()
    nucleotides = np.array(alphabet.nucleotide_ids)
    code = np.full(alphabet.size, -1)
    code[nucleotides] = np.arange(4)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = np.arange(len(ids)) - starts  # in its sequence
    token_keys = np.repeat(keys, lengths)
    selected = (code[ids] >= 0) & (random_uniform(token_keys, 2 * place) < options.selected)
    positions = np.flatnonzero(selected)
    targets = ids[positions]
    fate = random_bits(token_keys[positions], 2 * place[positions] + 1)
    share = (fate >> np.uint64(32)) * 2.0**-32
    other = nucleotides[(code[targets] + 1 + (fate & np.uint64(0xFFFFFFFF)).astype(np.int64) % 3) % 4]
    seen = np.where(share < options.masked + options.replaced, other, targets)
    shown = ids.copy()
    shown[positions] = np.where(share < options.masked, alphabet.mask_id, seen)
    return Masked(shown, positions, targets)

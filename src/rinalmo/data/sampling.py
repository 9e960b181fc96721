"""Sampling: random numbers by key, items drawn from clusters, and masking.

Random numbers depend on nothing but their purpose: a seed and counters such as epoch and item. There is no generator
with a state. Number `index` of a key is the same in any order, on any rank and in any process, and thousands are drawn
at once. This is SplitMix64 as a function of its counter. numpy's Philox is not used: a generator for each item costs
more than masking the item, and numpy does not promise the same numbers in every version (NEP 19), which a resumed run
needs.

Reference: Steele, Lea, Flood 2014 (doi:10.1145/2660193.2660195); the mixing constants are Stafford's variant 13.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, NonNegativeFloat, model_validator

from rinalmo.data.store import TokenStore
from rinalmo.errors import InputError
from rinalmo.io.recipe_files import Section, Share
from rinalmo.rna.alphabet import Alphabet

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_WORD = (1 << 64) - 1
_ROUNDS = 6

MAX_LENGTH = 1022
"""Nucleotides of the longest input of the published models: 1,024 tokens with `<cls>` and `<eos>`."""

_ORDER, _ITEM = 1, 2  # purposes of keys
_MEMBER, _CROP, _MASK = 0, 1, 2  # indices of random numbers under an item's key
_BLOCK = 1 << 16


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
    """The images of places under a random permutation of 0 … size − 1, without making the whole permutation.

    A Feistel network permutes the next larger power of four; results beyond `size` are sent through it again.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    values, outside = places.astype(np.uint64), np.ones(len(places), dtype=bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(right ^ random_bits(keys, turn)) & low)
        values[outside] = (left << half) | right
        outside = values >= size
    return values.astype(np.int64)


def _mix(x: Keys) -> Keys:
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _FIRST
        x = (x ^ (x >> np.uint64(27))) * _SECOND
        return x ^ (x >> np.uint64(31))


class Item(NamedTuple):
    """A sequence of the store, or a crop of it from `start` on; only a `whole` one gets `<cls>` and `<eos>`."""

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


def cropped_items(
    store: TokenStore, sequences: NDArray[np.int64], clusters: NDArray[np.int64], keys: Keys, max_length: int
) -> list[Item]:
    """Items of these sequences; a longer one than `max_length` is cropped where its key says."""
    lengths = store.lengths[sequences].astype(np.int64)
    cropped = np.minimum(lengths, max_length)
    starts = (random_uniform(keys, _CROP) * (lengths - cropped + 1)).astype(np.int64)
    columns = sequences, clusters, starts, cropped, cropped == lengths, random_bits(keys, _MASK)
    return list(map(Item._make, zip(*[column.tolist() for column in columns], strict=True)))


class Weights(Section):
    """How often clusters are drawn, relative to each other.

    A sequence weighs the product of its source's and its family's weight (0 leaves it out), a cluster the mean weight
    of its members times its size to the power of `cluster_exponent`. Members are drawn in proportion to their weight.

    source              weight of each source, 1 by default
    family              weight of each family, 1 by default
    cluster_exponent    a cluster of n sequences has the weight n to this power; 0: all clusters have the same weight
    """

    source: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    family: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    cluster_exponent: float = 0.0


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
        self.store, self.seed, self.max_length = store, seed, max_length
        self._clusters = store.cluster_range(split)
        if not self._clusters:
            raise InputError(f"{store.path}: its {split} split is empty")
        self._first = store.sequence_range(split).start
        self._cumulative: NDArray[np.float64] | None = None
        if weights and (weights.cluster_exponent or {*weights.source.values(), *weights.family.values()} - {1}):
            self._cumulative = _cumulative_weights(store, split, weights)

    def __len__(self) -> int:
        """Positions of an epoch: as many as there are clusters."""
        return len(self._clusters)

    def items(self, epoch: int, start: int, stop: int) -> list[Item]:
        """The items at the positions `start` to `stop` − 1 of an epoch, counted from 0."""
        positions = np.arange(start, min(stop, len(self)))
        keys = random_key(self.seed, _ITEM, epoch, positions)
        strata = random_permutation(positions, len(self), random_key(self.seed, _ORDER, epoch))
        within = random_uniform(keys, _MEMBER)
        if self._cumulative is None:
            clusters = strata + self._clusters.start
            firsts, ends = self.store.spans(clusters)
            sequences = firsts + (within * (ends - firsts)).astype(np.int64)
        else:
            points = (strata + within) * (self._cumulative[-1] / len(self))
            places = np.searchsorted(self._cumulative, points, side="right")
            sequences = np.minimum(places, len(self._cumulative) - 1) + self._first
            clusters = self.store.clusters_of(sequences)
        return cropped_items(self.store, sequences, clusters, keys, self.max_length)


def _cumulative_weights(store: TokenStore, split: str, weights: Weights) -> NDArray[np.float64]:
    """The cumulative weight of the sequences of a split, computed a block of clusters at a time."""
    source_weights = _label_weights(weights.source, store.sources, "source")
    family_weights = _label_weights(weights.family, store.families, "family")
    clusters, sequences = store.cluster_range(split), store.sequence_range(split)
    cumulative = np.empty(len(sequences))
    for first in range(clusters.start, clusters.stop, _BLOCK):
        starts, stops = store.spans(np.arange(first, min(first + _BLOCK, clusters.stop)))
        block = slice(int(starts[0]), int(stops[-1]))
        size = (stops - starts).astype(np.float64)
        with np.errstate(over="ignore"):  # an exponent beyond reason is refused below
            share = np.repeat(size ** (weights.cluster_exponent - 1), stops - starts)
        weight = source_weights[store.source_ids[block]] * family_weights[store.family_ids[block]] * share
        cumulative[block.start - sequences.start : block.stop - sequences.start] = weight
    np.cumsum(cumulative, out=cumulative)
    if not (np.isfinite(cumulative[-1]) and cumulative[-1] > 0):
        raise InputError(f"the sampling weights exclude every sequence of {store.path}")
    return cumulative


def _label_weights(given: Mapping[str, float], labels: Sequence[str], kind: str) -> NDArray[np.float64]:
    weights = np.ones(len(labels))
    index = {label: i for i, label in enumerate(labels)}
    for label, weight in given.items():
        if label not in index:
            near = difflib.get_close_matches(label, labels, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"sampling weights: the store has no {kind} {label!r}{hint}")
        weights[index[label]] = weight
    return weights


Ids = NDArray[np.int64]


class Masking(Section):
    """Masked language modeling.

    selected    fraction of the nucleotides to predict
    masked      fraction of the selected nucleotides that are replaced by the mask token
    replaced    fraction of the selected nucleotides that are replaced by another one; the rest is kept
    """

    selected: Share = 0.15
    masked: Share = 0.8
    replaced: Share = 0.1

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        if self.masked + self.replaced > 1 + 1e-9:
            raise ValueError("masked and replaced must be at most 1 together")
        return self


class Masked(NamedTuple):
    """Masked ids `(tokens,)`, and the positions and original ids of the selected tokens `(selected,)`."""

    ids: Ids
    positions: Ids
    targets: Ids


def mask(ids: Ids, lengths: Ids, keys: Keys, alphabet: Alphabet, options: Masking | None = None) -> Masked:
    """Mask packed sequences; `ids` is not changed.

    Args:
        ids: Token ids `(tokens,)`.
        lengths: Tokens of each sequence `(sequences,)`.
        keys: A random key for each sequence `(sequences,)`, which alone decides about its masks.
        alphabet: The tokens.
        options: Shares of the nucleotides.
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
    kept = np.where(share < options.masked + options.replaced, other, targets)
    masked = ids.copy()
    masked[positions] = np.where(share < options.masked, alphabet.mask_id, kept)
    return Masked(masked, positions, targets)

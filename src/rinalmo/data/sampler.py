"""Which sequence comes next: every cluster once an epoch, a random member of it, cropped at random if it is long.

Position k of an epoch is stratum π(k) of the clusters, where π is a random permutation that is never made
(`draws.permute`). Without weights stratum c is cluster c. With weights the clusters lie on a line, each as long as
its weight, and a stratum is an n-th of that line; a cluster of k times the mean weight then comes k times an epoch,
give or take one. Either way an item depends on seed, epoch and position alone, and an epoch starts at once.

The surprise is `cluster_exponent`. At 0, as in the paper, a family of one is drawn as often as tRNA; a small model
hardly learns from that, and at 1 (as often as it has members) it does.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rinalmo.data import draws
from rinalmo.data.store import TokenStore
from rinalmo.errors import InputError

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
        keys = draws.key(self.seed, _ITEM, epoch, positions)
        strata = draws.permute(positions, len(self), draws.key(self.seed, _ORDER, epoch))
        sequences, clusters = self._draw(strata, draws.uniform(keys, _MEMBER))
        lengths = self.store.lengths[sequences].astype(np.int64)
        shown = np.minimum(lengths, self.max_length)
        starts = (draws.uniform(keys, _CROP) * (lengths - shown + 1)).astype(np.int64)
        columns = (sequences, clusters, starts, shown, shown == lengths, draws.bits(keys, _CROP + 1))
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

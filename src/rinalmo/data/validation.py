"""The fixed validation set: some sequences of each source, always the same, always masked alike."""

from __future__ import annotations

import numpy as np

from rinalmo.alphabet import Alphabet
from rinalmo.data import draws
from rinalmo.data.masking import Masking
from rinalmo.data.micro_batches import Batch, divided, make_batches
from rinalmo.data.sampler import MAX_LENGTH, Item
from rinalmo.data.store import TokenStore

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
    keys = draws.key(seed, _VALIDATION, indices)
    sources = store.source_ids[span.start : span.stop]
    chosen: list[int] = []
    for source in np.unique(sources).tolist():
        own = np.flatnonzero(sources == source)
        first = np.argsort(draws.bits(keys[own], _CHOICE), kind="stable")[:per_source]
        chosen += np.sort(own[first]).tolist()
    return [_item(store, int(indices[i]), keys[i], max_length) for i in chosen]


def _item(store: TokenStore, sequence: int, key: np.uint64, max_length: int) -> Item:
    length = int(store.lengths[sequence])
    shown = min(length, max_length)
    keys = np.asarray(key)
    start = int(draws.uniform(keys, _CROP) * (length - shown + 1))
    cluster = int(store.clusters_of(np.array([sequence]))[0])
    return Item(sequence, cluster, start, shown, shown == length, int(draws.bits(keys, _MASK)))

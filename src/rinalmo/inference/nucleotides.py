"""What a model expects at places of a sequence: log-probabilities of A, C, G and U.

They are renormalised over these four: what the model gives to N and other tokens is no nucleotide, and differs from
model to model. Differences between letters of one place do not depend on it, sums over places do.

The masked-LM head runs in fp32, on the places asked for only, so memory does not grow with the vocabulary, and L masked
copies of a sequence are never all in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rinalmo.inference.batching import to_host
from rinalmo.inference.engine import Engine
from rinalmo.model.packing import Layout

LETTERS = "ACGU"
_REMEMBERED = 16


class Nucleotides:
    """An engine's view of nucleotides. `tell` is called with the number of sequences computed so far."""

    def __init__(self, engine: Engine, tell: Callable[[int], Any] = lambda count: None) -> None:
        self._engine, self._tell, self._computed = engine, tell, 0
        self._alphabet = engine.alphabet
        self._head = engine.head("lm_head")
        self._ids = lru_cache(_REMEMBERED)(partial(self._alphabet.encode, strict=True))
        # Those of a wild type are asked for again by every block of its variants.
        self.unmasked = lru_cache(_REMEMBERED)(self._unmasked)
        self.pseudo_log_likelihood = lru_cache(_REMEMBERED)(self._pseudo_log_likelihood)

    def masked(self, questions: Iterable[tuple[str, Sequence[int]]]) -> Iterator[np.ndarray]:
        """For each sequence and places in it, counted from 0: `(places, 4)`, with all these places masked at once."""
        return self._map((self._with_masks(*question) for question in questions), self._is_mask)

    def pseudo_log_likelihoods(self, sequences: Collection[str]) -> Iterator[float]:
        """For each sequence the sum over its A, C, G and U of the log-probability of the letter, it alone masked.

        Other letters, such as N, are context: they are seen, but not summed.
        """
        found = self.masked((sequence, [n]) for sequence in sequences for n in _nucleotides(sequence))
        for sequence in sequences:
            own = columns(sequence)[_nucleotides(sequence)]
            yield sum((float(next(found)[0, column]) for column in own), 0.0)

    def _pseudo_log_likelihood(self, sequence: str) -> float:
        return next(self.pseudo_log_likelihoods((sequence,)))

    def _unmasked(self, sequence: str) -> np.ndarray:
        """`(length, 4)`, from one pass over the sequence as it is."""
        return next(self._map(iter([self._with_masks(sequence, ())]), self._is_letter))

    def _with_masks(self, sequence: str, places: Sequence[int]) -> np.ndarray:
        ids = self._ids(sequence).copy()
        ids[np.asarray(places, dtype=np.int64) + 1] = self._alphabet.mask_id
        return ids

    def _is_mask(self, ids: Tensor) -> Tensor:
        return ids == self._alphabet.mask_id

    def _is_letter(self, ids: Tensor) -> Tensor:
        return (ids != self._alphabet.cls_id) & (ids != self._alphabet.eos_id)

    def _map(self, sequences: Iterator[np.ndarray], asked: Callable[[Tensor], Tensor]) -> Iterator[np.ndarray]:
        last, letters = self._engine.config.num_hidden_layers, list(self._alphabet.nucleotide_ids)

        def compute(ids: Tensor, layout: Layout) -> Sequence[np.ndarray]:
            # Found first: a GPU is waited for there, and has not much to do yet.
            where = asked(ids)
            places, selected = where.nonzero()[:, 0], layout.select(where)
            states = self._engine.hidden_states(ids, layout, [last])[0][places]
            with torch.inference_mode():
                scores = self._head(states)[:, letters].log_softmax(dim=-1)
            return [part.numpy() for part in selected.split(to_host(scores)[0])]

        for values in self._engine.map(compute, sequences):
            self._computed += 1
            self._tell(self._computed)
            yield values


def columns(sequence: str) -> np.ndarray:
    """The column of each letter in an array of A, C, G, U; -1 for any other."""
    return _COLUMN[np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)]


def _nucleotides(sequence: str) -> list[int]:
    """The places of A, C, G and U."""
    return np.flatnonzero(columns(sequence) >= 0).tolist()


_COLUMN = np.full(128, -1)
_COLUMN[list(LETTERS.encode())] = range(len(LETTERS))

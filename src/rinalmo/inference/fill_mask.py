"""What a model expects at places of a sequence: log-probabilities of A, C, G and U.

They are renormalised over these four: what the model gives to N and other tokens is no nucleotide, and differs from
model to model. Differences between letters of one place do not depend on it, sums over places do.

The masked-LM head runs in fp32, on the places asked for only, so memory does not grow with the vocabulary, and L masked
copies of a sequence are never all in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rinalmo.engine.devices import DeviceLike
from rinalmo.engine.engine import Engine, as_engine, to_host
from rinalmo.engine.inputs import Sequences, as_records, encode, peeked, read_from, require_whole
from rinalmo.errors import SequenceError
from rinalmo.io.fasta import Record
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.rna.alphabet import NUCLEOTIDES, Alphabet

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
_COLUMN[list(NUCLEOTIDES.encode())] = range(len(NUCLEOTIDES))


MASK = "<mask>"


@dataclass(frozen=True)
class Prediction:
    """One candidate for one mask.

    `position` counts nucleotides from 1, masks included; `score` is the probability; `sequence` is the whole RNA with
    this candidate in place, other masks left as they are.
    """

    score: float
    token: int
    token_str: str
    sequence: str
    position: int


def fill_mask(
    sequences: Sequences, model: str | Path | RiNALMo | Engine = "nano", *, top_k: int = 5, device: DeviceLike = None
) -> list[list[list[Prediction]]]:
    """The `top_k` candidates for each mask of each sequence: per sequence, per mask, best first.

    `sequences` is one sequence, several, FASTA records, or the `Path` of a FASTA file; masks are written `<mask>`.
    `model` is a name, folder, file or loaded model, computed in fp32, or an `Engine` for any other way; `device` is
    "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps", None: where a loaded model is.
    Raises SequenceError for a sequence without a mask.
    """
    engine = as_engine(model, device)
    with read_from(sequences):
        records = as_records(sequences, allow_mask=True)
        return [found for _, found in predict(records, engine, top_k=top_k)]


def predict(
    records: Iterable[Record], engine: Engine, *, top_k: int = 5
) -> Iterator[tuple[Record, list[list[Prediction]]]]:
    """As `fill_mask`, record by record, for streams of any length."""
    require_whole("top_k", top_k)
    alphabet = engine.alphabet
    head, mask_id = engine.head("lm_head"), alphabet.mask_id
    waiting: deque[tuple[Record, np.ndarray]] = deque()

    def ids() -> Iterator[np.ndarray]:
        for record in peeked(records):
            encoded = encode(record, alphabet)
            _require_mask(record, encoded, mask_id)
            waiting.append((record, encoded))
            yield encoded

    def compute(packed: Tensor, layout: Layout) -> Sequence[Tensor]:
        # The LM head runs on the masked positions only, in fp32. They are found first: a GPU is waited for there, and
        # has not much to do yet.
        masked = packed == mask_id
        places, selected = masked.nonzero()[:, 0], layout.select(masked)
        states = engine.hidden_states(packed, layout, [engine.config.num_hidden_layers])[0]
        with torch.inference_mode():
            probabilities = head(states[places]).softmax(dim=-1)
        return selected.split(to_host(probabilities)[0])

    for probabilities in engine.map(compute, ids()):
        record, encoded = waiting.popleft()
        yield record, _candidates(encoded, probabilities, alphabet, top_k)


def _require_mask(record: Record, ids: np.ndarray, mask_id: int) -> None:
    if not (ids == mask_id).any():
        raise SequenceError(f"has no {MASK}; write {MASK} where a nucleotide is to be predicted", record=record.id)


def _candidates(ids: np.ndarray, probabilities: Tensor, alphabet: Alphabet, top_k: int) -> list[list[Prediction]]:
    tokens = [alphabet.tokens[i] for i in ids[1:-1].tolist()]
    positions = [n for n, token in enumerate(tokens) if token == MASK]
    scores, best = probabilities.topk(min(top_k, alphabet.size), dim=-1)
    return [
        [
            Prediction(score, token, alphabet.tokens[token], _filled(tokens, at, alphabet.tokens[token]), at + 1)
            for score, token in zip(row_scores, row_tokens, strict=True)
        ]
        for at, row_scores, row_tokens in zip(positions, scores.tolist(), best.tolist(), strict=True)
    ]


def _filled(tokens: list[str], at: int, token: str) -> str:
    return "".join(tokens[:at]) + token + "".join(tokens[at + 1 :])

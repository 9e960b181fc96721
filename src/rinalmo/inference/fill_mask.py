"""Nucleotide probabilities from the masked-LM head.

For scores and logos they are renormalized over A, C, G and U: the probability of N and other tokens is no nucleotide,
and differs from model to model. Differences between nucleotides at one position do not depend on it, sums over
positions do.

The head runs in fp32 on the selected positions only, so memory does not grow with the vocabulary, and L masked copies
of a sequence are never all in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rinalmo.engine.devices import DeviceLike
from rinalmo.engine.engine import Engine, Item, as_engine, map_encoded, to_host
from rinalmo.errors import SequenceError
from rinalmo.io.sequences import (
    Record,
    Sequences,
    as_records,
    check_positive_int,
    encode,
    name_source_in_errors,
    require_nonempty,
)
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.rna.alphabet import NUCLEOTIDES

MASK = "<mask>"
_CACHED_SEQUENCES = 16


def _run_head(
    engine: Engine,
    items: Iterable[Item],
    encode_item: Callable[[Item], np.ndarray],
    select: Callable[[Tensor], Tensor],
    normalize: Callable[[Tensor], Tensor],
) -> Iterator[tuple[Item, Tensor]]:
    """Each item with its normalized logits `(selected, vocabulary)`, at the tokens for which `select` is True."""
    head, last = engine.head_model.head("lm_head"), engine.config.num_hidden_layers

    def compute(ids: Tensor, layout: Layout) -> Sequence[Tensor]:
        # The positions are computed first: this waits for the GPU, which has little to do yet.
        selected = select(ids)
        positions, groups = selected.nonzero()[:, 0], layout.select(selected)
        states = engine.hidden_states(ids, layout, [last])[0][positions]
        with torch.inference_mode():
            return groups.split(to_host(normalize(head(states)))[0])

    return map_encoded(engine, items, encode_item, compute)


@dataclass(frozen=True)
class Prediction:
    """One candidate for one mask.

    `position` counts nucleotides from 1, masks included; `score` is the probability; `sequence` is the whole RNA with
    this candidate in place, other masks unchanged.
    """

    score: float
    token: int
    token_str: str
    sequence: str
    position: int


def fill_mask(
    sequences: Sequences, model: str | Path | RiNALMo | Engine = "nano", *, top_k: int = 5, device: DeviceLike = None
) -> list[list[list[Prediction]]]:
    """Predict masked nucleotides.

    Args:
        sequences: One sequence, several, FASTA records, or the `Path` of a FASTA file; masks are written `<mask>`.
        model: A name, folder, file or loaded model, computed in fp32; an `Engine` for other precisions.
        top_k: Candidates for each mask.
        device: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"; None: where a loaded model is.

    Returns:
        For each sequence and each of its masks the `top_k` candidates, most probable first.

    Raises:
        SequenceError: A sequence has no mask, or a character that is not a nucleotide code.
        CheckpointError: The model has no masked-LM head.

    Examples:
        >>> import rinalmo
        >>> ((candidates,),) = rinalmo.fill_mask("GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU", top_k=2)
        >>> candidates[0].token_str, candidates[0].position
        ('U', 5)
    """
    engine = as_engine(model, device)
    with name_source_in_errors(sequences):
        records = as_records(sequences, allow_mask=True)
        return [masks for _, masks in fill_mask_records(records, engine, top_k=top_k)]


def fill_mask_records(
    records: Iterable[Record], engine: Engine, *, top_k: int = 5
) -> Iterator[tuple[Record, list[list[Prediction]]]]:
    """As `fill_mask`, record by record, for streams of any length."""
    check_positive_int("top_k", top_k)
    alphabet = engine.alphabet

    def encode_masked(record: Record) -> np.ndarray:
        ids = encode(record, alphabet)
        if not (ids == alphabet.mask_id).any():
            raise SequenceError(f"has no {MASK}; write {MASK} for a nucleotide to predict", record=record.id)
        return ids

    softmax = partial(torch.softmax, dim=-1)
    for record, probabilities in _run_head(
        engine, require_nonempty(records), encode_masked, lambda ids: ids == alphabet.mask_id, softmax
    ):
        tokens = [alphabet.tokens[i] for i in encode(record, alphabet)[1:-1].tolist()]
        masks = [n for n, token in enumerate(tokens) if token == MASK]
        scores, best = probabilities.topk(min(top_k, alphabet.size), dim=-1)
        predictions = []
        for n, row_scores, row_ids in zip(masks, scores.tolist(), best.tolist(), strict=True):
            before, after = "".join(tokens[:n]), "".join(tokens[n + 1 :])
            row = []
            for score, token in zip(row_scores, row_ids, strict=True):
                letter = alphabet.tokens[token]
                row.append(Prediction(score, token, letter, before + letter + after, n + 1))
            predictions.append(row)
        yield record, predictions


class NucleotideScorer:
    """Log-probabilities of A, C, G and U by an engine.

    `progress` is called with the number of sequences computed so far, that is, of passes of the model.
    """

    def __init__(self, engine: Engine, progress: Callable[[int], Any] = lambda count: None) -> None:
        self._engine, self._progress, self._passes = engine, progress, count(1)
        self._alphabet = engine.alphabet
        self._columns = list(self._alphabet.nucleotide_ids)
        self._encode = lru_cache(_CACHED_SEQUENCES)(partial(self._alphabet.encode, strict=True))
        # Those of a wild type are needed again by every block of its variants.
        self.unmasked = lru_cache(_CACHED_SEQUENCES)(self._unmasked)
        self.pseudo_log_likelihood = lru_cache(_CACHED_SEQUENCES)(self._pseudo_log_likelihood)

    def masked(self, sequences: Iterable[tuple[str, Sequence[int]]]) -> Iterator[np.ndarray]:
        """For each sequence and positions in it, counted from 0: `(positions, 4)`, all of them masked at once."""
        mask_id = self._alphabet.mask_id
        return self._log_probabilities(sequences, lambda ids: ids == mask_id)

    def pseudo_log_likelihoods(self, sequences: Collection[str]) -> Iterator[float]:
        """For each sequence the sum of the log-probabilities of its A, C, G and U, each masked alone.

        Other letters, such as N, are context: the model sees them, but they are not summed.
        """
        known = [np.flatnonzero(columns(sequence) >= 0).tolist() for sequence in sequences]
        rows = self.masked((sequence, [n]) for sequence, ns in zip(sequences, known, strict=True) for n in ns)
        for sequence, ns in zip(sequences, known, strict=True):
            yield sum((float(next(rows)[0, column]) for column in columns(sequence)[ns]), 0.0)

    def _pseudo_log_likelihood(self, sequence: str) -> float:
        return next(self.pseudo_log_likelihoods((sequence,)))

    def _unmasked(self, sequence: str) -> np.ndarray:
        """`(length, 4)`, from one pass over the sequence as it is."""
        ends = (self._alphabet.cls_id, self._alphabet.eos_id)
        return next(self._log_probabilities([(sequence, ())], lambda ids: (ids != ends[0]) & (ids != ends[1])))

    def _log_probabilities(
        self, sequences: Iterable[tuple[str, Sequence[int]]], select: Callable[[Tensor], Tensor]
    ) -> Iterator[np.ndarray]:
        def encode_masked(item: tuple[str, Sequence[int]]) -> np.ndarray:
            sequence, masks = item
            ids = self._encode(sequence).copy()
            ids[np.asarray(masks, dtype=np.int64) + 1] = self._alphabet.mask_id
            return ids

        def normalize(logits: Tensor) -> Tensor:
            return logits[:, self._columns].log_softmax(dim=-1)

        for _, values in _run_head(self._engine, sequences, encode_masked, select, normalize):
            self._progress(next(self._passes))
            yield values.numpy()


def columns(sequence: str) -> np.ndarray:
    """The column of each letter in an array of A, C, G, U; -1 for any other."""
    return _COLUMN[np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)]


_COLUMN = np.full(128, -1)
_COLUMN[list(NUCLEOTIDES.encode())] = range(len(NUCLEOTIDES))

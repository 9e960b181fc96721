"""What stands at each `<mask>`: the model's probabilities for every token of its alphabet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rinalmo.errors import InputError, SequenceError
from rinalmo.inference.batching import BATCH_TOKENS, map_packed
from rinalmo.inference.inputs import Sequences, as_model, as_records, encode, peeked
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.rna.fasta import Record

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
    sequences: Sequences,
    model: str | Path | RiNALMo = "starter",
    *,
    top_k: int = 5,
    batch_tokens: int = BATCH_TOKENS,
    device: torch.device | str = "cpu",
) -> list[list[list[Prediction]]]:
    """The `top_k` candidates for each mask of each sequence: per sequence, per mask, best first.

    `sequences` is one sequence, several, FASTA records, or the `Path` of a FASTA file; masks are written `<mask>`.
    Raises SequenceError for a sequence without a mask.
    """
    loaded = as_model(model, device)
    records = as_records(sequences, allow_mask=True)
    return [found for _, found in predict(records, loaded, top_k=top_k, batch_tokens=batch_tokens)]


def predict(
    records: Iterable[Record], model: RiNALMo, *, top_k: int = 5, batch_tokens: int = BATCH_TOKENS
) -> Iterator[tuple[Record, list[list[Prediction]]]]:
    """As `fill_mask`, record by record, for streams of any length."""
    if top_k < 1:
        raise InputError(f"top_k is {top_k}; it must be at least 1")
    waiting: list[tuple[Record, np.ndarray]] = []

    def ids() -> Iterator[np.ndarray]:
        for record in peeked(records):
            encoded = encode(record, model.alphabet)
            _require_mask(record, encoded, model.alphabet.mask_id)
            waiting.append((record, encoded))
            yield encoded

    device = next(model.parameters()).device
    compute = partial(masked_probabilities, model)
    for probabilities in map_packed(compute, ids(), batch_tokens=batch_tokens, device=device):
        record, encoded = waiting.pop(0)
        yield record, _candidates(encoded, probabilities, model, top_k)


@torch.inference_mode()
def masked_probabilities(model: RiNALMo, ids: Tensor, layout: Layout) -> Sequence[Tensor]:
    """For each sequence the probabilities `(masks, vocabulary)` at its masks, fp32.

    The LM head runs on the masked positions only.
    """
    head = model.head("lm_head")
    masked = ids == model.alphabet.mask_id
    states = model.encoder(ids, layout).last_hidden_state[masked]
    probabilities = head(states).softmax(dim=-1).cpu()
    return layout.select(masked).split(probabilities)


def _require_mask(record: Record, ids: np.ndarray, mask_id: int) -> None:
    if not (ids == mask_id).any():
        raise SequenceError(f"has no {MASK}; write {MASK} where a nucleotide is to be predicted", record=record.id)


def _candidates(ids: np.ndarray, probabilities: Tensor, model: RiNALMo, top_k: int) -> list[list[Prediction]]:
    alphabet = model.alphabet
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

"""What stands at each `<mask>`: the model's probabilities for every token of its alphabet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rinalmo.alphabet import Alphabet
from rinalmo.errors import SequenceError
from rinalmo.inference.batching import to_host
from rinalmo.inference.devices import DeviceLike
from rinalmo.inference.engine import Engine, as_engine
from rinalmo.inference.inputs import Sequences, as_records, encode, peeked, read_from, require_whole
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

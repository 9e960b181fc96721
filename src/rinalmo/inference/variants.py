"""How well a changed sequence fits, next to the wild type, without any training: three scores, higher is fitter.

    masked-marginals      Σ log p(new) − log p(old) over the changed places, all of them masked at once
    wild-type-marginals   the same from the wild type as it is, nothing masked: one pass for all its variants
    pll                   PLL(variant) − PLL(wild type); the pseudo-log-likelihood PLL is the sum over all places of
                          log p(its letter), each masked alone: length × passes, and the only one for another length

The surprise is in the first: all changed places are masked together, so none is seen from another, and the score of a
double mutant is not the sum of those of its two single mutants.

References: Meier et al. 2021 (doi:10.1101/2021.07.09.450648) for the marginals, Salazar et al. 2020
(arXiv:1910.14659) for the pseudo-log-likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from rinalmo.errors import InputError, SequenceError
from rinalmo.inference.devices import DeviceLike
from rinalmo.inference.engine import Engine, as_engine
from rinalmo.inference.inputs import as_records
from rinalmo.inference.mutations import WILD_TYPE, Variant, compare, parse, single
from rinalmo.inference.nucleotides import LETTERS, Nucleotides
from rinalmo.inference.runs import chunked
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.rna.fasta import Record

Method = Literal["masked-marginals", "wild-type-marginals", "pll"]

# A multiple of three, so that the three exchanges of a place, which share a pass, stay together.
BLOCK_VARIANTS = 3 * 1024
BLOCK_TOKENS = 1 << 20


def score(
    wild_type: str | Record,
    variants: str | Iterable[str],
    model: str | Path | RiNALMo | Engine = "nano",
    *,
    method: Method = "masked-marginals",
    device: DeviceLike = None,
) -> np.ndarray:
    """Scores of variants of a sequence, `(variants,)` in fp64; 0 is as fit as the wild type, more is fitter.

    A variant is written `A12G`, `A12G:C13U` (positions from 1, T or U) or `WT`, or is a whole sequence.
    `model` is a name, folder, file or loaded model, computed in fp32, or an `Engine` for any other way; `device` is
    "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"; None: where a loaded model is.
    Raises SequenceError for a letter that is not the wild type's, a position that it does not have, and for a sequence
    of another length with a method other than "pll".
    """
    check_method(method)
    (record,) = as_records([wild_type])
    written = [variants] if isinstance(variants, str) else list(variants)
    read = [_read(record.sequence, text, number) for number, text in enumerate(written, start=1)]
    for number, variant in enumerate(read, start=1):
        check(variant, method, record=str(number))
    return np.array(list(score_variants(read, Nucleotides(as_engine(model, device)), method)), dtype=np.float64)


def saturation(
    wild_type: str | Record,
    model: str | Path | RiNALMo | Engine = "nano",
    *,
    method: Method = "masked-marginals",
    device: DeviceLike = None,
) -> np.ndarray:
    """As `score`, of every exchange of one letter: `(length, 4)` for A, C, G, U; 0 where it is the wild type's.

    NaN where the wild type has another letter, such as N.
    """
    check_method(method)
    (record,) = as_records([wild_type])
    changed = list(single(record.sequence))
    scores = score_variants(changed, Nucleotides(as_engine(model, device)), method)
    return as_map(record.sequence, zip(changed, scores, strict=True))


def as_map(wild_type: str, scored: Iterable[tuple[Variant, float]]) -> np.ndarray:
    """Scores of single exchanges as the array of `saturation`."""
    found = np.full((len(wild_type), len(LETTERS)), np.nan)
    for variant, value in scored:
        (place, letter), *_ = variant.changes
        found[place, [LETTERS.index(letter), LETTERS.index(wild_type[place])]] = value, 0.0
    return found


def score_variants(variants: Iterable[Variant], model: Nucleotides, method: Method) -> Iterator[float]:
    """Score after score, for streams of any length; those of a block are computed together."""
    for block in blocks(variants, method):
        yield from score_block(block, model, method)


def blocks(variants: Iterable[Variant], method: Method) -> Iterator[list[Variant]]:
    """Consecutive variants, so many as take little memory and, with "pll" and a small model, about a minute."""

    def tokens(variant: Variant) -> int:
        return len(variant.wild_type) ** 2 if method == "pll" else 0

    return chunked(variants, tokens, BLOCK_TOKENS, BLOCK_VARIANTS)


def score_block(block: Sequence[Variant], model: Nucleotides, method: Method) -> list[float]:
    """Scores of some variants; what they share is computed once."""
    return _METHODS[method](block, model)


def check_method(method: str) -> None:
    """Raise InputError for a method that there is not."""
    if method not in get_args(Method):
        raise InputError(f"method {method!r} is unknown; use one of {', '.join(get_args(Method))}")


def check(variant: Variant, method: Method, *, file: str | None = None, record: str | None = None) -> None:
    """Raise SequenceError for an insertion or deletion, if the method cannot score it."""
    if variant.other is not None and method != "pll":
        sizes = f"has {len(variant.other)} nt, the wild type {len(variant.wild_type)}"
        problem = f"{sizes}; marginals compare letters place by place: use the method pll"
        raise SequenceError(problem, file=file, record=record)


def _masked_marginals(block: Sequence[Variant], model: Nucleotides) -> list[float]:
    questions = dict.fromkeys((variant.wild_type, variant.places) for variant in block if variant.changes)
    answers = dict(zip(questions, model.masked(questions), strict=True))
    return [_sum(variant, answers[variant.wild_type, variant.places]) if variant.changes else 0.0 for variant in block]


def _wild_type_marginals(block: Sequence[Variant], model: Nucleotides) -> list[float]:
    scores = [0.0] * len(block)
    members: dict[str, list[int]] = {}
    for number, variant in enumerate(block):
        members.setdefault(variant.wild_type, []).append(number)
    for wild_type, numbers in members.items():
        found = model.unmasked(wild_type)
        for number in numbers:
            scores[number] = _sum(block[number], found[list(block[number].places)])
    return scores


def _pll(block: Sequence[Variant], model: Nucleotides) -> list[float]:
    pairs = [(variant.wild_type, variant.sequence) for variant in block]
    changed = dict.fromkeys(new for old, new in pairs if new != old)
    totals = dict(zip(changed, model.pseudo_log_likelihoods(changed), strict=True))
    before = {old: model.pseudo_log_likelihood(old) for old in dict.fromkeys(old for old, new in pairs if new != old)}
    return [totals[new] - before[old] if new != old else 0.0 for old, new in pairs]


_METHODS: dict[str, Callable[[Sequence[Variant], Nucleotides], list[float]]] = {
    "masked-marginals": _masked_marginals,
    "wild-type-marginals": _wild_type_marginals,
    "pll": _pll,
}


def _sum(variant: Variant, found: np.ndarray) -> float:
    """Of log p(new) − log p(old), from the log-probabilities at the changed places `(changes, 4)`."""
    pairs = ((LETTERS.index(new), LETTERS.index(variant.wild_type[place])) for place, new in variant.changes)
    return sum((float(row[new] - row[old]) for row, (new, old) in zip(found, pairs, strict=True)), 0.0)


def _read(wild_type: str, text: Any, number: int) -> Variant:
    if not isinstance(text, str):
        raise InputError(f"variant {number} is a {type(text).__name__}; expected text")
    if text.strip().upper() == WILD_TYPE or any(character.isdigit() for character in text):
        return Variant(wild_type, parse(wild_type, text, where=f"variant {number}"))
    (record,) = as_records([text])
    return compare(wild_type, record.sequence, record=str(number))

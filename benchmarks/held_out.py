"""Masked-nucleotide prediction on RNA families unseen in training, compared with frequencies and Markov models.

    python benchmarks/held_out.py heldout.fa.gz --train train.fa.gz --model nano --model other_folder

15 % of the nucleotides of each sequence (up to 512 nt; fixed seed) are masked, and predicted from the rest. Accuracy
and cross-entropy (nats; perplexity is its exponential) are over A, C, G, U.

The count models see more than the language models: none of the neighbors is masked. `Markov, order 5` predicts from the
five preceding nucleotides; `3 + 3` and `5 + 5` from as many on either side. A context seen n times has weight n, and
the next shorter one weight 4 (the shortest is the frequencies), so that rare contexts do not mislead. Beyond an end the
next shorter context is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from precision import logits, masked
from rinalmo.io.sequences import read_fasta
from rinalmo.weights.checkpoint import load

SHAPES = {"Markov, order 5": (5, 0), "counted, 3 + 3": (3, 3), "counted, 5 + 5": (5, 5)}
BACK_OFF = 4.0


def codes(sequence: str) -> np.ndarray:
    """0 to 3 for A, C, G, U, and -1 for other letters."""
    table = np.full(256, -1, dtype=np.int64)
    table[[ord(letter) for letter in "ACGU"]] = range(4)
    return table[np.frombuffer(sequence.encode(), dtype=np.uint8)]


def contexts(sequence: np.ndarray, left: int, right: int) -> np.ndarray:
    """The code of the context of each position, -1 where it contains an end or another letter."""
    padded = np.pad(sequence, (left, right), constant_values=-1)
    around = np.delete(np.lib.stride_tricks.sliding_window_view(padded, left + right + 1), left, axis=1)
    return np.where((around >= 0).all(axis=1), around @ (4 ** np.arange(left + right)), -1)


def counted(sequences: list[np.ndarray], left: int, right: int) -> np.ndarray:
    """Counts of each nucleotide in each context, `(contexts, 4)`."""
    size = 4 ** (left + right)
    counts = np.zeros(size * 4)
    for start in range(0, len(sequences), 2000):  # so that a table of millions is not summed for every sequence
        parts = sequences[start : start + 2000]
        around, letters = np.concatenate([contexts(s, left, right) for s in parts]), np.concatenate(parts)
        known = (around >= 0) & (letters >= 0)
        counts += np.bincount(around[known] * 4 + letters[known], minlength=size * 4)
    return counts.reshape(size, 4)


def predicted(train: list[np.ndarray], places: Sequence[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int]):  # type: ignore[no-untyped-def]
    """Probabilities of A, C, G, U at the positions of each sequence; longer contexts back off to shorter ones."""
    left, right = shape
    steps = [(min(n, left), min(n, right)) for n in range(max(shape) + 1)]
    found = np.full((sum(len(at) for _, at in places), 4), 0.25)
    for step in steps:
        table = counted(train, *step)
        around = np.concatenate([contexts(sequence, *step)[at] for sequence, at in places])
        rows = np.where((around >= 0)[:, None], table[around], 0.0)
        found = (rows + BACK_OFF * found) / (rows.sum(axis=1, keepdims=True) + BACK_OFF)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta")
    parser.add_argument("--train", required=True, help="sequences to count contexts in")
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--most", type=int, default=1_000_000)
    options = parser.parse_args()
    rows: dict[str, np.ndarray] = {}
    for name in options.model:
        model = load(name)
        ids, answers, sequences = masked(options.fasta, model, options.most)
        truth = np.searchsorted(model.alphabet.nucleotide_ids, answers)
        rows[name] = torch.softmax(logits(model, ids, "fp32").double(), dim=1).numpy()
        mask = model.alphabet.mask_id
    train = [codes(record.sequence) for record in read_fasta(options.train)]
    places = [(codes(s), np.flatnonzero(encoded == mask) - 1) for s, encoded in zip(sequences, ids, strict=True)]
    for name, shape in {"nucleotide frequencies": (0, 0), **SHAPES}.items():
        rows[name] = predicted(train, places, shape)
    print(f"{len(ids):,} sequences, {len(truth):,} masked nucleotides\n")
    print("| model | masked accuracy | cross-entropy | perplexity |")
    print("|---|---|---|---|")
    for name, values in rows.items():
        accuracy = (values.argmax(axis=1) == truth).mean()
        loss = -np.log(values[np.arange(len(truth)), truth]).mean()
        print(f"| {name} | {100 * accuracy:.2f} % | {loss:.4f} | {np.exp(loss):.3f} |")


if __name__ == "__main__":
    main()

"""What models know of RNA families they have never seen, beside nucleotide frequencies and Markov chains.

    python benchmarks/held_out.py heldout.fa.gz --train train.fa.gz --model nano --model other_folder

15 % of the nucleotides of each sequence (up to 512 nt; fixed seed) are masked, and predicted from the rest. Accuracy
and cross-entropy (nats; perplexity is its exponential) are over A, C, G, U.

The chains see more than the models do: of their neighbours none is masked. `Markov, order 5` predicts from the five
nucleotides before; `both sides` from five on either side, as p(x | left, right) ∝ Π p(next nucleotide | five before)
over the six windows that hold x.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch

from precision import logits, masked
from rinalmo.rna.fasta import read_fasta
from rinalmo.weights.checkpoint import load

ORDER, LETTERS = 5, "ACGU"


def codes(sequence: str) -> np.ndarray:
    """0 to 3 for A, C, G, U, and -1 for other letters."""
    table = np.full(256, -1, dtype=np.int64)
    table[[ord(letter) for letter in LETTERS]] = range(4)
    return table[np.frombuffer(sequence.encode(), dtype=np.uint8)]


def windows(sequence: np.ndarray) -> np.ndarray:
    """The code of each window of six nucleotides, -1 where one of them is none."""
    cut = np.lib.stride_tricks.sliding_window_view(sequence, ORDER + 1)
    return np.where((cut >= 0).all(axis=1), cut @ (4 ** np.arange(ORDER, -1, -1)), -1)


def counted(path: str) -> np.ndarray:
    """How often each window of six stands in a file, `(1024, 4)`, one more for each."""
    counts = np.ones(4 ** (ORDER + 1))
    for record in read_fasta(path):
        if len(record.sequence) > ORDER:
            found = windows(codes(record.sequence))
            counts += np.bincount(found[found >= 0], minlength=len(counts))
    return counts.reshape(-1, 4)


def baselines(sequence: np.ndarray, places: list[int], chain: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Log-probabilities of A, C, G, U at each place: by frequency, from the left, from both sides."""
    log_chain = np.log(chain / chain.sum(axis=1, keepdims=True))
    frequency = np.log(chain.sum(axis=0) / chain.sum())
    powers = 4 ** np.arange(ORDER - 1, -1, -1)
    for place in places:
        left, both = frequency, np.zeros(4)
        for at in range(place, min(place + ORDER + 1, len(sequence))):
            before = sequence[max(0, at - ORDER) : at]
            if len(before) < ORDER or sequence[at] < 0:
                continue
            rows = np.repeat(before[None], 4, axis=0)
            if at > place:
                rows[:, place - at] = range(4)
            if (np.delete(rows[0], place - at) if at > place else rows[0]).min() < 0:
                continue
            found = log_chain[rows @ powers]
            step = found[0] if at == place else found[:, sequence[at]]
            both = both + step
            left = step if at == place else left
        yield frequency, left, both - np.logaddexp.reduce(both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta")
    parser.add_argument("--train", required=True, help="what frequencies and chains are counted on")
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--most", type=int, default=1_000_000)
    options = parser.parse_args()
    rows: dict[str, np.ndarray] = {}
    for name in options.model:
        model = load(name)
        ids, answers, sequences = masked(options.fasta, model, options.most)
        truth = np.searchsorted(model.alphabet.nucleotide_ids, answers)
        rows[name] = torch.log_softmax(logits(model, ids, "fp32").double(), dim=1).numpy()
    chain, found = counted(options.train), []
    for sequence, encoded in zip(sequences, ids, strict=True):
        places = (np.flatnonzero(encoded == model.alphabet.mask_id) - 1).tolist()
        found += baselines(codes(sequence), places, chain)
    names = ("nucleotide frequencies", "Markov, order 5", "Markov, both sides")
    rows |= {name: np.array(values) for name, values in zip(names, zip(*found, strict=True), strict=True)}
    print(f"{len(ids):,} sequences, {len(truth):,} masked nucleotides\n")
    print("| model | masked accuracy | cross-entropy | perplexity |")
    print("|---|---|---|---|")
    for name, values in rows.items():
        accuracy = (values.argmax(axis=1) == truth).mean()
        loss = -values[np.arange(len(truth)), truth].mean()
        print(f"| {name} | {100 * accuracy:.2f} % | {loss:.4f} | {np.exp(loss):.3f} |")


if __name__ == "__main__":
    main()

"""What mean embeddings of RNAs know without any training: family, length and composition, beside counted words.

    python benchmarks/embedding_content.py nRC/test.csv.gz --model nano

The file has the columns `sequence` and `label`. For each sequence, the nearest other one by cosine similarity of
centered vectors: has it the same label? Equal sequences are left out. R² is that of a ridge regression in five folds.
Words are those of one to four nucleotides, by frequency.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import rinalmo
from rinalmo.io.tables import read_rows
from rinalmo.metrics import bootstrap_interval
from rinalmo.rna.alphabet import kmer_frequencies


def nearest_is_alike(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each vector whether the nearest other one, after centering, has the same label."""
    centered = vectors - vectors.mean(axis=0)
    unit = centered / np.linalg.norm(centered, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return labels[similarity.argmax(axis=1)] == labels


def explained(vectors: np.ndarray, values: np.ndarray) -> float:
    """R² of a ridge regression in cross-validation."""
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 5, 15)))
    predicted = cross_val_predict(model, vectors, values, cv=KFold(5, shuffle=True, random_state=0))
    return 1 - float(((values - predicted) ** 2).sum() / ((values - values.mean()) ** 2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--most", type=int, default=1000, help="sequences, drawn with seed 0")
    chosen = parser.parse_args()
    rows = list({row["sequence"].upper().replace("T", "U"): row for _, row in read_rows(chosen.file)}.items())
    rows = random.Random(0).sample(rows, min(chosen.most, len(rows)))
    sequences, labels = [sequence for sequence, _ in rows], np.array([row["label"] for _, row in rows])
    alphabet = rinalmo.load(chosen.model).alphabet
    spaces = {
        chosen.model: rinalmo.embed(sequences, chosen.model),
        "words": np.stack([kmer_frequencies(np.array(alphabet.encode(s))[1:-1], alphabet, 4) for s in sequences]),
    }
    length = np.log([len(sequence) for sequence in sequences])
    gc = np.array([sum(map(sequence.count, "GC")) / len(sequence) for sequence in sequences])
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    print(f"{len(sequences):,} sequences, {len(shares)} labels; chance {np.square(shares).sum():.3f}\n")
    print("| | nearest has the same label | R² of log length | R² of GC content |\n|---|---|---|---|")
    for name, vectors in spaces.items():
        alike = nearest_is_alike(vectors, labels).astype(float)
        low, high = bootstrap_interval(alike)
        family = f"{alike.mean():.3f} ({low:.3f}–{high:.3f})"
        print(f"| {name} | {family} | {explained(vectors, length):.3f} | {explained(vectors, gc):.3f} |")


if __name__ == "__main__":
    main()

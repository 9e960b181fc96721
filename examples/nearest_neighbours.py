"""Find the nearest neighbor of each RNA among the embeddings that `rinalmo embed` wrote.

rinalmo embed sequences.fa -o embeddings.npz
python examples/nearest_neighbours.py embeddings.npz
"""

import sys

import numpy as np


def main(path: str) -> None:
    data = np.load(path)
    vectors = data["embeddings"] - data["embeddings"].mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    print(f"{len(vectors)} RNAs, {vectors.shape[1]} dimensions; nearest neighbor by cosine of centered embeddings:")
    for name, length, row in zip(data["ids"], data["lengths"], similarity, strict=True):
        best = int(row.argmax())
        print(f"  {name:22} {length:5d} nt   {data['ids'][best]:22} {row[best]:.2f}")


if __name__ == "__main__":
    main(sys.argv[1])

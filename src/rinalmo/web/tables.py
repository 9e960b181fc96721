"""What the page says of embedded sequences: a map in two dimensions, the nearest neighbour, what headers tell apart."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from rinalmo.inference.header_fields import common_fields
from rinalmo.inference.readers import Embeddings
from rinalmo.inference.runs import Chunk
from rinalmo.inference.writers import write_embeddings
from rinalmo.plots.embedding_map import draw_embedding_map
from rinalmo.web.service import Embedded

NOTHING = "nothing"


def nearest(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each vector the nearest other one by cosine, after centring, and the cosine; an only one has itself and 1."""
    centred = vectors - vectors.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    if len(vectors) > 1:
        np.fill_diagonal(cosine, -np.inf)
    best = cosine.argmax(axis=1)
    return best, (cosine[np.arange(len(best)), best] if len(vectors) > 1 else np.ones(1))


def fields(found: Embeddings) -> dict[str, list[str]]:
    """What may colour a map, by name: fields of the headers, the name up to its first - _ | : or /, and so on.

    A field that tells no two sequences apart, or all of them, is left out, but for the length. The last is "nothing".
    """
    descriptions = found.descriptions or [""] * len(found.ids)
    every = {
        **common_fields(found.ids, descriptions),
        "start of the name": [re.split(r"[-_|:/]", id.lstrip("-_|:/"))[0] for id in found.ids],
        "description": descriptions,
    }
    useful = {name: values for name, values in every.items() if 1 < len(set(values)) < len(values)}
    return {**useful, "length": [str(length) for length in found.lengths], NOTHING: [""] * len(found.ids)}


def draw_map(found: Embeddings, field: str, path: Path) -> None:
    """Draw the first two principal components, coloured by a field."""
    labels = None if field == NOTHING else fields(found)[field]
    draw_embedding_map(found.values, path, labels, label_name=field)


def write_files(embedded: Embedded, folder: Path) -> list[Path]:
    """The vectors as CSV, npz and Parquet, in an empty folder."""
    records, vectors = embedded.records, embedded.vectors
    chunk = Chunk.of(records, list(vectors), per_token=False)
    for ending in ("npz", "parquet"):
        write_embeddings(folder / f"embeddings.{ending}", lambda: iter([chunk]), folder)
    with (folder / "embeddings.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "description", "length", *(f"dim_{n}" for n in range(vectors.shape[1]))])
        for record, vector in zip(records, vectors, strict=True):
            rows.writerow([record.id, record.description, len(record.sequence), *(f"{value:.7g}" for value in vector)])
    return [folder / f"embeddings.{ending}" for ending in ("csv", "npz", "parquet")]

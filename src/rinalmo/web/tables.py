"""What the page says of embedded sequences: a map in two dimensions, the nearest neighbour, what headers tell apart."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rinalmo.inference.runs import Chunk
from rinalmo.inference.writers import write_embeddings
from rinalmo.rna.fasta import Record
from rinalmo.rna.reading import one_line
from rinalmo.web.service import Embedded

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#999999")
"""Of groups in a map, by Okabe and Ito; the last is for all that is left."""

START_OF_NAME, DESCRIPTION, NONE = "start of the name", "description", "nothing"
_KEY_VALUE = re.compile(r"([A-Za-z]\w{0,30})=([^\s;,]+)")
_MOST_FIELDS, _LONGEST_LABEL = 8, 40


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components, `(n, 2)`, and the share of the variance that each of them has."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    found = min(2, len(size))
    points[:, :found] = left[:, :found] * size[:found]
    share = np.zeros(2)
    share[:found] = size[:found] ** 2 / max(float((size**2).sum()), 1e-30)
    return points, share


def nearest(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each vector the nearest other one by cosine, after centring, and the cosine; an only one has itself and 1."""
    centred = vectors - vectors.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    if len(vectors) > 1:
        np.fill_diagonal(cosine, -np.inf)
    best = cosine.argmax(axis=1)
    return best, (cosine[np.arange(len(best)), best] if len(vectors) > 1 else np.ones(1))


def fields(records: Sequence[Record]) -> dict[str, list[str]]:
    """What may colour a map: parts of the headers that put the sequences into groups, and "nothing".

    These are the name up to its first - _ | : or /, the description, and each key of `key=value` in it. Groups
    beyond the seven largest are "other".
    """
    found = {
        START_OF_NAME: [re.split(r"[-_|:/]", record.id.lstrip("-_|:/"))[0] for record in records],
        DESCRIPTION: [record.description for record in records],
    }
    pairs = [dict(_KEY_VALUE.findall(record.description)) for record in records]
    for key in list(dict.fromkeys(key for each in pairs for key in each))[:_MOST_FIELDS]:
        found[f"{key}="] = [each.get(key, "") for each in pairs]
    useful = {name: _grouped(values) for name, values in found.items() if 1 < len(set(values)) < max(len(values), 3)}
    return {**useful, NONE: ["sequences"] * len(records)}


def colours_of(values: Sequence[str]) -> dict[str, str]:
    """A colour for each group; the same groups have the same colours."""
    names = sorted(set(values) - {"other"})
    return {**dict(zip(names, COLOURS, strict=False)), **({"other": COLOURS[-1]} if "other" in values else {})}


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


def _grouped(values: Sequence[str]) -> list[str]:
    labels = [one_line(value)[:_LONGEST_LABEL] or "–" for value in values]
    largest = {label for label, _ in Counter(labels).most_common(len(COLOURS) - 1)}
    return [label if label in largest else "other" for label in labels]

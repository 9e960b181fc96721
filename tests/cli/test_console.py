"""Consoles and files of every encoding: a letter that one lacks is replaced, never a traceback."""

import os
import subprocess
import sys

import pytest

from rinalmo.cli import COMMANDS

NAMES = ">Müller–Lüdenscheidt\nGGGGAAAACCCC\n>ß\nACGUACGU\n".encode()
ENCODINGS = [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}]


def run(*arguments, folder, **environment):
    """The command in a process of its own, whose streams have this encoding; gives its bytes."""
    environment = {**os.environ, "PYTHONUTF8": "0", **environment}
    return subprocess.run(
        [sys.executable, "-m", "rinalmo", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        check=False,
    )


def run_all(commands, environment):
    """The commands one after the other in one process, all of which must end well; gives its bytes."""
    code = (
        "import sys; from rinalmo.cli import main\n"
        f"for command in {[[*map(str, command)] for command in commands]!r}:\n"
        "    sys.argv = ['rinalmo', *command]\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code, (command, stop.code)"
    )
    environment = {**os.environ, "PYTHONUTF8": "0", **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENCODINGS, ids=str)
def test_names_and_bars_on_standard_output(backbone, tmp_path, environment):
    (tmp_path / "in.fa").write_bytes(NAMES)
    (tmp_path / "masked.fa").write_bytes(NAMES.replace(b"AC", b"<mask>"))
    score = ("score", tmp_path / "in.fa", "--all-single", "--method", "wild-type-marginals", "--model", backbone)
    commands = [
        ("fold", tmp_path / "in.fa"),
        ("fill-mask", tmp_path / "masked.fa", "--model", backbone),
        score,
        ("info", "giga"),
    ]
    out = run_all(commands, environment).stdout.decode(environment.get("PYTHONIOENCODING", "ascii"))
    assert out.count("Lüdenscheidt" if "cp1252" in environment.values() else "L?denscheidt") > 3


@pytest.mark.parametrize("environment", ENCODINGS[1:], ids=str)
def test_help(environment):
    done = run_all([(name, "--help") for name in COMMANDS], environment)
    assert done.stdout.decode("ascii").count("Usage:") == len(COMMANDS)


def test_errors_about_names(tmp_path):
    (tmp_path / "in.fa").write_bytes(NAMES.replace(b"GGGG", b"GGJG"))
    done = run("fold", "in.fa", folder=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert done.stderr.decode("ascii").count("\n") == 1
    assert b"'J'" in done.stderr


@pytest.mark.slow
def test_files_are_utf8_whatever_the_console_is(tmp_path):
    (tmp_path / "in.fa").write_bytes(NAMES)
    done = run("fold", "in.fa", "-o", "out.dbn", folder=tmp_path, LC_ALL="C", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr.decode()
    text = (tmp_path / "out.dbn").read_bytes()
    assert ">Müller–Lüdenscheidt\n".encode() in text
    assert b"\r" not in text

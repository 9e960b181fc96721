"""Runs the `rinalmo` command in this process, errors and exit codes included."""

from dataclasses import dataclass

import pytest

from rinalmo.cli import main


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def rinalmo_command(capfd, monkeypatch):
    def run(*arguments):
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", ["rinalmo", *map(str, arguments)])
        # Else click takes the program for a part of `python -m pytest`.
        monkeypatch.setattr("__main__.__package__", None)
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return run

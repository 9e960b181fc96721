"""Time imports and every command's `--help`, each in a new process.

    python benchmarks/import_speed.py --repeats 7
    python benchmarks/import_speed.py --repeats 7 --no-peers --only help

The bare interpreter and torch are included for comparison, because every computation needs both. On a busy machine, CPU
time (`CPU`) is more informative than wall time.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator

import click

import sides
from rinalmo.cli import cli
from sides import Spent

OURS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import rinalmo": ["-c", "import rinalmo"],
    "from rinalmo import embed": ["-c", "from rinalmo import embed"],
    "from rinalmo import RnaTokenizer, RiNALMoModel": ["-c", "from rinalmo import RnaTokenizer, RiNALMoModel"],
}
PEERS = {
    "import multimolecule": ["-c", "import multimolecule"],
    "from multimolecule import RnaTokenizer, RiNALMoModel": [
        *("-c", "from multimolecule import RnaTokenizer, RiNALMoModel")
    ],
}


def main() -> None:
    chosen = sides.options(__doc__, only={"default": "", "help": "those alone that have this in their names"})
    sides.head("Import", chosen)
    helps = {f"rinalmo {path}--help": ["-m", "rinalmo", *path.split(), "--help"] for path in _paths(cli)}
    commands = {name: [sys.executable, *arguments] for name, arguments in {**OURS, **helps}.items()}
    if chosen.peer:
        commands |= {name: [chosen.peer, *arguments] for name, arguments in PEERS.items()}
    commands = {name: command for name, command in commands.items() if chosen.only in name}
    spent: dict[str, list[Spent]] = {name: [] for name in commands}
    for n in range(chosen.repeats + 1):
        for name, command in commands.items():
            one = sides.spend(command, chosen.threads)
            if n:  # the first run fills the disk cache
                spent[name].append(one)
    rows = [
        (
            name,
            f"{1e3 * statistics.median(one.seconds for one in runs):,.0f}",
            f"{1e3 * statistics.median(one.cpu for one in runs):,.0f}",
            sides.megabytes(statistics.median(one.peak for one in runs)),
        )
        for name, runs in spent.items()
    ]
    sides.table(("", "ms", "CPU, ms", "memory"), rows)


def _paths(command: click.Command, path: str = "") -> Iterator[str]:
    """The group and all its commands, each followed by a space."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            if below := command.get_command(context, name):
                yield from _paths(below, f"{path}{name} ")


if __name__ == "__main__":
    main()

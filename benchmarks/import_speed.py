"""Time what a user waits for before anything is computed: imports and `--help`, each in a new process.

    python benchmarks/import_speed.py

The bare interpreter and torch are there to compare with: whoever computes pays for both.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import sides
from sides import Spent

OURS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import rinalmo": ["-c", "import rinalmo"],
    "rinalmo --help": [str(Path(sys.executable).with_name("rinalmo")), "--help"],
    "rinalmo embed --help": [str(Path(sys.executable).with_name("rinalmo")), "embed", "--help"],
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
    chosen = sides.options(__doc__)
    sides.head("Import", chosen)
    commands = {name: [sys.executable, *arguments] for name, arguments in OURS.items()}
    if chosen.peer:
        commands |= {name: [chosen.peer, *arguments] for name, arguments in PEERS.items()}
    spent: dict[str, list[Spent]] = {name: [] for name in commands}
    for n in range(chosen.repeats + 1):
        for name, command in commands.items():
            one = sides.spend(command, chosen.threads)
            if n:  # the first time fills the disk cache
                spent[name].append(one)
    rows = [
        (
            name,
            f"{1e3 * statistics.median(one.seconds for one in runs):,.0f}",
            sides.megabytes(statistics.median(one.peak for one in runs)),
        )
        for name, runs in spent.items()
    ]
    sides.table(("", "ms", "memory"), rows)


if __name__ == "__main__":
    main()

"""The example scripts run on what the commands write."""

import runpy
import sys
from pathlib import Path

import rinalmo
from rinalmo.inference.embed_file import embed_file
from rinalmo.inference.engine import Engine

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_nearest_neighbours(starter, tmp_path, monkeypatch, capsys):
    fasta = rinalmo.resolve("starter").parent / "examples" / "well_known_rnas.fa"
    embed_file(fasta, tmp_path / "rnas.npz", Engine(starter, "fp32"))
    monkeypatch.setattr(sys, "argv", ["nearest_neighbours.py", str(tmp_path / "rnas.npz")])
    runpy.run_path(str(EXAMPLES / "nearest_neighbours.py"), run_name="__main__")
    neighbours = {line.split()[0]: line.split()[3] for line in capsys.readouterr().out.splitlines()[1:]}
    assert len(neighbours) == 19
    assert neighbours["tRNA-Phe"].startswith("tRNA")
    assert neighbours["tRNA-Asp"].startswith("tRNA")

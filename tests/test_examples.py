"""The example scripts, and the README's way from FASTA to a model, run as written."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import rinalmo
from rinalmo.cli import main
from rinalmo.engine.engine import Engine
from rinalmo.inference.embed import embed_file, read_embeddings

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
README_COMMANDS = (
    "rinalmo examples",
    "rinalmo data prepare store known=",
    "rinalmo pretrain pretrain-tiny --set data.store=store --set",
)


def test_nearest_neighbours(nano, tmp_path, monkeypatch, capsys):
    fasta = rinalmo.resolve("nano").parent / "examples" / "well_known_rnas.fa"
    embed_file(fasta, tmp_path / "rnas.npz", Engine(nano, "fp32"))
    monkeypatch.setattr(sys, "argv", ["nearest_neighbours.py", str(tmp_path / "rnas.npz")])
    runpy.run_path(str(EXAMPLES / "nearest_neighbours.py"), run_name="__main__")
    neighbours = {line.split()[0]: line.split()[3] for line in capsys.readouterr().out.splitlines()[1:]}
    assert len(neighbours) == 19
    assert neighbours["tRNA-Phe"].startswith("tRNA")
    assert neighbours["tRNA-Asp"].startswith("tRNA")


@pytest.mark.slow
def test_an_array_of_jobs_embeds_every_sequence(tmp_path):
    fasta = rinalmo.resolve("nano").parent / "examples" / "well_known_rnas.fa"
    folder = tmp_path / "parts"
    folder.mkdir()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for job in "12":
        of_slurm = {"SLURM_ARRAY_TASK_ID": job, "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
        command = ["bash", EXAMPLES / "embed.sbatch", fasta]
        subprocess.run(command, cwd=tmp_path, env=environment | of_slurm, check=True)
    merge = [sys.executable, EXAMPLES / "merge_embeddings.py", folder, tmp_path / "all.parquet"]
    said = subprocess.run(merge, check=True, capture_output=True, text=True).stdout
    assert said.endswith("all.parquet: 19 sequences of 2 parts\n")
    assert sorted(read_embeddings(tmp_path / "all.parquet").ids) == sorted(
        record.id for record in rinalmo.read_fasta(fasta)
    )


@pytest.mark.slow
def test_from_fasta_to_a_model_as_the_readme_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    commands = [line for line in lines if line.startswith(README_COMMANDS)]
    assert len(commands) == 3
    for command in commands:
        monkeypatch.setattr(sys, "argv", command.partition("#")[0].split())
        main()
    assert rinalmo.fill_mask("GGUC<mask>CUCUGG", tmp_path / "run" / "model")[0][0][0].score > 0.25


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    # Its cells call the command.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", ())]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)

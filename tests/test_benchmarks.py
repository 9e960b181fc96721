"""The benchmark scripts start, and the quick ones measure; without peers, at the smallest setting."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "sides.py")


PAGE = FOLDER.parent / "docs" / "scaling.md"
SCAN = """sequence,fitness
GCGGAUUUAG,1.0
ACGGAUUUAG,0.5
CCGGAUUUAG,0.4
GCGGAUUUAC,0.2
GCGGACUUUG,0.7
"""


def run(script, *arguments):
    command = [sys.executable, "-W", "ignore", str(FOLDER / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_tells_how_to_run_it(script):
    assert f"python benchmarks/{script}" in run(script, "--help")


@pytest.mark.parametrize(
    ("script", "arguments", "row"),
    [
        ("decode_speed.py", ("--lengths", "30"), "| 30 | crowded |"),
        ("ss_head.py", ("--lengths", "20"), "| rinalmo train |"),
    ],
)
def test_quick_ones_measure(script, arguments, row):
    output = run(script, "--no-peers", "--repeats", "1", "--threads", "1", *arguments)
    assert f"--no-peers --repeats 1 --threads 1 {' '.join(arguments)}`" in output
    assert row in output


def test_variant_effects_of_a_small_scan(tmp_path):
    (tmp_path / "scan.csv").write_text(SCAN)
    output = run("variant_effect.py", str(tmp_path), "--most-pll", "2")
    assert "| scan | 1 | 2 |" in output
    assert "| scan | mutations | n | masked-marginals | wild-type-marginals | pll | GC | fewer mutations |" in output
    assert "| scan | 1 | 3 |" in output
    assert output.count("| scan | 2 | 1 | – |") == 2
    assert "| scan | all | 4 |" in output
    assert "| scan | all | 3 |" in output


def test_the_tables_on_scale_are_those_of_the_script(tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text())
    run("cost_model.py", "--write", str(copy))
    assert copy.read_text() == PAGE.read_text()
    assert copy.read_text().count("<!-- cost_model: ") == 11


def test_training_steps_are_measured():
    small = ("model.hidden_size=40", "data.tokens_per_batch=128", "data.micro_tokens=64", "data.max_length=40")
    changes = [word for change in small for word in ("--set", change)]
    output = run("train_speed.py", "--no-peers", "--repeats", "1", "--threads", "1", "--steps", "1", *changes)
    assert "| rinalmo | 128           |" in output

"""The benchmark scripts start, and the quick ones measure; without peers, at the smallest setting."""

import argparse
import importlib
import json
import os
import random
import re
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

import pytest

from rinalmo.data.store import StoreWriter
from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec, create
from rinalmo.weights.checkpoint import save

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
    """What a script prints, in a fork of this process, which has imported torch."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        if not (child := os.fork()):
            os.dup2(printed.fileno(), 1)
            sys.stdout, sys.argv = printed, [str(FOLDER / script), *map(str, arguments)]
            sys.path.insert(0, str(FOLDER))
            code = 1
            try:
                runpy.run_path(str(FOLDER / script), run_name="__main__")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                printed.flush()
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        printed.seek(0)
        return printed.read()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_tells_how_to_run_it(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(FOLDER / script), run_name="__main__")
    assert f"python benchmarks/{script}" in capsys.readouterr().out


@pytest.mark.posix_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "row"),
    [
        ("decode_speed.py", ("--lengths", "30"), "| 30 | crowded |"),
        ("ss_head.py", ("--lengths", "20"), "| rinalmo train |"),
        ("embed_speed.py", ("--widths", "nano", "--workloads", "equal"), "| plain fp32 "),
    ],
)
def test_quick_ones_measure(script, arguments, row):
    output = run(script, "--no-peers", "--repeats", "1", "--threads", "1", *arguments)
    assert f"--no-peers --repeats 1 --threads 1 {' '.join(arguments)}`" in output
    assert row in output


@pytest.mark.posix_only
@pytest.mark.slow
def test_ways_of_attention_agree():
    output = run("attention_speed.py", "--repeats", "1", "--threads", "1", "--sizes", "16", "--lengths", "30", "300")
    rows = [line.split("|") for line in output.splitlines() if line.startswith("| 16 ")]
    assert {row[2].strip() for row in rows} == {"30", "300"}
    assert all(float(row[-2]) < 1e-5 for row in rows[:2])  # fp32 comes first


@pytest.mark.posix_only
def test_variant_effects_of_a_small_scan(tmp_path):
    (tmp_path / "scan.csv").write_text(SCAN)
    output = run("variant_effect.py", str(tmp_path), "--most-pll", "2")
    assert "| scan | 1 | 2 |" in output
    assert "| scan | mutations | n | masked-marginals | wild-type-marginals | pll | GC | fewer mutations |" in output
    assert "| scan | 1 | 3 |" in output
    assert output.count("| scan | 2 | 1 | – |") == 2
    assert "| scan | all | 4 |" in output
    assert "| scan | all | 3 |" in output


@pytest.mark.posix_only
def test_masked_accuracy_by_source(tmp_path):
    with StoreWriter(tmp_path / "store", sources=["one", "other"]) as writer:
        for number, split in enumerate(("train", "validation", "validation")):
            writer.start_cluster(split)
            writer.add(str(number), b"GGGACUUAGCUCAGUUGGGAGAGCGCC", number % 2)
    output = run("by_source.py", str(tmp_path / "store"), "--model", "nano", "--untrained")
    assert "| source | nucleotides | nano | untrained |" in output
    rows = [line.split("|") for line in output.splitlines()[2:]]
    assert [row[1].strip() for row in rows] == ["one", "other", "all"]
    assert int(rows[2][2]) == int(rows[0][2]) + int(rows[1][2])


@pytest.mark.posix_only
def test_the_tables_on_scale_are_those_of_the_script(tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text())
    run("cost_model.py", "--write", str(copy))
    assert copy.read_text() == PAGE.read_text()
    assert copy.read_text().count("<!-- cost_model: ") == 11


@pytest.mark.posix_only
@pytest.mark.slow
def test_training_steps_are_measured():
    small = ("model.hidden_size=40", "data.tokens_per_batch=128", "data.micro_tokens=64", "data.max_length=40")
    changes = [word for change in small for word in ("--set", change)]
    output = run("train_speed.py", "--no-peers", "--repeats", "1", "--threads", "1", "--steps", "1", *changes)
    assert "| rinalmo | 128           |" in output


FOLDED = """id,family,sequence,structure
hairpin,a,GGGGAAAACCCC,((((....))))
other,b,GGGCAAAAGCUC,((((....))))
"""


def test_structures_are_scored_in_three_ways(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    folding = importlib.import_module("folding")
    (tmp_path / "few.csv").write_text(FOLDED)
    found = folding.read(tmp_path / "few.csv", argparse.Namespace(max_length=None, most=None, seed=0))
    hit, miss = map(folding.scored, found, ("((((....))))", "(((.....)))."))
    assert hit.exact == hit.near == hit.nested == (1.0, 1.0, 1.0)
    assert (miss.family, miss.exact[2], miss.nested[2]) == ("b", 0.0, 0.0)
    assert miss.near == (1.0, 1.0, 1.0)


def test_a_part_of_structures_is_drawn_alike_each_time(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    folding = importlib.import_module("folding")
    rows = [f"r{number},a,GGGGAAAACCCC,((((....))))" for number in range(20)]
    (tmp_path / "few.csv").write_text("\n".join(["id,family,sequence,structure", *rows]))
    chosen = argparse.Namespace(max_length=12, most=5, seed=3)
    first, again = ([e.name for e in folding.read(tmp_path / "few.csv", chosen)] for _ in range(2))
    assert first == again
    assert len(set(first)) == 5


@pytest.mark.posix_only
@pytest.mark.slow
def test_a_model_that_folds_is_scored_for_each_family(tmp_path):
    config = ModelConfig(hidden_size=40, num_hidden_layers=1)
    save(create(ModelSpec(config, heads={"structure_head": {}})), tmp_path / "model")
    (tmp_path / "TS0.csv").write_text(FOLDED)
    few = (str(tmp_path / "TS0.csv"), "--model", str(tmp_path / "model"), "--cache", str(tmp_path / "kept"))
    output = run("folding.py", *few, "--peers")
    assert "### TS0.csv: 2 structures" in output
    assert "| rinalmo   " in output
    assert "| RiNALMo 650M (published) " in output
    assert "| mean of families, ±1 " in output


@pytest.mark.posix_only
@pytest.mark.slow
def test_baselines_learn_what_a_sequence_says(tmp_path):
    draw = random.Random(0)
    texts = ["".join(draw.choices("ACGU", k=draw.randint(20, 30))) for _ in range(60)]
    rows = [f"{text},{text.count('G') / len(text):.3f}" for text in texts]
    (tmp_path / "share.csv").write_text("\n".join(["sequence,mrl", *rows]))
    output = run("task_baselines.py", "ribosome-load", str(tmp_path / "share.csv"), "--folds", "4")
    r2 = {row[0]: float(row[1]) for row in re.findall(r"^\| (\S+) +\| (\S+) ", output, flags=re.MULTILINE)}
    assert set(r2) == {"constant", "k-mers", "CNN"}
    assert r2["k-mers"] > 0.5
    assert r2["constant"] <= 0


@pytest.mark.slow
def test_the_toy_run_of_what_a_gpu_is_measured_by(tmp_path):
    output = run("gpu.py", "--device", "cpu", "--tiny", "--output", tmp_path / "gpu.json")
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert not [row for row in report["rows"] if "failed" in row]
    assert [row for row in report["rows"] if row["part"] == "right" and not row.get("reached", True)] == []
    parts = {row["part"] for row in report["rows"]}
    assert parts == {"right", "speed", "training", "folding", "cold", "peer", "memory"}
    heads = {row["name"].split()[1] for row in report["rows"] if "_head in fp32" in row["name"]}
    assert len(heads) == 9
    assert f"{len(report['rows'])} rows, 0 failed" in output


@pytest.mark.slow
def test_a_part_that_fails_leaves_the_others(tmp_path):
    output = run(
        "gpu.py", "--device", "cuda:99", "--tiny", "--parts", "memory", "cold", "--output", tmp_path / "g.json"
    )
    rows = json.loads((tmp_path / "g.json").read_text())["rows"]
    assert [(row["part"], "failed" in row) for row in rows] == [("memory", True), ("cold", True)]
    assert "2 failed" in output

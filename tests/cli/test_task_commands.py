"""finetune, evaluate, predict and fold as a user runs them, from a file of hairpins to structures in every format."""

import csv
import json
import re

import numpy as np
import pytest

import rinalmo
from rinalmo.cli.options import print_evaluation
from rinalmo.io.recipe_files import load as load_recipe
from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import ModelSpec, create
from rinalmo.rna.formats import read_structures
from rinalmo.tasks.evaluate import Evaluation, Metric
from rinalmo.training.finetune import finetune_from_recipe
from rinalmo.training.recipes import FinetuneRecipe

FP32 = ("--precision", "fp32")
HAIRPINS = ["GGGC" + "A" * (4 + n % 3) + "GCCC" + "A" * (n % 5) for n in range(30)]
STRUCTURES = ["((((" + "." * (4 + n % 3) + "))))" + "." * (n % 5) for n in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hairpins")


@pytest.fixture(scope="module")
def data(folder):
    path = folder / "hairpins.csv"
    rows = zip(HAIRPINS, STRUCTURES, ["even" if n % 2 else "odd" for n in range(30)], strict=True)
    path.write_text("sequence,structure,family\n" + "".join(",".join(row) + "\n" for row in rows))
    (folder / "hairpins.fa").write_text("".join(f">h{n}\n{s}\n" for n, s in enumerate(HAIRPINS[:5])))
    return path


@pytest.fixture(scope="module")
def tiny(folder):
    return rinalmo.save(create(ModelSpec(ModelConfig(32, 2, 2), heads={"lm_head": {}})), folder / "tiny")


@pytest.fixture(scope="module")
def model(folder, data, tiny):
    """A model that folds all hairpins, whatever its seed: in fp32 and with these steps each of twelve did."""
    steps = ("train.epochs=8", "train.precision=fp32", "optimizer.lr=3e-3", "data.sequences_per_batch=8")
    changes = ("backbone.mode=full", *steps)
    given = (f"init={tiny}", f"data.train={data}", "logging.plots=false", "logging.peak_flops=1e12")
    finetune_from_recipe(
        load_recipe(FinetuneRecipe, "finetune-secondary-structure", [*given, *changes]), folder / "run"
    )
    return folder / "run" / "model"


def test_finetune(rinalmo_command, data, tiny, tmp_path):
    changes = ("--set", "train.max_steps=2", "--set", "logging.plots=false", "--threads", "1")
    arguments = ("secondary-structure", data, "--model", tiny, "--test", data, "-o", tmp_path / "run", *changes)
    result = rinalmo_command("finetune", *arguments)
    assert result.code == 0, result.err
    assert "test: 30 examples, secondary-structure, threshold 0." in result.out
    assert "test sequences are also in the training set" in result.err
    assert f"use it with --model {tmp_path / 'run' / 'model'}" in result.err
    again = rinalmo_command("finetune", *arguments)
    assert (again.code, "continue it with --resume" in again.err) == (2, True)
    assert rinalmo_command("finetune", *arguments, "--resume").code == 0
    other = rinalmo_command("finetune", *arguments, "--set", "train.seed=3", "--restart")
    assert other.code == 0, other.err
    assert "continuing" not in other.err


def test_one_fold(rinalmo_command, data, tiny, tmp_path):
    changes = ("--set", "train.max_steps=1", "--set", "logging.plots=false", "--threads", "1")
    arguments = ("ncrna-family", data, "--model", tiny, "--target", "family", "-o", tmp_path / "run", *changes)
    result = rinalmo_command("finetune", *arguments, "--folds", "3", "--fold", "2")
    assert result.code == 0, result.err
    assert "test: 10 examples, ncrna-family; 95 % bootstrap intervals" in result.out
    assert f"use it with --model {tmp_path / 'run' / 'fold-2' / 'model'}" in result.err
    for fold in range(2):
        assert rinalmo_command("finetune", *arguments, "--folds", "3", "--fold", fold).code == 0
    assert "or discard it with --restart" in rinalmo_command("finetune", *arguments, "--folds", "3").err
    whole = rinalmo_command("finetune", *arguments, "--folds", "3", "--resume")
    assert whole.code == 0, whole.err
    assert "test: 30 examples, ncrna-family; mean, minimum and maximum of 3 folds" in whole.out
    assert whole.err.splitlines()[-1].endswith(
        f"run: trained 3 folds; their models are in {tmp_path / 'run'}/fold-N/model"
    )
    alone = rinalmo_command("finetune", *arguments, "--fold", "2")
    assert (alone.code, "data.fold is 2, but the number of folds is missing; set --folds" in alone.err) == (2, True)


def test_evaluate(rinalmo_command, data, model, folder):
    each, report = folder / "each.csv", folder / "report.json"
    result = rinalmo_command(
        "evaluate", "secondary-structure", data, "--model", model, "-o", each, "--report", report, *FP32
    )
    assert result.code == 0, result.err
    assert [line.split()[:2] for line in result.out.splitlines() if line.strip().startswith(("even", "odd"))] == [
        ["even", "15"],
        ["odd", "15"],
    ]
    rows = list(csv.DictReader(each.open()))
    found = json.loads(report.read_text())
    assert len(rows) == found["count"] == 30
    for name in ("f1", "f1_relaxed"):
        assert found["figures"][name]["value"] > 0.9
        assert np.mean([float(row[name]) for row in rows]) == pytest.approx(found["figures"][name]["value"], abs=1e-5)
    assert set(found["groups"]) == {"even", "odd"}


@pytest.mark.parametrize("ending", ["dbn", "ct", "bpseq", "st", "csv", "parquet"])
def test_fold_into_every_format(rinalmo_command, model, folder, ending):
    output, matrices = folder / f"out.{ending}", folder / "out.npz"
    result = rinalmo_command(
        "fold", folder / "hairpins.fa", "--model", model, "-o", output, "--probabilities", matrices, *FP32
    )
    assert result.code == 0, result.err
    assert [s.dot_bracket for s in read_structures(output)] == STRUCTURES[:5]
    with np.load(matrices) as found:
        assert sorted(found) == [f"h{n}" for n in range(5)]
        assert found["h0"].shape == (len(HAIRPINS[0]),) * 2
        assert found["h0"][0, 11] > found["h0"][0, 10]


@pytest.mark.parametrize("decoder", ["greedy", "nested", "matching"])
def test_fold_to_standard_output(rinalmo_command, model, folder, decoder):
    result = rinalmo_command("fold", folder / "hairpins.fa", "--model", model, "--decoder", decoder, *FP32)
    name, sequence, structure = result.out.splitlines()[:3]  # an energy follows the structure
    assert (name, sequence, structure.split()[0]) == (">h0", HAIRPINS[0], STRUCTURES[0])
    nothing = rinalmo_command("fold", folder / "hairpins.fa", "--model", model, "--threshold", "1.0")
    assert nothing.out.splitlines()[2].split()[0] == "." * len(HAIRPINS[0])


@pytest.mark.parametrize(("kind", "ending"), [("drawing", "svg"), ("arcs", "png"), ("map", "svg")])
def test_fold_with_pictures(rinalmo_command, model, folder, tmp_path, kind, ending):
    pytest.importorskip("RNA")
    plot = tmp_path / f"{{name}}.{ending}"
    result = rinalmo_command(
        "fold", folder / "hairpins.fa", "--model", model, "--plot", plot, "--plot-kind", kind, *FP32
    )
    assert result.code == 0, result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"h{n}.{ending}" for n in range(5)]
    if kind == "drawing":
        assert (tmp_path / "h0.svg").read_text().count('class="pair"') == 4


def test_fold_colored_by_numbers(rinalmo_command, model, tmp_path):
    pytest.importorskip("RNA")
    (tmp_path / "dms.txt").write_text("1 0.2\n2 1.9\n")
    figure = (HAIRPINS[0], "--model", model, "--plot", tmp_path / "one.svg", "--color-by", tmp_path / "dms.txt")
    result = rinalmo_command("fold", *figure, *FP32)
    assert result.code == 0, result.err
    text = (tmp_path / "one.svg").read_text()
    assert [said for said in ("dms", "1.9") if said not in text] == []
    kind = rinalmo_command("fold", *figure, "--plot-kind", "arcs", *FP32)
    assert (kind.code, "can only color a drawing, not arcs" in kind.err) == (2, True)


def test_fold_against_a_reference(rinalmo_command, model, folder, tmp_path):
    (tmp_path / "one.fa").write_text(f">one\n{HAIRPINS[0]}\n")
    (tmp_path / "true.dbn").write_text(f">true\n{HAIRPINS[0]}\n(((......)))\n")
    given = ("--model", model, "--plot", tmp_path / "arcs.svg", "--reference", tmp_path / "true.dbn", *FP32)
    result = rinalmo_command("fold", tmp_path / "one.fa", *given)
    assert result.code == 0, result.err
    text = (tmp_path / "arcs.svg").read_text()
    assert [said for said in ("right (3)", "extra (1)", "F1 0.86") if said not in text] == []
    several = rinalmo_command("fold", folder / "hairpins.fa", "-o", tmp_path / "out.ct", *given)
    assert (several.code, (tmp_path / "out.ct").exists()) == (2, False)
    assert "shows one sequence" in several.err or "no structure for the sequence" in several.err
    for option in (("--plot-kind", "arcs"), ("--color-by", "dms.txt")):
        alone = rinalmo_command("fold", tmp_path / "one.fa", "--model", model, *option)
        assert (alone.code, "need --plot" in alone.err) == (2, True)


def test_predict(rinalmo_command, model, folder):
    output = folder / "predictions.tsv"
    assert rinalmo_command("predict", model, folder / "hairpins.fa", "-o", output, *FP32).code == 0
    rows = list(csv.DictReader(output.open(), delimiter="\t"))
    assert [(row["id"], row["structure"]) for row in rows] == [(f"h{n}", STRUCTURES[n]) for n in range(5)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("finetune", "secondry-structure", "x.csv", "-o", "run"), "did you mean secondary-structure?"),
        (("finetune", "table", "no-such.csv", "-o", "run"), "no-such.csv does not exist"),
        (("evaluate", "table", "no-such.csv", "--model", "nowhere"), "nowhere"),
        (("evaluate", "table", "no-such.csv", "--model", "nano-fold"), "no-such.csv does not exist; check the path"),
        (("predict", "nowhere", "no-such.fa"), "no-such.fa"),
        (("finetune", "table", "x.csv", "-o", "run", "--set", "train.epoch=3"), "did you mean train.epochs?"),
        (("evaluate", "table", "x.csv", "-o", "each.csv"), "table has no scores per example; use --report"),
        (("evaluate", "table", "x.csv", "--report", "no/such.json"), "no: no such folder; create it first"),
        (("evaluate", "table", "x.csv", "--report", "report.csv"), "report.csv: cannot write '.csv'; use .json"),
    ],
)
def test_one_line_for_what_is_wrong(rinalmo_command, arguments, said):
    result = rinalmo_command(*arguments)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_a_model_without_a_task_folds_nothing(rinalmo_command, folder, data, tiny):
    result = rinalmo_command("fold", folder / "hairpins.fa", "--model", tiny)
    assert result.code == 2
    assert "the model is not fine-tuned" in result.err


def test_of_many_groups_the_worst_are_printed(capsys):
    groups = {
        f"g{n}": Evaluation("table", 9, None, {"r2": Metric(n / 30, 0, 1), "mae": Metric(1, 0, 2)}) for n in range(30)
    }
    print_evaluation(Evaluation("table", 270, None, groups["g0"].metrics, groups), "x.csv")
    printed = capsys.readouterr().out
    assert re.findall(r"^ +(g\d+) ", printed, re.MULTILINE) == [f"g{n}" for n in range(10)]
    assert "The 10 with the lowest r2 of 30 groups of 5 examples or more; --report FILE.json has all 30" in printed


def test_few_rows_are_noticed(rinalmo_command, tmp_path):
    path = tmp_path / "few.csv"
    path.write_text("sequence,y\nACGUACGUAA,1.0\nGGGGCCCCUU,2.5\n")
    options = ["--target", "y", "--output", tmp_path / "run", "--set", "logging.plots=false"]
    result = rinalmo_command("finetune", "table", path, *options)
    assert result.code == 0, result.err
    assert "1 training example and 1 for validation are few; do not trust metrics on so few" in result.err
    path.write_text("sequence,y\nACGUACGUAA,1.0\n")
    result = rinalmo_command("finetune", "table", path, *options, "--restart")
    assert (result.code, "none of 1 example is left for training; add rows" in result.err) == (2, True)

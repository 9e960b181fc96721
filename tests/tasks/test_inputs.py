"""Tables that give a model more than a sequence: pairs, numbers, categories and vectors that explain the target."""

import json
import random

import numpy as np
import pytest
import torch

import rinalmo
from rinalmo.errors import InputError
from rinalmo.tasks.base import Columns, Example
from rinalmo.tasks.evaluate import evaluate
from rinalmo.tasks.inputs import Inputs, join_pairs
from rinalmo.tasks.table import Table

from .conftest import gc

pytestmark = pytest.mark.precision("fp32")
LINEAR = ["backbone.mode=linear", "logging.plots=false"]


def rnas(count, seed, length=24):
    draw = random.Random(seed)
    return ["".join(draw.choices("ACGU", [draw.random() + 0.05 for _ in "ACGU"], k=length)) for _ in range(count)]


@pytest.fixture(scope="module")
def pairs():
    """The target is the GC content of the second sequence: the first says nothing."""
    first, second = rnas(120, 1), rnas(120, 2)
    return [{"sequence": a, "target": b, "y": 100 * gc(b)} for a, b in zip(first, second, strict=True)]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The target is made of a number, a category and a vector; and the file of the vectors."""
    draw = np.random.default_rng(3)
    vectors = {f"P{n}": draw.normal(size=5) for n in range(12)}
    path = tmp_path_factory.mktemp("vectors") / "proteins.npz"
    np.savez(path, **vectors)
    rows = []
    for sequence in rnas(200, 4):
        row = {"sequence": sequence, "dose": round(float(draw.uniform(0, 50)), 2), "cell": str(draw.choice(["A", "B"]))}
        row["protein"] = f"P{draw.integers(12)}"
        row["y"] = row["dose"] / 10 + 4 * (row["cell"] == "B") + 2 * vectors[row["protein"]][0]
        rows.append(row)
    return rows, path


def r2(evaluation):
    return evaluation.metrics["r2"].value


def test_a_pair_is_learnt_from_its_second_sequence(pairs, tmp_path):
    train, test = pairs[:80], pairs[80:]
    alone = rinalmo.finetune("table", train, tmp_path / "alone", test=test, target="y", overrides=LINEAR)
    assert r2(alone) < 0.2
    both = rinalmo.finetune("table", train, tmp_path / "both", test=test, target="y", second="target", overrides=LINEAR)
    assert r2(both) > 0.9
    assert both.baselines["k-mers"].metrics["r2"].value > 0.8  # of both sequences
    model = tmp_path / "both" / "model"
    assert r2(evaluate(test, model, columns=Columns(target=("y",)))) == pytest.approx(r2(both), abs=0.01)  # in fp32
    predicted = [row["y"] for row in rinalmo.predict(test, model)]
    alone = [rinalmo.predict([row], model)[0]["y"] for row in test[:3]]
    assert predicted[:3] == pytest.approx(alone, abs=1e-4)
    swapped = {"sequence": test[0]["target"], "target": test[0]["sequence"]}
    assert abs(rinalmo.predict([swapped], model)[0]["y"] - predicted[0]) > 1


def test_features_are_learnt(cells, tmp_path):
    rows, vectors = cells
    train, test = rows[:160], rows[160:]
    alone = rinalmo.finetune("table", train, tmp_path / "alone", test=test, target="y", overrides=LINEAR)
    assert r2(alone) < 0.2
    names = ("dose", "cell", f"protein={vectors}")
    options = {"test": test, "target": "y", "features": names}
    whole = rinalmo.finetune("table", train, tmp_path / "all", overrides=LINEAR, **options)
    assert r2(whole) > 0.97
    model = tmp_path / "all" / "model"
    files = {"protein": vectors}
    again = evaluate(test, model, columns=Columns(target=("y",)), features=files)
    assert r2(again) == pytest.approx(r2(whole), abs=0.01)
    one, two = ({**test[0], "dose": dose} for dose in (10, 20))
    low, high = (rinalmo.predict([row], model, features=files)[0]["y"] for row in (one, two))
    assert high - low == pytest.approx(1.0, abs=0.1)
    with pytest.raises(InputError, match=r"line 1: protein is 'P3', not a vector of numbers"):
        rinalmo.predict([{**test[0], "protein": "P3"}], model)
    with pytest.raises(InputError, match=r"line 1: cell is 'C', which no training row has \(A, B\)"):
        rinalmo.predict([{**test[0], "cell": "C"}], model, features=files)
    with pytest.raises(InputError, match=r"the model takes dose, cell, protein beside each sequence; give rows"):
        rinalmo.predict("ACGU", model, features=files)
    assert "`cell` (category: A, B), `protein` (vector of 5)" in (model / "README.md").read_text()


@pytest.mark.parametrize(
    ("mode", "epochs", "rate"),
    [("frozen", 20, 2e-3), pytest.param("full", 6, 1e-3, marks=pytest.mark.slow)],
)
def test_trained_heads_take_pairs_and_features(mode, epochs, rate, pairs, tmp_path):
    rows = [{**row, "dose": n % 7, "y": n % 7 + row["y"] / 20} for n, row in enumerate(pairs)]
    changes = [f"backbone.mode={mode}", f"train.epochs={epochs}", f"optimizer.lr={rate}", "logging.plots=false"]
    changes += ["train.checkpoint_every=1000", "checkpoint.keep_best=false"]
    options = {"test": rows[80:], "target": "y", "second": "target", "features": ["dose"]}
    found = rinalmo.finetune("table", rows[:80], tmp_path / "run", overrides=changes, **options)
    assert r2(found) > 0.8
    again = evaluate(rows[80:], tmp_path / "run" / "model", columns=Columns(target=("y",)))
    assert r2(again) == pytest.approx(r2(found), abs=0.01)


def test_joined_vectors_by_hand():
    u, v = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 5.0])
    expected = [1.0, -2.0, 3.0, 5.0, 2.0, 7.0, 3.0, -10.0]
    assert join_pairs(torch.stack([u, v])).tolist() == [expected]
    examples = [Example(str(n), "A", features={"dose": n, "cell": "ab"[n]}, where=f"line {n}") for n in (0, 1)]
    inputs = Inputs.from_examples(examples, None, None)
    encoded = inputs.encode(examples)
    np.testing.assert_allclose([e.features for e in encoded], [[-1, 1, 0], [1, 0, 1]])
    again = Inputs(**json.loads(json.dumps(inputs.settings)))
    np.testing.assert_array_equal(again.encode(examples)[1].features, encoded[1].features)
    torch.testing.assert_close(inputs.join([u, v], encoded), torch.tensor([[1.0, -2, -1, 1, 0], [3, 5, 1, 0, 1]]))


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        (["1", "2", ""], r"t.csv, line 4: f is empty; fill it in, or drop the row"),
        (["1", "2", "3", "many"], r"line 5: f is 'many' among numbers"),
        (["1", "2", "inf"], r"line 4: f is 'inf', not a number"),
        (["[1;2]", "[3;4]", "[5]"], r"line 4: f has 1 numbers, and 2 in the first row"),
        (["[1;2]", "[3;x]"], r"line 3: f is '\[3;x\]', not a vector of numbers"),
        (
            [f"name{n}" for n in range(30)],
            r"f: every row has a different text, such as 'name0'; .* --feature f=FILE.npz",
        ),
    ],
)
def test_columns_that_are_no_features(cells, problem, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sequence,y,f\n" + "".join(f"ACGU,{n},{cell}\n" for n, cell in enumerate(cells)))
    with pytest.raises(InputError, match=problem):
        Table.from_examples(Table.read(path, Columns(features={"f": None})), {})


def test_faults_name_row_and_column(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sequence,target,y,p\nACGU,ACGU,1,A\nACGU,AC-U,2,B\n")
    with pytest.raises(InputError, match=r"t.csv, line 3: target: .*'-'.* alignment gaps"):
        Table.read(path, Columns(second="target"))
    with pytest.raises(InputError, match=r"has no column 'tarjet'; did you mean 'target'"):
        Table.read(path, Columns(second="tarjet"))
    np.savez(tmp_path / "v.npz", A=np.ones(3))
    with pytest.raises(InputError, match=r"line 3: p is 'B', which .*v.npz has no vector for"):
        Table.read(path, Columns(features={"p": tmp_path / "v.npz"}))
    np.savez(tmp_path / "v.npz", A=np.ones(3), B=np.ones(3))
    read = Table.read(path, Columns(features={"p": tmp_path / "v.npz"}))
    assert [example.name for example in read] == ["1", "2"], "not the names of vectors"
    (tmp_path / "broken.npz").write_text("no")
    with pytest.raises(InputError, match=r"broken.npz: is no .npz file of vectors"):
        Table.read(path, Columns(features={"p": tmp_path / "broken.npz"}))
    rows = [{"sequence": "ACGU", "y": n % 2, "f": n} for n in range(20)]
    with pytest.raises(InputError, match="features need the task table, not splice-site"):
        rinalmo.finetune("splice-site", rows, tmp_path / "run", target="y", features=["f"])
    with pytest.raises(InputError, match="f is a column to predict and a feature"):
        rinalmo.finetune("table", rows, tmp_path / "run", target="f", features=["f"])


def test_groups_stay_in_one_set(tmp_path):
    rows = [{"sequence": rna, "y": n, "gene": f"g{n % 8}"} for n, rna in enumerate(rnas(48, 5))]
    changes = [*LINEAR, "data.columns.group=gene"]
    found = rinalmo.finetune("table", rows, tmp_path / "run", target="y", folds=4, overrides=changes)
    assert found.count == 48
    for fold in range(4):
        report = json.loads((tmp_path / "run" / f"fold-{fold}" / "evaluation.json").read_text())
        assert (report["count"], len(report["groups"])) == (12, 2)
        assert all(group["count"] == 6 for group in report["groups"].values())

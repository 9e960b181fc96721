"""`rinalmo.finetune` on rows, as those of a `datasets.Dataset`."""

import json

import pytest

import rinalmo
from rinalmo.errors import InputError

from .conftest import gc

datasets = pytest.importorskip("datasets")

SHORT = ["train.epochs=2", "train.precision=fp32", "backbone.mode=full"]


@pytest.fixture
def rows(sequences):
    labels = [int(gc(sequence) > 0.5) for sequence in sequences]
    features = datasets.Features(
        {"sequence": datasets.Value("string"), "kind": datasets.ClassLabel(names=["poor", "rich"])}
    )
    return datasets.Dataset.from_dict({"sequence": sequences, "kind": labels}, features=features)


def test_a_dataset_trains_as_its_file_does(rows, backbone, tmp_path):
    halves = rows.train_test_split(test_size=20, seed=0)
    given = {"model": backbone, "target": "kind", "overrides": SHORT}
    found = rinalmo.finetune("table", halves["train"], tmp_path / "rows", test=halves["test"], **given)
    lines = (tmp_path / "rows" / "examples" / "train.jsonl").read_text().splitlines()
    assert len(lines) == 40
    assert {json.loads(line)["kind"] for line in lines} == {"poor", "rich"}  # names, not numbers
    assert found.count == 20
    files = {name: tmp_path / "rows" / "examples" / f"{name}.jsonl" for name in ("train", "test")}
    again = rinalmo.finetune("table", files["train"], tmp_path / "file", test=files["test"], **given)
    assert {name: figure.value for name, figure in again.metrics.items()} == {
        name: figure.value for name, figure in found.metrics.items()
    }
    card = (tmp_path / "rows" / "model" / "README.md").read_text()
    assert "| test | 20 |" in card
    with pytest.raises(InputError, match="contains a run"):
        rinalmo.finetune("table", halves["train"], tmp_path / "rows", **given)


def test_what_rows_must_be(rows, backbone, tmp_path):
    for given, words in (
        (datasets.DatasetDict(train=rows), "are a mapping; give one of train"),
        (["ACGU"], "train example 1 is a str; expected a mapping"),
        ([{"sequence": "ACGE", "kind": "a"}], r"train\.jsonl"),
    ):
        with pytest.raises(InputError, match=words):
            rinalmo.finetune("table", given, tmp_path / "run", model=backbone, target="kind", overrides=SHORT)
    with pytest.raises(InputError, match="did you mean table"):
        rinalmo.finetune("tables", rows, tmp_path / "run")


def test_other_rows_are_refused_before_those_of_the_run_are_touched(rows, backbone, tmp_path):
    given = {"model": backbone, "target": "kind", "overrides": SHORT}
    rinalmo.finetune("table", rows, tmp_path / "run", **given)
    path = tmp_path / "run" / "examples" / "train.jsonl"
    before = path.read_bytes()
    with pytest.raises(InputError, match="cannot be resumed: the train examples differ from those"):
        rinalmo.finetune("table", rows.select(range(30)), tmp_path / "run", resume=True, **given)
    assert path.read_bytes() == before

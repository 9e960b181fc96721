"""Rare classes, columns with gaps, odd names: trained and measured all the same, or refused in one line."""

import json

import pytest
import torch

from rinalmo.errors import InputError
from rinalmo.tasks.base import Columns
from rinalmo.tasks.evaluate import evaluate
from rinalmo.tasks.secondary_structure import SecondaryStructure
from rinalmo.tasks.sequence_tasks import NcrnaFamily
from rinalmo.tasks.table import Table
from rinalmo.training.finetune import finetune_from_recipe
from rinalmo.training.recipes import recipe_for
from rinalmo.training.run_folder import read_log

SHORT = ("train.epochs=1", "train.precision=fp32", "logging.plots=false", "logging.peak_flops=1e12", "logging.every=1")


@pytest.fixture
def trained(backbone, tmp_path):
    """Train on a file for an epoch; the folder of the run."""

    def train(task, data, run="run", *overrides, **given):
        mode = ["backbone.mode=full"] if task == "table" else []
        finetune_from_recipe(
            recipe_for(task, data, model=backbone, overrides=[*SHORT, *mode, *overrides], **given), tmp_path / run
        )
        return tmp_path / run

    return train


def test_structures_without_a_pair_that_can_stack(trained, make_table):
    data = make_table(
        sequence=["AAAAAAAA", "ACG", "GGGAAACCC", "NNNN"], structure=["........", "...", "(((...)))", "...."]
    )
    options = ("options.head=partners", "data.micro_tokens=1", "data.validation_fraction=0")
    assert (trained("secondary-structure", data, "run", *options) / "model").is_dir()


def test_validation_examples_of_one_class(trained, make_table, sequences):
    data = make_table(sequence=sequences, y=[1, 0] * 30)
    validation = make_table("validation.csv", sequence=sequences[:3], y=[0, 0, 0])
    run = trained("table", data, validation=validation)
    names = {name for row in read_log(run) for name in row}
    assert "validation/loss" in names
    assert "validation/roc_auc" not in names


def test_training_examples_of_one_class_are_refused(trained, make_table, sequences):
    with pytest.raises(InputError, match="y is '1' in all training examples; give examples of another class"):
        trained("table", make_table(sequence=sequences, y=[1] * 60))
    with pytest.raises(InputError, match="the label is '0' in all training examples"):
        trained("splice-site", make_table(sequence=sequences, label=[0] * 60))
    with pytest.raises(InputError, match="y is 'a' in all training examples"):
        trained("table", make_table(sequence=sequences, y=["a"] * 60))


def test_a_column_that_is_seldom_measured(trained, make_table, sequences):
    b = [n / 60 if n < 4 else "" for n in range(60)]
    data = make_table(sequence=sequences, a=[n / 60 for n in range(60)], b=b, family=["x", "y"] * 30)
    held = make_table("held.csv", sequence=sequences[4:], a=[0.5, 0.1] * 28, b=[""] * 56)
    run = trained("table", data, target=("a", "b"), validation=held)
    assert "validation/r2" in {name for row in read_log(run) for name in row}
    whole = evaluate(data, run / "model", columns=Columns(target=("a", "b"), group="family"))
    assert whole.metrics["rmse"].value == (whole.metrics["rmse/a"].value + whole.metrics["rmse/b"].value) / 2
    found = evaluate(held, run / "model")
    assert {name for name in found.metrics if "/" in name} == {"r2/a", "spearman/a", "rmse/a", "mae/a"}
    empty = make_table("empty.csv", sequence=sequences[:2], a=["", ""], b=["", ""])
    with pytest.raises(InputError, match=r"empty\.csv: a, b is empty in all rows; there is nothing to score"):
        evaluate(empty, run / "model")


def test_names_are_taken_as_they_are(tmp_path):
    recipe = recipe_for("table", "a #1.csv", validation="x: y.csv", model="2024", target=("log[TE]", "1.50", "a, b"))
    assert (recipe.data.train, recipe.data.validation, recipe.init) == ("a #1.csv", "x: y.csv", "2024")
    assert recipe.data.columns.target == ["log[TE]", "1.50", "a, b"]
    assert recipe_for("table", "a.csv", folds=3, overrides=["data.folds=4", "init=micro"]).data.folds == 4


@pytest.mark.parametrize("name", ["id", "probability", "position", "nucleotide"])
def test_columns_of_predict_are_not_to_be_predicted(trained, make_table, sequences, name):
    data = make_table(sequence=sequences, **{name: ["a", "b"] * 30})
    with pytest.raises(InputError, match=f"`predict` writes a column '{name}' itself"):
        trained("table", data, target=(name,))


def test_numbers_that_name_classes(make_table, sequences):
    cells = ["1", "2", "1.0", " 2", "3", "3 "] * 10
    task = Table.from_examples(Table.read(make_table(sequence=sequences, y=cells), Columns()), {"kind": "multiclass"})
    assert task.classes == ["1", "2", "3"]
    gaps = make_table("gaps.csv", sequence=sequences[:3], y=["1.0", "2.0", "3.0"])
    assert [int(example.target) for example in task.encode_targets(Table.read(gaps, Columns()))] == [0, 1, 2]
    families = make_table("families.csv", sequence=sequences[:3], family=["tRNA", " tRNA", "tRNA "])
    assert {example.target for example in NcrnaFamily.read(families, Columns())} == {"tRNA"}


def test_one_number_in_two_spellings(make_table, sequences):
    """01 beside 1 is the same number or another class: the user decides."""
    for spellings in (["0", "1", "01"], ["2", "3", "002"]):
        data = make_table(sequence=sequences, y=[spellings[n % 3] for n in range(60)])
        with pytest.raises(InputError, match=r"y: has both '0+\d' and '\d'; write one .* options.kind=multiclass"):
            Table.from_examples(Table.read(data, Columns()), {})
        task = Table.from_examples(Table.read(data, Columns(target=("y",))), {"kind": "multiclass"})
        assert sorted(task.classes) == sorted(spellings)
    data = make_table(sequence=sequences, y=[["0", "1", "01"][n % 3] for n in range(60)])
    task = Table.from_examples(Table.read(data, Columns(target=("y",))), {"kind": "binary"})
    assert any("2 classes in 60 rows: '1' (40), '0' (20)" in note for note in task.notes)


def test_cells_that_are_neither_number_nor_name(tmp_path, sequences):
    for cell in ({"a": 1}, [[1, 2], [3]]):
        path = tmp_path / "cells.jsonl"
        path.write_text("".join(json.dumps({"sequence": s, "y": cell}) + "\n" for s in sequences))
        with pytest.raises(InputError, match=r"cells\.jsonl, line 1: .* is neither a number nor a class name"):
            Table.from_examples(Table.read(path, Columns()), {})


def test_what_folds_refuse_beforehand(backbone, make_table, sequences, tmp_path):
    def folds(data, run="cv", **given):
        recipe = recipe_for("table", data, model=backbone, folds=3, overrides=SHORT, **given)
        finetune_from_recipe(recipe, tmp_path / run)

    rare = make_table("rare.csv", sequence=sequences, y=["a", "b"] * 29 + ["a", "rare"])
    with pytest.raises(InputError, match=r"fold \d of 0 to 2: .* the class 'rare' was not in the training data"):
        folds(rare)
    assert not (tmp_path / "cv").exists()
    data = make_table(sequence=sequences, y=["a", "b"] * 30)
    with pytest.raises(InputError, match="leave out --validation and --test"):
        folds(data, test=rare)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "recipe.yaml").write_text("{}")
    with pytest.raises(InputError, match=r"contains recipe\.yaml and is not a cross-validation"):
        folds(data, "other")


def test_a_report_without_nan(trained, make_table, sequences):
    data = make_table(sequence=sequences, y=[n / 60 for n in range(60)])
    run = trained("table", data)
    plain = evaluate(make_table("one.csv", sequence=sequences[:1], y=[0.5]), run / "model").plain()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert None in [value for figure in plain["figures"].values() for value in figure.values()]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"sequence;y\nACGU;1\n", "its fields are separated by ';'; save it as CSV in UTF-8"),
        (b"sequence\ty\nACGU\t1\n", r"its fields are separated by '\\t'"),
        ("sequence,y\nACGU,1\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    ],
)
def test_tables_as_spreadsheets_save_them(tmp_path, content, said):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=said):
        Table.read(tmp_path / "t.csv", Columns())


def test_only_tables_have_groups(tmp_path):
    (tmp_path / "a.dbn").write_text(">a\nGGGAAACCC\n(((...)))\n")
    with pytest.raises(InputError, match="only tables have columns such as 'family'"):
        SecondaryStructure.read(tmp_path / "a.dbn", Columns(group="family"))


def test_a_field_as_long_as_a_long_rna(tmp_path):
    (tmp_path / "long.csv").write_text(f"sequence,y\n{'ACGU' * 50_000},1\n")
    (example,) = Table.read(tmp_path / "long.csv", Columns())
    assert len(example.sequence) == 200_000


def test_weights_do_not_move_by_what_has_no_candidates():
    from rinalmo.model.structure_heads import PartnerHead

    head = PartnerHead(12, channels=6, num_blocks=2, rank=3)
    states = torch.randn(8, 12, requires_grad=True)
    head(states, torch.zeros(8, dtype=torch.long)).exp().diagonal().sum().backward()
    assert torch.isfinite(states.grad).all()

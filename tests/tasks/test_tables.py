"""Tables of examples: what is found in them, and what is said about a wrong one."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from rinalmo import metrics
from rinalmo.errors import InputError
from rinalmo.tasks.base import Columns, Example, read_table
from rinalmo.tasks.evaluate import with_intervals
from rinalmo.tasks.secondary_structure import SecondaryStructure
from rinalmo.tasks.sequence_tasks import NcrnaFamily, RibosomeLoad, SpliceSite
from rinalmo.tasks.table import Table

ROWS = [("a", "GGGAAACCC", "1.5", "x"), ("b", "acgt", "2", "y")]


def written(path):
    ending = path.name.removesuffix(".gz").rpartition(".")[2]
    header = ["id", "sequence", "mrl", "family"]
    if ending == "parquet":
        parquet.write_table(pa.Table.from_pylist([dict(zip(header, row, strict=True)) for row in ROWS]), path)
        return path
    if ending == "jsonl":
        text = "\n".join(json.dumps(dict(zip(header, row, strict=True))) for row in ROWS)
    else:
        text = "\n".join(("\t" if ending == "tsv" else ",").join(row) for row in (header, *ROWS))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.csv.gz"])
def test_every_format_gives_the_same_examples(tmp_path, name):
    found = RibosomeLoad.read(written(tmp_path / name), Columns())
    assert [(e.name, e.sequence, e.target, e.group) for e in found] == [
        ("a", "GGGAAACCC", 1.5, "x"),
        ("b", "ACGU", 2.0, "y"),
    ]


def test_columns_can_be_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("who,rna_text,first,second\nz,ACGU,1,2\n")
    columns = Columns(name="who", sequence="rna_text", target=("first", "second"))
    (found,) = read_table(path, columns, ())
    assert (found.name, found.sequence, found.target) == ("z", "ACGU", {"first": "1", "second": "2"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("sequence,mrl\n", "contains no rows"),
        ("sequence,mrl\nACGU,1\nACGU\n", "line 3: has 1 fields"),
        ("sequence,mrl\nACGU,1\nAC*U,1\n", "line 3: record 2, position 3"),
        ("sequence,mrl\nACGU,\n", "line 2: the target is '', not a number"),
        ("sequence,mrl\nACGU,nan\n", "line 2: the target is 'nan', not a number"),
        ("sequence,value\nACGU,1\n", "which column is the target"),
        ("rna,load\nACGU,1\n", "which column is the target"),
        ("mrl\n1\n", "which column is the sequence"),
        ("mrl,mrl\n1,2\n", "two columns named 'mrl'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, said):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        RibosomeLoad.read(path, Columns())
    assert "\n" not in str(caught.value)
    assert "t.csv" in str(caught.value)


def test_an_unknown_column_names_the_nearest(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sequence,half_life\nACGU,1\n")
    with pytest.raises(InputError, match="no column 'half_live'; did you mean 'half_life'"):
        read_table(path, Columns(target=("half_live",)), ())


def test_a_foreign_ending_is_refused(tmp_path):
    path = tmp_path / "t.xlsx"
    path.write_bytes(b"PK")
    with pytest.raises(InputError, match="is not a table"):
        read_table(path, Columns(), ())


def test_a_class_unseen_in_training_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sequence,label\nACGU,tRNA\nACGG,5S\nACGG,snoRNA\n")
    found = NcrnaFamily.read(path, Columns())
    task = NcrnaFamily.from_examples(found[:2], {})
    assert task.classes == ["5S", "tRNA"]
    with pytest.raises(InputError, match=r"line 4: the class 'snoRNA' was not in the training data \(5S, tRNA\)"):
        task.encode_targets(found)


@pytest.mark.parametrize(("label", "truth"), [("1", True), ("0", False), ("yes", True), ("False", False)])
def test_yes_and_no(tmp_path, label, truth):
    path = tmp_path / "t.csv"
    path.write_text(f"sequence,label\nACGU,{label}\n")
    assert SpliceSite.read(path, Columns())[0].target is truth


def test_a_splice_label_of_2_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sequence,label\nACGU,2\n")
    with pytest.raises(InputError, match="line 2: the label is '2'; it must be 0 or 1"):
        SpliceSite.read(path, Columns())


def table_of(tmp_path, header, *rows, name="t.csv"):
    path = tmp_path / name
    path.write_text("\n".join([f"sequence,{header}", *(f"ACGUA,{row}" for row in rows)]))
    return Table.read(path, Columns(target=tuple(header.split(","))))


@pytest.mark.parametrize(
    ("header", "rows", "kind", "per"),
    [
        ("y", ["1", "0", "1"], "binary", "sequence"),
        ("y", ["1.5", "0", "1"], "regression", "sequence"),
        ("y", ["a", "b", "a"], "multiclass", "sequence"),
        ("y", ["1", "2", "3"] * 5, "multiclass", "sequence"),
        ("y", [str(i) for i in range(30)], "regression", "sequence"),
        ("y,z", ["1,0", "0,1"], "multilabel", "sequence"),
        ("y,z", ["1,0.5", "0,"], "regression", "sequence"),
        ("y", ['"[0.5, null, 2]"', '"[1, 2, 3, 4, 5]"'], "regression", "nucleotide"),
        ("y", ["0;1;1;0;1", "1;1;0;0;1"], "binary", "nucleotide"),
    ],
)
def test_what_a_table_holds_is_found_out(tmp_path, header, rows, kind, per):
    examples = table_of(tmp_path, header, *rows)
    task = Table.from_examples(examples, {})
    assert (task.kind, task.per) == (kind, per)
    assert Table(**json.loads(json.dumps(task.settings))).settings == task.settings
    width = [len(task.classes)] if kind == "multiclass" else []
    (options,) = [options for name, options in task.heads().items() if name.endswith("_head")]
    assert options == {"num_labels": (width or [len(header.split(","))])[0]}
    assert sum(example.num_targets for example in task.encode_targets(examples)) > 0


def test_letters_are_classes_of_nucleotides(tmp_path):
    task = Table.from_examples(table_of(tmp_path, "y", "SSHHS", "SSE"), {"per": "nucleotide", "kind": "multiclass"})
    assert task.classes == ["E", "H", "S"]
    (first, second) = task.encode_targets(table_of(tmp_path, "y", "SSHHS", "SSE"))
    assert first.target.tolist() == [2, 2, 1, 1, 2]
    assert second.target.tolist() == [2, 2, 0, -100, -100]
    assert (first.num_targets, second.num_targets) == (5, 3)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["0.5,1,2,3,4,5"], "y has 6 values for 5 nucleotides"),
        (["0.5,x,1"], "y, value 2 is 'x', not a number"),
        ([""], "y is empty; delete the row"),
    ],
)
def test_wrong_tracks_are_named(tmp_path, rows, said):
    path = tmp_path / "t.csv"
    path.write_text("sequence,y\n" + "".join(f'ACGUA,"{row}"\n' for row in rows))
    with pytest.raises(InputError, match=f"line 2: {said}"):
        Table.from_examples(Table.read(path, Columns(target=("y",))), {"kind": "regression", "per": "nucleotide"})


def test_a_text_among_numbers_is_named_and_not_taken_for_a_class(tmp_path):
    examples = table_of(tmp_path, "y", "1.5", "2.5", "high", "3.5")
    with pytest.raises(InputError, match="line 4: 'high' is among numbers"):
        Table.from_examples(examples, {})
    assert Table.from_examples(examples, {"kind": "multiclass"}).classes == ["1.5", "2.5", "3.5", "high"]


def test_nan_is_no_family(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sequence,label\nACGU,tRNA\nACGU,NaN\n")
    with pytest.raises(InputError, match="line 3: the class is 'NaN', which stands for a missing value"):
        NcrnaFamily.read(path, Columns())


def test_nan_is_no_class_of_a_table(tmp_path):
    examples = table_of(tmp_path, "y", "tRNA", "5S", "nan")
    with pytest.raises(InputError, match="line 4: y is 'nan', which stands for a missing value"):
        Table.from_examples(examples, {}).encode_targets(examples)


def test_a_structure_that_is_missing_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sequence,structure\nACGU,....\nACGU,\n")
    with pytest.raises(InputError, match="line 3: has no structure; delete the row"):
        SecondaryStructure.read(path, Columns())


@pytest.mark.parametrize("kind", ["regression", "binary"])
def test_intervals_are_percentiles_over_drawn_examples(kind):
    draw = np.random.default_rng(1)
    values = draw.random((40, 1)).astype(np.float32)
    target = draw.random((40, 1)) if kind == "regression" else draw.integers(2, size=(40, 1))
    examples = [Example(str(n), "A", of) for n, of in enumerate(target)]
    found = with_intervals(Table(kind, "sequence", ["y"]), list(values), examples, None, 5)
    score = metrics.regression_scores if kind == "regression" else metrics.binary_scores
    drawn = np.random.default_rng(5).integers(40, size=(1000, 40))
    for name in ("mae",) if kind == "regression" else ("accuracy", "roc_auc"):
        again = [getattr(score(target[sample, 0], values[sample, 0]), name) for sample in drawn]
        assert found.metrics[name].value == getattr(score(target[:, 0], values[:, 0]), name)
        assert (found.metrics[name].low, found.metrics[name].high) == tuple(np.nanpercentile(again, [2.5, 97.5]))

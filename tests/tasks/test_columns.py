"""What a column holds, as spreadsheets, databases and other programs write it: decided, described or refused."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from rinalmo.errors import InputError
from rinalmo.tasks.base import Columns
from rinalmo.tasks.sequence_tasks import NcrnaFamily, RibosomeLoad
from rinalmo.tasks.table import Table

SEQUENCE = "ACGUACGUACGUACGUACGUACGU"
LIST = [n / 100 for n in range(len(SEQUENCE))]


@pytest.fixture
def read(tmp_path):
    """Write cells as a column `y` beside 24 nt sequences, every cell in quotes, and read them again."""

    def make(cells, name="t.csv"):
        rows = "".join(f'{SEQUENCE},"{cell}"\n' for cell in cells)
        (tmp_path / name).write_text(f"sequence,y\n{rows}")
        return Table.read(tmp_path / name, Columns())

    return make


def values(task, examples):
    return np.concatenate([np.ravel(example.target) for example in task.encode_targets(examples)]).tolist()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([f"{n // 10},{n % 10}" for n in range(60)], [n / 10 for n in range(60)]),
        ([f"{n},{137 + n},{200 + n}" for n in range(1, 61)], [n * 1001000 + 137000 + 200 + n for n in range(1, 61)]),
        ([f"{n},137" for n in range(1, 60)] + ["950"], [n * 1000 + 137 for n in range(1, 60)] + [950]),
        ([f"{n}.137,25" for n in range(1, 61)], [n * 1000 + 137.25 for n in range(1, 61)]),
        ([f"{n}.137.000" for n in range(1, 61)], [n * 1_000_000 + 137_000 for n in range(1, 61)]),
        ([f"{n}\u202f137" for n in range(1, 61)], [n * 1000 + 137 for n in range(1, 61)]),
        ([f"{n}'137.5" for n in range(1, 61)], [n * 1000 + 137.5 for n in range(1, 61)]),
        ([f"\u2212{n}.5" for n in range(60)], [-n - 0.5 for n in range(60)]),
        ([f"{n}.5 %" for n in range(60)], [n + 0.5 for n in range(60)]),
        ([f"{n}e-3" for n in range(60)], [n / 1000 for n in range(60)]),
    ],
    ids=["decimal comma", "millions", "thousands", "German", "points", "thin space", "Swiss", "minus", "percent", "e"],
)
def test_numbers_however_they_are_written(read, cells, expected):
    examples = read(cells)
    task = Table.from_examples(examples, {})
    assert (task.kind, task.per) == ("regression", "sequence")
    np.testing.assert_allclose(values(task, examples), expected, rtol=1e-12)
    again = Table(**json.loads(json.dumps(task.settings)))
    np.testing.assert_allclose(values(again, examples[:1]), expected[:1], rtol=1e-12)
    if "%" not in cells[0]:
        np.testing.assert_allclose(values(again, read(["0.25", "1.5"])), [0.25, 1.5])


@pytest.mark.parametrize(
    "cells",
    [
        ["Gene; snRNA; snoRNA; CD-box;", "Gene; tRNA;", "Cis-reg; riboswitch;"],
        ["RNase P, bacterial", "SRP, archaeal"],
        ["1_2", "2_1"],
        ["5S", "16S", "23S"],
        ["type 1", "type 2"],
        ["[2Fe] site", "none of these"],
        ["1", "X", "Y"],
    ],
    ids=lambda cells: cells[0],
)
def test_names_however_they_are_written(read, cells):
    examples = read(cells * 12)
    task = Table.from_examples(examples, {})
    assert (task.kind, task.per, task.classes) == ("multiclass", "sequence", sorted(cells))
    assert values(task, examples[: len(cells)]) == [task.classes.index(cell) for cell in cells]


@pytest.mark.parametrize(
    "cell",
    [
        ";".join(map(str, LIST)),
        ",".join(map(str, LIST)) + ",",
        " ".join(map(str, LIST)),
        ";".join(map(str, LIST)).replace(".", ","),
        str(LIST),
        str(np.array(LIST)),
    ],
    ids=["semicolon", "comma", "space", "decimal comma", "Python", "numpy"],
)
def test_lists_however_they_are_written(read, cell):
    examples = read([cell] * 6)
    task = Table.from_examples(examples, {})
    assert (task.kind, task.per) == ("regression", "nucleotide")
    np.testing.assert_allclose(values(task, examples[:1]), LIST)


def test_missing_values_in_lists(read):
    cell = ";".join(["0.5", "", "NA", "nan", "None", "null", "<NA>", "2"] * 3)
    examples = read([cell, "[0.5, NaN, null, 2" + ", 1" * 20 + "]"])
    first, second = (example.target[:, 0] for example in Table.from_examples(examples[:1], {}).encode_targets(examples))
    assert np.flatnonzero(~np.isnan(first)).tolist() == [0, 7, 8, 15, 16, 23]
    assert np.flatnonzero(np.isnan(second)).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([f"{n},137" for n in range(1, 61)], r"y: '1,137' may mean 1\.137 or 1137, .* options\.decimal=comma"),
        (["0,5", "1,5"] * 9 + ["0.7"], r"y: '0,5' has a decimal comma, but '0\.7' .* options\.decimal=comma"),
        (
            [f"{n} h" if n % 2 else f"{n % 25} min" for n in range(60)],
            r"y: has numbers in several units \('h', 'min'\); convert them to one, or use .*options.kind=multiclass",
        ),
        (
            [f"{n}.5 kcal/mol" for n in range(60)],
            "every cell is a number with 'kcal/mol'; .*options.kind=regression",
        ),
        (["0.5%"] * 9 + ["0.7"], r"line 11: '0\.7' is among numbers in y"),
        ([f"<{n}.5" for n in range(9)] + [f"{n}.5" for n in range(9)], "line 2: '<0.5' is among numbers in y"),
        ([f"{n};{n}.5;{n + 1}" for n in range(9)], "y has 3 values in every row, .* options.per=nucleotide"),
        (["[1, 2]", "3"], r"line 3: y is '3', but 1 of 2 rows have lists; .* options\.per=nucleotide"),
        ([f"clone {n}" for n in range(60)], "y: every row has a different text, such as 'clone 0'; .* --target"),
        (
            ["".join("HSE"[n // 3**place % 3] for place in range(24)) for n in range(60)],
            "or --set options.per=nucleotide",
        ),
        (["3.5", "1e300"], "line 3: y is '1e300', which is too large"),
        (["3.5", "inf"], "line 3: y is 'inf', not a number"),
        (["", "NA", "null"], "y: no row has a value to learn from"),
    ],
)
def test_two_readings_or_none_are_refused(read, cells, message):
    with pytest.raises(InputError, match=message) as caught:
        Table.from_examples(read(cells), {})
    assert "\n" not in str(caught.value)


def test_spellings_of_a_class_and_numbers_as_names(read):
    task = Table.from_examples(read(["tRNA", "trna", "mRNA"] * 3), {})
    assert task.notes[-1] == "y: the classes 'tRNA' and 'trna' differ only in case; are they one?"
    assert not any("differ" in note for note in Table.from_examples(read(["tRNA", "mRNA"] * 3), {}).notes)
    for names in (["5S rRNA", "16S rRNA", "tRNA"], ["30 min", "2 h"], ["5p", "3q"]):  # few, and often
        assert Table.from_examples(read(names * 10), {}).classes == sorted(names)


def test_options_decide(read):
    cells = [f"{n},137" for n in range(1, 61)]
    for decimal, first in (("comma", 1.137), ("point", 1137.0)):
        task = Table.from_examples(read(cells), {"decimal": decimal})
        again = Table(**task.settings)
        assert values(again, read(cells[:2]))[0] == pytest.approx(first)
    units = read([f"-{n},5 kcal/mol" for n in range(60)])
    assert values(Table.from_examples(units, {"kind": "regression"}), units[:2]) == [-0.5, -1.5]
    triples = read([f"{n};{n}.5;{n + 1}" for n in range(9)])
    assert Table.from_examples(triples, {"per": "nucleotide"}).kind == "regression"
    assert len(Table.from_examples(triples, {"per": "sequence", "kind": "multiclass"}).classes) == 9


@pytest.mark.parametrize("cell", ["", "NA", "N/A", "nan", "NaN", "None", "null", "NULL", "<NA>", "#N/A", " na "])
def test_rows_without_a_value(read, cell):
    examples = read(["1.5", "2.5", cell] * 3)
    with pytest.raises(InputError, match=r"line 4: y (is empty|is '.*', which stands for a missing value)"):
        Table.from_examples(examples, {})
    task = Table.from_examples(examples, {"missing": "drop"})
    assert values(task, examples) == [1.5, 2.5] * 3
    assert "6 numbers, 1.5 to 2.5, such as 1.5, 2.5; 3 rows have none" in task.notes[1]
    assert Table(**task.settings).missing == "drop"


def test_a_word_for_missing_may_name_a_class(read):
    examples = read(["m6A", "None", "Psi"] * 3)
    with pytest.raises(InputError, match=r"line 3: y is 'None', which stands .* options\.missing=drop .* or =class"):
        Table.from_examples(examples, {}).encode_targets(examples)
    assert Table.from_examples(examples, {"missing": "class"}).classes == ["None", "Psi", "m6A"]
    assert Table.from_examples(examples, {"missing": "drop"}).classes == ["Psi", "m6A"]


@pytest.mark.parametrize("cell", ["NA", "None", "null", "<NA>", "#N/A"])
def test_no_task_takes_a_missing_value_for_a_class_or_a_number(tmp_path, cell):
    path = tmp_path / "t.csv"
    path.write_text(f"sequence,label\nACGU,tRNA\nACGU,{cell}\n")
    with pytest.raises(InputError, match=f"line 3: the class is '{cell}', which stands for a missing value"):
        NcrnaFamily.read(path, Columns())
    path.write_text(f"sequence,mrl\nACGU,1\nACGU,{cell}\n")
    with pytest.raises(InputError, match=f"line 3: the target is '{cell}', not a number"):
        RibosomeLoad.read(path, Columns())


def test_other_tasks_read_numbers_alike(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('sequence,mrl\nACGU,"1,5"\nACGU,"\u22122,25"\n')
    assert [example.target for example in RibosomeLoad.read(path, Columns())] == [1.5, -2.25]
    path.write_text('sequence,mrl\nACGU,"1,500"\n')
    with pytest.raises(InputError, match=r"t\.csv: the target: '1,500' may mean 1\.500 or 1500, .*decimal points"):
        RibosomeLoad.read(path, Columns())
    path.write_text("sequence,mrl\nACGU,2\nACGU,2\n")
    task = RibosomeLoad.from_examples(RibosomeLoad.read(path, Columns()), {})
    assert task.notes == ["the target is the same in all training examples, so there is nothing to learn"]


def test_what_is_described(read, make_table):
    numbers = Table.from_examples(read([f"{n},5" for n in range(30)] + ["-9999,0"]), {})
    assert numbers.notes == [
        "y: regression, for each sequence",
        "y: 31 numbers, -9999 to 29.5 with decimal commas, such as '0,5' = 0.5, '1,5' = 1.5, '2,5' = 2.5",
        "y: 1 of 31 numbers are far from all others, such as -9999,0 (line 32); if they mean a missing value, leave "
        "those cells empty",
    ]
    constant = Table.from_examples(read(["3.5"] * 9), {})
    assert constant.notes[2] == "y is the same in all training examples, so there is nothing to learn from it"
    classes = Table.from_examples(read(["a", "b, c", "a"] * 4), {})
    assert classes.notes[1] == "y: 2 classes in 12 rows: 'a' (8), 'b, c' (4)"
    tracks = Table.from_examples(read(["[0.5, null, 2, 1, 1, 1, 1, 1, 1]"] * 2), {})
    assert tracks.notes[1] == "y: 16 numbers in 2 rows, 0.5 to 2, such as 0.5, 2, 1"
    several = make_table("m.csv", sequence=[SEQUENCE] * 3, a=["0.5", "1", ""], b=["1", "", ""])
    two = Table.from_examples(Table.read(several, Columns(target=("a", "b"))), {"missing": "drop"})
    assert two.notes[1:] == [
        "a: 2 numbers, 0.5 to 1, such as 0.5, 1; 1 row has none",
        "b: 1 number, 1 to 1, such as 1; 2 rows have none",
    ]


def test_columns_of_two_kinds_are_not_learned_together(make_table):
    path = make_table(sequence=[SEQUENCE] * 3, a=["0.5", "1", "2"], b=["0.5;1;;;2", "1;2;;;2;3", "1"])
    with pytest.raises(InputError, match="a has one value per sequence, but b one per nucleotide"):
        Table.from_examples(Table.read(path, Columns(target=("a", "b"))), {})


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_missing_values_of_typed_files(tmp_path, ending):
    rows = [{"sequence": SEQUENCE, "a": a, "t": t} for a, t in ((1.5, [0.5, None, float("nan")]), (None, None))]
    rows.append({"sequence": SEQUENCE, "a": float("nan"), "t": []})
    rows.append({"sequence": SEQUENCE, "a": 2.5, "t": [2.0] * 24})
    path = tmp_path / f"t.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pa.Table.from_pylist(rows), path)
    for name, first in (("a", [1.5]), ("t", [0.5])):
        examples = Table.read(path, Columns(target=(name,)))
        with pytest.raises(InputError, match=rf"{name} is (empty|'nan', which)"):
            Table.from_examples(examples, {}).encode_targets(examples)
        task = Table.from_examples(examples, {"missing": "drop"})
        encoded = task.encode_targets(examples)
        assert (len(encoded), np.ravel(encoded[0].target)[:1].tolist()) == (2, first)
        assert "2 rows have none" in task.notes[1]

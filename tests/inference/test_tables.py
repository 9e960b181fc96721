"""Sequences in tables and data frames, wherever a function or command takes sequences."""

import gzip
import json
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import rinalmo
from rinalmo.errors import InputError
from rinalmo.inference.embed import embed_file
from rinalmo.inference.explain import explain
from rinalmo.io.sequences import Record, SequenceFile, as_records
from rinalmo.tasks.base import json_lines
from rinalmo.tasks.evaluate import evaluate
from rinalmo.training.trainer import Listener

COLUMNS = {"id": ["a", "b", None], "sequence": ["ACGU", "ggtt", "ACGUA"], "y": [0.5, None, 2.0]}
EXPECTED = [("a", "ACGU"), ("b", "GGUU"), ("3", "ACGUA")]
ROWS = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]


class Polars:
    """What of polars' DataFrame is used, where polars is not installed."""

    __module__ = "polars.dataframe.frame"

    def iter_rows(self, *, named):
        assert named
        return iter(ROWS)

    def __iter__(self):  # by column, as polars does
        return iter(COLUMNS.values())


def frames():
    frame = pd.DataFrame(COLUMNS)
    yield pytest.param(frame, id="pandas")
    yield pytest.param(frame.convert_dtypes(), id="pandas NA")
    yield pytest.param(frame.convert_dtypes(dtype_backend="pyarrow"), id="pandas pyarrow")
    yield pytest.param(frame.astype({"sequence": "category"}), id="category")
    yield pytest.param(pa.Table.from_pylist(ROWS), id="Table")
    yield pytest.param(pa.RecordBatch.from_pylist(ROWS), id="RecordBatch")
    table = pa.Table.from_pylist(ROWS)
    yield pytest.param(pa.RecordBatchReader.from_batches(table.schema, table.to_batches()), id="RecordBatchReader")
    yield pytest.param(COLUMNS, id="columns")
    yield pytest.param({name: frame[name] for name in frame}, id="columns of Series")
    yield pytest.param(frame.to_records(index=False), id="NumPy records")
    yield pytest.param(Polars(), id="polars")
    yield pytest.param(ROWS, id="records")


def test_polars_itself():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(COLUMNS)
    for given in (frame, frame.lazy()):
        assert [(record.id, record.sequence) for record in as_records(given)] == EXPECTED
    assert [record.sequence for record in as_records(frame["sequence"])] == [text for _, text in EXPECTED]


@pytest.mark.parametrize("given", list(frames()))
def test_frames_are_read_by_rows(given):
    assert [(record.id, record.sequence) for record in as_records(given)] == EXPECTED


def test_columns_of_frames():
    frame, table = pd.DataFrame(COLUMNS), pa.Table.from_pylist(ROWS)
    texts = [text for _, text in EXPECTED]
    column = table["sequence"]
    for given in (
        frame["sequence"],
        frame["sequence"].to_numpy(),
        np.array(COLUMNS["sequence"]),
        column,
        column.chunk(0),
        list(column),
    ):
        assert [record.sequence for record in as_records(given)] == texts
    named = frame.set_index("id").loc[["b"]]
    assert [(record.id, record.sequence) for record in as_records(named)] == [("b", "GGUU")]
    for missing in (None, np.nan, pd.NA):
        with pytest.raises(InputError, match=r"sequence 2 is .*, a missing value; leave it out"):
            list(as_records(pd.Series(["ACGU", missing], dtype=object)))
    with pytest.raises(InputError, match="row 2: sequence is empty; leave out this row"):
        list(as_records(pd.DataFrame({"sequence": ["ACGU", None]})))
    with pytest.raises(InputError, match="the columns have different lengths: sequence 2, y 1"):
        list(as_records({"sequence": ["ACGU", "GG"], "y": [1]}))
    with pytest.raises(InputError, match="sequences is a mapping of sequence; give one of its values"):
        list(as_records({"sequence": "ACGU"}))
    with pytest.raises(InputError, match="the DataFrame has two columns named 'y'"):
        list(as_records(pd.DataFrame([["ACGU", 1, 2]], columns=["sequence", "y", "y"])))


def test_bytes_and_single_values():
    """Files such as HDF5 hold text as bytes; a row of a data frame is one sequence with its name."""
    frame, texts = pd.DataFrame(COLUMNS), [text for _, text in EXPECTED]
    named = np.array([(b"a", b"ACGU"), (b"b", b"ggtt")], dtype=[("id", "S3"), ("sequence", "S40")])
    for given in (np.array(texts, "S"), [text.encode() for text in texts], pa.array([text.encode() for text in texts])):
        assert [record.sequence for record in as_records(given)] == texts
    assert [(record.id, record.sequence) for record in as_records(named)] == EXPECTED[:2]
    rows = [row for _, row in frame.iterrows()]
    assert [(record.id, record.sequence) for record in as_records(rows)] == EXPECTED
    for given in (b"ACGU", np.bytes_(b"ACGU"), np.str_("ACGU"), np.array("ACGU")):
        assert [record.sequence for record in as_records(given)] == ["ACGU"]
    for given, words in (
        (frame.iloc[0], "sequences is a mapping of id, sequence, y; give one of its values"),
        ([b"ACG\xe9"], r"'é' is not a nucleotide code; write the sequence in plain ASCII letters"),
        (torch.zeros(3), "sequence 1 is a Tensor; expected text"),
        (np.array([["ACGU"]]), "sequence 1 is a ndarray; expected text"),
    ):
        with pytest.raises(InputError, match=words):
            list(as_records(given))
    cells = list(json_lines(np.array([(b"ACGU", b"tRNA")], dtype=[("sequence", "S4"), ("y", "S4")]), "data"))
    assert cells == [b'{"sequence": "ACGU", "y": "tRNA"}\n']


def test_every_function_reads_tables():
    """Variants too; what is no list of them is refused in one line."""
    polars = import_module("polars") if find_spec("polars") else None
    wild_type, variants = "GGGGGAAAACCCCC", ["G1A", "G2A"]
    rows, masked = [{"mutant": text} for text in variants], ["GG<mask>GG", "GG<mask>GA"]
    expected = rinalmo.score(wild_type, variants)
    frame = pd.DataFrame(rows)
    tables = [frame, pa.Table.from_pylist(rows), rows, {"mutant": variants}, [row for _, row in frame.iterrows()]]
    columns = [frame["mutant"], pa.array(variants), np.array(variants), np.array(variants, "S"), iter(variants)]
    more = [polars.DataFrame(rows), polars.DataFrame(rows).lazy(), polars.Series(variants)] if polars else []
    for given in (*tables, *columns, *more):
        np.testing.assert_array_equal(rinalmo.score(wild_type, given), expected)
    for single in (wild_type.encode(), {"sequence": wild_type}, pd.Series({"id": "a", "sequence": wild_type})):
        np.testing.assert_array_equal(rinalmo.score(single, variants), expected)
    best = [each[0][0].sequence for each in rinalmo.fill_mask(masked, top_k=1)]
    for given in (pd.DataFrame({"seq": masked}), np.array(masked, "S"), iter(masked)):
        assert [each[0][0].sequence for each in rinalmo.fill_mask(given, top_k=1)] == best
    for given in (pa.table({"id": ["a"], "sequence": [wild_type]}), pd.DataFrame({"sequence": [wild_type]}, ["a"])):
        assert [each.record.sequence for each in explain(given, "nano-fold")] == [wild_type]
    with pytest.raises(InputError, match="no sequences given"):
        list(explain([], "nano-fold"))
    for given, words in (
        (None, "variants is a NoneType; give a variant, or a list, column or table of them"),
        ({"G1A": 0.5}, "variants is a dict; give a variant"),
        (pd.DataFrame({"mutants": variants}), "variant 1: has no column 'mutant'; did you mean 'mutants'"),
        (["G1A", None], "variant 2 is None, a missing value; leave it out"),
        (pd.Series(["G1A", np.nan]), "variant 2 is nan, a missing value; leave it out"),
        ([1], "variant 1 is a int; expected text"),
    ):
        with pytest.raises(InputError, match=words):
            rinalmo.score(wild_type, given)


@pytest.fixture(params=["t.csv", "t.tsv", "t.csv.gz", "t.jsonl", "t.parquet"])
def table(request, tmp_path):
    path, frame = tmp_path / request.param, pd.DataFrame(COLUMNS)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        text = frame.to_csv(index=False, sep="\t" if path.suffix == ".tsv" else ",")
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_tables_as_files_of_sequences(table):
    assert [(record.id, record.sequence) for record in as_records(table)] == EXPECTED


def test_what_is_wrong_with_a_table_of_sequences(tmp_path):
    path = tmp_path / "t.csv"
    for text, message in (
        ("sequence,y\nACGU,1\nAC*U,1\n", r"t\.csv, line 3: record 2, position 3"),
        ("sequence,y\nACGU,1\nNA,1\n", r"t\.csv, line 3: sequence is empty; leave out this row"),
        ("text,y\nACGU,1\n", r"t\.csv, line 2: .*none of them called sequence"),
        ("sequence\n", r"t\.csv: contains no rows"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            list(as_records(path))
    path.write_text("\n>a\nACGU\n")  # FASTA of any name is read as before
    assert list(as_records(path)) == [Record("a", "", "ACGU")]


def test_frames_train_and_are_evaluated(backbone, tmp_path):
    frame = pd.DataFrame({"sequence": ["ACGUACGU" + "ACGU"[n % 4] for n in range(16)], "y": np.arange(16) / 7})
    frame.loc[3, "y"] = np.nan
    changes = ["train.epochs=1", "train.precision=fp32", "logging.plots=false", "options.missing=drop"]
    notes = []
    tested = rinalmo.finetune(
        "table",
        frame,
        tmp_path / "run",
        model=backbone,
        test=pa.Table.from_pandas(frame),
        overrides=changes,
        listener=Listener(note=notes.append),
    )
    assert tested.count == 15
    assert "skipped 1 of 16 test examples without a value" in notes
    again = evaluate(frame, tmp_path / "run" / "model")
    assert again.count == 15
    assert again.metrics["mae"].value == pytest.approx(tested.metrics["mae"].value, rel=1e-5)
    with pytest.raises(InputError, match="data, line 2: y is 'high', not a number"):
        evaluate([{"sequence": "ACGU", "y": 1.5}, {"sequence": "ACGU", "y": "high"}], tmp_path / "run" / "model")


def test_embeddings_keep_the_columns_of_their_table(tmp_path):
    """In order, with their types, also of a shard; never under a name of ours."""
    rows = [{**row, "length": number, "species": "Homo"} for number, row in enumerate(ROWS)]
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "rnas.parquet")
    engine = rinalmo.Engine("nano", "fp32", device="cpu")
    plain = embed_file(tmp_path / "rnas.parquet", tmp_path / "plain.csv", engine)
    options = {"keep_columns": True}
    assert embed_file(tmp_path / "rnas.parquet", tmp_path / "out.parquet", engine, **options) == plain == 3
    found = parquet.read_table(tmp_path / "out.parquet")
    assert found.column_names == [
        "id",
        "description",
        "length",
        "sequence",
        "y",
        "length_given",
        "species",
        "embedding",
    ]
    assert found["y"].to_pylist() == COLUMNS["y"]
    assert found["length_given"].to_pylist() == [0, 1, 2]
    assert found["length"].to_pylist() == [4, 4, 5]
    embed_file(tmp_path / "rnas.parquet", tmp_path / "two.csv", engine, shard="2/2", **options)
    second = pd.read_csv(tmp_path / "two.csv")
    assert second.columns[:7].tolist() == found.column_names[:-1]
    assert second[["id", "sequence", "length_given"]].to_numpy().tolist() == [["b", "ggtt", 1]]
    embed_file(tmp_path / "rnas.parquet", tmp_path / "each.tsv", engine, pooling="none", **options)
    assert pd.read_csv(tmp_path / "each.tsv", sep="\t")["length_given"].tolist() == [0] * 4 + [1] * 4 + [2] * 5
    (tmp_path / "clash.csv").write_text("sequence,length,length_given\nACGU,1,2\n")
    (tmp_path / "rnas.fa").write_text(">a\nACGU\n")
    for source, output, words in (
        ("clash.csv", "no.csv", "has the name of another one with _given"),
        ("rnas.fa", "no.csv", "--keep-columns needs a table as input"),
        ("rnas.parquet", "no.npz", r"no place for other columns; use \.parquet"),
    ):
        with pytest.raises(InputError, match=words):
            embed_file(tmp_path / source, tmp_path / output, engine, **options)
        assert not (tmp_path / output).exists()


def test_annotated_data_keeps_the_columns_of_its_table(tmp_path):
    anndata = pytest.importorskip("anndata")
    (tmp_path / "rnas.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    embed_file(tmp_path / "rnas.jsonl", tmp_path / "out.h5ad", rinalmo.Engine("nano"), keep_columns=True)
    obs = anndata.read_h5ad(tmp_path / "out.h5ad").obs
    assert obs["sequence"].tolist() == COLUMNS["sequence"]


def test_a_mistyped_sequence_in_place_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text, words in (
        ("ACGX!", r"ACGX! is neither a file nor a sequence: '!' at position 5 is no nucleotide"),
        ("acgux", r"neither a file nor a sequence: 'x' at position 5"),
        ("ACGU ACGU", r"neither a file nor a sequence: ' ' at position 5"),
        ("ACGU" * 100 + "!", r"^.{39}… is neither a file nor a sequence: '!' at position 401"),
        ("ACGU.fa", "does not exist; check the path"),
        ("runs/ACG!", "does not exist; check the path"),
        ("proteins", "does not exist; check the path"),
    ):
        with pytest.raises(InputError, match=words):
            list(SequenceFile(text))
    (tmp_path / "acgu-1").write_text(">a\nACGU\n")
    assert [record.sequence for record in SequenceFile("acgu-1")] == ["ACGU"]

"""Tables of text; the faults that any of them can have are tested with the tables of data preparation."""

import bz2
import csv
import gzip
import json
import lzma
import threading

import pyarrow as pa
import pytest

from rinalmo.errors import InputError
from rinalmo.io.tables import open_table, read_rows, write_rows

ROWS = [{"id": "a", "n": 1, "x": 0.123456789}, {"id": 'b "c", d', "n": 2, "x": 2.0}]


def read(path):
    table = open_table(path)
    return table.columns, list(table.rows)


def test_lines_are_those_of_the_file(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n1,2\r\n\r\n"3\r\n3","4,4"\r\n')
    assert read(path) == (["a", "b"], [(2, {"a": "1", "b": "2"}), (5, {"a": "3\r\n3", "b": "4,4"})])


def test_tabs_by_name(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("a\tb\n1,5\t2\n")
    assert read(path) == (["a", "b"], [(2, {"a": "1,5", "b": "2"})])


def test_a_row_of_another_width_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n\n3\n")
    with pytest.raises(InputError, match=r"t\.csv, line 4: has 1 fields, but there are 2 columns"):
        read(path)
    path.write_text("mutants\n")
    with pytest.raises(InputError, match=r"no column 'mutant'; did you mean 'mutants'"):
        open_table(path).require("mutant")


@pytest.mark.parametrize(
    "ending", [".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".tsv.zst", ".jsonl.xz", ".csv.bz2"]
)
def test_rows_come_back(tmp_path, ending):
    path = tmp_path / f"t{ending}"
    write_rows(path, ROWS)
    is_text = ".csv" in ending or ".tsv" in ending
    expected = [{"id": r["id"], "n": str(r["n"]), "x": f"{r['x']:.6g}"} for r in ROWS] if is_text else ROWS
    assert [row for _, row in read_rows(path)] == expected
    assert [place.rpartition(", ")[2].split()[0] for place, _ in read_rows(path)] == [
        "row" if "parquet" in ending else "line"
    ] * 2


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
@pytest.mark.parametrize(
    "compress",
    [gzip.compress, bz2.compress, lzma.compress, lambda data: pa.Codec("zstd").compress(data, asbytes=True)],
    ids=["gzip", "bzip2", "xz", "zstd"],
)
def test_compression_is_recognized_by_content(tmp_path, ending, compress):
    path = tmp_path / f"t{ending}"
    rows = [{"id": str(n), "y": "2"} for n in range(3000)]
    lines = [json.dumps(row) for row in rows] if ending == ".jsonl" else ["id,y", *(f"{n},2" for n in range(3000))]
    data = compress("".join(line + "\n" for line in lines).encode())
    path.write_bytes(data)
    assert [row for _, row in read_rows(path)] == rows
    for size in (len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"cannot be read to its end"):
            list(read_rows(path))


def test_the_limit_on_fields_is_the_callers_between_rows(tmp_path):
    """Also where rows are read in turn from two tables, in two threads, and not to the end."""
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + f"{'A' * 1000},1\n" * 50)
    before = csv.field_size_limit(100)
    try:
        first, second = open_table(path), open_table(path)
        for _ in range(10):
            assert len(next(first.rows)[1]["a"]) == len(next(second.rows)[1]["a"]) == 1000
            assert csv.field_size_limit() == 100
        readers = [threading.Thread(target=lambda: read(path)) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert csv.field_size_limit() == 100
    finally:
        csv.field_size_limit(before)

"""Tables of text; the faults that any of them can have are tested with the tables of data preparation."""

import csv
import threading

import pytest

from rinalmo.errors import InputError
from rinalmo.io.tables import column_index, opened_table


def read(path):
    with opened_table(path) as (header, rows):
        return header, list(rows)


def test_lines_are_those_of_the_file(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n1,2\r\n\r\n"3\r\n3","4,4"\r\n')
    assert read(path) == (["a", "b"], [(2, ["1", "2"]), (5, ["3\r\n3", "4,4"])])


def test_tabs_by_name(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("a\tb\n1,5\t2\n")
    assert read(path) == (["a", "b"], [(2, ["1,5", "2"])])


def test_a_row_of_another_width_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n\n3\n")
    with pytest.raises(InputError, match=r"t\.csv, line 4: has 1 fields, not 2"):
        read(path)
    with pytest.raises(InputError, match=r"no column 'mutant'; did you mean 'mutants'"):
        column_index(path, ["mutants"], "mutant")


def test_the_limit_on_fields_is_the_callers_between_rows(tmp_path):
    """Also where rows are read in turn from two tables, in two threads, and not to the end."""
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + f"{'A' * 1000},1\n" * 50)
    before = csv.field_size_limit(100)
    try:
        with opened_table(path) as (_, first), opened_table(path) as (_, second):
            for _ in range(10):
                assert len(next(first)[1][0]) == len(next(second)[1][0]) == 1000
                assert csv.field_size_limit() == 100
            readers = [threading.Thread(target=lambda: read(path)) for _ in range(4)]
            for reader in readers:
                reader.start()
            for reader in readers:
                reader.join()
        assert csv.field_size_limit() == 100
    finally:
        csv.field_size_limit(before)

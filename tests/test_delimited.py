"""Tables of text; the faults that any of them can have are tested with the tables of data preparation."""

import pytest

from rinalmo.delimited import column_index, opened_table
from rinalmo.errors import InputError


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

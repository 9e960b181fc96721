"""Wrong files: one line that names file, line and record and says what to do."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rinalmo.errors import InputError
from rinalmo.rna.formats import FORMATS, format_of, read_structures, write_structures
from rinalmo.rna.structure import Structure

ROWS = ["4 ends", "1 G 0 2 4 1", "2 A 1 3 0 2", "3 A 2 4 0 3", "4 C 3 0 1 4"]


def ct(**changed: str) -> str:
    """A good CT file with some of its lines changed."""
    lines = [changed.get(f"line{n}", line) for n, line in enumerate(ROWS, start=1)]
    return "\n".join(lines) + "\n"


FAULTS = [
    # DBN
    ("dbn", ">a\nACGU\n((.)\n", "line 3, record a, position 1: '(' is never closed"),
    ("dbn", ">a\nACGU\n(.))\n", "line 3, record a, position 4: ')' closes nothing"),
    ("dbn", ">a\nAC\nGU\n..\n(.\n", "line 5, record a, position 3: '(' is never closed"),
    ("dbn", ">a\nACGU\n(..)\n>b\nACGUA\n(..)\n", "line 6, record b: the structure has 4 characters, the sequence 5"),
    ("dbn", ">a\nACGU\n(....)\n", "line 3, record a: the structure has 6 characters, the sequence 4"),
    ("dbn", ">a\nACGU\n(..%\n", "line 3, record a, position 4: '%' is not dot-bracket"),
    ("dbn", ">a\nAC-U\n....\n", "line 2, record a, position 3: '-' is not a letter"),
    ("dbn", ">a\nACGU\n", "line 1, record a: has no structure line; add one"),
    ("dbn", ">a\n>b\nACGU\n....\n", "line 1, record a: has a header but no sequence"),
    ("dbn", ">a\n....\n", "line 2, record a: there is no sequence before this structure"),
    ("dbn", "ACGU\n....\n(...)\n", "line 3, record 2: the structure has 5 characters, the sequence 4"),
    ("dbn", ">a\nACGU\n....\n>b\n....\n", "line 5, record b: there is no sequence before this structure"),
    ("dbn", ">a\nAC&GU\n(.&.)\n", "line 2, record a: '&' joins two RNAs"),
    ("dbn", ">a\nACGU\n(..) and more\n", "line 3, record a: 'and more' follows the structure"),
    ("dbn", "ACGU\n(..)\nACGU\n(.).)\n", "line 4, record 2: the structure has 5"),
    # CT
    ("ct", ct(line2="1 G 0 2 5 1"), "line 2, record ends, position 1: has the partner 5, but there are 4 rows"),
    ("ct", ct(line2="1 G 0 2 3 1"), "line 2, record ends, position 1: has the partner 3, whose partner is 0"),
    ("ct", ct(line3="2 A 1 3 4 2"), "line 3, record ends, position 2: has the partner 4, whose partner is 1"),
    ("ct", ct(line3="2 A 1 3 2 2"), "line 3, record ends, position 2: is paired with itself"),
    ("ct", ct(line3="2 A 1 3 -1 2"), "line 3, record ends, position 2: '2 A 1 3 -1 2' is not a row"),
    ("ct", ct(line3="2 A 1 3"), "line 3, record ends, position 2: '2 A 1 3' is not a row"),
    ("ct", ct(line3="2 A 1 3 99999999999 2"), "line 3, record ends, position 2: '2 A 1 3 99999999999 2' is not a row"),
    ("ct", ct(line3="3 A 2 4 0 3"), "line 3, record ends, position 2: this row has the position 3"),
    ("ct", ct(line3="2 AG 1 3 0 2"), "line 3, record ends, position 2: 'AG' is not one letter"),
    ("ct", ct(line3="2 - 1 3 0 2"), "line 3, record ends, position 2: '-' is not a letter"),
    ("ct", ct(line1="5 ends"), "line 1, record ends: the title says 5 nt, but there are 4 rows"),
    ("ct", ct(line1="3 ends"), "line 2, record ends, position 1: has the partner 4, but there are 3 rows"),
    ("ct", ct(line1="ends"), "line 1, record 1: 'ends' is not a title line"),
    ("ct", ct() + "x\n", "line 6, record 2: 'x' is not a title line"),
    # Stockholm
    ("sto", "# STOCKHOLM 1.0\na ACGU\n//\n", "line 1: the alignment has no structure, a line '#=GC SS_cons'"),
    ("sto", "a ACGU\n#=GC SS_cons <.>\n//\n", "line 1, record a: has 4 columns, but the structure has 3"),
    ("sto", "a ACGU\n#=GC SS_cons <..(\n//\n", "line 2, position 1: '<' is never closed"),
    ("sto", "a AC%U\n#=GC SS_cons <..>\n//\n", "line 1, record a, position 3: '%' is not a letter"),
    ("sto", "a AC GU\n#=GC SS_cons <..>\n//\n", "line 1: 'a AC GU' is not a row of a Stockholm alignment"),
    ("sto", "a ACGU\n#=GC SS_cons <..>\n", "line 1: the alignment does not end with //"),
    # BPSEQ
    ("bpseq", "#x\n1 A 2\n2 U 3\n3 G 0\n", "line 2, record x, position 1: has the partner 2, whose partner is 3"),
    ("bpseq", "1 A 4\n2 U 0\n", "line 1, record 1, position 1: has the partner 4, but there are 2 rows"),
    ("bpseq", "1 A 0\n3 U 0\n", "line 2, record 1, position 2: this row has the position 3"),
    ("bpseq", "1 A 0\n2 U\n", "line 2, record 1, position 2: '2 U' is not a row"),
    ("bpseq", "2 A 0\n", "line 1, record 1, position 1: this row has the position 2"),
    # ST
    ("st", "ACGU\n", "line 1: comes before a line '#Name: ...'"),
    ("st", "#Name: a\nACGU\n", "line 1, record a: has no structure line"),
    ("st", "#Name: a\nACGU\n(..\nSHHS\n", "line 3, record a: the structure has 3 characters"),
    ("st", "#Name: a\nACGU\n(..(\nSHHS\n", "line 3, record a, position 4: '(' is never closed"),
    ("st", "#Name: a\nAC.U\n(..)\nSHHS\n", "line 2, record a, position 3: '.' is not a letter"),
    ("st", "#Name: a\nACGU\n(..)\nSHH\n", "line 4, record a: the loops line has 3 characters, but the sequence has 4"),
    # tables
    ("csv", "id,sequence,structure\na,ACGU,(..)\nb,ACGU,(..\n", "line 3, record b: the structure has 3 characters"),
    ("csv", "id,sequence,structure\na,ACGU,(..\n", "line 2, record a: the structure has 3 characters"),
    ("csv", "sequence,structure\nACGU,)..(\n", "line 2, record 1, position 1: ')' closes nothing"),
    ("csv", "id,sequences,structure\na,ACGU,(..)\n", "has no column 'sequence'; did you mean 'sequences'?"),
    ("csv", "id,sequence,pairs\na,ACGU,(..)\n", "has no column 'structure'; there are 'id', 'sequence', 'pairs'"),
    ("csv", "id,sequence,structure\na,ACGU\n", "line 2: has 2 fields, but there are 3 columns"),
    ("tsv", "id\tsequence\tstructure\na\t\t\n", "line 2, record a: has no sequence"),
]


@pytest.mark.parametrize(("format", "text", "words"), FAULTS, ids=[f"{n} {fault[0]}" for n, fault in enumerate(FAULTS)])
def test_faults(tmp_path, format, text, words):
    path = tmp_path / f"x.{format}"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(words)) as error:
        list(read_structures(path))
    assert str(error.value).startswith(str(path))
    assert len(str(error.value).splitlines()) == 1


def test_records_before_a_fault_are_given(tmp_path):
    path = tmp_path / "x.dbn"
    path.write_text(">a\nACGU\n(..)\n>b\nACGU\n(..\n")
    found = read_structures(path)
    assert next(found).name == "a"
    with pytest.raises(InputError, match="record b"):
        next(found)


@pytest.mark.parametrize("format", FORMATS[:-1])
@pytest.mark.parametrize("text", ["", "\n\n"])
def test_nothing(tmp_path, format, text):
    path = tmp_path / f"x.{format}"
    path.write_text(text)
    with pytest.raises(
        InputError, match=r"is empty; the first line|contains no structure; it must contain at least one"
    ):
        list(read_structures(path))


def test_a_table_without_rows(tmp_path):
    (tmp_path / "x.csv").write_text("id,sequence,structure\n")
    pq.write_table(pa.table({"id": [], "sequence": [], "structure": []}), tmp_path / "x.parquet")
    for name in ("x.csv", "x.parquet"):
        with pytest.raises(InputError, match="contains no structure"):
            list(read_structures(tmp_path / name))


def test_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "sequence": ["ACGU", "AC"], "structure": ["....", "(."]}), path)
    with pytest.raises(InputError, match=r"record b \(row 2\), position 1: '\(' is never closed"):
        list(read_structures(path))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        list(read_structures(path))
    with pytest.raises(InputError, match=r"none.parquet does not exist"):
        list(read_structures(tmp_path / "none.parquet"))


@pytest.mark.parametrize("name", ["x.txt", "structures", "x.gz", "x.fasta"])
def test_unknown_endings(name):
    with pytest.raises(InputError, match=f"{name}: unknown extension for structures; use one of dbn, ct, bpseq, st"):
        format_of(name)


def test_unknown_formats():
    with pytest.raises(InputError, match="unknown structure format 'pdb'"):
        format_of("x.ct", "pdb")
    with pytest.raises(InputError, match=r"x\.stk: Stockholm can only be read, not written; use one of dbn, ct"):
        format_of("x.stk")
    with pytest.raises(InputError, match=r"use the extension \.parquet"):
        format_of("x.parquet.gz")


@pytest.mark.parametrize("format", ["dbn", "ct", "bpseq", "st", "csv"])
def test_a_name_cannot_break_the_line(tmp_path, format):
    """Escape codes and Unicode's line ends come back as part of a name, and are escaped in an error."""
    name, path = "a\x1b[31m\u2028b", tmp_path / f"x.{format}"
    structure = Structure.from_dot_bracket(name, "GAAAC", "(...)")
    write_structures(path, [structure])
    assert list(read_structures(path)) == [structure]
    text = path.read_text(encoding="utf-8").replace("GAAAC", "GA-AC").replace("2 A", "2 -")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="'-' is not a letter") as error:
        list(read_structures(path))
    assert r"record a\x1b[31m\u2028b, position" in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        list(read_structures(tmp_path / "none.ct"))
    (tmp_path / "x.bpseq").write_bytes(b"1 A 0\n2 \0 0\n")
    with pytest.raises(InputError, match="line 2: has a NUL byte"):
        list(read_structures(tmp_path / "x.bpseq"))
    (tmp_path / "x.dbn.gz").write_bytes(b"\x1f\x8b\x08\0\0")
    with pytest.raises(InputError, match="cannot be read to its end"):
        list(read_structures(tmp_path / "x.dbn.gz"))


@pytest.mark.parametrize("format", [*FORMATS[:-1], "sto"])
@settings(max_examples=60, deadline=None)
@given(text=st.text("ACGU().[]>#\n\r\t ,0123456789Name:\"'é", max_size=80))
def test_only_our_errors(tmp_path_factory, format, text):
    """Whatever the text, it is structures or one of our errors in one line."""
    path = tmp_path_factory.mktemp("any") / f"x.{format}"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        list(read_structures(path))
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017  # both outcomes are right

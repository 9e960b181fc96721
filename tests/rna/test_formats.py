"""Files of structures: what is read, what is written, and that nothing is lost between."""

import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rinalmo.errors import InputError
from rinalmo.io.files import read_lines
from rinalmo.rna.formats import FORMATS, format_of, loops, read_rows, read_structures, structure_text, write_structures
from rinalmo.rna.structure import Structure

ENDINGS = [
    *FORMATS,
    *(f"{text}.{packed}" for text in FORMATS if text != "parquet" for packed in ("gz", "zst", "bz2", "xz")),
]
HAIRPIN = Structure.from_dot_bracket("hairpin", "GGGAaaTCCC", "(((....)))")
OTHER = Structure.from_dot_bracket("other one", "acgu", "....")


def read(path: Path, text: str, **options: str) -> list[Structure]:
    path.write_text(text, encoding="utf-8")
    return list(read_structures(path, **options))


@st.composite
def structures(draw):
    length = draw(st.integers(1, 30))
    sequence = draw(st.text("ACGUTNacgutnRYX", min_size=length, max_size=length))
    positions = draw(st.permutations(range(length)))[: 2 * draw(st.integers(0, min(length // 2, 9)))]
    pairs = tuple(tuple(sorted(positions[n : n + 2])) for n in range(0, len(positions), 2))
    name = draw(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=12))
    return Structure(name.strip(), sequence, pairs)


@pytest.mark.parametrize("ending", ENDINGS)
def test_known_structures_come_back(known, tmp_path, ending):
    path, given_ones = tmp_path / f"known.{ending}", list(known.values())
    write_structures(path, iter(given_ones))
    assert list(read_structures(path)) == given_ones
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    first = path.read_bytes()
    write_structures(path, given_ones)
    assert path.read_bytes() == first


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=25, deadline=None)
@given(st.lists(structures(), min_size=1, max_size=4))
def test_any_structures_come_back(tmp_path_factory, format, given_ones):
    path = tmp_path_factory.mktemp("any") / "file"
    write_structures(path, given_ones, format)
    assert list(read_structures(path, format)) == given_ones


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(">hairpin\nGGGAaaTCCC\n(((....)))\n>other one\nacgu\n....\n", id="plain"),
        pytest.param(
            ">hairpin\r\nGGGAaaTCCC\r\n(((....)))\r\n\r\n> other one\r\nacgu\r\n....", id="CRLF, blanks, no end"
        ),
        pytest.param("\ufeff>hairpin\nGGGAaaTCCC\n(((....))) ( -3.40)\n>other one\nacgu\n.... (0.00)\n", id="energies"),
        pytest.param(">hairpin\nGGGAa\naTCCC\n(((..\n..)))\n>other one\nacgu\n....\n", id="wrapped"),
        pytest.param(
            "# made by hand\n#Name: hairpin\n#Length: 10\nGGGAaaTCCC\n<<<-__->>>\n#Name:other one\nacgu\n::::\n",
            id="bpRNA",
        ),
    ],
)
def test_dbn_as_others_write_it(tmp_path, text):
    assert read(tmp_path / "x.dbn", text) == [HAIRPIN, OTHER]


@pytest.mark.parametrize("size", range(1, 20))
def test_blocks_may_end_anywhere(tmp_path, monkeypatch, size):
    """Also between the CR and the LF of a line end."""
    monkeypatch.setattr("rinalmo.io.files._BLOCK", size)
    path = tmp_path / "x.dbn"
    path.write_bytes(b">hairpin\r\nGGGAaaTCCC\r\n\r\n(((....)))\r\n>other one\racgu\r\r....\r")
    assert list(read_structures(path)) == [HAIRPIN, OTHER]
    assert list(read_lines(path)) == [
        ">hairpin\r\n", "GGGAaaTCCC\r\n", "\r\n", "(((....)))\r\n", ">other one\r", "acgu\r", "\r", "....\r"
    ]  # fmt: skip


def test_dbn_without_headers(tmp_path):
    found = read(tmp_path / "x.db", "GGGAaaTCCC\n(((....))) (-1.2)\n\nacgu\n....\n")
    assert [structure.name for structure in found] == ["", ""]
    assert [structure.dot_bracket for structure in found] == ["(((....)))", "...."]


CT_ROWS = "".join(
    f"{i:5d} {letter} {i - 1:7d} {i + 1:4d} {partner:4d} {i:4d}\n"
    for i, (letter, partner) in enumerate(zip("GGGAaaTCCC", [10, 9, 8, 0, 0, 0, 0, 3, 2, 1], strict=True), start=1)
)
OTHER_ROWS = "1\ta\t0\t2\t0\t1\n2\tc\t1\t3\t0\t2\n3\tg\t2\t4\t0\t3\n4\tu\t3\t0\t0\t4\n"


@pytest.mark.parametrize(
    "title",
    [
        "10 hairpin",
        "   10   hairpin",
        "10\tdG = -3.4\thairpin",
        "   10 ENERGY =    -3.4    hairpin",
        "10 dG = -3.40 kcal/mol hairpin",
        "# from a database\n\n10 Energy = -3.4 hairpin",
    ],
)
def test_ct_titles(tmp_path, title):
    assert read(tmp_path / "x.ct", f"{title}\n{CT_ROWS}4\tother one\n{OTHER_ROWS}\n") == [HAIRPIN, OTHER]


def test_ct_without_a_name(tmp_path):
    assert read(tmp_path / "x.ct", "4\n" + OTHER_ROWS)[0].name == ""


def test_written_ct_ends_with_nothing_after_the_last():
    text = "".join(structure_text([OTHER, HAIRPIN], "ct")).splitlines()
    assert text[0] == "4 other one"
    assert text[4] == "4 u 3 0 0 4"
    assert text[5] == "10 hairpin"
    assert text[6] == "1 G 0 2 10 1"
    assert text[-1] == "10 C 9 0 1 10"


def test_bpseq_as_others_write_it(tmp_path):
    rows = "".join(f"{row.split()[0]} {row.split()[1]} {row.split()[4]}\n" for row in CT_ROWS.splitlines())
    for head in ("# hairpin\n", "# file 3\n# Name: hairpin\n", "hairpin\nOrganism: none\n", "\n#hairpin\n"):
        assert read(tmp_path / "x.bpseq", head + rows + "#other one\n1 a 0\n2 c 0\n3 g 0\n4 u 0\n") == [HAIRPIN, OTHER]
    assert "".join(structure_text([HAIRPIN], "bpseq")) == "#Name: hairpin\n" + rows


ST = """\
#Name: hairpin
#Length:  10
#PageNumber: 1
GGGAaaTCCC
(((....)))
SSSHHHHSSS
NNNNNNNNNN
S1 1..3 "GGG" 8..10 "CCC"
H1 4..7 "AaaT" (3,8) G:C
#Name: other one
#Length:  4
#PageNumber: 1
acgu
....
EEEE
NNNN
segment1 1bp 1..3 GGG
"""


def test_st_as_bprna_writes_it(tmp_path):
    assert read(tmp_path / "x.st", ST) == [HAIRPIN, OTHER]
    written = [line for line in ST.splitlines() if '"' not in line and "segment" not in line]
    assert "".join(structure_text([HAIRPIN, OTHER], "st")).split() == " ".join(written).split()


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("..((...))..((...))..", "EESSHHHSSXXSSHHHSSEE"),
        ("((..((...)).))", "SSIISSHHHSSISS"),
        ("((..((...))))", "SSBBSSHHHSSSS"),
        ("((((...)).))", "SSSSHHHSSBSS"),
        ("(.((...)).((...))..)", "SMSSHHHSSMSSHHHSSMMS"),
        ("(((...)(...)))", "SSSHHHSSHHHSSS"),
        ("....", "EEEE"),
        ("()", "SS"),
    ],
)
def test_kinds_of_loops(text, kinds):
    assert loops(Structure.from_dot_bracket("", "N" * len(text), text)) == kinds


def test_loops_of_trna_and_of_a_pseudoknot(known):
    trna = loops(known["yeast tRNA-Phe"])
    assert trna == "SSSSSSSMMSSSSHHHHHHHHSSSSMSSSSSHHHHHHHSSSSSMMMMMSSSSSHHHHHHHSSSSSSSSSSSSEEEE"
    knot = "".join(structure_text([known["BWYV pseudoknot"]], "st")).splitlines()
    assert knot[2] == "#PageNumber: 2"
    assert knot[5] == "EESSSSSHHHHHHSSSSSEEEEEEEEEE"
    assert knot[6] == "NNNNNNNNNKKKNNNNNNNNNNNNNKKK"


def test_tables_have_columns_in_any_order_and_more(tmp_path):
    text = 'structure,family,sequence,id\n(((....))),"a, b",GGGAaaTCCC,hairpin\n....,c,acgu,other one\n'
    assert read(tmp_path / "x.csv", text) == [HAIRPIN, OTHER]
    assert [row["family"] for _, row in read_rows(tmp_path / "x.csv")] == ["a, b", "c"]
    assert read(tmp_path / "x.tsv", "sequence\tstructure\nGGGAaaTCCC\t(((....)))\n")[0].name == ""


def test_another_column_of_a_table(tmp_path):
    text = "id,sequence,structure,nested\nx,GGGAAACCCGG,(((.[.)))].,(((...))).. \n"
    assert read(tmp_path / "x.csv", text)[0].pairs == ((0, 8), (1, 7), (2, 6), (4, 9))
    assert read(tmp_path / "x.csv", text, column="nested")[0].pairs == ((0, 8), (1, 7), (2, 6))


def test_parquet_of_others(tmp_path):
    columns = {
        "sequence": ["acgu", "GGGAaaTCCC"],
        "structure": ["....", "(((....)))"],
        "id": [None, "hairpin"],
        "n": [1, 2],
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    found = list(read_rows(tmp_path / "x.parquet"))
    assert [structure.name for structure, _ in found] == ["", "hairpin"]
    assert found[1] == (HAIRPIN, {"sequence": "GGGAaaTCCC", "structure": "(((....)))", "id": "hairpin", "n": "2"})


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.dbn", "dbn"),
        ("A.DOT", "dbn"),
        ("a.vienna.gz", "dbn"),
        ("a.b.ct.zst", "ct"),
        ("TR0.csv.gz", "csv"),
        ("x.st", "st"),
    ],
)
def test_formats_by_ending(name, format):
    assert format_of(name) == format
    assert format_of("anything", format) == format


def test_compression_is_told_by_content(tmp_path):
    path = tmp_path / "x.dbn"
    path.write_bytes(gzip.compress(b">hairpin\nGGGAaaTCCC\n(((....)))\n"))
    assert list(read_structures(path)) == [HAIRPIN]


def test_standard_input(monkeypatch):
    class Input:
        buffer = io.BufferedReader(io.BytesIO(b">hairpin\nGGGAaaTCCC\n(((....)))\n"))

    monkeypatch.setattr("sys.stdin", Input)
    assert list(read_structures("-", "dbn")) == [HAIRPIN]


def test_writing_streams_and_leaves_the_old_file_on_failure(tmp_path):
    path = tmp_path / "x.dbn"
    write_structures(path, [OTHER])

    def failing():
        yield HAIRPIN
        raise InputError("the source breaks off")

    for format in FORMATS:
        with pytest.raises(InputError, match="breaks off"):
            write_structures(path, failing(), format)
        assert list(read_structures(path)) == [OTHER]
        assert [file.name for file in tmp_path.iterdir()] == ["x.dbn"]


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="no such folder; create it first"):
        write_structures(tmp_path / "none" / "x.ct", [OTHER])
    (tmp_path / "folder.ct").mkdir()
    with pytest.raises(InputError, match="is a folder; give a file name"):
        write_structures(tmp_path / "folder.ct", [OTHER])


RNAFOLD = """>a
GGGGAAAACCCC
((((....)))) ( -5.40)
{(((,...)))} [ -5.60]
((((....)))) { -5.40 d=0.30}
((((....)))) { -5.40 MEA=11.70}
 frequency of mfe structure in ensemble 0.7; ensemble diversity 0.6
"""
ROWS = [f"{n} {letter} {n - 1} {(n + 1) % 13} %s {n}" for n, letter in enumerate("GGGGAAAACCCC", start=1)]
FOLDED = "\n".join(row % (13 - n if n < 5 or n > 8 else 0) for n, row in enumerate(ROWS, start=1))
OPEN = "\n".join(row % 0 for row in ROWS)
BEST, SECOND, NONE = "((((....))))", ".(((....))).", "............"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("RNAfold-p.fold", RNAFOLD + RNAFOLD.replace(">a", ">b"), [("a", BEST), ("b", BEST)]),
        ("RNAfold.db", f"GGGGAAAACCCC\n{BEST}\n minimum free energy =  -5.40 kcal/mol\n", [("", BEST)]),
        ("RNAeval.db", f">a\nGGGGAAAACCCC\n{BEST}\n energy =  -5.40 kcal/mol\n", [("a", BEST)]),
        (
            "RNAsubopt.db",
            f">a [100]\nGGGGAAAACCCC  -5.40   1.00\n{BEST}  -5.40\n{SECOND}  -4.50\n"
            f">b [100]\nGGGGAAAACCCC -540 100\n{BEST} -5.4\n",
            [("a", BEST), ("a", SECOND), ("b", BEST)],
        ),
        ("RNAsubopt-p.db", f">a\nGGGGAAAACCCC\n{BEST}\n{SECOND}\n", [("a", BEST), ("a", SECOND)]),
        (
            "RNAstructure.dot",
            f">ENERGY = -5.4  a\nGGGGAAAACCCC\n{BEST}\n>ENERGY = -4.4  a\n{SECOND}\n",
            [("a", BEST), ("a", SECOND)],
        ),
        (
            "RNAstructure-side.dot",
            f">a\nGGGGAAAACCCC\n{BEST}\tENERGY = -5.4  a\n{SECOND}\tENERGY = -4.4  a\n",
            [("a", BEST), ("a", SECOND)],
        ),
        (
            "RNAstructure.ct",
            f"12  ENERGY = -5.4  a\n{FOLDED}\n12  ENERGY = -1  a\n{OPEN}\n",
            [("a", BEST), ("a", NONE)],
        ),
        (
            "UNAFold.ct",
            f"12\tdG = -5.4\ta\n{FOLDED}\n12\tdG = 0\ta\n{OPEN}\n".replace(" ", "\t"),
            [("a", BEST), ("a", NONE)],
        ),
    ],
)
def test_what_other_programs_print(tmp_path, name, text, expected):
    found = read(tmp_path / name, text)
    assert [(structure.name, structure.dot_bracket) for structure in found] == expected
    assert {structure.sequence for structure in found} == {"GGGGAAAACCCC"}


def test_stockholm(tmp_path):
    """Gaps take their pairs with them; an alignment may be wrapped, and a file holds several."""
    first = """# STOCKHOLM 1.0
#=GF ID   example
#=GS a/1-12 AC X

a/1-12           GGGG-AA
b/1-9            GGG.-AA
#=GR a/1-12 SS   ((((...
#=GC SS_cons     <<<<-__
a/1-12           AACCCC
b/1-9            A.CCC-
#=GC SS_cons     __>>>>
#=GC RF          AACCCC
//
"""
    second = "# STOCKHOLM 1.0\nknot GGAACCAAUU\n#=GC SS_cons ((AA))..aa\n//\n"
    own = "# STOCKHOLM 1.0\nalone GAAAC-\n#=GR alone SS (...).\n//\n"
    assert [(s.name, s.sequence, s.dot_bracket) for s in read(tmp_path / "x.sto", first + second + own)] == [
        ("a/1-12", "GGGGAAAACCCC", "((((....))))"),
        ("b/1-9", "GGGAAACCC", ".((....))"),
        ("knot", "GGAACCAAUU", "(([[))..]]"),
        ("alone", "GAAAC", "(...)"),
    ]

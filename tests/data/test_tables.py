"""Tables of facts, filters and rules."""

import gzip

import pytest

from rinalmo.data.sources import (
    FilterRecipe,
    MetadataTable,
    SourceRecipe,
    TableRecipe,
    facts_of,
    reason_to_drop,
    refused,
)
from rinalmo.errors import InputError
from rinalmo.rna.headers import Header

CSV = 'id,source,sid,kind\na,rfam,"RF00001|X, 1",rRNA\nb,nrc,none,tRNA\n'
RECIPE = TableRecipe.model_validate(
    {"source": "source", "type": "kind", "family": {"column": "sid", "pattern": r"^(RF\d{5})"}}
)


@pytest.fixture(params=["csv", "csv.gz", "tsv"])
def table(request, tmp_path):
    path = tmp_path / f"facts.{request.param}"
    text = CSV if "csv" in request.param else CSV.replace('"RF00001|X, 1"', "RF00001|X").replace(",", "\t")
    path.write_bytes(gzip.compress(text.encode()) if request.param.endswith("gz") else text.encode())
    return MetadataTable(path, RECIPE, ["sid"])


def test_columns_and_patterns(table):
    facts = table.facts("a")
    assert (facts["source"], facts["type"], facts["family"]) == ("rfam", "rRNA", "RF00001")
    assert facts["sid"].startswith("RF00001|X")
    assert table.facts("b")["family"] == ""
    assert table.facts("c") is None


def test_a_table_replaces_what_the_header_says(table):
    header = Header("a", "tRNA", "RF00005", "Homo sapiens")
    assert facts_of(header, table, "label", "a") == table.facts("a") | {"taxon": "Homo sapiens"}
    assert facts_of(header, None, "label", "a")["source"] == "label"
    assert facts_of(header, table, "label", "zzz") == {}
    assert refused({}, SourceRecipe()) == "not in the table"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, None),
        ({"drop": {"type": ["rRNA"]}}, "type is rRNA"),
        ({"drop": {"type": ["tRNA"]}}, None),
        ({"keep": {"type": ["tRNA", "tmRNA"]}}, "type is rRNA"),
        ({"keep": {"type": ["rRNA"]}, "drop": {"taxon": [""]}}, "taxon is unknown"),
        ({"drop": {"column": ["x"]}}, "column is x"),
    ],
)
def test_rules(rules, expected):
    facts = {"type": "rRNA", "family": "", "taxon": "", "source": "s", "column": "x"}
    assert refused(facts, SourceRecipe.model_validate(rules)) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"id,kind,source\n", "no column 'sid'"),
        (b"name,sort,origin\n", "no column 'id'; there are 'name', 'sort', 'origin'"),
        (b"id,sid,kinds,source\n", "no column 'kind'; did you mean 'kinds'"),
        (b"id,sid,kind,source\na,b,c\n", "line 2: has 3 fields, but there are 4 columns"),
        (b"id,sid,kind,source\na,b,c,d\na,b,c,d\n", "the id 'a' occurs twice"),
        (b"id,sid,kind,source\na,\x00,c,d\n", "NUL"),
        (b"id,sid,kind,source\na,\xff,c,d\n", "line 2: is not UTF-8 text"),
    ],
)
def test_faulty_tables(tmp_path, content, words):
    (tmp_path / "facts.csv").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        MetadataTable(tmp_path / "facts.csv", RECIPE)
    assert "facts.csv" in str(caught.value)


def test_a_table_cut_off_is_refused(tmp_path):
    packed = gzip.compress(("id,source,sid,kind\n" + "".join(f"{i},a,b,c\n" for i in range(3000))).encode())
    (tmp_path / "facts.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match="cannot be read to its end"):
        MetadataTable(tmp_path / "facts.csv.gz", RECIPE)


def test_a_missing_table(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        MetadataTable(tmp_path / "none.csv", RECIPE)


@pytest.mark.parametrize(
    ("letters", "reason"),
    [
        (b"ACGU" * 4, None),
        (b"ACGU" * 2048, None),
        (b"ACGURYSWKMBDHVNXI", None),
        (b"ACGU" * 3 + b"ACG", "shorter than 16 nt"),
        (b"ACGU" * 2048 + b"A", "longer than 8192 nt"),
        (b"ACGU" * 4 + b"-", "characters other than IUPAC codes"),
        (b"MKVLELKFMKVLELKF", "characters other than IUPAC codes"),
        (b"ACGU" * 4 + b"T", "characters other than IUPAC codes"),
        (b"NX" * 5 + b"ACG" * 3, "more than 40% N or X"),
        (b"NX" * 3 + b"ACG" * 4, None),
    ],
)
def test_filters(letters, reason):
    assert reason_to_drop(letters, FilterRecipe(max_unknown=0.4)) == reason


def test_unknown_letters_are_no_reason_by_default():
    assert reason_to_drop(b"N" * 20, FilterRecipe()) is None

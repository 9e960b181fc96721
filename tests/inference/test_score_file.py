"""Files of variants in, files of scores out: every row in its place, and interrupted runs that end the same."""

import csv

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rinalmo
from rinalmo.engine.engine import Engine
from rinalmo.engine.jobs import Job
from rinalmo.errors import InputError, SequenceError
from rinalmo.inference import variants
from rinalmo.inference.variants import all_single, from_fasta, from_table, score_file
from rinalmo.io.sequences import Record

ONE = [Record("one", "", "GCGGAUUUAGC")]
TWO = [*ONE, Record("two", "", "ACNGU")]


@pytest.fixture(scope="module")
def engine(nano):
    return Engine(nano, "fp32", threads=1)


def written(folder, text, name="in.csv"):
    (folder / name).write_text(text)
    return folder / name


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def test_a_table_is_passed_on_with_its_scores(engine, tmp_path):
    table = written(tmp_path, 'fitness,mutant,note\n0.5,G1A,"a, b"\n0.1,"C2U,t8A",\n0.5,G1A,again\n1,WT,\n')
    assert score_file(from_table(ONE, table), tmp_path / "out.tsv", engine) == 4
    found = rows(tmp_path / "out.tsv")
    assert list(found[0]) == ["fitness", "mutant", "note", "score"]
    assert [row["note"] for row in found] == ["a, b", "", "again", ""]
    expected = rinalmo.score(ONE[0], ["G1A", "C2U:U8A", "G1A", "WT"], engine)
    np.testing.assert_allclose([float(row["score"]) for row in found], expected, atol=1e-5)
    assert found[3]["score"] == "0.000000"


def test_a_table_for_several_wild_types(engine, tmp_path):
    table = written(tmp_path, "record,mutant\ntwo,U5A\none,G1A\ntwo,A1C\n")
    score_file(from_table(TWO, table), tmp_path / "out.csv", engine)
    found = [float(row["score"]) for row in rows(tmp_path / "out.csv")]
    expected = [rinalmo.score(*of, engine)[0] for of in ((TWO[1], "U5A"), (TWO[0], "G1A"), (TWO[1], "A1C"))]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_shards_together_are_the_whole(engine, tmp_path):
    score_file(all_single(TWO), tmp_path / "whole.csv", engine)
    shards = []
    for i in (1, 2, 3):
        score_file(all_single(TWO), tmp_path / f"{i}.csv", engine, shard=f"{i}/3")
        shards.append(rows(tmp_path / f"{i}.csv"))
    whole = {row["mutant"] + row["record"]: float(row["score"]) for row in rows(tmp_path / "whole.csv")}
    assert len(whole) == 45
    assert [len(shard) for shard in shards] == [15, 15, 15]
    assert {row["mutant"] + row["record"]: float(row["score"]) for shard in shards for row in shard} == pytest.approx(
        whole, abs=1e-5
    )


def test_shards_that_cannot_be(engine, tmp_path):
    with pytest.raises(InputError, match="--shard 12/12 is empty"):
        score_file(all_single(ONE), tmp_path / "out.csv", engine, shard="12/12")
    with pytest.raises(InputError, match="the shard number must be between 1 and 2"):
        score_file(all_single(ONE), tmp_path / "out.csv", engine, shard="3/2")
    with pytest.raises(InputError, match="leave out --shard or --plot"):
        score_file(all_single(ONE), tmp_path / "out.csv", engine, shard="1/2", plot=tmp_path / "map.svg")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mutant\nG1A\nA2G\n", r"in\.csv, line 3, position 2: the sequence has C here, not A \(A2G\)"),
        ("mutant\nG99A\n", r"in\.csv, line 2, position 99: .*11 nt"),
        ("mutant\n\n\n", "has no rows with a variant; there is nothing to score"),
        ("", "is empty"),
        ("mutants\nG1A\n", "no column 'mutant'; did you mean 'mutants'"),
        ("mutant,x,x\nG1A,1,1\n", "two columns named 'x'"),
        ("mutant,x\nG1A,1\nG1C\n", "line 3: has 1 fields, but there are 2 columns"),
        ("mutant,x\n,1\n", "has no rows with a variant"),
        ("record,mutant\nthree,G1A\n", "line 2: there is no wild type 'three'; there are one"),
    ],
)
def test_faulty_tables(engine, tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        score_file(from_table(ONE, written(tmp_path, text)), tmp_path / "out.csv", engine)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_which_wild_type(engine, tmp_path):
    with pytest.raises(InputError, match="no column 'record'"):
        list(from_table(TWO, written(tmp_path, "mutant\nG1A\n")).read())
    with pytest.raises(InputError, match="two wild types are called 'one'"):
        from_table([*ONE, *ONE], written(tmp_path, "record,mutant\none,G1A\n"))


def test_whole_sequences_against_one_or_each_against_its_own(engine, tmp_path):
    fasta = written(tmp_path, ">a\nGCGGATTTAGC\n>b\nACGGAUUUAGU\n", "v.fa")
    score_file(from_fasta(ONE, fasta), tmp_path / "out.csv", engine)
    found = rows(tmp_path / "out.csv")
    assert [(row["record"], row["variant"], row["mutant"]) for row in found] == [
        ("one", "a", "WT"),
        ("one", "b", "G1A:C11U"),
    ]
    assert found[0]["score"] == "0.000000"
    pairs = written(tmp_path, ">a\nGCGGAUUUAGG\n>b\nACNG\n", "p.fa")
    score_file(from_fasta(TWO, pairs), tmp_path / "pairs.csv", engine, method="pll")
    found = rows(tmp_path / "pairs.csv")
    assert [(row["record"], row["mutant"]) for row in found] == [("one", "C11G"), ("two", "")]
    expected = rinalmo.score(TWO[1], "ACNG", engine, method="pll")[0]
    assert float(found[1]["score"]) == pytest.approx(expected, abs=2e-6)


def test_faulty_pairs(engine, tmp_path):
    short = written(tmp_path, ">a\nGCGGAUUUAGC\n>b\nGC\n", "v.fa")
    with pytest.raises(SequenceError, match=r"v\.fa, record b: has 2 nt, but the wild type has 11"):
        score_file(from_fasta(ONE, short), tmp_path / "out.csv", engine)
    with pytest.raises(InputError, match=r"more variants than wild types \(2\)"):
        from_fasta(TWO, written(tmp_path, ">a\nGCGGAUUUAGC\n>b\nACNGU\n>c\nA\n", "v.fa")).checked("pll")
    with pytest.raises(InputError, match=r"more wild types than variants \(1\)"):
        from_fasta(TWO, written(tmp_path, ">a\nGCGGAUUUAGC\n", "v.fa")).checked("pll")
    with pytest.raises(SequenceError, match=r"v\.fa, record a, position 2: has N where"):
        from_fasta(ONE, written(tmp_path, ">a\nGNGGAUUUAGC\n", "v.fa")).checked("pll")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_every_single_exchange(engine, tmp_path, ending):
    source = all_single(TWO)
    output = tmp_path / f"out.{ending}"
    assert score_file(source, output, engine) == 3 * (11 + 4)
    assert source.left_out == 1
    if ending == "parquet":
        pq = pytest.importorskip("pyarrow.parquet")
        table = pq.read_table(output)
        assert [str(field.type) for field in table.schema] == [
            "string",
            "string",
            "int64",
            "string",
            "string",
            "double",
        ]
        found = table.to_pylist()
    else:
        found = rows(output)
    assert list(found[0]) == ["record", "mutant", "position", "wild_type", "letter", "score"]
    last = found[-1]
    assert (last["record"], last["mutant"], int(last["position"]), last["wild_type"], last["letter"]) == (
        "two",
        "U5G",
        5,
        "U",
        "G",
    )
    assert float(last["score"]) == pytest.approx(rinalmo.score(TWO[1], "U5G", engine)[0], abs=1e-5)


def test_nothing_to_exchange(engine, tmp_path):
    with pytest.raises(InputError, match="record n: has no A, C, G or U"):
        score_file(all_single([Record("n", "", "NNN")]), tmp_path / "out.csv", engine)
    with pytest.raises(InputError, match=r"cannot write '\.txt'; use \.csv, \.tsv, \.parquet"):
        score_file(all_single(ONE), tmp_path / "out.txt", engine)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("method", ["masked-marginals", "pll"])
def test_an_interrupted_run_ends_the_same(engine, tmp_path, method, monkeypatch):
    monkeypatch.setattr(variants, "BLOCK_VARIANTS", 6)
    source, output, whole = all_single(ONE), tmp_path / "out.csv", tmp_path / "whole.csv"
    done = []
    score_file(source, whole, engine, method=method, progress=done.append)
    assert done == sorted(done)
    assert (done[-1], len({*done}) > 10) == (33, True)

    def stop(count):
        if count > 16:
            raise StoppedError

    with pytest.raises(StoppedError):
        score_file(source, output, engine, method=method, progress=stop)
    assert not output.exists()
    assert 0 < Job(output).saved_count() < 33
    if method == "pll":
        with pytest.raises(InputError, match="cannot be resumed: method changed"):
            score_file(source, output, engine, resume=True)
    saved, resumed = Job(output).saved_count(), []
    assert score_file(source, output, engine, method=method, resume=True, progress=resumed.append) == 33
    assert saved <= resumed[0] <= resumed[-1] == 33
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "whole.csv"]


SCORE_SET = """# Accession: urn:mavedb:00000001-a-1
# Licence: CC BY-NC-SA 4.0 (Attribution, NonCommercial)
accession,hgvs_nt,hgvs_pro,score
urn:1,n.2A>G,NA,0.5
urn:2,n.[2A>G;4U>C],NA,-1.25
urn:3,_wt,NA,1
urn:4,NA,p.Gly1Ala,0.1
urn:5,n.=,NA,1
"""


def test_a_score_set_of_mavedb(engine, tmp_path, capsys):
    """Its score stays, ours is `rinalmo_score`; rows without a variant of nucleotides are counted."""
    (tmp_path / "set.csv").write_text(SCORE_SET)
    wild_type = Record("w", "", "GACUACGU")
    notes = []
    source = from_table([wild_type], tmp_path / "set.csv")
    assert score_file(source, tmp_path / "out.csv", engine, note=notes.append) == 4
    assert notes == [f"{tmp_path}/set.csv: skipped 1 row without a variant in 'hgvs_nt'"]
    lines = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert lines[0] == ["accession", "hgvs_nt", "hgvs_pro", "score", "rinalmo_score"]
    assert [line[:4] for line in lines[1:]] == [
        line.split(",") for line in SCORE_SET.splitlines()[3:] if ":4" not in line
    ]
    expected = rinalmo.score(wild_type, ["A2G", "A2G:U4C", "WT", "WT"], engine)
    assert [float(line[-1]) for line in lines[1:]] == pytest.approx(expected.tolist(), abs=1e-5)
    score_file(source, tmp_path / "out.parquet", engine, note=notes.append)
    assert pq.read_table(tmp_path / "out.parquet")["rinalmo_score"].to_pylist() == pytest.approx(
        expected.tolist(), abs=1e-5
    )


@pytest.mark.parametrize(
    ("text", "sequence"),
    [
        ("n.2A>G", "GGCUACGU"),
        ("c.2a>u", "GUCUACGU"),
        ("ref:n.[2A>G;4T>C]", "GGCCACGU"),
        ("n.2del", "GCUACGU"),
        ("n.2_4delACU", "GACGU"),
        ("n.2_3insTT", "GAUUCUACGU"),
        ("n.2_3delinsG", "GGUACGU"),
        ("n.2delAinsGG", "GGGCUACGU"),
        ("n.2_3dup", "GACACUACGU"),
        ("n.=", "GACUACGU"),
        ("_wt", "GACUACGU"),
        ("A2G:U4C", "GGCCACGU"),
    ],
)
def test_notations(text, sequence):
    assert variants.read_variant("GACUACGU", text).sequence == sequence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n.2C>G", r"the sequence has A here, not C \(2C>G\)"),
        ("n.9A>G", "9A>G is outside of the sequence, which has 8 nt"),
        ("c.12+3A>G", "is not a change of this sequence"),
        ("c.-5A>G", "is not a change of this sequence"),
        ("n.[2A>G;1_3del]", "two changes in .* overlap"),
        ("n.1_8del", "deletes the whole sequence"),
        ("n.2_5insA", "is not a complete insertion"),
        ("p.Ala1Gly", "is not a substitution"),
    ],
)
def test_notations_that_are_refused(text, words):
    with pytest.raises(SequenceError, match=words):
        variants.read_variant("GACUACGU", text)


def test_variants_as_data_frames_hold_them(engine):
    names = ["G1A", "n.2A>G", "WT"]
    frame = pandas.DataFrame({"mutant": names, "y": [1, 2, 3]})
    expected = rinalmo.score("GACUACGU", names, engine)
    for given in (frame, frame["mutant"], frame.to_dict("records"), pa.array(names), pa.table({"hgvs_nt": names})):
        assert rinalmo.score("GACUACGU", given, engine).tolist() == expected.tolist()

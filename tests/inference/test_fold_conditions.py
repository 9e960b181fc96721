"""Folding with constraints, reactivities and a largest span; the numbers of a prediction in every format."""

import json
import re
from contextlib import nullcontext

import numpy as np
import pytest

import rinalmo
from rinalmo.engine import jobs
from rinalmo.engine.engine import Engine
from rinalmo.errors import InputError, SequenceError
from rinalmo.inference.fold import Decoding, fold_file
from rinalmo.io.tables import open_table
from rinalmo.rna.constraints import Conditions, Constraint
from rinalmo.rna.formats import read_structures
from rinalmo.rna.thermodynamics import ensemble, free_energy

pytest.importorskip("RNA")
TRNA = "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"
HAIRPIN = "GGGGGAAAACCCCC"
UNPAIRED = "x" * 10 + "." * 66
WEIGHTS = (None, 0.0, 0.3, 1.0)


@pytest.fixture(scope="module")
def engine():
    return Engine("nano-fold", "fp32", threads=1)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("window", [None, 40])
def test_constraints_hold_whatever_the_weight(engine, weight, window):
    text = "." * 6 + "(" + "." * 5 + "|" + "." * 3 + "<" + "x" * 8 + "." * 38 + ")" + "." * 12
    decoding = Decoding(thermodynamics=weight, max_span=70)
    with pytest.warns(UserWarning, match="in windows of 40") if window else nullcontext():
        (structure,) = rinalmo.fold(TRNA, engine, decoding, constraints=text, window=window)
    partners = structure.partners()
    assert partners[6] == 63
    assert partners[12] >= 0
    assert partners[16] > 16
    assert max(partners[17:25]) < 0
    assert structure.pairing_probabilities[6] == 1
    assert structure.pairing_probabilities[17:25].max() == 0
    (free,) = rinalmo.fold(TRNA, engine, Decoding(thermodynamics=weight))
    assert free.partners()[6] != 63


def test_with_all_the_weight_it_is_viennas(engine):
    values = [0.1 + (n % 5) / 4 for n in range(len(TRNA))]
    decoding = Decoding("nested", thermodynamics=1.0, shape_method="Dm2b-.5")
    for constraint, reactivities in ((UNPAIRED, None), (None, values), (UNPAIRED, values)):
        known = {"constraints": constraint, "reactivities": reactivities}
        (structure,) = rinalmo.fold(TRNA, engine, decoding, **known)
        conditions = Conditions(
            constraint and Constraint(constraint), reactivities and tuple(reactivities), decoding.shape_method
        )
        expected = ensemble(TRNA, conditions)
        np.testing.assert_allclose(structure.pairing_probabilities, expected.matrix().sum(1), atol=1e-5)
        assert (structure.mfe_structure, structure.mfe) == (expected.mfe_structure, expected.mfe)
        assert structure.ensemble_energy == expected.energy
        assert structure.energy == free_energy(TRNA, structure.dot_bracket, conditions) >= structure.mfe - 0.01


def test_reactivities_change_the_default(engine):
    loop = [0.05] * 5 + [1.5] * 4 + [0.05] * 5
    unfolded = [2.0] * 14
    found = [rinalmo.fold(HAIRPIN, engine, reactivities=values)[0] for values in (loop, None, unfolded)]
    paired = [structure.pairing_probabilities.sum() for structure in found]
    assert paired[0] >= paired[1] > paired[2]
    with pytest.raises(InputError, match="reactivities need ViennaRNA"):
        rinalmo.fold(HAIRPIN, engine, Decoding(thermodynamics=0.0), reactivities=loop)


def test_a_span(engine):
    (structure,) = rinalmo.fold(TRNA, engine, Decoding(max_span=40))
    assert 0 < max(j - i + 1 for i, j in structure.pairs) <= 40
    assert 0.5 < structure.confidence < 1


def test_values_in_python(engine):
    by_name = {"b": "xx............"}
    rows = [{"id": "a", "sequence": HAIRPIN}, {"id": "b", "sequence": HAIRPIN}]
    with pytest.warns(UserWarning, match="the input: no constraint for 1 of 2 sequences"):
        a, b = rinalmo.fold(rows, engine, constraints=by_name)
    assert (a.dot_bracket, b.dot_bracket) == ("(((((....)))))", "..(((....)))..")
    with pytest.warns(UserWarning, match="1 of 2 sequences"):
        assert rinalmo.fold(rows, engine, constraints=[None, by_name["b"]]) == [a, b]
    for wrong, message in (
        ([by_name["b"]], "give one per sequence"),
        ({"c": "."}, "the input: has no constraint for any of the sequences"),
        (["...", None], "record a: the constraint has 3 characters"),
    ):
        with pytest.raises(InputError, match=message):
            rinalmo.fold(rows, engine, constraints=wrong)
    with pytest.raises(SequenceError, match="record 1: has 2 reactivities for 14 nt"):
        rinalmo.fold(HAIRPIN, engine, reactivities=[1, None])


@pytest.fixture
def files(tmp_path):
    names = [f"r{n}" for n in range(6)]
    (tmp_path / "in.fa").write_text("".join(f">{name}\n{HAIRPIN}AA{HAIRPIN}\n" for name in names))
    text = ["." * 30, "xxxxx" + "." * 25, "." * 16 + "x" * 14, "(" + "." * 28 + ")", "|" * 5 + "." * 25, "." * 29 + ">"]
    (tmp_path / "c.txt").write_text("".join(f">{name}\n{c}\n" for name, c in zip(names, text, strict=True)))
    both = zip(names, text, strict=True)
    (tmp_path / "both.fa").write_text("".join(f">{name}\n{HAIRPIN}AA{HAIRPIN}\n{c}\n" for name, c in both))
    values = {name: " ".join(["0.1"] * 5 + ["NA"] * 20 + [str(n)] * 5) for n, name in enumerate(names)}
    (tmp_path / "s.csv").write_text("id,reactivity\n" + "".join(f"{name},{v}\n" for name, v in values.items()))
    for name, text in values.items():
        lines = (f"{n} {value}\n" for n, value in enumerate(text.split(), 1) if value != "NA")
        (tmp_path / f"{name}.shape").write_text("".join(lines))
    return tmp_path


def test_files_stdout_shards_and_interrupted_runs(engine, files, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "CHUNK_RECORDS", 2)
    known = {"constraints": files / "c.txt", "reactivities": files / "s.csv"}
    fold_file(files / "in.fa", files / "whole.csv", engine, **known)
    whole = (files / "whole.csv").read_text()
    structures = list(read_structures(files / "whole.csv"))
    assert structures[1].dot_bracket[:5] == "....."
    assert structures[3].partners()[0] == 29

    fold_file(files / "both.fa", files / "out.csv", engine, constraints=True, reactivities=files / "{name}.shape")
    assert (files / "out.csv").read_text() == whole

    fold_file(files / "in.fa", "-", engine, **known)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[2::3]] == [structure.dot_bracket for structure in structures]
    assert all(re.fullmatch(r"[().]{30} \( *-?\d+\.\d\d\)", line) for line in printed[2::3])

    fold_file(files / "in.fa", files / "part.csv", engine, **known, shard="2/3", note=pytest.fail)
    assert (files / "part.csv").read_text().splitlines()[1:] == whole.splitlines()[2::3]

    class StoppedError(Exception):
        pass

    def stop(done):
        if done == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        fold_file(files / "in.fa", files / "again.csv", engine, **known, progress=stop)
    with pytest.raises(InputError, match="cannot be resumed: constraints changed"):
        fold_file(files / "in.fa", files / "again.csv", engine, reactivities=files / "s.csv", resume=True)
    fold_file(files / "in.fa", files / "again.csv", engine, **known, resume=True)
    assert (files / "again.csv").read_text() == whole


def test_names_that_are_not_there(engine, files):
    (files / "few.txt").write_text(f">r1\n{'x' * 30}\n>other\n...\n")
    notes = []
    fold_file(files / "in.fa", files / "out.dbn", engine, constraints=files / "few.txt", note=notes.append)
    assert [note.replace(str(files), "") for note in notes] == [
        "/few.txt: no constraint for 5 of 6 sequences",
        "/few.txt: 1 names match no sequence, such as other",
    ]
    (files / "few.txt").write_text(f">r1\n{'x' * 29}(\n")
    with pytest.raises(SequenceError, match=r"few.txt, record r1, position 30: '\(' is never closed"):
        fold_file(files / "in.fa", files / "out.dbn", engine, constraints=files / "few.txt")
    with pytest.raises(InputError, match="no reactivities for any of the sequences"):
        fold_file(files / "in.fa", files / "out.dbn", engine, reactivities=files / "{name}.missing")


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_hold_the_numbers_of_the_prediction(engine, files, ending):
    fold_file(files / "in.fa", files / f"out.{ending}", engine)
    (files / "one.fa").write_text(f">one\n{HAIRPIN}AA{HAIRPIN}\n>none\nAAAAA\n")
    fold_file(files / "one.fa", files / f"one.{ending}", engine, Decoding(thermodynamics=0.0))
    (structure,) = rinalmo.fold(f"{HAIRPIN}AA{HAIRPIN}", engine)
    _, row = next(iter(open_table(files / f"out.{ending}").rows))
    for name in ("confidence", "energy", "mfe", "ensemble_energy"):
        assert float(row[name]) == pytest.approx(getattr(structure, name), abs=0.006)
    assert row["mfe_structure"] == structure.mfe_structure
    text = row["pairing_probabilities"]
    values = json.loads(text) if isinstance(text, str) else text
    np.testing.assert_allclose(values, structure.pairing_probabilities, atol=6e-5)
    rows = [row for _, row in open_table(files / f"one.{ending}").rows]
    assert float(rows[0]["energy"]) == pytest.approx(structure.energy, abs=0.006)
    assert [row["mfe"] in (None, "") for row in rows] == [True, True]
    assert rows[1]["confidence"] in (None, "")
    assert next(read_structures(files / f"out.{ending}")).dot_bracket == structure.dot_bracket

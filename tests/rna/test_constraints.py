"""Constraints and reactivities: files, refusals, and what ViennaRNA makes of them."""

import random

import numpy as np
import pytest

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.sequences import read_fasta, read_sequences
from rinalmo.io.tables import write_rows
from rinalmo.rna.constraints import Conditions, Constraint, read_constraints, read_reactivities, shape_parameters
from rinalmo.rna.decoding import METHODS, decode
from rinalmo.rna.structure import PairList, Structure
from rinalmo.rna.thermodynamics import ensemble, free_energy

SEQUENCE = "GGGGGAAAACCCCC"
FREE_RULES = {"canonical": True, "min_distance": 4, "max_span": None, "crossing": False}


def reversed_letters(text):
    return text[::-1].translate(str.maketrans("()<>", ")(><"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("....Q.........", "position 5: 'Q' is not a constraint"),
        ("(.............", r"position 1: '\(' is never closed"),
        ("...", "has 3 characters, but the sequence has 14"),
        ("(...)...........", "16 characters"),
        ("(...).........", r"position 1: G and G \(position 5\) are not a canonical pair"),
        ("....(....)....", None),
        ("....|xxxxxxxxx", r"position 5: G must be paired \('\|'\)"),
        (">.............", r"position 1: G must be paired \('>'\)"),
        (".....|........", r"position 6: A must be paired"),
        ("(.[.......).].", "position 3: is in a pseudoknot"),
        ("(........).<..", "position 12"),
    ],
)
def test_refusals(text, message):
    def check():
        Constraint(text).check(SEQUENCE, **FREE_RULES)

    if message is None:
        check()
        return
    with pytest.raises(SequenceError, match=message):
        check()


@pytest.mark.parametrize("rule", [{"max_span": 13}, {"min_distance": 14}])
def test_a_given_pair_that_a_rule_forbids(rule):
    with pytest.raises(SequenceError, match=r"position 1: is paired with 14, which (spans 14|encloses 12) nt"):
        Constraint("(............)").check(SEQUENCE, **{**FREE_RULES, **rule})
    Constraint("(............)").check(SEQUENCE, **{**FREE_RULES, "max_span": 14})


def possible(sequence, length):
    """A random constraint: some unpaired nucleotides, some given pairs and some that want a partner, from a fold."""
    chooser = random.Random(sequence)
    half = np.triu(np.random.default_rng(length).random((length, length)), 1)
    structure = Structure("", sequence, decode(half + half.T, sequence, "nested", threshold=0.3))
    text = ["."] * length
    for i, j in structure.pairs:
        kind = chooser.choice(["()", "<>", "||", "..", "..", "(."])
        text[i], text[j] = ("(", ")") if kind[0] == "(" else tuple(kind)
    for place in set(range(length)).difference(*structure.pairs):
        text[place] = chooser.choice("xx..")
    return Constraint("".join(text)), half + half.T


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threshold", [0.5, None])
@pytest.mark.parametrize("as_list", [False, True])
def test_decoded_structures_agree_with_their_constraint(method, threshold, as_list):
    for seed in range(12):
        sequence = "".join(random.Random(seed).choices("ACGU", k=20 + 5 * seed))
        constraint, probabilities = possible(sequence, len(sequence))
        if as_list:
            i, j = np.nonzero(np.triu(probabilities > 0.4))
            probabilities = PairList(len(sequence), i, j, probabilities[i, j])
        pairs = decode(probabilities, sequence, method, threshold=threshold, constraint=constraint)
        assert set(constraint.pairs) <= set(pairs)
        opening, closing = {i for i, _ in pairs}, {j for _, j in pairs}
        for place, character in enumerate(constraint.text):
            paired = place in opening | closing
            assert {"x": not paired, "|": paired, "<": place in opening, ">": place in closing}.get(character, True)
        if method == "nested":
            assert Structure("", sequence, pairs).nested().pairs == tuple(pairs)


def test_a_constraint_that_cannot_be_met_as_a_whole():
    """Each A finds a U, but there is only one."""
    constraint = Constraint("||........")
    for method in METHODS:
        with pytest.raises(SequenceError, match="cannot be paired together"):
            decode(np.zeros((10, 10)), "AACCCCCCCU", method, constraint=constraint)


def test_spans():
    probabilities = np.full((14, 14), 0.9)
    assert max(j - i + 1 for i, j in decode(probabilities, SEQUENCE, "nested", max_span=12)) == 12
    allowed = Conditions(max_span=12).allowed(14)
    assert allowed[0, 11]
    assert not allowed[0, 12]


def test_parts_of_a_constraint():
    constraint = Constraint("((x|.)<.>)")
    assert constraint.part(0, 10).text == "((x..)...)"
    assert constraint.part(1, 8).text == "(x..)..x"[:7]
    assert constraint.part(2, 10).text == "x..x...x"


# Files


def test_constraints_after_each_sequence(tmp_path):
    path = tmp_path / "in.fa"
    path.write_bytes(b">a one\r\nGGGG\r\nGAAAACCCCC\r\n(x..\r\n.........)\r\n>b\nGAAAC\n>c\nACXGU\nxxxxx\n")
    found = [(r.id, r.sequence, r.constraint) for r in read_fasta(path, constraints=True)]
    assert found == [("a", SEQUENCE, "(x...........)"), ("b", "GAAAC", None), ("c", "ACXGU", "xxxxx")]
    with pytest.raises(SequenceError, match=r"in.fa, record a, position 15: '\(' .* --constraint"):
        list(read_fasta(path))
    path.write_text(">a\nGGGGG\nAAAACCCCC\n>....\n>........\n>b\nGAAAC\n....\n>\n>c\nACGU\n")
    found = [(r.id, r.constraint) for r in read_fasta(path, constraints=True)]
    assert found == [("a", ">....>........"), ("b", "....>"), ("c", None)]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_with_constraints(tmp_path, ending):
    rows = [
        {"id": "a", "sequence": SEQUENCE, "constraint": "x" * 14},
        {"id": "b", "sequence": "ACGU", "constraint": ""},
    ]
    write_rows(tmp_path / f"in.{ending}", rows)
    assert [r.constraint for r in read_sequences(tmp_path / f"in.{ending}", constraints=True)] == ["x" * 14, None]
    assert read_constraints(tmp_path / f"in.{ending}").of("a", SEQUENCE, alone=False) == "x" * 14
    write_rows(tmp_path / f"no.{ending}", [{"id": "a", "sequence": SEQUENCE}])
    with pytest.raises(InputError, match="has no column 'constraint'"):
        list(read_sequences(tmp_path / f"no.{ending}", constraints=True))


def test_files_of_constraints(tmp_path):
    path = tmp_path / "constraints.txt"
    path.write_text(">a\nggggg AAAA\n(.....)\n".replace(" ", "") + ">b\n|..\n<>.\n")
    found = read_constraints(path)
    assert found.of("b", "ACGUAC", alone=False) == "|..<>."
    assert found.of("other", "ACGU", alone=True) is None
    assert found.unused() == ["a"]
    with pytest.raises(SequenceError, match=r"constraints.txt, line 1, record a: its sequence differs"):
        found.of("a", SEQUENCE, alone=False)
    path.write_text(">a\nACGU\n>...\n")
    assert read_constraints(path).of("a", "ACGU", alone=False) == ">..."
    path.write_text("xxxx\n")
    assert read_constraints(path).of("any", "ACGU", alone=True) == "xxxx"
    with pytest.raises(SequenceError, match="has no name"):
        read_constraints(path).of("any", "ACGU", alone=False)
    for text, message in (
        ("", "contains no constraints"),
        (">a\nACGU\n", "record a: has no constraint"),
        ("12\n", "line 1"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_constraints(path)


VALUES = (0.5, None, -0.1, 2.0, None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.shape", "1 0.5\n2 -999\n3 -0.1\n4 2\n"),  # RNAstructure
        ("x.shape", "# comment\n1\tG\t0.5\n2 C\n3 A -0.1\n4 u 2.0\n5 A NA\n"),  # ViennaRNA
        ("x.map", "1 0.5 0.1 G\n2 -999 0 C\n3 -0.1 0.1 A\n4 2.0 0.2 T\n5 nan 0 A\n"),
        ("x.txt", ">r second word\n1 0.5\n3 -0.1\n4 2.0\n>other\n1 1\n"),
        ("x.csv", 'id,reactivity\nr,"[0.5, NaN, -0.1, 2.0, null]"\n'),
        ("x.tsv", "id\treactivity\nr\t0.5 NA -0.1 2.0 -999\nother\t1\n"),
        ("x.csv", 'id,reactivity,sequence\nr,"0.5,NA,-0.1,2.0,-999",GCAUA\n'),
        ("x.csv", "id,position,nucleotide,reactivity\nr,1,G,0.5\nr,3,A,-0.1\nr,4,U,2.0\nr,2,C,\n"),
        ("x.jsonl", '{"id": "r", "reactivity": [0.5, null, -0.1, 2.0, NaN]}\n'),
    ],
)
def test_files_of_reactivities(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    alone = ">" not in text and "id" not in text
    assert read_reactivities(tmp_path / name).of("r", "GCAUA", alone=alone) == VALUES


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.shape", "1 0.5\n6 0.5\n", r"x.shape, record r, position 6: is not in the sequence, which has 5 nt"),
        ("x.shape", "1 0.5\n1 0.6\n", "position 1: has two reactivities"),
        ("x.shape", "1 C 0.5\n", "position 1: is C in the file but G in the sequence"),
        ("x.shape", "1 0.5\none 0.6\n", "line 2: 'one 0.6' is not a position and a reactivity"),
        ("x.shape", "1 inf\n", "line 1: '1 inf' is not"),
        ("x.shape", "", "contains no reactivities"),
        ("x.csv", "id,reactivity\nr,1 2 3\n", "record r: has 3 reactivities for 5 nt"),
        ("x.csv", "id,reactivity\nr,high\n", "line 2, record r: its reactivities are not numbers"),
        ("x.csv", "id,reactivity\nr,1 2 3\nr,1 2 3\n", "this name occurs twice"),
        ("x.csv", "id,values\nr,1 2 3\n", "has no column 'reactivity'"),
    ],
)
def test_reactivities_that_cannot_be_used(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_reactivities(tmp_path / name).of("r", "GCAUA", alone=True)


def test_methods():
    assert shape_parameters("Zarringhalam") == ("Z", {"b": 0.89})
    assert shape_parameters("Dm2b-.4") == ("D", {"m": 2.0, "b": -0.4})
    for method in ("E", "Dm", "Zm1", "", "D1.8"):
        with pytest.raises(InputError, match="unknown SHAPE method"):
            shape_parameters(method)


# ViennaRNA, by its own interface

TRNA = "GCGGAUUUAGCUCAGUUGGGAGAGCGCCAGACUGAAGAUCUGGAGGUCCUGUGUUCGAUCCACAGAAUUCGCACCA"
REACTIVITIES = tuple(None if n % 7 == 3 else round(1.5 * random.Random(n).random() - 0.1, 3) for n in range(len(TRNA)))


def same_as(compound, conditions):
    structure, mfe = compound.mfe()
    compound.exp_params_rescale(mfe)
    _, energy = compound.pf()
    found = ensemble(TRNA, conditions)
    assert (found.mfe_structure, found.mfe, found.energy) == (structure, mfe, energy)
    np.testing.assert_allclose(np.triu(found.matrix()), np.array(compound.bpp())[1:, 1:], atol=1e-4)
    assert free_energy(TRNA, structure, conditions) == pytest.approx(mfe, abs=0.011)
    return structure


@pytest.mark.parametrize(
    "text", ["x" * 8 + "." * 68, "(" + "." * 70 + ")....", "." * 20 + "|" * 5 + "." * 51, "<<<" + "." * 73]
)
def test_constraints_are_viennas(text):
    vienna = pytest.importorskip("RNA")
    compound = vienna.fold_compound(TRNA)
    compound.hc_add_from_db(text, vienna.CONSTRAINT_DB_DEFAULT | vienna.CONSTRAINT_DB_ENFORCE_BP)
    free = vienna.fold(TRNA)[0]
    assert same_as(compound, Conditions(Constraint(text))) != free or text[0] in "(<"


def test_spans_are_viennas():
    vienna = pytest.importorskip("RNA")
    for span in (20, 24):
        details = vienna.md()
        details.max_bp_span = span
        structure = same_as(vienna.fold_compound(TRNA, details), Conditions(max_span=span))
        assert max(j - i + 1 for i, j in Structure.from_dot_bracket("", TRNA, structure).pairs) <= span


@pytest.mark.parametrize("method", ["deigan", "Dm2.6b-0.8", "zarringhalam", "Zb0.5"])
def test_pseudo_energies_are_viennas(method):
    vienna = pytest.importorskip("RNA")
    compound = vienna.fold_compound(TRNA)
    values = [-999.0] + [-999.0 if value is None else value for value in REACTIVITIES]
    letter, parameters = shape_parameters(method)
    if letter == "D":
        compound.sc_add_SHAPE_deigan(values, parameters["m"], parameters["b"])
    else:
        compound.sc_add_SHAPE_zarringhalam(values, parameters["b"], 0.5, "O")
    same_as(compound, Conditions(reactivities=REACTIVITIES, shape_method=method))
    assert ensemble(TRNA, Conditions(reactivities=REACTIVITIES, shape_method=method)).mfe != ensemble(TRNA).mfe


def test_energies_without_a_model():
    pytest.importorskip("RNA")
    assert free_energy("GGGGGAAAACCCCC", "((((([[.])))))"[:14]) is not None
    assert free_energy("GGCC", "(..)") is None
    with pytest.raises(SequenceError, match="no structure without pseudoknots satisfies"):
        ensemble("GGGGGGAAAAAAAA", Conditions(Constraint("|.............")))

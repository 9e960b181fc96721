"""Structures, dot-bracket text and matrices."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rinalmo.errors import SequenceError
from rinalmo.rna.structure import CLOSING, OPENING, Structure, pairs_of


def dot_bracket_of(pairs, length):
    return Structure("", "A" * length, tuple(pairs)).dot_bracket


def crosses(one, other):
    (i, j), (k, m) = sorted([one, other])
    return i < k < j < m


def is_nested(pairs):
    return not any(crosses(*two) for two in combinations(pairs, 2))


def largest_nested_size(pairs):
    sizes = range(len(pairs), -1, -1)
    return next(size for size in sizes if any(is_nested(chosen) for chosen in combinations(pairs, size)))


@st.composite
def pair_sets(draw, most_pairs=8):
    """Any pairs without shared positions, crossing as they like."""
    count = draw(st.integers(0, most_pairs))
    length = 2 * count + draw(st.integers(1, 5))
    positions = draw(st.permutations(range(length)))[: 2 * count]
    return length, tuple(sorted(tuple(sorted(positions[n : n + 2])) for n in range(0, 2 * count, 2)))


def test_trna_is_a_cloverleaf(known):
    trna = known["yeast tRNA-Phe"]
    assert len(trna) == 76
    assert len(trna.pairs) == 7 + 4 + 5 + 5
    assert trna.pairs[:2] == ((0, 71), (1, 70))
    # Of its 21 pairs only G4-U69 wobbles: the others are Watson and Crick's.
    letters = [trna.sequence[i] + trna.sequence[j] for i, j in trna.pairs]
    assert [pair for pair in letters if pair not in ("AU", "UA", "GC", "CG")] == ["GU"]


def test_known_structures_come_back_as_text(known):
    for structure in known.values():
        assert pairs_of(structure.dot_bracket) == structure.pairs
    assert known["BWYV pseudoknot"].dot_bracket == "..(((((..[[[.))))).......]]]"


def test_a_pseudoknot_loses_its_smaller_stem(known):
    knot = known["BWYV pseudoknot"]
    assert knot.nested().dot_bracket == "..(((((......)))))".ljust(28, ".")
    assert known["HIV-1 TAR"].nested() == known["HIV-1 TAR"]


def test_round_brackets_take_the_larger_stem_wherever_it_is():
    assert dot_bracket_of(pairs_of("((..[[[..))..]]]"), 16) == "[[..(((..]]..)))"
    assert dot_bracket_of(pairs_of("[[..((..]]..))"), 14) == "((..[[..))..]]"  # equal ones: the one that closes first


def test_every_kind_of_bracket():
    length = 2 * len(OPENING)
    pairs = tuple((i, i + len(OPENING)) for i in range(len(OPENING)))  # each crosses all others
    text = dot_bracket_of(pairs, length)
    assert text == OPENING + CLOSING
    assert pairs_of(text) == pairs
    more = tuple((i, i + 31) for i in range(31))
    with pytest.raises(SequenceError, match="more than 30 types of brackets; write CT or BPSEQ"):
        dot_bracket_of(more, 62)
    with pytest.raises(SequenceError, match="5,001 pairs cross others"):
        dot_bracket_of([(i, i + 5001) for i in range(5001)], 10002)


def test_other_signs_of_being_unpaired():
    assert pairs_of("<<:.-_,~>>") == ((0, 9), (1, 8))


@settings(max_examples=60, deadline=None)
@given(pair_sets())
def test_text_keeps_all_pairs_and_nests_the_most(given_pairs):
    length, pairs = given_pairs
    text = dot_bracket_of(pairs, length)
    assert pairs_of(text) == pairs
    assert dot_bracket_of(pairs_of(text), length) == text
    nested = Structure("x", "N" * length, pairs).nested().pairs
    assert is_nested(nested)
    assert len(nested) == largest_nested_size(pairs)


@settings(max_examples=60, deadline=None)
@given(pair_sets(most_pairs=20))
def test_matrix_there_and_back(given_pairs):
    length, pairs = given_pairs
    structure = Structure("x", "N" * length, pairs)
    matrix = structure.matrix()
    assert matrix.sum() == 2 * len(pairs)
    assert not matrix.diagonal().any()
    assert Structure.from_matrix("x", "N" * length, matrix) == structure
    partners = structure.partners()
    assert all(partners[j] == i and partners[i] == j for i, j in pairs)
    assert partners.count(-1) == length - 2 * len(pairs)


def test_pairs_are_sorted_and_plain():
    given_pairs = np.array([[3, 9], [0, 12]])
    structure = Structure("x", "N" * 13, given_pairs)
    assert structure.pairs == ((0, 12), (3, 9))
    assert all(type(end) is int for pair in structure.pairs for end in pair)
    assert structure == Structure("x", "N" * 13, ((0, 12), (3, 9)))


def test_canonical_pairs_in_either_case_and_alphabet():
    for sequence in ("GAGGAAAUCUCG", "gaggaaauctcg", "GAGGAAATCTcG"):
        pairs = ((0, 11), (1, 10), (2, 9), (3, 8), (4, 7))
        kept = Structure("x", sequence, pairs).canonical()
        # G-G and A-C go, G-U, G-C and A-U stay
        assert kept.pairs == ((2, 9), (3, 8), (4, 7))
        assert kept.sequence == sequence
    assert Structure("x", "NNNN", ((0, 3),)).canonical().pairs == ()


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("((.)", 1, "'\\(' is never closed; add its bracket"),
        ("(.))", 4, "'\\)' closes nothing; add its '\\('"),
        ("([)}", 4, "'}' closes nothing; add its '{'"),
        ("aA", 1, "'a' closes nothing"),
        ("(.*)", 3, "'\\*' is not dot-bracket"),
        ("(.é)", 3, "'é' is not dot-bracket"),
    ],
)
def test_text_that_is_wrong(text, position, words):
    with pytest.raises(SequenceError, match=f"position {position}: {words}") as error:
        pairs_of(text)
    assert error.value.position == position


@pytest.mark.parametrize(
    ("sequence", "pairs", "words"),
    [
        ("ACGU", ((0, 4),), "position 1: has the partner 5, but the sequence has 4 nt"),
        ("ACGU", ((-1, 2),), "position 3: has the partner 0"),
        ("ACGU", ((2, 2),), "position 3: is paired with itself"),
        ("ACGU", ((3, 1),), "position 4: write pairs with i < j"),
        ("ACGU", ((0, 3), (2, 3)), "position 4: has two partners; keep one"),
        ("AC-U", (), "position 3: '-' is not a letter; remove gaps"),
        ("AC٣U", (), "is not a letter"),
        ("", (), "has no sequence"),
    ],
)
def test_structures_that_cannot_be(sequence, pairs, words):
    with pytest.raises(SequenceError, match=words) as error:
        Structure("hairpin", sequence, pairs)
    assert "record hairpin" in str(error.value)


def test_lengths_names_and_matrices_that_do_not_fit():
    with pytest.raises(SequenceError, match="the structure has 3 characters, the sequence 4"):
        Structure.from_dot_bracket("x", "ACGU", "...")
    for name in ("two\nlines", " blank before", "blank after ", "nul\0"):
        with pytest.raises(SequenceError, match="must be one line without leading or trailing spaces"):
            Structure(name, "ACGU")
    one_sided = np.zeros((4, 4))
    one_sided[0, 3] = 1
    for matrix in (one_sided, np.zeros((3, 3))):
        with pytest.raises(SequenceError, match="must be symmetric and fit 4 nt"):
            Structure.from_matrix("x", "ACGU", matrix)
    with pytest.raises(SequenceError, match="is paired with itself"):
        Structure.from_matrix("x", "ACGU", np.eye(4))

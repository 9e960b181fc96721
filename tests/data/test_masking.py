"""Masking: the shares over a million tokens, what is never touched, and that neighbours do not matter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rinalmo.data import sampling
from rinalmo.data.sampling import Masking, mask
from rinalmo.rna.alphabet import OFFICIAL_TOKENS, Alphabet

ALPHABET = Alphabet()
A_TO_U = np.array(ALPHABET.nucleotide_ids)


def packed(sequences, alphabet=ALPHABET, seed=0):
    ids, lengths = alphabet.encode_batch(sequences)
    return ids, lengths, sampling.random_key(seed, np.arange(len(lengths)))


@pytest.fixture(scope="module")
def million():
    """A million tokens: sequences of 16 to 1022 nt, with their special tokens and 1 % of IUPAC codes."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(18, 1025, 2000)
    ids = rng.choice(A_TO_U, lengths.sum())
    ids[rng.random(len(ids)) < 0.01] = ALPHABET.index["N"]
    ends = np.cumsum(lengths)
    ids[ends - lengths], ids[ends - 1] = ALPHABET.cls_id, ALPHABET.eos_id
    return ids, lengths, mask(ids, lengths, sampling.random_key(5, np.arange(2000)), ALPHABET)


def test_shares_over_a_million_tokens(million):
    ids, _, masked = million
    assert len(ids) > 1_000_000
    shown = masked.ids[masked.positions]
    assert len(masked.positions) / np.isin(ids, A_TO_U).sum() == pytest.approx(0.15, abs=0.001)
    assert (shown == ALPHABET.mask_id).mean() == pytest.approx(0.80, abs=0.005)
    assert (shown == masked.targets).mean() == pytest.approx(0.10, abs=0.005)
    other = (shown != masked.targets) & (shown != ALPHABET.mask_id)
    assert other.mean() == pytest.approx(0.10, abs=0.005)


def test_every_other_nucleotide_is_as_likely(million):
    _, _, masked = million
    shown = masked.ids[masked.positions]
    for nucleotide in A_TO_U:
        replaced = shown[(masked.targets == nucleotide) & (shown != nucleotide) & (shown != ALPHABET.mask_id)]
        counts = np.array([(replaced == other).sum() for other in A_TO_U if other != nucleotide])
        assert counts.sum() == len(replaced)
        assert (np.abs(counts - counts.mean()) < 4 * np.sqrt(counts.mean())).all()


def test_special_tokens_and_iupac_codes_are_never_selected(million):
    ids, lengths, masked = million
    assert np.isin(masked.targets, A_TO_U).all()
    rest = np.ones(len(ids), dtype=bool)
    rest[masked.positions] = False
    assert (masked.ids[rest] == ids[rest]).all()
    assert (masked.ids[np.cumsum(lengths) - 1] == ALPHABET.eos_id).all()
    assert (masked.targets == ids[masked.positions]).all()


def test_each_nucleotide_is_selected_as_often_wherever_it_stands():
    """20,000 times the same 30 nt, with 20,000 keys."""
    ids, lengths, keys = packed(["ACGUU" * 6] * 20_000)
    counts = np.bincount(mask(ids, lengths, keys, ALPHABET).positions % 32, minlength=32)
    assert counts[0] == counts[31] == 0
    assert (np.abs(counts[1:31] - 3000) < 4 * np.sqrt(3000 * 0.85)).all()


def test_short_sequences_may_have_nothing_selected():
    ids, lengths, keys = packed(["ACGU" * 4] * 20_000)
    sequences = np.repeat(np.arange(20_000), lengths)[mask(ids, lengths, keys, ALPHABET).positions]
    assert 1 - len(np.unique(sequences)) / 20_000 == pytest.approx(0.85**16, abs=0.006)


def test_only_the_key_counts_not_the_neighbours():
    sequences = ["ACGUACGU" * 5, "GG" * 30, "U" * 17]
    ids, lengths, keys = packed(sequences)
    together = np.split(mask(ids, lengths, keys, ALPHABET).ids, np.cumsum(lengths)[:-1])
    for i in (2, 0, 1):
        alone = ALPHABET.encode(sequences[i])
        assert (mask(alone, np.array([len(alone)]), keys[i : i + 1], ALPHABET).ids == together[i]).all()


def test_the_argument_is_not_changed():
    ids, lengths, keys = packed(["ACGU" * 50])
    before = ids.copy()
    assert (mask(ids, lengths, keys, ALPHABET).ids != before).any()
    assert (ids == before).all()


def test_the_official_vocabulary_with_t():
    official = Alphabet(OFFICIAL_TOKENS)
    ids, lengths, keys = packed(["ACGU" * 200], official)
    masked = mask(ids, lengths, keys, official)
    assert set(masked.targets.tolist()) == {official.index[letter] for letter in "ACGT"}


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 40))
def test_any_shares(selected, masked_share, length):
    options = Masking(selected=selected, masked=masked_share, replaced=1 - masked_share)
    ids, lengths, keys = packed(["ACGU" * length])
    masked = mask(ids, lengths, keys, ALPHABET, options)
    assert (masked.ids[masked.positions] != masked.targets).all()  # none is kept
    if selected == 0:
        assert not len(masked.positions)
    if selected == 1:
        assert len(masked.positions) == 4 * length


def test_nothing_at_all():
    empty = np.empty(0, dtype=np.int64)
    masked = mask(empty, empty, sampling.random_key(0, empty), ALPHABET)
    assert [len(part) for part in masked] == [0, 0, 0]

"""Scores of variants against the same sums written out one by one with the plain model."""

import numpy as np
import pytest
import torch

import rinalmo
from rinalmo.engine.engine import Engine
from rinalmo.errors import CheckpointError, InputError, SequenceError
from rinalmo.inference import variants as variants_module
from rinalmo.inference.fill_mask import NucleotideScorer
from rinalmo.inference.variants import Variant, blocks, compare, parse, saturation, score_variants, single
from rinalmo.model.packing import pack
from rinalmo.model.rinalmo import ModelSpec, create

WILD = "GCGGAUUUAGCUCAGU"
MUTANTS = ["G1A", "A5G:U8C", "C2U,G3A,A9C", "U16G", "G4C:A5U"]


@pytest.fixture(scope="module")
def engine(nano):
    return Engine(nano, "fp32", threads=1)


@torch.inference_mode()
def log_p(model, sequence, masked=()):
    """Log-probabilities of A, C, G, U at every place, from the plain encoder, one sequence at a time."""
    ids = model.alphabet.encode(sequence)
    ids[[place + 1 for place in masked]] = model.alphabet.mask_id
    packed, layout = pack([torch.from_numpy(ids)])
    logits = model.lm_head(model(packed, layout).last_hidden_state)[1:-1]
    chances = torch.exp(logits[:, [model.alphabet.index[letter] for letter in "ACGU"]].double())
    return (chances / chances.sum(dim=1, keepdim=True)).log().numpy()


def ratio(table, changes):
    return sum(table[place]["ACGU".index(new)] - table[place]["ACGU".index(WILD[place])] for place, new in changes)


def pll(model, sequence):
    places = [n for n, letter in enumerate(sequence) if letter in "ACGU"]
    return sum(log_p(model, sequence, [n])[n]["ACGU".index(sequence[n])] for n in places)


def changed(mutant):
    return [(int(part[1:-1]) - 1, part[-1]) for part in mutant.replace(",", ":").split(":")]


def test_masked_marginals_mask_all_changes_at_once(nano, engine):
    expected = [ratio(log_p(nano, WILD, [n for n, _ in changed(m)]), changed(m)) for m in MUTANTS]
    np.testing.assert_allclose(rinalmo.score(WILD, MUTANTS, engine), expected, atol=2e-5)
    apart = rinalmo.score(WILD, MUTANTS[1].split(":"), engine).sum()
    assert abs(apart - expected[1]) > 1e-3


def test_wild_type_marginals(nano, engine):
    table = log_p(nano, WILD)
    expected = [ratio(table, changed(mutant)) for mutant in MUTANTS]
    np.testing.assert_allclose(rinalmo.score(WILD, MUTANTS, engine, method="wild-type-marginals"), expected, atol=1e-5)


@pytest.mark.slow
def test_pseudo_log_likelihood_of_any_length(nano, engine):
    others = ["GCGGAUUUAGCUCAGC", WILD[:7] + WILD[8:], WILD + "AC"]
    expected = [pll(nano, other) - pll(nano, WILD) for other in others]
    np.testing.assert_allclose(rinalmo.score(WILD, others, engine, method="pll"), expected, atol=2e-5)


def test_other_letters_are_seen_but_not_summed(nano, engine):
    wild, other = "GCNGAUR", "GCNGAR"
    model = NucleotideScorer(engine)
    assert model.pseudo_log_likelihood(wild) == pytest.approx(pll(nano, wild), abs=1e-5)
    assert rinalmo.score(wild, other, engine, method="pll")[0] == pytest.approx(
        pll(nano, other) - pll(nano, wild), abs=1e-5
    )


@pytest.mark.parametrize("method", ["masked-marginals", "wild-type-marginals", "pll"])
def test_alone_or_in_company(nano, engine, method, monkeypatch):
    together = rinalmo.score(WILD, MUTANTS, engine, method=method)
    alone = [rinalmo.score(WILD, mutant, engine, method=method)[0] for mutant in MUTANTS[:2]]
    np.testing.assert_allclose(together[:2], alone, atol=1e-5)
    monkeypatch.setattr(variants_module, "BLOCK_VARIANTS", 2)
    small = Engine(nano, "fp32", batch_tokens=40)
    np.testing.assert_allclose(rinalmo.score(WILD, MUTANTS, small, method=method), together, atol=1e-5)


def test_the_same_variant_however_it_is_written(engine):
    same = ["U6A:G10C", "g10c , t6a", "T6A:G10C", WILD[:5] + "a" + WILD[6:9] + "c" + WILD[10:].replace("U", "t")]
    found = rinalmo.score(WILD.lower().replace("u", "t"), [*same, *same], engine)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert found[0] != 0


def test_no_change_is_zero(engine):
    for method in ("masked-marginals", "wild-type-marginals", "pll"):
        np.testing.assert_array_equal(rinalmo.score(WILD, ["WT", "wt", "T6U", WILD], engine, method=method), 0)
    assert rinalmo.score(WILD, [], engine).shape == (0,)


@pytest.mark.parametrize(
    ("mutant", "words"),
    [
        ("A1G", r"variant 1, position 1: the sequence has G here, not A \(A1G\)"),
        ("G17A", r"position 17: .*has 16 nt"),
        ("G0A", "position 0"),
        ("G1A:G1C", "position 1: is changed twice"),
        ("G1N", "position 1: G1N has N"),
        ("G1-", "'G1-' is not a substitution"),
        ("G1A:", "'' is not a substitution"),
        ("M1K:V2L", "position 1: M1K has M"),
        ("MKVLE", "record 1, position 1: 'M'|this looks like a protein"),
        ("GCGGAUUUAGCUCAGN", "position 16: has N where the wild type has U"),
        ("GCGG", r"record 1: has 4 nt, but the wild type has 16; .*use --method pll"),
    ],
)
def test_what_cannot_be_scored_is_named(engine, mutant, words):
    with pytest.raises(SequenceError, match=words):
        rinalmo.score(WILD, [mutant], engine)


def test_wrong_arguments(engine):
    with pytest.raises(InputError, match="method 'mm' is unknown; use one of masked-marginals"):
        rinalmo.score(WILD, ["G1A"], engine, method="mm")
    with pytest.raises(InputError, match="variant 1 is a int"):
        rinalmo.score(WILD, [5], engine)
    with pytest.raises(SequenceError, match="protein"):
        rinalmo.score("MKVLE", ["M1K"], engine)
    with pytest.raises(SequenceError, match="position 3: the sequence has N here, not A"):
        rinalmo.score("GCNG", ["A3G"], engine)
    with pytest.raises(SequenceError, match="characters other than"):
        rinalmo.score("GCNG", ["GCG"], engine, method="pll")
    spec = ModelSpec(rinalmo.ModelConfig(hidden_size=40, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(CheckpointError, match="no lm_head"):
        rinalmo.score(WILD, ["G1A"], create(spec))


def test_saturation(engine):
    found = saturation("GCNAU", engine)
    assert found.shape == (5, 4)
    assert np.isnan(found[2]).all()
    assert found[0, 2] == found[1, 1] == found[3, 0] == found[4, 3] == 0
    assert found[3, 1] == pytest.approx(rinalmo.score("GCNAU", "A4C", engine)[0], abs=1e-5)
    assert [variant.name for variant in single("GN")] == ["G1A", "G1C", "G1U"]


def test_one_pass_for_the_three_exchanges_of_a_place(engine):
    passes = []
    list(score_variants(single(WILD), NucleotideScorer(engine, passes.append), "masked-marginals"))
    assert passes[-1] == len(WILD)
    passes.clear()
    list(score_variants(single(WILD), NucleotideScorer(engine, passes.append), "wild-type-marginals"))
    assert passes == [1]


def test_one_pass_for_a_wild_type_whatever_the_order_of_its_variants(engine):
    passes = []
    others = [
        "ACGU" * 3 + letters for letters in ("AA", "AC", "AG", "AU", "CA", "CC", "CG", "CU", "GA", "GC", "GG", "GU")
    ]
    mixed = [Variant(wild_type, ((0, letter),)) for letter in "CGU" for wild_type in [*others, *others[::-1], WILD[1:]]]
    list(score_variants(mixed, NucleotideScorer(engine, passes.append), "wild-type-marginals"))
    assert passes[-1] == 13


def test_masked_copies_are_made_as_they_are_needed(nano):
    asked = 0

    def questions():
        nonlocal asked
        for place in range(10_000):
            asked += 1
            yield WILD, [place % 16]

    next(NucleotideScorer(Engine(nano, "fp32", batch_tokens=20)).masked(questions()))
    assert asked < 20


def test_blocks_lose_nothing(monkeypatch):
    monkeypatch.setattr(variants_module, "BLOCK_TOKENS", 2 * 16**2)
    changed = [Variant(WILD, ((n, "A"),)) for n in range(5)]
    assert [len(block) for block in blocks(changed, "pll")] == [2, 2, 1]
    assert [len(block) for block in blocks(changed, "masked-marginals")] == [5]
    assert list(blocks([], "pll")) == []


def test_notation_there_and_back():
    variant = Variant(WILD, parse(WILD, "A5G:C2U"))
    assert variant.name == "C2U:A5G"
    assert compare(WILD, variant.sequence) == variant
    assert Variant(WILD).name == "WT"
    assert (compare(WILD, "GC").name, compare(WILD, "GC").sequence) == ("", "GC")

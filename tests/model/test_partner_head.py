"""The partner head: which pairs are candidates, distributions over partners, gradients by hand against autograd's."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck

from rinalmo.model import structure_heads
from rinalmo.model.structure_heads import KINDS, NEIGHBOURS, UNKNOWN, Candidates, PartnerHead


def coded(sequence):
    return torch.tensor(["ACGUN".index(letter) for letter in sequence], dtype=torch.long)


def drawn(length, seed=0):
    return torch.randint(0, 5, (length,), generator=torch.Generator().manual_seed(seed))


def by_hand(sequence):
    """Candidates of a sequence, from the definition."""
    pairs = {
        (i, j)
        for i, j in itertools.combinations(range(len(sequence)), 2)
        if j - i >= 4 and sequence[i] + sequence[j] in KINDS
    }
    return sorted((i, j) for i, j in pairs if (i - 1, j + 1) in pairs or (i + 1, j - 1) in pairs)


@pytest.fixture
def head():
    torch.manual_seed(0)
    return PartnerHead(12, channels=6, num_blocks=2, rank=3)


def test_candidates_are_pairs_that_can_stack():
    sequence = "".join("ACGUN"[k] for k in drawn(60, seed=3).tolist())
    found = Candidates.of(coded(sequence))
    places = list(zip(found.i.tolist(), found.j.tolist(), strict=True))
    assert places == by_hand(sequence)
    assert [KINDS[kind] for kind in found.kind] == [sequence[i] + sequence[j] for i, j in places]
    number = {place: k for k, place in enumerate(places)}
    for (i, j), row in zip(places, found.neighbours.tolist(), strict=True):
        assert row == [number.get((i + a, j + b), len(places)) for a, b in NEIGHBOURS]


def test_opposite_neighbours_stand_beside_each_other():
    assert all(NEIGHBOURS[k ^ 1] == (-a, -b) for k, (a, b) in enumerate(NEIGHBOURS))


@pytest.mark.parametrize("sequence", ["", "A", "GGGG", "AAAAAAAA", "NNNNNNNN", "GGGAAACCC", "GGGAAAACCC" * 3])
def test_rows_are_distributions(head, sequence):
    found = head(torch.randn(len(sequence), 12), coded(sequence)).exp()
    torch.testing.assert_close(found.sum(1), torch.ones(len(sequence)))
    assert [tuple(place) for place in found.triu(1).nonzero().tolist()] == by_hand(sequence)
    assert torch.equal(found > 0, found.T > 0)


def test_gradients_of_what_is_gathered():
    of = Candidates.of(drawn(40))
    x = torch.randn(len(of.i), 2, dtype=torch.float64, requires_grad=True)
    assert len(of.i) > 10
    assert gradcheck(lambda x: structure_heads._GatherNeighbours.apply(x, of.neighbours), x)
    pairs = torch.randn(2, 40, 40, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda pairs: structure_heads._PickPairs.apply(pairs, of.i, of.j), pairs)


def test_in_parts_the_numbers_are_the_same(head, monkeypatch):
    states, sequence = torch.randn(50, 12), drawn(50)
    whole = head(states, sequence)
    monkeypatch.setattr(structure_heads, "_CHUNK", 7)
    monkeypatch.setattr(structure_heads, "_MAP", 6 * 50 * 8)
    torch.testing.assert_close(head(states, sequence), whole)
    with torch.no_grad():
        torch.testing.assert_close(head(states, sequence), whole)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(states, sequence), head(states, sequence.clone()))
        assert head(states, sequence).dtype == torch.float32


def test_far_pairs_share_buckets():
    nucleotides = torch.full((3000,), UNKNOWN)
    nucleotides[:2], nucleotides[4:] = torch.tensor([2, 2]), 1  # G and G with C
    candidates = Candidates.of(nucleotides)
    buckets = candidates.distance[candidates.i == 0]
    assert candidates.j[candidates.i == 0].tolist() == list(range(6, 3000))
    assert buckets[:18].tolist() == list(range(6, 24))
    assert (buckets.diff() >= 0).all()
    assert buckets.max() == structure_heads.DISTANCES - 1

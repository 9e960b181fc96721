"""The combiner: which pairs are candidates, distributions, one RNA alone and among others."""

import pytest
import torch

from rinalmo.model.structure_heads import (
    MIN_DISTANCE,
    MIN_PROBABILITY,
    NEIGHBOURS,
    NUCLEOTIDE_FEATURES,
    PAIR_FEATURES,
    Combiner,
    Evidence,
    PartnerHead,
)

SEQUENCES = ["GGGCAAAAGCCC", "GGGAAACCCGGGAAACCC", "ACGUNACGUUGCAGGCUA" * 3, "GGGGCCCC", "AAAA", ""]


def coded(sequence):
    return torch.tensor(["ACGUN".index(letter) for letter in sequence], dtype=torch.long)


def evidence(sequence, seed=0):
    """What a fresh head says, and made-up thermodynamics."""
    length = len(sequence)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = PartnerHead(12, channels=6, num_blocks=1, rank=3)
        with torch.no_grad():
            said = head(torch.randn(length, 12), coded(sequence))
        thermodynamics = torch.rand(length, length).triu(MIN_DISTANCE) / max(1, length)
    thermodynamics = thermodynamics + thermodynamics.T
    return Evidence.of(said, coded(sequence), thermodynamics, thermodynamics > 0.9 / max(1, length), -1.0, -1.5)


@pytest.fixture
def combiner():
    torch.manual_seed(0)
    combiner = Combiner(8, 2).eval()
    for layer in (combiner.paired, combiner.unpaired):  # zeros in a fresh one
        torch.nn.init.normal_(layer.weight)
    return combiner


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_nucleotides_have_distributions(combiner, sequence):
    of = evidence(sequence)
    with torch.inference_mode():
        first, second, unpaired = combiner(of)
        matrix = combiner.matrix(of)
    total = unpaired.exp().index_add(0, of.i, first.exp()).index_add(0, of.j, second.exp())
    torch.testing.assert_close(total, torch.ones(len(sequence)))
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix[of.i, of.j] > 0, torch.ones(len(of.i), dtype=torch.bool))
    assert int((matrix > 0).sum()) == 2 * len(of.i)
    assert of.pairs.shape == (len(of.i), PAIR_FEATURES)
    assert of.nucleotides.shape == (len(sequence), NUCLEOTIDE_FEATURES)
    assert bool(of.pairs.isfinite().all() & of.nucleotides.isfinite().all())


def test_candidates_are_what_either_source_finds_likely():
    sequence = "GGGCAAAAGCCC"
    certain = torch.full((12, 12), -torch.inf).fill_diagonal_(0.0)
    thermodynamics = torch.zeros(12, 12)
    for i, j, p in ((0, 11, 0.5), (1, 10, MIN_PROBABILITY / 2), (4, 11, 0.5)):  # the last is A with C
        thermodynamics[i, j] = thermodynamics[j, i] = p
    certain[2, 9] = certain[9, 2] = -1.0
    of = Evidence.of(certain, coded(sequence), thermodynamics, thermodynamics > 0.4, -1.0, -1.0)
    assert list(zip(of.i.tolist(), of.j.tolist(), strict=True)) == [(0, 11), (2, 9)]
    reach = NEIGHBOURS.index((2, -2))
    assert of.neighbours[0, reach] == 1
    assert of.neighbours[1, reach ^ 1] == 0
    assert (of.neighbours == 2).sum() == 14


def test_one_rna_alone_and_among_others(combiner):
    each = [evidence(sequence, seed) for seed, sequence in enumerate(SEQUENCES)]
    with torch.inference_mode():
        alone = [combiner(of) for of in each]
        together = combiner(Evidence.concatenate(each))
    for parts, whole in zip(zip(*alone, strict=True), together, strict=True):
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)


def test_a_fresh_one_is_the_mean():
    of = evidence(SEQUENCES[2])
    with torch.inference_mode():
        first, second, unpaired = Combiner(8, 2).eval()(of)
    share = torch.tensor(-0.85).sigmoid()
    pairs = (1 - share) * of.pairs[:, 4] + share * of.pairs[:, 5]
    free = (1 - share) * of.nucleotides[:, 0].exp() + share * of.nucleotides[:, 1].exp()
    total = free.index_add(0, of.i, pairs).index_add(0, of.j, pairs)
    torch.testing.assert_close(first.exp(), pairs / total[of.i])
    torch.testing.assert_close(second.exp(), pairs / total[of.j])
    torch.testing.assert_close(unpaired.exp(), free / total)


def test_gradients_reach_every_parameter(combiner):
    of = Evidence.concatenate([evidence(sequence) for sequence in SEQUENCES[:3]])
    first, second, unpaired = combiner(of)
    (first.sum() + second.sum() + unpaired.sum()).backward()
    assert [name for name, p in combiner.named_parameters() if p.grad is None or not p.grad.any()] == []

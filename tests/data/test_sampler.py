"""The sampler: every cluster once an epoch, members and crops at random, weights in proportion."""

from collections import Counter

import numpy as np
import pytest

from rinalmo.data.sampling import ClusterSampler, Weights
from rinalmo.errors import InputError


def epoch_of(sampler, epoch=0):
    return sampler.items(epoch, 0, len(sampler))


def test_an_epoch_has_every_train_cluster_once(small_store):
    sampler = ClusterSampler(small_store, seed=1)
    assert len(sampler) == 300
    for epoch in range(3):
        assert sorted(item.cluster for item in epoch_of(sampler, epoch)) == list(range(300))


def test_items_are_members_of_their_clusters(small_store):
    for item in epoch_of(ClusterSampler(small_store, seed=1)):
        assert item.sequence in small_store.members(item.cluster)


def test_epochs_and_seeds_differ(small_store):
    orders = {
        tuple(item.cluster for item in epoch_of(ClusterSampler(small_store, seed), epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_an_item_depends_on_its_position_alone(small_store):
    sampler = ClusterSampler(small_store, seed=1)
    items = epoch_of(sampler, 4)
    again = ClusterSampler(small_store, seed=1)
    assert [again.items(4, n, n + 1) for n in (299, 0, 17)] == [items[299:], items[:1], items[17:18]]
    assert again.items(4, 250, 900) == items[250:]


def test_every_member_is_as_likely(make_store):
    store = make_store([b"ACGU" * 5] * 4, [b"GGCC" * 5])
    sampler = ClusterSampler(store, seed=0)
    counts = Counter(item.sequence for epoch in range(2000) for item in epoch_of(sampler, epoch))
    assert counts[4] == 2000
    assert all(abs(counts[i] - 500) < 4 * (500 * 0.75) ** 0.5 for i in range(4))


def test_long_sequences_are_cropped_anywhere_and_short_ones_never(make_store):
    store = make_store([b"ACGUA" * 5], [b"A" * 10], [b"C" * 11])
    sampler = ClusterSampler(store, seed=0, max_length=10)
    items = [item for epoch in range(2000) for item in epoch_of(sampler, epoch)]
    starts = Counter(item.start for item in items if item.sequence == 0)
    assert sorted(starts) == list(range(16))
    assert all(abs(count - 125) < 4 * 125**0.5 for count in starts.values())
    for item in items:
        assert item.length == 10
        assert item.whole == (item.sequence == 1)
        assert item.tokens == 10 + 2 * item.whole
        assert item.start + item.length <= store.lengths[item.sequence]


def test_the_default_crop_is_1022_nt(small_store):
    lengths = [item.length for item in epoch_of(ClusterSampler(small_store, seed=0))]
    assert max(lengths) == 1022


def test_the_validation_split_can_be_sampled_too(small_store):
    items = epoch_of(ClusterSampler(small_store, seed=0, split="validation"))
    assert sorted(item.cluster for item in items) == list(range(300, 340))


def test_equal_weights_are_the_same_as_none(small_store):
    without = ClusterSampler(small_store, seed=2)
    equal = ClusterSampler(small_store, seed=2, weights=Weights(source={"rfam": 1.0}))
    assert epoch_of(equal) == epoch_of(without)


@pytest.mark.parametrize(("exponent", "shares"), [(0, [1, 1, 1]), (1, [1, 3, 16]), (0.5, [1, 3**0.5, 4])])
def test_cluster_exponent(make_store, exponent, shares):
    store = make_store([b"ACGU" * 5], [b"AAGU" * 5] * 3, [b"GGCC" * 5] * 16)
    sampler = ClusterSampler(store, seed=0, weights=Weights(family={"": 2.0}, cluster_exponent=exponent))
    counts = Counter(item.cluster for epoch in range(2000) for item in epoch_of(sampler, epoch))
    expected = np.array(shares) / sum(shares) * 6000
    assert [counts[i] for i in range(3)] == pytest.approx(expected, rel=0.08)


def test_source_and_family_weights_multiply(make_store):
    clusters = [[(b"ACGU" * 5, source, family)] for source in (0, 1) for family in (0, 1)]
    store = make_store(*clusters)
    weights = Weights(source={"rnacentral": 3}, family={"RF00001": 2})
    sampler = ClusterSampler(store, seed=0, weights=weights)
    counts = Counter(item.cluster for epoch in range(3000) for item in epoch_of(sampler, epoch))
    assert [counts[i] for i in range(4)] == pytest.approx([1000, 2000, 3000, 6000], rel=0.08)


def test_a_weight_of_zero_leaves_out(make_store):
    store = make_store([(b"ACGU" * 5, 0, 0), (b"AAAU" * 5, 1, 0)], [(b"CCGU" * 5, 1, 0)])
    sampler = ClusterSampler(store, seed=0, weights=Weights(source={"rnacentral": 0}))
    assert {item.sequence for epoch in range(200) for item in epoch_of(sampler, epoch)} == {0}


def test_a_cluster_comes_as_often_as_it_weighs_give_or_take_one(small_store):
    """No luck is involved: in every epoch the count of a cluster is within one of its share."""
    weights = Weights(cluster_exponent=1.0)
    sampler = ClusterSampler(small_store, seed=3, weights=weights)
    sizes = np.array([len(small_store.members(c)) for c in range(300)])
    expected = sizes / sizes.sum() * 300
    for epoch in range(5):
        counts = np.bincount([item.cluster for item in epoch_of(sampler, epoch)], minlength=300)
        assert (np.abs(counts - expected) <= 2).all()


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (Weights(source={"rnacentrall": 2}), "no source 'rnacentrall'; did you mean 'rnacentral'"),
        (Weights(family={"RF99999": 2}), "no family 'RF99999'"),
        (Weights(source={"rfam": 0, "rnacentral": 0, "ensembl": 0}), "exclude every sequence"),
        (Weights(cluster_exponent=1e6), "exclude every sequence"),
    ],
)
def test_wrong_weights_are_named(small_store, weights, words):
    with pytest.raises(InputError, match=words):
        ClusterSampler(small_store, seed=0, weights=weights)


def test_a_store_without_training_data(make_store):
    with pytest.raises(InputError, match="its train split is empty"):
        ClusterSampler(make_store(validation=[[b"ACGU" * 4]]), seed=0)

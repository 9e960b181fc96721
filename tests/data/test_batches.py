"""Batches: one global batch whatever the ranks and workers, exact budgets, resumed to the same tensors."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rinalmo.data.batches import DataRecipe, FixedMasked, MaskedBatches, Place, divided
from rinalmo.data.sampling import Item, Weights
from rinalmo.errors import InputError
from rinalmo.rna.alphabet import Alphabet

ALPHABET = Alphabet()
MODES = {
    "sequences": {"sequences_per_batch": 30, "micro_tokens": 900},
    "tokens": {"tokens_per_batch": 4000, "micro_tokens": 1100},
    "fixed": {"tokens_per_batch": 4096, "micro_tokens": 1024, "fixed_tokens": True, "max_length": 500},
}


def stream(store, mode="sequences", **settings):
    options = {"seed": 11} | MODES[mode] | settings.pop("options", {})
    seed = options.pop("seed")
    return MaskedBatches(store, ALPHABET, DataRecipe(**options), seed, **settings)


def steps(batches, count=5, start=None):
    place, found = start or Place(), []
    for _ in range(count):
        items, after = batches.plan(place)
        found.append((items, place))
        place = after
    return found


def same(one, two):
    tensors = ("ids", "positions", "targets", "source_ids")
    return one.layout.lengths == two.layout.lengths and all(
        torch.equal(getattr(one, name), getattr(two, name)) for name in tensors
    )


def pieces(batches):
    """Each sequence as the model sees it, with its targets, wherever it lies; silent batches left out."""
    found = []
    for batch in batches:
        if not len(batch.positions):
            continue
        labels = torch.full((batch.layout.total,), -100)
        labels[batch.positions] = batch.targets
        split = zip(batch.layout.split(batch.ids), batch.layout.split(labels), batch.source_ids, strict=True)
        found += [(tuple(i.tolist()), tuple(t.tolist()), int(s)) for i, t, s in split]
    return sorted(found)


# What a step consists of


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("exponent", [0.0, 1.5])
def test_no_cluster_twice_in_a_step(small_store, mode, exponent):
    batches = stream(small_store, mode, options={"weights": Weights(cluster_exponent=exponent)})
    for items, _ in steps(batches, 30):
        assert len({item.cluster for item in items}) == len(items)


def test_a_number_of_sequences(small_store):
    assert [len(items) for items, _ in steps(stream(small_store), 25)] == [30] * 25


def test_an_epoch_of_steps_has_no_cluster_twice(small_store):
    batches = stream(small_store)
    first = [item.cluster for items, place in steps(batches, 10) for item in items if place.epoch == 0]
    assert len(first) == len(set(first)) == 300
    assert batches.steps_per_epoch() == 10
    assert [place.epoch for _, place in steps(batches, 12)] == [0] * 11 + [1]  # the eleventh finds the epoch used up


def test_a_token_budget_is_filled_and_kept(small_store):
    batches = stream(small_store, "tokens")
    for items, place in steps(batches, 30):
        total = sum(item.tokens for item in items)
        following = batches.sampler.items(place.epoch, place.position + len(items), place.position + len(items) + 1)
        assert total <= 4000
        assert not following or total + following[0].tokens > 4000


def test_an_item_larger_than_the_budget_is_a_batch_of_its_own(make_store):
    store = make_store([b"ACGU" * 50], [b"GGCC" * 60])
    batches = stream(store, options={"sequences_per_batch": None, "tokens_per_batch": 16, "micro_tokens": 8})
    assert [len(items) for items, _ in steps(batches, 4)] == [1] * 4
    assert [batch.layout.lengths for batch in batches.batch(Place())] in ([(202,)], [(242,)])


def test_fixed_tokens_are_exact(small_store):
    batches = stream(small_store, "fixed")
    for _, place in steps(batches, 20):
        made = batches.batch(place)
        assert [batch.layout.total for batch in made] == [1024] * 4
        for batch in made:
            assert sum(ids[0] != ALPHABET.cls_id for ids in batch.layout.split(batch.ids)) <= 1 + sum(
                length == 500 for length in batch.layout.lengths
            )


def test_fixed_tokens_waste_almost_nothing(small_store):
    """Only an item one nucleotide short of the room left is passed over."""
    batches = stream(small_store, "fixed")
    for items, place in steps(batches, 10):
        _, after = batches.plan(place)
        if after.epoch == place.epoch:
            assert after.position - place.position - len(items) <= 4


@pytest.mark.parametrize("mode", MODES)
def test_a_store_too_small_for_a_batch_is_an_error(make_store, mode):
    with pytest.raises(InputError, match=r"an epoch .* is less than a batch"):
        stream(make_store([b"ACGU" * 5]), mode).plan(Place())


# What the model sees


def test_only_whole_sequences_have_special_tokens(small_store):
    batches = stream(small_store, options={"max_length": 100})
    kinds = set()
    for items, place in steps(batches, 10):
        by_length = sorted(items, key=lambda item: item.tokens)
        seen = [ids for batch in batches.batch(place) for ids in batch.layout.split(batch.ids)]
        for item, ids in zip(by_length, seen, strict=True):
            borders = (int(ids[0]) == ALPHABET.cls_id, int(ids[-1]) == ALPHABET.eos_id)
            assert borders == (item.whole, item.whole)
            kinds.add(item.whole)
    assert kinds == {True, False}


def test_restoring_the_targets_gives_the_stored_letters(small_store):
    batches = stream(small_store, "tokens")
    for items, place in steps(batches, 3):
        by_length = iter(sorted(items, key=lambda item: item.tokens))
        for batch in batches.batch(place):
            ids = batch.ids.clone()
            ids[batch.positions] = batch.targets
            for sequence, source in zip(batch.layout.split(ids), batch.source_ids, strict=True):
                item = next(by_length)
                letters = small_store[item.sequence][item.start : item.start + item.length].tobytes().decode()
                assert sequence.tolist() == ALPHABET.encode(letters, special=item.whole).tolist()
                assert int(source) == small_store.source_ids[item.sequence]


def test_target_sources(small_store):
    batch = stream(small_store).batch(Place())[0]
    expected = [int(batch.source_ids[int(batch.layout.sequence_ids[p])]) for p in batch.positions]
    assert batch.target_sources.tolist() == expected


def test_micro_batches_keep_to_their_size_and_are_sorted(small_store):
    batches = stream(small_store, options={"micro_tokens": 2000})
    for _, place in steps(batches, 10):
        for batch in batches.batch(place):
            assert batch.layout.total <= 2000
            assert list(batch.layout.lengths) == sorted(batch.layout.lengths)


# Ranks, workers, resuming


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_the_same_global_batch(small_store, mode, world):
    batches = stream(small_store, mode)
    for _, place in steps(batches, 4):
        parts = [batches.batch(place, rank, world) for rank in range(world)]
        assert len({len(part) for part in parts}) == 1
        assert pieces([batch for part in parts for batch in part]) == pieces(batches.batch(place))


def test_ranks_get_equal_work(small_store):
    batches = stream(small_store, options={"sequences_per_batch": 100, "micro_tokens": 4000})
    for _, place in steps(batches, 3):
        tokens = [sum(batch.layout.total for batch in batches.batch(place, rank, 4)) for rank in range(4)]
        assert max(tokens) < 1.35 * min(tokens)


def test_more_ranks_than_sequences(make_store):
    store = make_store([b"ACGU" * 50], [b"GGCC" * 60])
    batches = stream(store, options={"sequences_per_batch": 2, "micro_tokens": 100})
    parts = [batches.batch(Place(), rank, 5) for rank in range(5)]
    assert [len(part) for part in parts] == [1] * 5
    assert [bool(len(part[0].positions)) for part in parts] == [True, True, False, False, False]
    assert all(part[0].layout.total for part in parts)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(small_store, mode, workers):
    alone = islice(stream(small_store, mode, options={"workers": 0}), 25)
    helped = islice(stream(small_store, mode, options={"workers": workers}), 25)
    for one, two in zip(alone, helped, strict=True):
        assert len(one) == len(two)
        assert all(same(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stop", [1, 13])
def test_a_resumed_stream_goes_on_exactly(small_store, mode, stop):
    whole = list(islice(stream(small_store, mode), 20))
    first = stream(small_store, mode)
    for _ in islice(first, stop):
        pass
    state = json.loads(json.dumps(first.state_dict()))
    resumed = stream(small_store, mode)
    resumed.load_state_dict(state)
    assert resumed.place.step == stop
    for one, two in zip(whole[stop:], islice(resumed, 20 - stop), strict=True):
        assert all(same(a, b) for a, b in zip(one, two, strict=True))


def test_a_stream_resumes_on_other_ranks_and_micro_batches(small_store):
    first = stream(small_store)
    place = Place()
    for _ in islice(first, 3):
        place = first.place
    resumed = [stream(small_store, rank=rank, world=2, options={"micro_tokens": 500}) for rank in (0, 1)]
    for one in resumed:
        one.load_state_dict(first.state_dict())
    parts = [batch for one in resumed for batch in next(iter(one))]
    assert pieces(parts) == pieces(first.batch(place))


def test_another_store_or_option_is_refused(small_store, make_store):
    state = stream(small_store).state_dict()
    with pytest.raises(InputError, match="masking, seed changed"):
        stream(small_store, options={"seed": 12, "masking": {"selected": 0.2}}).load_state_dict(state)
    with pytest.raises(InputError, match="not the store"):
        stream(make_store([b"ACGU" * 5])).load_state_dict(state)


def test_a_fault_in_a_worker_reaches_the_caller(small_store, monkeypatch):
    batches = stream(small_store)
    monkeypatch.setattr(type(small_store), "__getitem__", lambda self, index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(iter(batches))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "sequences_per_batch or tokens_per_batch"),
        ({"sequences_per_batch": 1, "tokens_per_batch": 1}, "sequences_per_batch or tokens_per_batch"),
        ({"tokens_per_batch": 5000, "fixed_tokens": True}, "multiple of micro_tokens"),
        ({"sequences_per_batch": 8, "fixed_tokens": True}, "multiple of micro_tokens"),
    ],
)
def test_impossible_options(small_store, options, words):
    with pytest.raises(InputError, match=words):
        MaskedBatches(small_store, ALPHABET, DataRecipe(**options))


# Cutting


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 900), st.integers(1, 5))
def test_division_keeps_everything_within_bounds(lengths, micro_tokens, world):
    items = [Item(i, i, 0, length, False, 0) for i, length in enumerate(lengths)]
    parts = divided(items, micro_tokens, world)
    assert sorted(item.sequence for part in parts for item in part) == list(range(len(lengths)))
    assert all(part for part in parts)
    assert all(sum(item.tokens for item in part) <= max(micro_tokens, max(lengths)) for part in parts)


# The fixed validation set


def test_the_validation_set_is_fixed_and_bounded(small_store):
    first, again = (FixedMasked(small_store, ALPHABET, DataRecipe(), per_source=20) for _ in range(2))
    assert first.items == again.items
    sources = small_store.source_ids[[item.sequence for item in first.items]]
    assert np.bincount(sources).tolist() == [20, 20, 20]
    assert all(item.sequence in small_store.sequence_range("validation") for item in first.items)
    assert all(same(a, b) for a, b in zip(first.batches(), again.batches(), strict=True))
    assert FixedMasked(small_store, ALPHABET, DataRecipe(), per_source=20, seed=1).items != first.items


def test_the_validation_set_is_the_same_on_all_ranks(small_store):
    fixed = FixedMasked(small_store, ALPHABET, DataRecipe(micro_tokens=1500))
    parts = [fixed.batches(rank, 3) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    assert pieces([batch for part in parts for batch in part]) == pieces(fixed.batches())


def test_no_validation_split(make_store):
    assert FixedMasked(make_store([b"ACGU" * 5]), ALPHABET, DataRecipe()).batches() == []

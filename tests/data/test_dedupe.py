"""Equal sequences, against a dictionary."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rinalmo.data import prepare
from rinalmo.data.prepare import first_of_equals
from rinalmo.data.sources import Staged


def by_dictionary(letters):
    seen = {}
    return [seen.setdefault(one, i) for i, one in enumerate(letters)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.lists(st.text("ACGU", min_size=1, max_size=3), min_size=1, max_size=20), min_size=1, max_size=3),
    chunk=st.integers(1, 9),
)
def test_the_first_of_equals_is_found(make_store, tmp_path_factory, monkeypatch, parts, chunk):
    """Across sources, whatever the size of chunks and the number of buckets."""
    monkeypatch.setattr(prepare, "_CHUNK", chunk)
    names = [tmp_path_factory.mktemp("staged") / "store" for _ in parts]
    stores = [make_store([one.encode() for one in part], name=name) for part, name in zip(parts, names, strict=True)]
    staged = Staged([store.path for store in stores])
    first = first_of_equals(staged, tmp_path_factory.mktemp("work"), lambda count: None)
    assert first.tolist() == by_dictionary([one for part in parts for one in part])


@pytest.mark.parametrize("chunk", [64, 100_000])
def test_nothing_is_left_behind(make_store, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(prepare, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    letters = [bytes(rng.choice(np.frombuffer(b"ACGU", np.uint8), 4)) for _ in range(1000)]
    (tmp_path / "work").mkdir()
    told = []
    first = first_of_equals(Staged([make_store(letters).path]), tmp_path / "work", told.append)
    assert first.tolist() == by_dictionary(letters)
    assert len(set(first.tolist())) == len(set(letters)) < 260
    assert told[-1] == 1000
    assert not list((tmp_path / "work").iterdir())

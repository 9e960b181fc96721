"""Several batches in flight: the results of one at a time, in the order of the input, whoever finishes first."""

import threading
import time

import numpy as np
import pytest
import torch

from rinalmo.engine.engine import map_packed
from rinalmo.errors import InputError

LENGTHS = [3, 50, 7, 7, 1, 20, 4, 90, 2, 2, 31] * 8


def sequences(lengths=LENGTHS):
    for number, length in enumerate(lengths):
        yield np.full(length, number)


def first_ids(ids, layout):
    return [int(part[0]) for part in layout.split(ids)]


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_order_of_results(in_flight):
    def slow_for_small(ids, layout):
        time.sleep(0.002 if layout.total < 40 else 0)
        return first_ids(ids, layout)

    found = map_packed(slow_for_small, sequences(), batch_tokens=lambda: 60, in_flight=in_flight)
    assert list(found) == list(range(len(LENGTHS)))


def test_batches_are_computed_side_by_side():
    together = threading.Barrier(2, timeout=20)

    def meet(ids, layout):
        together.wait()  # breaks unless another batch is being computed
        return first_ids(ids, layout)

    found = map_packed(meet, sequences([9] * 8), batch_tokens=lambda: 9, in_flight=2)
    assert list(found) == list(range(8))


def test_nothing_in_nothing_out():
    assert list(map_packed(first_ids, sequences([]), batch_tokens=lambda: 60, in_flight=2)) == []


@pytest.mark.parametrize("in_flight", [1, 2])
def test_what_came_before_a_fault_of_the_input_is_handed_out(in_flight):
    def faulty():
        yield from sequences([30] * 16)
        raise InputError("record 17")

    found = map_packed(first_ids, faulty(), batch_tokens=lambda: 60, in_flight=in_flight)
    assert [next(found) for _ in range(16)] == list(range(16))
    with pytest.raises(InputError, match="record 17"):
        next(found)


def test_a_batch_that_fails_beside_another_is_tried_alone():
    active, failures = set(), []

    def greedy(ids, layout):
        me = threading.get_ident()
        active.add(me)
        try:
            time.sleep(0.01)
            if layout.max_seqlen == 90 and active != {me}:
                failures.append(me)
                raise InputError("a sequence of 90 tokens does not fit")
            return first_ids(ids, layout)
        finally:
            active.discard(me)

    found = list(map_packed(greedy, sequences([90, 90, 90, 90]), batch_tokens=lambda: 90, in_flight=2))
    assert found == [0, 1, 2, 3]
    assert failures


def test_a_batch_that_always_fails():
    def fail(ids, layout):
        raise InputError("does not fit")

    with pytest.raises(InputError, match="does not fit"):
        list(map_packed(fail, sequences(), batch_tokens=lambda: 60, in_flight=2))


def test_input_is_read_in_the_thread_of_the_caller():
    threads = set()

    def stream():
        for sequence in sequences():
            threads.add(threading.get_ident())
            yield sequence

    list(map_packed(first_ids, stream(), batch_tokens=lambda: 60, in_flight=2))
    assert threads == {threading.get_ident()}


def test_an_abandoned_run_computes_no_further():
    count = 0

    def counted(ids, layout):
        nonlocal count
        count += 1
        return first_ids(ids, layout)

    found = map_packed(counted, sequences([60] * 400), batch_tokens=lambda: 60, in_flight=2)
    next(found)
    found.close()
    done = count
    time.sleep(0.05)
    assert count == done <= 24  # of three windows of eight


def test_embeddings_of_an_engine_are_the_same(nano):
    from rinalmo.engine.engine import Engine

    engine = Engine(nano, "fp32", batch_tokens=64)
    last = nano.config.num_hidden_layers

    def compute(ids, layout):
        return [part.mean(dim=0) for part in layout.split(engine.hidden_states(ids, layout, [last])[0])]

    ids = [np.array([1, *([6, 7, 8, 9] * n)[: 2 * n], 2]) for n in (3, 30, 5, 5, 12, 1, 9)]
    one, two = (list(map_packed(compute, iter(ids), batch_tokens=lambda: 64, in_flight=n)) for n in (1, 2))
    for first, second in zip(one, two, strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=0)

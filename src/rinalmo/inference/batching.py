"""Many sequences through the model, in bounded memory and in the order they came.

A window of sequences is read ahead, sorted by length so that equal lengths lie together, cut into packed batches of
at most `batch_tokens` tokens (a longer sequence is a batch of its own) and computed; its results are handed out in
input order before the next window is read.

On CUDA two threads compute, each on a stream of its own: while one waits for its results or works on the host, the
other keeps the GPU busy. The next window is then begun before the results of the last are handed out.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from rinalmo.model.packing import Layout, pack

R = TypeVar("R")
Ids = np.ndarray
Compute = Callable[[Tensor, Layout], Sequence[R]]

_WINDOW_BATCHES = 8
_WINDOW_SEQUENCES = 4096
_CUDA_BATCHES = 2  # in flight at once
# Streams are used again: torch keeps the memory that was freed in one for that one.
_idle_streams: defaultdict[torch.device, deque[torch.cuda.Stream]] = defaultdict(deque)


def map_packed(
    compute: Compute[R],
    sequences: Iterable[Ids],
    *,
    batch_tokens: Callable[[], int],
    device: torch.device | str = "cpu",
    in_flight: int | None = None,
) -> Iterator[R]:
    """Apply a function to all sequences, packed into batches.

    Args:
        compute: Packed ids and their layout to one result per sequence. With several batches in flight it is called
            from several threads. Results that are tensors on a CUDA device are brought to the host.
        sequences: Token ids, one array each; read in the caller's thread.
        batch_tokens: Tokens of a batch, asked before each window: it may shrink when a device's memory turns out to be
            too small.
        device: Where `compute` expects its input.
        in_flight: Batches computed at once; two on CUDA, else one, if None.

    Yields:
        Results in the order of the input.
    """
    device = torch.device(device)
    worker = _Worker(compute, device)
    count = in_flight or (_CUDA_BATCHES if device.type == "cuda" else 1)
    if count > 1:
        yield from _overlapping(worker, sequences, batch_tokens, count)
        return
    for window in windows(sequences, lambda: _WINDOW_BATCHES * batch_tokens()):
        results: list[R | None] = [None] * len(window)
        for batch in _batches(window, batch_tokens()):
            for i, result in zip(batch, worker([window[i] for i in batch]), strict=True):
                results[i] = result
        yield from results  # type: ignore[misc]  # every place has been filled


def _overlapping(
    worker: _Worker[R], sequences: Iterable[Ids], batch_tokens: Callable[[], int], count: int
) -> Iterator[R]:
    """As `map_packed`, with `count` batches in flight."""
    source = windows(sequences, lambda: _WINDOW_BATCHES * batch_tokens())
    before: list[_Started[R]] = []
    with ThreadPoolExecutor(count, thread_name_prefix="rinalmo-batch") as pool:
        try:
            while True:
                failure: Exception | None = None
                try:
                    window = next(source, None)
                except Exception as error:  # of the input: what came before it is handed out first
                    failure, window = error, None
                started: list[_Started[R]] = []
                for batch in _batches(window or [], batch_tokens()):
                    ids = [window[i] for i in batch]  # type: ignore[index]
                    started.append(_Started(batch, ids, pool.submit(worker, ids)))
                yield from _finished(before, worker, started)
                before = started
                if failure is not None:
                    raise failure
                if window is None:
                    return
        finally:
            pool.shutdown(cancel_futures=True)


class _Started(Generic[R]):
    """A batch that is being computed: its places in the window, its ids, and what will come of it."""

    def __init__(self, places: list[int], ids: list[Ids], results: Future[Sequence[R]]) -> None:
        self.places, self.ids, self.results = places, ids, results


def _finished(batches: list[_Started[R]], worker: _Worker[R], later: list[_Started[R]]) -> list[R]:
    """The results of a window's batches in the order of the input."""
    results: dict[int, R] = {}
    for batch in batches:
        try:
            found = batch.results.result()
        except Exception:
            # Alone it may have the memory that it lacked beside another.
            wait([other.results for other in (*batches, *later)])
            found = worker(batch.ids)
        results.update(zip(batch.places, found, strict=True))
    return [results[place] for place in range(len(results))]


class _Worker(Generic[R]):
    """Computes a batch; on CUDA in a stream of its own."""

    def __init__(self, compute: Compute[R], device: torch.device) -> None:
        self.compute, self.device = compute, device

    def __call__(self, sequences: Sequence[Ids]) -> Sequence[R]:
        with self._stream():
            ids, layout = pack((torch.from_numpy(sequence) for sequence in sequences), self.device)
            return _results_on_host(self.compute(ids, layout))

    @contextmanager
    def _stream(self) -> Iterator[None]:
        if self.device.type != "cuda":
            yield
            return
        idle = _idle_streams[self.device]
        try:
            stream = idle.pop()
        except IndexError:
            stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.default_stream(self.device))  # where weights may still be on their way
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            idle.append(stream)


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies on the host: all transfers at once, into pinned memory, and one wait. What is on the host stays as it is.

    The wait is for the current stream alone.
    """
    if not any(tensor.is_cuda for tensor in tensors):
        return tuple(tensor.cpu() for tensor in tensors)
    pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(pinned, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    done.synchronize()
    return tuple(copy.clone() for copy in pinned)  # results may be kept for long, and pinned memory is scarce


def _results_on_host(results: Sequence[R]) -> Sequence[R]:
    if isinstance(results, Tensor):
        return to_host(results)[0] if results.is_cuda else results
    found: list[Any] = list(results)
    places = [place for place, result in enumerate(found) if isinstance(result, Tensor) and result.is_cuda]
    for place, copy in zip(places, to_host(*(found[place] for place in places)) if places else (), strict=True):
        found[place] = copy
    return found


def _batches(window: Sequence[Ids], batch_tokens: int) -> Iterator[list[int]]:
    return cut(sorted(range(len(window)), key=lambda i: len(window[i])), window, batch_tokens)


def windows(sequences: Iterable[Ids], tokens: Callable[[], int]) -> Iterator[list[Ids]]:
    """Stretches of the input with about `tokens()` tokens, never empty."""
    window: list[Ids] = []
    total = 0
    for sequence in sequences:
        window.append(sequence)
        total += len(sequence)
        if total >= tokens() or len(window) >= _WINDOW_SEQUENCES:
            yield window
            window, total = [], 0
    if window:
        yield window


def cut(order: Iterable[int], window: Sequence[Ids], batch_tokens: int) -> Iterator[list[int]]:
    """Consecutive groups of `order` with at most `batch_tokens` tokens; an oversized sequence goes alone."""
    batch: list[int] = []
    total = 0
    for i in order:
        if batch and total + len(window[i]) > batch_tokens:
            yield batch
            batch, total = [], 0
        batch.append(i)
        total += len(window[i])
    if batch:
        yield batch

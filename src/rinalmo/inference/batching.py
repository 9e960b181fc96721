"""Many sequences through the model, in bounded memory and in the order they came.

A window of sequences is read ahead, sorted by length so that equal lengths lie together, cut into packed batches of
at most `batch_tokens` tokens (a longer sequence is a batch of its own) and computed; its results are handed out in
input order before the next window is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rinalmo.model.packing import Layout, pack

R = TypeVar("R")
Ids = np.ndarray

_WINDOW_BATCHES = 8
_WINDOW_SEQUENCES = 4096


def map_packed(
    compute: Callable[[Tensor, Layout], Sequence[R]],
    sequences: Iterable[Ids],
    *,
    batch_tokens: Callable[[], int],
    device: torch.device | str = "cpu",
) -> Iterator[R]:
    """Apply `compute` (packed ids, layout → one result per sequence) to all, yielding results in input order.

    `batch_tokens` is asked before each window: it may shrink when a device's memory turns out to be too small.
    """
    for window in windows(sequences, lambda: _WINDOW_BATCHES * batch_tokens()):
        results: list[R | None] = [None] * len(window)
        for batch in cut(sorted(range(len(window)), key=lambda i: len(window[i])), window, batch_tokens()):
            ids, layout = pack((torch.from_numpy(window[i]) for i in batch), device)
            for i, result in zip(batch, compute(ids, layout), strict=True):
                results[i] = result
        yield from results  # type: ignore[misc]  # every place has been filled


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

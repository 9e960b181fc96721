"""Where the labels of a drawing stand: each 10th number, 5′ and 3′, in the clearest place around their nucleotide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

_EVERY = 10
_REACHES = (22.0, 30.0, 40.0)
_DIRECTIONS = 16
_CLEAR = 19.0  # of a label's middle from whatever else is drawn
_ALONG = 8.0  # lines are kept clear of by points along them

Label = tuple[int, np.ndarray, str]


def placed_labels(points: np.ndarray, pairs: Iterable[tuple[int, int]]) -> list[Label]:
    """Nucleotide, place and text of each label."""
    taken = np.vstack([points, *_lines(points, pairs)])
    labels: list[Label] = []
    for n, content in _wanted(len(points)):
        at = _place(points[n], taken)
        taken = np.vstack([taken, at])
        labels.append((n, at, content))
    return labels


def _wanted(length: int) -> list[tuple[int, str]]:
    numbers = [(n, str(n + 1)) for n in range(_EVERY - 1, length, _EVERY)]
    return [(0, "5′"), (length - 1, "3′"), *numbers]


def _lines(points: np.ndarray, pairs: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Points along the backbone and the pairs, without their ends."""
    for i, j in [*zip(range(len(points)), range(1, len(points)), strict=False), *pairs]:
        steps = int(np.hypot(*(points[j] - points[i])) // _ALONG)
        yield points[i] + np.linspace(0, 1, steps + 2)[1:-1, None] * (points[j] - points[i])


def _place(nucleotide: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The nearest clear place; the clearest, if none is. Its own nucleotide is no obstacle."""
    near = taken[np.abs(taken - nucleotide).max(axis=1) < _REACHES[-1] + 2 * _CLEAR]
    near = near[np.hypot(*(near - nucleotide).T) > _ALONG / 2]
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    around = np.column_stack([np.cos(angles), np.sin(angles)])
    best, most = nucleotide, -1.0
    for reach in _REACHES:
        places = nucleotide + reach * around
        clear = np.hypot(*(places[:, None] - near[None]).transpose(2, 0, 1)).min(axis=1, initial=1e3)
        if clear.max() > most:
            best, most = places[clear.argmax()], float(clear.max())
        if most >= _CLEAR:
            break
    return best

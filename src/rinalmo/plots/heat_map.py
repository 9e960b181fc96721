"""A saturation map as a picture: positions along x, A, C, G, U along y, in lines of equal length one below the other.

The same scores give the same bytes of SVG.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.errors import InputError
from rinalmo.io.files import check_path
from rinalmo.plots.style import ENDINGS, PALE, figure_in, need_matplotlib
from rinalmo.rna.alphabet import NUCLEOTIDES

LONGEST = 10_000
_PURPOSE = "drawing a heat map"

# In inches: a cell, the room between lines, that around the map, and a letter of the title.
_CELL, _LINE_GAP, _TITLE_LETTER = 0.155, 0.45, 0.075
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.45, 1.15, 0.6, 0.45
_LABELLED = 10


def check_plot(path: Path, lengths: list[int]) -> None:
    """Raise InputError or MissingExtraError now for what could not be drawn in the end."""
    check_path(path, ENDINGS)
    if len(lengths) != 1:
        raise InputError(f"{path}: shows one sequence, but {len(lengths)} are given; give one at a time")
    if lengths[0] > LONGEST:
        raise InputError(f"{path}: shows up to {LONGEST:,} nt, but the sequence has {lengths[0]:,}; score a part of it")
    need_matplotlib(_PURPOSE)


def draw(scores: np.ndarray, sequence: str, title: str, path: Path) -> None:
    """Draw `(length, 4)` scores, NaN where there is none.

    A dot marks the letter of the sequence itself and a plus a score above 0, which in grey looks like one below.
    """
    with figure_in(path, _PURPOSE) as figure:
        _fill(figure, scores, sequence, title, _colours(scores))


def _fill(figure: Any, scores: np.ndarray, sequence: str, title: str, colours: dict[str, Any]) -> None:
    """Title, lines and key; cells have the same size in all figures."""
    width = line_width(len(sequence))
    starts = range(0, len(sequence), width)
    across = max(_LEFT + width * _CELL + _RIGHT, _LEFT + _TITLE_LETTER * len(title))
    down = _TOP + len(starts) * (4 * _CELL + _LINE_GAP) - _LINE_GAP + _BOTTOM
    grid = {"left": _LEFT / across, "right": (_LEFT + width * _CELL) / across}
    grid |= {"bottom": _BOTTOM / down, "top": 1 - _TOP / down, "hspace": _LINE_GAP / (4 * _CELL)}
    figure.set_size_inches(across, down)
    lines = figure.subplots(len(starts), 1, squeeze=False, gridspec_kw=grid)[:, 0]
    for start, axes in zip(starts, lines, strict=True):
        part = slice(start, start + width)
        image = _line(axes, scores[part], sequence[part], start, width, colours)
    lines[-1].set_xlabel("position  (dot: the letter of the sequence, plus: above 0)", fontsize=8)
    figure.text(grid["left"], 1 - 0.2 / down, title, fontsize=9, va="center")
    height = min(grid["top"] - grid["bottom"], 1.4 / down)
    _key(figure, image, (grid["right"] + 0.2 / across, grid["top"] - height, 0.1 / across, height))


def line_width(length: int) -> int:
    """Positions in a line: all of a short RNA, 60 of a longer one, 100 of one that would fill pages."""
    return length if length <= 80 else 60 if length <= 600 else 100


def _line(axes: Any, scores: np.ndarray, letters: str, start: int, width: int, colours: dict[str, Any]) -> Any:
    """One line of the map."""
    image = axes.imshow(scores.T, interpolation="nearest", aspect="equal", **colours)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_anchor("W")
    axes.set_yticks(range(4), NUCLEOTIDES, fontsize=7)
    labelled = [n for n in range(len(letters)) if (start + n + 1) % _LABELLED == 0 or start + n == 0]
    axes.set_xticks(labelled, [str(start + n + 1) for n in labelled], fontsize=7)
    axes.tick_params(length=2, pad=1.5)
    own = [(n, NUCLEOTIDES.index(letter)) for n, letter in enumerate(letters) if letter in NUCLEOTIDES]
    axes.plot([n for n, _ in own], [row for _, row in own], ".", color="black", markersize=3.5)
    places, rows = np.nonzero(np.nan_to_num(scores) > 0)
    axes.plot(places, rows, "+", color="black", markersize=3.5, markeredgewidth=0.6)
    for n, letter in enumerate(letters):
        axes.text(n, -0.75, letter, fontsize=6.5, ha="center", va="bottom", family="monospace")
    axes.spines[:].set_visible(False)
    return image


def _key(figure: Any, image: Any, where: tuple[float, float, float, float]) -> None:
    """Which colour is which score."""
    key = figure.colorbar(image, cax=figure.add_axes(where))
    key.ax.tick_params(labelsize=7, length=2)
    key.set_label("score (nats)", fontsize=7)
    key.outline.set_visible(False)


def _colours(scores: np.ndarray) -> dict[str, Any]:
    from matplotlib import colormaps
    from matplotlib.colors import CenteredNorm

    # Red to blue stays apart for every common kind of colour blindness; grey is for no score.
    norm = CenteredNorm(vcenter=0, halfrange=np.nanmax(np.abs(scores), initial=1e-6))
    return {"norm": norm, "cmap": colormaps["RdBu"].with_extremes(bad=PALE)}

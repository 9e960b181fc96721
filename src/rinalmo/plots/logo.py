"""Sequence logo of a model's expectation at each position: stacked letters, the likeliest on top.

    information   a column's height is 2 bits minus the entropy, divided among the letters by probability
    probability   every column has height 1

The sequence's own letter is below each column: black where it is the likeliest, vermilion and underlined where it is
not. The letters' colours are those of Okabe and Ito.

Reference: Schneider & Stephens 1990 (Nucleic Acids Research 18:6097).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from rinalmo.errors import InputError
from rinalmo.plots.style import (
    BLACK,
    BLUE,
    VERMILION,
    Rows,
    check_figure,
    figure_in,
    position_ticks,
    tick_step,
    title_of,
)
from rinalmo.rna.alphabet import NUCLEOTIDES

Heights = Literal["information", "probability"]

LETTER_COLOURS = dict(zip(NUCLEOTIDES, ("#009E73", BLUE, "#E69F00", VERMILION), strict=True))
LONGEST = 1000
_PURPOSE = "drawing a logo"
_ROWS = Rows(column=0.13, height=0.95, gap=0.55, left=0.5, right=0.15, top=0.45, bottom=0.4)
_MIN_WIDTH, _MAX_WIDTH = 20, 80  # columns of a row
_MIN_HEIGHT = 0.01  # bits or probability: a lower letter cannot be seen


def draw_logo(
    probabilities: np.ndarray, sequence: str, path: str | Path, *, name: str = "", heights: Heights = "information"
) -> None:
    """Draw a sequence logo.

    Args:
        probabilities: Of A, C, G and U, `(length, 4)`; a row of NaN is left empty.
        sequence: One character per position, such as N or ? where the nucleotide is not known.
        path: An SVG, PNG or PDF file.
        name: For the title.
        heights: "information" in bits, or "probability".

    Raises:
        InputError: Another ending, a sequence of more than 1,000 nt, or numbers that are no probabilities.
        MissingExtraError: matplotlib is not installed.

    Examples:
        >>> import numpy as np, tempfile
        >>> from rinalmo.plots import draw_logo
        >>> draw_logo(np.full((4, 4), 0.25), "ACGU", tempfile.mkdtemp() + "/logo.svg", heights="probability")
    """
    path = Path(path)
    check_figure(path, _PURPOSE, len(sequence), LONGEST)
    if heights not in get_args(Heights):
        raise InputError(f"heights {heights!r} are unknown; use one of {', '.join(get_args(Heights))}")
    if probabilities.shape != (len(sequence), len(NUCLEOTIDES)):
        raise InputError(
            f"probabilities of shape {probabilities.shape} do not fit {len(sequence)} nt and four nucleotides"
        )
    known = probabilities[~np.isnan(probabilities).any(axis=1)]
    if (known < 0).any() or not np.allclose(known.sum(axis=1), 1, atol=1e-3):
        raise InputError("the probabilities at each position must be positive and sum to 1")
    top, columns = 1.0, probabilities
    if heights == "information":
        top = 2.0
        bits = -np.log2(np.where(probabilities > 0, probabilities, 1.0))
        columns = probabilities * (top - np.sum(probabilities * bits, axis=1, keepdims=True))
    width = min(max(len(sequence), _MIN_WIDTH), _MAX_WIDTH)
    title = f"{title_of(name)}, {len(sequence):,} nt" if name else f"{len(sequence):,} nt"
    with figure_in(path, _PURPOSE) as figure:
        for part, axes in _ROWS.axes(figure, len(sequence), width, title)[0]:
            _draw_row(axes, columns[part], sequence[part], part.start, width)
            axes.set_ylim(0, top)
            axes.set_ylabel("bits" if heights == "information" else "probability", fontsize=7)


def _draw_row(axes: Any, columns: np.ndarray, letters: str, start: int, width: int) -> None:
    known = np.nan_to_num(columns)
    order = known.argsort(axis=1, kind="stable")  # the highest letter is on top
    tops = np.take_along_axis(known, order, axis=1).cumsum(axis=1)
    for column, letter in enumerate(NUCLEOTIDES):
        top, height = tops[order == column], known[:, column]
        visible = height > _MIN_HEIGHT
        _draw_letters(axes, letter, np.flatnonzero(visible), (top - height)[visible], top[visible])
    likeliest = np.where(np.isnan(columns).any(axis=1), -1, known.argmax(axis=1))
    axes.set_xlim(-0.5, width - 0.5)
    axes.spines[:].set_visible(False)
    axes.spines["left"].set_visible(True)
    axes.plot([-0.5, len(letters) - 0.5], [0, 0], color=BLACK, linewidth=0.8, clip_on=False)
    below = axes.get_xaxis_transform()
    for n, letter in enumerate(letters):
        is_likeliest = likeliest[n] >= 0 and NUCLEOTIDES[likeliest[n]] == letter.upper().replace("T", "U")
        colour = BLACK if is_likeliest else VERMILION
        style = {"fontsize": 6.5, "ha": "center", "va": "top", "family": "monospace", "color": colour}
        axes.text(n, -0.04, letter, transform=below, **style)
        if not is_likeliest:
            line = {"color": colour, "linewidth": 0.8, "clip_on": False}
            axes.plot([n - 0.35, n + 0.35], [-0.135, -0.135], transform=below, **line)
    axes.set_xticks(*position_ticks(len(letters), tick_step(width), start), fontsize=7)
    axes.tick_params(axis="x", length=0, pad=10)
    axes.tick_params(axis="y", labelsize=7, length=2)


def _draw_letters(axes: Any, letter: str, positions: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """All letters of a kind as one path, each stretched to its place."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    if not len(positions):
        return
    corners, codes = _glyph(letter)
    size = np.column_stack([np.full(len(positions), 0.92), (high - low) * 0.97])
    base = np.column_stack([positions - 0.46, low])
    points = (corners[None] * size[:, None] + base[:, None]).reshape(-1, 2)
    outline = Outline(points, np.tile(codes, len(positions)))
    axes.add_patch(PathPatch(outline, facecolor=LETTER_COLOURS[letter], linewidth=0, gid=f"logo-{letter}"))


@cache
def _glyph(letter: str) -> tuple[np.ndarray, np.ndarray]:
    """The outline of a letter in a square of side 1."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    outline = TextPath((0, 0), letter, size=100, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    corners = np.asarray(outline.vertices)
    drawn = np.asarray(outline.codes) != 79  # CLOSEPOLY: its corner means nothing
    low, high = corners[drawn].min(axis=0), corners[drawn].max(axis=0)
    return (corners - low) / (high - low), np.asarray(outline.codes)

"""Figures of numbers at each position of a sequence, in rows of equal length: a logo, a heat map.

A logo shows a model's expectation: stacked letters, the likeliest on top. With heights of

    information   a column's height is 2 bits minus the entropy, divided among the letters by probability
    probability   every column has height 1

The sequence's own letter is below each column: black where it is the likeliest, vermilion and underlined where it is
not. The letters' colours are those of Okabe and Ito.

Reference: Schneider & Stephens 1990 (Nucleic Acids Research 18:6097).
"""

from __future__ import annotations

from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from rinalmo.errors import InputError
from rinalmo.plots.style import (
    BLACK,
    BLUE,
    PALE,
    VERMILION,
    check_figure,
    figure_in,
    position_ticks,
    robust_limit,
    tick_step,
    title_of,
)
from rinalmo.rna.alphabet import NUCLEOTIDES

LONGEST_LOGO, LONGEST_HEAT_MAP = 1000, 10_000
_LOGO, _HEAT_MAP = "drawing a logo", "drawing a heat map"
_TITLE_LETTER = 0.075  # inches


class Rows(NamedTuple):
    """Sizes in inches of a figure that shows a sequence in rows of equal length."""

    column: float
    height: float
    gap: float
    left: float
    right: float
    top: float
    bottom: float

    def axes(
        self, figure: Any, length: int, width: int, title: str
    ) -> tuple[list[tuple[slice, Any]], dict[str, float]]:
        """Size a figure for rows of `width` positions; returns positions and axes of each row, and the outer edges."""
        starts = range(0, length, width)
        across = max(self.left + width * self.column + self.right, self.left + _TITLE_LETTER * len(title))
        down = self.top + len(starts) * (self.height + self.gap) - self.gap + self.bottom
        edges = {"left": self.left / across, "right": (self.left + width * self.column) / across}
        edges |= {"bottom": self.bottom / down, "top": 1 - self.top / down}
        figure.set_size_inches(across, down)
        grid = {**edges, "hspace": self.gap / self.height}
        rows = figure.subplots(len(starts), 1, squeeze=False, gridspec_kw=grid)[:, 0]
        figure.text(edges["left"], 1 - 0.2 / down, title, fontsize=9, va="center")
        return [(slice(start, start + width), axes) for start, axes in zip(starts, rows, strict=True)], edges


Heights = Literal["information", "probability"]

LETTER_COLOURS = dict(zip(NUCLEOTIDES, ("#009E73", BLUE, "#E69F00", VERMILION), strict=True))
_LOGO_ROWS = Rows(column=0.13, height=0.95, gap=0.55, left=0.5, right=0.15, top=0.45, bottom=0.4)
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
    check_figure(path, _LOGO, len(sequence), LONGEST_LOGO)
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
    with figure_in(path, _LOGO) as figure:
        for part, axes in _LOGO_ROWS.axes(figure, len(sequence), width, title)[0]:
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


_CELL = 0.155
_HEAT_MAP_ROWS = Rows(column=_CELL, height=4 * _CELL, gap=0.45, left=0.45, right=1.15, top=0.6, bottom=0.45)


def check_heat_map(path: Path, lengths: list[int]) -> None:
    """Raise InputError or MissingExtraError before computing what could not be drawn."""
    if len(lengths) != 1:
        check_figure(path, _HEAT_MAP)
        raise InputError(f"{path}: a heat map shows one sequence, but there are {len(lengths)}; give one at a time")
    check_figure(path, _HEAT_MAP, sum(lengths), LONGEST_HEAT_MAP, "score a part of it")


def draw_heat_map(scores: np.ndarray, sequence: str, title: str, path: Path, label: str = "score (nats)") -> None:
    """Draw `(length, 4)` scores, NaN where there is none.

    A dot marks the nucleotide of the sequence and a plus a score above 0, which in grey looks like one below. A few
    extreme scores do not stretch the scale: they have the colour of its end, which is then an arrow.
    """
    with figure_in(path, _HEAT_MAP) as figure:
        from matplotlib import colormaps
        from matplotlib.colors import CenteredNorm

        width = line_width(len(sequence))
        rows, edges = _HEAT_MAP_ROWS.axes(figure, len(sequence), width, title)
        # Red to blue is distinct for every common kind of colour blindness; grey is for no score.
        limit = robust_limit(scores)
        norm = CenteredNorm(vcenter=0, halfrange=limit)
        colours = colormaps["RdBu"].with_extremes(bad=PALE)
        for part, axes in rows:
            letters = sequence[part]
            image = axes.imshow(scores[part].T, interpolation="nearest", aspect="equal", norm=norm, cmap=colours)
            axes.set_xlim(-0.5, width - 0.5)
            axes.set_anchor("W")
            axes.set_yticks(range(4), NUCLEOTIDES, fontsize=7)
            axes.set_xticks(*position_ticks(len(letters), 10, part.start), fontsize=7)
            axes.tick_params(length=2, pad=1.5)
            own = [(n, NUCLEOTIDES.index(letter)) for n, letter in enumerate(letters) if letter in NUCLEOTIDES]
            axes.plot([n for n, _ in own], [row for _, row in own], ".", color="black", markersize=3.5)
            positions, columns = np.nonzero(np.nan_to_num(scores[part]) > 0)
            axes.plot(positions, columns, "+", color="black", markersize=3.5, markeredgewidth=0.6)
            for n, letter in enumerate(letters):
                axes.text(n, -0.75, letter, fontsize=6.5, ha="center", va="bottom", family="monospace")
            axes.spines[:].set_visible(False)
        axes.set_xlabel("position  (dot: wild type, plus: above 0)", fontsize=8)
        across, down = figure.get_size_inches()
        height = min(edges["top"] - edges["bottom"], 1.4 / down)
        place = (edges["right"] + 0.2 / across, edges["top"] - height, 0.1 / across, height)
        is_low, is_high = bool(np.nanmin(scores, initial=0) < -limit), bool(np.nanmax(scores, initial=0) > limit)
        extend = {(1, 1): "both", (1, 0): "min", (0, 1): "max"}.get((is_low, is_high), "neither")
        bar = figure.colorbar(image, cax=figure.add_axes(place), extend=extend)
        bar.ax.tick_params(labelsize=7, length=2)
        bar.set_label(label, fontsize=7)
        bar.outline.set_visible(False)


def line_width(length: int) -> int:
    """Positions in a row: about equal rows of up to 50, as wide as a page; 100 where these would fill pages."""
    rows = ceil(length / (50 if length <= 600 else 100))
    return length if rows == 1 else 10 * ceil(length / rows / 10)

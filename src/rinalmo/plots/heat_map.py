"""A saturation map: positions along x, A, C, G, U along y, in rows of equal length.

The same scores give the same bytes of SVG.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np

from rinalmo.errors import InputError
from rinalmo.plots.style import PALE, Rows, check_figure, figure_in, position_ticks, robust_limit
from rinalmo.rna.alphabet import NUCLEOTIDES

LONGEST = 10_000
_PURPOSE = "drawing a heat map"
_CELL = 0.155
_ROWS = Rows(column=_CELL, height=4 * _CELL, gap=0.45, left=0.45, right=1.15, top=0.6, bottom=0.45)
_TICK_STEP = 10


def check_plot(path: Path, lengths: list[int]) -> None:
    """Raise InputError or MissingExtraError before computing what could not be drawn."""
    if len(lengths) != 1:
        check_figure(path, _PURPOSE)
        raise InputError(f"{path}: a heat map shows one sequence, but there are {len(lengths)}; give one at a time")
    check_figure(path, _PURPOSE, sum(lengths), LONGEST, "score a part of it")


def draw(scores: np.ndarray, sequence: str, title: str, path: Path, label: str = "score (nats)") -> None:
    """Draw `(length, 4)` scores, NaN where there is none.

    A dot marks the nucleotide of the sequence and a plus a score above 0, which in grey looks like one below. A few
    extreme scores do not stretch the scale: they have the colour of its end, which is then an arrow.
    """
    with figure_in(path, _PURPOSE) as figure:
        from matplotlib import colormaps
        from matplotlib.colors import CenteredNorm

        width = line_width(len(sequence))
        rows, edges = _ROWS.axes(figure, len(sequence), width, title)
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
            axes.set_xticks(*position_ticks(len(letters), _TICK_STEP, part.start), fontsize=7)
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

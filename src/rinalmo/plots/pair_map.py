"""All pairs of positions as a square: probabilities above the diagonal, the pairs chosen (or true) below it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.durable import check_path
from rinalmo.errors import InputError
from rinalmo.plots.arcs import check_reference, tick_step
from rinalmo.plots.style import BLACK, BLUE, ENDINGS, GREY, WHITE, figure_in, need_matplotlib, title_of
from rinalmo.rna.structure import Pairs, Structure

LONGEST = 5000
_NARROWEST, _WIDEST, _NUCLEOTIDE = 3.4, 7.0, 0.0125  # inches
_SMALLEST_MARK = 1.2  # points


def check_map(path: Path, length: int) -> None:
    """Raise InputError or MissingExtraError now for what could not be drawn in the end."""
    check_path(path, ENDINGS)
    if length > LONGEST:
        raise InputError(f"{path}: a map shows up to {LONGEST:,} nt, and the sequence has {length:,}; draw arcs")
    need_matplotlib("drawing a pair map")


def draw_pair_map(
    structure: Structure, probabilities: np.ndarray, path: str | Path, reference: Structure | None = None
) -> None:
    """Draw pair probabilities `(length, length)` into an SVG or PNG file; below the diagonal stand the pairs.

    These are those of `reference`, if it is given. Raises InputError for another ending or what does not fit.
    """
    path, length = Path(path), len(structure)
    check_map(path, length)
    if probabilities.shape != (length, length):
        raise InputError(f"{path}: probabilities of shape {probabilities.shape} do not fit {length} nt")
    if reference is not None:
        check_reference(structure, reference)
    side = min(max(_NUCLEOTIDE * length, _NARROWEST), _WIDEST)
    with figure_in(path, "drawing a pair map", figsize=(side + 0.8, side + 0.3), layout="constrained") as figure:
        axes = figure.subplots()
        _probabilities(figure, axes, probabilities)
        _marks(axes, (reference or structure).pairs, length, side)
        ticks = [0, *range(tick_step(length) - 1, length, tick_step(length))] if length > 1 else [0]
        axes.set_xticks(ticks, [str(n + 1) for n in ticks])
        axes.set_yticks(ticks, [str(n + 1) for n in ticks])
        axes.set_xlabel(f"position; below the diagonal: {'reference' if reference else 'predicted'} pairs")
        axes.set_ylabel("position")
        axes.set_title(f"{title_of(structure.name, 36)}, {length:,} nt", loc="left")


def _probabilities(figure: Any, axes: Any, probabilities: np.ndarray) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("probability", [WHITE, BLUE]).with_extremes(bad=WHITE)
    upper = np.where(np.triu(np.ones(probabilities.shape, dtype=bool)), probabilities.astype(np.float32), np.nan)
    image = axes.imshow(upper, cmap=shades, vmin=0, vmax=1, interpolation="nearest")
    axes.plot([-0.5, len(upper) - 0.5], [-0.5, len(upper) - 0.5], color=GREY, linewidth=0.6)
    axes.spines[:].set_visible(True)
    key = figure.colorbar(image, ax=axes, shrink=0.6, label="pair probability")
    key.outline.set_linewidth(0.5)


def _marks(axes: Any, pairs: Pairs, length: int, inches: float) -> None:
    """Squares as large as a cell, or as can be seen."""
    side = max(inches * 0.8 * 72 / length, _SMALLEST_MARK)
    rows, columns = [j for _, j in pairs], [i for i, _ in pairs]
    axes.scatter(columns, rows, s=side**2, marker="s", color=BLACK, linewidths=0, gid="pairs")
    axes.set(xlim=(-0.5, length - 0.5), ylim=(length - 0.5, -0.5))

"""A saturation map as a picture: positions along x, A, C, G, U along y, in lines of equal length one below the other.

The only file here that knows matplotlib. The same scores give the same bytes of SVG.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.durable import replacing
from rinalmo.errors import InputError, MissingExtraError
from rinalmo.inference.nucleotides import LETTERS
from rinalmo.inference.writers import check_path

ENDINGS = (".svg", ".png")
LONGEST = 10_000

_CELL = 0.155  # inches
_LINE_GAP = 0.45
_MARGINS = (1.6, 0.75)  # of the width: letters on the left, scale on the right; of the height: title, axis label
_LABELLED = 10


def check_plot(path: Path, lengths: list[int]) -> None:
    """Raise InputError or MissingExtraError now for what could not be drawn in the end."""
    check_path(path, ENDINGS)
    if len(lengths) != 1:
        raise InputError(f"{path}: shows one sequence, but {len(lengths)} are given; give one at a time")
    if lengths[0] > LONGEST:
        raise InputError(f"{path}: shows up to {LONGEST:,} nt, but the sequence has {lengths[0]:,}; score a part of it")
    _matplotlib()


def draw(scores: np.ndarray, sequence: str, title: str, path: Path) -> None:
    """Draw `(length, 4)` scores, NaN where there is none; a dot marks the letter of the sequence itself."""
    rc_context, figure_class, norm_class = _matplotlib()
    width = line_width(len(sequence))
    lines = ceil(len(sequence) / width)
    size = (_MARGINS[0] + width * _CELL, _MARGINS[1] + lines * (4 * _CELL + _LINE_GAP))
    # Without a fixed salt the ids in an SVG are random; text stays text, in whatever font the reader has.
    with rc_context({"svg.hashsalt": "rinalmo", "svg.fonttype": "none"}):
        figure = figure_class(figsize=size)
        left, bottom = 0.45 / size[0], 0.45 / size[1]
        grid = {"left": left, "right": left + width * _CELL / size[0], "bottom": bottom, "top": 1 - 0.6 / size[1]}
        grid["hspace"] = _LINE_GAP / (4 * _CELL)
        rows = figure.subplots(lines, 1, squeeze=False, gridspec_kw=grid)[:, 0]
        largest = np.nanmax(np.abs(scores), initial=1e-6)
        for number, axes in enumerate(rows):
            start = number * width
            image = _line(axes, scores[start : start + width], sequence[start : start + width], start, width)
            image.set_norm(norm_class(vcenter=0, halfrange=largest))
        rows[-1].set_xlabel("position", fontsize=8)
        figure.text(left, 1 - 0.2 / size[1], title, fontsize=9, va="center")
        _scale(figure, image, size, grid)
        with replacing(path) as file:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(file, format=path.suffix[1:], dpi=150, metadata=metadata)


def line_width(length: int) -> int:
    """Positions in a line: all of a short RNA, 60 of a longer one, 100 of one that would fill pages."""
    return length if length <= 80 else 60 if length <= 600 else 100


def _line(axes: Any, scores: np.ndarray, letters: str, start: int, width: int) -> Any:
    """One line of the map. Red to blue stays apart for every common kind of colour blindness."""
    axes.set_facecolor("#d9d9d9")
    image = axes.imshow(scores.T, cmap="RdBu", interpolation="nearest", aspect="equal")
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_anchor("W")
    axes.set_yticks(range(4), LETTERS, fontsize=7)
    labelled = [n for n in range(len(letters)) if (start + n + 1) % _LABELLED == 0 or start + n == 0]
    axes.set_xticks(labelled, [str(start + n + 1) for n in labelled], fontsize=7)
    axes.tick_params(length=2, pad=1.5)
    own = [(n, LETTERS.index(letter)) for n, letter in enumerate(letters) if letter in LETTERS]
    axes.plot([n for n, _ in own], [row for _, row in own], ".", color="black", markersize=3.5)
    for n, letter in enumerate(letters):
        axes.text(n, -0.75, letter, fontsize=6.5, ha="center", va="bottom", family="monospace")
    axes.spines[:].set_visible(False)
    return image


def _scale(figure: Any, image: Any, size: tuple[float, float], grid: dict[str, float]) -> None:
    """The colours' key, on the right of the first lines."""
    height = min(grid["top"] - grid["bottom"], 1.4 / size[1])
    axes = figure.add_axes((grid["right"] + 0.2 / size[0], grid["top"] - height, 0.1 / size[0], height))
    key = figure.colorbar(image, cax=axes)
    key.ax.tick_params(labelsize=7, length=2)
    key.set_label("score (nats)", fontsize=7)
    key.outline.set_visible(False)


def _matplotlib() -> tuple[Any, Any, Any]:
    try:
        from matplotlib import rc_context
        from matplotlib.colors import CenteredNorm
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "plots", "drawing a heat map") from None
    return rc_context, Figure, CenteredNorm

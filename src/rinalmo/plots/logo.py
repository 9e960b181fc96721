"""What a model expects at each place, as a sequence logo: letters on top of each other, the likeliest on top.

    information   a column is as high as what is known of the place, 2 bits minus the entropy, shared by probability
    probability   every column is 1 high

Below each column stands the letter of the sequence itself, black where it is the likeliest, vermilion and underlined
where it is not. Letters tell themselves apart by shape as well as by colour; the colours are those of Okabe and Ito.

Reference: Schneider & Stephens 1990 (Nucleic Acids Research 18:6097).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from rinalmo.errors import InputError
from rinalmo.io.files import check_path
from rinalmo.plots.pairs import tick_step
from rinalmo.plots.style import BLACK, BLUE, ENDINGS, VERMILION, figure_in, need_matplotlib, title_of
from rinalmo.rna.alphabet import NUCLEOTIDES

Heights = Literal["information", "probability"]

COLOURS = dict(zip(NUCLEOTIDES, ("#009E73", BLUE, "#E69F00", VERMILION), strict=True))
LONGEST = 1000
_PURPOSE = "drawing a logo"
_COLUMN, _HEIGHT, _GAP = 0.13, 0.95, 0.55  # inches
_LEFT, _RIGHT, _TOP, _BOTTOM, _TITLE_LETTER = 0.5, 0.15, 0.45, 0.4, 0.075
_WRAP, _SHORTEST = 80, 20  # columns of a line
_LEAST = 0.01  # bits or probability: a lower letter is not seen


def check_logo(path: Path, length: int) -> None:
    """Raise InputError or MissingExtraError now for what could not be drawn in the end."""
    check_path(path, ENDINGS)
    if length > LONGEST:
        raise InputError(
            f"{path}: a logo shows up to {LONGEST:,} nt, and the sequence has {length:,}; draw a part of it"
        )
    need_matplotlib(_PURPOSE)


def draw_logo(
    probabilities: np.ndarray, sequence: str, path: str | Path, *, name: str = "", heights: Heights = "information"
) -> None:
    """Draw probabilities of A, C, G and U, `(length, 4)`, into an SVG or PNG file; a row of NaN is left empty.

    `sequence` has one character a place, such as N or ? where the letter is not known. Raises InputError for another
    ending, a sequence too long or probabilities that are none.
    """
    path = Path(path)
    check_logo(path, len(sequence))
    if heights not in get_args(Heights):
        raise InputError(f"heights {heights!r} are unknown; use one of {', '.join(get_args(Heights))}")
    _check(probabilities, sequence)
    width = min(max(len(sequence), _SHORTEST), _WRAP)
    starts = range(0, len(sequence), width)
    title = f"{title_of(name)}, {len(sequence):,} nt" if name else f"{len(sequence):,} nt"
    across = max(_LEFT + width * _COLUMN + _RIGHT, _LEFT + _TITLE_LETTER * len(title))
    down = _TOP + len(starts) * (_HEIGHT + _GAP) - _GAP + _BOTTOM
    grid = {"left": _LEFT / across, "right": (_LEFT + width * _COLUMN) / across}
    grid |= {"bottom": _BOTTOM / down, "top": 1 - _TOP / down, "hspace": _GAP / _HEIGHT}
    tall = column_heights(probabilities, heights)
    with figure_in(path, _PURPOSE, figsize=(across, down)) as figure:
        lines = figure.subplots(len(starts), 1, squeeze=False, gridspec_kw=grid)[:, 0]
        for start, axes in zip(starts, lines, strict=True):
            part = slice(start, start + width)
            _line(axes, tall[part], sequence[part], start, width)
            axes.set_ylim(0, _top(heights))
            axes.set_ylabel("bits" if heights == "information" else "probability", fontsize=7)
        figure.text(_LEFT / across, 1 - 0.2 / down, title, fontsize=9, va="center")


def column_heights(probabilities: np.ndarray, heights: Heights = "information") -> np.ndarray:
    """The height of each letter, `(length, 4)`: in bits, or the probability itself."""
    if heights == "probability":
        return probabilities
    surprise = -np.log2(np.where(probabilities > 0, probabilities, 1.0))
    entropy = np.sum(probabilities * surprise, axis=1, keepdims=True)
    return probabilities * (_top("information") - entropy)


def _top(heights: Heights) -> float:
    return 2.0 if heights == "information" else 1.0


def _check(probabilities: np.ndarray, sequence: str) -> None:
    if probabilities.shape != (len(sequence), len(NUCLEOTIDES)):
        raise InputError(f"probabilities of shape {probabilities.shape} do not fit {len(sequence)} nt of four letters")
    known = probabilities[~np.isnan(probabilities).any(axis=1)]
    if (known < 0).any() or not np.allclose(known.sum(axis=1), 1, atol=1e-3):
        raise InputError("the probabilities of each place must be positive and have the sum 1")


def _line(axes: Any, tall: np.ndarray, letters: str, start: int, width: int) -> None:
    for letter, (places, low, high) in _stacked(np.nan_to_num(tall)).items():
        _glyphs(axes, letter, places, low, high)
    best = np.where(np.isnan(tall).any(axis=1), -1, np.nan_to_num(tall).argmax(axis=1))
    axes.set_xlim(-0.5, width - 0.5)
    axes.spines[:].set_visible(False)
    axes.spines["left"].set_visible(True)
    axes.plot([-0.5, len(letters) - 0.5], [0, 0], color=BLACK, linewidth=0.8, clip_on=False)
    for n, letter in enumerate(letters):
        _own(axes, n, letter, is_expected=best[n] >= 0 and NUCLEOTIDES[best[n]] == letter.upper().replace("T", "U"))
    labelled = [n for n in range(len(letters)) if (start + n + 1) % tick_step(width) == 0 or start + n == 0]
    axes.set_xticks(labelled, [str(start + n + 1) for n in labelled], fontsize=7)
    axes.tick_params(axis="x", length=0, pad=10)
    axes.tick_params(axis="y", labelsize=7, length=2)


def _own(axes: Any, place: int, letter: str, is_expected: bool) -> None:
    """The sequence's letter below its column."""
    colour = BLACK if is_expected else VERMILION
    below = axes.get_xaxis_transform()
    style = {"fontsize": 6.5, "ha": "center", "va": "top", "family": "monospace", "color": colour}
    axes.text(place, -0.04, letter, transform=below, **style)
    if not is_expected:
        line = {"color": colour, "linewidth": 0.8, "clip_on": False}
        axes.plot([place - 0.35, place + 0.35], [-0.135, -0.135], transform=below, **line)


def _stacked(tall: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each letter its places, lower and upper ends: in each column the highest comes last."""
    order = tall.argsort(axis=1, kind="stable")
    ends = np.take_along_axis(tall, order, axis=1).cumsum(axis=1)
    found = {}
    for column, letter in enumerate(NUCLEOTIDES):
        where = order == column
        high, own = ends[where], tall[:, column]
        seen = own > _LEAST
        found[letter] = (np.flatnonzero(seen), (high - own)[seen], high[seen])
    return found


def _glyphs(axes: Any, letter: str, places: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """One path with all letters of a kind, each stretched to its place."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    if not len(places):
        return
    corners, codes = _glyph(letter)
    size = np.column_stack([np.full(len(places), 0.92), (high - low) * 0.97])
    base = np.column_stack([places - 0.46, low])
    points = (corners[None] * size[:, None] + base[:, None]).reshape(-1, 2)
    outline = Outline(points, np.tile(codes, len(places)))
    axes.add_patch(PathPatch(outline, facecolor=COLOURS[letter], linewidth=0, gid=f"logo-{letter}"))


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

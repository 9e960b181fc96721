"""A drawing of a structure as SVG: nucleotides, backbone, helices, and labels where there is room.

The layout is that of RNApuzzler (Wiegreffe et al. 2019), from ViennaRNA; a circle where it fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.io.files import atomic_write, check_path
from rinalmo.plots import svg
from rinalmo.plots.style import BLACK, GREY, SKY, VERMILION, WHITE, shade, title_of
from rinalmo.rna.structure import Structure

LONGEST = 2000

STEP = 25.0
"""From one nucleotide to the next, in pixels."""

CLOSEST = 20.0
"""Minimum distance of two nucleotides. RNApuzzler's may be a little nearer: then everything is drawn larger."""

_MIN_LOOP = 2
_LAYOUT_SECONDS = 5  # others take less than one
_PUZZLER = """
import json, sys, RNA
RNA.cvar.rna_plot_type = RNA.PLOT_TYPE_PUZZLER
text = sys.stdin.read()
layout = RNA.get_xy_coordinates(text)
print(json.dumps([(layout.get(n).X, layout.get(n).Y) for n in range(len(text))]))
"""

_RADIUS, _MARGIN, _LETTER = 9.0, 45.0, 12
_WHITE_LETTER_FROM = 0.6  # probability
_DASHES = "5 3"
_BEND = 0.22  # of a curve, as a share of its length
# Labels: every 10th number at one of these distances and 16 angles.
_LABEL_STEP, _LABEL_DISTANCES, _LABEL_ANGLES = 10, (22.0, 30.0, 40.0), 16
_LABEL_CLEARANCE = 19.0
_LINE_SPACING = 8.0  # labels avoid lines by points along them


class _PairLine(NamedTuple):
    """How a pair is drawn: straight in the ladder or as a dashed curve, with its midpoint."""

    pair: tuple[int, int]
    kind: str  # "" for AU and GC, "GU", or "other"
    is_straight: bool
    middle: np.ndarray


def check_drawing(path: Path, length: int) -> None:
    """Raise InputError or MissingExtraError before computing what could not be drawn."""
    if path.suffix == ".png":
        raise InputError(f"{path}: a drawing is written as .svg; arcs and maps are written as .png too")
    check_path(path, (".svg",))
    if length > LONGEST:
        raise InputError(f"{path}: a drawing takes up to {LONGEST:,} nt, and the sequence has {length:,}; draw arcs")
    _need_vienna()


def _need_vienna() -> None:
    if find_spec("RNA") is None:
        raise MissingExtraError("ViennaRNA", "draw", "drawing a structure")


def draw_structure(structure: Structure, path: str | Path, probabilities: np.ndarray | None = None) -> None:
    """Draw a structure with its nucleotides and pairs.

    Args:
        structure: Up to 2,000 nt.
        path: An SVG file.
        probabilities: Of pairs, `(length, length)`: shades each nucleotide by its likeliest pair.

    Raises:
        InputError: A structure too long, another ending, or probabilities of another shape.
        MissingExtraError: ViennaRNA is not installed.

    Examples:
        >>> import tempfile
        >>> from rinalmo.plots import draw_structure
        >>> from rinalmo.rna.structure import Structure
        >>> structure = Structure.from_dot_bracket("hairpin", "GGGAAACCC", "(((...)))")
        >>> draw_structure(structure, tempfile.mkdtemp() + "/drawing.svg")
    """
    path = Path(path)
    check_drawing(path, len(structure))
    text = structure_svg(structure, probabilities)
    with atomic_write(path) as file:
        file.write(text.encode())


def structure_svg(structure: Structure, probabilities: np.ndarray | None = None) -> str:
    """The drawing as text of SVG, for a page or a notebook."""
    length = len(structure)
    if probabilities is not None and probabilities.shape != (length, length):
        raise InputError(f"probabilities of shape {probabilities.shape} do not fit {length} nt")
    likeliest = None if probabilities is None else np.nan_to_num(np.maximum(probabilities, probabilities.T)).max(axis=1)
    points, lines = _layout(structure)
    labels = placed_labels(points, structure.pairs)
    body = []
    if length > 1:
        body.append(svg.polyline(points, class_="backbone", stroke=GREY, stroke_width=1.5))
    for line in lines:
        (i, j), colour = line.pair, BLACK if line.is_straight else VERMILION
        control = 2 * line.middle - (points[i] + points[j]) / 2
        dashes = {} if line.is_straight else {"stroke_dasharray": _DASHES}
        curve = svg.curve(points[i], control, points[j], stroke=colour, stroke_width=1.8, **dashes)
        marker = _marker(line.kind, line.middle, colour)
        body.append(svg.element("g", curve + marker, class_="pair", data_pair=f"{i + 1}-{j + 1}"))
    for n, at, text in labels:
        towards = (points[n] - at) / max(float(np.hypot(*(points[n] - at))), 1e-9)
        start, end = points[n] - towards * _RADIUS, points[n] - towards * (_RADIUS + 4)
        label = svg.line(start, end, stroke=GREY, stroke_width=1) + svg.text(text, at, fill="#404040", font_size=11)
        body.append(svg.element("g", label, class_="label"))
    paired = {n for pair in structure.pairs for n in pair}
    for n, (letter, at) in enumerate(zip(structure.sequence, points, strict=True)):
        tooltip, fill, ink = f"{letter}{n + 1}", SKY + "55" if n in paired else WHITE, BLACK
        if likeliest is not None:
            tooltip, fill = f"{tooltip}, {likeliest[n]:.2f}", shade(likeliest[n])
            ink = WHITE if likeliest[n] > _WHITE_LETTER_FROM else BLACK
        # White below: the backbone must not show through a transparent colour.
        nucleotide = svg.element("title", tooltip) + svg.circle(at, _RADIUS, fill=WHITE)
        nucleotide += svg.circle(at, _RADIUS, fill=fill, stroke=BLACK, stroke_width=0.8)
        nucleotide += svg.text(letter, at, fill=ink, font_size=_LETTER)
        body.append(svg.element("g", nucleotide, class_="nucleotide", data_position=n + 1))
    corners = np.vstack([points, *(at for _, at, _ in labels), *(line.middle for line in lines)])
    x, y = np.array([_MARGIN, _MARGIN + 20]) - corners.min(axis=0)
    width, height = np.ptp(corners, axis=0) + np.array([2 * _MARGIN, 2 * _MARGIN + 20])
    title = f"{title_of(structure.name)}, {length:,} nt" if structure.name else f"{length:,} nt"
    legend = [
        svg.element("g", row, transform=f"translate({_MARGIN:.0f} {height + 22 * n:.0f})")
        for n, row in enumerate(_legend_rows(lines, likeliest is not None))
    ]
    content = [
        svg.text(title, np.array([_MARGIN, 24.0]), text_anchor="start", font_size=14),
        svg.element("g", "\n".join(["", *body, ""]), transform=f"translate({x:.1f} {y:.1f})"),
        *legend,
    ]
    return svg.page(max(width, 7.5 * len(title) + 2 * _MARGIN, 300.0), height + 22 * len(legend), content)


def _layout(structure: Structure) -> tuple[np.ndarray, list[_PairLine]]:
    """Where the nucleotides are, and how each pair is drawn."""
    nested = structure.nested().pairs
    ladder = tuple((i, j) for i, j in nested if j - i > _MIN_LOOP)
    points, has_ladder = positions(ladder, len(structure))
    straight, centre = set(ladder if has_ladder else nested), points.mean(axis=0)
    lines = []
    for i, j in structure.pairs:
        middle = (points[i] + points[j]) / 2
        if has_ladder and (i, j) not in straight:
            # Curves bend away from the centre of the drawing.
            bend = np.array([points[i][1] - points[j][1], points[j][0] - points[i][0]]) * _BEND
            middle = middle + (bend if np.dot(bend, middle - centre) >= 0 else -bend)
        letters = "".join(sorted((structure.sequence[i] + structure.sequence[j]).upper().replace("T", "U")))
        kind = {"AU": "", "CG": "", "GU": "GU"}.get(letters, "other")
        lines.append(_PairLine((i, j), kind, (i, j) in straight, middle))
    return points, lines


def positions(pairs: Iterable[tuple[int, int]], length: int) -> tuple[np.ndarray, bool]:
    """Coordinates `(length, 2)`, y downward, and whether they follow the pairs, which are nested and have loops."""
    _need_vienna()
    text = ["."] * length
    for i, j in pairs:
        text[i], text[j] = "(", ")"
    command = [sys.executable, "-c", _PUZZLER]
    options = {"capture_output": True, "encoding": "utf-8", "timeout": _LAYOUT_SECONDS, "check": True}
    try:
        output = subprocess.run(command, input="".join(text), **options).stdout  # type: ignore[call-overload]
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return circle(length), False
    points = np.array(json.loads(output), dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(points).all() or (closest := nearest(points)) < CLOSEST / 2:
        return circle(length), False
    return points * (1, -1) * max(1.0, CLOSEST / closest), True


def circle(length: int) -> np.ndarray:
    """Nucleotides on a circle, clockwise from the lower left, with a gap between the ends."""
    angles = np.pi / 2 + 2 * np.pi * (np.arange(length) + 1) / (length + 1)
    radius = STEP / 2 / np.sin(np.pi / (length + 1))
    return radius * np.column_stack([np.cos(angles), np.sin(angles)])


def nearest(points: np.ndarray) -> float:
    """The smallest distance of two points; infinite for one."""
    smallest = np.inf
    for n in range(1, len(points)):
        smallest = min(smallest, float(np.hypot(*(points[:n] - points[n]).T).min()))
    return smallest


def placed_labels(points: np.ndarray, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, np.ndarray, str]]:
    """Nucleotide, position and text of each label: 5′, 3′ and each 10th number, at the nearest clear place.

    Where no place is clear, the clearest one is taken.
    """
    obstacles = [points]
    for i, j in [*zip(range(len(points)), range(1, len(points)), strict=False), *pairs]:
        steps = int(np.hypot(*(points[j] - points[i])) // _LINE_SPACING)
        obstacles.append(points[i] + np.linspace(0, 1, steps + 2)[1:-1, None] * (points[j] - points[i]))
    taken = np.vstack(obstacles)
    angles = 2 * np.pi * np.arange(_LABEL_ANGLES) / _LABEL_ANGLES
    around = np.column_stack([np.cos(angles), np.sin(angles)])
    numbers = [(n, str(n + 1)) for n in range(_LABEL_STEP - 1, len(points), _LABEL_STEP)]
    labels = []
    for n, text in [(0, "5′"), (len(points) - 1, "3′"), *numbers]:
        near = taken[np.abs(taken - points[n]).max(axis=1) < _LABEL_DISTANCES[-1] + 2 * _LABEL_CLEARANCE]
        near = near[np.hypot(*(near - points[n]).T) > _LINE_SPACING / 2]  # its own nucleotide is no obstacle
        best, best_clearance = points[n], -1.0
        for distance in _LABEL_DISTANCES:
            places = points[n] + distance * around
            clearance = np.hypot(*(places[:, None] - near[None]).transpose(2, 0, 1)).min(axis=1, initial=1e3)
            if clearance.max() > best_clearance:
                best, best_clearance = places[clearance.argmax()], float(clearance.max())
            if best_clearance >= _LABEL_CLEARANCE:
                break
        taken = np.vstack([taken, best])
        labels.append((n, best, text))
    return labels


def _marker(kind: str, at: np.ndarray, colour: str) -> str:
    """A full dot for GU, an empty one for pairs other than AU, GC and GU."""
    return svg.circle(at, 3.2, fill=colour if kind == "GU" else WHITE, stroke=colour, stroke_width=1.4) if kind else ""


def _legend_rows(lines: list[_PairLine], is_shaded: bool) -> Iterator[str]:
    left, middle, right = np.array([0.0, 0.0]), np.array([15.0, 0.0]), np.array([30.0, 0.0])
    text = {"text_anchor": "start", "font_size": 11}
    after_line, after_scale = np.array([40.0, 0.0]), np.array([74.0, 0.0])
    kinds = {line.kind for line in lines}
    for kind, meaning in (("GU", "GU pair"), ("other", "pair other than AU, GC and GU")):
        if kind in kinds:
            stroke = svg.line(left, right, stroke=BLACK, stroke_width=1.8)
            yield stroke + _marker(kind, middle, BLACK) + svg.text(meaning, after_line, **text)
    if not all(line.is_straight for line in lines):
        stroke = svg.line(left, right, stroke=VERMILION, stroke_width=1.8, stroke_dasharray=_DASHES)
        yield stroke + svg.text("pair of a pseudoknot, or too close to draw straight", after_line, **text)
    if is_shaded:
        scale = [svg.element("rect", x=6.0 * n, y=-6, width=6.2, height=12, fill=shade(n / 10)) for n in range(11)]
        yield "".join(scale) + svg.text("probability of the likeliest pair, 0 to 1", after_scale, **text)

"""Where the labels of a drawing stand: each 10th number, 5′ and 3′, in the clearest place around their nucleotide."""

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
from rinalmo.io.files import check_path, replacing
from rinalmo.plots import svg
from rinalmo.plots.style import BLACK, FONTS, GREY, SKY, VERMILION, WHITE, shade, title_of
from rinalmo.rna.structure import Structure

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


STEP = 25.0
"""From one nucleotide to the next."""

CLOSEST = 20.0
"""No two nucleotides are nearer. RNApuzzler's may be, by a little: then everything is drawn larger."""

SMALLEST_LOOP = 2
_SECONDS = 5  # others take less than one
_PUZZLER = """
import json, sys, RNA
RNA.cvar.rna_plot_type = RNA.PLOT_TYPE_PUZZLER
text = sys.stdin.read()
found = RNA.get_xy_coordinates(text)
print(json.dumps([(found.get(n).X, found.get(n).Y) for n in range(len(text))]))
"""


def need_vienna() -> None:
    """Raise MissingExtraError if ViennaRNA is not installed."""
    if find_spec("RNA") is None:
        raise MissingExtraError("ViennaRNA", "draw", "drawing a structure")


def positions(pairs: Iterable[tuple[int, int]], length: int) -> tuple[np.ndarray, bool]:
    """Coordinates `(length, 2)`, y downward, and whether they follow the pairs, which are nested and have loops."""
    need_vienna()
    text = ["."] * length
    for i, j in pairs:
        text[i], text[j] = "(", ")"
    found = _puzzled("".join(text))
    if found is None or (room := nearest(found)) < CLOSEST / 2:
        return circle(length), False
    return found * (1, -1) * max(1.0, CLOSEST / room), True


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


def _puzzled(text: str) -> np.ndarray | None:
    command = [sys.executable, "-c", _PUZZLER]
    try:
        done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", timeout=_SECONDS, check=True)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return None
    found = np.array(json.loads(done.stdout), dtype=np.float64).reshape(-1, 2)
    return found if np.isfinite(found).all() else None


LONGEST = 2000
_RADIUS, _MARGIN, _LETTER = 9.0, 45.0, 12
_DARK = 0.6  # from this probability on letters are white
_DASHES = "5 3"
_BEND = 0.22  # of a curve, as a share of its length


class _Stroke(NamedTuple):
    """How a pair is drawn: straight in the ladder or as a dashed curve, with the place of its middle."""

    pair: tuple[int, int]
    kind: str
    is_plain: bool
    top: np.ndarray


def check_drawing(path: Path, length: int) -> None:
    """Raise InputError now for what could not be drawn in the end."""
    if path.suffix == ".png":
        raise InputError(f"{path}: a drawing is written as .svg; arcs and maps are written as .png too")
    check_path(path, (".svg",))
    if length > LONGEST:
        raise InputError(f"{path}: a drawing shows up to {LONGEST:,} nt, and the sequence has {length:,}; draw arcs")
    need_vienna()


def draw_structure(structure: Structure, path: str | Path, probabilities: np.ndarray | None = None) -> None:
    """Draw a structure of up to 2,000 nt into an SVG file. `probabilities` of pairs, `(length, length)`, are optional.

    Raises InputError for a structure too long or another ending, MissingExtraError without ViennaRNA.
    """
    path = Path(path)
    check_drawing(path, len(structure))
    picture = structure_svg(structure, probabilities)
    with replacing(path) as file:
        file.write(picture.encode())


def structure_svg(structure: Structure, probabilities: np.ndarray | None = None) -> str:
    """The drawing as text of SVG, for a page or a notebook."""
    length = len(structure)
    if probabilities is not None and probabilities.shape != (length, length):
        raise InputError(f"probabilities of shape {probabilities.shape} do not fit {length} nt")
    shown = None if probabilities is None else np.nan_to_num(np.maximum(probabilities, probabilities.T)).max(axis=1)
    lines, points = _laid_out(structure)
    labels = placed_labels(points, structure.pairs)
    corners = np.vstack([points, *(at for _, at, _ in labels), *(line.top for line in lines)])
    shift = np.array([_MARGIN, _MARGIN + 20]) - corners.min(axis=0)
    title = f"{title_of(structure.name)}, {length:,} nt" if structure.name else f"{length:,} nt"
    width, height = np.ptp(corners, axis=0) + np.array([2 * _MARGIN, 2 * _MARGIN + 20])
    body = [
        *_backbone(points),
        *(_pair(line, points) for line in lines),
        *(_label(points[n], at, content) for n, at, content in labels),
        *_nucleotides(structure, points, shown),
    ]
    heading = svg.text(title, np.array([_MARGIN, 24.0]), text_anchor="start", font_size=14)
    moved = svg.element("g", "\n" + "\n".join(body) + "\n", transform=f"translate({shift[0]:.1f} {shift[1]:.1f})")
    legend = [
        svg.element("g", part, transform=f"translate({_MARGIN:.0f} {height + 22 * n:.0f})")
        for n, part in enumerate(_legend(lines, shown is not None))
    ]
    width = max(width, 7.5 * len(title) + 2 * _MARGIN, 300.0)
    return _page(width, height + 22 * len(legend), [heading, moved, *legend])


def _laid_out(structure: Structure) -> tuple[list[_Stroke], np.ndarray]:
    """How each pair is drawn, and where the nucleotides lie."""
    nested = structure.nested().pairs
    straight = tuple((i, j) for i, j in nested if j - i > SMALLEST_LOOP)
    points, is_ladder = positions(straight, len(structure))
    plain, centre = set(straight if is_ladder else nested), points.mean(axis=0)
    lines = []
    for pair in structure.pairs:
        start, end = points[pair[0]], points[pair[1]]
        bend = _bend(start, end, centre) if is_ladder and pair not in plain else np.zeros(2)
        lines.append(_Stroke(pair, kind_of(structure, pair), pair in plain, (start + end) / 2 + bend))
    return lines, points


def _page(width: float, height: float, body: list[str]) -> str:
    size = {"width": f"{width:.0f}", "height": f"{height:.0f}", "viewBox": f"0 0 {width:.0f} {height:.0f}"}
    paper = svg.element("rect", width="100%", height="100%", fill=WHITE)
    content = "\n".join(["", paper, *body, ""])
    return svg.element("svg", content, xmlns="http://www.w3.org/2000/svg", font_family=FONTS, **size) + "\n"


def _backbone(points: np.ndarray) -> Iterator[str]:
    if len(points) > 1:
        yield svg.polyline(points, class_="backbone", stroke=GREY, stroke_width=1.5)


def _pair(line: _Stroke, points: np.ndarray) -> str:
    (i, j), colour = line.pair, BLACK if line.is_plain else VERMILION
    control = 2 * line.top - (points[i] + points[j]) / 2
    dashes = {} if line.is_plain else {"stroke_dasharray": _DASHES}
    parts = svg.curve(points[i], control, points[j], stroke=colour, stroke_width=1.8, **dashes)
    return svg.element("g", parts + _mark(line.kind, line.top, colour), class_="pair", data_pair=f"{i + 1}-{j + 1}")


def _bend(start: np.ndarray, end: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """How far the middle of a curve lies beside the straight line: away from the middle of the drawing."""
    across = np.array([start[1] - end[1], end[0] - start[0]]) * _BEND
    return across if np.dot(across, (start + end) / 2 - centre) >= 0 else -across


def _mark(kind: str, at: np.ndarray, colour: str) -> str:
    if not kind:
        return ""
    fill = colour if kind == "GU" else WHITE
    return svg.circle(at, 3.2, fill=fill, stroke=colour, stroke_width=1.4)


def kind_of(structure: Structure, pair: tuple[int, int]) -> str:
    """ "" for AU and GC, "GU", or "other"."""
    letters = "".join(sorted("".join(structure.sequence[n] for n in pair).upper().replace("T", "U")))
    return {"AU": "", "CG": "", "GU": "GU"}.get(letters, "other")


def _nucleotides(structure: Structure, points: np.ndarray, shown: np.ndarray | None) -> Iterator[str]:
    paired = {n for pair in structure.pairs for n in pair}
    for n, (letter, at) in enumerate(zip(structure.sequence, points, strict=True)):
        fill = (SKY + "55" if n in paired else WHITE) if shown is None else shade(shown[n])
        ink = WHITE if shown is not None and shown[n] > _DARK else BLACK
        told = f"{letter}{n + 1}" + ("" if shown is None else f", {shown[n]:.2f}")
        # White below: a colour that lets light through must not show the backbone.
        body = svg.element("title", told) + svg.circle(at, _RADIUS, fill=WHITE)
        body += svg.circle(at, _RADIUS, fill=fill, stroke=BLACK, stroke_width=0.8)
        body += svg.text(letter, at, fill=ink, font_size=_LETTER)
        yield svg.element("g", body, class_="nucleotide", data_position=n + 1)


def _label(nucleotide: np.ndarray, at: np.ndarray, content: str) -> str:
    towards = (nucleotide - at) / max(float(np.hypot(*(nucleotide - at))), 1e-9)
    tick = svg.line(nucleotide - towards * _RADIUS, nucleotide - towards * (_RADIUS + 4), stroke=GREY, stroke_width=1)
    return svg.element("g", tick + svg.text(content, at, fill="#404040", font_size=11), class_="label")


def _legend(lines: list[_Stroke], is_shaded: bool) -> Iterator[str]:
    """One row each for what is drawn and does not explain itself."""
    left, middle, right = np.array([0.0, 0.0]), np.array([15.0, 0.0]), np.array([30.0, 0.0])
    kinds = {line.kind for line in lines}
    for kind, meaning in (("GU", "GU pair"), ("other", "pair other than AU, GC and GU")):
        if kind in kinds:
            stroke = svg.line(left, right, stroke=BLACK, stroke_width=1.8)
            yield stroke + _mark(kind, middle, BLACK) + _told(meaning)
    if not all(line.is_plain for line in lines):
        stroke = svg.line(left, right, stroke=VERMILION, stroke_width=1.8, stroke_dasharray=_DASHES)
        yield stroke + _told("pair of a pseudoknot, or too close to draw straight")
    if is_shaded:
        yield "".join(
            svg.element("rect", x=6.0 * n, y=-6, width=6.2, height=12, fill=shade(n / 10)) for n in range(11)
        ) + _told("probability of the likeliest pair, 0 to 1", 74.0)


def _told(content: str, x: float = 40.0) -> str:
    return svg.text(content, np.array([x, 0.0]), text_anchor="start", font_size=11)

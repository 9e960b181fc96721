"""A secondary structure as people draw it: letters along a backbone, helices as ladders, loops as circles. SVG.

    AU, GC      a line              GU      a line with a dot           others  a line with an open circle
    pseudoknots, and pairs around fewer than two nucleotides            a dashed curve: the layout leaves them out

The colour of a nucleotide is the probability of its likeliest pair, if probabilities are given. Units are pixels; a
nucleotide's circle is 18 wide. Every nucleotide and pair is one element with `data-position` or `data-pair`, from 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rinalmo.durable import check_path, replacing
from rinalmo.errors import InputError
from rinalmo.plots import svg
from rinalmo.plots.labels import placed_labels
from rinalmo.plots.layout import SMALLEST_LOOP, positions
from rinalmo.plots.style import BLACK, FONTS, GREY, SKY, VERMILION, WHITE, shade, title_of
from rinalmo.rna.structure import Pairs, Structure

LONGEST = 2000
_RADIUS, _MARGIN, _LETTER = 9.0, 45.0, 12
_DARK = 0.6  # from this probability on letters are white
_BEND = 0.22  # of a curve, as a share of its length


def check_drawing(path: Path, length: int) -> None:
    """Raise InputError now for what could not be drawn in the end."""
    if path.suffix == ".png":
        raise InputError(f"{path}: a drawing is written as .svg; arcs and maps are written as .png too")
    check_path(path, (".svg",))
    if length > LONGEST:
        raise InputError(f"{path}: a drawing shows up to {LONGEST:,} nt, and the sequence has {length:,}; draw arcs")


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
    straight = tuple((i, j) for i, j in structure.nested().pairs if j - i > SMALLEST_LOOP)
    points, is_ladder = positions(straight, length)
    labels = placed_labels(points, structure.pairs)
    corners = np.vstack([points, *(at for _, at, _ in labels)])
    shift = np.array([_MARGIN, _MARGIN + 20]) - corners.min(axis=0)
    legend = list(_legend(structure, straight if is_ladder else (), shown is not None))
    title = f"{title_of(structure.name)}, {length:,} nt" if structure.name else f"{length:,} nt"
    width, height = np.ptp(corners, axis=0) + (2 * _MARGIN, 2 * _MARGIN + 20)
    width = max(width, 7.5 * len(title) + 2 * _MARGIN, 300.0)
    body = [
        svg.text(title, np.array([_MARGIN, 24.0]), text_anchor="start", font_size=14),
        *_backbone(points + shift),
        *_pairs(structure, points + shift, straight if is_ladder else ()),
        *(_label(points[n] + shift, at + shift, content) for n, at, content in labels),
        *_nucleotides(structure, points + shift, shown),
        *(svg.element("g", part, transform=f"translate({_MARGIN:.0f} {height + 22 * n:.0f})") for n, part in enumerate(legend)),
    ]
    return _page(width, height + 22 * len(legend), body)


def _page(width: float, height: float, body: list[str]) -> str:
    size = {"width": f"{width:.0f}", "height": f"{height:.0f}", "viewBox": f"0 0 {width:.0f} {height:.0f}"}
    paper = svg.element("rect", width="100%", height="100%", fill=WHITE)
    content = "\n".join(["", paper, *body, ""])
    return svg.element("svg", content, xmlns="http://www.w3.org/2000/svg", font_family=FONTS, **size) + "\n"


def _backbone(points: np.ndarray) -> Iterator[str]:
    if len(points) > 1:
        yield svg.polyline(points, class_="backbone", stroke=GREY, stroke_width=1.5)


def _pairs(structure: Structure, points: np.ndarray, straight: Pairs) -> Iterator[str]:
    centre, ladder = points.mean(axis=0), set(straight)
    for pair in structure.pairs:
        start, end = points[pair[0]], points[pair[1]]
        bend = np.zeros(2) if pair in ladder else _bend(start, end, centre)
        colour, dashes = (BLACK, {}) if pair in ladder else (VERMILION, {"stroke_dasharray": "5 3"})
        parts = svg.curve(start, (start + end) / 2 + 2 * bend, end, stroke=colour, stroke_width=1.8, **dashes)
        parts += _mark(structure, pair, (start + end) / 2 + bend, colour)
        yield svg.element("g", parts, class_="pair", data_pair=f"{pair[0] + 1}-{pair[1] + 1}")


def _bend(start: np.ndarray, end: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """How far the middle of a curve lies beside the straight line: away from the middle of the drawing."""
    across = np.array([start[1] - end[1], end[0] - start[0]]) * _BEND
    return across if np.dot(across, (start + end) / 2 - centre) >= 0 else -across


def _mark(structure: Structure, pair: tuple[int, int], at: np.ndarray, colour: str) -> str:
    kind = kind_of(structure, pair)
    return {"": "", "GU": svg.circle(at, 3.2, fill=colour), "other": _open(at, colour)}[kind]


def _open(at: np.ndarray, colour: str) -> str:
    return svg.circle(at, 3.2, fill=WHITE, stroke=colour, stroke_width=1.4)


def kind_of(structure: Structure, pair: tuple[int, int]) -> str:
    """ "" for AU and GC, "GU", or "other"."""
    letters = "".join(sorted(structure.sequence[n] for n in pair)).upper().replace("T", "U")
    letters = "".join(sorted(letters))
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


def _legend(structure: Structure, straight: Pairs, is_shaded: bool) -> Iterator[str]:
    """One line each for what is drawn and does not explain itself."""
    left, middle, right = np.array([0.0, 0.0]), np.array([15.0, 0.0]), np.array([30.0, 0.0])
    kinds = {kind_of(structure, pair) for pair in structure.pairs}
    black = svg.line(left, right, stroke=BLACK, stroke_width=1.8)
    if "GU" in kinds:
        yield black + svg.circle(middle, 3.2, fill=BLACK) + _told("GU pair")
    if "other" in kinds:
        yield black + _open(middle, BLACK) + _told("pair other than AU, GC and GU")
    if set(structure.pairs) - set(straight):
        crossing = "pair of a pseudoknot" if straight else "pair"
        yield svg.line(left, right, stroke=VERMILION, stroke_width=1.8, stroke_dasharray="5 3") + _told(crossing)
    if is_shaded:
        yield "".join(
            svg.element("rect", x=6.0 * n, y=-6, width=6.2, height=12, fill=shade(n / 10)) for n in range(11)
        ) + _told("probability of the likeliest pair, 0 to 1", 74.0)


def _told(content: str, x: float = 40.0) -> str:
    return svg.text(content, np.array([x, 0.0]), text_anchor="start", font_size=11)

"""Pieces of SVG text, escaped, with coordinates to a tenth of a pixel; and the same picture as PNG or PDF."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from rinalmo.io.files import atomic_write
from rinalmo.plots.style import FONTS, WHITE, figure_in

_PIXEL = 1 / 96  # inches, as CSS defines it
_POINT = 72 * _PIXEL


def element(tag: str, content: str = "", /, **attributes: object) -> str:
    """One element; `class_` is `class`, `stroke_width` is `stroke-width`. `content` is SVG already."""
    given = "".join(f" {name.rstrip('_').replace('_', '-')}={quoteattr(_text(v))}" for name, v in attributes.items())
    return f"<{tag}{given}>{content}</{tag}>" if content else f"<{tag}{given}/>"


def text(content: str, at: np.ndarray, **attributes: object) -> str:
    """Text centred at a point, unless `text_anchor` says otherwise."""
    settings = {"text_anchor": "middle", "dy": ".35em", **attributes}
    return element("text", escape(content), x=at[0], y=at[1], **settings)


def line(start: np.ndarray, end: np.ndarray, **attributes: object) -> str:
    """A straight line."""
    return element("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], **attributes)


def circle(at: np.ndarray, radius: float, **attributes: object) -> str:
    """A circle."""
    return element("circle", cx=at[0], cy=at[1], r=radius, **attributes)


def curve(start: np.ndarray, control: np.ndarray, end: np.ndarray, **attributes: object) -> str:
    """A curve that is drawn towards one point."""
    return element("path", d=f"M{_point(start)} Q{_point(control)} {_point(end)}", fill="none", **attributes)


def polyline(points: Iterable[np.ndarray], **attributes: object) -> str:
    """Straight lines from point to point."""
    return element("polyline", points=" ".join(map(_point, points)), fill="none", **attributes)


def page(width: float, height: float, content: Iterable[str]) -> str:
    """An SVG file with white paper."""
    size = {"width": f"{width:.0f}", "height": f"{height:.0f}", "viewBox": f"0 0 {width:.0f} {height:.0f}"}
    paper = element("rect", width="100%", height="100%", fill=WHITE)
    body = "\n".join(["", paper, *content, ""])
    return element("svg", body, xmlns="http://www.w3.org/2000/svg", font_family=FONTS, **size) + "\n"


def _point(at: np.ndarray) -> str:
    return f"{_text(at[0])},{_text(at[1])}"


def _text(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def save(text: str, path: Path, purpose: str) -> None:
    """Write SVG made of the pieces above as `.svg`, or draw it by matplotlib as `.png` or `.pdf`."""
    if path.suffix == ".svg":
        with atomic_write(path) as file:
            file.write(text.encode())
        return
    root = ElementTree.fromstring(text)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    with figure_in(path, purpose, figsize=(width * _PIXEL, height * _PIXEL)) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        for order, artist in zip(count(), _artists(root, np.zeros(2), 1.0)):
            artist.set(zorder=order, clip_on=False)
            axes.add_artist(artist)


def _artists(parent: ElementTree.Element, origin: np.ndarray, scale: float) -> Iterator[Any]:
    """What matplotlib draws for each piece, in their order."""
    from matplotlib.patches import Circle, PathPatch, Rectangle
    from matplotlib.path import Path as Outline
    from matplotlib.text import Text

    for piece in parent:
        tag, given = piece.tag.rpartition("}")[2], piece.attrib
        number = {name: float(value) for name, value in given.items() if re.fullmatch(r"-?[\d.]+", value)}

        def at(x: str, y: str) -> tuple[float, float]:
            return (origin[0] + scale * number.get(x, 0.0), origin[1] + scale * number.get(y, 0.0))  # noqa: B023

        width = number.get("stroke-width", 0.0)
        style: dict[str, Any] = {"facecolor": given.get("fill", "none"), "edgecolor": given.get("stroke", "none")}
        style |= {"linewidth": width * scale * _POINT, "capstyle": "butt"}
        if "stroke-dasharray" in given:  # matplotlib counts in widths of the line
            style["linestyle"] = (0, [float(part) / width for part in given["stroke-dasharray"].split()])
        if tag == "g":
            moved, size = origin, scale
            if "transform" in given:
                x, y, *factor = map(float, re.findall(r"-?[\d.]+", given["transform"]))
                moved, size = origin + scale * np.array([x, y]), scale * (factor[0] if factor else 1.0)
            yield from _artists(piece, moved, size)
        elif tag == "text":
            size = number["font-size"] * scale
            left, middle = at("x", "y")
            style = {"color": given.get("fill", "black"), "fontsize": size * _POINT, "va": "baseline"}
            style["ha"] = {"middle": "center", "start": "left"}[given["text-anchor"]]
            yield Text(left, middle + 0.35 * size, piece.text or "", **style)
        elif tag == "circle":
            yield Circle(at("cx", "cy"), number["r"] * scale, **style)
        elif tag == "rect":
            if given["width"] != "100%":
                yield Rectangle(at("x", "y"), number["width"] * scale, number["height"] * scale, **style)
        elif tag == "line":
            yield PathPatch(Outline([at("x1", "y1"), at("x2", "y2")]), **style)
        elif tag in ("path", "polyline"):
            text = given["d" if tag == "path" else "points"]
            corners = np.array(re.findall(r"-?[\d.]+", text), dtype=float).reshape(-1, 2) * scale + origin
            codes = [Outline.MOVETO, Outline.CURVE3, Outline.CURVE3] if tag == "path" else None
            yield PathPatch(Outline(corners, codes), **style)

"""Pieces of SVG text, escaped, with coordinates to a tenth of a pixel."""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from rinalmo.plots.style import FONTS, WHITE


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

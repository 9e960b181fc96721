"""What the page shows as pictures, each an `<img>` whose source is its data: nothing in a picture can run or fetch."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from rinalmo.inference.fill_mask import Prediction
from rinalmo.plots import svg
from rinalmo.plots.logo import COLOURS
from rinalmo.plots.style import BLACK, FONTS, GREY, PALE, WHITE

_TYPES = {"svg": "svg+xml", "png": "png"}

# Of the bars, in pixels.
_ROW, _HEADING, _START, _WIDEST, _WIDTH = 22, 34, 70, 300, 460


def image(picture: str | bytes, alternative: str, format: str = "svg") -> str:
    """HTML of a picture; `alternative` is said where it cannot be seen."""
    content = picture.encode() if isinstance(picture, str) else picture
    source = f"data:image/{_TYPES[format]};base64,{base64.b64encode(content).decode()}"
    return f'<div class="picture"><img alt="{escape(alternative)}" src="{source}"></div>'


def bars(masks: Sequence[Sequence[Prediction]]) -> str:
    """SVG of the candidates at each mask: a bar each, as long as it is probable."""
    parts = [svg.element("rect", width="100%", height="100%", fill=WHITE)]
    y = 0
    for candidates in masks:
        parts += _mask(candidates, y)
        y += _HEADING + _ROW * len(candidates)
    size = {"width": _WIDTH, "height": y + 8, "viewBox": f"0 0 {_WIDTH} {y + 8}"}
    return svg.element("svg", "\n".join(parts), xmlns="http://www.w3.org/2000/svg", font_family=FONTS, **size)


def _mask(candidates: Sequence[Prediction], top: int) -> Iterator[str]:
    left = {"text_anchor": "start", "fill": BLACK}
    yield svg.text(f"position {candidates[0].position}", np.array([12.0, top + 20.0]), font_size=14, **left)
    for row, candidate in enumerate(candidates):
        y = top + _HEADING + _ROW * row
        name = {"text_anchor": "end", "font_size": 13, "fill": BLACK}
        yield svg.text(candidate.token_str, np.array([_START - 8.0, y + 9.0]), **name)
        bar = {"x": _START, "y": y, "height": _ROW - 5}
        yield svg.element("rect", width=_WIDEST, fill=PALE, fill_opacity=0.5, **bar)
        colour = COLOURS.get(candidate.token_str, GREY)
        yield svg.element("rect", width=f"{_WIDEST * candidate.score:.1f}", fill=colour, **bar)
        score = f"{candidate.score:.4f}" if candidate.score >= 0.0001 else "< 0.0001"
        yield svg.text(score, np.array([_START + _WIDEST + 10.0, y + 9.0]), font_size=13, **left)

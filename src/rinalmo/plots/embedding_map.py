"""Embeddings in two dimensions: one point per sequence, coloured by a class or by a number.

    pca     the two directions of greatest variance, with the share of each; deterministic
    umap    neighbourhoods (McInnes et al. 2018, arXiv:1802.03426) by the cosine of centred embeddings, with the
            extra `umap`; distances between groups mean little, and neither do their sizes

The twenty most frequent classes have a colour and a marker of their own; the others are grey. More than eight different
numbers are a colour scale, which is monotonic in lightness too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from rinalmo.errors import InputError, import_extra
from rinalmo.plots.style import (
    BLACK,
    CLASS_COLOURS,
    CLASS_MARKERS,
    COLOURS,
    GREY,
    PALE,
    check_figure,
    figure_in,
    title_of,
)

Method = Literal["pca", "umap"]
UNKNOWN = "not known"
_PURPOSE = "drawing a map of embeddings"
_MIN_SEQUENCES: dict[Method, int] = {"pca": 2, "umap": 4}
_NEIGHBOURS = 15
_AS_IMAGE = 5_000  # from so many points on an SVG holds them as an image
_LONGEST_LABEL = 32


class Projection(NamedTuple):
    """Points `(sequences, 2)` and the labels of the two axes."""

    points: np.ndarray
    axes: tuple[str, str]


def check_embedding_map(path: Path, method: str = "pca") -> None:
    """Raise InputError or MissingExtraError before computing what could not be drawn."""
    check_figure(path, _PURPOSE)
    if method not in get_args(Method):
        raise InputError(f"method {method!r} is unknown; use one of {', '.join(get_args(Method))}")
    if method == "umap":
        _umap()


def draw_embedding_map(
    embeddings: np.ndarray,
    path: str | Path,
    labels: Sequence[Any] | None = None,
    *,
    method: Method = "pca",
    label_name: str = "",
    title: str = "",
) -> Projection:
    """Draw embeddings as points in two dimensions.

    Args:
        embeddings: `(sequences, hidden)`.
        path: An SVG, PNG or PDF file.
        labels: A class or number per sequence; None or "" where not known.
        method: "pca" or "umap".
        label_name: Title of the legend or colour scale.
        title: Of the figure; by default the number of sequences.

    Returns:
        The points and the labels of the axes.

    Raises:
        InputError: Another ending, too few sequences, or labels that do not fit.
        MissingExtraError: matplotlib or UMAP is not installed.

    Examples:
        >>> import numpy as np, tempfile
        >>> from rinalmo.plots import draw_embedding_map
        >>> points, axes = draw_embedding_map(np.eye(4, 8), tempfile.mkdtemp() + "/map.svg", ["a", "a", "b", "b"])
        >>> points.shape
        (4, 2)
    """
    path = Path(path)
    check_embedding_map(path, method)
    if labels is not None and len(labels) != len(embeddings):
        raise InputError(f"{path}: {len(labels):,} labels do not fit {len(embeddings):,} embeddings")
    projection = project(embeddings, method)
    points = projection.points
    with figure_in(path, _PURPOSE, figsize=(5.6 if labels else 4.2, 3.8), layout="constrained") as figure:
        axes = figure.subplots()
        size = float(np.clip(6_000 / len(embeddings), 3, 26))
        style = {"s": size, "linewidths": 0.3, "rasterized": len(embeddings) >= _AS_IMAGE}
        if labels is None:
            axes.scatter(*points.T, color=COLOURS[0], edgecolors="white", **style)
        elif (numbers := as_numbers(labels)) is not None:
            known = np.isfinite(numbers)
            axes.scatter(*points[~known].T, color=PALE, label=UNKNOWN, **style)
            colours = axes.scatter(*points[known].T, c=numbers[known], cmap="cividis", **style)
            bar = figure.colorbar(colours, ax=axes, shrink=0.6, label=label_name)
            bar.outline.set_linewidth(0.5)
        else:
            _draw_classes(figure, axes, points, [_text(label) for label in labels], label_name, style)
        axes.set(xlabel=projection.axes[0], ylabel=projection.axes[1], xticks=[], yticks=[])
        axes.set_title(title_of(title) or f"{len(embeddings):,} sequences", loc="left")
    return projection


def project(embeddings: np.ndarray, method: Method = "pca") -> Projection:
    """Embeddings `(sequences, hidden)` in two dimensions."""
    if embeddings.ndim != 2:
        raise InputError(f"a map needs one vector per sequence, but the embeddings have the shape {embeddings.shape}")
    minimum = _MIN_SEQUENCES[method]
    if len(embeddings) < minimum:
        raise InputError(f"a {method} map needs at least {minimum} sequences, but there are {len(embeddings)}")
    centred = embeddings.astype(np.float32) - embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
    if method == "umap":
        neighbours = min(_NEIGHBOURS, len(centred) - 1)
        # `pca` as the start also works for very few points; a seed and one thread make it repeatable.
        reducer = _umap().UMAP(n_neighbors=neighbours, metric="cosine", init="pca", random_state=0, n_jobs=1)
        return Projection(reducer.fit_transform(centred), ("UMAP 1", "UMAP 2"))
    variances, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    first = directions[:, [-1, -2]]
    # The sign of a direction is arbitrary; its greatest component is made positive, so that figures can be compared.
    first *= np.sign(first[np.abs(first).argmax(axis=0), [0, 1]])
    shares = variances[[-1, -2]] / max(variances.sum(), np.finfo(float).tiny)
    names = [f"PC {n} ({share:.0%} of the variance)" for n, share in enumerate(shares, 1)]
    return Projection(centred @ first, (names[0], names[1]))


def _umap() -> Any:
    return import_extra("umap", "umap", "a map by UMAP", "umap-learn")


def as_numbers(labels: Sequence[Any]) -> np.ndarray | None:
    """Labels as numbers, NaN where not known; None unless all are numbers and more than eight are different."""
    try:
        values = np.array([np.nan if _text(label) == "" else float(label) for label in labels])
    except (TypeError, ValueError):
        return None
    known = values[np.isfinite(values)]
    return values if len(np.unique(known)) > len(COLOURS) else None


def _draw_classes(
    figure: Any, axes: Any, points: np.ndarray, labels: list[str], name: str, style: dict[str, Any]
) -> None:
    counts = Counter(labels)
    unknown = counts.pop("", 0)
    order = sorted(counts, key=lambda label: (-counts[label], label))
    named, others = order[: len(CLASS_COLOURS)], order[len(CLASS_COLOURS) :]
    array = np.array(labels, dtype=object)
    # The most frequent first, so that the rare ones lie above them; those without a colour of their own before all.
    groups = []
    if unknown:
        groups.append((array == "", f"{UNKNOWN} ({unknown:,})", PALE, "."))
    if others:
        text = f"{len(others):,} other{'s' * (len(others) > 1)} ({sum(counts[label] for label in others):,})"
        groups.append((np.isin(array, others), text, GREY, "."))
    last_in_legend = len(groups)
    for label, colour, marker in zip(named, CLASS_COLOURS, CLASS_MARKERS, strict=False):
        text = f"{title_of(label, _LONGEST_LABEL)} ({counts[label]:,})"
        groups.append((array == label, text, colour, marker))
    for members, text, colour, marker in groups:
        # Markers made of lines have no edge.
        edge = {"linewidths": 1.0} if marker == "x" else {"edgecolors": GREY if colour == PALE else "white"}
        axes.scatter(*points[members].T, color=colour, marker=marker, label=text, **{**style, **edge})
    figure.set_size_inches(5.6, max(3.8, 0.5 + 0.165 * len(groups)))
    handles, texts = axes.get_legend_handles_labels()
    handles, texts = ([*each[last_in_legend:], *each[:last_in_legend]] for each in (handles, texts))
    legend = figure.legend(handles, texts, loc="outside right upper", frameon=False, title=name, alignment="left")
    for handle in legend.legend_handles:
        handle.set_sizes([24])
    legend.get_title().set_color(BLACK)


def _text(label: Any) -> str:
    return "" if label is None or label != label else str(label).strip()

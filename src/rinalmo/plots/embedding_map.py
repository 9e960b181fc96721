"""Embeddings in two dimensions: one point a sequence, coloured by a class or by a number.

    pca     the two directions of greatest variance, with the share of each; always the same, and without a package
    umap    neighbourhoods (McInnes et al. 2018, arXiv:1802.03426) by the cosine of centred embeddings, with the
            extra `umap`; distances between groups mean little, and neither do their sizes

Eight classes, the most frequent, have a colour and a mark of their own; the others are grey. More than eight different
numbers are a scale, which is monotonic in lightness too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.io.files import check_path
from rinalmo.plots.style import BLACK, COLOURS, ENDINGS, GREY, MARKS, PALE, figure_in, need_matplotlib, title_of

Method = Literal["pca", "umap"]
UNKNOWN = "not known"
_PURPOSE = "drawing a map of embeddings"
_FEWEST: dict[Method, int] = {"pca": 2, "umap": 4}
_NEIGHBOURS = 15
_AS_IMAGE = 5_000  # from so many points on an SVG holds them as an image
_LONGEST_LABEL = 32


class Projection(NamedTuple):
    """Points `(sequences, 2)` and what the two axes are."""

    points: np.ndarray
    axes: tuple[str, str]


def check_embedding_map(path: Path, method: str = "pca") -> None:
    """Raise InputError or MissingExtraError now for what could not be drawn in the end."""
    check_path(path, ENDINGS)
    need_matplotlib(_PURPOSE)
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
    """Draw embeddings `(sequences, hidden)` into an SVG or PNG file; returns where the points lie.

    `labels` are classes or numbers, one a sequence, None or "" where not known; `label_name` is what they are.
    Raises InputError for another ending or too few sequences, MissingExtraError without matplotlib or UMAP.
    """
    path = Path(path)
    check_embedding_map(path, method)
    if labels is not None and len(labels) != len(embeddings):
        raise InputError(f"{path}: {len(labels):,} labels do not fit {len(embeddings):,} embeddings")
    found = project(embeddings, method)
    with figure_in(path, _PURPOSE, figsize=(5.6 if labels else 4.2, 3.8), layout="constrained") as figure:
        axes = figure.subplots()
        size = float(np.clip(6_000 / len(embeddings), 3, 26))
        style = {"s": size, "linewidths": 0.3, "rasterized": len(embeddings) >= _AS_IMAGE}
        if labels is None:
            axes.scatter(*found.points.T, color=COLOURS[0], edgecolors="white", **style)
        elif (numbers := as_numbers(labels)) is not None:
            _scale(figure, axes, found.points, numbers, label_name, style)
        else:
            _classes(figure, axes, found.points, [_text(label) for label in labels], label_name, style)
        axes.set(xlabel=found.axes[0], ylabel=found.axes[1], xticks=[], yticks=[])
        axes.set_title(title_of(title) or f"{len(embeddings):,} sequences", loc="left")
    return found


def project(embeddings: np.ndarray, method: Method = "pca") -> Projection:
    """Embeddings `(sequences, hidden)` in two dimensions."""
    if embeddings.ndim != 2:
        raise InputError(f"a map shows one vector a sequence, and these have the shape {embeddings.shape}")
    if len(embeddings) < _FEWEST[method]:
        raise InputError(
            f"a map by {method} needs {_FEWEST[method]} sequences or more, and there are {len(embeddings)}"
        )
    centred = embeddings.astype(np.float32) - embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)
    return _by_variance(centred) if method == "pca" else _by_neighbours(centred)


def _by_variance(centred: np.ndarray) -> Projection:
    variances, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    first = directions[:, [-1, -2]]
    # The sign of a direction is arbitrary; its greatest part is made positive, so that pictures can be compared.
    first *= np.sign(first[np.abs(first).argmax(axis=0), [0, 1]])
    shares = variances[[-1, -2]] / max(variances.sum(), np.finfo(float).tiny)
    names = [f"PC {n} ({share:.0%} of the variance)" for n, share in enumerate(shares, 1)]
    return Projection(centred @ first, (names[0], names[1]))


def _by_neighbours(centred: np.ndarray) -> Projection:
    neighbours = min(_NEIGHBOURS, len(centred) - 1)
    # `pca` as the start also works for very few points; a seed and one thread make it repeatable.
    reducer = _umap().UMAP(n_neighbors=neighbours, metric="cosine", init="pca", random_state=0, n_jobs=1)
    return Projection(reducer.fit_transform(centred), ("UMAP 1", "UMAP 2"))


def _umap() -> Any:
    try:
        import umap
    except ImportError:
        raise MissingExtraError("umap-learn", "umap", "a map by UMAP") from None
    return umap


def as_numbers(labels: Sequence[Any]) -> np.ndarray | None:
    """Labels as numbers, NaN where not known, if that is what they all are, and more than eight different ones."""
    try:
        values = np.array([np.nan if _text(label) == "" else float(label) for label in labels])
    except (TypeError, ValueError):
        return None
    known = values[np.isfinite(values)]
    return values if len(np.unique(known)) > len(COLOURS) else None


def _scale(figure: Any, axes: Any, points: np.ndarray, numbers: np.ndarray, name: str, style: dict[str, Any]) -> None:
    known = np.isfinite(numbers)
    axes.scatter(*points[~known].T, color=PALE, label=UNKNOWN, **style)
    shown = axes.scatter(*points[known].T, c=numbers[known], cmap="cividis", **style)
    key = figure.colorbar(shown, ax=axes, shrink=0.6, label=name)
    key.outline.set_linewidth(0.5)


def _classes(figure: Any, axes: Any, points: np.ndarray, labels: list[str], name: str, style: dict[str, Any]) -> None:
    counts = Counter(labels)
    unknown = counts.pop("", 0)
    order = sorted(counts, key=lambda label: (-counts[label], label))
    shown, others = order[: len(COLOURS)], order[len(COLOURS) :]
    array = np.array(labels, dtype=object)

    def drawn(where: np.ndarray, label: str, colour: str, mark: str) -> None:
        # Marks made of lines have no edge.
        edge = {"linewidths": 1.0} if mark == "x" else {"edgecolors": GREY if colour == PALE else "white"}
        axes.scatter(*points[where].T, color=colour, marker=mark, label=label, **{**style, **edge})

    if unknown:
        drawn(array == "", f"{UNKNOWN} ({unknown:,})", PALE, ".")
    if others:
        rest = sum(counts[label] for label in others)
        drawn(np.isin(array, others), f"{len(others):,} other{'s' * (len(others) > 1)} ({rest:,})", GREY, ".")
    # The most frequent first, so that the rare ones lie above them.
    for label, colour, mark in zip(shown, COLOURS, MARKS, strict=False):
        drawn(array == label, f"{title_of(label, _LONGEST_LABEL)} ({counts[label]:,})", colour, mark)
    handles, texts = axes.get_legend_handles_labels()
    skipped = bool(unknown) + bool(others)
    handles, texts = handles[skipped:] + handles[:skipped], texts[skipped:] + texts[:skipped]
    legend = figure.legend(handles, texts, loc="outside right upper", frameon=False, title=name, alignment="left")
    for handle in legend.legend_handles:
        handle.set_sizes([24])
    legend.get_title().set_color(BLACK)


def _text(label: Any) -> str:
    return "" if label is None or label != label else str(label).strip()

"""Predictions beside true values: a confusion matrix of classes, a scatter plot of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rinalmo.plots.style import BLUE, GREY, figure_in, title_of

_PURPOSE = "drawing predictions"
_MOST_CLASSES, _WRITTEN = 60, 20  # numbers are written into the cells of small matrices


def draw_confusion(target: np.ndarray, predicted: np.ndarray, classes: Sequence[str], title: str, path: Path) -> None:
    """Draw how many examples of each class (row) were predicted as each (column); the shade is the share of the row.

    Args:
        target: Class ids `(examples,)`.
        predicted: Class ids `(examples,)`.
        classes: Their names; beyond 60 the last are left out.
        title: Above the figure.
        path: An SVG or PNG file.
    """
    count = min(len(classes), _MOST_CLASSES)
    table = np.zeros((count, count), int)
    counted = (target < count) & (predicted < count)
    np.add.at(table, (target[counted], predicted[counted]), 1)
    share = table / table.sum(axis=1, keepdims=True).clip(1)
    size = 1.8 + 0.34 * max(count, 4)
    with figure_in(path, _PURPOSE, figsize=(size + 0.9, size)) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        names = [title_of(name, 20) for name in classes[:count]]
        axes.set_xticks(range(count), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
        axes.set_yticks(range(count), names, fontsize=7)
        for (row, column), number in np.ndenumerate(table) if count <= _WRITTEN else ():
            if number:
                color = "white" if share[row, column] > 0.6 else "black"
                axes.text(column, row, str(number), ha="center", va="center", fontsize=7, color=color)
        axes.set_xlabel("predicted", fontsize=8)
        axes.set_ylabel("true", fontsize=8)
        axes.set_title(title, fontsize=8)
        figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.7)
        figure.tight_layout()


def draw_scatter(target: np.ndarray, predicted: np.ndarray, names: Sequence[str], title: str, path: Path) -> None:
    """Draw predicted over true numbers, a panel for each column; on the line they are equal.

    Args:
        target: `(examples, columns)`, NaN where there is none.
        predicted: `(examples, columns)`.
        names: Of the columns; beyond six the last are left out.
        title: Above the figure.
        path: An SVG or PNG file.
    """
    panels = min(len(names), 6)
    with figure_in(path, _PURPOSE, figsize=(3.2 * panels + 0.3, 3.5)) as figure:
        for index in range(panels):
            axes = figure.add_subplot(1, panels, index + 1)
            known = np.isfinite(target[:, index])
            x, y = target[known, index], predicted[known, index]
            axes.scatter(x, y, s=6, alpha=0.5, color=BLUE, linewidths=0)
            ends = [min(x.min(), y.min()), max(x.max(), y.max())] if len(x) else [0, 1]
            axes.plot(ends, ends, color=GREY, linewidth=0.8)
            axes.set_xlabel(f"true {title_of(names[index], 30)}", fontsize=8)
            axes.set_ylabel("predicted", fontsize=8)
            axes.tick_params(labelsize=7)
        figure.suptitle(title, fontsize=8)
        figure.tight_layout()

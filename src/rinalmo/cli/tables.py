"""Tables on standard output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rinalmo.tasks.evaluation import Evaluation, Figure


def print_evaluation(evaluation: Evaluation, what: str) -> None:
    """All figures with their intervals, then each group's main ones."""
    threshold = "" if evaluation.threshold is None else f", threshold {evaluation.threshold:.2f}"
    print(f"{what}: {evaluation.count:,} examples, {evaluation.task}{threshold}; {evaluation.interval}")
    _print(["figure", "value", "interval"], ([name, *_cells(f)] for name, f in evaluation.figures.items()))
    if evaluation.groups:
        names = [name for name in evaluation.figures if "/" not in name][:6]
        rows = (
            [group, f"{of.count:,}", *(f"{of.figures[n].value:.3f}" if n in of.figures else "" for n in names)]
            for group, of in evaluation.groups.items()
        )
        print()
        _print(["group", "examples", *names], rows)


def _cells(figure: Figure) -> list[str]:
    return [f"{figure.value:.4f}", f"{figure.low:.4f} – {figure.high:.4f}"]


def _print(header: list[str], rows: Iterable[list[str]]) -> None:
    """Columns as wide as their longest cell; the first to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(["  " + line[0].ljust(widths[0]), *cells]).rstrip())

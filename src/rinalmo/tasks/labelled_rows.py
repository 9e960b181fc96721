"""Labelled examples that come as rows or as a data frame, as the lines of a file that every task reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rinalmo.delimited import is_missing
from rinalmo.errors import InputError
from rinalmo.inference.inputs import plain_rows


def json_lines(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[bytes]:
    """Rows as JSON lines, class labels by their names.

    Args:
        rows: Mappings of columns, or a data frame.
        name: What they are examples of, for messages.

    Raises:
        InputError: One of them is no mapping.
    """
    labels = _label_names(rows)
    for number, row in enumerate(plain_rows(rows), start=1):
        if not isinstance(row, Mapping):
            raise InputError(f"{name} example {number} is a {type(row).__name__}; expected a mapping of columns")
        cells = {column: _named(value, labels.get(column)) for column, value in row.items()}
        yield json.dumps(cells, default=_plain).encode() + b"\n"


def _label_names(rows: Iterable[Mapping[str, Any]]) -> dict[str, Sequence[str]]:
    """Names of class labels by column, of a `datasets.Dataset` that has such columns."""
    features = getattr(rows, "features", None) or {}
    return {column: names for column, feature in features.items() if (names := getattr(feature, "names", None))}


def _named(value: Any, names: Sequence[str] | None) -> Any:
    """The name of a class label; -1 stands for none."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if value >= 0 else None


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as plain ones; other things as text: no task learns from them."""
    if is_missing(value):
        return None
    return value.tolist() if hasattr(value, "tolist") else str(value)

"""What a table gives a model beside a sequence: a second sequence, numbers, categories, vectors.

    second sequence   has a vector v of its own by the same backbone; with u, that of the first, [u, v, |u - v|, u * v]
    number            standardized by the mean and deviation of the training rows
    category          one-hot, for the names in the training rows
    vector            such as the embedding of a protein, from a file or a list in the cell; standardized as numbers are

All of it lies side by side before the head. What a column holds is decided over the training rows and saved with the
model.

Source: Conneau et al. 2017 (arXiv:1705.02364) for the joined vectors of a pair; Reimers and Gurevych 2019
(arXiv:1908.10084) compare others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from rinalmo.errors import InputError
from rinalmo.io.tables import is_missing
from rinalmo.tasks.base import (
    PLAIN,
    Columns,
    Decimal,
    Example,
    NumberFormat,
    class_name,
    list_items,
    list_style,
    number,
    require,
)
from rinalmo.tasks.base import number_format as format_of

_NAMES = 20  # so many names, all different, are no categories
_NAMED = 8  # categories in messages


@dataclass(frozen=True)
class Feature:
    """A column of features.

    Attributes:
        kind: What its cells hold.
        categories: The names that they may have, for "category".
        mean: Mean over the training rows, of the number or of each dimension.
        std: Standard deviation, 1 where all rows are equal.
        format: Arguments of `NumberFormat`, if numbers are not written plainly.
    """

    kind: Literal["number", "category", "vector"]
    categories: Sequence[str] = ()
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    format: Mapping[str, Any] | None = None

    @property
    def size(self) -> int:
        """How many inputs of the head it is."""
        return len(self.categories) or len(self.mean)

    def encode(self, example: Example, name: str) -> np.ndarray:
        """The inputs of the head, fp64 `(size,)`; InputError for a cell that is unlike the training rows."""
        cell = _cell(example, name)
        if self.kind == "category":
            few = ", ".join(self.categories[:_NAMED]) + (", …" if len(self.categories) > _NAMED else "")
            text = class_name(cell)
            require(text in self.categories, example, f"{name} is {text!r}, which no training row has ({few})")
            return np.array([text == category for category in self.categories], float)
        if self.kind == "number":
            written = NumberFormat(**self.format) if self.format else PLAIN
            values = np.array([number(cell, example.where, name, written)])
        else:
            values = _vector(example, name)
            problem = f"{name} has {len(values):,} numbers, and {self.size:,} in the training rows"
            require(len(values) == self.size, example, problem)
        return (values - self.mean) / self.std


class Inputs:
    """The inputs of a table's model beside the sequence."""

    def __init__(self, second: str | None = None, features: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Make them from plain values.

        Args:
            second: The column of second sequences.
            features: Arguments of `Feature` by column.
        """
        self.second = second
        self.features = {name: Feature(**arguments) for name, arguments in (features or {}).items()}
        self.vectors_per_example = 4 if second else 1
        self.size = sum(feature.size for feature in self.features.values())

    @classmethod
    def from_examples(cls, examples: Sequence[Example], second: str | None, decimal: Decimal | None) -> Self:
        """What the columns of the training examples hold.

        Raises:
            InputError: A cell is empty or unlike the others, or every row has another name.
        """
        return cls(second, {name: asdict(_feature(examples, name, decimal)) for name in examples[0].features or ()})

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, as plain values."""
        features = {n: {key: v for key, v in asdict(of).items() if v} for n, of in self.features.items()}
        return {"second": self.second, "features": features}

    def columns(self, files: Mapping[str, Path | None]) -> Columns:
        """The columns to read, with files of vectors by column; InputError for one that the model does not take."""
        for name in files:
            if name not in self.features or self.features[name].kind != "vector":
                own = ", ".join(name for name, feature in self.features.items() if feature.kind == "vector") or "none"
                raise InputError(f"the model takes no vectors {name!r}; it takes {own}")
        return Columns(second=self.second, features=dict.fromkeys(self.features) | dict(files))

    def encode(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with features as the head takes them, fp32 `(size,)`."""
        encoded = []
        for example in examples:
            if isinstance(example.features, np.ndarray):
                encoded.append(example)
                continue
            parts = [feature.encode(example, name) for name, feature in self.features.items()]
            encoded.append(replace(example, features=np.concatenate([np.zeros(0), *parts]).astype(np.float32)))
        return encoded

    def join(self, vectors: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        """What the head sees of each example.

        Args:
            vectors: The vector of each sequence; for pairs those of the first example, then of the next.
            examples: With encoded features.

        Returns:
            `(examples, vectors_per_example × size of a vector + features)`.
        """
        own = torch.stack(list(vectors))
        features = torch.from_numpy(np.stack([example.features for example in examples]))
        return torch.cat([join_pairs(own) if self.second else own, features.to(own)], dim=-1)

    def scale(self, count: int, std: float = 1.0) -> Tensor:
        """Factors of so many inputs of a head, by which each column of features counts as much as the sequences do.

        Without them, one number among a thousand dimensions of an embedding has no weight in the penalty of a linear
        fit, nor in a network at the start of training. `std` is the deviation of the dimensions.
        """
        of_sequences, scales = count - self.size, [torch.ones(count - self.size)]
        for feature in self.features.values():
            scales.append(torch.full((feature.size,), std * math.sqrt(of_sequences / feature.size)))
        return torch.cat(scales)

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """One line on each column, for the user."""
        lines = [f"{self.second}: second sequence"] if self.second else []
        for name, feature in self.features.items():
            if feature.kind == "number":
                lines.append(f"{name}: feature, number, mean {feature.mean[0]:.4g}, deviation {feature.std[0]:.4g}")
            elif feature.kind == "vector":
                lines.append(f"{name}: feature, vector of {feature.size:,} numbers")
            else:
                counts = Counter(class_name(example.features[name]) for example in examples).most_common(_NAMED)
                named = ", ".join(f"{text!r} ({count:,})" for text, count in counts)
                more = ", …" if feature.size > _NAMED else ""
                lines.append(f"{name}: feature, {feature.size:,} categories: {named}{more}")
        return lines

    def describe(self) -> str:
        """The inputs in a few words."""
        parts = [f"a second sequence (`{self.second}`)"] if self.second else []
        for name, feature in self.features.items():
            details = f" of {feature.size:,}" if feature.kind == "vector" else ""
            details += f": {', '.join(feature.categories)}" if feature.categories else ""
            parts.append(f"`{name}` ({feature.kind}{details})")
        return ", ".join(parts)


def join_pairs(vectors: Tensor) -> Tensor:
    """[u, v, |u - v|, u * v] of vectors `(2 × pairs, size)`, where those of a pair are neighbors."""
    u, v = vectors[0::2], vectors[1::2]
    return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)


def _feature(examples: Sequence[Example], name: str, decimal: Decimal | None) -> Feature:
    cells = [_cell(example, name) for example in examples]
    if any(list_style(cell) == "brackets" or isinstance(cell, np.ndarray) for cell in cells):
        values = [_vector(example, name) for example in examples]
        for example, value in zip(examples, values, strict=True):
            problem = f"{name} has {len(value):,} numbers, and {len(values[0]):,} in the first row"
            require(len(value) == len(values[0]), example, problem)
        return Feature("vector", (), *_moments(np.stack(values)))
    written = format_of(cells, name, decimal=decimal, hint="; say --set options.decimal=comma or =point")
    parsed = [written.parse(cell) for cell in cells]
    if None not in parsed:
        numbers = [number(cell, e.where, name, written) for e, cell in zip(examples, cells, strict=True)]
        return Feature(
            "number", (), *_moments(np.array(numbers)[:, None]), None if written == PLAIN else asdict(written)
        )
    texts = parsed.count(None)
    if 2 * texts < len(parsed):  # a few words among numbers
        example, cell = next((e, c) for e, c, p in zip(examples, cells, parsed, strict=True) if p is None)
        raise InputError(f"{example.where}: {name} is {cell!r} among numbers; drop the row, or correct the cell")
    names = [class_name(cell) for cell in cells]
    categories = sorted({*names})
    if len(names) > _NAMES and len(categories) == len(names):
        hint = f"if it names vectors in a file, say --feature {name}=FILE.npz"
        raise InputError(f"{name}: every row has a different text, such as {names[0]!r}; {hint}")
    return Feature("category", categories)


def _moments(values: np.ndarray) -> tuple[list[float], list[float]]:
    mean, std = values.mean(axis=0), values.std(axis=0)
    return mean.tolist(), np.where(std <= 1e-9 * np.abs(mean).clip(1e-9), 1.0, std).tolist()


def _cell(example: Example, name: str) -> Any:
    cell = example.features[name]
    require(not is_missing(cell), example, f"{name} is empty; fill it in, or drop the row")
    return cell


def _vector(example: Example, name: str) -> np.ndarray:
    cell = _cell(example, name)
    try:
        given = cell if isinstance(cell, np.ndarray) else list_items(example, cell, name)
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        values = np.zeros((0, 0))
    is_vector = values.ndim == 1 and len(values) > 0 and bool(np.isfinite(values).all())
    hint = f"if it names one in a file, add --feature {name}=FILE.npz"
    require(is_vector, example, f"{name} is {str(cell)[:30]!r}, not a vector of numbers; {hint}")
    return values

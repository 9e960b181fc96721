"""What the columns of a user's table hold, decided over all rows.

    per     one value a sequence, or a list with one a nucleotide
    kind    numbers, yes or no, names of classes
    format  how the numbers are written

Two plausible readings are refused, with the option that decides. What was decided is described with the numbers of
rows and three examples, so that a wrong reading is seen before hours of training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rinalmo.delimited import is_missing
from rinalmo.errors import InputError
from rinalmo.model.losses import ProblemType
from rinalmo.tasks.base import Example, Per, require
from rinalmo.tasks.cells import (
    PLAIN,
    Decimal,
    NumberFormat,
    fits_length,
    has_separators,
    is_written_list,
    looks_numeric,
    number_format,
    split_list,
)
from rinalmo.tasks.classification import class_name

_FEW, _OFTEN = 20, 5  # at most so many values, each seen so often on average, are classes
_SHORT = 8  # a list of so few values for each of longer sequences is hardly one of nucleotides
_SHOWN = 6  # columns and classes that are described one by one
_OUTLYING = 100.0  # times the spread of the middle half of the values
_DECIMAL_HINT = "; say --set options.decimal=comma or --set options.decimal=point"


class Cell(NamedTuple):
    """A single value and the row that it is from."""

    example: Example
    value: Any


def column_of(examples: Sequence[Example], name: str) -> list[Cell]:
    """The cells of a column that hold something, lists in one piece."""
    cells = [Cell(example, example.target[name]) for example in examples if name in example.target]
    return [cell for cell in cells if not is_missing(cell.value) and cell.value not in ([], (), "[]")]


def items_of(example: Example, value: Any, name: str, kind: ProblemType | None) -> list[Any]:
    """The values of single nucleotides in a cell; a text without separators is one class a letter."""
    if is_missing(value):
        return []
    if kind == "multiclass" and isinstance(value, str) and not has_separators(value) and not is_written_list(value):
        return list(value.strip())
    try:
        return fits_length(split_list(value), len(example.sequence))
    except ValueError as error:
        raise InputError(f"{example.where}: {name}: {str(value)[:30]}… {error}") from None


def single_cells(examples: Sequence[Example], name: str, per: Per, kind: ProblemType | None = None) -> list[Cell]:
    """The single values of a column, without the missing ones."""
    cells = column_of(examples, name)
    if per == "nucleotide":
        items = ((cell, items_of(cell.example, cell.value, name, kind)) for cell in cells)
        cells = [Cell(cell.example, item) for cell, values in items for item in values if not is_missing(item)]
    _require_single(cells)
    return cells


def _require_single(cells: Sequence[Cell]) -> None:
    for example, value in cells:
        require(not isinstance(value, dict | list), example, f"{str(value)[:30]} is neither a number nor a name")


def per_of(examples: Sequence[Example], targets: Sequence[str]) -> Per:
    """Whether the columns hold one value a sequence or one a nucleotide.

    Raises:
        InputError: Both are plausible, or columns differ.
    """
    found: dict[str, Per] = {}
    for name in targets:
        if cells := column_of(examples, name):
            found[name] = _per_of_column(cells, name)
    if not found:
        raise InputError(f"{', '.join(targets)}: no row has a value; there is nothing to learn")
    first, *others = found
    for name in others:
        if found[name] != found[first]:
            raise InputError(
                f"{first} has one value for each {found[first]} and {name} for each {found[name]}; train a model for "
                "each, or say --set options.per=sequence to take lists as names"
            )
    return found[first]


def _per_of_column(cells: Sequence[Cell], name: str) -> Per:
    listed = [is_written_list(cell.value) for cell in cells]
    if any(listed):
        if not all(listed):
            cell = cells[listed.index(False)]
            _refuse_per(cell, name, f"is {_short(cell.value)}, where {sum(listed):,} of {len(cells):,} rows have lists")
        for cell in cells:
            _require_single([Cell(cell.example, item) for item in items_of(cell.example, cell.value, name, None)])
        _refuse_short_lists(cells, name)
        return "nucleotide"
    if not any(has_separators(cell.value) for cell in cells):
        return "sequence"
    split = [items_of(cell.example, cell.value, name, None) for cell in cells]
    lengths = [len(cell.example.sequence) for cell in cells]
    full = sum(len(items) == length for items, length in zip(split, lengths, strict=True))
    if full < len(cells) and _one_number_each(cells):
        return "sequence"
    items = [item for part in split for item in part if not is_missing(item)]
    numbers = sum(looks_numeric(item) for item in items)
    if 2 * numbers > len(items):
        if full < len(cells):
            _refuse_short_lists(cells, name)
        return "nucleotide"
    if full == 0:
        return "sequence"
    if 2 * full < len(cells) or any(len(part) > length for part, length in zip(split, lengths, strict=True)):
        _refuse_per(cells[0], name, f"is a list as long as the sequence in {full:,} of {len(cells):,} rows only")
    return "nucleotide"


def _one_number_each(cells: Sequence[Cell]) -> bool:
    """Whether every cell is one number with a comma or spaces in it, or such a number with a unit."""
    if all(looks_numeric(cell.value) for cell in cells):
        return True
    try:
        written = number_format((cell.value for cell in cells), "")
    except InputError:
        return True  # of two formats, but of numbers
    return written.unit != "" and all(written.parse(cell.value) is not None for cell in cells)


def _refuse_short_lists(cells: Sequence[Cell], name: str) -> None:
    """Raise InputError for lists of a few values each, such as those of three replicates."""
    counts = {len(items_of(cell.example, cell.value, name, None)) for cell in cells}
    shortest = min(len(cell.example.sequence) for cell in cells)
    if len(counts) == 1 and len(cells) > 1 and 2 * (count := counts.pop()) < shortest and 1 < count < _SHORT:
        _refuse_per(
            cells[0], name, f"has {count} values in every row, for sequences of {shortest:,} nucleotides and more"
        )


def _refuse_per(cell: Cell, name: str, message: str) -> None:
    hint = (
        "if they are values of the first nucleotides, say --set options.per=nucleotide; "
        "if it is the name of a class, --set options.per=sequence"
    )
    raise InputError(f"{cell.example.where}: {name} {message}; {hint}")


def formats_of(
    examples: Sequence[Example],
    targets: Sequence[str],
    per: Per,
    decimal: Decimal | None = None,
    usual: Mapping[str, NumberFormat] | None = None,
    kind: ProblemType | None = None,
) -> dict[str, NumberFormat]:
    """How each of the columns writes its numbers; see `number_format`."""
    found = {}
    for name in targets:
        values = [value for _, value in single_cells(examples, name, per, kind)]
        known = (usual or {}).get(name)
        found[name] = number_format(values, name, decimal=decimal, usual=known, hint=_DECIMAL_HINT)
    return found


def kind_of(examples: Sequence[Example], per: Per, formats: Mapping[str, NumberFormat]) -> ProblemType:
    """Which kind of values the columns hold.

    Raises:
        InputError: Two kinds are plausible.
    """
    width = len(formats)
    values: set[float] = set()
    for name, written in formats.items():
        cells = single_cells(examples, name, per)
        numbers = {cell.value if cell.value.__hash__ else str(cell.value): written.parse(cell.value) for cell in cells}
        if any(number is None for number in numbers.values()):
            _refuse_mixture(cells, name, numbers)
            if per == "sequence":
                _refuse_name_of_row(cells, name)
            return "multiclass"
        if written.unit and written.unit[0] not in "%‰":
            if len(numbers) <= _FEW and len(cells) >= _OFTEN * len(numbers) and width == 1:
                return "multiclass"
            raise InputError(
                f"{name}: every cell is a number with {written.unit!r}; say --set options.kind=regression to learn the "
                "numbers, or --set options.kind=multiclass if they are names"
            )
        values |= {number for number in numbers.values() if number is not None}
    if values <= {0.0, 1.0}:
        return "binary" if width == 1 else "multilabel"
    whole = all(value.is_integer() for value in values)
    few = len(values) <= _FEW and len(examples) >= _OFTEN * len(values)
    return "multiclass" if whole and few and width == 1 and per == "sequence" else "regression"


def _refuse_mixture(cells: Sequence[Cell], name: str, numbers: Mapping[Any, float | None]) -> None:
    """Raise InputError for the first text in a column of numbers, unless the numbers are names as well."""
    texts = {value for value, number in numbers.items() if number is None}
    amounts = [value for value, number in numbers.items() if number is not None and not float(number).is_integer()]
    if len(texts) == len(numbers) or (2 * len(texts) >= len(numbers) and not amounts):
        return
    for example, value in cells:
        hint = "leave it out, or say --set options.kind=multiclass if the numbers are names"
        require(value not in texts, example, f"{value!r} stands among numbers in {name}; {hint}")


def _refuse_name_of_row(cells: Sequence[Cell], name: str) -> None:
    """Raise InputError for names of which no two rows have the same."""
    if len(cells) > _FEW and len({class_name(cell.value) for cell in cells}) == len(cells):
        letters = all(len(str(cell.value)) == len(cell.example.sequence) for cell in cells)
        per = ", or --set options.per=nucleotide if each letter is the class of a nucleotide" if letters else ""
        raise InputError(
            f"{name}: every row has another text, such as {_short(cells[0].value)}; name the column of values by "
            f"--target, or say --set options.kind=multiclass if they are classes{per}"
        )


# Descriptions


def described(
    examples: Sequence[Example],
    kind: ProblemType,
    per: Per,
    formats: Mapping[str, NumberFormat],
    is_class: Callable[[Any], bool] = lambda value: False,
) -> Iterator[str]:
    """A line about each column: values or classes with their numbers of rows, what is missing, three examples.

    `is_class` says of a word that stands for a missing value whether it is a class.
    """
    for number, (name, written) in enumerate(formats.items()):
        if number == _SHOWN:
            yield f"… and {len(formats) - _SHOWN:,} more columns"
            return
        cells = single_cells(examples, name, per, kind)
        lacking = len(examples) - len(column_of(examples, name))
        words = [Cell(e, e.target[name]) for e in examples if per == "sequence" and is_class(e.target[name])]
        cells, lacking = cells + words, lacking - len(words)
        missing = f"; {lacking:,} {'rows have' if lacking > 1 else 'row has'} none" if lacking else ""
        if kind == "regression":
            yield from _of_numbers(cells, name, written, missing, per)
        else:
            yield _of_classes(cells, name, missing, per)


def _of_numbers(cells: Sequence[Cell], name: str, written: NumberFormat, missing: str, per: Per) -> Iterator[str]:
    numbers = np.array([written.parse(value) for _, value in cells], dtype=float)
    if not len(numbers):
        yield f"{name}: no values{missing}"
        return
    several = f" in {len({id(example) for example, _ in cells}):,} rows" if per == "nucleotide" else ""
    style = f" {text}" if (text := written.described()) else ""
    three = ", ".join(_example(value, written) for value in _three(cells))
    spread = f"{numbers.min():.10g} to {numbers.max():.10g}"
    count = f"{len(numbers):,} numbers" if len(numbers) > 1 else "1 number"
    yield f"{name}: {count}{several}, {spread}{style}, such as {three}{missing}"
    if len(numbers) > 1 and numbers.min() == numbers.max():
        yield f"{name} is the same in all training examples; there is nothing to learn from it"
    low, middle, high = np.percentile(numbers, [25, 50, 75])
    # The numbers may be as large as numbers are; their difference is not.
    far = np.abs(numbers / 2 - middle / 2) > _OUTLYING * (high / 2 - low / 2)
    if high > low and far.any():
        cell = cells[int(far.argmax())]
        where = cell.example.where.rpartition(", ")[2]
        yield (
            f"{name}: {far.sum():,} of {len(numbers):,} numbers far from all others, such as {cell.value} ({where}); "
            "leave cells without a value empty"
        )


def _of_classes(cells: Sequence[Cell], name: str, missing: str, per: Per) -> str:
    counts = Counter(class_name(value) for _, value in cells)
    shown = ", ".join(f"{_short(text)} ({count:,})" for text, count in counts.most_common(_SHOWN))
    more = f", … down to {min(counts.values()):,}" if len(counts) > _SHOWN else ""
    what = "nucleotides" if per == "nucleotide" else "rows"
    return f"{name}: {len(counts):,} classes in {len(cells):,} {what}: {shown}{more}{missing}"


def _example(value: Any, written: NumberFormat) -> str:
    number = written.parse(value)
    return (
        str(value).strip() if not isinstance(value, str) or written == PLAIN else f"'{value.strip()}' = {number:.10g}"
    )


def _three(cells: Sequence[Cell]) -> list[Any]:
    return list(dict.fromkeys(str(value) if isinstance(value, str) else value for _, value in cells))[:3]


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 40 else text[:39] + "…")

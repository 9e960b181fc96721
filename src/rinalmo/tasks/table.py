"""A user's table: what its columns hold is decided over all rows.

    per     one value a sequence, or a list with one a nucleotide
    kind    numbers, yes or no, names of classes
    format  how the numbers are written

A column with two plausible readings is refused, with the option that decides. What was decided is described with the
numbers of rows and three examples, so that a wrong reading is noticed before hours of training.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Self

import numpy as np

from rinalmo.errors import InputError
from rinalmo.io.tables import is_missing
from rinalmo.model.heads import IGNORE, ProblemType
from rinalmo.tasks.base import Columns, Example, Per, require
from rinalmo.tasks.classification import LabelTask
from rinalmo.tasks.examples import (
    PLAIN,
    Decimal,
    NumberFormat,
    class_name,
    has_separators,
    is_list,
    list_items,
    looks_numeric,
    number,
    number_format,
    parse_bool,
    read_table,
    require_several,
)

_FEW, _OFTEN = 20, 5  # at most so many values, each in so many rows on average, are classes
_SHORT = 8  # a list of so few values for each of longer sequences is hardly one of nucleotides
_DESCRIBED = 6  # columns and classes that are described one by one
_OUTLYING = 100.0  # times the spread of the middle half of the values
_EMPTY_LISTS: tuple[Any, ...] = ([], (), "[]")
_DECIMAL_HINT = "; say --set options.decimal=comma or --set options.decimal=point"
_PER_HINT = (
    "if they are values of the first nucleotides, say --set options.per=nucleotide; "
    "if it is the name of a class, --set options.per=sequence"
)
_USUAL_TARGETS = ("label", "target", "value", "y", "class", "score")
_PREDICTED = {"id", "position", "nucleotide", "probability"}  # columns that `predict` writes
_SELECTION_METRICS = {"regression": "r2", "binary": "roc_auc", "multilabel": "roc_auc", "multiclass": "accuracy"}


class Cell(NamedTuple):
    """A single value, or a list of them, and the row that it is from."""

    example: Example
    value: Any


class Table(LabelTask):
    """Labels in the columns of a table, of the kind that the columns hold."""

    name = "table"
    options = ("kind", "per", "pooling", "decimal", "missing")

    def __init__(
        self,
        kind: ProblemType,
        per: Per,
        targets: Sequence[str],
        classes: Sequence[str] = (),
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        pooling: str = "cls",
        formats: Mapping[str, Mapping[str, Any]] | None = None,
        missing: Literal["drop", "class"] | None = None,
    ) -> None:
        """Make a task for these columns.

        Args:
            kind: See `LabelTask`, also for the arguments up to `pooling`.
            formats: Arguments of `NumberFormat` by column, for those that are not written plainly.
            missing: "drop": examples without a value are left out. "class": words such as NA name a class.
        """
        super().__init__(kind, per, targets, classes, mean, std, pooling)
        self.formats = {name: NumberFormat(**fields) for name, fields in (formats or {}).items()}
        self.missing = missing
        self.selection_metric = _SELECTION_METRICS[kind]
        self.settings = {
            "kind": kind,
            "per": per,
            "targets": self.targets,
            "classes": self.classes,
            "mean": self.mean,
            "std": self.std,
            **self.pooling_options,
            **({"formats": formats} if formats else {}),
            **({"missing": missing} if missing else {}),
        }

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        return read_table(path, columns, _USUAL_TARGETS)

    @classmethod
    def from_examples(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        targets, missing = list(examples[0].target), options.get("missing")
        if reserved := sorted({*targets} & _PREDICTED):
            message = f"`predict` has a column {reserved[0]!r} of its own; give the column to predict another name"
            raise InputError(message)
        per: Per = options.get("per") or infer_per(examples, targets)
        columns = {name: values_of(examples, name, per) for name in targets if options.get("kind") != "multiclass"}
        formats = number_formats(columns, options.get("decimal")) if columns else dict.fromkeys(targets, PLAIN)
        kind: ProblemType = options.get("kind") or infer_kind(columns, formats, per, len(examples))
        if kind in ("binary", "multiclass") and len(targets) > 1:
            message = f"a {kind} table has one column to predict, not {len(targets)}; several are multilabel"
            raise InputError(message)
        if per == "nucleotide" and "pooling" in options:
            raise InputError("options.pooling is for one answer a sequence; this table has values of each nucleotide")
        pooling, arguments = options.get("pooling") or "cls", dict[str, Any]()
        if kind == "multiclass":
            columns = {targets[0]: values_of(examples, targets[0], per, kind, missing)}
            arguments["classes"] = sorted({class_name(value) for _, value in columns[targets[0]]} - {""})
            require_several(arguments["classes"], targets[0])
        else:
            # A format that evaluation data may not tell is remembered.
            arguments["formats"] = {
                name: asdict(written)
                for name, written in formats.items()
                if options.get("decimal")
                or written != PLAIN
                or any("," in value for _, value in columns[name] if isinstance(value, str))
            }
        task = cls(kind, per, targets, pooling=pooling, missing=missing, **arguments)
        if kind in ("regression", "binary"):
            encoded = task.encode_targets(examples)
            if not encoded:
                raise InputError(f"{', '.join(targets)}: no row has a value; there is nothing to learn")
            values = np.concatenate([example.target.reshape(-1, len(targets)) for example in encoded])
            if kind == "regression":
                mean, std = _mean_and_std(values, targets)
                task = cls(kind, per, targets, (), mean, std, pooling, arguments["formats"], missing)
            else:
                require_several({str(value) for value in values[values != IGNORE].tolist()}, targets[0])
        numeric = task.classes and all(name.lstrip("-").isdigit() for name in task.classes)
        hint = "; say --set options.kind=regression if the numbers are amounts" if numeric else ""
        task.notes = [f"{', '.join(targets)}: {kind}, for each {per}{hint}"]
        for name, cells in list(columns.items())[:_DESCRIBED]:
            task.notes += _description(name, cells, len(examples), kind, per, formats[name])
        if len(columns) > _DESCRIBED:
            task.notes.append(f"… and {len(columns) - _DESCRIBED:,} more columns")
        return task

    def encode_targets(self, examples: Sequence[Example]) -> list[Example]:
        formats: Mapping[str, NumberFormat] = {}
        if self.kind != "multiclass":
            # A file for evaluation may write its numbers in another way than the training data.
            known = [name for name in self.targets if all(name in example.target for example in examples)]
            formats = number_formats({name: values_of(examples, name, self.per) for name in known}, None, self.formats)
        encoded = []
        for example in examples:
            lacking = [name for name in self.targets if name not in example.target]
            values = [example.target.get(name, "") for name in self.targets]
            if self.missing == "drop" and not lacking and all(is_missing(v) or v in ([], "[]") for v in values):
                continue
            hint = "give this column its name, or leave --target out"
            require(not lacking, example, f"the model predicts {''.join(lacking[:1])!r}, not what was named; {hint}")
            written = [formats.get(name, PLAIN) for name in self.targets]
            encode = self._encode_cell if self.per == "sequence" else self._encode_list
            columns = [encode(example, *column) for column in zip(values, self.targets, written, strict=True)]
            target = np.array(columns[0]) if self.kind == "multiclass" else np.stack(columns, axis=-1)
            known_targets = ~np.isnan(target) if self.kind == "regression" else target != IGNORE
            encoded.append(replace(example, target=target, num_targets=int(known_targets.sum())))
        return encoded

    def _encode_list(self, example: Example, value: Any, name: str, written: NumberFormat) -> np.ndarray:
        """The values of all nucleotides, missing ones at the end included."""
        if len(self.targets) == 1 and (is_missing(value) or value == []):
            self._refuse_missing(example, value, name)
        items, length = items_of(example, value, name, self.kind), len(example.sequence)
        require(len(items) <= length, example, f"{name} has {len(items)} values for {length} nucleotides")
        cells = [self._encode_cell(example, item, f"{name}, value {i}", written) for i, item in enumerate(items, 1)]
        return np.array(cells + [math.nan if self.kind == "regression" else IGNORE] * (length - len(cells)))

    def _encode_cell(self, example: Example, value: Any, name: str, written: NumberFormat) -> float | int:
        several = self.per == "nucleotide" or len(self.targets) > 1
        if is_missing(value) and not (self.missing == "class" and isinstance(value, str) and value.strip()):
            if not several or (self.per == "sequence" and self.kind == "multiclass"):
                self._refuse_missing(example, value, name)
            return math.nan if self.kind == "regression" else IGNORE
        if self.kind == "regression":
            return number(value, example.where, name, written, missing=several)
        if self.kind == "multiclass":
            return self.class_id(example, class_name(value))
        parsed = written.parse(value)
        return int(parsed) if parsed in (0.0, 1.0) else int(parse_bool(example, value))

    def _refuse_missing(self, example: Example, value: Any, name: str) -> NoReturn:
        text = str("" if value is None or value == [] else value).strip()
        problem = f"is {text!r}, which stands for a missing value" if text else "is empty"
        or_class = ", or =class if it names one" if text and self.kind == "multiclass" else ""
        hint = f"drop the row, or say --set options.missing=drop to leave out such rows{or_class}"
        raise InputError(f"{example.where}: {name} {problem}; {hint}")


# What columns hold


def values_of(
    examples: Sequence[Example],
    name: str,
    per: Per | None,
    kind: ProblemType | None = None,
    missing: Literal["drop", "class"] | None = None,
) -> list[Cell]:
    """The single values of a column, without missing ones; with `per` None lists in one piece.

    With `missing` "class", words such as NA of a column with one value a sequence count as values.
    """
    cells, words = [], []
    for example in examples:
        value = example.target.get(name)
        if is_missing(value) or value in _EMPTY_LISTS:
            if missing == "class" and per == "sequence" and isinstance(value, str) and value.strip():
                words.append(Cell(example, value))
            continue
        for item in items_of(example, value, name, kind) if per == "nucleotide" else [value]:
            if per == "nucleotide" and is_missing(item):
                continue
            if per and isinstance(item, dict | list):
                raise InputError(f"{example.where}: {str(item)[:30]} is neither a number nor a name")
            cells.append(Cell(example, item))
    return cells + words


def items_of(example: Example, value: Any, name: str, kind: ProblemType | None) -> list[Any]:
    """The values of single nucleotides in a cell; a text without separators is one class a letter."""
    if is_missing(value):
        return []
    if kind == "multiclass" and isinstance(value, str) and not has_separators(value) and not is_list(value):
        return list(value.strip())
    try:
        return list_items(value, len(example.sequence))
    except ValueError as error:
        raise InputError(f"{example.where}: {name}: {str(value)[:30]}… {error}") from None


def infer_per(examples: Sequence[Example], targets: Sequence[str]) -> Per:
    """Whether the columns hold one value a sequence or one a nucleotide.

    Raises:
        InputError: Both are plausible, or columns differ.
    """
    columns = {name: cells for name in targets if (cells := values_of(examples, name, None))}
    if not columns:
        raise InputError(f"{', '.join(targets)}: no row has a value; there is nothing to learn")
    first = next(iter(columns))
    per = _per_of_column(columns[first], first)
    for name, cells in columns.items():
        if name != first and (other := _per_of_column(cells, name)) != per:
            raise InputError(
                f"{first} has one value for each {per} and {name} for each {other}; train a model for "
                "each, or say --set options.per=sequence to take lists as names"
            )
    return per


def _per_of_column(cells: Sequence[Cell], name: str) -> Per:
    listed = sum(is_list(cell.value) for cell in cells)
    if listed and listed < len(cells):
        example, value = next(cell for cell in cells if not is_list(cell.value))
        problem = f"is {_short(value)}, where {listed:,} of {len(cells):,} rows have lists"
        raise InputError(f"{example.where}: {name} {problem}; {_PER_HINT}")
    if not listed and not any(has_separators(cell.value) for cell in cells):
        return "sequence"
    rows = [items_of(example, value, name, None) for example, value in cells]
    lengths = [len(example.sequence) for example, _ in cells]
    if listed:
        for (example, _), row in zip(cells, rows, strict=True):
            for item in row:
                require(not isinstance(item, dict | list), example, f"{str(item)[:30]} is neither a number nor a name")
    full = sum(len(row) == length for row, length in zip(rows, lengths, strict=True))
    if not listed and full < len(cells) and _is_one_number_each(cells):
        return "sequence"
    items = [item for row in rows for item in row if not is_missing(item)]
    problem = ""
    if listed or 2 * sum(looks_numeric(item) for item in items) > len(items):
        # A few values in every row, such as those of three replicates.
        count, shortest = len(rows[0]), min(lengths)
        equal = len(cells) > 1 and {len(row) for row in rows} == {count}
        if equal and (listed or full < len(cells)) and 1 < count < _SHORT and 2 * count < shortest:
            problem = f"has {count} values in every row, for sequences of {shortest:,} nucleotides and more"
    elif full == 0:
        return "sequence"
    elif 2 * full < len(cells) or any(len(row) > length for row, length in zip(rows, lengths, strict=True)):
        problem = f"is a list as long as the sequence in {full:,} of {len(cells):,} rows only"
    if problem:
        raise InputError(f"{cells[0].example.where}: {name} {problem}; {_PER_HINT}")
    return "nucleotide"


def _is_one_number_each(cells: Sequence[Cell]) -> bool:
    """Whether every cell is one number with a comma or spaces in it, or such a number with a unit."""
    if all(looks_numeric(cell.value) for cell in cells):
        return True
    try:
        written = number_format((cell.value for cell in cells), "")
    except InputError:
        return True  # of two formats, but of numbers
    return written.unit != "" and all(written.parse(cell.value) is not None for cell in cells)


def number_formats(
    columns: Mapping[str, Sequence[Cell]],
    decimal: Decimal | None = None,
    usual: Mapping[str, NumberFormat] | None = None,
) -> dict[str, NumberFormat]:
    """How each of the columns writes its numbers; see `number_format`."""
    formats = {}
    for name, cells in columns.items():
        values = [value for _, value in cells]
        known = usual.get(name) if usual else None
        formats[name] = number_format(values, name, decimal=decimal, usual=known, hint=_DECIMAL_HINT)
    return formats


def infer_kind(
    columns: Mapping[str, Sequence[Cell]], formats: Mapping[str, NumberFormat], per: Per, rows: int
) -> ProblemType:
    """Which kind of values the columns of a table with so many rows hold.

    Raises:
        InputError: Two kinds are plausible.
    """
    numbers: set[float] = set()
    for name, cells in columns.items():
        written = formats[name]
        parsed = {value if value.__hash__ else str(value): written.parse(value) for _, value in cells}
        if None in parsed.values():
            _check_names(cells, name, parsed, per)
            return "multiclass"
        if written.unit and written.unit[0] not in "%‰":
            if len(parsed) <= _FEW and len(cells) >= _OFTEN * len(parsed) and len(columns) == 1:
                return "multiclass"
            raise InputError(
                f"{name}: every cell is a number with {written.unit!r}; say --set options.kind=regression to learn the "
                "numbers, or --set options.kind=multiclass if they are names"
            )
        numbers.update(value for value in parsed.values() if value is not None)
    if numbers <= {0.0, 1.0}:
        return "binary" if len(columns) == 1 else "multilabel"
    few = len(numbers) <= _FEW and rows >= _OFTEN * len(numbers) and len(columns) == 1 and per == "sequence"
    return "multiclass" if few and all(value.is_integer() for value in numbers) else "regression"


def _check_names(cells: Sequence[Cell], name: str, parsed: Mapping[Any, float | None], per: Per) -> None:
    """Raise InputError for a text in a column of numbers, unless the numbers are names as well, and for names of which
    no two rows have the same."""
    texts = {value for value, parsed_value in parsed.items() if parsed_value is None}
    has_amounts = any(value is not None and not float(value).is_integer() for value in parsed.values())
    if len(texts) < len(parsed) and (2 * len(texts) < len(parsed) or has_amounts):
        example, value = next(cell for cell in cells if cell.value in texts)
        hint = "leave it out, or say --set options.kind=multiclass if the numbers are names"
        raise InputError(f"{example.where}: {value!r} stands among numbers in {name}; {hint}")
    if per == "sequence" and len(cells) > _FEW and len({class_name(value) for _, value in cells}) == len(cells):
        letters = all(len(str(value)) == len(example.sequence) for example, value in cells)
        hint = ", or --set options.per=nucleotide if each letter is the class of a nucleotide" if letters else ""
        raise InputError(
            f"{name}: every row has another text, such as {_short(cells[0].value)}; name the column of values by "
            f"--target, or say --set options.kind=multiclass if they are classes{hint}"
        )


def _mean_and_std(values: np.ndarray, targets: Sequence[str]) -> tuple[list[float], list[float]]:
    for name, column in zip(targets, values.T, strict=True):
        if np.isnan(column).all():
            raise InputError(f"{name} has no value in the training data")
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    # The mean of equal numbers may differ from them by rounding.
    constant = std <= 1e-12 * np.abs(mean)
    return mean.tolist(), np.where(constant, 1.0, std).tolist()


def _description(
    name: str, cells: Sequence[Cell], rows: int, kind: ProblemType, per: Per, written: NumberFormat
) -> Iterator[str]:
    """Values or classes of a column with their numbers of rows, how many rows have none, three examples."""
    lacking = rows - len({id(example) for example, _ in cells})
    missing = f"; {lacking:,} {'rows have' if lacking > 1 else 'row has'} none" if lacking else ""
    if kind != "regression":
        counts = Counter(class_name(value) for _, value in cells)
        classes = ", ".join(f"{_short(text)} ({count:,})" for text, count in counts.most_common(_DESCRIBED))
        more = f", … down to {min(counts.values()):,}" if len(counts) > _DESCRIBED else ""
        unit = "nucleotides" if per == "nucleotide" else "rows"
        yield f"{name}: {len(counts):,} classes in {len(cells):,} {unit}: {classes}{more}{missing}"
        return
    numbers = np.array([written.parse(value) for _, value in cells], dtype=float)
    if not len(numbers):
        yield f"{name}: no values{missing}"
        return
    count = f"{len(numbers):,} numbers" if len(numbers) > 1 else "1 number"
    several = f" in {rows - lacking:,} rows" if per == "nucleotide" else ""
    style = f" in {written.unit}" if written.unit else ""
    if written.decimal == "comma":
        style += ", with decimal commas" if style else " with decimal commas"
    examples = [
        f"'{value.strip()}' = {written.parse(value):.10g}"
        if isinstance(value, str) and written != PLAIN
        else str(value).strip()
        for value in list(dict.fromkeys(value for _, value in cells))[:3]
    ]
    spread = f"{numbers.min():.10g} to {numbers.max():.10g}{style}"
    yield f"{name}: {count}{several}, {spread}, such as {', '.join(examples)}{missing}"
    if len(numbers) > 1 and numbers.min() == numbers.max():
        yield f"{name} is the same in all training examples; there is nothing to learn from it"
    low, middle, high = np.percentile(numbers, [25, 50, 75])
    # The numbers may be as large as numbers are; their difference is not.
    far = np.abs(numbers / 2 - middle / 2) > _OUTLYING * (high / 2 - low / 2)
    if high > low and far.any():
        example, value = cells[int(far.argmax())]
        yield (
            f"{name}: {far.sum():,} of {len(numbers):,} numbers far from all others, such as {value} "
            f"({example.where.rpartition(', ')[2]}); leave cells without a value empty"
        )


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 40 else text[:39] + "…")

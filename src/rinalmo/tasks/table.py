"""What the columns of a user's table hold, decided over all rows.

    per     one value a sequence, or a list with one a nucleotide
    kind    numbers, yes or no, names of classes
    format  how the numbers are written

Two plausible readings are refused, with the option that decides. What was decided is described with the numbers of
rows and three examples, so that a wrong reading is seen before hours of training.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rinalmo import metrics
from rinalmo.errors import InputError
from rinalmo.io.tables import is_missing
from rinalmo.model.heads import IGNORE, ProblemType
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.base import Columns, Example, Figures, Per, Task, inner, require
from rinalmo.tasks.classification import (
    binary_figures,
    class_answer,
    class_figures,
    class_name,
    pooled,
    require_known,
    require_several,
    truth,
)
from rinalmo.tasks.examples import (
    PLAIN,
    Decimal,
    NumberFormat,
    fits_length,
    has_separators,
    is_written_list,
    looks_numeric,
    number,
    number_format,
    read_table,
    split_list,
)

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
    for shown, (name, written) in enumerate(formats.items()):
        if shown == _SHOWN:
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


_USUAL = ("label", "target", "value", "y", "class", "score")
_TAKEN = {"id", "position", "nucleotide", "probability"}
_SCORES = {"regression": "r2", "binary": "roc_auc", "multilabel": "roc_auc", "multiclass": "accuracy"}


class Table(Task):
    """Whatever the columns of a table say."""

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
        """A task on columns that are known.

        Args:
            kind: What the columns hold.
            per: Whether they hold a value for each sequence or a list with one for each nucleotide.
            targets: Names of the columns.
            classes: Names of the classes, for "multiclass".
            mean: Mean of each column over the training examples, for "regression".
            std: Standard deviation of each.
            pooling: What the head looks at: "cls" or "mean".
            formats: Arguments of `NumberFormat` by column, for those that are not written plainly.
            missing: "drop": examples without a value are left out. "class": words such as NA name a class.
        """
        self.kind, self.per, self.targets, self.classes = kind, per, list(targets), list(classes)
        self.formats = {name: NumberFormat(**fields) for name, fields in (formats or {}).items()}
        self.missing, self.notes = missing, list[str]()
        self.mean, self.std, self.pooling = list(mean), list(std), pooling
        self.places = {name: place for place, name in enumerate(self.classes)}
        self.score = _SCORES[kind]

    def settings(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "per": self.per,
            "targets": self.targets,
            "classes": self.classes,
            "mean": self.mean,
            "std": self.std,
            **pooled(self.pooling),
            **({"formats": {name: asdict(written) for name, written in self.formats.items()}} if self.formats else {}),
            **({"missing": self.missing} if self.missing else {}),
        }

    def described(self) -> str:
        hint = "; say --set options.kind=regression if the numbers are amounts" if _numbers(self.classes) else ""
        return "\n".join([f"{', '.join(self.targets)}: {self.kind}, for each {self.per}{hint}", *self.notes])

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        return read_table(path, columns, _USUAL)

    @classmethod
    def learned(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        targets = list(examples[0].target)
        if taken := sorted({*targets} & _TAKEN):
            raise InputError(f"`predict` has a column {taken[0]!r} of its own; give the column to predict another name")
        width = len(targets)
        per: Per = options.get("per") or per_of(examples, targets)
        given: ProblemType | None = options.get("kind")
        names = given == "multiclass"
        decimal = options.get("decimal")
        formats = dict.fromkeys(targets, PLAIN) if names else formats_of(examples, targets, per, decimal)
        kind = given or kind_of(examples, per, formats)
        if kind in ("binary", "multiclass") and width > 1:
            raise InputError(f"a {kind} table has one column to predict, not {width}; several are multilabel")
        missing = options.get("missing")
        classes = _classes(examples, per, targets[0], missing) if kind == "multiclass" else []
        pooling = options.get("pooling") or "cls"
        if per == "nucleotide" and "pooling" in options:
            raise InputError("options.pooling is for one answer a sequence; this table has values of each nucleotide")
        task = cls(kind, per, targets, classes, pooling=pooling, missing=missing)
        if kind != "multiclass":
            task.formats = {
                name: written
                for name, written in formats.items()
                if decimal or written != PLAIN or _has_comma(examples, name, per)
            }
        if kind in ("regression", "binary"):
            understood = task.understood(examples)
            if not understood:
                raise InputError(f"{', '.join(targets)}: no row has a value; there is nothing to learn")
            values = np.concatenate([e.target.reshape(-1, width) for e in understood])
            if kind == "regression":
                task.mean, task.std = _scale(values, targets)
            else:
                require_several({str(value) for value in values[values != IGNORE].tolist()}, targets[0])
        task.notes = list(described(examples, kind, per, formats, task._is_class_word))
        return task

    def heads(self) -> dict[str, dict[str, Any]]:
        options = {"num_labels": len(self.classes) or len(self.targets)}
        if self.per == "nucleotide":
            return {"token_head": options}
        return {"pooler": pooled(self.pooling), "sequence_head": options}

    def understood(self, examples: Sequence[Example]) -> list[Example]:
        formats: dict[str, NumberFormat] = {}
        known = [name for name in self.targets if all(name in example.target for example in examples)]
        if self.kind != "multiclass":
            # A file for evaluation may write its numbers in another way than the training data.
            formats = formats_of(examples, known, self.per, usual=self.formats)
        kept = [example for example in examples if not self._is_left_out(example)]
        return [replace(example, target=self._target(example, formats)) for example in kept]

    def _is_left_out(self, example: Example) -> bool:
        values = [example.target.get(name, "") for name in self.targets]
        return (
            self.missing == "drop"
            and all(name in example.target for name in self.targets)
            and all(is_missing(value) or value in ([], "[]") for value in values)
        )

    def _target(self, example: Example, formats: Mapping[str, NumberFormat]) -> np.ndarray:
        """`(targets,)` or `(length, targets)`; classes as their places without the last axis."""
        lacking = [name for name in self.targets if name not in example.target]
        hint = "give this column its name, or leave --target out"
        require(not lacking, example, f"the model predicts {''.join(lacking[:1])!r}, not what was named; {hint}")
        values = [(name, example.target[name], formats.get(name, PLAIN)) for name in self.targets]
        if self.per == "sequence":
            cells = [self._cell(example, value, name, written) for name, value, written in values]
            return np.array(cells[0] if self.kind == "multiclass" else cells)
        tracks = [self._track(example, value, name, written) for name, value, written in values]
        return tracks[0] if self.kind == "multiclass" else np.stack(tracks, axis=1)

    def _track(self, example: Example, value: Any, name: str, written: NumberFormat) -> np.ndarray:
        if len(self.targets) == 1 and (is_missing(value) or value == []):
            self._refuse_missing(example, value, name)
        cells, length = items_of(example, value, name, self.kind), len(example.sequence)
        require(len(cells) <= length, example, f"{name} has {len(cells)} values for {length} nucleotides")
        empty = math.nan if self.kind == "regression" else IGNORE
        numbered = enumerate(cells, start=1)
        values = [self._cell(example, cell, f"{name}, value {i}", written) for i, cell in numbered]
        return np.array(values + [empty] * (length - len(values)))

    def _cell(self, example: Example, value: Any, name: str, written: NumberFormat) -> float | int:
        if is_missing(value) and not self._is_class_word(value):
            if self.per == "sequence" and (len(self.targets) == 1 or self.kind == "multiclass"):
                self._refuse_missing(example, value, name)
            return math.nan if self.kind == "regression" else IGNORE
        if self.kind == "regression":
            several = self.per == "nucleotide" or len(self.targets) > 1
            return number(value, example.where, name, written, missing=several)
        if self.kind == "multiclass":
            named = class_name(value)
            require_known(example, named, self.places)
            return self.places[named]
        parsed = written.parse(value)
        return int(parsed) if parsed in (0.0, 1.0) else int(truth(replace(example, target=value)))

    def _is_class_word(self, value: Any) -> bool:
        """Whether this is a word such as NA that names a class here."""
        return self.missing == "class" and isinstance(value, str) and value.strip() != "" and is_missing(value)

    def _refuse_missing(self, example: Example, value: Any, name: str) -> None:
        text = str("" if value is None or value == [] else value).strip()
        stands = f"is {text!r}, which stands for a missing value" if text else "is empty"
        named = ", or =class if it names one" if text and self.kind == "multiclass" else ""
        hint = f"drop the row, or say --set options.missing=drop to leave out such rows{named}"
        require(False, example, f"{name} {stands}; {hint}")

    def outputs(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        if self.per == "sequence":
            return list(model.head("sequence_head")(model.head("pooler")(states, layout)))
        parts = inner(states, layout)
        return model.head("token_head")(torch.cat(parts)).split([len(part) for part in parts])

    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        together = torch.cat if self.per == "nucleotide" else torch.stack
        logits = together(list(outputs)).float()
        target = _joined([e.target for e in examples], self.per)
        if self.kind == "multiclass":
            places = torch.from_numpy(target).to(logits.device).long()
            return F.cross_entropy(logits, places, ignore_index=IGNORE, reduction="sum")
        keep = torch.from_numpy(_known(target, self.kind)).to(logits.device)
        if self.kind == "regression":
            target = (target - np.asarray(self.mean)) / np.asarray(self.std)  # in fp64, which not every device has
        wanted = torch.from_numpy(target.astype(np.float32)).to(logits.device)
        if self.kind == "regression":
            return F.mse_loss(logits[keep], wanted[keep], reduction="sum")
        return F.binary_cross_entropy_with_logits(logits[keep], wanted[keep], reduction="sum")

    def count(self, examples: Sequence[Example]) -> int:
        return int(sum(_known(example.target, self.kind).sum() for example in examples))

    def judge(self, model: RiNALMo, output: Tensor, example: Example) -> np.ndarray:
        match self.kind:
            case "regression":
                return (output.cpu().double().numpy() * self.std + self.mean).astype(np.float32)
            case "multiclass":
                return output.float().softmax(dim=-1).cpu().numpy()
            case _:
                return output.float().sigmoid().cpu().numpy()

    def figures(self, judged: Sequence[Any], examples: Sequence[Example], threshold: float | None) -> Figures:
        found = _joined(list(judged), self.per)
        target = _joined([example.target for example in examples], self.per)
        if self.kind == "multiclass":
            known = target != IGNORE
            if known.any():
                yield from class_figures(found[known], target[known].astype(int))
            return
        each = [dict(self._column_figures(found[:, column], target[:, column])) for column in range(len(self.targets))]
        for name in dict.fromkeys(name for figures in each for name in figures):
            values = [figures[name] for figures in each if name in figures]
            yield name, float(np.mean(values))
        if len(each) > 1:
            yield from (
                (f"{name}/{target}", v) for target, of in zip(self.targets, each, strict=True) for name, v in of.items()
            )

    def _column_figures(self, found: np.ndarray, target: np.ndarray) -> Figures:
        known = _known(target, self.kind)
        if not known.any():
            return
        found, target = found[known], target[known]
        if self.kind != "regression":
            yield from binary_figures(found, target.astype(bool))
            return
        yield "r2", metrics.r2(target, found)
        yield "spearman", metrics.spearman(target, found)
        yield "rmse", float(np.sqrt(metrics.mean_squared_error(target, found)))
        yield "mae", metrics.mean_absolute_error(target, found)

    def rows(self, model: RiNALMo, output: Tensor, example: Example) -> list[dict[str, Any]]:
        values = self.judge(model, output, example)
        if self.per == "sequence":
            return [{"id": example.name, **self._answer(values)}]
        places = zip(example.sequence, values, strict=True)
        return [
            {"id": example.name, "position": i, "nucleotide": letter, **self._answer(row)}
            for i, (letter, row) in enumerate(places, start=1)
        ]

    def _answer(self, values: np.ndarray) -> dict[str, Any]:
        if self.kind == "multiclass":
            return class_answer(self.targets[0], self.classes, values)
        if self.kind == "regression":
            return {name: float(value) for name, value in zip(self.targets, values, strict=True)}
        pairs = list(zip(self.targets, values, strict=True))
        return {name: int(p > 0.5) for name, p in pairs} | {f"p({name})": float(p) for name, p in pairs}


def _numbers(classes: Sequence[str]) -> bool:
    return bool(classes) and all(name.lstrip("-").isdigit() for name in classes)


def _has_comma(examples: Sequence[Example], name: str, per: Per) -> bool:
    return any("," in value for _, value in single_cells(examples, name, per) if isinstance(value, str))


def _classes(examples: Sequence[Example], per: Per, target: str, missing: str | None) -> list[str]:
    found = {class_name(value) for _, value in single_cells(examples, target, per, "multiclass")}
    if missing == "class" and per == "sequence":
        found |= {class_name(value) for e in examples if isinstance(value := e.target[target], str)}
    found -= {""}
    require_several(found, target)
    return sorted(found)


def _scale(values: np.ndarray, targets: Sequence[str]) -> tuple[list[float], list[float]]:
    for name, column in zip(targets, values.T, strict=True):
        if np.isnan(column).all():
            raise InputError(f"{name} has no value in the training data")
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    # The mean of equal numbers may differ from them by rounding.
    constant = std <= 1e-12 * np.abs(mean)
    return mean.tolist(), np.where(constant, 1.0, std).tolist()


def _known(target: np.ndarray, kind: ProblemType) -> np.ndarray:
    return ~np.isnan(target) if kind == "regression" else target != IGNORE


def _joined(values: Sequence[np.ndarray], per: Per) -> np.ndarray:
    return np.concatenate(values) if per == "nucleotide" else np.stack(values)


assert set(_SCORES) == set(get_args(ProblemType))

"""What a task is, and its examples in tables.

    data       read → from_examples → encode_targets
    head       heads → forward → loss
    decoding   score_example → metrics, or rows of predictions

A task knows nothing of batches, optimizers or weight files. What it has learned from its training data (names of
classes, a scale) is in its `settings`: plain values that the model's `config.json` holds under "task".

Cells are read as spreadsheets and other programs write them. A number may have a decimal comma, thousands separators
(comma, point, space, apostrophe), a Unicode minus, a percent sign or a unit. How a column writes its numbers is decided
over all of its cells, because one cell does not say: `1,137` is 1.137 or 1137.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from torch import Tensor

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.sequences import NAME, SEQUENCE, make_record, plain_item, plain_rows
from rinalmo.io.tables import TableReader, is_missing, open_table
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.rna.alphabet import Alphabet
from rinalmo.rna.constraints import Conditions

if TYPE_CHECKING:
    from rinalmo.tasks.inputs import Inputs

Per = Literal["sequence", "nucleotide"]


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table; None: the usual names are tried."""

    name: str | None = None
    sequence: str | None = None
    target: Sequence[str] = ()
    group: str | None = None
    second: str | None = None  # second sequences
    features: Mapping[str, Path | None] = field(default_factory=dict)  # with files of vectors; see `tasks.inputs`


@dataclass(frozen=True)
class Example:
    """A sequence, or a pair, with its target. Metrics are also given for each `group`, such as a family or a source."""

    name: str
    sequence: str
    target: Any = None
    group: str = ""
    where: str = field(default="", compare=False)  # file and line, for messages
    num_targets: int = field(default=1, compare=False)  # terms of the loss
    conditions: Conditions | None = field(default=None, compare=False)  # of folding
    second: str = ""  # the other sequence of a pair
    features: Any = field(default=None, compare=False)  # cells by column, then as the head takes them


@dataclass(frozen=True)
class Crop:
    """The first, middle or last `length` nucleotides of a sequence; `at` is "start", "middle" or "end"."""

    length: int
    at: str = "middle"

    def __post_init__(self) -> None:
        if self.length < 1 or self.at not in ("start", "middle", "end"):
            raise ValueError(f"cannot crop to {self.length} nucleotides at the {self.at}")

    def start(self, length: int) -> int:
        """Where the crop of a sequence of this length begins."""
        surplus = max(0, length - self.length)
        return {"start": 0, "middle": surplus // 2, "end": surplus}[self.at]

    def of(self, sequence: str) -> str:
        """The cropped sequence."""
        start = self.start(len(sequence))
        return sequence[start : start + self.length]


def sequences_of(example: Example, crop: Crop | None) -> list[str]:
    """The sequences that a model sees of an example: one, or those of a pair."""
    given = [example.sequence, example.second] if example.second else [example.sequence]
    return list(map(crop.of, given)) if crop else given


def encode_sequences(example: Example, crop: Crop | None, alphabet: Alphabet) -> list[np.ndarray]:
    """The token ids of each sequence that a model sees of an example, with CLS and EOS."""
    return [alphabet.encode(sequence, strict=True) for sequence in sequences_of(example, crop)]


def require(condition: bool, example: Example, message: str) -> None:
    """Raise InputError with file and line of the example unless the condition holds."""
    if not condition:
        raise InputError(f"{example.where or f'example {example.name}'}: {message}")


class Task(ABC):
    """One kind of prediction.

    Attributes:
        options: The recipe options that `from_examples` takes.
        selection_metric: The validation metric that selects the best checkpoint; higher is better.
        per: One prediction for each sequence, or one for each nucleotide or pair of nucleotides.
        settings: The constructor's arguments, for `config.json`.
        crop: The part of a sequence that the model was trained on; None: all of it.
        pad_to: Length in tokens that shorter sequences are padded to; `RibosomeLoad` says why.
        layers: The encoder's layers whose states `forward` takes, side by side; None: the last.
        window: Longer sequences are computed in windows of this length; None: always as a whole.
        thresholds: Decision thresholds to choose from on validation data, if there are any (`tune_threshold`).
        inputs: What the head takes beside a sequence; None: nothing. Otherwise `forward` gives a vector for each
            sequence, and `join` makes outputs of these.
        notes: What `from_examples` decided, for the user.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    selection_metric: str
    per: Per = "sequence"
    settings: Mapping[str, Any] = {}
    crop: Crop | None = None
    pad_to: int = 0
    layers: Sequence[int] | None = None
    window: int | None = None
    thresholds: Sequence[float] = ()
    inputs: Inputs | None = None
    notes: Sequence[str] = ()

    def config(self) -> dict[str, Any]:
        """The task in the model's `config.json`."""
        crop = {"crop": self.crop.length, "crop_at": self.crop.at} if self.crop else {}
        return {"name": self.name, **self.settings, **crop}

    # Data

    @classmethod
    @abstractmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        """Read a file of examples; raises InputError with file and line for one that cannot be used."""

    @classmethod
    @abstractmethod
    def from_examples(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        """Make the task for these training examples, with the recipe's options."""

    def encode_targets(self, examples: Sequence[Example]) -> list[Example]:
        """Replace targets as read by those that `loss` and `metrics` take.

        Raises:
            InputError: A target cannot be used, such as a class that is not in the training data.
        """
        return list(examples)

    # Head

    @abstractmethod
    def heads(self) -> dict[str, dict[str, Any]]:
        """The heads that the model needs, with their arguments."""

    def init_head(self, model: RiNALMo, examples: Sequence[Example]) -> None:  # noqa: B027  # most need nothing
        """Set what a new head takes from the training examples."""

    @abstractmethod
    def forward(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        """The head's output for each sequence of a packed batch, from `ids` `(tokens,)` and `states`
        `(tokens, hidden)`, or of all `layers` `(tokens, layers × hidden)`."""

    def join(self, model: RiNALMo, vectors: Sequence[Tensor], examples: Sequence[Example]) -> Sequence[Tensor]:
        """The head's output for each example, from the vectors of its sequences that `forward` gave."""
        raise NotImplementedError

    @abstractmethod
    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        """The sum of the losses of a batch, fp32."""

    # Decoding

    def merge_windows(self, example: Example, outputs: Iterator[Tensor]) -> Any:
        """One output from those of the windows of a long sequence, consumed one by one."""
        raise NotImplementedError

    def threshold(self, model: RiNALMo) -> float | None:
        """The decision threshold of this model, for a task that has one."""
        return model.spec.threshold

    @abstractmethod
    def score_example(self, model: RiNALMo, output: Any, example: Example) -> Any:
        """What `metrics` needs from one output; small, since it is kept for every example."""

    def tune_threshold(self, scores: Sequence[Any]) -> float:
        """The best of `thresholds` on validation data."""
        raise NotImplementedError

    def example_metrics(self, scores: Sequence[Any], threshold: float | None) -> dict[str, np.ndarray]:
        """Metrics of each example, by name, for a task whose metrics are means of these."""
        return {}

    @abstractmethod
    def metrics(self, scores: Sequence[Any], targets: Sequence[Any], threshold: float | None) -> dict[str, float]:
        """Metrics over examples with these targets, by name; `selection_metric` is among them. Both may be arrays."""

    @abstractmethod
    def rows(self, model: RiNALMo, output: Any, example: Example) -> list[dict[str, Any]]:
        """The predictions for one sequence as rows of a table."""


# Tables of examples

GROUP = ("family", "group", "type", "set")


def read_table(path: Path, columns: Columns, target: Sequence[str] | None) -> list[Example]:
    """The examples of a table; the target of each is its cells of the target columns, by name.

    `target` are the usual names of the target column, for a table whose `columns` do not name it; None: no targets.
    """
    table = open_table(path)
    sequence = _find_column(table, columns.sequence, SEQUENCE, "sequence")
    targets = list(columns.target)
    if not targets and target is not None:
        targets = [_find_column(table, None, target, "target", [columns.second or "", *columns.features])]
    table.require(*targets, *([columns.second] if columns.second else []), *columns.features)
    vectors = {name: read_vectors(file) for name, file in columns.features.items() if file is not None}
    name = _find_column(table, columns.name, NAME)
    group = _find_column(table, columns.group, GROUP, other_than=targets)
    examples = []
    for index, (line, row) in enumerate(table.rows, start=1):
        label = str(row[name]) if name and not is_missing(row[name]) else str(index)
        where, texts = table.place(line), list[str]()
        for column in (sequence, columns.second) if columns.second else (sequence,):
            try:
                texts.append(make_record("" if is_missing(row[column]) else str(row[column]), label or "?").sequence)
            except SequenceError as error:
                raise InputError(f"{where}: {f'{column}: ' if column == columns.second else ''}{error}") from None
        features = {feature: row[feature] for feature in columns.features}
        for feature, of_name in vectors.items():
            key, file = class_name(row[feature]), columns.features[feature]
            if key not in of_name:
                raise InputError(f"{where}: {feature} is {key!r}, which {file} has no vector for")
            features[feature] = of_name[key]
        family = str(row[group]) if group and not is_missing(row[group]) else ""
        cells = dict(zip(targets, map(row.__getitem__, targets), strict=True))
        example = Example(label, texts[0], cells, family, where, features=features or None)
        examples.append(replace(example, second=texts[1]) if columns.second else example)
    if not examples:
        raise InputError(f"{path}: contains no rows")
    return examples


def read_vectors(path: Path) -> dict[str, np.ndarray]:
    """The vectors of a .npz file by name: arrays `ids` and `embeddings`, as `rinalmo embed` writes them, or an array
    for each name.

    Raises:
        InputError: The file is missing or is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if {"ids", "embeddings"} <= {*file.files}:
                return dict(zip(map(str, file["ids"].tolist()), file["embeddings"], strict=True))
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise InputError.from_os_error(error, str(path), "cannot be read") from None
    except (AttributeError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
        raise InputError(
            f"{path}: is no .npz file of vectors; `rinalmo embed` and numpy.savez write such files"
        ) from None


def read_single_target(path: Path, columns: Columns, target: Sequence[str], task: str) -> list[Example]:
    """As `read_table`, for a task with one target, which then is the bare cell."""
    if len(columns.target) > 1:
        raise InputError(
            f"{path}: {task} predicts one column, not {len(columns.target)}; the task `table` takes several"
        )
    return [replace(e, target=next(iter(e.target.values()))) for e in read_table(path, columns, target)]


def _find_column(
    table: TableReader, given: str | None, usual: Sequence[str], required: str = "", other_than: Sequence[str] = ()
) -> str:
    """The column of this name, or of one of the usual names in any case; "" if there is none and none is required."""
    if given is not None:
        table.require(given)
        return given
    for name in usual:
        for column in table.columns:
            if column.lower() == name and name not in other_than:
                return column
    if not required:
        return ""
    names, hint = ", ".join(map(repr, table.columns)), f"rename it, or use --set data.columns.{required}=NAME"
    if required == "target":
        hint = "choose one with --target NAME"
    raise InputError(f"{table.name}: it is unclear which column is the {required}; there are {names}; {hint}")


def json_lines(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[bytes]:
    """Mappings of columns, or the rows of a data frame, as JSON lines. Class labels of a `datasets.Dataset` are written
    by their names. Raises InputError for a row that is no mapping."""
    features = getattr(rows, "features", None) or {}
    labels = {column: names for column, feature in features.items() if (names := getattr(feature, "names", None))}
    for number, row in enumerate(plain_rows(rows), start=1):
        row = plain_item(row)
        if not isinstance(row, Mapping):
            raise InputError(f"{name} example {number} is a {type(row).__name__}; expected a mapping of columns")
        cells = dict(row)
        for column, names in labels.items():
            if isinstance(cells.get(column), int):
                cells[column] = names[cells[column]] if cells[column] >= 0 else None  # -1: no label
        yield json.dumps(cells, default=_to_json).encode() + b"\n"


def _to_json(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as plain ones; everything else as text: no task learns from it."""
    value = plain_item(value)
    if is_missing(value):
        return None
    return value.tolist() if hasattr(value, "tolist") else str(value)


# Numbers

Decimal = Literal["point", "comma"]

_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")

_MINUS = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"), "-")
_SPACE = "[ \u00a0\u2009\u202f'\u2019]"
_EXPONENT = r"(?:[eE][+-]?\d+)?"
# At most five groups: more digits than that are a list of numbers of three digits.
_GROUPED_BY_COMMA = re.compile(rf"[+-]?\d{{1,3}}(?:,\d{{3}}){{1,5}}(?:\.\d*)?{_EXPONENT}")
_GROUPED_BY_POINT = re.compile(r"[+-]?\d{1,3}(?:\.\d{3}){1,5}")
_DECIMAL_COMMA = re.compile(rf"[+-]?(?:\d+|\d{{1,3}}(?:\.\d{{3}}){{1,5}})?,\d+{_EXPONENT}")
_GROUPED_BY_SPACE = re.compile(rf"[+-]?\d{{1,3}}(?:{_SPACE}\d{{3}}){{1,5}}(?![\d])")
_WITH_UNIT = re.compile(r"([+-]?[\d.,]*\d[\d.,]*?(?:[eE][+-]?\d+)?)\s*([^\W\d_][^,;]*|[%‰°][^,;]*)")


@dataclass(frozen=True)
class NumberFormat:
    """How the numbers of a column are written."""

    decimal: Decimal = "point"  # 1,234.5; "comma": 1.234,5
    unit: str = ""  # behind every number, such as "%"

    def parse(self, value: Any) -> float | None:
        """The number in a cell; None if there is none."""
        if not isinstance(value, str):
            try:
                return float(value)
            except (TypeError, ValueError, OverflowError):
                return None
        text = _normalized(value)
        if self.unit:
            if not text.endswith(self.unit):
                return None
            text = _normalized(text.removesuffix(self.unit))
        if self.decimal == "comma":
            if _DECIMAL_COMMA.fullmatch(text):
                text = text.replace(".", "").replace(",", ".")
            elif _GROUPED_BY_POINT.fullmatch(text):
                text = text.replace(".", "")
        elif _GROUPED_BY_COMMA.fullmatch(text):
            text = text.replace(",", "")
        return _plain_number(text)


PLAIN = NumberFormat()


def looks_numeric(value: Any) -> bool:
    """Whether a cell is one number in some format, without a unit."""
    return PLAIN.parse(value) is not None or NumberFormat("comma").parse(value) is not None


def number_format(
    cells: Iterable[Any],
    column: str,
    *,
    decimal: Decimal | None = None,
    usual: NumberFormat | None = None,
    hint: str = "",
) -> NumberFormat:
    """How a column writes its numbers, decided over all cells that are numbers in some format.

    Cells that fit both a decimal comma and a decimal point have the `usual` format, that of the training data. Without
    one, InputError with the `hint` is raised.
    """
    texts = [_normalized(cell) for cell in cells if isinstance(cell, str)]
    matches = [_WITH_UNIT.fullmatch(text) for text in texts if _plain_number(text) is None]
    units = [match[2] for match in matches if match]
    # A unit that at least half of the cells have, and none another.
    unit = units[0] if len(set(units)) == 1 and 2 * len(units) >= len(texts) else ""
    if unit:
        texts = [_normalized(text.removesuffix(unit)) for text in texts if text.endswith(unit)]
    if decimal is not None:
        return NumberFormat(decimal, unit)
    with_comma = [text for text in texts if _GROUPED_BY_COMMA.fullmatch(text) or _DECIMAL_COMMA.fullmatch(text)]
    without = [text for text in texts if "," not in text]
    by_point = [text for text in without if _plain_number(text) is not None or _GROUPED_BY_POINT.fullmatch(text)]
    if not with_comma:
        # 1.234.567 is no number with a decimal point, so that 1.234 beside it has a thousands separator too.
        groups = [text for text in by_point if _plain_number(text) is None]
        others = [
            text for text in by_point if not _GROUPED_BY_POINT.fullmatch(text) and not text.lstrip("+-").isdigit()
        ]
        return NumberFormat("comma" if groups and not others else "point", unit)
    comma = [text for text in with_comma if not _GROUPED_BY_COMMA.fullmatch(text)]
    point = [text for text in with_comma if not _DECIMAL_COMMA.fullmatch(text)]
    fractions = [text for text in by_point if "." in text]
    loose = [text for text in fractions if not _GROUPED_BY_POINT.fullmatch(text)]
    if comma and (point or fractions):
        other = (point or fractions)[0]
        raise InputError(f"{column}: {comma[0]!r} has a decimal comma, but {other!r} may have a decimal point{hint}")
    if comma:
        return NumberFormat("comma", unit)
    small = [text for text in without if text.lstrip("+-").isdigit() and len(text.lstrip("+-")) <= 3]
    if point or loose or (small and len(small) == len(by_point)):
        return NumberFormat("point", unit)
    if usual is not None:
        return NumberFormat(usual.decimal, unit)
    text = with_comma[0]
    readings = text.replace(",", "."), text.replace(",", "")
    raise InputError(f"{column}: {text!r} may mean {readings[0]} or {readings[1]}, and no other row settles it{hint}")


def _normalized(text: str) -> str:
    """The text with ASCII minus signs, without spaces around it and between groups of digits."""
    text = text.strip()
    if not text.isascii():
        text = text.translate(_MINUS)
    if grouped := _GROUPED_BY_SPACE.match(text):
        text = re.sub(_SPACE, "", grouped[0]) + text[grouped.end() :]
    return text


def _plain_number(text: str) -> float | None:
    if "_" in text:  # Python reads 1_2 as 12; in a table it is a name
        return None
    try:
        return float(text)
    except ValueError:
        return None


LARGEST = 1e30
"""The largest number that can be learned: squares of larger ones do not fit into fp32."""


def number(value: Any, where: str, column: str, written: NumberFormat = PLAIN, *, missing: bool = False) -> float:
    """The number of a cell; NaN for one that may be `missing`.

    Raises InputError for a cell without a finite number, or with one that is too large to learn.
    """
    if missing and is_missing(value):
        return math.nan
    parsed = written.parse(value)
    hint = "leave the cell empty if it was not measured" if missing else "delete the row if it was not measured"
    if parsed is None or not math.isfinite(parsed):
        unit = f" with {written.unit!r} like the others" if written.unit else ""
        raise InputError(f"{where}: {column} is {value!r}, not a number{unit}; {hint}")
    if abs(parsed) > LARGEST:
        raise InputError(f"{where}: {column} is {value!r}, which is too large; use a larger unit, or {hint}")
    return parsed


# Classes


def class_name(value: Any) -> str:
    """The class that a cell names, without spaces around it. 2.0, as columns with missing integers are saved, is 2."""
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", str("" if value is None else value).strip())


def parse_bool(example: Example, value: Any) -> bool:
    """A yes or no, however it is written; raises InputError for anything else."""
    text = str(value).strip().lower()
    require(text in (*_YES, *_NO), example, f"the label is {value!r}; it must be 0 or 1")
    return text in _YES


def require_several(classes: Collection[str], column: str) -> None:
    """Raise InputError for fewer than two classes."""
    if len(classes) < 2:
        only = ", ".join(map(repr, classes)) or "nothing"
        raise InputError(f"{column} is {only} in all training examples; give examples of another class too")


# Lists


def list_style(value: Any) -> str:
    """How a cell holds a list: "brackets" for a list or a text in brackets, "separators" for a text with commas,
    semicolons, or spaces between numbers; "" for a single value."""
    if not isinstance(value, str):
        return "brackets" if isinstance(value, list | tuple) else ""
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        return "brackets"
    if "," in text or ";" in text:
        return "separators"
    items = text.split()
    numbers = len(items) > 1 and all(is_missing(item) or _plain_number(item) is not None for item in items)
    return "separators" if numbers else ""


def list_items(example: Example, value: Any, name: str, *, letters: bool = False) -> list[Any]:
    """The items of a list, or of a text that holds one, for the nucleotides of an example.

    Items in brackets may be JSON, or as Python and numpy print them. Others are separated by `;`, else by `,`, else by
    spaces; with `letters` a text without separators has an item for each letter. One empty item too many, from a
    separator at the end, is dropped. Raises InputError for a text that is not a list.
    """
    if is_missing(value):
        return []
    if isinstance(value, list | tuple):
        items = list(value)
    elif letters and isinstance(value, str) and not list_style(value):
        items = list(value.strip())
    elif not (text := str(value).strip()).startswith("["):
        items = _split(text)
    else:
        try:
            items = list(json.loads(text))
        except ValueError:
            if not text.endswith("]") or "[" in text[1:]:
                raise InputError(f"{example.where}: {name}: {str(value)[:30]}… is not a list") from None
            items = [item.strip("'\"") for item in _split(text[1:-1])]
    return items[:-1] if len(items) == len(example.sequence) + 1 and items[-1] == "" else items


def _split(text: str) -> list[str]:
    separator = next((sign for sign in ";," if sign in text), None)
    return [item.strip() for item in text.split(separator)]

"""Cells as spreadsheets, databases and other programs write them: missing values, numbers, lists.

A number may have a decimal comma, thousands separators (comma, point, space, apostrophe), a Unicode minus, a percent
sign or a unit. How a column writes its numbers is decided over all of its cells, because one cell does not say:
`1,137` is 1.137 or 1137.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rinalmo.engine.inputs import NAME, SEQUENCE, plain_rows
from rinalmo.errors import InputError, SequenceError
from rinalmo.io.fasta import make_record
from rinalmo.io.tables import is_missing, read_rows, require_column
from rinalmo.tasks.base import Columns, Example

Decimal = Literal["point", "comma"]

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
    """How the numbers of a column are written.

    Attributes:
        decimal: "point" (1,234.5) or "comma" (1.234,5).
        unit: What stands behind every number, such as "%".
    """

    decimal: Decimal = "point"
    unit: str = ""

    def parse(self, value: Any) -> float | None:
        """The number that a cell holds; None if it holds none."""
        if not isinstance(value, str):
            try:
                return float(value)
            except (TypeError, ValueError, OverflowError):
                return None
        text = _tidied(value)
        if self.unit:
            if not text.endswith(self.unit):
                return None
            text = _tidied(text.removesuffix(self.unit))
        if self.decimal == "comma":
            if _DECIMAL_COMMA.fullmatch(text):
                text = text.replace(".", "").replace(",", ".")
            elif _GROUPED_BY_POINT.fullmatch(text):
                text = text.replace(".", "")
        elif _GROUPED_BY_COMMA.fullmatch(text):
            text = text.replace(",", "")
        return _plain(text)

    def described(self) -> str:
        """What is unusual about the format, for a message."""
        parts = [f"in {self.unit}"] if self.unit else []
        return ", ".join([*parts, *(["with decimal commas"] if self.decimal == "comma" else [])])


PLAIN = NumberFormat()


def looks_numeric(value: Any) -> bool:
    """Whether a cell is one number in some format, without a unit."""
    return any(NumberFormat(decimal).parse(value) is not None for decimal in ("point", "comma"))  # type: ignore[arg-type]


def number_format(
    cells: Iterable[Any],
    column: str,
    *,
    decimal: Decimal | None = None,
    usual: NumberFormat | None = None,
    hint: str = "",
) -> NumberFormat:
    """How a column writes its numbers, decided over all of its cells.

    Args:
        cells: The cells that are not missing. Those that are no numbers in any format are passed over.
        column: Name of the column, for messages.
        decimal: The decimal sign, where the user names it.
        usual: The format for cells that fit two of them, as known from the training data; None: unknown.
        hint: What to do about a column that fits two formats.

    Raises:
        InputError: The cells are plausible with a decimal comma and with a decimal point.
    """
    texts = [_tidied(cell) for cell in cells if isinstance(cell, str)]
    unit = _common_unit(texts)
    if unit:
        texts = [_tidied(text.removesuffix(unit)) for text in texts if text.endswith(unit)]
    if decimal is not None:
        return NumberFormat(decimal, unit)
    with_comma = [text for text in texts if _GROUPED_BY_COMMA.fullmatch(text) or _DECIMAL_COMMA.fullmatch(text)]
    without = [text for text in texts if "," not in text]
    by_point = [text for text in without if _plain(text) is not None or _GROUPED_BY_POINT.fullmatch(text)]
    if not with_comma:
        # 1.234.567 is no number with a decimal point, so that 1.234 beside it has a thousands separator too.
        groups = any(_plain(text) is None for text in by_point)
        grouped = groups and all(_GROUPED_BY_POINT.fullmatch(text) or text.lstrip("+-").isdigit() for text in by_point)
        return NumberFormat("comma" if grouped else "point", unit)
    comma = [text for text in with_comma if not _GROUPED_BY_COMMA.fullmatch(text)]
    point = [text for text in with_comma if not _DECIMAL_COMMA.fullmatch(text)]
    fractions = [text for text in by_point if "." in text]
    loose = [text for text in fractions if not _GROUPED_BY_POINT.fullmatch(text)]
    if comma and (point or fractions):
        other = (point or fractions)[0]
        raise InputError(f"{column}: {comma[0]!r} has a decimal comma and {other!r} may have a decimal point{hint}")
    if comma:
        return NumberFormat("comma", unit)
    small = [text for text in without if text.lstrip("+-").isdigit() and len(text.lstrip("+-")) <= 3]
    if point or loose or (small and len(small) == len(by_point)):
        return NumberFormat("point", unit)
    if usual is not None:
        return NumberFormat(usual.decimal, unit)
    text = with_comma[0]
    readings = text.replace(",", "."), text.replace(",", "")
    raise InputError(f"{column}: {text!r} may be {readings[0]} or {readings[1]}, and no other row says which{hint}")


def _common_unit(texts: Sequence[str]) -> str:
    """The unit that most of the cells have behind a number; none where cells have different ones."""
    matches = [_WITH_UNIT.fullmatch(text) for text in texts if _plain(text) is None]
    units = Counter(match[2] for match in matches if match)
    return next(iter(units)) if len(units) == 1 and 2 * units.total() >= len(texts) else ""


def _tidied(text: str) -> str:
    """The text with ASCII minus signs, without spaces around it and between groups of digits."""
    text = text.strip()
    if not text.isascii():
        text = text.translate(_MINUS)
    if grouped := _GROUPED_BY_SPACE.match(text):
        text = re.sub(_SPACE, "", grouped[0]) + text[grouped.end() :]
    return text


def _plain(text: str) -> float | None:
    if "_" in text:  # Python reads 1_2 as 12; in a table it is a name
        return None
    try:
        return float(text)
    except ValueError:
        return None


# Lists


def is_written_list(value: Any) -> bool:
    """Whether a cell is a list, or a text in brackets."""
    if isinstance(value, str):
        return value.strip().startswith("[") and value.strip().endswith("]")
    return isinstance(value, list | tuple)


def split_list(value: Any) -> list[Any]:
    """The items of a list, or of a text that stands for one.

    Items in brackets may be JSON, or as Python and numpy print them. Others are separated by `;`, else by `,`, else by
    spaces.

    Raises:
        ValueError: It is no list of single values.
    """
    if isinstance(value, list | tuple):
        return list(value)
    text = str(value).strip()
    if text.startswith("["):
        try:
            return list(json.loads(text))
        except ValueError:
            if not text.endswith("]") or "[" in text[1:]:
                raise ValueError("is no list") from None
        text = text[1:-1]
        return [item.strip("'\"") for item in _split(text)] if text.strip() else []
    return _split(text)


def fits_length(items: Sequence[Any], length: int) -> list[Any]:
    """The items without the empty one that a separator at the end makes."""
    return list(items[:-1]) if len(items) == length + 1 and items[-1] == "" else list(items)


def has_separators(value: Any) -> bool:
    """Whether a text has separators of a list: commas, semicolons, or spaces between numbers."""
    if not isinstance(value, str):
        return False
    if re.search("[,;]", value):
        return True
    items = value.split()
    return len(items) > 1 and all(is_missing(item) or _plain(item) is not None for item in items)


def _split(text: str) -> list[str]:
    separator = next((sign for sign in ";," if sign in text), None)
    return [item.strip() for item in text.split(separator)]


LARGEST = 1e30
"""The largest number to learn: squares of larger ones do not fit into fp32."""

GROUP = ("family", "group", "type", "set")


def read_table(path: Path, columns: Columns, target: Sequence[str]) -> list[Example]:
    """The examples of a table; the target of each is its cells of the target columns, by name.

    `target` are the usual names of the target column, for a table whose `columns` do not name it.
    """
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path}: holds no rows")
    header = list(first[1])
    sequence = _column(path, header, columns.sequence, SEQUENCE, "sequence")
    wanted = list(columns.target) or [_column(path, header, None, target, "target")]
    for column in wanted:
        _column(path, header, column, (), "target")
    name = _optional(path, header, columns.name, NAME)
    group = _optional(path, header, columns.group, tuple(g for g in GROUP if g not in wanted))

    def example(number: int, where: str, row: dict[str, Any]) -> Example:
        cells = {column: row[column] for column in wanted}
        label = str(row[name]) if name and not is_missing(row[name]) else str(number)
        text = _sequence(row[sequence], label, where)
        return Example(label, text, cells, str(row[group]) if group and not is_missing(row[group]) else "", where)

    examples = [example(1, *first)]
    examples.extend(example(number, *row) for number, row in enumerate(rows, start=2))
    return examples


def read_single(path: Path, columns: Columns, target: Sequence[str], task: str) -> list[Example]:
    """As `read_table`, for a task with one target, which then is the bare cell."""
    if len(columns.target) > 1:
        raise InputError(
            f"{path}: {task} predicts one column, not {len(columns.target)}; the task `table` takes several"
        )
    return [replace(e, target=next(iter(e.target.values()))) for e in read_table(path, columns, target)]


def number(value: Any, where: str, column: str, written: NumberFormat = PLAIN, *, missing: bool = False) -> float:
    """The number of a cell.

    Args:
        value: The cell.
        where: File and line, for messages.
        column: Name of the column, for messages.
        written: How the column writes its numbers.
        missing: Whether a cell may hold none; such a cell gives NaN.

    Raises:
        InputError: The cell holds no finite number, or one that is too large to learn.
    """
    if missing and is_missing(value):
        return math.nan
    found = written.parse(value)
    hint = "leave the cell empty if it was not measured" if missing else "drop the row if it was not measured"
    if found is None or not math.isfinite(found):
        unit = f" with {written.unit!r}, as others have it" if written.unit else ""
        raise InputError(f"{where}: {column} is {value!r}, not a number{unit}; {hint}")
    if abs(found) > LARGEST:
        raise InputError(f"{where}: {column} is {value!r}, too large to learn; give it in a larger unit, or {hint}")
    return found


def _sequence(value: Any, name: str, where: str) -> str:
    try:
        return make_record("" if is_missing(value) else str(value), name or "?").sequence
    except SequenceError as error:
        raise InputError(f"{where}: {error}") from None


def _column(path: Path, header: list[str], given: str | None, usual: Sequence[str], what: str) -> str:
    if given is not None:
        require_column(path, header, given)
        return given
    lower = {column.lower(): column for column in reversed(header)}
    for name in usual:
        if name in lower:
            return lower[name]
    there = ", ".join(map(repr, header))
    raise InputError(f"{path}: which column holds the {what}? There are {there}; say --set data.columns.{what}=NAME")


def _optional(path: Path, header: list[str], given: str | None, usual: Sequence[str]) -> str | None:
    lower = {column.lower(): column for column in reversed(header)}
    if given is not None:
        return _column(path, header, given, (), "")
    return next((lower[name] for name in usual if name in lower), None)


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
        yield json.dumps(cells, default=_as_json).encode() + b"\n"


def _label_names(rows: Iterable[Mapping[str, Any]]) -> dict[str, Sequence[str]]:
    """Names of class labels by column, of a `datasets.Dataset` that has such columns."""
    features = getattr(rows, "features", None) or {}
    return {column: names for column, feature in features.items() if (names := getattr(feature, "names", None))}


def _named(value: Any, names: Sequence[str] | None) -> Any:
    """The name of a class label; -1 stands for none."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if value >= 0 else None


def _as_json(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as plain ones; other things as text: no task learns from them."""
    if is_missing(value):
        return None
    return value.tolist() if hasattr(value, "tolist") else str(value)

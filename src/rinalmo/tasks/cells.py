"""Cells as spreadsheets, databases and other programs write them: missing values, numbers, lists.

A number may have a decimal comma, thousands separators (comma, point, space, apostrophe), a Unicode minus, a percent
sign or a unit. How a column writes its numbers is decided over all of its cells, because one cell does not say:
`1,137` is 1.137 or 1137.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rinalmo.delimited import is_missing
from rinalmo.errors import InputError

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

"""What is known of sequences beside their letters: from their header lines, or from a table.

length, id, description        of the record itself
type, family, taxon            as the databases write them (`rinalmo.rna.headers`)
KEY                            of `KEY=value` or `KEY:value` in the header
TABLE:COLUMN                   a column of a CSV or TSV file, whose column `id` (or its first) holds the ids
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rinalmo.delimited import column_index, opened_table
from rinalmo.errors import InputError
from rinalmo.rna.headers import read_header

OWN = ("length", "id", "description")
_NAMED = ("type", "family", "taxon")
_KEY = re.compile(r"""(?:^|[\s;|])([A-Za-z_][\w.-]*)[=:]("[^"]*"|[^\s;|]+)""")
_TABLES = (".csv", ".tsv", ".tab", ".txt")


def values_of(field: str, ids: Sequence[str], descriptions: Sequence[str], lengths: Sequence[int]) -> list[str]:
    """The field's value for each sequence, "" where it is not known; raises InputError if none has it."""
    if field == "length":
        return [str(length) for length in lengths]
    if field in OWN:
        return list(ids if field == "id" else descriptions)
    if (table := table_of(field)) is not None:
        known = read_column(*table)
        values = [known.get(id, "") for id in ids]
        if not any(values):
            raise InputError(f"{table[0]}: names none of the {len(ids):,} sequences, such as {ids[0]!r}")
        return values
    fields = _fields(ids, descriptions)
    values = [of.get(field, "") for of in fields]
    if not any(values):
        there = sorted({name for of in fields for name in of} - {*OWN})
        raise InputError(f"no header says {field!r}; there are {', '.join([*OWN, *there[:20]])}, and TABLE:COLUMN")
    return values


def common_fields(ids: Sequence[str], descriptions: Sequence[str]) -> dict[str, list[str]]:
    """The fields of headers that at least half of the sequences have, by name, "" where one has it not."""
    fields = _fields(ids, descriptions)
    counts = Counter(name for of in fields for name in of)
    names = sorted(name for name, count in counts.items() if 2 * count >= len(ids) and name not in OWN)
    return {name: [of.get(name, "") for of in fields] for name in names}


def table_of(field: str) -> tuple[Path, str] | None:
    """File and column, if the field is `TABLE:COLUMN`."""
    file, colon, column = field.rpartition(":")
    name = file.removesuffix(".gz").removesuffix(".zst")
    return (Path(file), column) if colon and name.endswith(_TABLES) else None


def read_column(path: Path, column: str) -> dict[str, str]:
    """A column of a table by id. Raises InputError if it is missing."""
    with opened_table(path) as (header, rows):
        place = column_index(path, header, column)
        key = header.index("id") if "id" in header else 0
        return {row[key]: row[place] for _, row in rows}


def _fields(ids: Sequence[str], descriptions: Sequence[str]) -> list[dict[str, str]]:
    return [_of(id, text) for id, text in zip(ids, descriptions, strict=True)]


def _of(id: str, description: str) -> dict[str, str]:
    header = read_header(id, description)
    named = {name: value for name in _NAMED if (value := getattr(header, name))}
    written = {key: value.strip('"') for key, value in _KEY.findall(description)}
    return {**named, **written}

"""Tables of structures: CSV, TSV and Parquet with the columns sequence, structure (dot-bracket) and, if any, id.

Other columns are left to whoever asks for the rows: `read_rows` gives each structure with its whole row.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Iterator
from itertools import islice
from os import PathLike
from typing import IO

from rinalmo.delimited import fields
from rinalmo.errors import InputError, SequenceError
from rinalmo.rna.reading import record_name, source_name
from rinalmo.rna.structure import Structure

Row = dict[str, str]

_BATCH = 4096


def delimited_rows(lines: Iterable[str], file: str, delimiter: str) -> Iterator[tuple[int, Row]]:
    """Yield the number of each row's last line, and the row."""
    reader = fields(lines, delimiter)
    try:
        header = next(reader, None)
        if not header:
            raise InputError(f"{file} is empty; a table starts with the names of its columns")
        for row in reader:
            if row and len(row) != len(header):
                problem = f"has {len(row)} fields, but there are {len(header)} columns; check commas and quotes"
                raise InputError(f"{file}, line {reader.line_num}: {problem}")
            if row:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: cannot be read as a table ({error})") from None


def parquet_rows(path: str | PathLike[str]) -> Iterator[tuple[None, Row]]:
    """Yield the rows, which have no lines; missing values are empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    yield None, {name: "" if value is None else str(value) for name, value in row.items()}
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{source_name(path)} cannot be read as Parquet ({reason}); copy it again") from None


def structures(rows: Iterable[tuple[int | None, Row]], file: str, column: str) -> Iterator[tuple[Structure, Row]]:
    """Yield each row's structure and the row; `column` holds the dot-bracket text."""
    for number, (line, row) in enumerate(rows, start=1):
        if number == 1:
            for name in ("sequence", column):
                _check_column(row, name, file)
        name = row.get("id", "").strip()
        where = record_name(name, number) if line else f"{record_name(name) or ''} (row {number})".strip()
        try:
            yield Structure.from_dot_bracket(name, row["sequence"].strip(), row[column].strip()), row
        except SequenceError as error:
            raise error.found_in(file, line, where) from None


def _check_column(row: Row, name: str, file: str) -> None:
    if name not in row:
        near = difflib.get_close_matches(name, row, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(row)}"
        raise InputError(f"{file} has no column {name!r}; {hint}")


def write_delimited(found: Iterable[Structure], delimiter: str) -> Iterator[str]:
    """Yield the lines of a CSV or TSV table."""
    line = _Line()
    writer = csv.writer(line, delimiter=delimiter, lineterminator="\n")
    writer.writerow(("id", "sequence", "structure"))
    yield line.text
    for structure in found:
        writer.writerow((structure.name, structure.sequence, structure.dot_bracket))
        yield line.text


class _Line:
    """Where csv writes to: the last line stays."""

    text = ""

    def write(self, text: str) -> None:
        self.text = text


def write_parquet(found: Iterable[Structure], file: IO[bytes]) -> None:
    """Write a Parquet table to an open file, some thousand rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in ("id", "sequence", "structure")])
    found = iter(found)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while rows := [(each.name, each.sequence, each.dot_bracket) for each in islice(found, _BATCH)]:
            columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))

"""Sequences in: FASTA files, tables, text, data frames and records.

A FASTA file gives a stream of `Record`s with checked letters, from a file of any compression or standard input. Either
every record of the input is returned, in order, or an `InputError` says which one cannot be used and why; a truncated
file is an error, not a shorter file. `docs/formats.md` lists the outcomes.

The FASTA parser is our own because needletail fails on CR line ends, byte order marks and leading blank lines, replaces
Latin-1 letters in names by U+FFFD, accepts an empty record, and opens files by path only. With the same check of
letters it is 3 to 20 % faster. The tests compare the two. Bytes are processed in blocks, so that memory is bounded by
the longest record.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from numbers import Integral
from operator import methodcaller
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.files import (
    BYTE_ORDER_MARK,
    decode,
    decompressed,
    file_sha256,
    is_stream,
    one_line,
    open_binary,
    read_chunks,
    source_name,
    uncompressed_name,
)
from rinalmo.io.tables import is_missing, read_rows, table_format
from rinalmo.rna.alphabet import Alphabet
from rinalmo.rna.constraints import is_constraint_line

IUPAC_LETTERS = "ACGUTNRYSWKMBDHVXI"
"""Nucleotides, the IUPAC codes of sets of them, X (unknown) and I (inosine)."""

_MASK = b"<mask>"

_WHITESPACE = b" \t\n\r\v\f"
_PROTEIN_LETTERS = b"EFJLOPQZ*"  # * ends a translation


@dataclass(frozen=True, slots=True)
class Record:
    """One sequence of a FASTA file.

    Attributes:
        id: The first word of the header.
        description: The rest of the header.
        sequence: Upper-case RNA (T is written as U) without white space.
        number: The position in the file, from 1; unlike the id it is always unique.
        constraint: A structure constraint for folding (`rinalmo.rna.constraints`).
        reactivities: SHAPE or DMS reactivities for folding, one for each nucleotide, None where there is none.
    """

    id: str
    description: str
    sequence: str
    number: int = 1
    constraint: str | None = None
    reactivities: tuple[float | None, ...] | None = None


def read_fasta(
    source: str | PathLike[str],
    *,
    letters: str = IUPAC_LETTERS,
    allow_mask: bool = False,
    constraints: bool = False,
) -> Iterator[Record]:
    """Yield the records of a FASTA file in order.

    Args:
        source: A path, or "-" for standard input. gzip, bzip2, xz and zstd are recognized by content.
        letters: The accepted letters, in either case; T wherever U is.
        allow_mask: Accept `<mask>`, in lower case and on one line, within a sequence; it is returned as it is.
        constraints: Lines of a structure constraint follow each sequence, as for `RNAfold -C`.

    Yields:
        The records.

    Raises:
        SequenceError: A record has no name, no sequence or an invalid character.
        InputError: The file is missing, unreadable, empty, truncated, damaged or not FASTA. This can happen after some
            records, because the end of a file is seen only when it is reached.

    Examples:
        >>> import rinalmo, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "hairpin.fa"
        >>> _ = path.write_text(">hairpin of five bases\\nGGGAA\\nATCCC\\n")
        >>> [(record.id, record.sequence) for record in rinalmo.read_fasta(path)]
        [('hairpin', 'GGGAAAUCCC')]
    """
    _check_not_mistyped(source)
    records = parse_fasta if not constraints else _parse_constrained
    return records(read_chunks(source), source_name(source), letters=letters, allow_mask=allow_mask)


def parse_fasta(
    chunks: Iterable[bytes], name: str, *, letters: str = IUPAC_LETTERS, allow_mask: bool = False
) -> Iterator[Record]:
    """As `read_fasta`, from pieces of bytes; `name` is the name of the source in messages."""
    table = _letter_table(letters)
    for number, entry in enumerate(_entries(iter(chunks), name), start=1):
        yield _record(number, entry, table, allow_mask, name)


def _parse_constrained(chunks: Iterable[bytes], name: str, *, letters: str, allow_mask: bool) -> Iterator[Record]:
    """As `parse_fasta`, with the lines of a constraint after the sequence; records without them have none."""
    table = _letter_table(letters)
    for number, entry in enumerate(_rejoined(_entries(iter(chunks), name)), start=1):
        lines = entry.split(b"\n")
        is_constraint = [n > 0 and is_constraint_line(decode(line).strip()) for n, line in enumerate(lines)]
        first = is_constraint.index(True) if True in is_constraint else len(lines)
        record = _record(number, b"\n".join(lines[:first]), table, allow_mask, name)
        text = "".join(decode(line).strip() for line in lines[first:])
        yield replace(record, constraint=text or None)


def _rejoined(entries: Iterator[bytes]) -> Iterator[bytes]:
    """The entries, joined where the '>' was of a constraint: what follows it is no sequence."""
    whole = next(entries)
    for entry in entries:
        lines = [line for line in map(str.strip, decode(b">" + entry).split("\n")) if line]
        if all(map(is_constraint_line, lines)):
            whole += b"\n>" + entry
        else:
            yield whole
            whole = entry
    yield whole


def _entries(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Split the text at each '>' that starts a line: an entry is a header line and the lines up to the next header.

    A byte order mark and blank lines before the first header are skipped. CR, LF and CRLF all end a line. CRLF may
    become two line ends, since blank lines mean nothing.
    """
    start = b""
    for chunk in chunks:
        start = (start + chunk).removeprefix(BYTE_ORDER_MARK).lstrip(_WHITESPACE)
        if len(start) >= len(BYTE_ORDER_MARK):
            break
    if not start:
        raise InputError(f"{name} is empty; it must contain at least one FASTA record")
    if start.startswith(b"@"):
        raise InputError(f"{name} looks like FASTQ; convert it to FASTA, for example with: seqkit fq2fa")
    if not start.startswith(b">"):
        raise InputError(f"{name} starts with {decode(start[:20])!r}, but FASTA starts with a header, '>name'")
    pieces: list[bytes] = []
    line_end = b""  # held back, as a '>' may follow it in the next chunk
    for chunk in chain((start[1:],), chunks):
        text = line_end + chunk.replace(b"\r", b"\n")
        line_end = b"\n" if text.endswith(b"\n") else b""
        first, *others = text.removesuffix(b"\n").split(b"\n>")
        pieces.append(first)
        for other in others:
            yield b"".join(pieces)
            pieces = [other]
    yield b"".join(pieces)


@cache
def _letter_table(letters: str) -> bytes:
    """Map each byte to its RNA letter, or to 0 if it is not one: one pass over a sequence folds and checks it."""
    to_rna = bytes(range(256)).upper().replace(b"T", b"U")
    allowed = letters.encode().translate(to_rna)
    return bytes(letter if letter in allowed else 0 for letter in to_rna)


def make_record(sequence: str, name: str, *, number: int = 1, allow_mask: bool = False) -> Record:
    """A record from text instead of a file: the same letters, the same errors."""
    entry = f"{name}\n{sequence}".encode("utf-8", "surrogatepass")
    return _record(number, entry, _letter_table(IUPAC_LETTERS), allow_mask, None)


def _record(number: int, entry: bytes, table: bytes, allow_mask: bool, file: str | None) -> Record:
    header, _, body = entry.partition(b"\n")
    words = header.split(None, 1)
    if not words or b"\0" in header:
        problem = "has a NUL byte; this is not a text file" if words else "has no name; write '>name'"
        raise SequenceError(f"the header {problem}", file=file, record=str(number))
    id_ = decode(words[0])
    if allow_mask and _MASK in body:
        # A mask wrapped over two lines stays in two pieces: its '>' could as well start a header.
        sequence = _MASK.join(map(methodcaller("translate", table, _WHITESPACE), body.split(_MASK)))
    else:
        sequence = body.translate(table, _WHITESPACE)
    if not sequence:
        in_file = f"no sequence (it is number {number} in the file); remove it, or copy the file again if it is cut off"
        message = in_file if file else "is empty; leave it out"
        if is_constraint_line(decode(b">" + header.strip())):
            message = "no sequence; if this line is the structure constraint of the record before it, use --constraint"
        raise SequenceError(message, file=file, record=one_line(id_[:60]))
    if b"\0" in sequence:
        written = (body.replace(_MASK, b"N") if allow_mask else body).translate(None, _WHITESPACE)
        # A mask counts as one position.
        start = len(sequence[: sequence.index(0)].replace(_MASK, b"N"))
        problem = _letter_problem(written, start, number if file else None, table, allow_mask)
        raise SequenceError(problem, file=file, record=one_line(id_[:60]), position=start + 1)
    description = decode(words[1].rstrip()) if len(words) > 1 else ""
    return Record(id_, description, sequence.decode("ascii"), number)


def _letter_problem(written: bytes, start: int, number: int | None, table: bytes, allow_mask: bool) -> str:
    character = written[start : start + 4].decode("utf-8", "surrogateescape")[0]
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        character = written[start : start + 1].decode("latin-1")
    place = f" (record number {number} of the file)" if number else ""
    problem = f"{character!r} is not a nucleotide code{place}; "
    if is_constraint_line(decode(written[start:])):
        return problem + "remove the line of the structure, or take it as a constraint with `rinalmo fold --constraint`"
    if character in "-.~":
        return problem + "remove alignment gaps, for example with: seqkit seq -g"
    if character == "\0":
        return problem + "the file is damaged or not text"
    if character in "<>" and allow_mask:
        return problem + "write a mask as <mask> on one line, and use '>' only at the start of a header line"
    if character in "<>":
        return problem + "only fill-mask accepts masks, and '>' only starts a header line"
    if not character.isascii():
        return problem + "write the sequence in plain ASCII letters"
    if set(written.upper()) & set(_PROTEIN_LETTERS):
        return problem + "this looks like a protein, but rinalmo reads RNA or DNA"
    return problem + f"allowed are T and {bytes(sorted(set(table) - {0})).decode()}"


_FILE_NAME = re.compile(
    r"[^\n]{1,200}\.(fa|fna|ffn|frn|fasta|csv|tsv|tab|txt|jsonl|ndjson|parquet)(\.(gz|bz2|xz|zst))?", re.I
)

Sequences = str | Path | Iterable[str | Record | Mapping[str, Any]]
"""One sequence, the `Path` of a FASTA file or table, sequences, records or rows, or a data frame or column of them."""

# Usual names of columns, in any case.
SEQUENCE = ("sequence", "seq", "rna", "utr", "rna_sequence")
NAME = ("id", "name", "identifier", "transcript", "seq_id")


class InputFile:
    """An input of a job: whether it can be read again, and whether it is still the same."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rereadable = path is None or (str(path) != "-" and path.is_file())
        self._version = self._current_version()

    def _current_version(self) -> tuple[int, int] | None:
        if self.path is None or not self.rereadable:
            return None
        state = self.path.stat()
        return state.st_size, state.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raise InputError if the file has been written to since it was opened."""
        if self._current_version() != self._version:
            raise InputError(f"{self.path}: changed while it was read; run the command again")

    def fingerprint(self) -> str:
        """The sha256 of the file."""
        assert self.path is not None
        self.check_unchanged()
        return file_sha256(self.path)


class SequenceFile(InputFile):
    """The records of a FASTA file or a table, opened once and read once; "-" is FASTA on standard input.

    A sequence in place of a file's name is the only record; see `is_sequence`.

    Raises:
        InputError: The file cannot be opened, or its first record cannot be used.
    """

    def __init__(self, source: str | Path, *, constraints: bool = False) -> None:
        """With `constraints` FASTA has a constraint after each sequence, and a table the column `constraint`."""
        self._text = str(source) if is_sequence(source) else None
        if self._text is None:
            _check_not_mistyped(source)
        super().__init__(Path(source) if self._text is None else None)
        self.is_table = self._text is None and is_sequence_table(source)
        self._records = (
            read_sequences(source, constraints=constraints) if self._text is None else as_records(self._text)
        )
        if str(source) != "-" and not is_stream(Path(source)):
            self._records = require_nonempty(self._records)

    def __iter__(self) -> Iterator[Record]:
        return self._records

    def fingerprint(self) -> str:
        return super().fingerprint() if self._text is None else hashlib.sha256(self._text.encode()).hexdigest()


def is_sequence(source: str | Path) -> bool:
    """Whether an argument is an RNA itself: it holds a mask, or nothing but nucleotides, and names no file.

    IUPAC letters count where at least half of the letters are nucleotides, and all are capital.
    """
    text = str(source).removesuffix("\n")
    letters, nucleotides = set(text.upper()), sum(map(text.upper().count, "ACGUT"))
    iupac = text.isupper() and letters <= set(IUPAC_LETTERS) and 2 * nucleotides >= len(text)
    if isinstance(source, Path) or not text or not (letters <= set("ACGUTN") or iupac or "<mask>" in text.lower()):
        return False
    try:
        return not Path(text).exists()
    except OSError:  # longer than any file name
        return True


def _check_not_mistyped(source: str | PathLike[str]) -> None:
    """Raise InputError for an argument that names no file and is no sequence, though most of its letters are ACGU."""
    text = str(source).removesuffix("\n")
    count, letters = sum(map(text.upper().count, "ACGUT")), sum(map(str.isalpha, text))
    if isinstance(source, Path) or re.search(r"[/\\]|\.\w+$", text) or count < 3 or 3 * count < 2 * letters:
        return
    allowed = IUPAC_LETTERS if text.isupper() else "ACGUTN"
    position = next((n for n, letter in enumerate(text, 1) if letter.upper() not in allowed), None)
    if position is None:
        return
    try:
        if Path(text).exists():
            return
    except OSError:  # longer than any file name
        pass
    short = one_line(text if len(text) <= 40 else text[:39] + "…")
    problem = f"{text[position - 1]!r} at position {position} is no nucleotide"
    raise InputError(f"{short} is neither a file nor a sequence: {problem}")


def count_records(source: str | Path, seconds: float = 1.0) -> tuple[int, bool] | None:
    """The number of records of a file, and whether it is exact; None for what can be read only once.

    A file that takes longer to count is estimated from the bytes read so far.
    """
    if is_sequence(source):
        return 1, True
    path = Path(source)
    if str(source) == "-" or not path.is_file():
        return None
    if table_format(path) == "parquet":
        from pyarrow import parquet

        return int(parquet.read_metadata(path).num_rows), True
    is_table = is_sequence_table(path)
    header, count, last = (1 if table_format(path) in ("csv", "tsv") else 0), 0, b"\n"
    start = time.monotonic()
    with open_binary(path) as file:
        for chunk in decompressed(file, source_name(path)):
            text = (last + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            count += text.count(b"\n") - text.startswith(b"\n") if is_table else text.count(b"\n>")
            last = text[-1:]
            if count > 100 and time.monotonic() - start > seconds and (position := file.tell()) < path.stat().st_size:
                return round(count * path.stat().st_size / position), False
    return count + (is_table and last != b"\n") - (header if is_table else 0), True


def as_records(sequences: Sequences, *, allow_mask: bool = False) -> Iterator[Record]:
    """Records from a file, one sequence, or an iterable of sequences, records or rows.

    A `Path` is a FASTA file or a table; a `str` is a sequence. A row is a mapping with a column of one of the usual
    names, such as those of a `datasets.Dataset`, a pandas or polars DataFrame or a pyarrow Table. Sequences without
    names are numbered from 1.
    """
    if isinstance(sequences, Path):
        yield from read_sequences(sequences, allow_mask=allow_mask)
        return
    sequences = sequences if isinstance(sequences, str) else plain_rows(sequences)
    if isinstance(sequences, Mapping):
        raise InputError(
            f"sequences is a mapping of {', '.join(map(str, list(sequences)[:3]))}; give one of its values "
            "(such as the train split of a DatasetDict), or a list of sequences, rows or `rinalmo.io.sequences.Record`s"
        )
    if not isinstance(sequences, Iterable):
        raise InputError(f"sequences is a {type(sequences).__name__}; give a sequence, a list of sequences or a Path")
    items = (sequences,) if isinstance(sequences, str) else sequences
    for number, item in enumerate(items, start=1):
        item = plain_item(item)
        if isinstance(item, Mapping):
            yield _record_of_row(item, number, allow_mask)
        elif isinstance(item, Record):
            yield item
        elif isinstance(item, str):
            yield _record_of_text(item, number, allow_mask)
        elif is_missing(item):
            raise InputError(f"sequence {number} is {item!r}, a missing value; leave it out")
        else:
            raise InputError(f"sequence {number} is a {type(item).__name__}; expected text, a FASTA record or a row")


def plain_rows(data: Any) -> Any:
    """The rows of a table in memory as mappings, and the values of one of its columns as Python's own.

    Args:
        data: A pandas or polars DataFrame or Series, a pyarrow Table, RecordBatch, reader or array, a structured NumPy
            array, or a mapping of columns to lists or arrays; anything else is returned unchanged. A named index of a
            pandas DataFrame is a column. A pandas Series with a label such as `sequence` is a row.

    Raises:
        InputError: Two columns have the same name, or their lengths differ.
    """
    frame: Any = data
    match type(data).__module__.partition(".")[0]:
        case "pandas" if hasattr(frame, "columns"):
            if any(name is not None and name not in frame.columns for name in frame.index.names):
                frame = frame.reset_index()
            names = [str(name) for name in frame.columns]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise InputError(f"the DataFrame has two columns named {twice!r}; rename one")
            return (dict(zip(names, row, strict=True)) for row in frame.itertuples(index=False, name=None))
        case "pandas" if hasattr(frame, "items") and not set(SEQUENCE).isdisjoint(
            map(str.lower, map(str, frame.index))
        ):
            return plain_item(frame)
        case "polars" if hasattr(frame, "collect_schema") or hasattr(frame, "iter_rows"):
            frame = frame if hasattr(frame, "iter_rows") else frame.collect()
            return frame.iter_rows(named=True)
        case "pyarrow" if hasattr(frame, "to_batches"):  # without a copy of all rows
            return (row for batch in frame.to_batches(max_chunksize=4096) for row in batch.to_pylist())
        case "pyarrow" if hasattr(frame, "read_next_batch"):
            return (row for batch in frame for row in batch.to_pylist())
        case "pyarrow" if hasattr(frame, "to_pylist"):
            return frame.to_pylist()
        case "numpy" if getattr(frame.dtype, "names", None):
            return (dict(zip(frame.dtype.names, row, strict=True)) for row in frame.tolist())
        case _ if isinstance(data, bytes) or (isinstance(data, np.ndarray) and not data.ndim):
            return plain_item(data)
        case _ if isinstance(data, Mapping) and data and all(map(_is_column, data.values())):
            lengths = {str(name): len(column) for name, column in data.items()}
            if len(set(lengths.values())) > 1:
                counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
                raise InputError(f"the columns have different lengths: {counts}")
            return (dict(zip(lengths, row, strict=True)) for row in zip(*map(plain_rows, data.values()), strict=True))
        case _:
            return data


def plain_item(item: Any) -> Any:
    """One of several sequences, variants or cells as Python's own: bytes as text, a row of a pandas DataFrame as a
    mapping, a scalar of pyarrow or NumPy as its value."""
    match type(item).__module__.partition(".")[0]:
        case "pandas" if hasattr(item, "items") and not hasattr(item, "columns"):
            return dict(item.items())
        case "pyarrow" if hasattr(item, "as_py"):
            item = item.as_py()
        case "numpy" if isinstance(item, np.ndarray) and not item.ndim:
            item = item.item()
    return decode(item) if isinstance(item, bytes) else item


def _is_column(values: Any) -> bool:
    package, _, _ = type(values).__module__.partition(".")
    return isinstance(values, list | tuple) or (
        package in ("numpy", "pandas", "polars", "pyarrow")
        and hasattr(values, "__len__")
        and not hasattr(values, "columns")
    )


def read_sequences(source: str | Path, *, allow_mask: bool = False, constraints: bool = False) -> Iterator[Record]:
    """The records of a FASTA file, or of a table with a column of sequences; "-" is FASTA on standard input.

    A table is recognised by its name (.csv, .tsv, .tab, .jsonl, .ndjson, .parquet; compressed or not), unless it starts
    as FASTA.

    Raises:
        InputError: The file cannot be used; the message names it, and the line or record.
    """
    if is_sequence_table(source):
        rows = read_table_records(Path(source), allow_mask=allow_mask)
        return map(partial(_with_constraint, str(source)), rows) if constraints else (record for record, _ in rows)
    return read_fasta(source, allow_mask=allow_mask, constraints=constraints)


def _with_constraint(file: str, row: tuple[Record, dict[str, Any]]) -> Record:
    record, cells = row
    if "constraint" not in cells:
        raise InputError(f"{file}: has no column 'constraint'; add it, or give a file of constraints")
    text = cells["constraint"]
    return record if is_missing(text) else replace(record, constraint=str(text).strip())


def is_sequence_table(source: str | Path) -> bool:
    """Whether sequences are read from this file as from a table."""
    path = Path(source)
    format = table_format(path)
    if str(source) == "-" or format is None or uncompressed_name(path).endswith(".txt"):
        return False
    if format == "parquet" or not path.is_file():
        return True
    try:
        return not next(read_chunks(path), b"").removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b">")
    except InputError:
        return True  # reading the table reports the error


def read_table_records(path: Path, *, allow_mask: bool = False) -> Iterator[tuple[Record, dict[str, Any]]]:
    """The record and all cells of each row of a table."""
    number = 0
    for number, (where, row) in enumerate(read_rows(path), start=1):
        try:
            yield _record_of_row(row, number, allow_mask), row
        except SequenceError as error:
            raise InputError(f"{where}: {error}") from None
        except InputError as error:
            raise InputError(f"{where}: {str(error).removeprefix(f'row {number}: ')}") from None
    if not number:
        raise InputError(f"{path}: contains no rows")


def _record_of_row(row: Mapping[str, Any], number: int, allow_mask: bool) -> Record:
    columns = {str(column).lower(): value for column, value in row.items()}
    column = next((name for name in SEQUENCE if name in columns), None)
    if column is None:
        raise InputError(
            f"row {number} has the columns {', '.join(map(str, row))}, none of them called {', '.join(SEQUENCE)}; "
            'rename the sequence column, or in Python pass it alone, such as dataset["transcript"]'
        )
    text = plain_item(columns[column])
    if is_missing(text):
        raise InputError(f"row {number}: {column} is empty; leave out this row")
    if not isinstance(text, str):
        raise InputError(f"row {number}: {column} is a {type(text).__name__}, not text")
    name = next((str(plain_item(columns[name])) for name in NAME if not is_missing(columns.get(name))), str(number))
    return make_record(text, one_line(name), number=number, allow_mask=allow_mask)


def _record_of_text(sequence: str, number: int, allow_mask: bool) -> Record:
    try:
        return make_record(sequence, str(number), number=number, allow_mask=allow_mask)
    except SequenceError:
        try:
            exists = "." in sequence and Path(sequence).exists()
        except (OSError, ValueError):  # too long for a name, or it holds a NUL
            exists = False
        if exists:
            raise InputError(f"{sequence!r} is a file; give Path({sequence!r}) to read it") from None
        if _FILE_NAME.fullmatch(sequence):
            raise InputError(f"{sequence!r}: no such file") from None
        raise


@contextmanager
def name_source_in_errors(source: object) -> Iterator[None]:
    """Add the file, if `source` is a `Path`, to errors of records that do not name one."""
    try:
        yield
    except SequenceError as error:
        if error.file is not None or not isinstance(source, Path):
            raise
        raise error.with_location(source_name(str(source)), error.line, error.record) from None


def encode(record: Record, alphabet: Alphabet) -> np.ndarray:
    """Token ids with CLS and EOS; an empty sequence and unknown characters raise an error that names the record."""
    if not record.sequence:
        raise SequenceError("is empty; leave it out", record=record.id)
    try:
        return alphabet.encode(record.sequence, strict=True)
    except SequenceError as error:
        raise error.with_location(None, None, record.id) from None


def check_positive_int(name: str, value: object) -> None:
    """Raise InputError unless the value is a whole number of at least 1."""
    if not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name} is {value!r}; give a whole number from 1 on")


def require_nonempty(records: Iterable[Record]) -> Iterator[Record]:
    """The records; raises InputError now if there is none, or if the first one cannot be used."""
    iterator = iter(records)
    first = next(iterator, None)
    if first is None:
        raise InputError("no sequences given")
    return chain((first,), iterator)

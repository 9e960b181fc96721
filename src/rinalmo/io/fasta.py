"""FASTA: a stream of `Record`s with checked letters, from a file of any compression or standard input.

Either every record of the input is returned, in order, or an `InputError` says which one cannot be used and why; a
truncated file is an error, not a shorter file. `docs/formats.md` lists the outcomes.

The parser is our own because needletail fails on CR line ends, byte order marks and leading blank lines, replaces
Latin-1 letters in names by U+FFFD, accepts an empty record, and opens files by path only. With the same check of
letters it is 3 to 20 % faster. The tests compare the two.

The bytes are processed in blocks, so that memory is bounded by the longest record:

    read_chunks (rinalmo.io.files) ─► _entries ─► _record
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from operator import methodcaller
from os import PathLike

from rinalmo.errors import InputError, SequenceError
from rinalmo.io.files import BYTE_ORDER_MARK, decode, one_line, read_chunks, source_name

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
    """

    id: str
    description: str
    sequence: str
    number: int = 1


def read_fasta(
    source: str | PathLike[str], *, letters: str = IUPAC_LETTERS, allow_mask: bool = False
) -> Iterator[Record]:
    """Yield the records of a FASTA file in order.

    Args:
        source: A path, or "-" for standard input. gzip, bzip2, xz and zstd are recognized by content.
        letters: The letters that are accepted, in either case; T wherever U is.
        allow_mask: Accept `<mask>`, in lower case and on one line, within a sequence; it is returned as it is.

    Yields:
        The records.

    Raises:
        SequenceError: A record has no name, no sequence or another letter.
        InputError: The file is missing, unreadable, empty, truncated, damaged or not FASTA. This can come after
            records, since the end of a file is only seen when it is reached.

    Examples:
        >>> import rinalmo, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "hairpin.fa"
        >>> _ = path.write_text(">hairpin of five bases\\nGGGAA\\nATCCC\\n")
        >>> [(record.id, record.sequence) for record in rinalmo.read_fasta(path)]
        [('hairpin', 'GGGAAAUCCC')]
    """
    return parse_fasta(read_chunks(source), source_name(source), letters=letters, allow_mask=allow_mask)


def parse_fasta(
    chunks: Iterable[bytes], name: str, *, letters: str = IUPAC_LETTERS, allow_mask: bool = False
) -> Iterator[Record]:
    """As `read_fasta`, from pieces of bytes; `name` is the name of the source in messages."""
    table = _letter_table(letters)
    for number, entry in enumerate(_entries(iter(chunks), name), start=1):
        yield _record(number, entry, table, allow_mask, name)


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
        raise InputError(f"{name} is empty; it should hold at least one FASTA record")
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
    place = f" (in record number {number} of the file)" if number else ""
    problem = f"{character!r}{place} is not an RNA letter; "
    if character in "-.~":
        return problem + "remove alignment gaps, for example with: seqkit seq -g"
    if character == "\0":
        return problem + "the file is damaged or not text"
    if character in "<>" and allow_mask:
        return problem + "write a mask as <mask> on one line, and '>' only at the start of a header line"
    if character in "<>":
        return problem + "masks are only for fill-mask, and '>' only starts a header line"
    if not character.isascii():
        return problem + "save the sequence in plain ASCII letters"
    if set(written.upper()) & set(_PROTEIN_LETTERS):
        return problem + "this looks like protein; rinalmo reads RNA or DNA"
    return problem + f"allowed are T and {bytes(sorted(set(table) - {0})).decode()}"

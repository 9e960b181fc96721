"""Files in: the bytes, or the lines, of a plain, gzip or zstd file or of standard input.

Compression is recognised by content, not by name, and a compressed file that is cut off is an error, not a shorter
file. The bytes flow in blocks, so that memory is bounded:

    _opened ─► _Source ─► chunks (decompression) ─► lines
"""

import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from rinalmo.errors import InputError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_BLOCK = 1 << 18
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # after one byte 0x50 to 0x5f; pzstd starts its files with it
_UNSUPPORTED_MAGIC = {
    b"BZh": "is compressed with bzip2; decompress it, or use gzip or zstd",
    b"\xfd7zXZ": "is compressed with xz; decompress it, or use gzip or zstd",
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8 or ASCII",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8 or ASCII",
}
_OPEN_FAILURES: dict[type[Exception], str] = {
    FileNotFoundError: "does not exist; check the path",
    IsADirectoryError: "is a directory; name a file in it",
    PermissionError: "may not be read; check its permissions",
}
# An empty block ends every file that bgzip wrote (SAM specification, section 4.1.2).
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def source_name(source: str | PathLike[str]) -> str:
    """What errors call a source; "-" is standard input."""
    return "standard input" if source == "-" else one_line(str(source))


def read_chunks(source: str | PathLike[str]) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file, or of "-" for standard input, in pieces of bounded size.

    Raises InputError if the file is missing, unreadable, cut off, damaged or compressed in another way.
    """
    name = source_name(source)
    with _opened(source, name) as file:
        yield from _decompressed(_Source(file), name)


def read_lines(source: str | PathLike[str]) -> Iterator[str]:
    """Yield the lines of a text file without their ends (LF, CRLF or CR) and without a byte order mark.

    Raises InputError as `read_chunks` does, and if there is a NUL byte.
    """
    name = source_name(source)
    for number, line in enumerate(_byte_lines(read_chunks(source)), start=1):
        if b"\0" in line:
            raise InputError(f"{name}, line {number}: has a NUL byte; the file is damaged or not text")
        yield decode(line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line)


def _byte_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        text = rest + chunk
        # A CR at the end of the chunk may be half of a CRLF: it waits for the next one.
        waits = text.endswith(b"\r")
        *whole, rest = text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rest += b"\r" * waits
        yield from whole
    if rest:
        yield rest.removesuffix(b"\r")


@contextmanager
def _opened(source: str | PathLike[str], name: str) -> Iterator[BinaryIO]:
    if source == "-":
        if sys.stdin is None:
            raise InputError(f"{name} is closed; name a file")
        yield sys.stdin.buffer
        return
    if not str(source):
        raise InputError("the name of the file is empty")
    try:
        file = Path(source).open("rb")  # noqa: SIM115  # the error clause must not span the reading
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{name} {_OPEN_FAILURES.get(type(error), f'cannot be opened: {error}')}") from error
    with file:
        yield file


class _Source:
    """A file whose first bytes stay readable after a look at them, because a pipe cannot be rewound."""

    closed = False  # pyarrow asks

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._head: bytes | None = None

    def head(self) -> bytes:
        self._head = self._file.read(len(_BGZF_END))
        return self._head

    def read(self, size: int) -> bytes:
        """Return what is there, at most `size` bytes; nothing only at the end."""
        head, self._head = self._head, None
        return head or self._file.read1(size)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Nothing, although pyarrow calls it: whoever opened the file closes it."""

    def blocks(self) -> Iterator[bytes]:
        return iter(lambda: self.read(_BLOCK), b"")


def _decompressed(source: _Source, name: str) -> Iterator[bytes]:
    try:
        head = source.head()
        for magic, remedy in _UNSUPPORTED_MAGIC.items():
            if head.startswith(magic):
                raise InputError(f"{name} {remedy}")
        if head.startswith(_GZIP_MAGIC):
            yield from _gunzip(source.blocks(), is_bgzf=head[3:4] == b"\x04" and head[12:14] == b"BC")
        elif head.startswith(_ZSTD_MAGIC) or head[1:4] == _ZSTD_SKIPPABLE_MAGIC:
            yield from _unzstd(source)
        else:
            yield from source.blocks()
    except (OSError, EOFError, zlib.error) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name} cannot be read to its end ({reason}); copy or download it again") from error


def _gunzip(blocks: Iterable[bytes], *, is_bgzf: bool) -> Iterator[bytes]:
    member, end = zlib.decompressobj(wbits=31), b""
    for block in blocks:
        end = (end + block[-len(_BGZF_END) :])[-len(_BGZF_END) :]
        while block:
            if member.eof:
                member = zlib.decompressobj(wbits=31)
            yield member.decompress(block, 4 * _BLOCK)
            block = member.unconsumed_tail or member.unused_data
    yield member.flush()
    if not member.eof or (is_bgzf and end != _BGZF_END):
        raise EOFError("the gzip data is cut off")


def _unzstd(source: _Source) -> Iterator[bytes]:
    import pyarrow as pa

    stream = pa.CompressedInputStream(pa.PythonFile(source, mode="r"), "zstd")
    while chunk := stream.read(_BLOCK):
        yield chunk


def decode(text: bytes) -> str:
    """UTF-8, or Latin-1 where it is not."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def record_name(name: str, number: int | None = None) -> str | None:
    """What errors call a record: by its name, or by its number if it has none."""
    return one_line(name[:60]) or (None if number is None else str(number))


def one_line(text: str) -> str:
    """Escape line ends and terminal codes, which a name may hold and an error message must not."""
    return text if text.isprintable() else ascii(text)[1:-1]

"""Files: read with any compression, written whole or not at all, locked.

An output is written under a temporary name beside its destination, synced to the disk, then renamed over the
destination; a folder likewise. A reader sees the old output, the new one or none, never a part of one, and two writers
never share a temporary name. Otherwise an output behaves as if it had been opened for writing: a symbolic link is
followed, permissions are those of the file that is replaced or follow the umask, and a device or pipe is written to.

A file system without locks, fsync or permissions costs one warning, not the run.

Compression is recognized by content. The decompressors are driven here and not by xopen or the classes of the standard
library, which end without an error where a second gzip, bzip2, xz or zstd stream in a file is damaged.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import IO, Any, BinaryIO

from rinalmo.errors import InputError, RinalmoError

logger = logging.getLogger(__name__)

LOCK = "lock"
"""The name of the lock file in a locked folder."""

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.partial")
_DESCRIPTORS = ("/dev/fd/", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/proc/")
_MAX_JSON = 16 << 20
_MAX_LINKS = 40  # as many as Linux follows
# Errors of fsync that mean lost data; any other means that the file system does not support it.
_NOT_WRITTEN = {errno.EIO, errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}

_warned: set[str] = set()


class LockHeldError(Exception):
    """Another process, or another part of this one, holds the lock."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends, and is removed after an error.

    A device, a named pipe or an open descriptor such as /dev/stdout is written to directly. Every OSError names `path`.
    """
    if is_stream(path):
        with path.open("ab") as file:
            yield file
        return
    with atomic_write_path(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def atomic_write_path(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """As `atomic_write`, for writers that open files themselves: yields the path of an empty temporary file.

    The temporary file is in `scratch`, a folder on the same disk, or else beside the output.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            yield (whole := Path(folder) / "output")
            with whole.open("rb") as source, path.open("ab") as file:
                shutil.copyfileobj(source, file)
        return
    target = destination(path)
    temporary = (scratch or target.parent) / _temporary_name(target)
    try:
        mode = None
        with contextlib.suppress(FileNotFoundError):
            mode = target.stat().st_mode
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
        temporary.touch(0o666, exist_ok=False)
        mode = temporary.stat().st_mode if mode is None else mode  # before a writer replaces the file by one of its own
        yield temporary
        sync(temporary)
        _change_mode(temporary, stat.S_IMODE(mode))
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (temporary, str(temporary)):
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise
    sync(target.parent)


def temporary_folder(path: Path) -> Path:
    """Make a folder beside `path` for `publish_folder` to rename; its permissions follow the umask."""
    target = destination(path)
    folder = target.parent / _temporary_name(target)
    folder.mkdir()
    return folder


@contextmanager
def atomic_write_folder(path: Path) -> Iterator[Path]:
    """As `atomic_write`, for a folder: yields an empty one, which replaces `path` when the block ends."""
    destination(path).parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_folder(path)
    try:
        yield partial
        publish_folder(partial, path, overwrite=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish_folder(folder: Path, path: Path, *, overwrite: bool = False) -> None:
    """Rename a folder made by `temporary_folder` to its final name, once its content is on the disk.

    An empty folder of this name is replaced, and with `overwrite` any other; it is still there after an OSError.
    """
    target = destination(path)
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            sync(file)
            _change_mode(file, mode)  # some libraries write files that only the owner may read
    sync(folder)
    if overwrite and target.exists():
        _change_mode(folder, stat.S_IMODE(target.stat().st_mode))
        old = target.parent / _temporary_name(target)
        target.rename(old)
        try:
            folder.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            target.rmdir()  # fails unless it is empty
        folder.rename(target)
    sync(target.parent)


def destination(path: Path) -> Path:
    """The target of a symbolic link, or any other path itself. Raises OSError if links form a loop."""
    if is_stream(path) or not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe, a socket or an open descriptor, which can be written to but not replaced."""
    place = path.absolute()
    for _ in range(_MAX_LINKS):
        # A descriptor may be a plain file, but the open file is meant, not the file that now has its name.
        if os.path.normpath(place).startswith(_DESCRIPTORS):
            return True
        if not place.is_symlink():
            break
        place = place.parent / place.readlink()
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_temporary(path: Path) -> bool:
    """Whether a path is named like an unfinished output of this module."""
    return _TEMPORARY.fullmatch(path.name) is not None


def clear_temporaries(folder: Path) -> None:
    """Remove unfinished outputs of processes that died. The caller must hold the folder's lock."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _temporary_name(target: Path) -> str:
    return f".{target.name[:40]}.{os.urandom(8).hex()}.partial"


def _change_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        with contextlib.suppress(OSError):  # file systems without permissions
            path.chmod(mode)


def check_path(path: Path, endings: Iterable[str] = ()) -> None:
    """Raise InputError for an output with none of these endings, in no folder, or that is a folder itself."""
    if endings and path.suffix not in endings and not path.is_dir():
        kind = repr(path.suffix) if path.suffix else "a file without extension"
        raise InputError(f"{path}: cannot write {kind}; use {', '.join(endings)}")
    try:
        folder = destination(path).parent
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give a file name")
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; create it first")
    except OSError as error:
        raise InputError.from_os_error(error, path, "cannot be written") from None


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk. Without the second a rename may be lost in a power cut.

    A file system without fsync, or a folder that cannot be opened, costs one warning; Windows cannot sync folders.
    """
    is_folder = path.is_dir()
    if is_folder and sys.platform == "win32":
        return
    handle = None
    try:
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        os.fsync(handle)
    except OSError as error:
        if error.errno in _NOT_WRITTEN or (handle is None and not is_folder):
            raise
        _warn_once(
            "fsync",
            f"{path}: its file system cannot confirm that data is on the disk ({error.strerror}); "
            "a power failure may lose an output, but killing the process cannot",
        )
    finally:
        if handle is not None:
            os.close(handle)


def _warn_once(kind: str, message: str) -> None:
    """Log a warning about the file system; there may be thousands of files on it."""
    if kind not in _warned:
        _warned.add(kind)
        logger.warning(message)


def read_json(path: Path, error: type[RinalmoError] = InputError) -> dict[str, Any]:
    """The object in a small JSON file that may come from anyone; raises `error` for anything else."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise error(f"{path}: too large for a settings file")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise error.from_os_error(problem, path, "not valid JSON") from None
    except OSError as problem:
        raise error.from_os_error(problem, path, "cannot be read") from None
    if not isinstance(values, dict):
        raise error(f"{path}: contains a {type(values).__name__}, not an object")
    return values


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_md5(path: Path) -> str:
    """The MD5 of a file, in hexadecimal: the sum that Zenodo publishes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


@contextmanager
def file_lock(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Lock a file, which is made if it does not exist. The system frees the lock of a process that died.

    If the lock is held elsewhere, `on_wait` is called once before waiting for it; without `on_wait` LockHeldError is
    raised. Yields False on a file system without locks, after a warning.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    path.open("ab").close()  # so that an unusable path raises, instead of passing for a lack of locks
    # Soft locks, filelock's replacement where there are no others, would stay for ever after a crash elsewhere.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        if isinstance(lock, SoftFileLock):
            raise NotImplementedError("Python has no fcntl here")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if on_wait is None:
                raise LockHeldError(str(path)) from None
            on_wait()
            lock.acquire(poll_interval=0.1)
    except FileNotFoundError:  # the folder was removed in the meantime
        raise
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        _warn_once(
            "lock",
            f"{path.parent}: its file system has no locks ({reason}); "
            "a second process that writes the same output would not be detected",
        )
    try:
        yield lock.is_locked
    finally:
        with contextlib.suppress(OSError):
            lock.release()


@contextmanager
def lock_folder(folder: Path, output: Path, *, temporary: bool = False) -> Iterator[bool]:
    """Lock a folder, which is made if it does not exist, so that one process at a time writes `output` there.

    Raises InputError if another process holds the lock, which is the file `LOCK`. Yields False on a file system without
    locks, after a warning. A `temporary` folder is removed at the end if only the lock is left in it.
    """
    try:
        with contextlib.ExitStack() as stack:
            while True:
                folder.mkdir(exist_ok=True)
                try:
                    is_held = stack.enter_context(file_lock(folder / LOCK))
                    break
                except FileNotFoundError:
                    continue  # the process that held it has finished, and removed the folder
                except LockHeldError:
                    raise InputError(
                        f"{output}: another process is writing this output; wait for it, or choose another name"
                    ) from None
            try:
                yield is_held
            finally:
                if temporary and os.name != "nt":  # still locked, so that no later holder's lock is removed
                    _remove_if_unused(folder)
    finally:
        if temporary and os.name == "nt":  # Windows cannot remove an open file, hence no later holder's lock either
            _remove_if_unused(folder)
        elif temporary:  # NFS keeps a removed lock's name until it is closed
            with contextlib.suppress(OSError):
                folder.rmdir()


def _remove_if_unused(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if set(os.listdir(folder)) <= {LOCK}:  # noqa: PTH208
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def empty_folder(folder: Path, keep: Callable[[Path], bool] | None = None) -> None:
    """Remove the content of a locked folder, except its lock and the paths for which `keep` is true."""
    for path in folder.iterdir():
        if path.name != LOCK and not (keep and keep(path)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


# Reading

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_BLOCK = 1 << 18
_GZIP_MAGIC = b"\x1f\x8b"
_BZIP2_MAGIC = b"BZh"
_XZ_MAGIC = b"\xfd7zXZ\0"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # after one byte 0x50 to 0x5f; pzstd starts its files with it
_UNSUPPORTED_MAGIC = {
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8 or ASCII",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8 or ASCII",
}
_OPEN_FAILURES: dict[type[Exception], str] = {
    FileNotFoundError: "does not exist; check the path",
    IsADirectoryError: "is a folder; give a file in it",
    PermissionError: "cannot be read; check its permissions",
}
# An empty block ends every file that bgzip wrote (SAM specification, section 4.1.2).
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def uncompressed_name(path: str | PathLike[str]) -> str:
    """The name of a file in lower case, without the ending of its compression."""
    name = Path(path).name.lower()
    return name.removesuffix(Path(name).suffix) if name.endswith(COMPRESSED) else name


def source_name(source: str | PathLike[str]) -> str:
    """The name of a source in messages; "-" is standard input."""
    return "standard input" if source == "-" else one_line(str(source))


@contextmanager
def open_binary(source: str | PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file, or "-" for standard input, as it is; raises InputError if that fails."""
    name = source_name(source)
    if source == "-":
        if sys.stdin is None:
            raise InputError(f"{name} is closed; give a file")
        yield sys.stdin.buffer
        return
    if not str(source):
        raise InputError("the file name is empty")
    try:
        file = Path(source).open("rb")  # noqa: SIM115  # the error clause must not span the reading
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"{name} {_OPEN_FAILURES.get(type(error), f'cannot be opened: {error}')}") from error
    with file:
        yield file


def read_chunks(source: str | PathLike[str]) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file, or of "-" for standard input, in pieces of bounded size.

    gzip (also bgzip), bzip2, xz and zstd are recognized by content. Raises InputError if the file is missing,
    unreadable, truncated, damaged, a zip archive or UTF-16 text.
    """
    with open_binary(source) as file:
        yield from decompressed(file, source_name(source))


def decompressed(file: BinaryIO, name: str) -> Iterator[bytes]:
    """As `read_chunks`, of an open file; `name` is its name in messages."""
    try:
        head = file.read(len(_BGZF_END))
        for magic, remedy in _UNSUPPORTED_MAGIC.items():
            if head.startswith(magic):
                raise InputError(f"{name} {remedy}")
        if head.startswith(_ZSTD_MAGIC) or head[1:4] == _ZSTD_SKIPPABLE_MAGIC:
            import pyarrow as pa

            stream = pa.CompressedInputStream(pa.PythonFile(_Rewound(head, file), mode="r"), "zstd")
            blocks = iter(partial(stream.read, _BLOCK), b"")
        else:
            blocks = chain((head,), iter(partial(file.read1, _BLOCK), b""))  # type: ignore[attr-defined]
            if head.startswith((_GZIP_MAGIC, _BZIP2_MAGIC, _XZ_MAGIC)):
                blocks = _decompress(blocks, head)
        yield from blocks
    except (OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name} cannot be read to its end ({reason}); copy or download it again") from error


class _Rewound:
    """A pipe, or any file, whose first bytes have been read and are to be read again, for pyarrow."""

    closed = False

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head, self._file = head, file

    def read(self, size: int) -> bytes:
        head, self._head = self._head, b""
        return head or self._file.read1(size)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Nothing: `open_binary` closes the file."""


def _decompress(blocks: Iterable[bytes], head: bytes) -> Iterator[bytes]:
    """Decompress gzip, bzip2 or xz: one or more streams, end to end, and nothing else."""
    new_stream: Callable[[], Any] = partial(zlib.decompressobj, wbits=31)
    if head.startswith(_BZIP2_MAGIC):
        import bz2

        new_stream = bz2.BZ2Decompressor
    elif head.startswith(_XZ_MAGIC):
        import lzma

        new_stream = lzma.LZMADecompressor
    is_bgzf = head[3:4] == b"\x04" and head[12:14] == b"BC"
    stream, end, limit = new_stream(), b"", 4 * _BLOCK
    for block in blocks:
        end = (end + block[-len(_BGZF_END) :])[-len(_BGZF_END) :]
        has_more = False
        while block or has_more:
            if stream.eof:
                stream = new_stream()
            try:
                data = stream.decompress(block, limit)
            except Exception as error:  # zlib's and lzma's have no other base
                raise OSError(str(error)) from error
            yield data
            block = getattr(stream, "unconsumed_tail", b"") or stream.unused_data
            has_more = len(data) == limit and not stream.eof
    if not stream.eof or (is_bgzf and end != _BGZF_END):
        raise EOFError("the compressed data is truncated")


def read_lines(source: str | PathLike[str], *, strict: bool = False) -> Iterator[str]:
    """Yield the lines of a text file with their ends (LF, CRLF or CR), without a byte order mark.

    A line that is not UTF-8 is read as Latin-1, or refused if `strict`. Raises InputError as `read_chunks`, and for a
    NUL byte.
    """
    name, number, unfinished = source_name(source), 0, b""
    for chunk in chain(read_chunks(source), (None,)):
        lines = (unfinished + (chunk or b"")).splitlines(keepends=True)
        # A line without LF may go on in the next chunk; a CR may be half of a CRLF.
        unfinished = lines.pop() if chunk is not None and lines and not lines[-1].endswith(b"\n") else b""
        for line in lines:
            number += 1
            if b"\0" in line:
                raise InputError(f"{name}, line {number}: has a NUL byte; the file is damaged or not text")
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            try:
                yield line.decode() if strict else decode(line)
            except UnicodeDecodeError:
                raise InputError(f"{name}, line {number}: is not UTF-8 text; save the file as UTF-8") from None


def decode(text: bytes) -> str:
    """UTF-8, or Latin-1 where it is not."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def record_name(name: str, number: int | None = None) -> str | None:
    """The name of a record in messages: its own, or its number if it has none."""
    return one_line(name[:60]) or (None if number is None else str(number))


_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def escape_controls(text: str) -> str:
    """Escape terminal codes, which a file may hold and a terminal must not get; tabs and line ends stay."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(text: str) -> str:
    """Escape line ends and terminal codes, which a name may hold and an error message must not."""
    return text if text.isprintable() else ascii(text)[1:-1]


def counted(count: int, noun: str) -> str:
    """A number of things in a message: 1 sequence, 2,048 sequences, 3 classes."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{count:,} {noun}{ending}"


# Writing with compression


@contextmanager
def atomic_write_compressed(path: Path) -> Iterator[IO[bytes]]:
    """As `atomic_write`, compressed as the ending says; the same content gives the same bytes."""
    with atomic_write(path) as file:
        stream: Any = contextlib.nullcontext(file)
        if path.suffix == ".gz":
            stream = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)
        elif path.suffix == ".zst":
            import pyarrow as pa

            stream = pa.CompressedOutputStream(pa.PythonFile(file, mode="w"), "zstd")
        elif path.suffix == ".bz2":
            import bz2

            stream = bz2.BZ2File(file, "wb")
        elif path.suffix == ".xz":
            import lzma

            stream = lzma.LZMAFile(file, "wb")  # noqa: SIM115
        with stream as writer:
            yield writer


def duration(seconds: float) -> str:
    """Such as 40 s, 5 min, 2 h 10 min or 3 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


class Pace:
    """How much of a task is done, and how long the rest will take at the pace so far.

    Args:
        total: How much there is; None if that is not known.
        about: Stands before the total in texts, such as "about ".
        done: How much is done now; None: what the first call says.
    """

    def __init__(self, total: int | None = None, about: str = "", done: int | None = None) -> None:
        self.total, self.about = total, about
        self._first = None if done is None else (time.monotonic(), done)

    def text(self, count: int, noun: str) -> str:
        """Such as `1,200 of 10,000 sequences (12 %), 3 min left`; without a total `1,200 sequences`."""
        left = self.left(count)
        if not self.total:
            return f"{count:,} {noun}"
        total = max(self.total, count)
        left = left if count < total else ""
        return f"{count:,} of {self.about}{total:,} {noun} ({100 * count // total} %){left}"

    def left(self, count: int) -> str:
        """Such as `, 3 min left`; empty where that is not known."""
        self._first = self._first or (time.monotonic(), count)
        seconds, done = time.monotonic() - self._first[0], count - self._first[1]
        return f", {duration(seconds * max(0, self.total - count) / done)} left" if self.total and done > 0 else ""

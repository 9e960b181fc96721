"""Outputs that are complete or absent, and locks: what this package asks of a file system.

A file is written under a temporary name of its own beside its destination, put on the disk, then renamed over the
destination; a folder likewise. Whoever reads sees the old one, the new one or none, never a part of one, and two
writers never share a temporary name. Otherwise an output behaves as if it had been opened for writing: a symbolic link
is followed, permissions are those of the file that is replaced or follow the umask, and a device or pipe is written to.

What a file system lacks (locks, fsync, permissions) costs a warning, once, and not the run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, BinaryIO

from rinalmo.errors import InputError

logger = logging.getLogger(__name__)

LOCK = "lock"
"""The name of the lock in a folder that is held."""

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.partial")
_DESCRIPTORS = ("/dev/fd/", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/proc/")
_MOST_LINKS = 40  # as many as Linux follows
# Of an fsync: the data is not on the disk. Any other error says that this file system cannot tell.
_NOT_WRITTEN = {errno.EIO, errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG}

_warned: set[str] = set()


class LockHeldError(Exception):
    """Another process, or another part of this one, holds the lock."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the place of `path` when the block ends; an error removes it.

    A device, a named pipe or an open descriptor such as /dev/stdout is written to as it is.

    Args:
        path: The output. A symbolic link is followed and stays.

    Yields:
        The file to write to.

    Raises:
        OSError: The file cannot be written; the error names `path`.
    """
    if is_stream(path):
        with path.open("ab") as file:
            yield file
        return
    with replacing_path(path) as partial, partial.open("wb") as file:
        yield file


@contextlib.contextmanager
def replacing_path(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """As `replacing`, for writers that open files themselves: a temporary path to write to.

    Args:
        path: The output. A symbolic link is followed and stays.
        scratch: A folder on the same disk for the temporary file; None is the output's own.

    Yields:
        The path of an empty file.

    Raises:
        OSError: The file cannot be written; the error names `path`.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            yield (whole := Path(folder) / "output")
            with whole.open("rb") as source, path.open("ab") as file:
                shutil.copyfileobj(source, file)
        return
    target = destination(path)
    partial = (scratch or target.parent) / _temporary_name(target)
    try:
        mode = _create(partial, target)
        yield partial
        sync(partial)
        _change_mode(partial, mode)
        partial.replace(target)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (partial, str(partial)):
            raise type(error)(error.errno, error.strerror, str(path)) from None
        raise
    sync_folder(target.parent)


def temporary_folder(path: Path) -> Path:
    """Make a folder beside `path` that `publish_folder` gives this name; its permissions follow the umask."""
    target = destination(path)
    folder = target.parent / _temporary_name(target)
    folder.mkdir()
    return folder


def publish_folder(folder: Path, path: Path, *, overwrite: bool = False) -> None:
    """Give a folder its name, once everything in it is on the disk.

    Args:
        folder: What `temporary_folder` made, filled.
        path: Its place. A symbolic link is followed and stays; an empty folder is replaced.
        overwrite: Replace a folder that is not empty, too, as a whole.

    Raises:
        OSError: It cannot be written. What was there before is there still.
    """
    target = destination(path)
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            sync(file)
            _change_mode(file, mode)  # some libraries write files that only the owner may read
    sync_folder(folder)
    if overwrite and target.exists():
        _swap(folder, target)
    else:
        with contextlib.suppress(FileNotFoundError):
            target.rmdir()  # fails unless it is empty
        folder.rename(target)
    sync_folder(target.parent)


def _swap(folder: Path, target: Path) -> None:
    _change_mode(folder, stat.S_IMODE(target.stat().st_mode))
    old = target.parent / _temporary_name(target)
    target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def destination(path: Path) -> Path:
    """The file or folder that a path leads to: the target of a symbolic link, which need not exist.

    Raises:
        OSError: The links lead in a circle.
    """
    if is_stream(path) or not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe, a socket or an open descriptor, which can be written to but not replaced."""
    place = path.absolute()
    for _ in range(_MOST_LINKS):
        # A descriptor may be a plain file, but it is the open file that is meant, not whatever has its name.
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
    """Whether a path has the name of a file or folder that is being written here, or was when a process died."""
    return _TEMPORARY.fullmatch(path.name) is not None


def clear_temporaries(folder: Path) -> None:
    """Remove what processes that died were writing in a folder; whoever calls this must hold it."""
    for path in folder.iterdir():
        if is_temporary(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _temporary_name(target: Path) -> str:
    return f".{target.name[:40]}.{os.urandom(8).hex()}.partial"


def _create(partial: Path, target: Path) -> int:
    """Make an empty file; returns the permissions that it is to have in the end."""
    mode = None
    with contextlib.suppress(FileNotFoundError):
        mode = target.stat().st_mode
        if not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode if mode is None else mode)
    finally:
        os.close(handle)


def _change_mode(path: Path, mode: int) -> None:
    """Change permissions, where they are others and the file system has any."""
    if stat.S_IMODE(path.stat().st_mode) != mode:
        with contextlib.suppress(OSError):
            path.chmod(mode)


def check_path(path: Path, endings: Iterable[str]) -> None:
    """Raise InputError for a file of another ending, or in no folder."""
    if path.suffix not in endings:
        raise InputError(f"{path}: cannot write {path.suffix or 'a file without ending'!r}; use {', '.join(endings)}")
    check_place(path)


def check_place(path: Path) -> None:
    """Raise InputError for a file that would be a folder, or lie in none."""
    try:
        folder = destination(path).parent
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give the name of a file")
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; make it first")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def sync(path: Path) -> None:
    """Put the content of a file on the disk."""
    with path.open("rb+") as file:
        _fsync(file.fileno(), path)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, without which a rename may be lost with the power; Windows cannot."""
    if sys.platform == "win32":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        _warn_of_fsync(folder, error)
        return
    try:
        _fsync(handle, folder)
    finally:
        os.close(handle)


def _fsync(handle: int, path: Path) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in _NOT_WRITTEN:
            raise
        _warn_of_fsync(path, error)


def _warn_of_fsync(path: Path, error: OSError) -> None:
    _warn_once(
        "fsync",
        f"{path}: its file system cannot tell when data is on the disk ({error.strerror}); "
        "an output may be lost if the power fails now, though not if a process is killed",
    )


def _warn_once(kind: str, message: str) -> None:
    """Log a warning about the file system; there may be thousands of files on it."""
    if kind not in _warned:
        _warned.add(kind)
        logger.warning(message)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def file_lock(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold a lock on a file, made if need be. The system frees the lock of a process that died.

    Args:
        path: The file; nothing is written into it.
        on_wait: Called once if the lock is held by somebody else, who is then waited for.

    Yields:
        Whether the lock is held: False on a file system without locks, after a warning.

    Raises:
        LockHeldError: Somebody else holds the lock, and `on_wait` is None.
        OSError: The file cannot be made.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    path.open("ab").close()  # raises what is wrong with the place, which must not pass for a lack of locks
    # Soft locks, which filelock has where there are no others, would hold for ever once their process died elsewhere.
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
            "nothing keeps a second process from writing the same output",
        )
    try:
        yield lock.is_locked
    finally:
        with contextlib.suppress(OSError):
            lock.release()


@contextlib.contextmanager
def held(folder: Path, output: Path, *, temporary: bool = False) -> Iterator[bool]:
    """Hold a folder, made if need be, so that one process at a time works in it.

    Args:
        folder: The folder; its lock is the file `LOCK` in it.
        output: What is being written, for the message.
        temporary: Remove the folder at the end if nothing but the lock is left in it.

    Yields:
        Whether the folder is held: False on a file system without locks, after a warning.

    Raises:
        InputError: Another process holds the folder.
    """
    try:
        with contextlib.ExitStack() as stack:
            while True:
                folder.mkdir(exist_ok=True)
                try:
                    is_held = stack.enter_context(file_lock(folder / LOCK))
                    break
                except FileNotFoundError:
                    continue  # whoever held it has finished, and removed the folder
                except LockHeldError:
                    raise InputError(f"{output}: another process is writing it") from None
            try:
                yield is_held
            finally:
                if temporary and os.name != "nt":  # while it is held: a later holder's lock must not be removed
                    _remove_if_unused(folder)
    finally:
        if temporary and os.name == "nt":  # where an open file cannot be removed, and so neither a later holder's
            _remove_if_unused(folder)
        elif temporary:  # NFS keeps a removed lock's name until it is closed
            with contextlib.suppress(OSError):
                folder.rmdir()


def empty_folder(folder: Path, keep: Callable[[Path], bool] = lambda path: False) -> None:
    """Remove what is in a folder that is held, but for its lock and what is to be kept."""
    for path in folder.iterdir():
        if path.name != LOCK and not keep(path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove_if_unused(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {LOCK}:
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


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

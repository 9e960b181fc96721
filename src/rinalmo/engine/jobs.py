"""A long run, of embeddings, scores or structures, that can be stopped at any moment and continued.

Records are taken in chunks; each chunk's numbers are a file of their own in a hidden folder beside the output,
and the output is put together from them at the end. Where a chunk ends depends on the input and the options alone,
so a run that was interrupted writes the same bytes as one that was not. Chunks may be finished in any order, by this
process or by others on its behalf; only the process that holds the lock writes them. The folder lies beside the file
that is written: where the output is a symbolic link, beside its target.

    .out.parquet.partial/
        run.json          what is being computed, from which file (sha256), with which options
        lock              held while a process works here
        000000.npz …      finished chunks
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rinalmo import __version__
from rinalmo.errors import InputError, RinalmoError
from rinalmo.io.fasta import Record
from rinalmo.io.files import destination, empty_folder, file_sha256, held, replacing

logger = logging.getLogger(__name__)

CHUNK_RECORDS, CHUNK_TOKENS = 1024, 1 << 16
_SETTINGS = "run.json"
C = TypeVar("C")


@dataclass(frozen=True)
class Chunk:
    """Embeddings of some consecutive records.

    `values` has one row per record, or with per-nucleotide embeddings one row per nucleotide.
    """

    ids: list[str]
    descriptions: list[str]
    lengths: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, records: list[Record], values: list[np.ndarray], per_token: bool) -> Chunk:
        """Records and the array of each."""
        return cls(
            [record.id for record in records],
            [record.description for record in records],
            np.array([len(record.sequence) for record in records], dtype=np.int64),
            np.concatenate(values) if per_token else np.stack(values),
        )


def chunked(
    items: Iterable[C], size: Callable[[C], int], full: int = CHUNK_TOKENS, most: int | None = None, scale: int = 1
) -> Iterator[list[C]]:
    """Consecutive items, cut where a chunk is full: by the sum of their sizes, or by their number (`most`).

    `scale` makes chunks so many times as large.
    """
    most, full = scale * (most or CHUNK_RECORDS), scale * full
    chunk: list[C] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += size(item)
        if len(chunk) == most or total >= full:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def adding(tell: Callable[[int], Any], start: int = 0) -> Callable[[int], None]:
    """From a function to call with how many are done in all, one to call with how many more are."""
    total = start

    def advance(more: int) -> None:
        nonlocal total
        total += more
        tell(total)

    return advance


def shard(records: Iterable[Record], part: str | None) -> Iterator[Record]:
    """Every n-th record, from the i-th on, for `part` "i/n"; all for None."""
    if part is None:
        return iter(records)
    try:
        index, count = (int(number) for number in part.split("/"))
    except ValueError:
        raise InputError(f"--shard {part!r}: write i/n, such as 1/8") from None
    if not 1 <= index <= count <= sys.maxsize:
        raise InputError(f"--shard {part!r}: the first number goes from 1 to the second, that to {sys.maxsize:,}")
    return islice(records, index - 1, None, count)


class Job:
    """The folder of one run, locked while in use. `noun` is what there is one of for each sequence.

    A chunk is written by another thread while the next is computed; whatever looks at the folder waits for it.
    """

    def __init__(self, output: Path, noun: str = "sequences") -> None:
        self.output, self.noun = output, noun
        self._total: int | None = None  # chunks of the whole run, once all have been asked for
        with _faults(output):
            target = destination(output)
        self.folder = target.with_name(f".{target.name}.partial")
        self._writer: ThreadPoolExecutor | None = None
        self._unwritten: Future[None] | None = None

    @contextlib.contextmanager
    def opened(self, settings: dict[str, Any], *, resume: bool = False, restart: bool = False) -> Iterator[None]:
        """Hold the run, and go on with what an interrupted one of the same settings has finished.

        Without a finished chunk at the end, or if the input can be read only once, nothing is left.

        Args:
            settings: What the result depends on, as JSON. "input" is None for one that can be read only once.
            resume: Says that this is what is wanted; it happens anyway.
            restart: Discard what an interrupted run has finished, whatever its settings.

        Raises:
            InputError: Another process holds the run, the settings are not those of the interrupted run, what it has
                finished is damaged, or it should be both resumed and discarded.
        """
        if resume and restart:
            raise InputError(f"{self.output}: a run is resumed or restarted, not both")
        settings = {"version": __version__, **settings}
        with _faults(self.output), held(self.folder, self.output, temporary=True) as is_held:
            before = {} if restart else self._kept_settings()
            if before:
                self._require_same(before, settings)
                if is_held:
                    empty_folder(self.folder, lambda path: path.name == _SETTINGS or _is_chunk(path))
                if kept := self.finished():
                    logger.info("%s: continuing an interrupted run: %s %s done", self.output, f"{kept:,}", self.noun)
            else:
                empty_folder(self.folder)
                with replacing(self.folder / _SETTINGS) as file:
                    file.write(json.dumps(settings, indent=2).encode())
            try:
                yield
                self._wait()
            finally:
                if self._writer is not None:
                    self._writer.shutdown()
                self._writer = self._unwritten = None
                if settings.get("input") is None or not self.chunk_files():
                    self.remove()

    def chunk_files(self) -> list[Path]:
        """Finished chunks, in order."""
        self._wait()
        chunks = filter(_is_chunk, self.folder.glob("*.npz"))
        return sorted(chunks, key=lambda path: int(path.stem))

    def missing(self, chunks: Iterable[C]) -> Iterator[tuple[int, C]]:
        """The chunks that are not finished, with their numbers."""
        total = 0
        for number, chunk in enumerate(chunks):
            total = number + 1
            if not (self.folder / _name(number)).exists():
                yield number, chunk
        self._total = total

    def finished(self) -> int:
        """Number of sequences in the finished chunks."""
        return sum(len(arrays["lengths"]) for arrays in self.saved("lengths"))

    def write(self, number: int, chunk: Chunk) -> None:
        """Add a finished chunk; it is there wholly or not at all."""
        names = np.array(json.dumps([chunk.ids, chunk.descriptions]))
        self.save(number, names=names, lengths=chunk.lengths, values=chunk.values)

    def save(self, number: int, *, lengths: np.ndarray, **arrays: np.ndarray) -> None:
        """As `write`, for a chunk of any arrays; `lengths` has one entry per sequence.

        Returns once the chunk before it is written; a failure to write shows at the next call.
        """
        self._wait()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="rinalmo-writer")
        self._unwritten = self._writer.submit(self._save, number, lengths=lengths, **arrays)

    def _save(self, number: int, *, lengths: np.ndarray, **arrays: np.ndarray) -> None:
        with replacing(self.folder / _name(number)) as file:
            np.savez(file, lengths=lengths, **arrays)  # type: ignore[arg-type]  # numpy's stub has its own option in mind

    def _wait(self) -> None:
        unwritten, self._unwritten = self._unwritten, None
        if unwritten is not None:
            unwritten.result()

    def chunks(self) -> Iterator[Chunk]:
        """All finished chunks, one in memory at a time."""
        for arrays in self.saved("names", "lengths", "values"):
            ids, descriptions = json.loads(str(arrays["names"]))
            yield Chunk(ids, descriptions, arrays["lengths"], arrays["values"])

    def saved(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of these names of all finished chunks, those of one in memory at a time."""
        paths = self.chunk_files()
        if self._total not in (None, len(paths)):  # which takes a file system without locks
            raise InputError(f"{self.output}: another process has removed what this one had finished; start it again")
        for path in paths:
            try:
                with np.load(path, allow_pickle=False) as data:
                    arrays = {name: data[name] for name in names}
            except (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
                raise self._damaged(path) from None
            yield arrays

    def remove(self) -> None:
        """Delete what is in the folder, once the output is complete; the folder goes when it is no longer held.

        The settings go first: without them what a kill leaves behind is not taken for a run to continue.
        """
        (self.folder / _SETTINGS).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            empty_folder(self.folder)

    def _kept_settings(self) -> dict[str, Any]:
        """The settings of an interrupted run that can be continued; empty if there is none."""
        path = self.folder / _SETTINGS
        if not path.exists():
            return {}
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            settings = None
        if not isinstance(settings, dict):
            raise self._damaged(path)
        return settings if settings.get("input") is not None else {}

    def _require_same(self, before: dict[str, Any], settings: dict[str, Any]) -> None:
        changed = sorted(key for key in settings.keys() | before.keys() if settings.get(key) != before.get(key))
        if changed:
            raise InputError(
                f"{self.output}: the interrupted run cannot be resumed: {', '.join(changed)} changed since it was "
                "started; give what was given then to go on with it, or --restart to discard it"
            )

    def _damaged(self, path: Path) -> InputError:
        return InputError(
            f"{self.output}: what an interrupted run kept is damaged ({path}); use --restart to start anew"
        )


def _is_chunk(path: Path) -> bool:
    return path.suffix == ".npz" and path.stem.isdecimal()


def _name(number: int) -> str:
    return f"{number:06d}.npz"


def input_sum(source: str | Path, *, resume: bool) -> str | None:
    """The sha256 of the input file; None for what can be read only once, which is an InputError with `resume`."""
    path = Path(source)
    if str(source) != "-" and path.is_file():
        return file_sha256(path)
    if resume:
        raise InputError(f"{source}: can be read only once, so a run on it cannot be resumed; save it to a file first")
    return None


@contextlib.contextmanager
def _faults(output: Path) -> Iterator[None]:
    try:
        yield
    except RinalmoError:
        raise
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise InputError(f"{output}: cannot be written ({reason})") from None

"""The job behind `embed`, `score`, `fold` and `predict`: it can be stopped at any moment and continued.

Records are computed in chunks, whose ends depend on the input and the options alone, so an interrupted run writes the
same bytes as any other. Chunks may be finished in any order, here or by other processes. The results stay in memory;
those of a run that takes long are saved every few seconds in a hidden folder beside the output (where the output is a
symbolic link, beside its target), and the rest when the run is interrupted. With `resume` the run continues from there,
with `restart` it starts over; with neither it is refused, since nothing that was computed is deleted unasked.

    .out.parquet.partial/
        lock              held while a process works here
        run.json          version, input (sha256), model and options of the run
        000000.npz …      finished chunks
"""

from __future__ import annotations

import json
import logging
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import numpy as np

from rinalmo import __version__
from rinalmo.engine.engine import Engine
from rinalmo.engine.ray import EngineLike, RayEngine
from rinalmo.errors import InputError, RinalmoError
from rinalmo.io.files import atomic_write, counted, destination, empty_folder, lock_folder
from rinalmo.io.sequences import InputFile, Record, name_source_in_errors
from rinalmo.model.packing import chunked

if TYPE_CHECKING:
    from rinalmo.engine.engine import Advance, Engine

logger = logging.getLogger(__name__)

CHUNK_RECORDS, CHUNK_TOKENS = 1024, 1 << 16
SAVE_SECONDS, SAVE_BYTES = 10.0, 1 << 28  # age and size at which results in memory are saved
_SETTINGS = "run.json"

Item = TypeVar("Item")
R = TypeVar("R")
Arrays = dict[str, np.ndarray]
"""The results of one chunk; the array `lengths` has one entry for each record."""
Progress = Callable[[int], Any]
"""A function to call with the number of records done so far."""


def opened(engine: EngineLike, to_stdout: bool = False) -> AbstractContextManager[Engine | RayEngine]:
    """The engine for the length of a `with`; one that is an engine already stays open."""
    if to_stdout and isinstance(engine, RayEngine):
        raise InputError("a RayEngine writes to a file; give an output")
    return nullcontext(engine) if isinstance(engine, Engine | RayEngine) else engine


class JobOptions(TypedDict, total=False):
    """Options of every job.

    Attributes:
        resume: Continue the interrupted run, if there is one. An input that can be read only once is refused.
        restart: Discard what an interrupted run has saved. Without either its results are kept, and InputError raised.
        progress: Called with the number of records done so far.
    """

    resume: bool
    restart: bool
    progress: Progress


def take_shard(records: Iterable[R], shard: str | None, noun: str = "sequence") -> Iterator[R]:
    """Every n-th record, from the i-th on, for `shard` "i/n"; all for None. Raises InputError where there is none."""
    if shard is None:
        return iter(records)
    index, count = _shard(shard)

    def taken() -> Iterator[R]:
        is_empty = True
        for record in islice(records, index - 1, None, count):
            is_empty = False
            yield record
        if is_empty:
            raise InputError(f"--shard {shard} is empty; the input has fewer than {counted(index, noun)}")

    return taken()


def shard_size(total: int, shard: str | None) -> int:
    """How many of so many records fall in a shard."""
    index, count = _shard(shard)
    return len(range(index - 1, total, count))


def _shard(shard: str | None) -> tuple[int, int]:
    if shard is None:
        return 1, 1
    try:
        index, count = map(int, shard.split("/"))
    except ValueError:
        raise InputError(f"--shard {shard!r}: give I/N, such as 1/8") from None
    if not 1 <= count <= sys.maxsize:
        raise InputError(f"--shard {shard}: the number of shards must be between 1 and {sys.maxsize:,}")
    if not 1 <= index <= count:
        raise InputError(f"--shard {shard}: the shard number must be between 1 and {count:,}")
    return index, count


def compute_records(
    engine: Engine,
    advance: Advance,
    *,
    stream: Callable[[list[Record], Engine], Iterator[R]],
    pack: Callable[[list[R]], Arrays],
) -> Callable[[list[Record]], Arrays]:
    """What an engine runs on each chunk, from a function that computes one result for each record."""

    def compute(records: list[Record]) -> Arrays:
        results = []
        for result in stream(records, engine):
            results.append(result)
            advance(1)
        return pack(results)

    return compute


def cumulative(progress: Progress, start: int = 0) -> Progress:
    """A function to call with how many more records are done, for one that takes how many are done so far."""
    total = start

    def advance(more: int) -> None:
        nonlocal total
        total += more
        progress(total)

    return advance


class Job:
    """The computation of one output file.

    Args:
        output: The file.
        noun: What there is one of for each record, in messages; singular.
    """

    def __init__(self, output: Path, noun: str = "sequence") -> None:
        self.output, self.noun, target = output, noun, destination(output)
        self.folder = target.with_name(f".{target.name}.partial")
        self.count = 0
        """Number of records computed so far."""
        self._chunks = 0
        self._saved: set[int] = set()
        self._memory: dict[int, Arrays] = {}
        self._writing: Future[None] | None = None

    @contextmanager
    def run(
        self,
        engine: Engine | RayEngine,
        compute: Callable[[Engine, Advance], Callable[[list[Item]], Arrays]],
        chunks: Iterable[list[Item]],
        source: InputFile,
        options: Mapping[str, Any],
        **job: Unpack[JobOptions],
    ) -> Iterator[None]:
        """Compute all chunks, but for those that an interrupted run has saved; the `with` block writes the output.

        Args:
            engine: Computes the chunks.
            compute: What it runs. A `RayEngine` sends it to other processes, so it has to be picklable.
            chunks: Lists of records, or of other items.
            source: The input that they come from.
            options: What the results depend on besides input and engine, as JSON.
            job: See `JobOptions`.

        Raises:
            InputError: Another process runs the same job, an interrupted run is neither resumed nor restarted, had
                other settings, or its results are damaged, or the output cannot be written.
        """
        if job.get("resume") and job.get("restart"):
            raise InputError(f"{self.output}: --resume and --restart cannot be combined")
        if job.get("resume") and not source.rereadable:
            raise InputError(
                f"{source.path}: can be read only once, so a run on it cannot be resumed; save it to a file first"
            )
        settings = partial(self._settings, engine, source, options)
        with (
            self._output_errors(),
            name_source_in_errors(source.path),
            lock_folder(self.folder, self.output, temporary=True) as is_locked,
            ThreadPoolExecutor(1, thread_name_prefix="rinalmo-writer") as writer,
        ):
            self._find_saved(settings, is_locked, **job)
            if self.count:
                logger.info("%s: resuming, %s done", self.output, counted(self.count, self.noun))
            advance = cumulative(job.get("progress", lambda count: None), self.count)
            last_save, num_bytes = time.monotonic(), 0

            def unfinished() -> Iterator[tuple[int, list[Item]]]:
                for number, chunk in enumerate(chunks):
                    self._chunks = number + 1
                    if number not in self._saved:
                        yield number, chunk

            try:
                for number, arrays in engine.run(compute, unfinished(), advance):
                    self._memory[number] = arrays
                    self.count += len(arrays["lengths"])
                    num_bytes += sum(map(attrgetter("nbytes"), arrays.values()))
                    if time.monotonic() - last_save >= SAVE_SECONDS or num_bytes >= SAVE_BYTES:
                        self._wait()
                        # In another thread, while the next chunk is computed.
                        self._writing = writer.submit(self._save, self._memory, settings)
                        self._saved |= self._memory.keys()
                        self._memory, last_save, num_bytes = {}, time.monotonic(), 0
                self._wait()
                source.check_unchanged()
                yield
            except BaseException as error:
                if source.rereadable:
                    with suppress(OSError, InputError):
                        self._wait()
                        self._save(self._memory, settings)
                    if isinstance(error, KeyboardInterrupt) and self.count:
                        text = "%s: stopped, %s saved; continue with --resume"
                        logger.info(text, self.output, counted(self.count, self.noun))
                if not source.rereadable or not any(self.folder.glob("*.npz")):
                    self._remove()
                raise
            self._remove()

    def results(self, *names: str) -> Iterator[Arrays]:
        """The arrays of all chunks, in order, or those of these names; what is on the disk is read chunk by chunk."""
        for number in range(self._chunks):
            yield self._memory[number] if number in self._memory else self._read(number, names)

    def saved_count(self) -> int:
        """Number of records whose results an interrupted run has saved."""
        self._saved = {int(path.stem) for path in self.folder.glob("*.npz") if path.stem.isdecimal()}
        return sum(len(self._read(number, ("lengths",))["lengths"]) for number in self._saved)

    def _settings(self, engine: Engine | RayEngine, source: InputFile, options: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "version": __version__,
            "input": source.fingerprint() if source.rereadable else None,
            "model": engine.fingerprint,
            "precision": engine.precision,
            "device": engine.device.type,
            "batch_tokens": engine.batch_tokens,
            **options,
        }

    def _find_saved(self, settings: Callable[[], dict[str, Any]], is_locked: bool, **job: Unpack[JobOptions]) -> None:
        path = self.folder / _SETTINGS
        before = None
        if path.exists() and not job.get("restart"):
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                before = []
            if not isinstance(before, dict):
                raise self._damaged(path)
        if not before or before.get("input") is None:
            empty_folder(self.folder)
            return
        self.count = self.saved_count()
        if self.count and not job.get("resume"):
            kept = f"{counted(self.count, self.noun)} of an interrupted run {'is' if self.count == 1 else 'are'} saved"
            raise InputError(f"{self.output}: {kept}; continue it with --resume, or discard it with --restart")
        now = json.loads(json.dumps(settings()))
        if changed := sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key)):
            raise InputError(
                f"{self.output}: the interrupted run cannot be resumed: {', '.join(changed)} changed since it was "
                "started; repeat its settings to continue it, or use --restart to discard it"
            )
        if is_locked:
            keep = {path, *map(self._chunk_path, self._saved)}
            empty_folder(self.folder, keep.__contains__)

    def _save(self, chunks: dict[int, Arrays], settings: Callable[[], dict[str, Any]]) -> None:
        """Write chunks and, before the first, the settings; each file is complete or absent."""
        if chunks and not (self.folder / _SETTINGS).exists():
            with atomic_write(self.folder / _SETTINGS) as file:
                file.write(json.dumps(settings(), indent=2).encode())
        for number, arrays in chunks.items():
            with atomic_write(self._chunk_path(number)) as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for its own option

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _read(self, number: int, names: Iterable[str]) -> Arrays:
        path = self._chunk_path(number)
        try:
            with np.load(path, allow_pickle=False) as data:
                return {name: data[name] for name in names or data.files}
        except FileNotFoundError:  # possible only on a file system without locks
            raise InputError(
                f"{self.output}: another process deleted the saved results; run the command again"
            ) from None
        except (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
            raise self._damaged(path) from None

    def _chunk_path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"

    def _damaged(self, path: Path) -> InputError:
        return InputError(
            f"{self.output}: saved results of an interrupted run are damaged ({path}); use --restart to discard them"
        )

    def _remove(self) -> None:
        # The settings go first: without them, what a kill leaves behind is not taken for a run to continue.
        (self.folder / _SETTINGS).unlink(missing_ok=True)
        with suppress(OSError):
            empty_folder(self.folder)

    @contextmanager
    def _output_errors(self) -> Iterator[None]:
        """Report an OSError as one that names the output."""
        try:
            yield
        except RinalmoError:
            raise
        except OSError as error:
            raise InputError.from_os_error(error, self.output, "cannot be written") from None


@contextmanager
def record_job(
    output: Path,
    engine: Engine | RayEngine,
    source: InputFile,
    records: Iterable[Record],
    stream: Callable[[list[Record], Engine], Iterator[R]],
    pack: Callable[[list[R]], Arrays],
    options: Mapping[str, Any],
    *,
    noun: str = "sequence",
    power: int = 1,
    max_size: int = CHUNK_TOKENS,
    scale: int = 1,
    **job: Unpack[JobOptions],
) -> Iterator[Job]:
    """A finished job with one result for each record, computed by `stream` and made arrays by `pack`.

    Time and memory grow with this `power` of the length, which chunks sum up to `scale` times `max_size`.
    """
    whole, compute = Job(output, noun), partial(compute_records, stream=stream, pack=pack)
    chunks = chunked(records, lambda record: len(record.sequence) ** power, scale * max_size, scale * CHUNK_RECORDS)
    with whole.run(engine, compute, chunks, source, options, **job):
        yield whole

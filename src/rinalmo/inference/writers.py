"""Embeddings on disk, in the formats that other tools read.

    .npz       numpy: `ids`, `lengths`, `embeddings`; per nucleotide also `offsets` into the rows
    .parquet   one row per sequence: id, description, length, embedding (list of float, or list of lists)
    .h5        HDF5: the arrays of the npz as datasets
    .h5ad      AnnData for scanpy: X is the matrix, obs has id, description and length; pooled vectors only

Every format keeps the order of the input, and identical ids as they are. A file appears under its name once it is
complete; before that it is a hidden temporary file beside it.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.rna.fasta import Record

# A group of rows is written once it holds this many, or this many numbers.
_ROWS, _NUMBERS = 1024, 1 << 24


class Writer(Protocol):
    """Takes embeddings one by one; `finish` completes the file."""

    def write(self, record: Record, values: np.ndarray) -> None: ...
    def finish(self) -> None: ...
    def abandon(self) -> None: ...


class _Collected:
    """Keeps everything until the end; for formats that are written in one piece."""

    def __init__(self, path: Path, per_token: bool) -> None:
        self.path, self.per_token = path, per_token
        self.records: list[tuple[str, str]] = []
        self.lengths: list[int] = []
        self.values: list[np.ndarray] = []

    def write(self, record: Record, values: np.ndarray) -> None:
        self.records.append((record.id, record.description))
        self.lengths.append(len(record.sequence))
        self.values.append(values)

    def abandon(self) -> None:
        self.values.clear()

    def matrix(self) -> np.ndarray:
        return np.concatenate(self.values) if self.per_token else np.stack(self.values)

    def offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum([len(v) for v in self.values])]).astype(np.int64)


class NpzWriter(_Collected):
    """numpy's zip of arrays."""

    def finish(self) -> None:
        arrays: dict[str, Any] = {
            "ids": np.array([name for name, _ in self.records]),
            "descriptions": np.array([text for _, text in self.records]),
            "lengths": np.array(self.lengths, dtype=np.int64),
            "embeddings": self.matrix(),
        }
        if self.per_token:
            arrays["offsets"] = self.offsets()
        with self.path.open("wb") as file:
            np.savez(file, **arrays)


class H5adWriter(_Collected):
    """AnnData: cells are sequences, variables are the embedding's dimensions."""

    def __init__(self, path: Path, per_token: bool) -> None:
        if per_token:
            raise InputError(
                "h5ad holds one vector per sequence; write per-nucleotide embeddings to npz, parquet or h5"
            )
        self.anndata = _extra("anndata", "h5ad", "writing h5ad")
        super().__init__(path, per_token)

    def write(self, record: Record, values: np.ndarray) -> None:
        if values.ndim > 1:
            raise InputError("h5ad holds one layer; write several layers to npz, parquet or h5")
        super().write(record, values)

    def finish(self) -> None:
        import pandas as pd

        names = [name for name, _ in self.records]
        obs = pd.DataFrame(
            {"id": names, "description": [text for _, text in self.records], "length": self.lengths},
            index=pd.Index(_unique(names), dtype="object"),
        )
        matrix = self.matrix()
        var = pd.DataFrame(index=pd.Index([f"dim_{n}" for n in range(matrix.shape[1])], dtype="object"))
        with _hdf5(self.path) as (file, _):
            self.anndata.io.write_elem(file, "/", self.anndata.AnnData(X=matrix, obs=obs, var=var))


class _Grouped:
    """Collects rows and writes them group by group."""

    def __init__(self, per_token: bool) -> None:
        self.per_token = per_token
        self.rows: list[tuple[Record, np.ndarray]] = []
        self.numbers = 0

    def write(self, record: Record, values: np.ndarray) -> None:
        self.rows.append((record, values))
        self.numbers += values.size
        if len(self.rows) >= _ROWS or self.numbers >= _NUMBERS:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            self.write_group()
        self.rows.clear()
        self.numbers = 0

    def write_group(self) -> None:
        raise AssertionError("each format writes its own groups")


class ParquetWriter(_Grouped):
    """Row groups, written as they fill."""

    def __init__(self, path: Path, per_token: bool) -> None:
        super().__init__(per_token)
        self.path = path
        self.file: Any = None

    def finish(self) -> None:
        self.flush()
        self.abandon()

    def abandon(self) -> None:
        if self.file is not None:
            self.file.close()

    def write_group(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(
            {
                "id": [record.id for record, _ in self.rows],
                "description": [record.description for record, _ in self.rows],
                "length": pa.array([len(record.sequence) for record, _ in self.rows], pa.int64()),
                "embedding": _nested([values for _, values in self.rows], self.per_token),
            }
        )
        self.file = self.file or pq.ParquetWriter(self.path, table.schema)
        self.file.write_table(table)


class H5Writer(_Grouped):
    """Datasets that grow."""

    def __init__(self, path: Path, per_token: bool) -> None:
        super().__init__(per_token)
        self.text = _extra("h5py", "h5", "writing HDF5").string_dtype()
        self.stack = contextlib.ExitStack()
        self.file, self.raw = self.stack.enter_context(_hdf5(path))

    def finish(self) -> None:
        self.flush()
        self.stack.close()

    def abandon(self) -> None:
        self.stack.close()

    def write_group(self) -> None:
        values = [v for _, v in self.rows]
        self._append("ids", np.array([record.id for record, _ in self.rows], dtype=object), self.text)
        self._append("descriptions", np.array([r.description for r, _ in self.rows], dtype=object), self.text)
        self._append("lengths", np.array([len(record.sequence) for record, _ in self.rows], dtype=np.int64))
        if self.per_token:
            start = int(self.file["offsets"][-1]) if "offsets" in self.file else 0
            ends = start + np.cumsum([len(v) for v in values])
            self._append("offsets", ends if "offsets" in self.file else np.concatenate([[0], ends]))
        self._append("embeddings", np.concatenate(values) if self.per_token else np.stack(values))
        self.file.flush()
        if self.raw.fault is not None:
            raise self.raw.fault

    def _append(self, name: str, values: np.ndarray, dtype: Any = None) -> None:
        if name not in self.file:
            shape = (None, *values.shape[1:])
            self.file.create_dataset(name, data=values, maxshape=shape, dtype=dtype, chunks=True)
            return
        dataset = self.file[name]
        dataset.resize(len(dataset) + len(values), axis=0)
        dataset[-len(values) :] = values


_WRITERS: dict[str, type[Any]] = {
    ".npz": NpzWriter,
    ".parquet": ParquetWriter,
    ".h5": H5Writer,
    ".hdf5": H5Writer,
    ".h5ad": H5adWriter,
}


class OpenWriter:
    """A writer for `path`, by its ending, as a context manager; the file appears when the block ends well."""

    def __init__(self, path: Path, *, per_token: bool = False) -> None:
        if path.suffix not in _WRITERS:
            raise InputError(f"{path}: cannot write {path.suffix or 'a file without ending'!r}; use {_endings()}")
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give the name of a file")
        if not path.parent.is_dir():
            raise InputError(f"{path.parent}: no such folder; make it first")
        self.path = path
        self.partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        self.per_token = per_token

    def __enter__(self) -> Writer:
        try:
            self.writer: Writer = _WRITERS[self.path.suffix](self.partial, self.per_token)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({_reason(error)})") from None
        return self.writer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with _clear_errors(self.path):
                    self.writer.finish()
                    _sync(self.partial)
                    self.partial.replace(self.path)
            else:
                with contextlib.suppress(Exception):
                    self.writer.abandon()
        finally:
            self.partial.unlink(missing_ok=True)


class _FaultKeeper(io.FileIO):
    """A file that keeps its first fault for later and seems to go on.

    The HDF5 library cannot let go of a file that refuses a write: it tries again whenever an object is freed, and
    prints each failure.
    """

    fault: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = 0
            while written < len(data) and self.fault is None:
                written += super().write(memoryview(data)[written:]) or 0
        except OSError as error:
            self.fault = error
        return len(data)


@contextlib.contextmanager
def _hdf5(path: Path) -> Iterator[tuple[Any, _FaultKeeper]]:
    """A new HDF5 file; a fault of the disk is kept in the second, and raised when the file is closed."""
    h5py = _extra("h5py", "h5", "writing HDF5")
    with _FaultKeeper(path, "w+") as raw:
        with h5py.File(raw, "w") as file:
            yield file, raw
        if raw.fault is not None:
            raise raw.fault


@contextlib.contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({_reason(error)})") from None


def _reason(error: OSError) -> str:
    return error.strerror or str(error).splitlines()[0]


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _endings() -> str:
    return ", ".join(_WRITERS)


def _extra(package: str, extra: str, purpose: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise MissingExtraError(package, extra, purpose) from None


def _nested(values: list[np.ndarray], per_token: bool) -> Any:
    """Arrays as an Arrow list column: fixed-size axes, but for the nucleotides of each sequence."""
    import pyarrow as pa

    inner = pa.array(np.concatenate([v.reshape(-1) for v in values]))
    for size in reversed(values[0].shape[1 if per_token else 0 :]):
        inner = pa.FixedSizeListArray.from_arrays(inner, size)
    if not per_token:
        return inner
    offsets = np.concatenate([[0], np.cumsum([len(v) for v in values])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), inner)


def _unique(names: list[str]) -> list[str]:
    """Names with -1, -2, … added to repeats: an AnnData index must be unique."""
    seen: dict[str, int] = {}
    taken = set(names)
    result = []
    for name in names:
        candidate = name
        while seen.get(candidate) is not None or (candidate != name and candidate in taken):
            seen[name] = seen.get(name, 0) + 1
            candidate = f"{name}-{seen[name]}"
        seen.setdefault(candidate, 0)
        result.append(candidate)
    return result

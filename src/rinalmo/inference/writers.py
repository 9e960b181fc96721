"""Embeddings on disk, in the formats that other tools read.

    .npz       numpy: `ids`, `lengths`, `embeddings`; per nucleotide also `offsets` into the rows
    .parquet   one row per sequence: id, description, length, embedding (list of float, or list of lists)
    .h5        HDF5: the arrays of the npz as datasets, and `descriptions`
    .h5ad      AnnData for scanpy: X is the matrix, obs has id, description, length and the headers' fields

Every format keeps the order of the input, and identical ids as they are. Embeddings arrive in chunks and only one is
in memory at a time. A file appears under its name once it is complete.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.durable import check_path, replacing_path
from rinalmo.errors import InputError, MissingExtraError
from rinalmo.inference.header_fields import common_fields
from rinalmo.inference.runs import Chunk

Chunks = Callable[[], Iterator[Chunk]]
About = Mapping[str, Any]


def check_output(path: Path, *, per_token: bool = False, num_layers: int = 1) -> None:
    """Raise InputError or MissingExtraError now for what could not be written in the end."""
    check_path(path, _WRITERS)
    if path.suffix == ".h5ad" and (per_token or num_layers > 1):
        raise InputError(f"{path}: h5ad holds one vector per sequence; use .npz, .parquet or .h5 for more")
    if path.suffix in (".h5", ".hdf5"):
        extra("h5py", "h5", "writing HDF5")
    if path.suffix == ".h5ad":
        extra("anndata", "h5ad", "writing h5ad")


def write_embeddings(
    path: Path, chunks: Chunks, scratch: Path, *, per_token: bool = False, about: About | None = None
) -> None:
    """Write all chunks to `path`, in the format of its ending. `chunks` may be called more than once.

    The file grows in the folder `scratch`, on the same disk, and is moved to its name when it is complete. `about` is
    what .h5ad says of the model, under `uns`.
    """
    with replacing_path(path, scratch) as partial:
        _WRITERS[path.suffix](partial, chunks, per_token, about or {})


def _npz(path: Path, chunks: Chunks, per_token: bool, about: About) -> None:
    index = _Index(chunks)
    arrays = {
        "ids": np.array(index.ids),
        "lengths": index.lengths,
    }
    if per_token:
        arrays["offsets"] = index.offsets
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open("embeddings.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": index.shape(per_token)}
            np.lib.format.write_array_header_2_0(file, header)
            for chunk in chunks():
                file.write(np.ascontiguousarray(chunk.values, dtype="<f4").tobytes())


def _parquet(path: Path, chunks: Chunks, per_token: bool, about: About) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        file: Any = None
        for chunk in chunks():
            columns = {
                "id": pa.array(chunk.ids, pa.string()),
                "description": pa.array(chunk.descriptions, pa.string()),
                "length": pa.array(chunk.lengths),
                "embedding": _nested(chunk, per_token),
            }
            table = pa.table(columns)
            file = file or stack.enter_context(pq.ParquetWriter(path, table.schema))
            file.write_table(table)


def _nested(chunk: Chunk, per_token: bool) -> Any:
    """The values as an Arrow list column: fixed-size axes, but for the nucleotides of each sequence."""
    import pyarrow as pa

    inner = pa.array(chunk.values.reshape(-1))
    for size in reversed(chunk.values.shape[1:]):
        inner = pa.FixedSizeListArray.from_arrays(inner, size)
    if not per_token:
        return inner
    offsets = np.concatenate([[0], np.cumsum(chunk.lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), inner)


def _h5(path: Path, chunks: Chunks, per_token: bool, about: About) -> None:
    index = _Index(chunks)
    text = extra("h5py", "h5", "writing HDF5").string_dtype()
    with _hdf5(path) as file:
        file.create_dataset("ids", data=np.array(index.ids, dtype=object), dtype=text)
        file.create_dataset("descriptions", data=np.array(index.descriptions, dtype=object), dtype=text)
        file.create_dataset("lengths", data=index.lengths)
        if per_token:
            file.create_dataset("offsets", data=index.offsets)
        _fill(file, "embeddings", index.shape(per_token), chunks)


def _h5ad(path: Path, chunks: Chunks, per_token: bool, about: About) -> None:
    import pandas as pd

    anndata = extra("anndata", "h5ad", "writing h5ad")
    index = _Index(chunks)
    shape = index.shape(per_token)
    fields = common_fields(index.ids, index.descriptions)
    fields.pop("_index", None)  # anndata's own name, which it refuses
    obs = pd.DataFrame(
        {
            "id": index.ids,
            "description": index.descriptions,
            "length": index.lengths,
            **{name: pd.Categorical([value or None for value in values]) for name, values in fields.items()},
        },
        index=pd.Index(_unique(index.ids), dtype="object"),
    )
    var = pd.DataFrame(index=pd.Index([f"dim_{n}" for n in range(shape[1])], dtype="object"))
    with _hdf5(path) as file:
        anndata.io.write_elem(file, "/", anndata.AnnData(obs=obs, var=var, uns={"rinalmo": dict(about)}))
        if "X" in file:
            del file["X"]
        # The matrix is written chunk by chunk, marked as anndata marks a dense array.
        _fill(file, "X", shape, chunks).attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


_WRITERS: dict[str, Callable[[Path, Chunks, bool, About], None]] = {
    ".npz": _npz,
    ".parquet": _parquet,
    ".h5": _h5,
    ".hdf5": _h5,
    ".h5ad": _h5ad,
}


class _Index:
    """What is known of all sequences without their embeddings."""

    def __init__(self, chunks: Chunks) -> None:
        self.ids: list[str] = []
        self.descriptions: list[str] = []
        lengths: list[np.ndarray] = []
        self.inner: tuple[int, ...] = ()
        for chunk in chunks():
            self.ids += chunk.ids
            self.descriptions += chunk.descriptions
            lengths.append(chunk.lengths)
            self.inner = chunk.values.shape[1:]
        self.lengths = np.concatenate(lengths)

    @property
    def offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def shape(self, per_token: bool) -> tuple[int, ...]:
        return (int(self.lengths.sum()) if per_token else len(self.ids), *self.inner)


def _fill(file: Any, name: str, shape: tuple[int, ...], chunks: Chunks) -> Any:
    dataset = file.create_dataset(name, shape=shape, dtype="f4")
    start = 0
    for chunk in chunks():
        dataset[start : start + len(chunk.values)] = chunk.values
        start += len(chunk.values)
    return dataset


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

    def truncate(self, size: int | None = None) -> int:
        try:
            if self.fault is None:
                return super().truncate(size)
        except OSError as error:
            self.fault = error
        return self.tell() if size is None else size


@contextlib.contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    """A new HDF5 file; a fault of the disk is raised once, when the file is closed."""
    h5py = extra("h5py", "h5", "writing HDF5")
    with _FaultKeeper(path, "w+") as raw:
        with h5py.File(raw, "w") as file:
            yield file
        if raw.fault is not None:
            raise raw.fault


def extra(package: str, extra: str, purpose: str) -> Any:
    """The optional package, or MissingExtraError."""
    try:
        return import_module(package)
    except ImportError:
        raise MissingExtraError(package, extra, purpose) from None


def _unique(names: list[str]) -> list[str]:
    """Names with -1, -2, … added to repeats: an AnnData index must be unique."""
    taken, used = set(names), set[str]()
    result = []
    for name in names:
        candidate, number = name, 0
        while candidate in used or (number and candidate in taken):
            number += 1
            candidate = f"{name}-{number}"
        used.add(candidate)
        result.append(candidate)
    return result

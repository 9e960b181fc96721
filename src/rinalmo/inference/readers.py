"""Files of embeddings read back: one vector a sequence, from any format that `rinalmo.inference.writers` writes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.inference.writers import extra


@dataclass(frozen=True)
class Embeddings:
    """Embeddings `(sequences, hidden)` in fp32, and what the file says of each sequence.

    `descriptions` is None where the format has no place for them (.npz).
    """

    ids: list[str]
    descriptions: list[str] | None
    lengths: list[int]
    values: np.ndarray


def read_embeddings(path: str | Path) -> Embeddings:
    """Read a file that `rinalmo embed` has written with one vector a sequence.

    Raises InputError for another file, one vector a nucleotide or several layers, MissingExtraError where the format
    needs a package that is not there.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise InputError(f"{path}: holds no embeddings by its name; use {', '.join(_READERS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with _understood(path):
        found = _READERS[path.suffix](path)
    if found.values.ndim != 2 or len(found.values) != len(found.ids):
        raise InputError(f"{path}: holds more than one vector a sequence; embed without --per-token, with one layer")
    return found


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    try:
        yield
    except (InputError, MissingExtraError):
        raise
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as embeddings ({reason})") from None


def _npz(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as file:
        return Embeddings(file["ids"].tolist(), None, file["lengths"].tolist(), file["embeddings"])


def _parquet(path: Path) -> Embeddings:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    column = table["embedding"].combine_chunks()
    if not (pa.types.is_fixed_size_list(column.type) and pa.types.is_floating(column.type.value_type)):
        return Embeddings([], [], [], np.zeros(0))  # one vector a nucleotide, or several layers
    values = column.flatten().to_numpy().reshape(len(table), -1)
    ids, descriptions, lengths = (table[name].to_pylist() for name in ("id", "description", "length"))
    return Embeddings(ids, descriptions, lengths, values)


def _h5(path: Path) -> Embeddings:
    # Reading needs no lock, which some file systems do not have.
    with extra("h5py", "h5", "reading HDF5").File(path, "r", locking=False) as file:
        ids, descriptions = (file[name].asstr()[:].tolist() for name in ("ids", "descriptions"))
        return Embeddings(ids, descriptions, file["lengths"][:].tolist(), file["embeddings"][:])


def _h5ad(path: Path) -> Embeddings:
    data: Any = extra("anndata", "h5ad", "reading h5ad").read_h5ad(path)
    ids, descriptions = (data.obs[name].astype(str).tolist() for name in ("id", "description"))
    return Embeddings(ids, descriptions, data.obs["length"].tolist(), np.asarray(data.X))


_READERS: dict[str, Callable[[Path], Embeddings]] = {
    ".npz": _npz,
    ".parquet": _parquet,
    ".h5": _h5,
    ".hdf5": _h5,
    ".h5ad": _h5ad,
}

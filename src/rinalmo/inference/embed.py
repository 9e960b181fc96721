"""What is known of sequences beside their letters: from their header lines, or from a table.

length, id, description        of the record itself
type, family, taxon            as the databases write them (`rinalmo.rna.headers`)
KEY                            of `KEY=value` or `KEY:value` in the header
TABLE:COLUMN                   a column of a CSV or TSV file, whose column `id` (or its first) holds the ids
"""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from operator import index
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rinalmo import __version__
from rinalmo.engine.devices import DeviceLike
from rinalmo.engine.engine import Advance, Engine, as_engine, to_host
from rinalmo.engine.inputs import Sequences, as_records, encode, peeked, read_from, read_sequences
from rinalmo.engine.jobs import Chunk, Job, adding, chunked, input_sum, shard
from rinalmo.engine.ray import RayEngine
from rinalmo.errors import InputError, MissingExtraError
from rinalmo.io.fasta import Record
from rinalmo.io.files import check_path, replacing_path
from rinalmo.io.tables import open_table, table_format
from rinalmo.model.heads import first_tokens
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.plots.embedding_map import Method, check_embedding_map, draw_embedding_map
from rinalmo.rna.headers import read_header

OWN = ("length", "id", "description")
_NAMED = ("type", "family", "taxon")
_KEY = re.compile(r"""(?:^|[\s;|])([A-Za-z_][\w.-]*)[=:]("[^"]*"|[^\s;|]+)""")


def values_of(field: str, ids: Sequence[str], descriptions: Sequence[str], lengths: Sequence[int]) -> list[str]:
    """The field's value for each sequence, "" where it is not known; raises InputError if none has it."""
    if field == "length":
        return [str(length) for length in lengths]
    if field in OWN:
        return list(ids if field == "id" else descriptions)
    if (table := table_of(field)) is not None:
        known = read_column(*table)
        values = [known.get(id, "") for id in ids]
        if not any(values):
            raise InputError(f"{table[0]}: names none of the {len(ids):,} sequences, such as {ids[0]!r}")
        return values
    fields = _fields(ids, descriptions)
    values = [of.get(field, "") for of in fields]
    if not any(values):
        there = sorted({name for of in fields for name in of} - {*OWN})
        raise InputError(f"no header says {field!r}; there are {', '.join([*OWN, *there[:20]])}, and TABLE:COLUMN")
    return values


def common_fields(ids: Sequence[str], descriptions: Sequence[str]) -> dict[str, list[str]]:
    """The fields of headers that at least half of the sequences have, by name, "" where one has it not."""
    fields = _fields(ids, descriptions)
    counts = Counter(name for of in fields for name in of)
    names = sorted(name for name, count in counts.items() if 2 * count >= len(ids) and name not in OWN)
    return {name: [of.get(name, "") for of in fields] for name in names}


def table_of(field: str) -> tuple[Path, str] | None:
    """File and column, if the field is `TABLE:COLUMN`."""
    file, colon, column = field.rpartition(":")
    return (Path(file), column) if colon and table_format(file) else None


def read_column(path: Path, column: str) -> dict[str, str]:
    """A column of a table by id. Raises InputError if it is missing."""
    table = open_table(path)
    table.require(column)
    key = "id" if "id" in table.columns else table.columns[0]
    return {str(row[key]): "" if row[column] is None else str(row[column]) for _, row in table.rows}


def _fields(ids: Sequence[str], descriptions: Sequence[str]) -> list[dict[str, str]]:
    return [_of(id, text) for id, text in zip(ids, descriptions, strict=True)]


def _of(id: str, description: str) -> dict[str, str]:
    header = read_header(id, description)
    named = {name: value for name in _NAMED if (value := getattr(header, name))}
    written = {key: value.strip('"') for key, value in _KEY.findall(description)}
    return {**named, **written}


Pooling = Literal["mean", "cls", "none"]


def embed(
    sequences: Sequences,
    model: str | Path | RiNALMo | Engine = "nano",
    *,
    pooling: Pooling = "mean",
    layers: Sequence[int] = (-1,),
    device: DeviceLike = None,
) -> np.ndarray | list[np.ndarray]:
    """Embeddings of one or more sequences, FASTA records, rows, or the `Path` of a FASTA file or table, in fp32.

    Rows are mappings with a column `sequence`, as those of a `datasets.Dataset` or a DataFrame.

    model     a name, folder, file or loaded model, computed in fp32; an `Engine` for any other way
    pooling   "mean" over the nucleotides (CLS and EOS left out), "cls", or "none": one vector per nucleotide
    layers    0 is the embedding, n the output of block n, -1 the last, after the final layer norm
    device    "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"; None: where a loaded model is

    Returns `(sequences, hidden)`, or with several layers `(sequences, layers, hidden)`; with pooling "none" a list of
    `(length, [layers,] hidden)`. The result for a sequence does not depend on the others.
    """
    engine = as_engine(model, device)
    with read_from(sequences):
        records = peeked(as_records(sequences))
        found = [values for _, values in embed_records(records, engine, pooling=pooling, layers=layers)]
    return found if pooling == "none" else np.stack(found)


def embed_records(
    records: Iterable[Record], engine: Engine, *, pooling: Pooling = "mean", layers: Sequence[int] = (-1,)
) -> Iterator[tuple[Record, np.ndarray]]:
    """As `embed`, record by record, for streams of any length."""
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling {pooling!r} is unknown; use one of {', '.join(get_args(Pooling))}")
    chosen = layer_indices(layers, engine.config.num_hidden_layers)
    waiting: deque[Record] = deque()

    def ids() -> Iterator[np.ndarray]:
        for record in records:
            waiting.append(record)
            yield encode(record, engine.alphabet)

    def compute(packed: Tensor, layout: Layout) -> Sequence[np.ndarray]:
        states = engine.hidden_states(packed, layout, chosen)
        # One layer gives no layer axis, so that the common case is a plain matrix.
        stacked = torch.stack(states, dim=1) if len(states) > 1 else states[0]
        # One transfer for the whole batch; on a GPU each one waits for the device.
        if pooling != "none":
            pooled = mean_of_nucleotides(stacked, layout) if pooling == "mean" else first_tokens(stacked, layout)
            return list(to_host(pooled)[0].numpy())
        inner = [part[1:-1] for part in layout.split(stacked)]
        together = to_host(torch.cat(inner))[0].numpy()
        return np.split(together, np.cumsum([len(part) for part in inner])[:-1])

    for values in engine.map(compute, ids()):
        yield waiting.popleft(), values


def layer_indices(layers: Sequence[int], num_blocks: int) -> list[int]:
    """Layers counted from 0 (the embedding) to `num_blocks`; negative ones count from the end."""
    try:
        chosen = [index(layer) for layer in layers]
    except TypeError:
        raise InputError(f"layers is {layers!r}; give a list of whole numbers, such as [-1] or [0, 3]") from None
    if not chosen:
        raise InputError("no layers given")
    for layer in chosen:
        if not -num_blocks - 1 <= layer <= num_blocks:
            raise InputError(f"there is no layer {layer}; this model has 0 (the embedding) to {num_blocks}")
    return [layer % (num_blocks + 1) for layer in chosen]


def mean_of_nucleotides(states: Tensor, layout: Layout) -> Tensor:
    """The mean of each sequence's states without CLS and EOS.

    Args:
        states: `(tokens, …)`, packed.
        layout: Where each sequence lies. Sequences of equal length side by side are one operation.

    Returns:
        `(sequences, …)`.
    """
    blocks = [states[g.start : g.stop].unflatten(0, (g.count, g.length)) for g in layout.groups]
    return torch.cat([block[:, 1:-1].mean(dim=1) for block in blocks])


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


def _read_npz(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as file:
        return Embeddings(file["ids"].tolist(), None, file["lengths"].tolist(), file["embeddings"])


def _read_parquet(path: Path) -> Embeddings:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    column = table["embedding"].combine_chunks()
    if not (pa.types.is_fixed_size_list(column.type) and pa.types.is_floating(column.type.value_type)):
        return Embeddings([], [], [], np.zeros(0))  # one vector a nucleotide, or several layers
    values = column.flatten().to_numpy().reshape(len(table), -1)
    ids, descriptions, lengths = (table[name].to_pylist() for name in ("id", "description", "length"))
    return Embeddings(ids, descriptions, lengths, values)


def _read_h5(path: Path) -> Embeddings:
    # Reading needs no lock, which some file systems do not have.
    with extra("h5py", "h5", "reading HDF5").File(path, "r", locking=False) as file:
        ids, descriptions = (file[name].asstr()[:].tolist() for name in ("ids", "descriptions"))
        return Embeddings(ids, descriptions, file["lengths"][:].tolist(), file["embeddings"][:])


def _read_h5ad(path: Path) -> Embeddings:
    data: Any = extra("anndata", "h5ad", "reading h5ad").read_h5ad(path)
    ids, descriptions = (data.obs[name].astype(str).tolist() for name in ("id", "description"))
    return Embeddings(ids, descriptions, data.obs["length"].tolist(), np.asarray(data.X))


_READERS: dict[str, Callable[[Path], Embeddings]] = {
    ".npz": _read_npz,
    ".parquet": _read_parquet,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
    ".h5ad": _read_h5ad,
}


@dataclass(frozen=True)
class MapPlot:
    """A picture to draw; `colour_by` is a field of `rinalmo.inference.embed`."""

    path: Path
    method: Method = "pca"
    colour_by: str | None = None

    def check(self, source: Path) -> None:
        """Raise InputError or MissingExtraError now for what could not be drawn of the embeddings in `source`."""
        check_embedding_map(self.path, self.method)
        if self.colour_by is None:
            return
        if (table := table_of(self.colour_by)) is not None:
            read_column(*table)
        elif source.suffix == ".npz" and self.colour_by not in OWN[:2]:
            raise InputError(
                f"{source}: .npz keeps no headers to colour by {self.colour_by!r}; write .parquet or .h5, "
                "or colour by TABLE:COLUMN"
            )

    def draw(self, source: Path) -> None:
        """Draw the embeddings of a file."""
        found = read_embeddings(source)
        labels = None
        if self.colour_by is not None:
            descriptions = found.descriptions or [""] * len(found.ids)
            labels = values_of(self.colour_by, found.ids, descriptions, found.lengths)
        table = table_of(self.colour_by) if self.colour_by else None
        name = table[1] if table else (self.colour_by or "")
        title = f"{source.name}, {len(found.ids):,} sequences"
        draw_embedding_map(found.values, self.path, labels, method=self.method, label_name=name, title=title)


def embed_file(
    fasta: str | Path,
    output: str | Path,
    engine: Engine | RayEngine,
    *,
    pooling: Pooling = "mean",
    layers: Sequence[int] = (-1,),
    resume: bool = False,
    restart: bool = False,
    part: str | None = None,
    tell: Callable[[int], Any] = lambda count: None,
    model_name: str | None = None,
) -> int:
    """Embed every sequence of `fasta` ("-" is standard input) and write `output`; returns their number.

    The ending of `output` chooses the format (`rinalmo.inference.embed`). `part` "i/n" takes every n-th sequence from
    the i-th on; no result depends on it. `tell` is called with the number of sequences done so far.
    `model_name` is what an .h5ad file calls the model.

    An interrupted run keeps what it has finished in a hidden folder beside the output. The same call continues it, and
    the result is the same to the byte; `resume` refuses an input that can be read only once, and `restart` discards
    what is kept. Raises InputError if input or options are not those that the interrupted run was started with.
    """
    output = Path(output)
    per_token = pooling == "none"
    layers = layer_indices(layers, engine.spec.config.num_hidden_layers)
    check_output(output, per_token=per_token, num_layers=len(layers))
    records = shard(read_sequences(fasta), part)
    settings = {
        "input": input_sum(fasta, resume=resume),
        "model": engine.fingerprint,
        "precision": engine.precision,
        "device": engine.device.type,
        "batch_tokens": engine.batch_tokens,
        "pooling": pooling,
        "layers": list(layers),
        "shard": part,
    }
    run = Job(output)
    job = partial(_embedding, pooling=pooling, layers=layers)
    with read_from(Path(fasta)), run.opened(settings, resume=resume, restart=restart):
        # A GPU runs dry at the end of each chunk, so it gets larger ones; less so for single nucleotides: gigabytes.
        scale = 1 if engine.device.type == "cpu" else 4 if per_token else 16
        chunks = run.missing(chunked(records, lambda record: len(record.sequence), scale=scale))
        for number, chunk in engine.run(job, chunks, adding(tell, run.finished())):
            run.write(number, chunk)
        count = run.finished()
        if count == 0:
            raise InputError(f"{fasta}: no sequence falls in --shard {part}")
        about: dict[str, Any] = {"model": model_name or "", "fingerprint": engine.fingerprint}
        about |= {"precision": engine.precision, "pooling": pooling, "layer": layers[0], "rinalmo": __version__}
        write_embeddings(output, run.chunks, run.folder, per_token=per_token, about=about)
        run.remove()
    return count


def check_input(fasta: str | Path) -> None:
    """Raise InputError for a file that cannot be opened or does not start as FASTA or a table; nothing for a stream."""
    path = Path(fasta)
    if str(fasta) != "-" and (path.is_file() or not path.exists()):
        next(read_sequences(fasta), None)


def _embedding(
    engine: Engine, advance: Advance, *, pooling: Pooling, layers: Sequence[int]
) -> Callable[[list[Record]], Chunk]:
    def compute(records: list[Record]) -> Chunk:
        found = []
        for _, values in embed_records(records, engine, pooling=pooling, layers=layers):
            found.append(values)
            advance(1)
        return Chunk.of(records, found, per_token=pooling == "none")

    return compute

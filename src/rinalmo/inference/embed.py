"""Embeddings: computed, written and read as arrays and tables, and drawn as a map.

A map is coloured by a field of the sequences:

    length, id, description        of the record itself
    type, family, taxon            as the databases write them (`rinalmo.rna.headers`)
    KEY                            of `KEY=value` or `KEY:value` in the header
    TABLE:COLUMN                   a column of a table, whose column `id` (or its first) holds the ids
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import time
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Unpack, get_args

import numpy as np
import torch
from torch import Tensor

from rinalmo import __version__
from rinalmo.engine.devices import DeviceLike, peak_memory
from rinalmo.engine.engine import Engine, as_engine, map_encoded, to_host
from rinalmo.engine.jobs import SAVE_BYTES, Arrays, JobOptions, opened, record_job, take_shard
from rinalmo.engine.ray import EngineLike
from rinalmo.errors import InputError, MissingExtraError, import_extra
from rinalmo.io.files import atomic_write_path, check_path, counted, uncompressed_name
from rinalmo.io.sequences import (
    Record,
    SequenceFile,
    Sequences,
    as_records,
    check_positive_int,
    encode,
    name_source_in_errors,
    read_table_records,
    require_nonempty,
)
from rinalmo.io.tables import Row, check_rows_output, open_table, table_format, write_rows
from rinalmo.model.config import count_macs
from rinalmo.model.heads import first_tokens
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.plots.embedding_map import Method, check_embedding_map, draw_embedding_map
from rinalmo.rna.headers import read_header
from rinalmo.tasks.secondary_structure import MIN_WINDOW, Window, windows_of

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls", "none"]
DType = Literal["fp32", "fp16"]


def embed(
    sequences: Sequences,
    model: str | Path | RiNALMo | Engine = "nano",
    *,
    pooling: Pooling = "mean",
    layers: Sequence[int] = (-1,),
    window: int | None = None,
    device: DeviceLike = None,
) -> np.ndarray | list[np.ndarray]:
    """Embed sequences.

    Args:
        sequences: One or more sequences, FASTA records, rows with a column `sequence` (a `datasets.Dataset`, a
            DataFrame), or the `Path` of a FASTA file or table.
        model: A name, folder, file or loaded model, computed in fp32; an `Engine` for other precisions.
        pooling: "mean" over the nucleotides (without CLS and EOS), "cls", or "none": one vector per nucleotide.
        layers: 0 is the embedding, n the output of block n, -1 the last, after the final layer norm.
        window: Sequences longer than this are embedded in overlapping windows of this many nucleotides; each
            nucleotide's embedding comes from the window with the nearest center. None: as a whole, in time that grows
            with the square of the length.
        device: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"; None: where a loaded model is.

    Returns:
        `(sequences, hidden)` in fp32, or with several layers `(sequences, layers, hidden)`; with pooling "none" a list
        of `(length, [layers,] hidden)`. The result for a sequence does not depend on the others.

    Raises:
        InputError: No sequences, an unknown pooling or a layer that the model does not have.
        SequenceError: A sequence is empty or has a character that is not a nucleotide code.

    Examples:
        >>> import rinalmo
        >>> rinalmo.embed(["GGGAAAUCCC", "ACGU"]).shape
        (2, 320)
        >>> [vectors.shape for vectors in rinalmo.embed(["GGGAAAUCCC", "ACGU"], pooling="none")]
        [(10, 320), (4, 320)]
    """
    engine = as_engine(model, device)
    with name_source_in_errors(sequences):
        records = require_nonempty(as_records(sequences))
        embeddings = [
            values for _, values in embed_records(records, engine, pooling=pooling, layers=layers, window=window)
        ]
    return embeddings if pooling == "none" else np.stack(embeddings)


def embed_records(
    records: Iterable[Record],
    engine: Engine,
    *,
    pooling: Pooling = "mean",
    layers: Sequence[int] = (-1,),
    window: int | None = None,
) -> Iterator[tuple[Record, np.ndarray]]:
    """As `embed`, record by record, for streams of any length."""
    check_pooling(pooling, window)
    chosen = layer_indices(layers, engine.config.num_hidden_layers)

    def compute(ids: Tensor, layout: Layout) -> Sequence[np.ndarray]:
        states = engine.hidden_states(ids, layout, chosen)
        # One layer gives no layer axis, so that the common case is a plain matrix.
        stacked = torch.stack(states, dim=1) if len(states) > 1 else states[0]
        # One transfer for the whole batch; on a GPU each one waits for the device.
        if pooling == "cls" or (pooling == "mean" and window is None):
            pooled = mean_of_nucleotides(stacked, layout) if pooling == "mean" else first_tokens(stacked, layout)
            return list(to_host(pooled)[0].numpy())
        inner = [part[1:-1] for part in layout.split(stacked)]
        together = to_host(torch.cat(inner))[0].numpy()
        return np.split(together, np.cumsum([len(part) for part in inner])[:-1])

    if window is None:
        yield from map_encoded(engine, records, partial(encode, alphabet=engine.alphabet), compute)
        return

    def parts() -> Iterator[tuple[Record, Window]]:
        for record in records:
            yield from ((record, part) for part in windows_of(len(record.sequence), window))

    def encode_part(item: tuple[Record, Window]) -> np.ndarray:
        record, part = item
        return encode(replace(record, sequence=record.sequence[part.start : part.stop]), alphabet=engine.alphabet)

    rows: list[np.ndarray] = []
    for (record, part), states in map_encoded(engine, parts(), encode_part, compute):
        rows.append(part.own_rows(states))
        if part.stop == len(record.sequence):
            whole, rows = np.concatenate(rows), []
            yield record, whole.mean(axis=0) if pooling == "mean" else whole


def check_pooling(pooling: Pooling, window: int | None) -> None:
    """Raise InputError for an unknown pooling, or a window that cannot be used with it."""
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling {pooling!r} is unknown; use one of {', '.join(get_args(Pooling))}")
    if window is None:
        return
    check_positive_int("window", window)
    if window < MIN_WINDOW:
        raise InputError(f"window {window}: use at least {MIN_WINDOW} nucleotides")
    if pooling == "cls":
        raise InputError("with --window there is one CLS token per window; use the mean or one vector per nucleotide")


def layer_indices(layers: Sequence[int], num_blocks: int) -> list[int]:
    """Layers counted from 0 (the embedding) to `num_blocks`; negative ones count from the end."""
    try:
        chosen = list(map(index, layers))
    except TypeError:
        raise InputError(f"layers is {layers!r}; give a list of whole numbers, such as [-1] or [0, 3]") from None
    if not chosen:
        raise InputError("no layers given")
    for n, layer in enumerate(chosen):
        if not -num_blocks - 1 <= layer <= num_blocks:
            raise InputError(
                f"there is no layer {layer}; this model has layers 0 (the token embedding) to {num_blocks}"
            )
        chosen[n] = layer % (num_blocks + 1)
    return chosen


def mean_of_nucleotides(states: Tensor, layout: Layout) -> Tensor:
    """The mean of each sequence's packed states `(tokens, …)` without CLS and EOS: `(sequences, …)`."""
    means = []
    for group in layout.groups:  # adjacent sequences of equal length are one operation
        means.append(states[group.start : group.stop].unflatten(0, (group.count, group.length))[:, 1:-1].mean(dim=1))
    return torch.cat(means)


def embed_file(
    source: str | Path,
    output: str | Path,
    engine: EngineLike,
    *,
    pooling: Pooling = "mean",
    layers: Sequence[int] = (-1,),
    window: int | None = None,
    dtype: DType = "fp32",
    keep_columns: bool = False,
    shard: str | None = None,
    model_name: str = "",
    **job: Unpack[JobOptions],
) -> int:
    """Embed every sequence of a FASTA file or table into a file; see `rinalmo.engine.jobs` for interrupted runs.

    Args:
        source: The input; "-" is FASTA on standard input.
        output: .npz, .npy, .parquet, .h5, .h5ad, .csv or .tsv (also compressed).
        engine: An `Engine` or `RayEngine`, or a context manager that makes one once the options are known to be valid.
        pooling: See `embed`.
        layers: See `embed`.
        window: See `embed`.
        dtype: Of the numbers in the file; text always has six digits.
        keep_columns: Copy the other columns of a table, into .parquet, .h5ad, .csv or .tsv. A column with the name of
            one of ours becomes `NAME_given`.
        shard: "i/n" takes every n-th sequence, from the i-th on; no result depends on it.
        model_name: The name of the model in an .h5ad file.
        job: See `JobOptions`.

    Returns:
        The number of sequences.

    Raises:
        InputError: Input or options cannot be used, or differ from those of the interrupted run.
    """
    output, per_token = Path(output), pooling == "none"
    check_pooling(pooling, window)
    check_output(output, per_token=per_token, num_layers=len(layers))
    file = SequenceFile(source)
    if keep_columns:
        check_keeps_columns(file, source)
        if output.suffix in _FORMATS and output.suffix not in _WITH_COLUMNS:
            raise InputError(f"{output}: has no place for other columns; use {', '.join(_WITH_COLUMNS)}, .csv or .tsv")
    records = take_shard(file, shard)
    with opened(engine) as engine:
        chosen = layer_indices(layers, engine.spec.config.num_hidden_layers)
        stream = partial(embed_records, pooling=pooling, layers=chosen, window=window)
        pack = partial(pack_embeddings, per_token=per_token, dtype=dtype)
        options: dict[str, Any] = {"pooling": pooling, "layers": chosen, "shard": shard}
        options |= {"window": window} if window else {}
        options |= {"dtype": dtype} if dtype != "fp32" else {}
        # A GPU idles at the end of each chunk, so it gets larger ones; less so for single nucleotides: gigabytes.
        scale = 1 if engine.device.type == "cpu" else 4 if per_token else 16
        with record_job(output, engine, file, records, stream, pack, options, scale=scale, **job) as done:
            about: dict[str, Any] = {"model": model_name, "fingerprint": engine.fingerprint}
            about |= {"precision": engine.precision, "pooling": pooling, "layer": chosen[0], "rinalmo": __version__}
            columns = _other_columns(Path(source), shard) if keep_columns else {}
            write_embeddings(output, done.results, done.folder, per_token=per_token, about=about, columns=columns)
        logger.info("%s: %s, %s dimensions", output, counted(done.count, "sequence"), engine.spec.config.hidden_size)
    return done.count


Chunks = Callable[..., Iterator[Arrays]]
"""From names of arrays to an iterator over all chunks: `names` (JSON), `lengths` and `values`.

`values` has one row per record, or with per-nucleotide embeddings one row per nucleotide.
"""
About = Mapping[str, Any]
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Estimate:
    """What a run of `embed_file` would take.

    Attributes:
        sequences: Sequences of the input, or of its shard.
        nucleotides: Of all of them.
        longest: Nucleotides of the longest one.
        seconds: Expected time, without loading the model.
        sample: Sequences that were embedded to measure the speed.
        memory: Peak memory of this process so far, in bytes, and what the run would add; None where it is unknown.
        size: Of the output, in bytes.
    """

    sequences: int
    nucleotides: int
    longest: int
    seconds: float
    sample: int
    memory: int | None
    size: int


def estimate_embedding(
    source: str | Path,
    output: str | Path,
    engine: Engine,
    *,
    pooling: Pooling = "mean",
    layers: Sequence[int] = (-1,),
    window: int | None = None,
    dtype: DType = "fp32",
    shard: str | None = None,
) -> Estimate:
    """Read the whole input, embed a sample for some seconds, and estimate the run; arguments as for `embed_file`.

    The time is that of the sample times the ratio of their arithmetic, which grows with the square of the length.
    """
    check_pooling(pooling, window)
    check_output(Path(output), per_token=pooling == "none", num_layers=len(layers))
    draw, sample, lengths, names = random.Random(0), list[Record](), Counter[int](), 0
    for number, record in enumerate(take_shard(SequenceFile(source), shard)):
        lengths[len(record.sequence)] += 1
        names += len(record.id) + len(record.description)
        if len(sample) < _SAMPLE:
            sample.append(record)
        elif (place := draw.randrange(number + 1)) < _SAMPLE:  # reservoir sampling
            sample[place] = record
    draw.shuffle(sample)

    def cost(length: int) -> int:
        parts = windows_of(length, window or length)
        return sum(count_macs(engine.config, part.stop - part.start + 2) for part in parts)

    def embed_some(records: list[Record]) -> float:
        began = time.perf_counter()
        deque(embed_records(records, engine, pooling=pooling, layers=layers, window=window), maxlen=0)
        return time.perf_counter() - began

    embed_some(sample[:8])  # the first computation takes longer
    timed, seconds = sample[:8], embed_some(sample[:8])
    while len(timed) < len(sample) and seconds < _SAMPLE_SECONDS:
        timed = sample[: 2 * len(timed)]
        seconds = embed_some(timed)
    total, measured = sum(n * cost(length) for length, n in lengths.items()), sum(cost(len(r.sequence)) for r in timed)
    sequences, nucleotides = lengths.total(), sum(n * length for length, n in lengths.items())
    vectors = nucleotides if pooling == "none" else sequences
    width = _TEXT_BYTES if table_format(output) in _TEXT else _DTYPES[dtype].itemsize
    size = vectors * len(layers) * engine.config.hidden_size * width + names + 16 * sequences
    memory = peak_memory()
    return Estimate(
        sequences=sequences,
        nucleotides=nucleotides,
        longest=max(lengths),
        seconds=seconds * total / measured,
        sample=len(timed),
        memory=None if memory is None else memory + min(size, SAVE_BYTES),
        size=size,
    )


_SAMPLE, _SAMPLE_SECONDS = 1024, 3.0
_TEXT_BYTES = 11  # of a number with six digits, sign and comma
_DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}


def pack_embeddings(
    embeddings: Sequence[tuple[Record, np.ndarray]], *, per_token: bool = False, dtype: DType = "fp32"
) -> Arrays:
    """A chunk of records and the array of each."""
    records, values = [record for record, _ in embeddings], [array for _, array in embeddings]
    names = [(record.id, record.description) for record in records]
    stacked = np.concatenate(values) if per_token else np.stack(values)
    return {
        "names": np.array(json.dumps(names)),
        "lengths": np.array([len(record.sequence) for record in records], dtype=np.int64),
        "values": stacked.astype(_DTYPES[dtype], copy=False),
    }


def check_output(path: Path, *, per_token: bool = False, num_layers: int = 1) -> None:
    """Raise InputError or MissingExtraError now for what could not be written in the end."""
    if Path(uncompressed_name(path)).suffix[1:] in _TEXT:
        check_rows_output(path)
        if num_layers > 1:
            raise InputError(f"{path}: CSV and TSV hold one layer; use .npz, .parquet or .h5 for several")
        return
    check_path(path, (*_FORMATS, *(f".{text}" for text in _TEXT)))
    if path.suffix == ".npy" and per_token:
        raise InputError(
            f"{path}: .npy holds one vector per sequence; use .npz, .parquet or .h5 for one per nucleotide"
        )
    if path.suffix == ".h5ad" and (per_token or num_layers > 1):
        raise InputError(f"{path}: .h5ad holds one vector per sequence; use .npz, .parquet or .h5 for more")
    if path.suffix in (".h5", ".hdf5"):
        import_extra("h5py", "h5", "writing HDF5")
    if path.suffix == ".h5ad":
        import_extra("anndata", "h5ad", "writing h5ad")


def check_keeps_columns(file: SequenceFile, source: str | Path) -> None:
    """Raise InputError for input that has no other columns, or that cannot be read twice."""
    if not (file.is_table and file.rereadable):
        raise InputError(f"{source}: --keep-columns needs a table as input (.csv, .tsv, .jsonl, .parquet)")


def _other_columns(table: Path, shard: str | None) -> dict[str, list[Any]]:
    """The cells of a table by column, those with a name of ours as `NAME_given`."""
    rows = [cells for _, cells in take_shard(read_table_records(table), shard)]
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for row in rows for name in row if name != "id"):
        kept = f"{name}_given" if name in _OWN or re.fullmatch(r"dim_\d+", name) else name
        if kept in columns or (kept != name and any(kept in row for row in rows)):
            raise InputError(f"{table}: a column has the name of another one with _given; rename it")
        columns[kept] = [row.get(name) for row in rows]
    return columns


_OWN = ("description", "length", "embedding", "position")  # columns of our tables beside the id and dimensions


def write_embeddings(
    path: Path,
    chunks: Chunks,
    scratch: Path,
    *,
    per_token: bool = False,
    about: About | None = None,
    columns: Columns | None = None,
) -> None:
    """Write all chunks to `path`, in the format of its ending.

    The file grows in the folder `scratch`, on the same disk, and is moved to its name when it is complete. `about`
    describes the model in an .h5ad file, under `uns`. `columns` are written beside the embeddings.
    """
    if table_format(path) in _TEXT:
        write_rows(path, _text_rows(chunks, per_token, columns or {}))
        return
    content = _Content(chunks, per_token, about or {}, columns or {})
    with atomic_write_path(path, scratch) as unfinished:
        _FORMATS[path.suffix].write(unfinished, content)


_LONG_ID = 256  # letters


class _Content:
    """What is written: chunks, and from a first pass ids, descriptions, lengths and the shape of all embeddings."""

    def __init__(self, chunks: Chunks, per_token: bool, about: About, columns: Columns) -> None:
        self.chunks, self.per_token, self.about, self.columns = chunks, per_token, about, columns
        self.ids: list[str] = []
        self.descriptions: list[str] = []
        lengths: list[np.ndarray] = []
        for chunk in chunks("names", "lengths"):
            for name, description in json.loads(str(chunk["names"])):
                self.ids.append(name)
                self.descriptions.append(description)
            lengths.append(chunk["lengths"])
        self.lengths = np.concatenate(lengths)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        rows = int(self.offsets[-1]) if per_token else len(self.ids)
        first = next(chunks("values"))["values"]
        self.shape, self.dtype = (rows, *first.shape[1:]), first.dtype


def _write_npz(path: Path, content: _Content) -> None:
    arrays = {"lengths": content.lengths, **({"offsets": content.offsets} if content.per_token else {})}
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        _write_ids(archive, content.ids)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open("embeddings.npy", "w", force_zip64=True) as file:
            _write_array(file, content)


def _write_npy(path: Path, content: _Content) -> None:
    with path.open("wb") as file:
        _write_array(file, content)


def _write_array(file: IO[bytes], content: _Content) -> None:
    header = {"descr": content.dtype.str, "fortran_order": False, "shape": content.shape}
    np.lib.format.write_array_header_2_0(file, header)
    for chunk in content.chunks("values"):
        file.write(np.ascontiguousarray(chunk["values"]).tobytes())


def _text_rows(chunks: Chunks, per_token: bool, columns: Columns) -> Iterator[Row]:
    """One row per sequence, or per nucleotide with its position, counted from 1."""
    cells = zip(*columns.values(), strict=True)
    for chunk in chunks("names", "lengths", "values"):
        values = iter(chunk["values"].tolist())
        for (id, description), length in zip(json.loads(str(chunk["names"])), chunk["lengths"].tolist(), strict=True):
            kept = dict(zip(columns, next(cells, ()), strict=True))
            for position in range(1, length + 1) if per_token else (None,):
                about = {"id": id, "position": position} if per_token else {"id": id, "description": description}
                about |= kept if per_token else {"length": length, **kept}
                yield about | {f"dim_{n}": value for n, value in enumerate(next(values))}


def _write_ids(archive: zipfile.ZipFile, ids: list[str]) -> None:
    """Write an array of text, each of which takes the room of the longest; with a very long one it is compressed."""
    longest = max(1, *map(len, ids))
    member = zipfile.ZipInfo("ids.npy", (1980, 1, 1, 0, 0, 0))
    member.compress_type = zipfile.ZIP_DEFLATED if longest > _LONG_ID else zipfile.ZIP_STORED
    with archive.open(member, "w", force_zip64=True) as file:
        header = {"descr": f"<U{longest}", "fortran_order": False, "shape": (len(ids),)}
        np.lib.format.write_array_header_1_0(file, header)
        step = 1 + (1 << 22) // longest
        for start in range(0, len(ids), step):
            file.write(np.array(ids[start : start + step], dtype=f"<U{longest}").tobytes())


def _write_parquet(path: Path, content: _Content) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column_of(cells: Sequence[Any]) -> Any:
        try:
            return pa.array(cells)
        except pa.ArrowException:  # of several types
            return pa.array([None if cell is None else str(cell) for cell in cells])

    others, start = {name: column_of(cells) for name, cells in content.columns.items()}, 0
    with ExitStack() as stack:
        file: Any = None
        for chunk in content.chunks("names", "lengths", "values"):
            ids, descriptions = zip(*json.loads(str(chunk["names"])), strict=True)
            # Fixed-size axes, but for the nucleotides of each sequence.
            values = pa.array(chunk["values"].reshape(-1))
            for size in reversed(chunk["values"].shape[1:]):
                values = pa.FixedSizeListArray.from_arrays(values, size)
            if content.per_token:
                offsets = np.concatenate([[0], np.cumsum(chunk["lengths"])]).astype(np.int32)
                values = pa.ListArray.from_arrays(pa.array(offsets), values)
            own = {
                "id": pa.array(ids, pa.string()),
                "description": pa.array(descriptions, pa.string()),
                "length": pa.array(chunk["lengths"]),
            }
            kept = {name: cells.slice(start, len(ids)) for name, cells in others.items()}
            table, start = pa.table({**own, **kept, "embedding": values}), start + len(ids)
            file = file or stack.enter_context(pq.ParquetWriter(path, table.schema))
            file.write_table(table)


def _write_h5(path: Path, content: _Content) -> None:
    text = import_extra("h5py", "h5", "writing HDF5").string_dtype()
    with _new_hdf5(path, content) as file:
        file.create_dataset("ids", data=np.array(content.ids, dtype=object), dtype=text)
        file.create_dataset("descriptions", data=np.array(content.descriptions, dtype=object), dtype=text)
        file.create_dataset("lengths", data=content.lengths)
        if content.per_token:
            file.create_dataset("offsets", data=content.offsets)
        _write_matrix(file, "embeddings", content)


def _write_h5ad(path: Path, content: _Content) -> None:
    import pandas as pd

    anndata = import_extra("anndata", "h5ad", "writing h5ad")
    fields = common_fields(content.ids, content.descriptions)
    fields.pop("_index", None)  # reserved by anndata
    obs = pd.DataFrame(
        {
            "id": content.ids,
            "description": content.descriptions,
            "length": content.lengths,
            **{name: pd.Categorical([value or None for value in values]) for name, values in fields.items()},
            **{name: _obs_column(pd, cells) for name, cells in content.columns.items()},
        },
        index=pd.Index(_unique(content.ids), dtype="object"),
    )
    var = pd.DataFrame(index=pd.Index([f"dim_{n}" for n in range(content.shape[1])], dtype="object"))
    with _new_hdf5(path, content) as file:
        anndata.io.write_elem(file, "/", anndata.AnnData(obs=obs, var=var, uns={"rinalmo": dict(content.about)}))
        if "X" in file:
            del file["X"]
        # The matrix is written chunk by chunk, marked as anndata marks a dense array.
        dataset = _write_matrix(file, "X", content)
        dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def _obs_column(pandas: Any, cells: Sequence[Any]) -> Any:
    """Numbers as they are, where all are; anything else as categories, which is what anndata can write."""
    if all(isinstance(cell, int | float) for cell in cells):
        return list(cells)
    return pandas.Categorical([None if cell is None or cell == "" else str(cell) for cell in cells])


def _write_matrix(file: Any, name: str, content: _Content) -> Any:
    dataset = file.create_dataset(name, shape=content.shape, dtype=content.dtype)
    start = 0
    for chunk in content.chunks("values"):
        stop = start + len(chunk["values"])
        dataset[start:stop] = chunk["values"]
        start = stop
    return dataset


@contextmanager
def _new_hdf5(path: Path, content: _Content) -> Iterator[Any]:
    """A new HDF5 file, for which there is room on the disk.

    The HDF5 library cannot let go of a file that refuses a write: it retries until the process ends, and prints a
    traceback each time. So the room is allocated first, where the system can.
    """
    h5py = import_extra("h5py", "h5", "writing HDF5")
    texts = sum(map(len, content.ids)) + sum(map(len, content.descriptions))
    size = content.dtype.itemsize * math.prod(content.shape) + 8 * texts + 256 * len(content.ids)
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as room:
            os.posix_fallocate(room.fileno(), 0, size)
    with h5py.File(path, "w") as file:
        yield file


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
    """Embeddings `(sequences, hidden)` in fp32, with ids, descriptions and lengths of the sequences.

    `descriptions` is None where the format does not hold them (.npz).
    """

    ids: list[str]
    descriptions: list[str] | None
    lengths: list[int]
    values: np.ndarray


def read_embeddings(path: str | Path) -> Embeddings:
    """Read a file that `rinalmo embed` has written with one vector per sequence; a .npy file numbers its rows.

    Raises InputError for another file, one vector per nucleotide or several layers, MissingExtraError where the format
    needs a package that is not installed.
    """
    path = Path(path)
    if path.suffix not in _FORMATS and table_format(path) not in _TEXT:
        raise InputError(f"{path}: unknown extension for embeddings; use {', '.join(_FORMATS)}, .csv or .tsv")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        embeddings = _read_text(path) if table_format(path) in _TEXT else _FORMATS[path.suffix].read(path)
    except MissingExtraError:
        raise
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as embeddings ({reason})") from None
    if embeddings.values.ndim != 2 or len(embeddings.values) != len(embeddings.ids):
        raise InputError(f"{path}: has more than one vector per sequence; embed without --per-token and with one layer")
    return replace(embeddings, values=embeddings.values.astype(np.float32, copy=False))


def _read_npz(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as file:
        return Embeddings(file["ids"].tolist(), None, file["lengths"].tolist(), file["embeddings"])


def _read_npy(path: Path) -> Embeddings:
    values = np.load(path, allow_pickle=False)
    return Embeddings([str(number) for number in range(1, len(values) + 1)], None, [0] * len(values), values)


def _read_text(path: Path) -> Embeddings:
    table = open_table(path)
    table.require("id", "description", "length", "dim_0")
    dimensions = [column for column in table.columns if column.startswith("dim_")]
    rows = [row for _, row in table.rows]
    ids, descriptions, lengths = ([row[name] for row in rows] for name in ("id", "description", "length"))
    values = np.array([[float(row[name]) for name in dimensions] for row in rows], np.float32)
    return Embeddings(ids, descriptions, list(map(int, lengths)), values)


def _read_parquet(path: Path) -> Embeddings:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    column = table["embedding"].combine_chunks()
    if not (pa.types.is_fixed_size_list(column.type) and pa.types.is_floating(column.type.value_type)):
        return Embeddings([], [], [], np.zeros(0))  # one vector per nucleotide, or several layers
    values = column.flatten().to_numpy().reshape(len(table), -1)
    ids, descriptions, lengths = (table[name].to_pylist() for name in ("id", "description", "length"))
    return Embeddings(ids, descriptions, lengths, values)


def _read_h5(path: Path) -> Embeddings:
    # Reading needs no lock, which some file systems do not have.
    with import_extra("h5py", "h5", "reading HDF5").File(path, "r", locking=False) as file:
        ids, descriptions = (file[name].asstr()[:].tolist() for name in ("ids", "descriptions"))
        return Embeddings(ids, descriptions, file["lengths"][:].tolist(), file["embeddings"][:])


def _read_h5ad(path: Path) -> Embeddings:
    data: Any = import_extra("anndata", "h5ad", "reading h5ad").read_h5ad(path)
    ids, descriptions = (data.obs[name].astype(str).tolist() for name in ("id", "description"))
    return Embeddings(ids, descriptions, data.obs["length"].tolist(), np.asarray(data.X))


class _Format(NamedTuple):
    write: Callable[[Path, _Content], None]
    read: Callable[[Path], Embeddings]


_FORMATS = {
    ".npz": _Format(_write_npz, _read_npz),
    ".npy": _Format(_write_npy, _read_npy),
    ".parquet": _Format(_write_parquet, _read_parquet),
    ".h5": _Format(_write_h5, _read_h5),
    ".hdf5": _Format(_write_h5, _read_h5),
    ".h5ad": _Format(_write_h5ad, _read_h5ad),
}

_WITH_COLUMNS = (".parquet", ".h5ad")
_TEXT = ("csv", "tsv")  # one column for each dimension

_KEY = re.compile(r"""(?:^|[\s;|])([A-Za-z_][\w.-]*)[=:]("[^"]*"|[^\s;|]+)""")


def values_of(field: str, ids: Sequence[str], descriptions: Sequence[str], lengths: Sequence[int]) -> list[str]:
    """The field's value for each sequence, "" where it is not known; raises InputError if none has it."""
    own = {"length": [str(length) for length in lengths], "id": list(ids), "description": list(descriptions)}
    if field in own:
        return own[field]
    if (table := table_of(field)) is not None:
        known = read_column(*table)
        values = [known.get(id, "") for id in ids]
        if not any(values):
            raise InputError(f"{table[0]}: has none of the {len(ids):,} sequence ids, such as {ids[0]!r}")
        return values
    rows = _header_fields(ids, descriptions)
    values = [row.get(field, "") for row in rows]
    if not any(values):
        others = sorted({name for row in rows for name in row} - own.keys())
        raise InputError(f"no header has the field {field!r}; use {', '.join([*own, *others[:20]])} or TABLE:COLUMN")
    return values


def common_fields(ids: Sequence[str], descriptions: Sequence[str]) -> dict[str, list[str]]:
    """The header fields that at least half of the sequences have, by name; "" where a sequence lacks one."""
    rows = _header_fields(ids, descriptions)
    counts = Counter(name for row in rows for name in row if name not in ("length", "id", "description"))
    return {name: [row.get(name, "") for row in rows] for name in sorted(counts) if 2 * counts[name] >= len(ids)}


def _header_fields(ids: Sequence[str], descriptions: Sequence[str]) -> list[dict[str, str]]:
    rows = []
    for id, description in zip(ids, descriptions, strict=True):
        header = read_header(id, description)
        fields = {name: value for name in ("type", "family", "taxon") if (value := getattr(header, name))}
        rows.append(fields | {key: value.strip('"') for key, value in _KEY.findall(description)})
    return rows


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


@dataclass(frozen=True)
class MapPlot:
    """A map of embeddings to draw; `colour_by` is a field as above."""

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
        elif source.suffix == ".npz" and self.colour_by not in ("length", "id"):
            raise InputError(
                f"{source}: .npz stores no headers to color by {self.colour_by!r}; write .parquet or .h5, "
                "or use --color-by TABLE:COLUMN"
            )

    def draw(self, source: Path) -> None:
        """Draw the embeddings of a file."""
        embeddings = read_embeddings(source)
        labels, name = None, ""
        if self.colour_by is not None:
            descriptions = embeddings.descriptions or [""] * len(embeddings.ids)
            labels = values_of(self.colour_by, embeddings.ids, descriptions, embeddings.lengths)
            table = table_of(self.colour_by)
            name = table[1] if table else self.colour_by
        title = f"{source.name}, {len(embeddings.ids):,} sequences"
        draw_embedding_map(embeddings.values, self.path, labels, method=self.method, label_name=name, title=title)

"""Variants in, a table of scores out: the work of `rinalmo score`, resumable.

.csv, .tsv    the cells of each variant and its score, six decimals
.parquet      the same columns, the score in fp64
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from rinalmo.delimited import delimiter
from rinalmo.durable import check_path, replacing_path
from rinalmo.errors import InputError
from rinalmo.inference.engine import Advance, Engine
from rinalmo.inference.heat_map import check_plot, draw
from rinalmo.inference.mutations import Variant
from rinalmo.inference.nucleotides import Nucleotides
from rinalmo.inference.ray_engine import RayEngine
from rinalmo.inference.runs import Run, adding
from rinalmo.inference.variant_sources import SCORE, Source
from rinalmo.inference.variants import Method, as_map, blocks, score_block, score_variants

ENDINGS = (".csv", ".tsv", ".parquet")
_ROW_GROUP = 1 << 16

Scored = Iterable[tuple[Variant, float]]


def score_file(
    source: Source,
    output: str | Path,
    engine: Engine | RayEngine,
    *,
    method: Method = "masked-marginals",
    resume: bool = False,
    restart: bool = False,
    plot: Path | None = None,
    tell: Callable[[int], Any] = lambda count: None,
) -> int:
    """Score all variants of `source` and write `output`; returns their number. `tell` counts passes of the model,
    with a `RayEngine` finished variants.

    `plot` is a picture to draw as well, of all exchanges in one sequence. An interrupted run keeps what it has finished
    in a hidden folder beside the output. The same call continues it, and the result is the same to the byte; `restart`
    discards what is kept. Raises InputError if input or options are not those that the interrupted run was started
    with.
    """
    output = Path(output)
    count = check_output(source, method, output, plot)
    settings = {
        "input": source.fingerprint(),
        "model": engine.fingerprint,
        "precision": engine.precision,
        "device": engine.device.type,
        "batch_tokens": engine.batch_tokens,
        "method": method,
    }
    run = Run(output, "variants")
    with run.opened(settings, resume=resume, restart=restart):
        found = engine.run(partial(_scoring, method=method), run.missing(blocks(source.read(), method)), adding(tell))
        for number, arrays in found:
            run.save(number, **arrays)
        if source.fingerprint() != settings["input"]:
            raise InputError(f"{source.file}: was changed while it was scored; start anew with --restart")
        map_ = None if plot is None else _map(source, _scored(source, run))
        with replacing_path(output, run.folder) as unfinished:
            if output.suffix == ".parquet":
                _parquet(unfinished, source, _scored(source, run))
            else:
                _text(unfinished, source, _scored(source, run), delimiter(output))
        run.remove()
    if plot is not None and map_ is not None:
        _draw(source, map_, plot, method)
    return count


def check_output(source: Source, method: Method, output: Path | None, plot: Path | None) -> int:
    """The number of variants. Raises now for what could not be read, scored or written in the end."""
    if output is not None:
        check_path(output, ENDINGS)
    if plot is not None:
        check_plot(plot, [len(record.sequence) for record in source.wild_types])
    return source.checked(method)


def print_scores(
    source: Source,
    file: IO[str],
    engine: Engine,
    *,
    method: Method = "masked-marginals",
    plot: Path | None = None,
    tell: Callable[[int], Any] = lambda count: None,
) -> int:
    """As `score_file`, but row by row as CSV to an open text file, such as standard output."""
    count = check_output(source, method, None, plot)
    scored = zip(source.read(), score_variants(source.read(), Nucleotides(engine, tell), method), strict=True)
    if plot is None:
        _write_rows(file, source, scored, ",")
    else:
        kept = list(scored)
        _write_rows(file, source, kept, ",")
        _draw(source, _map(source, kept), plot, method)
    return count


def _scoring(engine: Engine, advance: Advance, *, method: Method) -> Callable[[list[Variant]], dict[str, np.ndarray]]:
    model = Nucleotides(engine, lambda count: advance(1))

    def compute(block: list[Variant]) -> dict[str, np.ndarray]:
        lengths = np.array([len(variant.wild_type) for variant in block])
        return {"lengths": lengths, "scores": np.array(score_block(block, model, method))}

    return compute


def _scored(source: Source, run: Run) -> Iterator[tuple[Variant, float]]:
    values = chain.from_iterable(arrays["scores"].tolist() for arrays in run.saved("scores"))
    return zip(source.read(), values, strict=True)


def _map(source: Source, scored: Scored) -> np.ndarray:
    (record,) = source.wild_types
    return as_map(record.sequence, scored)


def _draw(source: Source, scores: np.ndarray, plot: Path, method: Method) -> None:
    (record,) = source.wild_types
    draw(scores, record.sequence, f"{record.id}, {method}", plot)


def _text(path: Path, source: Source, scored: Scored, separator: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        _write_rows(file, source, scored, separator)


def _write_rows(file: IO[str], source: Source, scored: Scored, separator: str) -> None:
    writer = csv.writer(file, delimiter=separator, lineterminator="\n")
    writer.writerow([*source.columns, SCORE])
    # Adding 0 turns -0.0 into 0.0.
    writer.writerows([*variant.cells, f"{round(score, 6) + 0.0:.6f}"] for variant, score in scored)


def _parquet(path: Path, source: Source, scored: Scored) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), int: pa.int64()}
    fields = [*((name, types[kind]) for name, kind in source.columns.items()), (SCORE, pa.float64())]
    schema = pa.schema(fields)
    with pq.ParquetWriter(path, schema) as file:
        for group in _grouped(scored):
            arrays = [pa.array(cells, field.type) for cells, field in zip(group, schema, strict=True)]
            file.write_table(pa.table(arrays, schema=schema))


def _grouped(scored: Scored) -> Iterator[list[tuple[Any, ...]]]:
    """Columns of some rows at a time."""
    rows: list[tuple[Any, ...]] = []
    for variant, score in scored:
        rows.append((*variant.cells, score))
        if len(rows) == _ROW_GROUP:
            yield list(zip(*rows, strict=True))
            rows = []
    if rows:
        yield list(zip(*rows, strict=True))

"""Predictions of a fine-tuned model for new sequences, as rows of a table."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from rinalmo.engine.devices import DeviceLike
from rinalmo.engine.engine import Engine, as_engine
from rinalmo.engine.jobs import Arrays, JobOptions, opened, record_job, take_shard
from rinalmo.engine.ray import EngineLike
from rinalmo.errors import InputError
from rinalmo.inference.embed import check_keeps_columns
from rinalmo.inference.fold import CHUNK_PAIRS, GPU_SCALE
from rinalmo.io.files import counted, file_sha256
from rinalmo.io.sequences import (
    Record,
    SequenceFile,
    Sequences,
    as_records,
    is_sequence_table,
    name_source_in_errors,
    plain_rows,
    read_table_records,
    require_nonempty,
)
from rinalmo.io.tables import check_rows_output, write_rows
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.base import Example, Task, read_table
from rinalmo.tasks.evaluate import Note, input_columns, note_windows, outputs, read_data, task_of, with_options
from rinalmo.tasks.secondary_structure import SecondaryStructure, Weight

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def predict(
    sequences: Sequences,
    model: str | Path | RiNALMo | Engine,
    *,
    task: str | None = None,
    features: Mapping[str, str | Path] | None = None,
    device: DeviceLike = None,
) -> list[Row]:
    """Predict with a fine-tuned model.

    Args:
        sequences: One or more sequences, FASTA records, a data frame, or the `Path` of a FASTA file or table.
        model: A name, folder, file or loaded model, computed in fp32; an `Engine` for other precisions.
        task: Name of the task, which must be the model's; for a model that a transformers Trainer saved without its
            `problem_type`, the kind of its labels: regression, binary, multiclass or multilabel.
        features: For a model that takes vectors: the .npz file of those that the cells of a column name, by column.
        device: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"; None: where a loaded model is.

    Returns:
        One row per sequence, or per nucleotide if the task predicts values per nucleotide. The columns depend on the
        task: a `prediction`, a class and the probability of every class, or a structure in dot-bracket notation.

    Raises:
        CheckpointError: The model was not fine-tuned.
        InputError: The sequences cannot be used.

    Examples:
        >>> import rinalmo
        >>> rinalmo.predict("GGGGGAAAACCCCC", "nano-fold")
        [{'id': '1', 'sequence': 'GGGGGAAAACCCCC', 'structure': '(((((....)))))'}]
    """
    engine = as_engine(model, device)
    own = with_options(task_of(engine.spec, task), engine.spec)
    if (examples := read_inputs(sequences, own, features)) is not None:
        return list(chain.from_iterable(predict_records(examples, engine, own)))
    with name_source_in_errors(sequences):
        records = note_windows(require_nonempty(as_records(sequences)), own, warnings.warn)
        return list(chain.from_iterable(predict_records(records, engine, own)))


def read_inputs(source: Any, task: Task, files: Mapping[str, str | Path] | None) -> list[Example] | None:
    """The examples of a table or of rows, for a model that takes more than a sequence; None for other models."""
    columns = input_columns(task, files)
    if task.inputs is None:
        return None
    needed = ", ".join(filter(None, (columns.second, *columns.features)))
    if isinstance(source, Path):
        if not is_sequence_table(source):
            raise InputError(
                f"{source}: the model takes {needed} beside each sequence; give a table with these columns"
            )
        examples = read_table(source, columns, None)
    else:
        rows = plain_rows(source)
        if isinstance(rows, str | Mapping):
            raise InputError(f"the model takes {needed} beside each sequence; give rows with these columns")
        examples = read_data(rows, partial(read_table, target=None), columns)
    return task.inputs.encode(examples)


def predict_records(records: Iterable[Record | Example], engine: Engine, task: Task) -> Iterator[list[Row]]:
    """The rows of each record, for streams of any length."""
    examples = (r if isinstance(r, Example) else Example(r.id, r.sequence) for r in records)
    for example, output in outputs(examples, engine, task):
        yield task.rows(engine.head_model, output, example)


def predict_file(
    source: str | Path,
    output: str | Path,
    engine: EngineLike,
    *,
    task: str | None = None,
    features: Mapping[str, str | Path] | None = None,
    keep_columns: bool = False,
    fill_to: int | None = None,
    window: int | None = None,
    thermodynamics: Weight | None = None,
    shard: str | None = None,
    note: Note = warnings.warn,
    **job: Unpack[JobOptions],
) -> int:
    """Predict for every sequence of a FASTA file or table; see `rinalmo.engine.jobs` for interrupted runs.

    Args:
        source: The input; "-" is FASTA on standard input.
        output: .csv, .tsv, .jsonl or .parquet; "-" writes CSV to standard output, record by record.
        engine: An `Engine` or `RayEngine`, or a context manager that makes one once the options are known to be valid.
        task: As for `predict`.
        features: As for `predict`.
        keep_columns: Copy the other columns of a table. A column with the name of a predicted one becomes `NAME_given`.
        fill_to: For ribosome load: fill sequences up to so many tokens, 0 for none; None: as the model was trained.
        window: For secondary structure: see `fold`.
        thermodynamics: For secondary structure: see `Decoding`.
        shard: "i/n" takes every n-th sequence, from the i-th on.
        note: Called with one line for each RNA that is folded in windows.
        job: See `JobOptions`.

    Returns:
        The number of sequences.

    Raises:
        InputError: Input or options cannot be used, or differ from those of the interrupted run.
        CheckpointError: The model was not fine-tuned.
    """
    to_stdout = str(output) == "-"
    check_rows_output(output)
    file = SequenceFile(source)
    if keep_columns:
        check_keeps_columns(file, source)
    with opened(engine, to_stdout) as engine, ExitStack() as stack:
        folding: dict[str, Any] = {"window": window, "thermodynamics": thermodynamics}
        own = with_options(task_of(engine.spec, task), engine.spec, fill_to=fill_to, **folding, note=note)
        records: Iterable[Any] = note_windows(take_shard(file, shard), own, note)
        if (examples := read_inputs(Path(source), own, features)) is not None:
            records = take_shard(examples, shard)
        stream = partial(predict_records, task=own)
        predictions: Iterator[list[Row]]
        if isinstance(engine, Engine) and to_stdout:
            predictions = stream(records, engine)
        else:
            scale = 1 if engine.device.type == "cpu" else GPU_SCALE
            options = {"task": own.name, "fill_to": own.pad_to, "window": own.window, "shard": shard}
            options["thermodynamics"] = getattr(own, "thermodynamics", None)
            if features:
                options["features"] = {name: file_sha256(Path(path)) for name, path in features.items()}
            size: dict[str, Any] = {"scale": scale}
            if isinstance(own, SecondaryStructure):
                size |= {"power": 2, "max_size": CHUNK_PAIRS}
            done = record_job(Path(output), engine, file, records, stream, _pack, options, **size, **job)
            chunks = stack.enter_context(done).results("rows")
            predictions = (rows for chunk in chunks for rows in json.loads(chunk["rows"].tobytes()))
        if keep_columns:
            predictions = _with_columns(predictions, Path(source), shard)
        count = 0

        def written() -> Iterator[Row]:
            nonlocal count
            for rows in predictions:
                count += 1
                if to_stdout and "progress" in job:
                    job["progress"](count)
                yield from rows

        write_rows(output, written())
        if not to_stdout:
            logger.info("%s: %s, %s", output, counted(count, "sequence"), own.name)
    return count


def _pack(predictions: list[list[Row]]) -> Arrays:
    text = json.dumps(predictions).encode()
    return {"lengths": np.array([*map(len, predictions)]), "rows": np.frombuffer(text, np.uint8)}


def _with_columns(predictions: Iterator[list[Row]], table: Path, shard: str | None) -> Iterator[list[Row]]:
    """The rows of each record with the cells of its row of the table."""
    for rows, (_, cells) in zip(predictions, take_shard(read_table_records(table), shard), strict=True):
        predicted = rows[0].keys() - {"id"} if rows else set()
        renamed = {f"{name}_given" if name in predicted else name: value for name, value in cells.items()}
        if len(renamed) < len(cells):
            raise InputError(f"{table}: a column has the name of another column plus _given; rename it")
        renamed.pop("id", None)
        yield [{**row, **renamed} for row in rows]

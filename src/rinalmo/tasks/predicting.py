"""What a fine-tuned model says of new sequences, as rows of a table or one by one."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rinalmo.errors import InputError
from rinalmo.inference.devices import DeviceLike
from rinalmo.inference.engine import Engine, as_engine
from rinalmo.inference.inputs import Sequences, as_records, encode, peeked, read_table_records
from rinalmo.model.packing import Layout, pack_padded
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.rna.fasta import Record
from rinalmo.tasks.base import Example, Task
from rinalmo.tasks.registry import task_of
from rinalmo.tasks.secondary_structure import SecondaryStructure, as_asked

Row = dict[str, Any]
Note = Callable[[str], Any]


def predict(sequences: Sequences, model: str | Path | RiNALMo | Engine, *, device: DeviceLike = None) -> list[Row]:
    """Rows for sequences, records, a data frame, or the `Path` of a FASTA file or table, by a fine-tuned model.

    What a row holds depends on the task: `prediction`; a class and its probabilities; a structure in dot-bracket; or
    a row for each nucleotide. `device` is "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N"
    or "mps"; None: where a loaded model is. Raises CheckpointError if the model was fine-tuned for nothing.
    """
    engine = as_engine(model, device)
    records = peeked(as_records(sequences))
    task = task_of(engine.spec)
    if isinstance(task, SecondaryStructure):
        as_asked(task, engine.spec, None, None)
    return [row for rows in predict_records(records, engine, task) for row in rows]


def remarked(records: Iterable[Record], remark: Callable[[str, int], str], note: Note) -> Iterator[Record]:
    """The records; `note` is called with what there is to `remark` of one, by its name and length."""
    for record in records:
        if text := remark(record.id, len(record.sequence)):
            note(text)
        yield record


def predict_records(
    records: Iterable[Record], engine: Engine, task: Task, note: Note = warnings.warn
) -> Iterator[list[Row]]:
    """As `predict`, record by record, for streams of any length."""
    examples = (Example(record.id, record.sequence) for record in remarked(records, task.remark, note))
    for example, output in outputs(examples, engine, task):
        yield task.rows(engine.head_model, output, example)


def predict_table(path: Path, engine: Engine, task: Task, note: Note = warnings.warn) -> Iterator[list[Row]]:
    """As `predict_records` for the rows of a table, with all of their columns.

    A column of the table that has the name of a predicted one is written as `NAME_given`.

    Raises:
        InputError: The file cannot be used, or has a column of that name too.
    """
    waiting: deque[Row] = deque()

    def records() -> Iterator[Record]:
        for record, cells in read_table_records(path):
            waiting.append(cells)
            yield record

    for rows in predict_records(records(), engine, task, note):
        cells = waiting.popleft()
        renamed = {
            f"{name}_given" if rows and name != "id" and name in rows[0] else name: v for name, v in cells.items()
        }
        if len(renamed) < len(cells):
            raise InputError(f"{path}: a column is called as another one with _given; rename it")
        yield [{**row, **{name: value for name, value in renamed.items() if name != "id"}} for row in rows]


def outputs(examples: Iterable[Example], engine: Engine, task: Task) -> Iterator[tuple[Example, Any]]:
    """What the task's head says of each example, in the order of the input: a tensor, or what the task joins parts to.

    An output may be as large as length²: use it and let it go.
    """
    model = engine.head_model
    waiting: deque[tuple[Example, int]] = deque()

    def ids() -> Iterator[np.ndarray]:
        for example in examples:
            parts = task.parts(example)
            waiting.append((example, len(parts)))
            for part in parts:
                yield encode(Record(part.name, "", task.seen(part.sequence)), model.alphabet)

    def compute(packed: Tensor, layout: Layout) -> Sequence[Tensor]:
        if task.filled_to:
            parts = layout.split(packed)
            packed, layout = pack_padded(parts, task.filled_to, model.alphabet.pad_id, layout.device)
        states = engine.hidden_states(packed, layout, [model.config.num_hidden_layers])[0]
        with torch.inference_mode():
            return task.outputs(model, packed, states, layout)

    found = engine.map(compute, ids())
    for first in found:
        example, count = waiting.popleft()
        yield example, task.joined(example, chain([first], islice(found, count - 1)))

"""What a fine-tuned model says of new sequences, as rows of a table or one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rinalmo.inference.engine import Engine, as_engine
from rinalmo.inference.inputs import Sequences, as_records, encode, peeked
from rinalmo.model.packing import Layout, pack_padded
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.rna.fasta import Record
from rinalmo.tasks.base import Example, Task
from rinalmo.tasks.registry import task_of

Row = dict[str, Any]


def predict(sequences: Sequences, model: str | Path | RiNALMo | Engine) -> list[Row]:
    """Rows for one or more sequences, FASTA records, or the `Path` of a FASTA file, by a fine-tuned model.

    What a row holds depends on the task: `prediction`; a class and its probabilities; a structure in dot-bracket; or
    a row for each nucleotide. Raises CheckpointError if the model was fine-tuned for nothing.
    """
    engine = as_engine(model)
    records = peeked(as_records(sequences))
    return [row for rows in predict_records(records, engine, task_of(engine.model.spec)) for row in rows]


def predict_records(records: Iterable[Record], engine: Engine, task: Task) -> Iterator[list[Row]]:
    """As `predict`, record by record, for streams of any length."""
    examples = (Example(record.id, record.sequence) for record in records)
    for example, output in outputs(examples, engine, task):
        yield task.rows(engine.model, output, example)


def outputs(examples: Iterable[Example], engine: Engine, task: Task) -> Iterator[tuple[Example, Tensor]]:
    """What the task's head says of each example, in the order of the input.

    An output may be as large as length²: use it and let it go.
    """
    model = engine.model
    waiting: deque[Example] = deque()

    def ids() -> Iterator[np.ndarray]:
        for example in examples:
            waiting.append(example)
            yield encode(Record(example.name, "", task.seen(example.sequence)), model.alphabet)

    def compute(packed: Tensor, layout: Layout) -> Sequence[Tensor]:
        if task.filled_to:
            parts = layout.split(packed)
            packed, layout = pack_padded(parts, task.filled_to, model.alphabet.pad_id, layout.device)
        states = engine.hidden_states(packed, layout, [model.config.num_hidden_layers])[0]
        with torch.inference_mode():
            return task.outputs(model, packed, states, layout)

    for output in engine.map(compute, ids()):
        yield waiting.popleft(), output

"""What a fine-tuned model says of new sequences, as rows of a table or one by one."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rinalmo.engine.devices import DeviceLike
from rinalmo.engine.engine import Engine, as_engine
from rinalmo.engine.inputs import Sequences, as_records, encode, peeked, read_table_records
from rinalmo.errors import InputError
from rinalmo.io.fasta import Record
from rinalmo.metrics import bootstrap_interval
from rinalmo.model.packing import Layout, pack_padded
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.base import Columns, Example, Task
from rinalmo.tasks.examples import json_lines
from rinalmo.tasks.registry import task_of
from rinalmo.tasks.regression import filled
from rinalmo.tasks.secondary_structure import SecondaryStructure, Weight, as_asked

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


SAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """A figure and an interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Figures by name over all `count` examples and by group, and a row for each example.

    `interval` says what the intervals are, `notes` what else has to be known of how examples were computed.
    """

    task: str
    count: int
    threshold: float | None
    figures: dict[str, Figure]
    groups: dict[str, Evaluation] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list, repr=False)
    interval: str = "95 % bootstrap intervals"
    notes: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As plain values for a JSON file, without the rows; what is no number (NaN) is None."""
        values = asdict(self)
        del values["rows"]
        for group in values["groups"].values():
            del group["rows"], group["groups"], group["notes"]
        for part in (values, *values["groups"].values()):
            part["figures"] = {name: _finite(figure) for name, figure in part["figures"].items()}
        return values


def _finite(figure: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in figure.items()}


def evaluate(
    data: str | Path | Iterable[Mapping[str, Any]],
    model: str | Path | RiNALMo | Engine,
    *,
    columns: Columns | None = None,
    task: str | None = None,
    fill_to: int | None = None,
    window: int | None = None,
    thermodynamics: Weight | None = None,
    seed: int = 0,
    device: DeviceLike = None,
) -> Evaluation:
    """A fine-tuned model on labelled examples; `task`, if given, must be the model's.

    `data` is a file, or rows or a data frame with the columns that a table would have.

    `fill_to` is for ribosome load: tokens that sequences are filled up to, 0 for none, None for what the model says.
    `window` and `thermodynamics` are for secondary structure: nucleotides of the windows that longer RNAs are folded
    in, the model's own if None, and the weight of ViennaRNA's probabilities beside the model's, None for the default
    of `rinalmo fold`.
    `device` is "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps";
    None: where a loaded model is.

    Raises InputError for examples that cannot be used, CheckpointError if the model was fine-tuned for nothing.
    """
    engine = as_engine(model, device)
    own = task_of(engine.spec)
    if task is not None and task != own.name:
        raise InputError(f"the model was fine-tuned for {own.name}, not for {task}")
    notes: list[str] = []
    own = as_asked(filled(own, fill_to), engine.spec, window, thermodynamics, notes.append)
    columns = columns or Columns()
    # A table's columns are those that the model was trained on, unless others are named.
    columns = replace(columns, target=columns.target or getattr(own, "targets", ()))
    with _as_file(data) as (path, name):
        read = own.read(path, columns)
        read = [replace(example, where=example.where.replace(str(path), name)) for example in read]
    examples = own.understood(read)
    if not examples:
        raise InputError(f"{name}: holds no examples with a value" if read else f"{name}: holds no examples")
    found = judged_examples(examples, engine, own, seed)
    if not found.figures:
        raise InputError(f"{name}: {', '.join(columns.target)} is empty in all rows; there is nothing to score")
    if len(examples) < len(read):
        left_out = f"{len(read) - len(examples):,} of {len(read):,} examples have no value and are left out"
        found = replace(found, notes=[*found.notes, left_out])
    return replace(found, notes=[*notes, *found.notes])


@contextmanager
def _as_file(data: str | Path | Iterable[Mapping[str, Any]]) -> Iterator[tuple[Path, str]]:
    """The file of examples and its name in messages; rows are written for as long as they are read."""
    if isinstance(data, str | Path):
        yield Path(data), str(data)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("wb") as file:
            file.writelines(json_lines(data, "data"))
        try:
            yield path, "data"
        except InputError as error:
            raise InputError(str(error).replace(str(path), "data")) from None


def judged_examples(examples: Sequence[Example], engine: Engine, task: Task, seed: int = 0) -> Evaluation:
    """As `evaluate`, for examples that are there."""
    judged = [task.judge(engine.head_model, output, example) for example, output in outputs(examples, engine, task)]
    threshold = task.threshold(engine.head_model)
    whole = _evaluation(task, judged, examples, threshold, seed)
    groups = sorted({example.group for example in examples} - {""})
    parts: dict[str, Evaluation] = {}
    for group in groups if len(groups) > 1 else ():
        places = [place for place, example in enumerate(examples) if example.group == group]
        chosen = [judged[place] for place in places], [examples[place] for place in places]
        parts[group] = _evaluation(task, *chosen, threshold, seed)
    each = task.each(judged, threshold)
    rows = [
        {"id": example.name, "group": example.group, "length": len(example.sequence)}
        | {name: float(values[place]) for name, values in each.items()}
        for place, example in enumerate(examples)
    ]
    remarks = (task.remark(example.name, len(example.sequence)) for example in examples)
    return replace(whole, groups=parts, rows=rows if each else [], notes=[text for text in remarks if text])


def _evaluation(
    task: Task, judged: Sequence[Any], examples: Sequence[Example], threshold: float | None, seed: int
) -> Evaluation:
    values = dict(task.figures(judged, examples, threshold))
    if each := task.each(judged, threshold):
        intervals = {name: bootstrap_interval(scores, seed, SAMPLES) for name, scores in each.items()}
    else:
        samples = np.random.default_rng(seed).integers(len(examples), size=(SAMPLES, len(examples)))
        drawn = _resampled(task, judged, examples, threshold, samples, values)
        intervals = {name: _interval(of) for name, of in drawn.items()}
    figures = {name: Figure(value, *intervals[name]) for name, value in values.items()}
    return Evaluation(task.name, len(examples), threshold, figures)


def _resampled(
    task: Task,
    judged: Sequence[Any],
    examples: Sequence[Example],
    threshold: float | None,
    samples: np.ndarray,
    values: Mapping[str, float],
) -> dict[str, np.ndarray]:
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for sample in samples.tolist():
        found = dict(
            task.figures([judged[place] for place in sample], [examples[place] for place in sample], threshold)
        )
        for name, of in drawn.items():
            of.append(found.get(name, np.nan))
    return {name: np.array(of) for name, of in drawn.items()}


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return float(low), float(high)

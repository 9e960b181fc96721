"""Trained models: the task of each, the outputs of its head, and metrics on labeled examples."""

from __future__ import annotations

import difflib
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from rinalmo.engine.devices import DeviceLike
from rinalmo.engine.engine import Engine, as_engine, map_encoded
from rinalmo.errors import CheckpointError, InputError
from rinalmo.io.sequences import Record, encode
from rinalmo.metrics import bootstrap_interval
from rinalmo.model.heads import ProblemType
from rinalmo.model.packing import Layout, pack_padded
from rinalmo.model.rinalmo import ModelSpec, RiNALMo
from rinalmo.tasks.base import Columns, Crop, Example, Per, Task, json_lines, sequences_of
from rinalmo.tasks.secondary_structure import (
    SecondaryStructure,
    Weight,
    resolve_thermodynamics,
    window_note,
    windows_of,
)
from rinalmo.tasks.sequence_tasks import (
    PUBLISHED_PADDING,
    ExpressionLevel,
    NcrnaFamily,
    RibosomeLoad,
    SpliceSite,
    TranslationEfficiency,
)
from rinalmo.tasks.table import Table

_CLASSES: list[type[Task]] = [
    SecondaryStructure,
    RibosomeLoad,
    TranslationEfficiency,
    ExpressionLevel,
    SpliceSite,
    NcrnaFamily,
    Table,
]
TASKS: dict[str, type[Task]] = {task.name: task for task in _CLASSES}

Note = Callable[[str], Any]


def task_class(name: str) -> type[Task]:
    """The task of this name; raises InputError with the nearest one."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    raise InputError(f"no task {name!r}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(TASKS)}"))


def task_of(spec: ModelSpec, name: str | None = None) -> Task:
    """The task that a model was trained for, from its config or, for a published file, from its heads.

    Models trained here name their task, so one with heads and without a task is the authors', in whatever layout, or
    transformers' with labels of sequences or tokens.

    Args:
        spec: Of the model.
        name: The task that it has to be for, by name; or for a table its kind, which a config may leave open.

    Raises:
        CheckpointError: It was trained for none.
        InputError: It was trained for another one.
    """
    if name is not None and name not in get_args(ProblemType):
        task_class(name)
    kind = name if name in get_args(ProblemType) else None
    task = _task_of(spec, kind)
    own = task.kind if kind and isinstance(task, Table) else task.name
    if name not in (None, own):
        raise InputError(f"the model was fine-tuned for {own}, not for {name}")
    return task


def _task_of(spec: ModelSpec, kind: Any) -> Task:
    if spec.task is not None:
        try:
            settings = dict(spec.task)
            crop, at = settings.pop("crop", None), settings.pop("crop_at", "middle")
            task = TASKS[str(settings.pop("name"))](**settings)
            task.crop = None if crop is None else Crop(int(crop), str(at))
            return task
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"config: cannot interpret the task {dict(spec.task)!r} ({error})") from None
    heads = spec.heads
    if "structure_head" in heads:
        return SecondaryStructure()
    if "partner_head" in heads:
        return SecondaryStructure("partners")
    if "ribosome_load_head" in heads:
        return RibosomeLoad(PUBLISHED_PADDING)
    if "splice_site_head" in heads:
        return SpliceSite()
    if "ncrna_family_head" in heads:
        count = heads["ncrna_family_head"]["num_labels"]
        return NcrnaFamily([str(index) for index in range(count)])  # the published file has no names
    heads_of_labels: dict[str, Per] = {"sequence_head": "sequence", "token_head": "nucleotide"}
    for head, per in heads_of_labels.items():
        if head not in heads:
            continue
        if (kind := spec.problem_type or kind) is None:
            raise CheckpointError(
                "the model's config has no problem_type; give the kind of its labels: "
                f"--task {', '.join(get_args(ProblemType)[:-1])} or {get_args(ProblemType)[-1]}"
            )
        return Table.from_labels(kind, per, spec.labels, heads[head]["num_labels"], spec.pooling)
    raise CheckpointError(
        "the model is not fine-tuned; use nano-fold for structures, or a model trained with `rinalmo finetune`"
    )


def with_options(
    task: Task,
    spec: ModelSpec,
    *,
    fill_to: int | None = None,
    window: int | None = None,
    thermodynamics: Weight | None = None,
    note: Note = warnings.warn,
) -> Task:
    """The model's task with options as `rinalmo.evaluate` takes them; None: the model's defaults.

    Raises:
        InputError: An option is for another task, the window is too small, or the weight out of range.
        MissingExtraError: A weight above 0 was given and ViennaRNA is not installed.
    """
    if fill_to is not None:
        if not isinstance(task, RibosomeLoad):
            raise InputError(f"--fill-to is only for ribosome-load, not for {task.name}; leave it out")
        task = copy(task)
        task.pad_to = fill_to
    if isinstance(task, SecondaryStructure):
        weight = resolve_thermodynamics(spec, thermodynamics, note)
        return task.with_options(window=window, thermodynamics=weight)
    if window is not None or thermodynamics is not None:
        option = "--window" if window is not None else "--thermodynamics"
        raise InputError(f"{option} is only for secondary-structure, not for {task.name}; leave it out")
    return task


def note_windows(records: Iterable[Record], task: Task, note: Note) -> Iterator[Record]:
    """The records; `note` gets a line about each that is computed in windows."""
    for record in records:
        if task.window and len(record.sequence) > task.window:
            note(window_note(record.id, len(record.sequence), task.window))
        yield record


def outputs(examples: Iterable[Example], engine: Engine, task: Task) -> Iterator[tuple[Example, Any]]:
    """The output of the task's head for each example, in the order of the input; windows are merged.

    An output may be as large as length²: do not keep it.
    """
    model = engine.head_model

    def parts() -> Iterator[tuple[Example, int, str]]:
        for example in examples:
            sequences = sequences_of(example, task.crop)
            if task.window and len(example.sequence) > task.window:
                windows = windows_of(len(example.sequence), task.window)
                sequences = [example.sequence[window.start : window.stop] for window in windows]
            for sequence in sequences:
                yield example, len(sequences), sequence

    def encode_part(part: tuple[Example, int, str]) -> np.ndarray:
        return encode(Record(part[0].name, "", part[2]), model.alphabet)

    def compute(packed: Tensor, layout: Layout) -> Sequence[Tensor]:
        if task.pad_to:
            packed, layout = pack_padded(layout.split(packed), task.pad_to, model.alphabet.pad_id, layout.device)
        layers = engine.hidden_states(packed, layout, task.layers or [model.config.num_hidden_layers])
        states = layers[0] if len(layers) == 1 else torch.cat(layers, dim=-1)
        with torch.inference_mode():
            return task.forward(model, packed, states, layout)

    computed = map_encoded(engine, parts(), encode_part, compute)
    for (example, count, _), output in computed:
        if count == 1 and task.inputs is None:
            yield example, output
            continue
        whole = chain([output], (other for _, other in islice(computed, count - 1)))
        if task.inputs is None:
            yield example, task.merge_windows(example, whole)
        else:
            with torch.inference_mode():
                yield example, task.join(model, list(whole), [example])[0]


# Evaluation

SAMPLES = 1000
"""Bootstrap samples of an interval."""


@dataclass(frozen=True)
class Metric:
    """The value of a metric and an interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model on labeled examples.

    Attributes:
        task: Name of the task.
        count: Number of examples.
        threshold: The decision threshold, for a task that has one.
        metrics: Metrics by name over all examples.
        groups: The same for each group of examples, if there are several.
        rows: Metrics of each example, for a task whose metrics are means of these.
        interval: What the intervals are.
        scores: What the metrics were computed from, for each example.
        baselines: The metrics of simple models on the same examples, by name.
        notes: How examples were computed, and which were left out.
    """

    task: str
    count: int
    threshold: float | None
    metrics: dict[str, Metric]
    groups: dict[str, Evaluation] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)
    interval: str = "95 % bootstrap intervals"
    scores: list[Any] = field(default_factory=list, repr=False)
    baselines: dict[str, Evaluation] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, Metric]:
        """The former name of `metrics`."""
        return self.metrics

    def plain(self) -> dict[str, Any]:
        """As plain values for a JSON file, without the rows; what is no number (NaN) is None."""
        values: dict[str, Any] = {"task": self.task, "count": self.count, "threshold": self.threshold, "figures": {}}
        for name, metric in self.metrics.items():
            figure = asdict(metric)
            values["figures"][name] = {key: value if math.isfinite(value) else None for key, value in figure.items()}
        if self.baselines:
            values["baselines"] = {name: of.plain()["figures"] for name, of in self.baselines.items()}
        values |= {"groups": {}, "interval": self.interval, "notes": self.notes}
        for name, group in self.groups.items():
            values["groups"][name] = group.plain()
            del values["groups"][name]["groups"], values["groups"][name]["notes"]
        return values


def evaluate(
    data: str | Path | Iterable[Mapping[str, Any]],
    model: str | Path | RiNALMo | Engine,
    *,
    columns: Columns | None = None,
    features: Mapping[str, str | Path] | None = None,
    task: str | None = None,
    fill_to: int | None = None,
    window: int | None = None,
    thermodynamics: Weight | None = None,
    seed: int = 0,
    device: DeviceLike = None,
) -> Evaluation:
    """Evaluate a fine-tuned model on labeled examples.

    Args:
        data: A file, or rows or a data frame with the same columns as a table.
        model: Name, path or loaded model.
        columns: Names of the columns, if they are not the usual ones or those of the training data.
        features: For a model that takes vectors: the .npz file of those that the cells of a column name, by column.
        task: Name of the task, which must be the model's; for a model that a transformers Trainer saved without its
            `problem_type`, the kind of its labels: regression, binary, multiclass or multilabel.
        fill_to: For ribosome load: pad sequences to this many tokens; 0: no padding; None: as in training.
        window: For secondary structure: longer RNAs are folded in windows of this many nucleotides; None: the model's.
        thermodynamics: For secondary structure: the weight of ViennaRNA's probabilities in the average with the
            model's, from 0 to 1; None: the default of `rinalmo fold`.
        seed: Random seed of the bootstrap.
        device: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"; None: where a loaded model is.

    Returns:
        The metrics with 95 % bootstrap intervals, over all examples and for each group.

    Raises:
        InputError: An example cannot be used, or an option is for another task.
        CheckpointError: The model was not fine-tuned.

    Examples:
        >>> import rinalmo
        >>> rows = [{"sequence": "GGGGCGAAAGCCCC", "structure": "(((((....)))))"}]
        >>> evaluation = rinalmo.evaluate(rows, "nano-fold", thermodynamics=0)
        >>> evaluation.count, evaluation.metrics["f1"].value
        (1, 1.0)
    """
    if isinstance(data, str | Path) and not Path(data).exists():
        raise InputError(f"{data} does not exist; check the path")
    engine = as_engine(model, device)
    own, notes = task_of(engine.spec, task), list[str]()
    folding: dict[str, Any] = {"window": window, "thermodynamics": thermodynamics}
    own = with_options(own, engine.spec, fill_to=fill_to, **folding, note=notes.append)
    columns = columns or Columns()
    if type(own) is Table and not columns.target:
        columns = replace(columns, target=own.targets)
    elif type(own) is Table and len(columns.target) == len(own.targets) == 1:
        own = own.with_target(columns.target[0])
    more = input_columns(own, features)
    columns = replace(columns, second=more.second, features=more.features)
    if isinstance(data, str | Path):
        name, given = str(data), own.read(Path(data), columns)
    else:
        name, given = "data", read_data(data, own.read, columns)
    examples = own.encode_targets(given)
    if not examples:
        raise InputError(f"{name}: contains no examples with a value" if given else f"{name}: contains no examples")
    evaluation = evaluate_examples(examples, engine, own, seed)
    if not evaluation.metrics:
        raise InputError(f"{name}: {', '.join(columns.target)} is empty in all rows; there is nothing to score")
    notes += evaluation.notes
    if len(examples) < len(given):
        notes.append(f"skipped {len(given) - len(examples):,} of {len(given):,} examples without a value")
    return replace(evaluation, notes=notes)


def input_columns(task: Task, files: Mapping[str, str | Path] | None) -> Columns:
    """The columns of a table that a model takes beside its sequences, with the files of vectors that were given."""
    if task.inputs is None and files:
        raise InputError(f"the model takes no features, so leave {', '.join(files)} out")
    return (
        Columns() if task.inputs is None else task.inputs.columns({n: Path(file) for n, file in (files or {}).items()})
    )


def read_data(
    data: Iterable[Mapping[str, Any]], read: Callable[[Path, Columns], list[Example]], columns: Columns
) -> list[Example]:
    """Examples that are not in a file, read as from one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        with path.open("wb") as file:
            file.writelines(json_lines(data, "data"))
        try:
            examples = read(path, columns)
        except InputError as error:
            raise InputError(str(error).replace(str(path), "data")) from None
    return [replace(example, where=example.where.replace(str(path), "data")) for example in examples]


def evaluate_examples(examples: Sequence[Example], engine: Engine, task: Task, seed: int = 0) -> Evaluation:
    """As `evaluate`, for examples with encoded targets."""
    model = engine.head_model
    scores = [task.score_example(model, output, example) for example, output in outputs(examples, engine, task)]
    threshold = task.threshold(model)
    evaluation = with_intervals(task, scores, examples, threshold, seed)
    groups: dict[str, Evaluation] = {}
    names = sorted({example.group for example in examples} - {""})
    for name in names if len(names) > 1 else ():
        members = [index for index, example in enumerate(examples) if example.group == name]
        part = [scores[index] for index in members], [examples[index] for index in members]
        groups[name] = with_intervals(task, *part, threshold, seed)
    each, rows = task.example_metrics(scores, threshold), list[dict[str, Any]]()
    for index, example in enumerate(examples if each else ()):
        row = {"id": example.name, "group": example.group, "length": len(example.sequence)}
        rows.append(row | {name: float(values[index]) for name, values in each.items()})
    long = [example for example in examples if task.window and len(example.sequence) > task.window]
    notes = [window_note(example.name, len(example.sequence), task.window or 0) for example in long]
    return replace(evaluation, groups=groups, rows=rows, notes=notes, scores=scores)


def with_intervals(
    task: Task, scores: Sequence[Any], examples: Sequence[Example], threshold: float | None, seed: int
) -> Evaluation:
    """The metrics of these scores, with bootstrap intervals over the examples."""
    targets: Any = [example.target for example in examples]
    values = task.metrics(scores, targets, threshold)
    if each := task.example_metrics(scores, threshold):
        intervals = {name: bootstrap_interval(of, seed, SAMPLES) for name, of in each.items()}
    else:
        drawn: dict[str, list[float]] = {name: [] for name in values}
        given: Any = scores
        if task.per == "sequence":  # arrays are drawn from in a tenth of the time of lists
            given, targets = np.asarray(scores), np.asarray(targets)
        for sample in np.random.default_rng(seed).integers(len(examples), size=(SAMPLES, len(examples))):
            again = task.metrics(_take(given, sample), _take(targets, sample), threshold)
            for name, of in drawn.items():
                of.append(again.get(name, np.nan))
        intervals = {}
        for name, of in drawn.items():
            low, high = np.nanpercentile(of, [2.5, 97.5]) if np.isfinite(of).any() else (np.nan, np.nan)
            intervals[name] = float(low), float(high)
    metrics = {name: Metric(value, *intervals[name]) for name, value in values.items()}
    return Evaluation(task.name, len(examples), threshold, metrics)


def _take(values: Any, places: np.ndarray) -> Any:
    return values[places] if isinstance(values, np.ndarray) else [values[place] for place in places]

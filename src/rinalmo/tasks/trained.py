"""The task of a trained model: which one it is, its options, and the outputs of its head."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from itertools import chain, islice
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from rinalmo.engine.engine import Engine, map_encoded
from rinalmo.errors import CheckpointError, InputError
from rinalmo.io.sequences import Record, encode
from rinalmo.model.heads import ProblemType
from rinalmo.model.packing import Layout, pack_padded
from rinalmo.model.rinalmo import ModelSpec
from rinalmo.tasks.base import Crop, Example, Per, Task, sequences_of
from rinalmo.tasks.classification import NcrnaFamily, SpliceSite
from rinalmo.tasks.regression import PUBLISHED_PADDING, ExpressionLevel, RibosomeLoad, TranslationEfficiency
from rinalmo.tasks.secondary_structure import (
    SecondaryStructure,
    Weight,
    resolve_thermodynamics,
    window_note,
    windows_of,
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
        others = (other for _, other in islice(computed, count - 1))
        if task.inputs is not None:
            with torch.inference_mode():
                yield example, task.join(model, [output, *others], [example])[0]
        elif count == 1:
            yield example, output
        else:
            yield example, task.merge_windows(example, chain([output], others))

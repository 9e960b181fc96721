"""The tasks by name, and which one a model was trained for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from rinalmo.errors import CheckpointError, InputError
from rinalmo.model.rinalmo import ModelSpec
from rinalmo.tasks.base import Crop, Task
from rinalmo.tasks.classification import NcrnaFamily, SpliceSite
from rinalmo.tasks.regression import PUBLISHED_FILLING, ExpressionLevel, RibosomeLoad, TranslationEfficiency
from rinalmo.tasks.secondary_structure import SecondaryStructure
from rinalmo.tasks.table import Table

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        SecondaryStructure,
        RibosomeLoad,
        TranslationEfficiency,
        ExpressionLevel,
        SpliceSite,
        NcrnaFamily,
        Table,
    )
}


def task_class(name: str) -> type[Task]:
    """The task of this name; raises InputError with the nearest one."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    raise InputError(f"no task {name!r}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(TASKS)}"))


def task_of(spec: ModelSpec) -> Task:
    """The task that a model was trained for: as its config says, or as the heads of a published file tell.

    A model trained here says its task, so one with heads and without a task is the authors', in whatever layout.
    Raises CheckpointError if it was trained for none.
    """
    if spec.task is not None:
        return _remembered(spec.task)
    heads = spec.heads
    if "structure_head" in heads:
        return SecondaryStructure()
    if "partner_head" in heads:
        return SecondaryStructure("partners")
    if "ribosome_load_head" in heads:
        return RibosomeLoad(PUBLISHED_FILLING)
    if "splice_site_head" in heads:
        return SpliceSite()
    if "ncrna_family_head" in heads:
        count = heads["ncrna_family_head"]["num_labels"]
        return NcrnaFamily([str(place) for place in range(count)])  # the published file has no names
    raise CheckpointError("this model has no task; train one with `rinalmo finetune`, or name one that was")


def settings_of(task: Task) -> dict[str, Any]:
    """What a model's config says of its task, from which `task_of` makes it again."""
    crop = {"crop": task.crop.length, "crop_at": task.crop.at} if task.crop else {}
    return {"name": task.name, **task.settings(), **crop}


def _remembered(settings: Mapping[str, Any]) -> Task:
    try:
        values = dict(settings)
        crop, at = values.pop("crop", None), values.pop("crop_at", "middle")
        task = task_class(str(values.pop("name"))).remembered(values)
        task.crop = None if crop is None else Crop(int(crop), str(at))
        return task
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config: the task {dict(settings)!r} cannot be understood ({error})") from None

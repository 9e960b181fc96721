"""The user's own table: any number of columns to predict, for a sequence or for each of its nucleotides.

    regression   numbers; compared standardised; an empty cell is left out
    binary       one column of 0 and 1
    multilabel   several columns of 0 and 1
    multiclass   one column of names

What a table holds is found out from its cells unless the recipe says. The surprise: whole numbers of few values, each
seen often, are taken for classes, and a note says so.

A cell for every nucleotide is a list (`[0.1, 0.2, null]` or `0.1,0.2,`), or for classes a text of one letter each. It
may be shorter than the sequence: the rest was not measured.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rinalmo import metrics
from rinalmo.errors import InputError
from rinalmo.model.losses import IGNORE, ProblemType
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.base import Columns, Example, Figures, Per, Task, inner, require
from rinalmo.tasks.classification import (
    binary_figures,
    class_answer,
    class_figures,
    class_name,
    pooled,
    require_known,
    require_name,
    require_several,
    truth,
)
from rinalmo.tasks.tables import number, read_table

_USUAL = ("label", "target", "value", "y", "class", "score")
_FEW, _OFTEN = 20, 5  # whole numbers: at most so many values, each seen so often on average, are classes
_TAKEN = {"id", "position", "nucleotide", "probability"}
_SCORES = {"regression": "r2", "binary": "roc_auc", "multilabel": "roc_auc", "multiclass": "accuracy"}


class Table(Task):
    """Whatever the columns of a table say."""

    name = "table"
    options = ("kind", "per", "pooling")

    def __init__(
        self,
        kind: ProblemType,
        per: Per,
        targets: Sequence[str],
        classes: Sequence[str] = (),
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        pooling: str = "cls",
    ) -> None:
        self.kind, self.per, self.targets, self.classes = kind, per, list(targets), list(classes)
        self.mean, self.std, self.pooling = list(mean), list(std), pooling
        self.places = {name: place for place, name in enumerate(self.classes)}
        self.score = _SCORES[kind]

    def settings(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "per": self.per,
            "targets": self.targets,
            "classes": self.classes,
            "mean": self.mean,
            "std": self.std,
            **pooled(self.pooling),
        }

    def described(self) -> str:
        what = f"{self.kind} of {len(self.classes)} classes" if self.classes else self.kind
        hint = "; say --set options.kind=regression if the numbers are amounts" if _numbers(self.classes) else ""
        return f"{', '.join(self.targets)}: {what}, for each {self.per}{hint}"

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        return read_table(path, columns, _USUAL)

    @classmethod
    def learned(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        targets = list(examples[0].target)
        if taken := sorted({*targets} & _TAKEN):
            raise InputError(f"`predict` has a column {taken[0]!r} of its own; give the column to predict another name")
        width, first = len(targets), examples[0].target[targets[0]]
        per: Per = options.get("per") or ("nucleotide" if _is_list(first) else "sequence")
        kind: ProblemType = options.get("kind") or _kind(examples, per, width)
        if kind in ("binary", "multiclass") and width > 1:
            raise InputError(f"a {kind} table has one column to predict, not {width}; several are multilabel")
        classes = _classes(examples, per, targets[0]) if kind == "multiclass" else []
        pooling = options.get("pooling") or "cls"
        if per == "nucleotide" and "pooling" in options:
            raise InputError("options.pooling is for one answer a sequence; this table has values of each nucleotide")
        task = cls(kind, per, targets, classes, pooling=pooling)
        if kind in ("regression", "binary"):
            values = np.concatenate([e.target.reshape(-1, width) for e in task.understood(examples)])
            if kind == "regression":
                task.mean, task.std = _scale(values, targets)
            else:
                require_several({str(value) for value in values[values != IGNORE].tolist()}, targets[0])
        return task

    def heads(self) -> dict[str, dict[str, Any]]:
        options = {"num_labels": len(self.classes) or len(self.targets)}
        if self.per == "nucleotide":
            return {"token_head": options}
        return {"pooler": pooled(self.pooling), "sequence_head": options}

    def understood(self, examples: Sequence[Example]) -> list[Example]:
        return [replace(example, target=self._target(example)) for example in examples]

    def _target(self, example: Example) -> np.ndarray:
        """`(targets,)` or `(length, targets)`; classes as their places without the last axis."""
        lacking = [name for name in self.targets if name not in example.target]
        hint = "give this column its name, or leave --target out"
        require(not lacking, example, f"the model predicts {''.join(lacking[:1])!r}, not what was named; {hint}")
        values = [example.target[name] for name in self.targets]
        if self.per == "sequence":
            cells = [self._cell(example, value, name) for value, name in zip(values, self.targets, strict=True)]
            return np.array(cells[0] if self.kind == "multiclass" else cells)
        tracks = [self._track(example, value, name) for value, name in zip(values, self.targets, strict=True)]
        return tracks[0] if self.kind == "multiclass" else np.stack(tracks, axis=1)

    def _track(self, example: Example, value: Any, name: str) -> np.ndarray:
        several = len(self.targets) > 1
        require(several or value not in (None, "", []), example, f"{name} is empty; drop the row")
        cells, length = _cells(example, value, self.kind), len(example.sequence)
        require(len(cells) <= length, example, f"{name} has {len(cells)} values for {length} nucleotides")
        empty = math.nan if self.kind == "regression" else IGNORE
        found = [self._cell(example, cell, f"{name}, value {i}") for i, cell in enumerate(cells, start=1)]
        return np.array(found + [empty] * (length - len(found)))

    def _cell(self, example: Example, value: Any, name: str) -> float | int:
        if self.kind == "regression":
            return number(value, example.where, name, missing=self.per == "nucleotide" or len(self.targets) > 1)
        named = class_name(value)
        if not named:
            require(self.per == "nucleotide" or self.kind == "multilabel", example, f"{name} is empty; drop the row")
            return IGNORE
        if self.kind == "multiclass":
            require_name(example, value, name)
            require_known(example, named, self.places)
            return self.places[named]
        return int(truth(replace(example, target=value)))

    def outputs(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        if self.per == "sequence":
            return list(model.head("sequence_head")(model.head("pooler")(states, layout)))
        parts = inner(states, layout)
        return model.head("token_head")(torch.cat(parts)).split([len(part) for part in parts])

    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        together = torch.cat if self.per == "nucleotide" else torch.stack
        logits = together(list(outputs)).float()
        target = _joined([e.target for e in examples], self.per)
        if self.kind == "multiclass":
            places = torch.from_numpy(target).to(logits.device).long()
            return F.cross_entropy(logits, places, ignore_index=IGNORE, reduction="sum")
        keep = torch.from_numpy(_known(target, self.kind)).to(logits.device)
        if self.kind == "regression":
            target = (target - np.asarray(self.mean)) / np.asarray(self.std)  # in fp64, which not every device has
        wanted = torch.from_numpy(target.astype(np.float32)).to(logits.device)
        if self.kind == "regression":
            return F.mse_loss(logits[keep], wanted[keep], reduction="sum")
        return F.binary_cross_entropy_with_logits(logits[keep], wanted[keep], reduction="sum")

    def count(self, examples: Sequence[Example]) -> int:
        return int(sum(_known(example.target, self.kind).sum() for example in examples))

    def judge(self, model: RiNALMo, output: Tensor, example: Example) -> np.ndarray:
        match self.kind:
            case "regression":
                return (output.cpu().double().numpy() * self.std + self.mean).astype(np.float32)
            case "multiclass":
                return output.float().softmax(dim=-1).cpu().numpy()
            case _:
                return output.float().sigmoid().cpu().numpy()

    def figures(self, judged: Sequence[Any], examples: Sequence[Example], threshold: float | None) -> Figures:
        found = _joined(list(judged), self.per)
        target = _joined([example.target for example in examples], self.per)
        if self.kind == "multiclass":
            known = target != IGNORE
            if known.any():
                yield from class_figures(found[known], target[known].astype(int))
            return
        each = [dict(self._column_figures(found[:, column], target[:, column])) for column in range(len(self.targets))]
        for name in dict.fromkeys(name for figures in each for name in figures):
            values = [figures[name] for figures in each if name in figures]
            yield name, float(np.mean(values))
        if len(each) > 1:
            yield from (
                (f"{name}/{target}", v) for target, of in zip(self.targets, each, strict=True) for name, v in of.items()
            )

    def _column_figures(self, found: np.ndarray, target: np.ndarray) -> Figures:
        known = _known(target, self.kind)
        if not known.any():
            return
        found, target = found[known], target[known]
        if self.kind != "regression":
            yield from binary_figures(found, target.astype(bool))
            return
        yield "r2", metrics.r2(target, found)
        yield "spearman", metrics.spearman(target, found)
        yield "rmse", float(np.sqrt(metrics.mean_squared_error(target, found)))
        yield "mae", metrics.mean_absolute_error(target, found)

    def rows(self, model: RiNALMo, output: Tensor, example: Example) -> list[dict[str, Any]]:
        values = self.judge(model, output, example)
        if self.per == "sequence":
            return [{"id": example.name, **self._answer(values)}]
        places = zip(example.sequence, values, strict=True)
        return [
            {"id": example.name, "position": i, "nucleotide": letter, **self._answer(row)}
            for i, (letter, row) in enumerate(places, start=1)
        ]

    def _answer(self, values: np.ndarray) -> dict[str, Any]:
        if self.kind == "multiclass":
            return class_answer(self.targets[0], self.classes, values)
        if self.kind == "regression":
            return {name: float(value) for name, value in zip(self.targets, values, strict=True)}
        pairs = list(zip(self.targets, values, strict=True))
        return {name: int(p > 0.5) for name, p in pairs} | {f"p({name})": float(p) for name, p in pairs}


def _numbers(classes: Sequence[str]) -> bool:
    return bool(classes) and all(name.lstrip("-").isdigit() for name in classes)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and bool(re.match(r"\s*\[|[^,;]+[,;]", value)))


def _cells(example: Example, value: Any, kind: ProblemType) -> list[Any]:
    """The cells of a list, or of a text that stands for one."""
    if isinstance(value, list):
        return value
    text = str(value).strip()
    if text.startswith("["):
        try:
            return list(json.loads(text))
        except ValueError:
            require(False, example, f"{text[:30]}… is no list")
    if kind == "multiclass" and not re.search("[,;]", text):
        return list(text)
    return [cell.strip() for cell in re.split("[,;]", text)]


def _kind(examples: Sequence[Example], per: Per, width: int) -> ProblemType:
    cells = {cell for cell in _all_cells(examples, per) if class_name(cell)}
    texts = {cell for cell in cells if not _is_number(cell)}
    if texts:
        _refuse_mixture(examples, per, texts, of=len(cells))
        return "multiclass"
    values = {float(cell) for cell in cells}
    if values <= {0.0, 1.0}:
        return "binary" if width == 1 else "multilabel"
    whole = all(value.is_integer() for value in values)
    few = len(values) <= _FEW and len(examples) >= _OFTEN * len(values)
    return "multiclass" if whole and few and width == 1 and per == "sequence" else "regression"


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _refuse_mixture(examples: Sequence[Example], per: Per, texts: set[Any], of: int) -> None:
    """Raise InputError for the first text in a column that is otherwise one of numbers."""
    if 2 * len(texts) >= of:
        return
    for example in examples:
        for cell in _all_cells([example], per):
            hint = "leave it out, or say --set options.kind=multiclass if the numbers are names"
            require(cell not in texts, example, f"{cell!r} stands among numbers; {hint}")


def _classes(examples: Sequence[Example], per: Per, target: str) -> list[str]:
    found = sorted({class_name(cell) for cell in _all_cells(examples, per, "multiclass")} - {""})
    require_several(found, target)
    return found


def _all_cells(examples: Sequence[Example], per: Per, kind: ProblemType = "regression") -> list[Any]:
    values = [(example, value) for example in examples for value in example.target.values()]
    cells = [(e, cell) for e, value in values for cell in ([value] if per == "sequence" else _cells(e, value, kind))]
    for example, cell in cells:
        require(not isinstance(cell, dict | list), example, f"{str(cell)[:30]} is neither a number nor a name")
    return [cell for _, cell in cells]


def _scale(values: np.ndarray, targets: Sequence[str]) -> tuple[list[float], list[float]]:
    for name, column in zip(targets, values.T, strict=True):
        if np.isnan(column).all():
            raise InputError(f"{name} has no value in the training data")
    std = np.nanstd(values, axis=0)
    return np.nanmean(values, axis=0).tolist(), np.where(std > 0, std, 1.0).tolist()


def _known(target: np.ndarray, kind: ProblemType) -> np.ndarray:
    return ~np.isnan(target) if kind == "regression" else target != IGNORE


def _joined(values: Sequence[np.ndarray], per: Per) -> np.ndarray:
    return np.concatenate(values) if per == "nucleotide" else np.stack(values)


assert set(_SCORES) == set(get_args(ProblemType))

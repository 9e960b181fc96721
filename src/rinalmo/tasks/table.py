"""The user's own table: any number of columns to predict, for a sequence or for each of its nucleotides.

    regression   numbers; compared standardised; an empty cell is left out
    binary       one column of 0 and 1
    multilabel   several columns of 0 and 1
    multiclass   one column of names

What a table holds is decided from all of its rows (`rinalmo.tasks.columns`) unless the recipe says. Whole numbers of
few values, each seen often, are taken for classes, and a note says so.

A cell for every nucleotide is a list (`[0.1, 0.2, null]` or `0.1;0.2;`), or for classes a text of one letter each. It
may be shorter than the sequence: the rest was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rinalmo import metrics
from rinalmo.delimited import is_missing
from rinalmo.errors import InputError
from rinalmo.model.losses import IGNORE, ProblemType
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.base import Columns, Example, Figures, Per, Task, inner, require
from rinalmo.tasks.cells import PLAIN, NumberFormat
from rinalmo.tasks.classification import (
    binary_figures,
    class_answer,
    class_figures,
    class_name,
    pooled,
    require_known,
    require_several,
    truth,
)
from rinalmo.tasks.columns import described, formats_of, items_of, kind_of, per_of, single_cells
from rinalmo.tasks.tables import number, read_table

_USUAL = ("label", "target", "value", "y", "class", "score")
_TAKEN = {"id", "position", "nucleotide", "probability"}
_SCORES = {"regression": "r2", "binary": "roc_auc", "multilabel": "roc_auc", "multiclass": "accuracy"}


class Table(Task):
    """Whatever the columns of a table say."""

    name = "table"
    options = ("kind", "per", "pooling", "decimal", "missing")

    def __init__(
        self,
        kind: ProblemType,
        per: Per,
        targets: Sequence[str],
        classes: Sequence[str] = (),
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        pooling: str = "cls",
        formats: Mapping[str, Mapping[str, Any]] | None = None,
        missing: Literal["drop", "class"] | None = None,
    ) -> None:
        """A task on columns that are known.

        Args:
            kind: What the columns hold.
            per: Whether they hold a value for each sequence or a list with one for each nucleotide.
            targets: Names of the columns.
            classes: Names of the classes, for "multiclass".
            mean: Mean of each column over the training examples, for "regression".
            std: Standard deviation of each.
            pooling: What the head looks at: "cls" or "mean".
            formats: Arguments of `NumberFormat` by column, for those that are not written plainly.
            missing: "drop": examples without a value are left out. "class": words such as NA name a class.
        """
        self.kind, self.per, self.targets, self.classes = kind, per, list(targets), list(classes)
        self.formats = {name: NumberFormat(**fields) for name, fields in (formats or {}).items()}
        self.missing, self.notes = missing, list[str]()
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
            **({"formats": {name: asdict(written) for name, written in self.formats.items()}} if self.formats else {}),
            **({"missing": self.missing} if self.missing else {}),
        }

    def described(self) -> str:
        hint = "; say --set options.kind=regression if the numbers are amounts" if _numbers(self.classes) else ""
        return "\n".join([f"{', '.join(self.targets)}: {self.kind}, for each {self.per}{hint}", *self.notes])

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        return read_table(path, columns, _USUAL)

    @classmethod
    def learned(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        targets = list(examples[0].target)
        if taken := sorted({*targets} & _TAKEN):
            raise InputError(f"`predict` has a column {taken[0]!r} of its own; give the column to predict another name")
        width = len(targets)
        per: Per = options.get("per") or per_of(examples, targets)
        given: ProblemType | None = options.get("kind")
        names = given == "multiclass"
        decimal = options.get("decimal")
        formats = dict.fromkeys(targets, PLAIN) if names else formats_of(examples, targets, per, decimal)
        kind = given or kind_of(examples, per, formats)
        if kind in ("binary", "multiclass") and width > 1:
            raise InputError(f"a {kind} table has one column to predict, not {width}; several are multilabel")
        missing = options.get("missing")
        classes = _classes(examples, per, targets[0], missing) if kind == "multiclass" else []
        pooling = options.get("pooling") or "cls"
        if per == "nucleotide" and "pooling" in options:
            raise InputError("options.pooling is for one answer a sequence; this table has values of each nucleotide")
        task = cls(kind, per, targets, classes, pooling=pooling, missing=missing)
        if kind != "multiclass":
            task.formats = {
                name: written
                for name, written in formats.items()
                if decimal or written != PLAIN or _has_comma(examples, name, per)
            }
        if kind in ("regression", "binary"):
            understood = task.understood(examples)
            if not understood:
                raise InputError(f"{', '.join(targets)}: no row has a value; there is nothing to learn")
            values = np.concatenate([e.target.reshape(-1, width) for e in understood])
            if kind == "regression":
                task.mean, task.std = _scale(values, targets)
            else:
                require_several({str(value) for value in values[values != IGNORE].tolist()}, targets[0])
        task.notes = list(described(examples, kind, per, formats, task._is_class_word))
        return task

    def heads(self) -> dict[str, dict[str, Any]]:
        options = {"num_labels": len(self.classes) or len(self.targets)}
        if self.per == "nucleotide":
            return {"token_head": options}
        return {"pooler": pooled(self.pooling), "sequence_head": options}

    def understood(self, examples: Sequence[Example]) -> list[Example]:
        formats: dict[str, NumberFormat] = {}
        known = [name for name in self.targets if all(name in example.target for example in examples)]
        if self.kind != "multiclass":
            # A file for evaluation may write its numbers in another way than the training data.
            formats = formats_of(examples, known, self.per, usual=self.formats)
        kept = [example for example in examples if not self._is_left_out(example)]
        return [replace(example, target=self._target(example, formats)) for example in kept]

    def _is_left_out(self, example: Example) -> bool:
        values = [example.target.get(name, "") for name in self.targets]
        return (
            self.missing == "drop"
            and all(name in example.target for name in self.targets)
            and all(is_missing(value) or value in ([], "[]") for value in values)
        )

    def _target(self, example: Example, formats: Mapping[str, NumberFormat]) -> np.ndarray:
        """`(targets,)` or `(length, targets)`; classes as their places without the last axis."""
        lacking = [name for name in self.targets if name not in example.target]
        hint = "give this column its name, or leave --target out"
        require(not lacking, example, f"the model predicts {''.join(lacking[:1])!r}, not what was named; {hint}")
        values = [(name, example.target[name], formats.get(name, PLAIN)) for name in self.targets]
        if self.per == "sequence":
            cells = [self._cell(example, value, name, written) for name, value, written in values]
            return np.array(cells[0] if self.kind == "multiclass" else cells)
        tracks = [self._track(example, value, name, written) for name, value, written in values]
        return tracks[0] if self.kind == "multiclass" else np.stack(tracks, axis=1)

    def _track(self, example: Example, value: Any, name: str, written: NumberFormat) -> np.ndarray:
        if len(self.targets) == 1 and (is_missing(value) or value == []):
            self._refuse_missing(example, value, name)
        cells, length = items_of(example, value, name, self.kind), len(example.sequence)
        require(len(cells) <= length, example, f"{name} has {len(cells)} values for {length} nucleotides")
        empty = math.nan if self.kind == "regression" else IGNORE
        numbered = enumerate(cells, start=1)
        values = [self._cell(example, cell, f"{name}, value {i}", written) for i, cell in numbered]
        return np.array(values + [empty] * (length - len(values)))

    def _cell(self, example: Example, value: Any, name: str, written: NumberFormat) -> float | int:
        if is_missing(value) and not self._is_class_word(value):
            if self.per == "sequence" and (len(self.targets) == 1 or self.kind == "multiclass"):
                self._refuse_missing(example, value, name)
            return math.nan if self.kind == "regression" else IGNORE
        if self.kind == "regression":
            several = self.per == "nucleotide" or len(self.targets) > 1
            return number(value, example.where, name, written, missing=several)
        if self.kind == "multiclass":
            named = class_name(value)
            require_known(example, named, self.places)
            return self.places[named]
        parsed = written.parse(value)
        return int(parsed) if parsed in (0.0, 1.0) else int(truth(replace(example, target=value)))

    def _is_class_word(self, value: Any) -> bool:
        """Whether this is a word such as NA that names a class here."""
        return self.missing == "class" and isinstance(value, str) and value.strip() != "" and is_missing(value)

    def _refuse_missing(self, example: Example, value: Any, name: str) -> None:
        text = str("" if value is None or value == [] else value).strip()
        stands = f"is {text!r}, which stands for a missing value" if text else "is empty"
        named = ", or =class if it names one" if text and self.kind == "multiclass" else ""
        hint = f"drop the row, or say --set options.missing=drop to leave out such rows{named}"
        require(False, example, f"{name} {stands}; {hint}")

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


def _has_comma(examples: Sequence[Example], name: str, per: Per) -> bool:
    return any("," in value for _, value in single_cells(examples, name, per) if isinstance(value, str))


def _classes(examples: Sequence[Example], per: Per, target: str, missing: str | None) -> list[str]:
    found = {class_name(value) for _, value in single_cells(examples, target, per, "multiclass")}
    if missing == "class" and per == "sequence":
        found |= {class_name(value) for e in examples if isinstance(value := e.target[target], str)}
    found -= {""}
    require_several(found, target)
    return sorted(found)


def _scale(values: np.ndarray, targets: Sequence[str]) -> tuple[list[float], list[float]]:
    for name, column in zip(targets, values.T, strict=True):
        if np.isnan(column).all():
            raise InputError(f"{name} has no value in the training data")
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    # The mean of equal numbers may differ from them by rounding.
    constant = std <= 1e-12 * np.abs(mean)
    return mean.tolist(), np.where(constant, 1.0, std).tolist()


def _known(target: np.ndarray, kind: ProblemType) -> np.ndarray:
    return ~np.isnan(target) if kind == "regression" else target != IGNORE


def _joined(values: Sequence[np.ndarray], per: Per) -> np.ndarray:
    return np.concatenate(values) if per == "nucleotide" else np.stack(values)


assert set(_SCORES) == set(get_args(ProblemType))

"""A class per sequence: splice sites (yes or no) and ncRNA families.

Both look at the CLS token, or at the mean of all (`options.pooling`), through two layers. Classes are named by the
training data, in alphabetical order; the published family model has 88 without names.

Reference: Penić et al. 2025 (arXiv:2403.00043), supplement.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rinalmo import metrics
from rinalmo.errors import InputError
from rinalmo.io.tables import is_missing
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.base import Columns, Example, Figures, Task, require
from rinalmo.tasks.examples import read_single

_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


class SpliceSite(Task):
    """Whether the centre of the sequence is a splice site; one model for donors, another for acceptors."""

    name = "splice-site"
    options = ("pooling",)
    score = "f1"

    def __init__(self, pooling: str = "cls") -> None:
        self.pooling = pooling

    def settings(self) -> dict[str, Any]:
        return pooled(self.pooling)

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        found = read_single(path, columns, ("label", "target", "splice_site"), cls.name)
        return [Example(e.name, e.sequence, truth(e), e.group, e.where) for e in found]

    @classmethod
    def learned(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        require_several({str(int(example.target)) for example in examples}, "the label")
        return cls(**options)

    def heads(self) -> dict[str, dict[str, Any]]:
        return {"splice_site_head": pooled(self.pooling)}

    def outputs(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        return list(model.head("splice_site_head")(states, layout)[:, 0])

    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        logits = torch.stack(list(outputs)).float()
        target = torch.tensor([float(example.target) for example in examples], device=logits.device)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum")

    def judge(self, model: RiNALMo, output: Tensor, example: Example) -> float:
        return float(output.float().sigmoid())

    def figures(self, judged: Sequence[Any], examples: Sequence[Example], threshold: float | None) -> Figures:
        yield from binary_figures(np.array(judged), np.array([example.target for example in examples], dtype=bool))

    def rows(self, model: RiNALMo, output: Tensor, example: Example) -> list[dict[str, Any]]:
        probability = self.judge(model, output, example)
        return [{"id": example.name, "splice_site": int(probability > 0.5), "probability": probability}]


class NcrnaFamily(Task):
    """The family of a non-coding RNA."""

    name = "ncrna-family"
    options = ("pooling",)
    score = "accuracy"

    def __init__(self, classes: Sequence[str], pooling: str = "cls") -> None:
        self.classes, self.pooling = list(classes), pooling
        self.places = {name: place for place, name in enumerate(self.classes)}

    def settings(self) -> dict[str, Any]:
        return {"classes": self.classes} | pooled(self.pooling)

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        found = read_single(path, columns, ("label", "family", "class", "rna_type", "target"), cls.name)
        for example in found:
            require(class_name(example.target) != "", example, "has no class; drop the row or name its class")
            require_name(example, example.target, "the class")
        return [Example(e.name, e.sequence, class_name(e.target), e.group, e.where) for e in found]

    @classmethod
    def learned(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        classes = sorted({example.target for example in examples})
        require_several(classes, "the class")
        return cls(classes, **options)

    def heads(self) -> dict[str, dict[str, Any]]:
        return {"ncrna_family_head": {"num_labels": len(self.classes)} | pooled(self.pooling)}

    def understood(self, examples: Sequence[Example]) -> list[Example]:
        for example in examples:
            require_known(example, example.target, self.places)
        return list(examples)

    def outputs(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        return list(model.head("ncrna_family_head")(states, layout))

    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        logits = torch.stack(list(outputs)).float()
        target = torch.tensor([self.places[example.target] for example in examples], device=logits.device)
        return F.cross_entropy(logits, target, reduction="sum")

    def judge(self, model: RiNALMo, output: Tensor, example: Example) -> np.ndarray:
        return output.float().softmax(dim=-1).cpu().numpy()

    def figures(self, judged: Sequence[Any], examples: Sequence[Example], threshold: float | None) -> Figures:
        target = np.array([self.places[example.target] for example in examples])
        yield from class_figures(np.stack(list(judged)), target)

    def rows(self, model: RiNALMo, output: Tensor, example: Example) -> list[dict[str, Any]]:
        return [{"id": example.name, **class_answer("family", self.classes, self.judge(model, output, example))}]


def pooled(pooling: str) -> dict[str, Any]:
    """How a head pools, as one of its options and of a task's settings: nothing where it looks at CLS, as usual."""
    return {} if pooling == "cls" else {"pooling": pooling}


def truth(example: Example) -> bool:
    """A yes or no, however it is written."""
    text = str(example.target).strip().lower()
    require(text in (*_YES, *_NO), example, f"the label is {example.target!r}; it must be 0 or 1")
    return text in _YES


def class_name(value: Any) -> str:
    """The class that a cell names, without spaces around it. 2.0, as a column with gaps comes to be written, is 2."""
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", str("" if value is None else value).strip())


def require_several(classes: Collection[str], column: str) -> None:
    """Raise InputError if there is nothing to tell apart."""
    if len(classes) < 2:
        only = ", ".join(map(repr, classes)) or "nothing"
        raise InputError(f"{column} is {only} in all training examples; give examples of another class too")


def require_known(example: Example, name: str, places: Mapping[str, int]) -> None:
    """Raise InputError for a class that was not among the training examples."""
    few = ", ".join(list(places)[:8]) + (", …" if len(places) > 8 else "")
    require(name in places, example, f"the class {name!r} was not in the training data ({few})")


def require_name(example: Example, value: Any, column: str) -> None:
    """Raise InputError for a class called NaN, NA, None or null, which tables write where nothing is known."""
    hint = "drop the row, or give the class another name"
    require(not is_missing(value), example, f"{column} is {value!r}, which stands for a missing value; {hint}")


def class_answer(column: str, classes: Sequence[str], probabilities: np.ndarray) -> dict[str, Any]:
    """The likeliest class, its probability, and the probability of each."""
    best = int(probabilities.argmax())
    each = {f"p({name})": float(p) for name, p in zip(classes, probabilities, strict=True)}
    return {column: classes[best], "probability": float(probabilities[best]), **each}


def class_figures(probabilities: np.ndarray, target: np.ndarray) -> Figures:
    """Accuracy and F1, the mean over classes and weighted by their sizes, from `(examples, classes)`."""
    found = probabilities.argmax(axis=1)
    yield "accuracy", metrics.accuracy(target, found)
    yield "macro_f1", metrics.class_f1(target, found, "macro")
    yield "weighted_f1", metrics.class_f1(target, found, "weighted")


def binary_figures(probabilities: np.ndarray, target: np.ndarray) -> Figures:
    """What a yes-or-no answer is measured by, at a probability of 0.5."""
    found = probabilities > 0.5
    yield from metrics.binary_scores(target, found)._asdict().items()
    if target.any() and not target.all():
        yield "roc_auc", metrics.roc_auc(target, probabilities)

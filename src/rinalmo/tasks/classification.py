"""Labels of sequences and nucleotides: numbers, yes or no, classes; the paper's splice sites and ncRNA families.

Heads for sequences see the CLS token, or the mean of all tokens (`options.pooling`). Classes are named by the training
data, in alphabetical order; the published family model has 88 without names.

Reference: Penić et al. 2025 (arXiv:2403.00043), supplement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rinalmo import metrics
from rinalmo.io.tables import is_missing
from rinalmo.model.heads import IGNORE, ProblemType
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.base import Columns, Example, Per, Task, require
from rinalmo.tasks.examples import class_name, parse_bool, read_single_target, require_several


class LabelTask(Task):
    """One or several labels for each sequence or nucleotide, by a linear head."""

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
        """Make a task for these columns.

        Args:
            kind: What the columns hold.
            per: Whether they hold a value for each sequence, or a list with one for each nucleotide.
            targets: Names of the columns.
            classes: Names of the classes, for "multiclass".
            mean: Mean of each column over the training examples, for "regression".
            std: Standard deviation of each.
            pooling: What the head sees of a sequence: "cls" or "mean".
        """
        self.kind, self.per, self.targets, self.classes = kind, per, list(targets), list(classes)
        self.mean, self.std = list(mean), list(std)
        self.pooling_options: dict[str, Any] = {} if pooling == "cls" else {"pooling": pooling}

    def heads(self) -> dict[str, dict[str, Any]]:
        options = {"num_labels": len(self.classes) or len(self.targets)}
        if self.per == "nucleotide":
            return {"token_head": options}
        return {"pooler": self.pooling_options, "sequence_head": options}

    def forward(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        if self.per == "sequence":
            return list(model.head("sequence_head")(model.head("pooler")(states, layout)))
        parts = [part[1:-1] for part in layout.split(states)]  # without CLS and EOS
        return model.head("token_head")(torch.cat(parts)).split([len(part) for part in parts])

    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        logits = (torch.cat if self.per == "nucleotide" else torch.stack)(list(outputs)).float()
        target = (np.concatenate if self.per == "nucleotide" else np.stack)(list(map(_target_of, examples)))
        if self.kind == "multiclass":
            class_ids = torch.from_numpy(target).to(logits.device).long()
            return F.cross_entropy(logits, class_ids, ignore_index=IGNORE, reduction="sum")
        keep = torch.from_numpy(is_known(target)).to(logits.device)
        if self.kind == "regression":
            target = (target - np.asarray(self.mean)) / np.asarray(self.std)  # in fp64, which not every device has
        expected = torch.from_numpy(target.astype(np.float32)).to(logits.device)
        if self.kind == "regression":
            return F.mse_loss(logits[keep], expected[keep], reduction="sum")
        return F.binary_cross_entropy_with_logits(logits[keep], expected[keep], reduction="sum")

    def score_example(self, model: RiNALMo, output: Tensor, example: Example) -> np.ndarray:
        match self.kind:
            case "regression":
                return (output.cpu().double().numpy() * self.std + self.mean).astype(np.float32)
            case "multiclass":
                return output.float().softmax(dim=-1).cpu().numpy()
            case _:
                return output.float().sigmoid().cpu().numpy()

    def metrics(self, scores: Sequence[Any], examples: Sequence[Example], threshold: float | None) -> dict[str, float]:
        stack = np.concatenate if self.per == "nucleotide" else np.stack
        predicted, target = stack(scores), stack(list(map(_target_of, examples)))
        known = is_known(target)
        if self.kind == "multiclass":
            classes = predicted[known].argmax(axis=1)
            return metrics.class_scores(target[known], classes)._asdict() if known.any() else {}
        of_each: dict[str, list[float]] = {}
        of_column: dict[str, float] = {}
        for index, column in enumerate(self.targets):
            rows = known[:, index]
            if not rows.any():
                continue
            if self.kind == "regression":
                of_numbers = metrics.regression_scores(target[rows, index], predicted[rows, index])
                values = {"r2": of_numbers.r2, "spearman": of_numbers.spearman}
                values |= {"rmse": math.sqrt(of_numbers.mse), "mae": of_numbers.mae}
            else:
                values = metrics.binary_scores(target[rows, index], predicted[rows, index])._asdict()
            for name, value in values.items():
                if name == "roc_auc" and math.isnan(value):  # only one class
                    continue
                of_each.setdefault(name, []).append(value)
                of_column[f"{name}/{column}"] = value
        means = dict(zip(of_each, map(float, map(np.mean, of_each.values())), strict=True))
        return means if len(self.targets) == 1 else means | of_column

    def rows(self, model: RiNALMo, output: Tensor, example: Example) -> list[dict[str, Any]]:
        values = self.score_example(model, output, example)
        if self.per == "sequence":
            return [{"id": example.name, **self.answer(values)}]
        nucleotides = enumerate(zip(example.sequence, values, strict=True), start=1)
        return [
            {"id": example.name, "position": i, "nucleotide": letter, **self.answer(row)}
            for i, (letter, row) in nucleotides
        ]

    def answer(self, values: np.ndarray) -> dict[str, Any]:
        """The columns of one prediction: numbers, yes or no with probabilities, or the most probable class."""
        if self.kind == "multiclass":
            best = int(values.argmax())
            each = {f"p({name})": float(p) for name, p in zip(self.classes, values, strict=True)}
            return {self.targets[0]: self.classes[best], "probability": float(values[best]), **each}
        pairs = list(zip(self.targets, values, strict=True))
        if self.kind == "regression":
            return {name: float(value) for name, value in pairs}
        return {name: int(p > 0.5) for name, p in pairs} | {f"p({name})": float(p) for name, p in pairs}

    def class_id(self, example: Example, name: str) -> int:
        """The index of a class; raises InputError for one that is not in the training data."""
        few = ", ".join(self.classes[:8]) + (", …" if len(self.classes) > 8 else "")
        require(name in self.classes, example, f"the class {name!r} was not in the training data ({few})")
        return self.classes.index(name)


class SpliceSite(LabelTask):
    """Whether the centre of the sequence is a splice site; one model for donors, another for acceptors."""

    name = "splice-site"
    options = ("pooling",)
    selection_metric = "f1"

    def __init__(self, pooling: str = "cls") -> None:
        super().__init__("binary", "sequence", ["splice_site"], pooling=pooling)
        self.settings = self.pooling_options

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        examples = read_single_target(path, columns, ("label", "target", "splice_site"), cls.name)
        return [replace(example, target=parse_bool(example, example.target)) for example in examples]

    @classmethod
    def from_examples(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        require_several({str(int(example.target)) for example in examples}, "the label")
        return cls(**options)

    def encode_targets(self, examples: Sequence[Example]) -> list[Example]:
        return [replace(example, target=np.array([example.target], dtype=int)) for example in examples]

    def heads(self) -> dict[str, dict[str, Any]]:
        return {"splice_site_head": self.pooling_options}

    def forward(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        return list(model.head("splice_site_head")(states, layout))

    def answer(self, values: np.ndarray) -> dict[str, Any]:
        return {"splice_site": int(values[0] > 0.5), "probability": float(values[0])}


class NcrnaFamily(LabelTask):
    """The family of a non-coding RNA."""

    name = "ncrna-family"
    options = ("pooling",)
    selection_metric = "accuracy"

    def __init__(self, classes: Sequence[str], pooling: str = "cls") -> None:
        super().__init__("multiclass", "sequence", ["family"], classes, pooling=pooling)
        self.settings = {"classes": self.classes} | self.pooling_options

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        examples = read_single_target(path, columns, ("label", "family", "class", "rna_type", "target"), cls.name)
        hint = "drop the row, or give the class another name"
        for example in examples:
            value = example.target
            require(class_name(value) != "", example, "has no class; drop the row or name its class")
            missing = f"the class is {value!r}, which stands for a missing value; {hint}"
            require(not is_missing(value), example, missing)
        return [replace(example, target=class_name(example.target)) for example in examples]

    @classmethod
    def from_examples(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        classes = sorted({example.target for example in examples})
        require_several(classes, "the class")
        return cls(classes, **options)

    def encode_targets(self, examples: Sequence[Example]) -> list[Example]:
        return [replace(example, target=np.array(self.class_id(example, example.target))) for example in examples]

    def heads(self) -> dict[str, dict[str, Any]]:
        return {"ncrna_family_head": {"num_labels": len(self.classes)} | self.pooling_options}

    def forward(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        return list(model.head("ncrna_family_head")(states, layout))


_target_of = attrgetter("target")


def is_known(target: np.ndarray) -> np.ndarray:
    """Where there is a value: numbers that are missing are NaN, other labels -100."""
    return ~np.isnan(target) if target.dtype.kind == "f" else target != IGNORE

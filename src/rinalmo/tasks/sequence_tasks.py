"""The paper's tasks with one value per sequence: numbers and classes.

Numbers are mean ribosome load, translation efficiency and expression level, by the paper's convolutional head.
Ribosome load is learned as a standardized value with the squared error, and predictions are never below 0; the others
are learned as they are, with the Huber loss. The published ribosome-load model was trained on sequences padded to one
length, and its predictions change without the padding (`rinalmo.model.packing.pack_padded`): it is served as it was
trained. Models trained here see no padding.

Classes are splice sites (yes or no) and ncRNA families: tables with one column and a head of their own, which sees the
CLS token, or the mean of all tokens (`options.pooling`). Families are named by the training data, in alphabetical
order; the published model has 88 without names.

Reference: Penić et al. 2025 (arXiv:2403.00043), supplement; Sample et al. 2019 (doi:10.1038/s41587-019-0164-5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rinalmo import metrics
from rinalmo.io.tables import is_missing
from rinalmo.model.heads import RibosomeLoadHead
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.base import (
    Columns,
    Example,
    Task,
    class_name,
    number,
    number_format,
    parse_bool,
    read_single_target,
    require,
    require_several,
)
from rinalmo.tasks.table import Table

PUBLISHED_PADDING = 102  # the authors' longest sequence, 100 nt, with CLS and EOS


class Regression(Task):
    """One number per sequence, by the paper's head, with the Huber loss."""

    selection_metric = "r2"
    columns: ClassVar[tuple[str, ...]]
    minimum: ClassVar[float] = float("-inf")

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        examples = read_single_target(path, columns, cls.columns, cls.name)
        cells = [example.target for example in examples if not is_missing(example.target)]
        hint = "; write the numbers with decimal points and without thousands separators"
        written = number_format(cells, f"{path}: the target", hint=hint)
        return [replace(e, target=number(e.target, e.where, "the target", written)) for e in examples]

    @classmethod
    def from_examples(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        task = cls()
        if len(examples) > 1 and len({example.target for example in examples}) == 1:
            task.notes = ["the target is the same in all training examples, so there is nothing to learn"]
        return task

    def heads(self) -> dict[str, dict[str, Any]]:
        return {"ribosome_load_head": {}}

    def forward(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        return list(_head(model)(states, layout, standardized=True))

    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        predicted = torch.stack(list(outputs)).float()
        target = torch.tensor([example.target for example in examples], dtype=torch.float32, device=predicted.device)
        return F.huber_loss(predicted, target, reduction="sum")

    def score_example(self, model: RiNALMo, output: Tensor, example: Example) -> float:
        head = _head(model)
        return max(float(output.float() * head.target_std + head.target_mean), self.minimum)

    def metrics(self, scores: Sequence[Any], targets: Sequence[Any], threshold: float | None) -> dict[str, float]:
        return metrics.regression_scores(targets, scores)._asdict()

    def rows(self, model: RiNALMo, output: Tensor, example: Example) -> list[dict[str, Any]]:
        return [{"id": example.name, "prediction": self.score_example(model, output, example)}]


class RibosomeLoad(Regression):
    """Mean ribosome load of a 5' UTR."""

    name = "ribosome-load"
    columns = ("mrl", "rl", "mean_ribosome_load", "ribosome_load", "target", "label")
    minimum = 0.0

    def __init__(self, filled_to: int = 0) -> None:
        """`filled_to`: shorter sequences are padded to this length in tokens, as they were in training."""
        self.pad_to = filled_to
        self.settings = {"filled_to": filled_to} if filled_to else {}

    def init_head(self, model: RiNALMo, examples: Sequence[Example]) -> None:
        values = torch.tensor([example.target for example in examples], dtype=torch.float64)
        head = _head(model)
        head.target_mean.fill_(values.mean())
        head.target_std.fill_(max(float(values.std(correction=0)), 1e-6))

    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        head, predicted = _head(model), torch.stack(list(outputs)).float()
        target = torch.tensor([example.target for example in examples], dtype=torch.float32, device=predicted.device)
        return F.mse_loss(predicted, (target - head.target_mean) / head.target_std, reduction="sum")


class TranslationEfficiency(Regression):
    """Translation efficiency of an endogenous 5' UTR."""

    name = "translation-efficiency"
    columns = ("te", "log_te", "te_log", "target", "label")


class ExpressionLevel(Regression):
    """Expression level of the transcript of a 5' UTR."""

    name = "expression-level"
    columns = ("el", "log_el", "rnaseq_log", "rpkm", "rnaseq_rpkm", "target", "label")


def _head(model: RiNALMo) -> RibosomeLoadHead:
    head = model.head("ribosome_load_head")
    assert isinstance(head, RibosomeLoadHead)
    return head


class SpliceSite(Table):
    """Whether the centre of the sequence is a splice site; one model for donors, another for acceptors."""

    name = "splice-site"
    options = ("pooling",)

    def __init__(self, pooling: str = "cls") -> None:
        super().__init__("binary", "sequence", ["splice_site"], pooling=pooling)
        self.settings, self.selection_metric = self.pooling_options, "f1"

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


class NcrnaFamily(Table):
    """The family of a non-coding RNA."""

    name = "ncrna-family"
    options = ("pooling",)

    def __init__(self, classes: Sequence[str], pooling: str = "cls") -> None:
        super().__init__("multiclass", "sequence", ["family"], classes, pooling=pooling)
        self.settings = {"classes": self.classes} | self.pooling_options

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        examples = read_single_target(path, columns, ("label", "family", "class", "rna_type", "target"), cls.name)
        hint = "delete the row, or rename the class"
        for example in examples:
            value = example.target
            require(class_name(value) != "", example, "has no class; delete the row or add its class")
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

"""One number per sequence: mean ribosome load, translation efficiency, expression level.

All use the paper's convolutional head. Ribosome load is learned as a standardized value with the squared error, and
predictions are never below 0; translation efficiency and expression level are learned as they are, with the Huber loss.

The published ribosome-load model was trained on sequences padded to one length, and its predictions change without the
padding (`rinalmo.model.packing.pack_padded`): it is served as it was trained. Models trained here see no padding.

Reference: Penić et al. 2025 (arXiv:2403.00043), supplement; Sample et al. 2019 (doi:10.1038/s41587-019-0164-5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from rinalmo import metrics
from rinalmo.io.tables import is_missing
from rinalmo.model.heads import RibosomeLoadHead
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.base import Columns, Example, Task
from rinalmo.tasks.examples import number, number_format, read_single_target

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

    def metrics(self, scores: Sequence[Any], examples: Sequence[Example], threshold: float | None) -> dict[str, float]:
        return metrics.regression_scores([example.target for example in examples], scores)._asdict()

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

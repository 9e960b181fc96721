"""One number per sequence: mean ribosome load, translation efficiency, expression.

All use the paper's convolutional head. Ribosome load compares standardised values by squared error and is never below
0; translation efficiency and expression compare plain values by the Huber loss.

The published ribosome-load model was trained on sequences filled up with pad tokens, and its answers change without
them (`rinalmo.model.packing.pack_padded`): it is served as it was trained. Trained here, no sequence is filled up.

Reference: Penić et al. 2025 (arXiv:2403.00043), supplement; Sample et al. 2019 (doi:10.1038/s41587-019-0164-5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rinalmo import metrics
from rinalmo.errors import InputError
from rinalmo.io.tables import is_missing
from rinalmo.model.heads import RibosomeLoadHead
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.base import Columns, Example, Figures, Task
from rinalmo.tasks.examples import number, number_format, read_single


class _Regression(Task):
    """What the tasks of this file share."""

    score = "r2"
    columns: ClassVar[tuple[str, ...]]
    is_constant = False  # whether all training examples have one target

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        examples = read_single(path, columns, cls.columns, cls.name)
        cells = [example.target for example in examples if not is_missing(example.target)]
        hint = "; write the numbers with decimal points and without thousands separators"
        written = number_format(cells, f"{path}: the target", hint=hint)
        return [replace(e, target=number(e.target, e.where, "the target", written)) for e in examples]

    @classmethod
    def learned(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        task = cls()
        task.is_constant = len(examples) > 1 and len({example.target for example in examples}) == 1
        return task

    def described(self) -> str:
        text = "the target is the same in all training examples; there is nothing to learn from it"
        return text if self.is_constant else ""

    def heads(self) -> dict[str, dict[str, Any]]:
        return {"ribosome_load_head": {}}

    def outputs(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        return list(_head(model).standardised(states, layout))

    def judge(self, model: RiNALMo, output: Tensor, example: Example) -> float:
        head = _head(model)
        return self.bounded(float(output.float() * head.target_std + head.target_mean))

    def bounded(self, value: float) -> float:
        """The prediction as it is given out."""
        return value

    def figures(self, judged: Sequence[Any], examples: Sequence[Example], threshold: float | None) -> Figures:
        target, found = np.array([example.target for example in examples]), np.array(judged)
        yield "r2", metrics.r2(target, found)
        yield "spearman", metrics.spearman(target, found)
        yield "mse", metrics.mean_squared_error(target, found)
        yield "mae", metrics.mean_absolute_error(target, found)

    def rows(self, model: RiNALMo, output: Tensor, example: Example) -> list[dict[str, Any]]:
        return [{"id": example.name, "prediction": self.judge(model, output, example)}]


PUBLISHED_FILLING = 102  # the authors' longest sequence, 100 nt, with CLS and EOS


class RibosomeLoad(_Regression):
    """Mean ribosome load of a 5' UTR."""

    name = "ribosome-load"
    columns: ClassVar[tuple[str, ...]] = ("mrl", "rl", "mean_ribosome_load", "ribosome_load", "target", "label")

    def __init__(self, filled_to: int = 0) -> None:
        self.filled_to = filled_to

    def settings(self) -> dict[str, Any]:
        return {"filled_to": self.filled_to} if self.filled_to else {}

    def prepare(self, model: RiNALMo, examples: Sequence[Example]) -> None:
        values = torch.tensor([example.target for example in examples], dtype=torch.float64)
        head = _head(model)
        head.target_mean.fill_(values.mean())
        head.target_std.fill_(max(float(values.std(correction=0)), 1e-6))

    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        head = _head(model)
        target = (_targets(examples, outputs[0]) - head.target_mean) / head.target_std
        return F.mse_loss(torch.stack(list(outputs)).float(), target, reduction="sum")

    def bounded(self, value: float) -> float:
        return max(0.0, value)


class TranslationEfficiency(_Regression):
    """Translation efficiency of an endogenous 5' UTR."""

    name = "translation-efficiency"
    columns: ClassVar[tuple[str, ...]] = ("te", "log_te", "te_log", "target", "label")

    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        return F.huber_loss(torch.stack(list(outputs)).float(), _targets(examples, outputs[0]), reduction="sum")


class ExpressionLevel(TranslationEfficiency):
    """Expression level of the transcript of a 5' UTR."""

    name = "expression-level"
    columns: ClassVar[tuple[str, ...]] = ("el", "log_el", "rnaseq_log", "rpkm", "rnaseq_rpkm", "target", "label")


def filled(task: Task, length: int | None) -> Task:
    """The task with sequences filled up to so many tokens, 0 for none, None for what the model says."""
    if length is None:
        return task
    if not isinstance(task, RibosomeLoad):
        raise InputError(f"sequences are filled up for ribosome-load only, and the model is for {task.name}")
    task = copy(task)
    task.filled_to = length
    return task


def _head(model: RiNALMo) -> RibosomeLoadHead:
    head = model.head("ribosome_load_head")
    assert isinstance(head, RibosomeLoadHead)
    return head


def _targets(examples: Sequence[Example], like: Tensor) -> Tensor:
    return torch.tensor([example.target for example in examples], dtype=torch.float32, device=like.device)

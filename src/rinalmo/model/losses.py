"""Losses by kind of problem, as the published model card defines them, with ignored entries left out.

    regression   mean squared error; NaN targets are ignored
    binary       binary cross-entropy on logits; -100 is ignored
    multiclass   cross-entropy; -100 is ignored
    multilabel   soft-margin loss, averaged over the labels; a -100 masks that entry

A batch in which everything is ignored gives 0, with a gradient of 0.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rinalmo.errors import InputError

ProblemType = Literal["regression", "binary", "multiclass", "multilabel"]
IGNORE = -100


def infer_problem_type(labels: Tensor, num_labels: int) -> ProblemType:
    """The kind of problem that labels without a declared one speak of. -100 never counts as a value."""
    if labels.is_floating_point():
        return "regression"
    if num_labels == 1:
        return "binary"
    values = labels[labels != IGNORE].unique()
    is_matrix = labels.dim() > 1 and labels.shape[-1] == num_labels
    two_valued = len(values) == 2 or bool(((values == 0) | (values == 1)).all())
    return "multilabel" if is_matrix and two_valued else "multiclass"


def label_loss(logits: Tensor, labels: Tensor, problem_type: ProblemType) -> Tensor:
    """Mean loss in fp32 of logits `(…, labels)` against labels `(…)` (multiclass) or `(…, labels)`."""
    logits = logits.float()
    if problem_type == "multiclass":
        return _cross_entropy(logits, labels)
    labels = _matched(logits, labels).to(logits.device)
    if problem_type == "regression":
        keep = ~labels.isnan()
        return _mean(F.mse_loss(logits[keep], labels[keep].float(), reduction="none"))
    keep = labels != IGNORE
    wrong = labels[keep & (labels != 0) & (labels != 1)]
    if wrong.numel():
        raise InputError(f"{problem_type} labels are 0 or 1 (or {IGNORE}: ignored), not {wrong[0].item()}")
    losses = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).float(), reduction="none")
    if problem_type == "binary":
        return _mean(losses[keep])
    # Soft margin: entries are averaged within each row first, then rows.
    rows = keep.any(dim=-1)
    return _mean((losses * keep).sum(-1)[rows] / losses.shape[-1])


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.shape != logits.shape[:-1]:
        raise _mismatch(logits, labels)
    flat, targets = logits.flatten(0, -2), labels.flatten().to(logits.device)
    if bool((targets == IGNORE).all()):
        return flat.sum() * 0.0
    return F.cross_entropy(flat, targets.long(), ignore_index=IGNORE)


def _matched(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.shape[-1] == 1 and labels.shape == logits.shape[:-1]:
        return labels.unsqueeze(-1)
    if labels.shape != logits.shape:
        raise _mismatch(logits, labels)
    return labels


def _mean(values: Tensor) -> Tensor:
    return values.mean() if values.numel() else values.sum()


def _mismatch(logits: Tensor, labels: Tensor) -> InputError:
    return InputError(f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}")


def structure_loss(
    logits: Tensor,
    pairs: Tensor,
    region: Literal["upper", "full"] = "upper",
    problem_type: Literal["binary", "regression"] = "binary",
) -> Tensor:
    """Mean loss of one structure's logits `(length, length)` against its 0/1 pair matrix.

    `upper` counts each pair of positions once, as the paper does; `full` averages over the whole square. `binary` is
    the paper's cross-entropy; `regression` the squared error that the port arrives at when the labels are floats.
    Entries of -100 are ignored.
    """
    if logits.shape != pairs.shape:
        raise _mismatch(logits, pairs)
    keep = pairs != IGNORE
    if region == "upper":
        keep = keep & torch.ones_like(keep).triu(1)
    loss = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
    return _mean(loss(logits[keep].float(), pairs[keep].float(), reduction="none"))

"""Scores of predicted classes, numbered from 0; of two classes, 1 is the positive one.

A share of nothing is 0, as scikit-learn's `zero_division=0` has it. ROC-AUC with one class only is NaN.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rinalmo.errors import InputError
from rinalmo.metrics.checks import labels, numbers, same_number
from rinalmo.metrics.regression import ranks


class BinaryScores(NamedTuple):
    """What a confusion matrix of two classes tells."""

    accuracy: float
    precision: float
    recall: float
    specificity: float
    f1: float
    mcc: float


def accuracy(target: ArrayLike, predicted: ArrayLike) -> float:
    """The share of right classes."""
    matrix = confusion_matrix(target, predicted)
    return float(np.trace(matrix) / matrix.sum())


def confusion_matrix(target: ArrayLike, predicted: ArrayLike, classes: int = 0) -> np.ndarray:
    """How often each class (row) was predicted as each (column); at least `classes` of them."""
    truth, found = labels("the target", target), labels("the prediction", predicted)
    same_number(truth, found)
    size = max(classes, int(truth.max()) + 1, int(found.max()) + 1)
    return np.bincount(truth * size + found, minlength=size * size).reshape(size, size)


def binary_scores(target: ArrayLike, predicted: ArrayLike) -> BinaryScores:
    """Scores of 0/1 predictions against 0/1 targets."""
    matrix = confusion_matrix(target, predicted, 2)
    if len(matrix) > 2:
        raise InputError(f"there are {len(matrix)} classes; use class_f1 for more than two")
    (tn, fp), (fn, tp) = matrix.tolist()
    return BinaryScores(
        accuracy=(tp + tn) / (tp + tn + fp + fn),
        precision=_share(tp, tp + fp),
        recall=_share(tp, tp + fn),
        specificity=_share(tn, tn + fp),
        f1=_share(2 * tp, 2 * tp + fp + fn),
        mcc=matthews(tp, fp, fn, tn),
    )


def class_f1(target: ArrayLike, predicted: ArrayLike, average: str = "macro") -> float:
    """The mean of the classes' F1: equal weights (macro), or by their number in the target (weighted).

    Classes that are neither in the target nor predicted do not count.
    """
    if average not in ("macro", "weighted"):
        raise InputError(f"there is no average {average!r} of F1; use macro or weighted")
    matrix = confusion_matrix(target, predicted)
    hits, truth, found = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    seen = truth + found > 0
    f1 = 2 * hits[seen] / (truth + found)[seen]
    return float(np.average(f1, weights=truth[seen] if average == "weighted" else None))


def matthews(tp: int, fp: int, fn: int, tn: int) -> float:
    """Matthews' correlation coefficient from counts; 0 if a row or a column of the confusion matrix is empty."""
    return _share(tp * tn - fp * fn, sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def roc_auc(target: ArrayLike, scores: ArrayLike) -> float:
    """The chance that a positive scores higher than a negative, ties counted half; NaN without both."""
    truth, found = labels("the target", target), numbers("the scores", scores)
    same_number(truth, found)
    if truth.max() > 1:
        raise InputError("ROC-AUC is for the classes 0 and 1")
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    above = ranks(found)[truth == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def top_k_accuracy(target: ArrayLike, scores: np.ndarray, k: int) -> float:
    """The share of targets among the `k` classes of highest score, `(examples, classes)`; ties go to later classes.

    Raises InputError if the shapes do not fit or k is not from 1 to the number of classes.
    """
    truth = labels("the target", target)
    numbers("the scores", scores)
    same_number(truth, scores)
    if not 1 <= k <= scores.shape[1]:
        raise InputError(f"top {k} of {scores.shape[1]} classes cannot be taken")
    if truth.max() >= scores.shape[1]:
        raise InputError(f"the target has class {truth.max()}, but there are scores of {scores.shape[1]} classes")
    best = np.argsort(scores, axis=1, kind="stable")[:, -k:]
    return float((best == truth[:, None]).any(axis=1).mean())


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0

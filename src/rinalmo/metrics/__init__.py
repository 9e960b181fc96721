"""Scores of predictions; numpy in, floats out.

    pairs            base pairs: precision, recall, F1 and MCC; exact, ±1, canonical nested
    regression       R², Spearman, Pearson, mean squared and absolute error
    classification   accuracy, precision, recall, specificity, F1, MCC, ROC-AUC, top-k
    bootstrap        the interval of a mean

NaN is refused everywhere with an InputError: a missing value must be left out by whoever knows why it is missing.
"""

from rinalmo.metrics.bootstrap import bootstrap_interval
from rinalmo.metrics.classification import (
    BinaryScores,
    accuracy,
    binary_scores,
    class_f1,
    confusion_matrix,
    matthews,
    roc_auc,
    top_k_accuracy,
)
from rinalmo.metrics.pairs import PairScores, canonical_nested_scores, pair_matthews, pair_scores
from rinalmo.metrics.regression import mean_absolute_error, mean_squared_error, pearson, r2, ranks, spearman

__all__ = [
    "BinaryScores",
    "PairScores",
    "accuracy",
    "binary_scores",
    "bootstrap_interval",
    "canonical_nested_scores",
    "class_f1",
    "confusion_matrix",
    "matthews",
    "mean_absolute_error",
    "mean_squared_error",
    "pair_matthews",
    "pair_scores",
    "pearson",
    "r2",
    "ranks",
    "roc_auc",
    "spearman",
    "top_k_accuracy",
]

"""Linear models on fixed features of whole sequences, with an L2 penalty whose strength is chosen by cross-validation.

    features   frequencies of k-mers, and hidden states of several layers: means and maxima over nucleotides, CLS
    numbers    ridge regression, in closed form; the penalty of the least leave-one-out error
    classes    logistic regression, by L-BFGS; the penalty of the least cross-validated loss

On k-mers alone it is the baseline that fine-tuned models are compared with, on both the head of a frozen backbone.
Features are standardized for the fit; the weights found are for the features as they are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rinalmo.model.heads import IGNORE, ProblemType
from rinalmo.rna.alphabet import Alphabet

_PENALTIES = [10 ** (step / 2) for step in range(5, -9, -1)]  # per example, strong ones first
_DEFAULT_PENALTY, _FEWEST = 0.1, 10  # for fewer examples than can be cross-validated
_MAX_EXAMPLES = 10_000  # in the search for scale and penalty
_PATIENCE = 2  # penalties without gain that end the search
_STEPS, _TOLERANCE = 200, 3e-5  # of L-BFGS
_CHUNK = 4096  # examples standardized at once


class LinearFit(NamedTuple):
    """Outputs are `features @ weight.T + bias`: numbers, or logits.

    Attributes:
        weight: `(outputs, features)`, fp32.
        bias: `(outputs,)`.
    """

    weight: Tensor
    bias: Tensor


def kmer_frequencies(ids: np.ndarray, alphabet: Alphabet, longest: int) -> np.ndarray:
    """The frequency of each word of 1 to `longest` nucleotides among the words of its length.

    Args:
        ids: Token ids of a sequence.
        alphabet: The tokens that they stand for.
        longest: Nucleotides of the longest words.

    Returns:
        fp32 `(4 + 16 + … + 4 ** longest,)`; words with another letter than A, C, G and U are left out.
    """
    parts = []
    for size in range(1, longest + 1):
        _, words = kmers(ids, alphabet, size)
        parts.append(np.bincount(words, minlength=4**size) / max(1, len(words)))
    return np.concatenate(parts).astype(np.float32)


def kmers(ids: np.ndarray, alphabet: Alphabet, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the words of `size` nucleotides A, C, G and U begin among token ids, and the number of each word."""
    if len(ids) < size:
        return np.empty(0, int), np.empty(0, int)
    codes = np.full(alphabet.size, -1)
    codes[list(alphabet.nucleotide_ids)] = range(4)
    words = np.lib.stride_tricks.sliding_window_view(codes[ids], size)
    starts = np.flatnonzero((words >= 0).all(axis=1))
    return starts, words[starts] @ 4 ** np.arange(size - 1, -1, -1)


def kmer_count(longest: int) -> int:
    """The number of words of 1 to `longest` nucleotides."""
    return sum(4**size for size in range(1, longest + 1))


def fit_linear(
    features: Tensor, targets: np.ndarray, kind: ProblemType, outputs: int, seed: int = 0, scale: Tensor | None = None
) -> LinearFit:
    """Fit a linear model.

    Args:
        features: `(examples, features)`.
        targets: Class ids `(examples,)` for "multiclass"; else `(examples, outputs)`: numbers, NaN where there is none,
            or 0 and 1, -100 where there is none.
        kind: What the targets are.
        outputs: Number of classes or columns.
        seed: Of the folds of the cross-validation.
        scale: Standard deviations that the features are given `(features,)`: the larger, the less they are penalized;
            or several candidates `(candidates, features)`. None: 1.

    Returns:
        The model with the scale and the penalty of the lowest cross-validated loss, for each column its own.
    """
    scale = torch.ones(features.shape[1]) if scale is None else scale
    if kind == "multiclass":
        one_hot = F.one_hot(torch.from_numpy(targets.astype(np.int64)), outputs).float()
        return _fit_column(features, one_hot, kind, seed, scale)
    columns = []
    for column in targets.reshape(len(features), -1).T:
        known = ~np.isnan(column) if kind == "regression" else column != IGNORE
        column_targets = torch.from_numpy(column[known].astype(np.float32))[:, None]
        columns.append(_fit_column(features[torch.from_numpy(known)], column_targets, kind, seed, scale))
    return LinearFit(torch.cat([fitted.weight for fitted in columns]), torch.cat([fitted.bias for fitted in columns]))


def _fit_column(features: Tensor, targets: Tensor, kind: ProblemType, seed: int, scale: Tensor) -> LinearFit:
    if not len(features):
        return LinearFit(torch.zeros(targets.shape[1], features.shape[1]), torch.zeros(targets.shape[1]))
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    std = torch.where(std < 1e-6 * features.abs().amax(dim=0).clamp(min=1e-3), 1.0, std)
    offset, spread = torch.zeros(()), torch.ones(())
    if kind == "regression":
        offset, spread = targets.mean(), targets.std(correction=0).clamp(min=1e-12)
        targets = (targets - offset) / spread
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(targets))[:_MAX_EXAMPLES])
    is_all, search = len(order) == len(targets), _ridge_search if kind == "regression" else _logistic_search
    if is_all:
        order = torch.arange(len(targets))
    best: tuple[float, float, Tensor, _Components] | None = None
    for candidate in scale.reshape(-1, len(std)):
        components = _principal_components(features[order], mean, std / candidate)
        loss, penalty = search(components, targets[order], seed)
        if best is None or loss < best[0]:
            best = loss, penalty, std / candidate, components
    assert best is not None
    _, penalty, std, components = best
    if not is_all:
        components = _principal_components(features, mean, std)
    fitted = (_ridge if kind == "regression" else _logistic)(components, targets, penalty)
    weight, bias = fitted[:, :-1] @ components.basis * spread / std, fitted[:, -1] * spread + offset
    return LinearFit(weight, bias - weight @ mean)


class _Components(NamedTuple):
    """Centered examples in the basis of their principal components: `examples @ basis` are the examples themselves.

    One decomposition serves all penalties and folds: the penalized loss is the same in every orthonormal basis, and
    in this one its second derivatives are nearly diagonal.
    """

    examples: Tensor  # (examples, rank)
    variances: Tensor  # (rank,)
    basis: Tensor  # (rank, features)


def _principal_components(features: Tensor, mean: Tensor, std: Tensor) -> _Components:
    def standardized(part: Tensor) -> Tensor:
        return (part - mean) / std

    if len(features) < features.shape[1]:  # the weights lie in the span of the examples
        x = standardized(features).double()
        gram = x @ x.T
    else:
        gram = torch.zeros(2 * [features.shape[1]], dtype=torch.float64)
        for part in map(standardized, features.split(_CHUNK)):
            gram += (part.T @ part).double()
    values, vectors = torch.linalg.eigh(gram)
    keep = values > 1e-9 * values[-1].clamp(min=1e-30)
    values, vectors = values[keep], vectors[:, keep]
    variances = (values / len(features)).float()
    if len(features) < features.shape[1]:
        basis = (vectors / values.sqrt()).T @ x
        return _Components((vectors * values.sqrt()).float(), variances, basis.float())
    basis = vectors.float()
    examples = torch.cat([standardized(part) @ basis for part in features.split(_CHUNK)])
    return _Components(examples, variances, basis.T)


def _ridge_search(components: _Components, targets: Tensor, seed: int) -> tuple[float, float]:
    """The least leave-one-out error of ridge regression, and the penalty that has it; no seed is needed.

    The residual of an example that was left out is that of the fit to all, over one minus the example's leverage.
    """
    examples, variances, _ = components
    penalties = torch.tensor(_PENALTIES if len(targets) >= _FEWEST else [_DEFAULT_PENALTY])
    shrunk = 1 / (variances[:, None] + penalties)  # (rank, penalties)
    leverages = (examples.square() @ shrunk + 1) / len(targets)
    residuals = targets - examples @ (shrunk * (examples.T @ targets / len(targets)))
    losses = (residuals / (1 - leverages).clamp(min=1e-6)).square().mean(dim=0)
    return float(losses.min()), float(penalties[losses.argmin()])


def _ridge(components: _Components, targets: Tensor, penalty: float) -> Tensor:
    """The weights of ridge regression on centered targets `(examples, 1)` and, in the last column, a bias of 0."""
    weights = (components.examples.T @ targets)[:, 0] / len(targets) / (components.variances + penalty)
    return torch.cat([weights, torch.zeros(1)])[None]


def _logistic_search(components: _Components, targets: Tensor, seed: int) -> tuple[float, float]:
    """The least cross-validated loss of logistic regression, and the penalty that has it."""
    if len(targets) < _FEWEST:
        return math.inf, _DEFAULT_PENALTY
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(targets)))
    count = 5 if len(order) < 2000 else 3
    folds = []
    for number in range(count):
        held_out = torch.zeros(len(order), dtype=torch.bool)
        held_out[number::count] = True
        train, others = order[~held_out], order[held_out]
        folds.append((components._replace(examples=components.examples[train]), train, others))
    weights: list[Tensor | None] = [None] * count
    best, chosen, waited = math.inf, _DEFAULT_PENALTY, 0
    for penalty in _PENALTIES:
        loss = 0.0
        for number, (part, train, others) in enumerate(folds):
            # Each penalty starts from the weights of the one before.
            fitted = weights[number] = _logistic(part, targets[train], penalty, weights[number])
            outputs = components.examples[others] @ fitted[:, :-1].T + fitted[:, -1]
            loss += float(_cross_entropy(outputs, targets[others])) / count
        if loss < best * (1 - 1e-4):
            best, chosen, waited = loss, penalty, 0
        elif (waited := waited + 1) >= _PATIENCE and best < math.inf:
            break
    return best, chosen


def _logistic(components: _Components, targets: Tensor, penalty: float, start: Tensor | None = None) -> Tensor:
    """Weights and, in the last column, biases of logistic regression, `(outputs, rank + 1)`.

    The mean cross entropy plus half the penalty times the squared weights is minimal. L-BFGS searches for the weights
    divided by a scale with which the diagonal of the second derivatives, at equal probabilities, is 1.

    Args:
        components: The examples.
        targets: One-hot classes `(examples, classes)`, or 0 and 1 `(examples, 1)`.
        penalty: Strength of the penalty.
        start: Weights to start from.
    """
    examples, variances, _ = components
    classes = max(2, targets.shape[1])
    curvature = (1 - 1 / classes) / classes
    penalties = torch.full((len(variances) + 1,), penalty)
    penalties[-1] = 0
    scale = (curvature * torch.cat([variances, torch.ones(1)]) + penalties).rsqrt()
    scaled = torch.zeros(targets.shape[1], len(penalties)) if start is None else start / scale
    scaled.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled],
        max_iter=_STEPS,
        history_size=10,
        tolerance_grad=_TOLERANCE,
        tolerance_change=1e-8,
        line_search_fn="strong_wolfe",
    )

    def loss_with_gradient() -> Tensor:
        optimizer.zero_grad()
        weights = scaled * scale
        loss = _cross_entropy(examples @ weights[:, :-1].T + weights[:, -1], targets)
        loss = loss + (penalties * weights.square()).sum() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(loss_with_gradient)  # type: ignore[arg-type]
    return (scaled * scale).detach()


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    if targets.shape[1] > 1:
        return F.cross_entropy(outputs, targets)
    return F.binary_cross_entropy_with_logits(outputs, targets)

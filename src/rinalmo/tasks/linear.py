"""Linear models on fixed features of whole sequences, with an L2 penalty whose strength is chosen by cross-validation.

    features   frequencies of k-mers, and hidden states of several layers averaged over the nucleotides
    numbers    ridge regression, in closed form
    classes    logistic regression, by L-BFGS

On k-mers alone it is the baseline that fine-tuned models are compared with, on both the head of a frozen backbone.
Features are standardized for the fit; the weights found are for the features as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rinalmo.model.heads import IGNORE, ProblemType
from rinalmo.rna.alphabet import Alphabet

_PENALTIES = [10 ** (step / 2) for step in range(3, -9, -1)]  # per example, strong ones first
_DEFAULT_PENALTY, _FEWEST = 0.1, 10  # for fewer examples than can be cross-validated
_MAX_EXAMPLES = 20_000  # in the search for the penalty
_PATIENCE = 2  # penalties without gain that end the search
_STEPS = 200


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
    codes = np.full(alphabet.size, -1)
    for code, letter in enumerate("ACGU"):
        codes[alphabet.encode(letter, strict=True)[1]] = code
    found, parts = codes[ids], list[np.ndarray]()
    for size in range(1, longest + 1):
        counts = np.zeros(4**size, np.float32)
        if len(found) >= size:
            words = np.lib.stride_tricks.sliding_window_view(found, size)
            known = words[(words >= 0).all(axis=1)] @ 4 ** np.arange(size - 1, -1, -1)
            counts += np.bincount(known, minlength=4**size)
        parts.append(counts / max(1.0, float(counts.sum())))
    return np.concatenate(parts).astype(np.float32)


def kmer_count(longest: int) -> int:
    """The number of words of 1 to `longest` nucleotides."""
    return sum(4**size for size in range(1, longest + 1))


def fit_linear(features: Tensor, targets: np.ndarray, kind: ProblemType, outputs: int, seed: int = 0) -> LinearFit:
    """Fit a linear model.

    Args:
        features: `(examples, features)`.
        targets: Class ids `(examples,)` for "multiclass"; else `(examples, outputs)`: numbers, NaN where there is none,
            or 0 and 1, -100 where there is none.
        kind: What the targets are.
        outputs: Number of classes or columns.
        seed: Of the folds of the cross-validation.

    Returns:
        The model with the penalty of the lowest cross-validated loss, for each column its own.
    """
    if kind == "multiclass":
        return _fit_column(features, torch.from_numpy(targets.astype(np.int64)), kind, outputs, seed)
    columns = []
    for column in targets.reshape(len(features), -1).T:
        known = ~np.isnan(column) if kind == "regression" else column != IGNORE
        column_targets = torch.from_numpy(column[known].astype(np.float32))
        columns.append(_fit_column(features[torch.from_numpy(known)], column_targets, kind, 1, seed))
    return LinearFit(torch.cat([fitted.weight for fitted in columns]), torch.cat([fitted.bias for fitted in columns]))


def _fit_column(features: Tensor, targets: Tensor, kind: ProblemType, outputs: int, seed: int) -> LinearFit:
    if not len(features):
        return LinearFit(torch.zeros(outputs, features.shape[1]), torch.zeros(outputs))
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    std = torch.where(std < 1e-6 * features.abs().amax(dim=0).clamp(min=1e-3), 1.0, std)
    x = (features - mean) / std
    basis = None
    if len(x) < x.shape[1]:
        # The weights lie in the span of the examples: an orthonormal basis of that has far fewer dimensions.
        values, vectors = torch.linalg.eigh((x @ x.T).double())
        keep = values > 1e-9 * values[-1].clamp(min=1e-30)
        scale = values[keep].sqrt()
        basis = ((vectors[:, keep] / scale).T @ x.double()).float()
        x = (vectors[:, keep] * scale).float()
    offset, spread = torch.zeros(()), torch.ones(())
    if kind == "regression":
        offset, spread = targets.mean(), targets.std(correction=0).clamp(min=1e-12)
        targets = (targets - offset) / spread
    penalty = _choose_penalty(x, targets, kind, outputs, seed)
    weight, bias = next(_path(x, targets, kind, outputs, [penalty]))
    weight = weight if basis is None else weight @ basis
    weight, bias = weight * spread / std, bias * spread + offset
    return LinearFit(weight, bias - weight @ mean)


def _choose_penalty(x: Tensor, targets: Tensor, kind: ProblemType, outputs: int, seed: int) -> float:
    if len(x) < _FEWEST:
        return _DEFAULT_PENALTY
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x))[:_MAX_EXAMPLES])
    folds = 5 if len(order) < 2000 else 3
    paths, masks = [], []
    for fold in range(folds):
        held_out = torch.zeros(len(order), dtype=torch.bool)
        held_out[fold::folds] = True
        masks.append((order[~held_out], order[held_out]))
        paths.append(_path(x[order[~held_out]], targets[order[~held_out]], kind, outputs, _PENALTIES))
    best, chosen, waited = float("inf"), _DEFAULT_PENALTY, 0
    for penalty in _PENALTIES:
        loss = 0.0
        for path, (_, rest) in zip(paths, masks, strict=True):
            weight, bias = next(path)
            loss += float(_loss(x[rest] @ weight.T + bias, targets[rest], kind))
        if loss < best * (1 - 1e-4):
            best, chosen, waited = loss, penalty, 0
        elif (waited := waited + 1) >= _PATIENCE and best < float("inf"):
            break
    return chosen


def _path(
    x: Tensor, targets: Tensor, kind: ProblemType, outputs: int, penalties: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and bias for each penalty: the mean loss plus half the penalty times the squared weights is minimal."""
    if kind == "regression":
        mean, offset = x.mean(dim=0), targets.mean()
        centered = (x - mean).double()
        values, vectors = torch.linalg.eigh(centered.T @ centered / len(x))
        projected = vectors.T @ (centered.T @ (targets - offset).double() / len(x))
        for penalty in penalties:
            weight = (vectors @ (projected / (values.clamp(min=0) + penalty))).float()[None]
            yield weight, offset - weight @ mean
        return
    weight = torch.zeros(outputs, x.shape[1], requires_grad=True)
    bias = torch.zeros(outputs, requires_grad=True)
    for penalty in penalties:  # each starts from the one before
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=_STEPS, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
        )

        def closure(optimizer: torch.optim.LBFGS = optimizer, penalty: float = penalty) -> Tensor:
            optimizer.zero_grad()
            loss = _loss(x @ weight.T + bias, targets, kind) + penalty / 2 * weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[arg-type]
        yield weight.detach().clone(), bias.detach().clone()


def _loss(outputs: Tensor, targets: Tensor, kind: ProblemType) -> Tensor:
    if kind == "multiclass":
        return F.cross_entropy(outputs, targets)
    if kind == "regression":
        return F.mse_loss(outputs[:, 0], targets) / 2
    return F.binary_cross_entropy_with_logits(outputs[:, 0], targets)

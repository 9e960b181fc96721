"""Linear models of tables: a head on the frozen backbone, and the baselines that a run is compared with.

    features   frequencies of k-mers, and hidden states of several layers: means and maxima over nucleotides, CLS
    numbers    ridge regression, in closed form; the penalty of the least leave-one-out error
    classes    logistic regression, by L-BFGS; the penalty of the least cross-validated loss

Features are standardized for the fit; the weights found are for the features as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rinalmo.engine.devices import DeviceLike, choose_device
from rinalmo.engine.engine import Engine
from rinalmo.errors import InputError
from rinalmo.model.heads import IGNORE, ProblemType
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import ModelSpec, RiNALMo, create
from rinalmo.plots.charts import draw_confusion, draw_scatter
from rinalmo.rna.alphabet import Alphabet, kmer_count, kmer_frequencies
from rinalmo.tasks.base import Example, Task, encode_sequences
from rinalmo.tasks.evaluate import Evaluation, with_intervals
from rinalmo.tasks.table import Table, is_known
from rinalmo.training.recipes import FinetuneRecipe

KMERS = 4
POOLS = ("mean", "cls", "max")
_SHARES = (10.0, 1.0, 0.1)  # variance of the k-mers of each length, relative to that of all states; candidates
_FEW_ROWS, _LARGE = 400, 100_000_000  # rows, parameters
_REACH = 5  # nucleotides on either side, for the baseline of single nucleotides
_MAX_ROWS = 100_000  # that a baseline learns from
_MAX_VALUES = 400_000_000  # features of all rows that a head is fitted to: 1.6 GB, twice in memory
_PENALTIES = [10 ** (step / 2) for step in range(5, -9, -1)]  # per example, strong ones first
_DEFAULT_PENALTY, _FEWEST = 0.1, 10  # for fewer examples than can be cross-validated
_MAX_EXAMPLES = 10_000  # in the search for scale and penalty
_PATIENCE = 2  # penalties without gain that end the search
_STEPS, _TOLERANCE = 200, 3e-5  # of L-BFGS
_CHUNK = 4096  # examples standardized at once


def choose_modes(recipe: FinetuneRecipe, task: Task, parameters: int, rows: int) -> tuple[bool, str | None]:
    """Whether to fit a linear head, and which part of the backbone to train (None: no training).

    Raises InputError for a mode that is not for the task.
    """
    mode = recipe.backbone.mode
    for_sequences = type(task) is Table and task.per == "sequence"
    if mode == "linear" and not for_sequences:
        raise InputError("backbone.mode=linear needs a table with one value per sequence; use another mode")
    if mode == "linear" and recipe.options.pooling:
        raise InputError(
            "options.pooling cannot be used with backbone.mode=linear, whose head uses means; leave it out"
        )
    if mode == "linear":
        return True, None
    if mode != "auto":
        return False, mode
    if for_sequences and rows < _FEW_ROWS and not recipe.options.pooling:
        return True, None
    return for_sequences, "lora" if parameters >= _LARGE and find_spec("peft") else "full"


def engine_for(model: str | Path | RiNALMo, recipe: FinetuneRecipe, device: DeviceLike) -> Engine:
    """An engine with the precision and batches of a run; on a CPU, which trains in fp16 by autocast alone, its own."""
    is_emulated = recipe.train.precision == "fp16" and choose_device(device).type == "cpu"
    precision = "auto" if is_emulated else recipe.train.precision
    return Engine(model, precision, batch_tokens=recipe.data.micro_tokens, device=device)


def fit_head(
    recipe: FinetuneRecipe, task: Table, given: RiNALMo, examples: Sequence[Example], device: DeviceLike
) -> tuple[RiNALMo, str | None]:
    """The backbone of a model with a linear head, fitted on these examples with encoded targets.

    Of more than fit into memory some are drawn by the seed; then there is a note.
    """
    last = given.config.num_hidden_layers
    pair = task.inputs is not None and task.inputs.second  # four times as many features: of the last layer alone
    layers = [last] if pair else sorted({max(1, last // 3), max(1, 2 * last // 3), last})
    pools = POOLS[:1] if pair else POOLS
    settings = {name: value for name, value in task.settings.items() if name not in ("mean", "std", "pooling")}
    outputs = len(task.classes) or len(task.targets)
    if task.kind == "regression":
        settings |= {"mean": [0.0] * outputs, "std": [1.0] * outputs}
    own = Table(**settings, features={"layers": layers, "pools": list(pools), "kmers": KMERS})
    own.crop = task.crop
    heads: dict[str, Any] = {"lm_head": {}} if "lm_head" in given.spec.heads else {}
    model = create(ModelSpec(given.config, given.alphabet, heads | own.heads(), task=own.config()), recipe.train.seed)
    model.load_state_dict(given.state_dict(), strict=False)
    model.eval()
    engine = engine_for(model, recipe, device)

    scale, note = _scales(len(layers) * len(pools) * given.config.hidden_size), None
    if own.inputs:
        scale = F.pad(scale.repeat(1, own.inputs.vectors_per_example), (0, own.inputs.size), value=1.0)
        scale *= own.inputs.scale(scale.shape[1])
    most = _MAX_VALUES // scale.shape[1]
    if len(examples) > most:
        note = f"the linear head is fitted to {most:,} of {len(examples):,} training examples, as many as memory allows"
        chosen = np.random.default_rng(recipe.train.seed).permutation(len(examples))[:most]
        examples = [examples[i] for i in np.sort(chosen)]

    def compute(ids: Tensor, layout: Layout) -> list[Tensor]:
        states = engine.hidden_states(ids, layout, layers)
        return list(own.linear_features(model, ids, torch.cat(states, dim=-1), layout))

    ids = (part for example in examples for part in encode_sequences(example, own.crop, model.alphabet))
    vectors = [row.cpu() for row in engine.map(compute, ids)]
    features = own.inputs.join(vectors, examples) if own.inputs else torch.stack(vectors)
    del vectors
    targets = np.stack([example.target for example in examples])
    fitted = fit_linear(features, targets, task.kind, outputs, recipe.train.seed, scale)
    decoder: Any = model.head("linear_head").decoder
    decoder.weight, decoder.bias = nn.Parameter(fitted.weight), nn.Parameter(fitted.bias)
    return model, note


def _scales(states: int) -> Tensor:
    """Candidates for the standard deviations of a head's features: states first, then k-mers."""
    variances = torch.ones(len(_SHARES), states + kmer_count(KMERS))
    for row, share in zip(variances, _SHARES, strict=True):
        row[states:] = torch.cat([torch.full((4**size,), share * states / 4**size) for size in range(1, KMERS + 1)])
    return (variances / variances.mean(dim=1, keepdim=True)).sqrt()


def baselines(
    task: Table, model: RiNALMo, train: Sequence[Example], held_out: Sequence[Example], seed: int
) -> dict[str, Evaluation]:
    """Simple models that learned from the same training examples, evaluated on others, by name.

    The mean or the most frequent class, and a linear model of the frequencies of words of 1 to 4 nucleotides, of both
    sequences of a pair and with the other features; for single nucleotides, of the letters around each.
    """
    unit = copy(task)
    unit.mean, unit.std = [0.0] * len(task.mean), [1.0] * len(task.std)
    outputs, alphabet = len(task.classes) or len(task.targets), model.alphabet
    targets = [np.atleast_1d(example.target) if task.kind == "multiclass" else example.target for example in train]
    known = np.concatenate(targets) if task.per == "nucleotide" or task.kind == "multiclass" else np.stack(targets)
    constant = _constant(known.reshape(len(known), -1), task, outputs)

    def features_of(example: Example) -> Tensor:
        sequences = encode_sequences(example, task.crop, alphabet)
        if task.per == "nucleotide":
            return torch.from_numpy(_neighbors(sequences[0][1:-1], alphabet))
        parts = [kmer_frequencies(ids, alphabet, KMERS) for ids in sequences]
        parts += [example.features] if task.inputs else []
        return torch.from_numpy(np.concatenate(parts))[None]

    features = torch.cat([features_of(example) for example in train])
    chosen = np.random.default_rng(seed).permutation(len(features))[:_MAX_ROWS]
    scale = task.inputs.scale(features.shape[1]) if task.inputs else None
    fitted = fit_linear(features[torch.from_numpy(chosen)], known[chosen], task.kind, outputs, seed, scale)
    predictors: dict[str, Callable[[Tensor], Tensor]] = {
        "mean" if task.kind == "regression" else "majority": lambda rows: constant.expand(len(rows), -1),
        "k-mers" if task.per == "sequence" else "neighbors": lambda rows: rows @ fitted.weight.T + fitted.bias,
    }
    evaluations = {}
    for name, predictor in predictors.items():
        scores = []
        for example in held_out:
            output = predictor(features_of(example))
            scores.append(unit.score_example(model, output if task.per == "nucleotide" else output[0], example))
        evaluations[name] = with_intervals(task, scores, held_out, None, seed)
    return evaluations


def _constant(targets: np.ndarray, task: Table, outputs: int) -> Tensor:
    """The best constant outputs: means, or the logits of the shares."""
    if task.kind == "regression":
        return torch.from_numpy(np.nanmean(targets, axis=0)).float()
    if task.kind == "multiclass":
        counts = np.bincount(targets[is_known(targets)].astype(int), minlength=outputs)
        return torch.from_numpy(np.log(counts.clip(1e-9) / counts.sum())).float()
    shares = [np.clip(column[is_known(column)].mean(), 1e-6, 1 - 1e-6) for column in targets.T]
    return torch.logit(torch.tensor(shares, dtype=torch.float32))


def _neighbors(ids: np.ndarray, alphabet: Alphabet) -> np.ndarray:
    """One-hot letters around each nucleotide, `(length, 4 × 11)`."""
    letters = np.stack([ids == alphabet.encode(letter, strict=True)[1] for letter in "ACGU"], axis=1)
    padded = np.pad(letters, ((_REACH, _REACH), (0, 0)))
    return np.concatenate([padded[i : i + len(ids)] for i in range(2 * _REACH + 1)], axis=1).astype(np.float32)


def draw_predictions(task: Table, scores: Sequence[Any], examples: Sequence[Example], title: str, path: Path) -> None:
    """Draw predicted beside true values: a confusion matrix, or scatter plots of numbers."""
    stack = np.concatenate if task.per == "nucleotide" else np.stack
    predicted, target = stack(scores), stack([example.target for example in examples])
    if task.kind == "regression":
        draw_scatter(target, predicted, task.targets, title, path)
        return
    known = is_known(target)
    if task.kind == "multiclass":
        draw_confusion(target[known], predicted[known].argmax(axis=1), task.classes, title, path)
        return
    draw_confusion(target[known], (predicted[known] > 0.5).astype(int), ["0", "1"], title, path)


def comparison(values: Mapping[str, float], others: Mapping[str, Evaluation], metric: str) -> str:
    """One line: the selection metric of a model, and of the baselines on the same examples."""
    parts = [f"{metric} {values[metric]:.3f}"] if metric in values else []
    parts += [f"{name} {of.metrics[metric].value:.3f}" for name, of in others.items() if metric in of.metrics]
    return "; ".join(parts)


# Fitting


class LinearFit(NamedTuple):
    """Outputs are `features @ weight.T + bias`: numbers, or logits.

    Attributes:
        weight: `(outputs, features)`, fp32.
        bias: `(outputs,)`.
    """

    weight: Tensor
    bias: Tensor


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

    Targets are one-hot classes `(examples, classes)`, or 0 and 1 `(examples, 1)`. The mean cross entropy plus half the
    penalty times the squared weights is minimal. L-BFGS, from the weights `start`, searches for the weights divided by
    a scale with which the diagonal of the second derivatives, at equal probabilities, is 1.
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

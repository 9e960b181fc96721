"""Linear models of a run on a table: a head on the frozen backbone, and the baselines that a run is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rinalmo.engine.devices import DeviceLike, choose_device
from rinalmo.engine.engine import Engine
from rinalmo.errors import InputError
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import ModelSpec, RiNALMo, create
from rinalmo.plots.predictions import draw_confusion, draw_scatter
from rinalmo.rna.alphabet import Alphabet
from rinalmo.tasks.base import Example, Task
from rinalmo.tasks.evaluate import Evaluation, with_intervals
from rinalmo.tasks.inputs import encode_sequences
from rinalmo.tasks.linear import fit_linear, kmer_frequencies
from rinalmo.tasks.table import Table, is_known
from rinalmo.training.recipes import FinetuneRecipe

KMERS = 4
POOLS = ("mean", "cls", "max")
_SHARES = (10.0, 1.0, 0.1)  # variance of the k-mers of each length, relative to that of all states; candidates
_FEW_ROWS, _LARGE = 400, 100_000_000  # rows, parameters
_REACH = 5  # nucleotides on either side, for the baseline of single nucleotides
_MAX_ROWS = 100_000  # that a baseline learns from
_MAX_VALUES = 400_000_000  # features of all rows that a head is fitted to: 1.6 GB, twice in memory


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
    model.load_state_dict(
        {n: tensor for n, tensor in given.state_dict().items() if n in model.state_dict()}, strict=False
    )
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
    sizes = [4**size for size in range(1, KMERS + 1)]
    variances = torch.ones(len(_SHARES), states + sum(sizes))
    for row, share in zip(variances, _SHARES, strict=True):
        row[states:] = torch.cat([torch.full((size,), share * states / size) for size in sizes])
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

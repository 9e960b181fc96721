"""Baselines without a language model: k-mers with a linear model, and a small CNN trained from scratch.

    python benchmarks/task_baselines.py ncrna-family train.csv.gz test.csv.gz
    python benchmarks/task_baselines.py translation-efficiency train.csv.gz test.csv.gz --validation valid.csv.gz
    python benchmarks/task_baselines.py ribosome-load mrl.csv.gz human.csv.gz --folds 10
    python benchmarks/task_baselines.py table ryos.jsonl.gz --folds 10 --target reactivity deg_Mg_pH10

Reading, splits, targets and metrics are those of `rinalmo finetune` and `rinalmo evaluate`, for the same `--seed`. A
tenth of the training file is used for validation unless a file is given; with `--folds`, the first fold of the training
file is a test set and the last one is for validation. Test files are further test sets. If some test sequences also
occur in the training or validation set, results on the others are also reported, as "unseen".

    constant   the mean of the training targets, or the shares of the classes
    k-mers     frequencies of all words of 1 to 4 letters; for nucleotides, the words of 1 to 3 letters that start up
               to five positions before or after. Ridge or logistic regression on features of equal variance
    CNN        one-hot letters, three convolutions of width 9 with 64 channels, for sequences mean and maximum over
               all positions, one linear layer. AdamW; stops when validation has not improved for four epochs

Validation data select the regularization and the epoch, and are not used for training.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import sides
from held_out import codes
from rinalmo.tasks.base import Example, Task, sequences_of
from rinalmo.tasks.evaluate import TASKS
from rinalmo.tasks.sequence_tasks import Regression
from rinalmo.tasks.table import Table
from rinalmo.training.finetune import Sets, columns_of, crop_of, read_sets
from rinalmo.training.recipes import ExamplesRecipe

WORDS, NEAR_WORDS, REACH = (1, 2, 3, 4), (1, 2, 3), 5
STRENGTHS = (1.0, 1e1, 1e2, 1e3, 1e4)  # of regularization
CHANNELS, WIDTH, BATCH, BATCHES_SORTED, PATIENCE = 64, 9, 64, 20, 4

# The outputs of an example are `(positions, columns)`: one position for a whole sequence; probabilities of classes.
Predict = Callable[[Sequence[Example]], list[np.ndarray]]


# A task's targets and answers as plain numbers.


class Problem:
    """The outputs of a task: `classes` (0 for numbers), `columns`, per sequence or `per_nucleotide`."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.per_nucleotide = task.per == "nucleotide"
        self.kind = task.kind if isinstance(task, Table) else "regression"
        self.classes = 2 if self.kind == "binary" else len(task.classes) if isinstance(task, Table) else 0
        self.columns = self.classes or (len(task.targets) if isinstance(task, Table) else 1)
        if self.kind == "multilabel" or (self.classes and self.per_nucleotide):
            sys.exit("no baselines for several labels, nor for classes of nucleotides")

    def target(self, example: Example) -> np.ndarray:
        """Numbers `(positions, columns)`, or the index of the class `(1,)`."""
        target = np.asarray(example.target, dtype=int if self.classes else float)
        return target.reshape(-1) if self.classes else target.reshape(-1, self.columns)

    def targets(self, examples: Sequence[Example]) -> np.ndarray:
        return np.concatenate([self.target(example) for example in examples])

    def judged(self, output: np.ndarray) -> Any:
        """An output in the form that the task's metrics expect."""
        if self.per_nucleotide:
            return output
        if isinstance(self.task, Regression):
            return max(float(output[0, 0]), self.task.minimum)
        return output[0, 1:] if self.kind == "binary" else output[0]

    def figures(self, examples: Sequence[Example], outputs: Sequence[np.ndarray]) -> dict[str, float]:
        targets = [example.target for example in examples]
        return self.task.metrics([self.judged(output) for output in outputs], targets, None)

    def score(self, examples: Sequence[Example], predict: Predict) -> float:
        """The metric for selection on validation data."""
        return self.figures(examples, predict(examples))[self.task.selection_metric]


# The baselines.


def constant(problem: Problem, train: Sequence[Example], validation: Sequence[Example], seed: int) -> Predict:
    targets = problem.targets(train)
    if problem.classes:
        row = np.bincount(targets, minlength=problem.classes) / len(targets)
    else:
        row = np.nanmean(targets, axis=0)
    return lambda examples: [np.tile(row, (positions(problem, example), 1)) for example in examples]


def kmers(problem: Problem, train: Sequence[Example], validation: Sequence[Example], seed: int) -> Predict:
    features, targets = stacked(problem, train), problem.targets(train)
    known = np.isfinite(targets).reshape(len(targets), -1).all(axis=1)
    fitted = [linear(problem, features[known], targets[known], strength) for strength in STRENGTHS]
    return max(fitted, key=lambda predict: problem.score(validation, predict))


def linear(problem: Problem, features: Any, targets: np.ndarray, strength: float) -> Predict:
    kind = LogisticRegression(C=1 / strength, max_iter=1000) if problem.classes else Ridge(alpha=strength)
    model = make_pipeline(StandardScaler(with_mean=False), kind).fit(features, targets)

    def predict(examples: Sequence[Example]) -> list[np.ndarray]:
        found = stacked(problem, examples)
        rows = model.predict_proba(found) if problem.classes else model.predict(found).reshape(-1, problem.columns)
        return np.split(rows, np.cumsum([positions(problem, example) for example in examples])[:-1])

    return predict


def positions(problem: Problem, example: Example) -> int:
    return len(example.sequence) if problem.per_nucleotide else 1


def stacked(problem: Problem, examples: Sequence[Example]) -> Any:
    if problem.per_nucleotide:
        return sparse.vstack([neighbourhood(example.sequence) for example in examples], format="csr")
    return np.stack([shares(example.sequence) for example in examples])


def words(sequence: str, size: int) -> np.ndarray:
    """The index of the word that starts at each position, -1 if there is none."""
    found = np.pad(codes(sequence), (0, size - 1), constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(found, size)
    return np.where((windows >= 0).all(axis=1), windows @ 4 ** np.arange(size), -1)


def shares(sequence: str) -> np.ndarray:
    """The frequency of each word among a sequence's words of the same length."""
    parts = []
    for size in WORDS:
        found = words(sequence, size)
        counts = np.bincount(found[found >= 0], minlength=4**size)
        parts.append(counts / max(1, counts.sum()))
    return np.concatenate(parts)


def neighbourhood(sequence: str) -> sparse.csr_matrix:
    """One-hot words around each position: `(length, words × distances)`."""
    parts, before = [], 0
    for size in NEAR_WORDS:
        near = np.pad(words(sequence, size), REACH, constant_values=-1)
        for shift in range(2 * REACH + 1):
            found = near[shift : shift + len(sequence)]
            parts.append(np.where(found >= 0, found + before, -1))
            before += 4**size
    places = np.stack(parts, axis=1)
    rows, _ = np.nonzero(places >= 0)
    return sparse.csr_matrix((np.ones(len(rows)), (rows, places[places >= 0])), (len(sequence), before))


class Net(nn.Module):
    """Letters `(batch, 4, length)` to outputs `(batch, positions, columns)`; padded positions stay 0 throughout."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        widths = (4, CHANNELS, CHANNELS, CHANNELS)
        sizes = pairwise(widths)
        self.layers = nn.ModuleList(nn.Conv1d(a, b, WIDTH, padding=WIDTH // 2) for a, b in sizes)
        self.pooled = not problem.per_nucleotide
        self.last = nn.Sequential(nn.Dropout(0.2), nn.Linear(CHANNELS * (1 + self.pooled), problem.columns))

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x)) * inside
        if self.pooled:
            x = torch.cat([x.sum(dim=2) / inside.sum(dim=2), x.amax(dim=2)], dim=1)[..., None]
        return self.last(x.transpose(1, 2))


def cnn(problem: Problem, train: Sequence[Example], validation: Sequence[Example], seed: int) -> Predict:
    torch.manual_seed(seed)
    net, draw = Net(problem), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2)
    scale = scale_of(problem, train)

    def predict(examples: Sequence[Example]) -> list[np.ndarray]:
        return predicted(problem, net, examples, scale)

    best, state, waited = -np.inf, copy.deepcopy(net.state_dict()), 0
    while waited < PATIENCE:
        for batch in batches(train, draw):
            optimizer.zero_grad()
            loss(problem, net, batch, scale).backward()
            optimizer.step()
        score, waited = problem.score(validation, predict), waited + 1
        if score > best:
            best, state, waited = score, copy.deepcopy(net.state_dict()), 0
    net.load_state_dict(state)
    return predict


def scale_of(problem: Problem, train: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation used to standardize the targets."""
    if problem.classes:
        return np.zeros(1), np.ones(1)
    targets = problem.targets(train)
    return np.nanmean(targets, axis=0), np.maximum(np.nanstd(targets, axis=0), 1e-6)


def batches(examples: Sequence[Example], draw: np.random.Generator) -> Iterator[list[Example]]:
    """All examples in random order, in batches of similar length."""
    order, group = draw.permutation(len(examples)), BATCH * BATCHES_SORTED
    for start in range(0, len(order), group):
        near = sorted(order[start : start + group], key=lambda place: len(examples[place].sequence))
        firsts = draw.permutation(np.arange(0, len(near), BATCH))
        yield from ([examples[place] for place in near[first : first + BATCH]] for first in firsts)


def letters(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """One-hot letters `(batch, 4, length)` and a mask `(batch, 1, length)`; N is all zeros but not masked."""
    longest = max(len(example.sequence) for example in examples)
    x, inside = torch.zeros(len(examples), 4, longest), torch.zeros(len(examples), 1, longest)
    for row, example in enumerate(examples):
        found = codes(example.sequence)
        x[row, found[found >= 0], np.flatnonzero(found >= 0)] = 1
        inside[row, 0, : len(found)] = 1
    return x, inside


def loss(problem: Problem, net: Net, batch: Sequence[Example], scale: tuple[np.ndarray, np.ndarray]) -> Tensor:
    out = net(*letters(batch))
    if problem.classes:
        return F.cross_entropy(out[:, 0], torch.from_numpy(problem.targets(batch)))
    found = torch.cat([row[: positions(problem, example)] for row, example in zip(out, batch, strict=True)])
    wanted = torch.from_numpy((problem.targets(batch) - scale[0]) / scale[1]).float()
    known = wanted.isfinite()
    return F.mse_loss(found[known], wanted[known])


@torch.no_grad()
def predicted(
    problem: Problem, net: Net, examples: Sequence[Example], scale: tuple[np.ndarray, np.ndarray]
) -> list[np.ndarray]:
    net.eval()
    found: list[np.ndarray] = []
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        out = net(*letters(batch))
        rows = (out.softmax(dim=2).numpy() if problem.classes else out.numpy() * scale[1] + scale[0]).astype(float)
        found += [row[: positions(problem, example)] for row, example in zip(rows, batch, strict=True)]
    net.train()
    return found


# The run.


def read(chosen: argparse.Namespace) -> tuple[Problem, Sets, dict[str, list[Example]]]:
    """The problem, its examples, and all test sets by name."""
    kind = TASKS[chosen.task]
    files = {name: str(path) for name in ("train", "validation") if (path := getattr(chosen, name))}
    columns: Any = {"target": chosen.target}
    recipe = ExamplesRecipe(**files, folds=chosen.folds, columns=columns, crop=chosen.crop)
    sets, notes = read_sets(recipe, kind, chosen.seed)
    print("".join(f"{note}.  \n" for note in notes), end="")
    problem = Problem(kind.from_examples(sets.train, {}))
    problem.task.crop = crop_of(recipe)
    tests = {f"first of {chosen.folds} folds": sets.test} if sets.test else {}
    for path in chosen.test:
        tests[path.name] = kind.read(path, columns_of(recipe))
    usables = [usable(problem, part) for part in sets]
    tests = {name: usable(problem, part) for name, part in tests.items()}
    known = {example.sequence for example in (*usables[0], *usables[1])}
    return problem, Sets(*usables), tests | unseen(tests, known)


def unseen(tests: dict[str, list[Example]], known: set[str]) -> dict[str, list[Example]]:
    """The test sets that share sequences with the training or validation set, without the shared sequences."""
    kept = {name: [e for e in examples if e.sequence not in known] for name, examples in tests.items()}
    return {f"{name}, unseen": e for name, e in kept.items() if 0 < len(e) < len(tests[name])}


def usable(problem: Problem, examples: Sequence[Example]) -> list[Example]:
    """Examples that are cropped, have encoded targets, and contain only letters that `codes` supports."""
    found = problem.task.encode_targets(examples)
    return [replace(e, sequence=sequences_of(e, problem.task.crop)[0].upper().replace("T", "U")) for e in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[name for name in TASKS if name != "secondary-structure"])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path, nargs="*")
    parser.add_argument("--validation", type=Path)
    parser.add_argument("--folds", type=int, help="split the training file into this many parts and test on the first")
    parser.add_argument("--target", nargs="+", help="columns to predict")
    parser.add_argument("--crop", type=int, help="keep this many nucleotides in the middle")
    parser.add_argument("--baselines", nargs="+", choices=list(BASELINES), default=list(BASELINES))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chosen.threads, chosen.peer = 1, None
    torch.set_num_threads(1)
    sides.head(f"Baselines for {chosen.task}", chosen)
    problem, sets, tests = read(chosen)
    fitted = {name: BASELINES[name](problem, sets.train, sets.validation, chosen.seed) for name in chosen.baselines}
    print(f"{len(sets.train):,} examples for training, {len(sets.validation):,} for validation")
    for name, examples in tests.items():
        print(f"\n{name}: {len(examples):,} examples\n")
        rows = {kind: problem.figures(examples, predict(examples)) for kind, predict in fitted.items()}
        columns = list(next(iter(rows.values())))
        cells = [[kind, *(f"{figures[column]:.3f}" for column in columns)] for kind, figures in rows.items()]
        sides.table(["", *columns], cells)


BASELINES = {"constant": constant, "k-mers": kmers, "CNN": cnn}

if __name__ == "__main__":
    main()

"""A table's model beside simple ones on the same rows: scikit-learn on 4-mers and on the model's own embeddings.

    python benchmarks/table_heads.py nrc/train.csv.gz:label mrl/….csv.gz:mrl --rows 800 3000 --modes linear full

The distinct sequences of each FILE:COLUMN are shuffled with the seed. The first `--test` are for testing, the next
`--rows` for training; a tenth of these is for validation, so the peers learn from the other nine. The peers are
standardized, then ridge regression with leave-one-out (RidgeCV), or logistic regression with five folds
(LogisticRegressionCV), with fourteen penalties each. `embeddings` is the mean of the last states, as `rinalmo embed`
writes it. Intervals are over the test examples, 95 % (bootstrap).
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import rinalmo
import sides
from rinalmo.io.tables import read_rows
from rinalmo.rna.alphabet import Alphabet, kmer_frequencies
from rinalmo.tasks.base import Crop, Example
from rinalmo.tasks.evaluate import Evaluation, task_of, with_intervals
from rinalmo.tasks.table import Table
from rinalmo.weights.checkpoint import load

STRENGTHS = np.logspace(-4, 2.5, 14)


def peer(features: list[np.ndarray], task: Table, train: list[Example], test: list[Example], seed: int) -> Evaluation:
    """scikit-learn's linear model on these features of both sets, evaluated as the task's own."""
    targets = np.stack([example.target for example in train]).reshape(len(train), -1)[:, 0]
    if task.kind == "regression":
        model: Any = RidgeCV(len(train) * STRENGTHS)
        scores = [
            np.array([value])
            for value in make_pipeline(StandardScaler(), model).fit(features[0], targets).predict(features[1])
        ]
    else:
        options: dict[str, Any] = {"scoring": "neg_log_loss", "l1_ratios": (0,), "use_legacy_attributes": False}
        model = LogisticRegressionCV(Cs=1 / (len(train) * STRENGTHS), cv=5, max_iter=1000, **options)
        fitted = make_pipeline(StandardScaler(), model).fit(features[0], targets)
        probabilities = np.zeros((len(test), len(task.classes) or 2))
        probabilities[:, model.classes_.astype(int)] = fitted.predict_proba(features[1])
        scores = list(probabilities if task.kind == "multiclass" else probabilities[:, 1:])
    return with_intervals(task, scores, test, None, seed)


def compare(path: str, column: str, size: int, chosen: argparse.Namespace) -> list[list[str]]:
    """One row of the table for each model."""
    crop = Crop(chosen.crop, chosen.crop_at) if chosen.crop else None
    labels: dict[str, Any] = {}
    for _, row in read_rows(path):
        labels.setdefault(crop.of(row["sequence"]) if crop else row["sequence"], row[column])
    if chosen.classes:
        frequent = {name for name, _ in collections.Counter(labels.values()).most_common(chosen.classes)}
        labels = {sequence: label for sequence, label in labels.items() if label in frequent}
    rows = [{"sequence": sequence, column: label} for sequence, label in labels.items()]
    order = np.random.default_rng(chosen.seed).permutation(len(rows))
    test, train = ([rows[i] for i in part] for part in (order[: chosen.test], order[chosen.test :][:size]))
    learned, validation = train[len(train) // 10 :], train[: len(train) // 10]
    results: dict[str, tuple[Evaluation, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for mode in chosen.modes:
            options = [
                f"backbone.mode={mode}",
                "train.precision=fp32",
                "logging.plots=false",
                "logging.peak_flops=1e12",
            ]
            start, run = time.process_time(), f"{folder}/{mode}"
            sets = {"validation": validation, "test": test, "target": column, "model": chosen.model}
            evaluation = rinalmo.finetune("table", learned, run, **sets, overrides=options + chosen.set)
            assert evaluation is not None
            results[mode] = evaluation, time.process_time() - start
            results |= {f"{name} (ours)": (of, 0.0) for name, of in evaluation.baselines.items()}
        task = task_of(load(f"{run}/model").spec)
    assert isinstance(task, Table)
    examples = [
        task.encode_targets([Example(str(i), row["sequence"], {column: row[column]}) for i, row in enumerate(part)])
        for part in (learned, test)
    ]
    alphabet = Alphabet()
    features = {
        "4-mers, scikit-learn": [
            np.stack(
                [kmer_frequencies(alphabet.encode(example.sequence)[1:-1], alphabet, 4)[-256:] for example in part]
            )
            for part in examples
        ],
        "embeddings, scikit-learn": [rinalmo.embed([e.sequence for e in part], chosen.model) for part in examples],
    }
    for name, both in features.items():
        start = time.process_time()
        results[name] = peer(both, task, *examples, chosen.seed), time.process_time() - start
    metric, lines = task.selection_metric, []
    for name, (of, seconds) in results.items():
        value = of.metrics.get(metric)
        cell = "" if value is None else f"{value.value:.3f} ({value.low:.3f} – {value.high:.3f})"
        row = [Path(path).parent.name, f"{len(learned):,} + {len(validation):,}", name, metric, cell]
        lines.append([*row, f"{seconds:.0f}" if seconds else ""])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", metavar="FILE:COLUMN")
    parser.add_argument("--rows", type=int, nargs="+", default=[800])
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--classes", type=int, help="only so many classes, the most frequent")
    parser.add_argument("--crop", type=int, help="only so many nucleotides of each sequence")
    parser.add_argument("--crop-at", default="middle", choices=("start", "middle", "end"))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--modes", nargs="+", default=["auto"], help="backbone.mode of the runs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further changes of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chosen.threads, chosen.peer = 1, None
    torch.set_num_threads(1)
    sides.head("Tables: a fine-tuned model beside simple ones", chosen)
    for table in chosen.tables:
        path, _, column = table.rpartition(":")
        for size in chosen.rows:
            columns = ["data", "training rows", "model", "metric", f"{chosen.test:,} test rows", "CPU seconds"]
            sides.table(columns, compare(path, column, size, chosen))


if __name__ == "__main__":
    main()

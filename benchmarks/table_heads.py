"""A table's model beside simple ones on the same rows: k-mers, the model's own embeddings, the most frequent class.

    python benchmarks/table_heads.py nrc/train.csv.gz:label donor_train.csv.gz:label --rows 800 --mode linear

Each FILE:COLUMN is shuffled with the seed; the first `--rows` are for training (a tenth of them for validation) and the
next `--test` for testing. `k-mers` and the constant are those that `rinalmo finetune table` prints; `embeddings` is the
same linear model on the mean of the last states. Intervals are over the test examples, 95 % (bootstrap).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import rinalmo
import sides
from rinalmo.io.tables import read_rows
from rinalmo.tasks.evaluate import with_intervals
from rinalmo.tasks.linear import fit_linear
from rinalmo.tasks.table import Table
from rinalmo.tasks.trained import task_of
from rinalmo.weights.checkpoint import load


def compare(path: str, column: str, chosen: argparse.Namespace) -> list[list[str]]:
    """One row of the table for each model."""
    rows = [{"sequence": row["sequence"], column: row[column]} for _, row in read_rows(path)]
    order = np.random.default_rng(chosen.seed).permutation(len(rows))[: chosen.rows + chosen.test]
    train, test = ([rows[i] for i in part] for part in (order[: chosen.rows], order[chosen.rows :]))
    options = [f"backbone.mode={chosen.mode}", "train.precision=fp32", "logging.plots=false", "logging.peak_flops=1e12"]
    with tempfile.TemporaryDirectory() as folder:
        evaluation = rinalmo.finetune(
            "table", train, f"{folder}/run", test=test, target=column, model=chosen.model, overrides=options
        )
        task = task_of(load(f"{folder}/run/model").spec)
    assert isinstance(task, Table)
    assert evaluation is not None
    results = {chosen.mode: evaluation, **evaluation.baselines}
    # The same share of the rows as the run learned from.
    learned = train[: round(0.9 * len(train))]
    examples = [
        task.encode_targets(
            [rinalmo.tasks.base.Example(str(i), row["sequence"], {column: row[column]}) for i, row in part]
        )
        for part in (list(enumerate(learned)), list(enumerate(test)))
    ]
    features = [
        torch.from_numpy(rinalmo.embed([example.sequence for example in part], chosen.model)) for part in examples
    ]
    targets = np.stack([example.target for example in examples[0]])
    fitted = fit_linear(features[0], targets, task.kind, len(task.classes) or len(task.targets), chosen.seed)
    outputs = features[1] @ fitted.weight.T + fitted.bias
    model = load(chosen.model)
    scores = [task.score_example(model, row, example) for row, example in zip(outputs, examples[1], strict=True)]
    results["embeddings"] = with_intervals(task, scores, examples[1], None, chosen.seed)
    metric = task.selection_metric
    lines = []
    for name, of in results.items():
        value = of.metrics.get(metric)
        cell = "" if value is None else f"{value.value:.3f} ({value.low:.3f} – {value.high:.3f})"
        lines.append([Path(path).parent.name, f"{len(train):,} / {len(test):,}", name, metric, cell])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", metavar="FILE:COLUMN")
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--mode", default="auto", help="backbone.mode of the run")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chosen.threads, chosen.peer = 1, None
    torch.set_num_threads(1)
    sides.head("Tables: a fine-tuned model beside simple ones", chosen)
    for table in chosen.tables:
        path, _, column = table.rpartition(":")
        sides.table(["data", "training / test rows", "model", "metric", "value"], compare(path, column, chosen))


if __name__ == "__main__":
    main()

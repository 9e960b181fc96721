"""Tables: labels of sequences or nucleotides. What the columns hold is decided over all rows.

    per     one value per sequence, or a list with one per nucleotide
    kind    numbers, yes or no, names of classes
    format  how the numbers are written

A column with two plausible readings is refused, with the option that decides. What was decided is described with the
numbers of rows and three examples, so that a wrong reading is noticed before hours of training.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rinalmo import metrics
from rinalmo.errors import InputError
from rinalmo.io.tables import is_missing
from rinalmo.model.heads import IGNORE, ProblemType
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.rna.alphabet import kmer_count, kmer_frequencies
from rinalmo.tasks.base import (
    PLAIN,
    Columns,
    Example,
    NumberFormat,
    Per,
    Task,
    class_name,
    list_items,
    list_style,
    looks_numeric,
    number,
    number_format,
    parse_bool,
    read_table,
    require,
    require_several,
)
from rinalmo.tasks.inputs import Inputs

_FEW, _OFTEN = 20, 5  # at most so many values, each in so many rows on average, are classes
_WITH_UNIT = re.compile(r"[+\-−]?\d[\d.,' ]*(?:[eE][+-]?\d+)?\s*([^\W\d][^\s\d]{0,9})")
_SHORT = 8  # a list of so few values for each of longer sequences is hardly one of nucleotides
_DESCRIBED = 6  # columns and classes that are described one by one
_OUTLYING = 100.0  # times the spread of the middle half of the values
_EMPTY_LISTS: tuple[Any, ...] = ([], (), "[]")
_DECIMAL_HINT = "; use --set options.decimal=comma or --set options.decimal=point"
_PER_HINT = (
    "if they are values of the first nucleotides, use --set options.per=nucleotide; "
    "if it is a class name, --set options.per=sequence"
)
_USUAL_TARGETS = ("label", "target", "value", "y", "class", "score")
_PREDICTED = {"id", "position", "nucleotide", "probability"}  # columns that `predict` writes
_POOLED_STD = 0.2  # of the pooler's outputs in a model that was not trained yet
_SELECTION_METRICS = {"regression": "r2", "binary": "roc_auc", "multilabel": "roc_auc", "multiclass": "accuracy"}


class ColumnValues(NamedTuple):
    """The values of a column that are not missing, each with the example that it is from."""

    examples: list[Example]
    values: list[Any]


class Table(Task):
    """One or several labels for each sequence or nucleotide, as the columns of a table hold them, by a linear head."""

    name = "table"
    options: ClassVar[tuple[str, ...]] = ("kind", "per", "pooling", "decimal", "missing")

    def __init__(
        self,
        kind: ProblemType,
        per: Per,
        targets: Sequence[str],
        classes: Sequence[str] = (),
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        pooling: str = "cls",
        formats: Mapping[str, Mapping[str, Any]] | None = None,
        missing: Literal["drop", "class"] | None = None,
        features: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a task for these columns.

        Args:
            kind: What the columns hold.
            per: Whether they hold a value for each sequence, or a list with one for each nucleotide.
            targets: Names of the columns.
            classes: Names of the classes, for "multiclass".
            mean: Mean of each column over the training examples, for "regression".
            std: Standard deviation of each.
            pooling: What the head sees of a sequence: "cls" or "mean".
            formats: Arguments of `NumberFormat` by column, for those that are not written plainly.
            missing: "drop": examples without a value are left out. "class": words such as NA name a class.
            features: For a linear head: the `layers` whose states it takes, how these are pooled (`pools`: "mean",
                "cls", "max"; by default "mean"), and the length of the longest `kmers`.
            inputs: Arguments of `Inputs`, for a model that takes more than a sequence.
        """
        self.inputs = None if inputs is None else Inputs(**inputs)
        self.kind, self.per, self.targets, self.classes = kind, per, list(targets), list(classes)
        self.mean, self.std, self.missing = list(mean), list(std), missing
        self.pooling_options: dict[str, Any] = {} if pooling == "cls" else {"pooling": pooling}
        self.formats: dict[str, NumberFormat] = {}
        for name, arguments in (formats or {}).items():
            self.formats[name] = NumberFormat(**arguments)
        self.features, self.head = features, "joint_head" if self.inputs else "sequence_head"
        if per == "nucleotide":
            self.head = "token_head"
        if features is not None:
            self.head, self.layers = "linear_head", list(features["layers"])
            self.pools: Sequence[str] = features.get("pools", ["mean"])
        self.selection_metric = _SELECTION_METRICS[kind]
        self.settings = {
            "kind": kind,
            "per": per,
            "targets": self.targets,
            "classes": self.classes,
            "mean": self.mean,
            "std": self.std,
            **self.pooling_options,
            **({"formats": formats} if formats else {}),
            **({"missing": missing} if missing else {}),
            **({"features": dict(features)} if features else {}),
            **({"inputs": dict(inputs)} if inputs else {}),
        }

    @classmethod
    def from_labels(cls, kind: ProblemType, per: Per, labels: Sequence[str], count: int, pooling: str) -> Self:
        """The task of a model that was trained elsewhere, such as by transformers' Trainer.

        Args:
            kind: What its outputs are.
            per: Whether they are for each sequence or each nucleotide.
            labels: Their names; empty if they have none.
            count: Their number.
            pooling: As for `Table`.
        """
        if kind == "multiclass":
            return cls(kind, per, ["label"], labels or [str(index) for index in range(count)], pooling=pooling)
        names = ["label"] if count == 1 else [f"label_{index}" for index in range(count)]
        if count > 1 and kind == "binary":
            kind = "multilabel"
        return cls(kind, per, labels or names, (), [0.0] * count, [1.0] * count, pooling)

    def with_target(self, name: str) -> Table:
        """The same task for a table whose one column to predict has another name."""
        settings = {**self.settings, "targets": [name]}
        if self.formats:
            settings["formats"] = {name: asdict(self.formats[self.targets[0]])}
        changed = Table(**settings)
        changed.crop, changed.notes = self.crop, self.notes
        return changed

    def rescale(self, model: RiNALMo, mean: Sequence[float] = (), std: Sequence[float] = ()) -> None:
        """Change head and task to outputs in other units: (number - mean) / std; by default in the column's own.

        So a finished model gives numbers in the units of its column wherever it is loaded.
        """
        if self.kind != "regression":
            return
        mean, std = mean or [0.0] * len(self.mean), std or [1.0] * len(self.std)
        decoder: Any = model.head(self.head).decoder
        old, new = torch.tensor([self.mean, self.std]).double(), torch.tensor([mean, std]).double()
        weight, bias = decoder.weight.detach().double(), decoder.bias.detach().double()
        decoder.weight = nn.Parameter((weight * (old[1] / new[1])[:, None]).float())
        decoder.bias = nn.Parameter(((bias * old[1] + old[0] - new[0]) / new[1]).float())
        self.mean, self.std = list(mean), list(std)
        self.settings = {**self.settings, "mean": self.mean, "std": self.std}
        model.spec = replace(model.spec, task=self.config())

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        return read_table(path, columns, _USUAL_TARGETS)

    @classmethod
    def from_examples(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        targets, together = list(examples[0].target), ", ".join(examples[0].target)
        for name in sorted({*targets} & _PREDICTED):
            raise InputError(f"`predict` writes a column {name!r} itself; rename the column to predict")
        per: Per = options.get("per") or infer_per(examples, targets)
        columns, formats = dict[str, ColumnValues](), dict.fromkeys(targets, PLAIN)
        if options.get("kind") != "multiclass":
            for name in targets:
                columns[name] = read_column(examples, name, per)
                decimal = options.get("decimal")
                formats[name] = number_format(columns[name].values, name, decimal=decimal, hint=_DECIMAL_HINT)
        kind: ProblemType = options.get("kind") or infer_kind(columns, formats, per, len(examples))
        if kind in ("binary", "multiclass") and len(targets) > 1:
            raise InputError(f"a {kind} table has one target column, not {len(targets)}; use multilabel for several")
        if per == "nucleotide" and "pooling" in options:
            raise InputError("options.pooling is for one prediction per sequence; this table has one per nucleotide")
        classes: list[str] = []
        unusual: dict[str, Any] = {}
        if kind == "multiclass":
            columns = {targets[0]: read_column(examples, targets[0], per, kind, options.get("missing"))}
            classes = sorted({*map(class_name, columns[targets[0]].values)} - {""})
            require_several(classes, targets[0])
        else:
            for name, written in formats.items():
                # A format with commas is kept too: evaluation data may not tell what they mean.
                commas = [value for value in columns[name].values if isinstance(value, str) and "," in value]
                if options.get("decimal") or written != PLAIN or commas:
                    unusual[name] = asdict(written)
        arguments: dict[str, Any] = {"formats": unusual, "missing": options.get("missing")}
        arguments["pooling"] = options.get("pooling") or ("mean" if options.get("second") else "cls")
        inputs: Inputs | None = None
        if options.get("second") or examples[0].features:
            if per == "nucleotide":
                raise InputError("a second sequence and features are for a table with one value for each sequence")
            if both := {*targets} & {*(examples[0].features or ())}:
                raise InputError(f"{min(both)} is a column to predict and a feature; it can only be one of them")
            inputs = Inputs.from_examples(examples, options.get("second"), options.get("decimal"))
            arguments["inputs"] = inputs.settings
        task = cls(kind, per, targets, classes, **arguments)
        if kind in ("regression", "binary"):
            encoded = task.encode_targets(examples)
            if not encoded:
                raise InputError(f"{together}: no row has a value to learn from")
            values = np.concatenate([example.target.reshape(-1, len(targets)) for example in encoded])
            if kind == "binary":
                require_several({*map(str, values[values != IGNORE].tolist())}, targets[0])
            else:
                for index in np.flatnonzero(np.isnan(values).all(axis=0)):
                    raise InputError(f"{targets[index]} has no value in the training data")
                mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
                # The mean of equal numbers may differ from them by rounding.
                std = np.where(std <= 1e-12 * np.abs(mean), 1.0, std)
                task = cls(kind, per, targets, classes, mean.tolist(), std.tolist(), **arguments)
        numeric = classes and all(name.lstrip("-").isdigit() for name in classes)
        hint = "; use --set options.kind=regression if the numbers are quantities" if numeric else ""
        task.notes = [f"{together}: {kind}, for each {per}{hint}"]
        for name, column in list(columns.items())[:_DESCRIBED]:
            task.notes += _description(name, column, len(examples), kind, per, formats[name])
        if len(columns) > _DESCRIBED:
            task.notes.append(f"… and {len(columns) - _DESCRIBED:,} more columns")
        task.notes += inputs.notes(examples) if inputs else []
        return task

    def encode_targets(self, examples: Sequence[Example]) -> list[Example]:
        formats = {}
        if self.inputs is not None:
            examples = self.inputs.encode(examples)
        for name in self.targets:
            for example in examples:
                if name not in example.target:
                    hint = "rename the column, or leave out --target"
                    raise InputError(
                        f"{example.where}: the model predicts {name!r}, which is not among the given columns; {hint}"
                    )
            if self.kind != "multiclass":
                # A file for evaluation may write its numbers in another way than the training data.
                column, usual = read_column(examples, name, self.per), self.formats.get(name)
                formats[name] = number_format(column.values, name, usual=usual, hint=_DECIMAL_HINT)
        encode = self._encode_cell if self.per == "sequence" else self._encode_list
        encoded = []
        for example in examples:
            empty, values = True, []
            for name in self.targets:
                empty = empty and (is_missing(example.target[name]) or example.target[name] in _EMPTY_LISTS)
            if empty and self.missing == "drop":
                continue
            for name in self.targets:
                values.append(encode(example, example.target[name], name, formats.get(name, PLAIN)))
            target = np.array(values[0] if self.kind == "multiclass" else values).T
            encoded.append(replace(example, target=target, num_targets=int(is_known(target).sum())))
        return encoded

    def _encode_list(self, example: Example, value: Any, name: str, written: NumberFormat) -> np.ndarray:
        """The values of all nucleotides, missing ones at the end included."""
        if len(self.targets) == 1 and (is_missing(value) or value == []):
            self._refuse_missing(example, value, name)
        items, length = list_items(example, value, name, letters=self.kind == "multiclass"), len(example.sequence)
        require(len(items) <= length, example, f"{name} has {len(items)} values for {length} nucleotides")
        values = [self._encode_cell(example, item, f"{name}, value {i}", written) for i, item in enumerate(items, 1)]
        return np.array(values + [math.nan if self.kind == "regression" else IGNORE] * (length - len(values)))

    def _encode_cell(self, example: Example, value: Any, name: str, written: NumberFormat) -> float | int:
        several = self.per == "nucleotide" or len(self.targets) > 1
        if is_missing(value) and not (self.missing == "class" and isinstance(value, str) and value.strip()):
            if not several or (self.per == "sequence" and self.kind == "multiclass"):
                self._refuse_missing(example, value, name)
            return math.nan if self.kind == "regression" else IGNORE
        if self.kind == "regression":
            return number(value, example.where, name, written, missing=several)
        if self.kind == "multiclass":
            return self.class_id(example, class_name(value))
        parsed = written.parse(value)
        return int(parsed) if parsed in (0.0, 1.0) else int(parse_bool(example, value))

    def _refuse_missing(self, example: Example, value: Any, name: str) -> NoReturn:
        text = str("" if value is None or value == [] else value).strip()
        problem = f"is {text!r}, which stands for a missing value" if text else "is empty"
        or_class = ", or =class if it names one" if text and self.kind == "multiclass" else ""
        hint = f"delete the row, or use --set options.missing=drop to skip such rows{or_class}"
        raise InputError(f"{example.where}: {name} {problem}; {hint}")

    def heads(self) -> dict[str, dict[str, Any]]:
        options = {"num_labels": len(self.classes) or len(self.targets)}
        if self.per == "nucleotide":
            return {self.head: options}
        vectors, size = (self.inputs.vectors_per_example, self.inputs.size) if self.inputs else (1, 0)
        if self.features is not None:
            layers, others = len(self.features["layers"]) * len(self.pools), kmer_count(int(self.features["kmers"]))
            return {self.head: {**options, "layers": vectors * layers, "others": vectors * others + size}}
        if self.inputs is not None:
            options |= {"vectors": vectors, "features": size}
        return {"pooler": self.pooling_options, self.head: options}

    def linear_features(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Tensor:
        """What a linear head takes of each sequence, fp32 `(sequences, features)`.

        The means of the states of its nucleotides in each layer, those of CLS and the maxima, as far as it takes
        them, then the frequencies of its k-mers.
        """
        assert self.features is not None
        rows = []
        for part, of_part in zip(layout.split(ids), layout.split(states), strict=True):
            words = kmer_frequencies(part.cpu().numpy(), model.alphabet, int(self.features["kmers"]))
            inner = of_part[1:-1] if len(of_part) > 2 else of_part  # without CLS and EOS
            pooled = {"mean": inner.float().mean(dim=0), "cls": of_part[0].float(), "max": inner.float().amax(dim=0)}
            rows.append(torch.cat([*(pooled[pool] for pool in self.pools), torch.from_numpy(words).to(states.device)]))
        return torch.stack(rows)

    def forward(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        if self.per == "sequence":
            if self.features is not None:
                vectors = self.linear_features(model, ids, states, layout)
            else:
                vectors = model.head("pooler")(states, layout)
            return list(vectors if self.inputs else model.head(self.head)(vectors))
        parts = [part[1:-1] for part in layout.split(states)]  # without CLS and EOS
        return model.head(self.head)(torch.cat(parts)).split([len(part) for part in parts])

    def join(self, model: RiNALMo, vectors: Sequence[Tensor], examples: Sequence[Example]) -> Sequence[Tensor]:
        assert self.inputs is not None
        head: Any = model.head(self.head)
        inputs = self.inputs.join(vectors, examples).to(head.decoder.weight.device)
        if self.features is None:  # else the scale is in the weights that were fitted
            inputs = inputs * self.inputs.scale(inputs.shape[1], _POOLED_STD).to(inputs)
        return list(head(inputs))

    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        logits = (torch.cat if self.per == "nucleotide" else torch.stack)(list(outputs)).float()
        target = (np.concatenate if self.per == "nucleotide" else np.stack)(list(map(_target_of, examples)))
        if self.kind == "multiclass":
            class_ids = torch.from_numpy(target).to(logits.device).long()
            return F.cross_entropy(logits, class_ids, ignore_index=IGNORE, reduction="sum")
        keep = torch.from_numpy(is_known(target)).to(logits.device)
        if self.kind == "regression":
            target = (target - np.asarray(self.mean)) / np.asarray(self.std)  # in fp64, which not every device has
        expected = torch.from_numpy(target.astype(np.float32)).to(logits.device)
        if self.kind == "regression":
            return F.mse_loss(logits[keep], expected[keep], reduction="sum")
        return F.binary_cross_entropy_with_logits(logits[keep], expected[keep], reduction="sum")

    def score_example(self, model: RiNALMo, output: Tensor, example: Example) -> np.ndarray:
        match self.kind:
            case "regression":
                return (output.cpu().double().numpy() * self.std + self.mean).astype(np.float32)
            case "multiclass":
                return output.float().softmax(dim=-1).cpu().numpy()
            case _:
                return output.float().sigmoid().cpu().numpy()

    def metrics(self, scores: Sequence[Any], targets: Sequence[Any], threshold: float | None) -> dict[str, float]:
        stack = np.concatenate if self.per == "nucleotide" else np.asarray
        predicted, target = stack(scores), stack(targets)
        known = is_known(target)
        if self.kind == "multiclass":
            classes = predicted[known].argmax(axis=1)
            return metrics.class_scores(target[known], classes)._asdict() if known.any() else {}
        of_each: dict[str, list[float]] = {}
        of_column: dict[str, float] = {}
        for index, column in enumerate(self.targets):
            rows = known[:, index]
            if not rows.any():
                continue
            if self.kind == "regression":
                of_numbers = metrics.regression_scores(target[rows, index], predicted[rows, index])
                values = {"r2": of_numbers.r2, "spearman": of_numbers.spearman}
                values |= {"rmse": math.sqrt(of_numbers.mse), "mae": of_numbers.mae}
            else:
                values = metrics.binary_scores(target[rows, index], predicted[rows, index])._asdict()
            for name, value in values.items():
                if name == "roc_auc" and math.isnan(value):  # only one class
                    continue
                of_each.setdefault(name, []).append(value)
                of_column[f"{name}/{column}"] = value
        means = {name: float(np.mean(values)) for name, values in of_each.items()}
        return means if len(self.targets) == 1 else means | of_column

    def rows(self, model: RiNALMo, output: Tensor, example: Example) -> list[dict[str, Any]]:
        values = self.score_example(model, output, example)
        if self.per == "sequence":
            return [{"id": example.name, **self.answer(values)}]
        nucleotides = enumerate(zip(example.sequence, values, strict=True), start=1)
        return [
            {"id": example.name, "position": i, "nucleotide": letter, **self.answer(row)}
            for i, (letter, row) in nucleotides
        ]

    def answer(self, values: np.ndarray) -> dict[str, Any]:
        """The columns of one prediction: numbers, yes or no with probabilities, or the most probable class."""
        if self.kind == "multiclass":
            best = int(values.argmax())
            each = {f"p({name})": float(p) for name, p in zip(self.classes, values, strict=True)}
            return {self.targets[0]: self.classes[best], "probability": float(values[best]), **each}
        pairs = list(zip(self.targets, values, strict=True))
        if self.kind == "regression":
            return {name: float(value) for name, value in pairs}
        return {name: int(p > 0.5) for name, p in pairs} | {f"p({name})": float(p) for name, p in pairs}

    def class_id(self, example: Example, name: str) -> int:
        """The index of a class; raises InputError for one that is not in the training data."""
        if name not in self.classes:
            few = ", ".join(self.classes[:8]) + (", …" if len(self.classes) > 8 else "")
            raise InputError(f"{example.where}: the class {name!r} was not in the training data ({few})")
        return self.classes.index(name)


_target_of = attrgetter("target")


def is_known(target: np.ndarray) -> np.ndarray:
    """Where there is a value: numbers that are missing are NaN, other labels -100."""
    return ~np.isnan(target) if target.dtype.kind == "f" else target != IGNORE


# What columns hold


def read_column(
    examples: Sequence[Example],
    name: str,
    per: Per | None,
    kind: ProblemType | None = None,
    missing: Literal["drop", "class"] | None = None,
) -> ColumnValues:
    """The single values of a column; with `per` None lists in one piece.

    With `missing` "class", words such as NA count as values in a column with one value per sequence.
    """
    column, words = ColumnValues([], []), ColumnValues([], [])
    for example in examples:
        value = example.target.get(name)
        if is_missing(value) or value in _EMPTY_LISTS:
            if missing == "class" and per == "sequence" and isinstance(value, str) and value.strip():
                words.examples.append(example)
                words.values.append(value)
            continue
        for item in list_items(example, value, name, letters=kind == "multiclass") if per == "nucleotide" else [value]:
            if per == "nucleotide" and is_missing(item):
                continue
            if per and isinstance(item, dict | list):
                raise InputError(f"{example.where}: {str(item)[:30]} is neither a number nor a class name")
            column.examples.append(example)
            column.values.append(item)
    return ColumnValues(column.examples + words.examples, column.values + words.values)


def infer_per(examples: Sequence[Example], targets: Sequence[str]) -> Per:
    """Whether the columns hold one value per sequence or per nucleotide; InputError if both are plausible."""
    first, per = "", None
    for name in targets:
        column = read_column(examples, name, None)
        own = _per_of_column(name, column) if column.values else None
        if per is None:
            first, per = name, own
        elif own and own != per:
            raise InputError(
                f"{first} has one value per {per}, but {name} one per {own}; train a model for "
                "each, or use --set options.per=sequence to treat lists as class names"
            )
    if per is None:
        raise InputError(f"{', '.join(targets)}: no row has a value to learn from")
    return per


def _per_of_column(name: str, column: ColumnValues) -> Per:
    examples, values = column
    styles = list(map(list_style, values))
    listed = styles.count("brackets")
    if listed and listed < len(values):
        index = next(index for index, style in enumerate(styles) if style != "brackets")
        problem = f"is {_short(values[index])}, but {listed:,} of {len(values):,} rows have lists"
        raise InputError(f"{examples[index].where}: {name} {problem}; {_PER_HINT}")
    if not any(styles):
        return "sequence"
    rows = [list_items(example, value, name) for example, value in zip(examples, values, strict=True)]
    lengths = [len(example.sequence) for example in examples]
    items = [item for row in rows for item in row if not is_missing(item)]
    for example, row in zip(examples, rows, strict=True):
        for item in row if listed else ():
            require(
                not isinstance(item, dict | list), example, f"{str(item)[:30]} is neither a number nor a class name"
            )
    full = sum(len(row) == length for row, length in zip(rows, lengths, strict=True))
    if not listed and full < len(values) and _is_one_number_each(values):
        return "sequence"
    problem = ""
    if listed or 2 * sum(map(looks_numeric, items)) > len(items):
        # A few values in every row, such as those of three replicates.
        count, shortest = len(rows[0]), min(lengths)
        equal = len(values) > 1 and {*map(len, rows)} == {count}
        if equal and (listed or full < len(values)) and 1 < count < _SHORT and 2 * count < shortest:
            problem = f"has {count} values in every row, but the sequences have {shortest:,} nucleotides or more"
    elif full == 0:
        return "sequence"
    elif 2 * full < len(values) or any(len(row) > length for row, length in zip(rows, lengths, strict=True)):
        problem = f"is a list as long as the sequence in only {full:,} of {len(values):,} rows"
    if problem:
        raise InputError(f"{examples[0].where}: {name} {problem}; {_PER_HINT}")
    return "nucleotide"


def _is_one_number_each(values: Sequence[Any]) -> bool:
    """Whether every cell is one number with a comma or spaces in it, or such a number with a unit."""
    if all(map(looks_numeric, values)):
        return True
    try:
        written = number_format(values, "")
    except InputError:
        return True  # of two formats, but of numbers
    return written.unit != "" and None not in map(written.parse, values)


def infer_kind(
    columns: Mapping[str, ColumnValues], formats: Mapping[str, NumberFormat], per: Per, rows: int
) -> ProblemType:
    """The kind of values in the columns of a table with so many rows; InputError if two kinds are plausible."""
    numbers: set[float] = set()
    for name, column in columns.items():
        written = formats[name]
        parsed = dict(zip(column.values, map(written.parse, column.values), strict=True))
        has_unit = written.unit != "" and written.unit[0] not in "%‰"
        names_repeat = len(parsed) <= _FEW and len(column.values) >= _OFTEN * len(parsed) and len(columns) == 1
        if None in parsed.values():
            if not (has_unit and names_repeat):  # such as 16S rRNA, 5S rRNA, tRNA
                _check_names(name, column, parsed, per)
            return "multiclass"
        if has_unit:
            if names_repeat:
                return "multiclass"
            raise InputError(
                f"{name}: every cell is a number with {written.unit!r}; use --set options.kind=regression to learn the "
                "numbers, or --set options.kind=multiclass if they are class names"
            )
        numbers.update(parsed.values())  # type: ignore[arg-type]  # none is None
    if numbers <= {0.0, 1.0}:
        _check_spellings(columns)
        return "binary" if len(columns) == 1 else "multilabel"
    few = len(numbers) <= _FEW and rows >= _OFTEN * len(numbers) and len(columns) == 1 and per == "sequence"
    if few and all(map(float.is_integer, numbers)):
        _check_spellings(columns)
        return "multiclass"
    return "regression"


def _check_spellings(columns: Mapping[str, ColumnValues]) -> None:
    """Raise InputError for classes such as 01 beside 1: they are one number, but two names."""
    for name, column in columns.items():
        texts = {value.strip() for value in column.values if isinstance(value, str)}
        for padded in sorted(text for text in texts if re.fullmatch(r"0+\d+", text)):
            if (plain := str(int(padded))) in texts:
                raise InputError(
                    f"{name}: has both {padded!r} and {plain!r}; write one of them, or use --set "
                    "options.kind=multiclass if they are different classes"
                )


def _check_names(name: str, column: ColumnValues, parsed: Mapping[Any, float | None], per: Per) -> None:
    """Raise InputError for a text in a column of numbers, unless the numbers are names as well, and for names of which
    no two rows have the same."""
    examples, values = column
    texts = {value for value, number in parsed.items() if number is None}
    has_amounts = any(number is not None and not number.is_integer() for number in parsed.values())
    if len(texts) < len(parsed) and (2 * len(texts) < len(parsed) or has_amounts):
        index = next(index for index, value in enumerate(values) if value in texts)
        hint = "delete it, or use --set options.kind=multiclass if the numbers are class names"
        raise InputError(f"{examples[index].where}: {values[index]!r} is among numbers in {name}; {hint}")
    matches = [_WITH_UNIT.fullmatch(str(value).strip()) for value in parsed]
    units = sorted({match[1] for match in matches if match})
    if len(units) > 1 and all(matches) and (len(parsed) > _FEW or len(values) < _OFTEN * len(parsed)):
        raise InputError(
            f"{name}: has numbers in several units ({', '.join(map(_short, units[:5]))}); convert them to one, or use "
            "--set options.kind=multiclass if they are class names"
        )
    if per == "sequence" and len(values) > _FEW and len({*map(class_name, values)}) == len(values):
        letters = all(len(str(v)) == len(example.sequence) for example, v in zip(examples, values, strict=True))
        hint = ", or --set options.per=nucleotide if each letter is the class of a nucleotide" if letters else ""
        raise InputError(
            f"{name}: every row has a different text, such as {_short(values[0])}; choose another column with "
            f"--target, or use --set options.kind=multiclass if they are classes{hint}"
        )


def _description(
    name: str, column: ColumnValues, rows: int, kind: ProblemType, per: Per, written: NumberFormat
) -> list[str]:
    """Values or classes of a column with their numbers of rows, how many rows have none, three examples."""
    examples, values = column
    lacking = rows - len({*map(id, examples)})
    missing = f"; {lacking:,} {'rows have' if lacking > 1 else 'row has'} none" if lacking else ""
    if kind != "regression":
        names = list(map(class_name, values))
        if kind != "multiclass":  # 01 is 1
            names = [re.sub(r"^0+(?=[01]$)", "", text) for text in names]
        counts = Counter(names)
        classes = ", ".join(f"{_short(text)} ({count:,})" for text, count in counts.most_common(_DESCRIBED))
        more = f", … down to {min(counts.values()):,}" if len(counts) > _DESCRIBED else ""
        unit = "nucleotides" if per == "nucleotide" else "rows"
        lines = [f"{name}: {len(counts):,} classes in {len(values):,} {unit}: {classes}{more}{missing}"]
        spellings: dict[str, list[str]] = {}
        for text in counts:
            spellings.setdefault(text.casefold(), []).append(_short(text))
        if alike := next((names for names in spellings.values() if len(names) > 1), None):
            lines.append(f"{name}: the classes {' and '.join(alike)} differ only in case; are they one?")
        return lines
    if not values:
        return [f"{name}: no values{missing}"]
    numbers = np.array(list(map(written.parse, values)), dtype=float)
    count = f"{len(numbers):,} numbers" if len(numbers) > 1 else "1 number"
    several = f" in {rows - lacking:,} rows" if per == "nucleotide" else ""
    style = f" in {written.unit}" if written.unit else ""
    if written.decimal == "comma":
        style += ", with decimal commas" if style else " with decimal commas"
    three = []
    for value in list(dict.fromkeys(values))[:3]:
        plain = written == PLAIN or not isinstance(value, str)
        three.append(str(value).strip() if plain else f"'{value.strip()}' = {written.parse(value):.10g}")
    spread = f"{numbers.min():.10g} to {numbers.max():.10g}{style}"
    lines = [f"{name}: {count}{several}, {spread}, such as {', '.join(three)}{missing}"]
    if len(numbers) > 1 and numbers.min() == numbers.max():
        lines.append(f"{name} is the same in all training examples, so there is nothing to learn from it")
    low, middle, high = np.percentile(numbers, [25, 50, 75])
    # The numbers may be as large as numbers are; their difference is not.
    far = np.abs(numbers / 2 - middle / 2) > _OUTLYING * (high / 2 - low / 2)
    if high > low and far.any():
        index = int(far.argmax())
        lines.append(
            f"{name}: {far.sum():,} of {len(numbers):,} numbers are far from all others, such as {values[index]} "
            f"({examples[index].where.rpartition(', ')[2]}); if they mean a missing value, leave those cells empty"
        )
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 40 else text[:39] + "…")

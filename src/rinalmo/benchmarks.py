"""Benchmarks that others publish, by their rules: each reads the data as its authors lay them out, with their metrics.

    structures   folding with a model (`rinalmo.inference.fold`), F1 of base pairs or correlation with chemical mapping
    fitness      zero-shot scores of variants (`rinalmo.inference.variants`) beside GC content and number of mutations
    BEACON       fine-tuning (`rinalmo.training.finetune`), then the metrics on the test sets
    mRNABench    linear probes on embeddings, by scikit-learn
    audit        embeddings of mutants, graded by the package rna-structure-audit

The data come as a path; nothing is downloaded. What cannot be used is counted in a note, by reason.
"""

from __future__ import annotations

import ast
import csv
import difflib
import json
import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from rinalmo.engine.engine import Engine, as_engine
from rinalmo.errors import CheckpointError, InputError, MissingExtraError, SequenceError
from rinalmo.inference.embed import embed_records
from rinalmo.inference.fill_mask import NucleotideScorer
from rinalmo.inference.fold import Decoding, fold_records
from rinalmo.inference.variants import Variant, compare, score_variants
from rinalmo.io.files import read_lines, uncompressed_name
from rinalmo.io.sequences import Record, make_record
from rinalmo.io.tables import Row, is_missing, open_table, table_format
from rinalmo.metrics import (
    binary_scores,
    bootstrap_interval,
    class_scores,
    pair_scores,
    regression_scores,
)
from rinalmo.model.rinalmo import create
from rinalmo.rna.structure import PairList, Structure, can_pair, heaviest_nested
from rinalmo.tasks.base import Columns, Example
from rinalmo.tasks.evaluate import outputs, read_data, task_of
from rinalmo.tasks.secondary_structure import SecondaryStructure
from rinalmo.training.finetune import finetune
from rinalmo.training.trainer import NULL_LISTENER, Listener
from rinalmo.weights.checkpoint import load

Rows = list[Row]


@dataclass(frozen=True)
class Setup:
    """What a benchmark runs on.

    Attributes:
        data: The benchmark's data, a file or a folder.
        model: A name, folder or file; `{fold}` stands for the number or name of a fold.
        run: The folder for models that a benchmark trains.
        overrides: Changes of the recipes of fine-tuning.
        target: The column of the true values, for mRNABench.
        kind: "regression", "classification" or "multilabel", for mRNABench.
        zero_shot: Fold by the attention of the model.
        random_weights: Compute with the model's architecture and untrained weights of seed 0, as a baseline.
        engine: Settings of `Engine`, without its model.
        note: Called with lines about what was decided or left out.
        progress: Called with the number of sequences or passes so far.
        listener: For fine-tuning.
    """

    data: Path | None = None
    model: str | Path = "nano"
    run: Path | None = None
    overrides: Sequence[str] = ()
    target: str | None = None
    kind: str | None = None
    zero_shot: bool = False
    random_weights: bool = False
    engine: Mapping[str, Any] = field(default_factory=dict)
    note: Callable[[str], Any] = warnings.warn
    progress: Callable[[int], Any] = lambda count: None
    listener: Listener = NULL_LISTENER

    @property
    def path(self) -> Path:
        """The data; raises InputError if they are not there."""
        if self.data is None:
            raise InputError("this benchmark needs data; add --data FILE or FOLDER")
        if not self.data.exists():
            raise InputError(f"{self.data}: does not exist")
        return self.data

    def load(self, fold: str = "") -> Engine:
        """The engine of the model, or of a fold's."""
        name = str(self.model).replace("{fold}", fold)
        if self.random_weights:
            return as_engine(create(load(name).spec, 0), **self.engine)
        return as_engine(name, **self.engine)


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark: an entry of `assets/benchmarks.yaml`, and the function that runs it."""

    run: Callable[[Setup], Rows]
    measures: str
    source: str
    license: str
    data: str
    published: str
    model: str = "nano"
    needs_data: bool = True


def benchmark(
    name: str,
    data: str | Path | None = None,
    model: str | Path | None = None,
    **options: Any,
) -> Rows:
    """Run a published benchmark.

    Args:
        name: A name of `BENCHMARKS`, such as "rnagym-fitness".
        data: Its data, a file or a folder as distributed by the authors.
        model: A name, folder or file; the benchmark's default if None. `{fold}` in it is replaced by each fold.
        options: Further fields of `rinalmo.benchmarks.Setup`.

    Returns:
        One row per set of the benchmark, with the number of examples and the metrics by name.

    Raises:
        InputError: There is no such benchmark, or the data cannot be used.
        CheckpointError: The model lacks the head that the benchmark needs.

    Examples:
        >>> import rinalmo, tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "assay.csv"
        >>> rows = ["mutant,DMS_score,sequence", "A1C,0.1,CGGAAACUUGC", "G2A,0.9,AAGAAACUUGC", "A5U,0.5,AGGAUACUUGC"]
        >>> _ = path.write_text("\\n".join(rows))
        >>> (row, *_) = rinalmo.benchmark("rnagym-fitness", path)
        >>> row["set"], row["variants"]
        ('assay', 3)
    """
    chosen = find_benchmark(name)
    path = None if data is None else Path(data)
    return chosen.run(Setup(path, chosen.model if model is None else model, **options))


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name; raises InputError with the nearest one."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name, BENCHMARKS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(BENCHMARKS)}"
    raise InputError(f"no benchmark {name!r}; {hint}")


# Files


def find_file(folder: Path, *names: str) -> Path:
    """The file of a folder, or below it, that has one of these names, in any case and compressed or not."""
    if folder.is_file():
        return folder
    for name in names:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and uncompressed_name(path).lower() == name.lower():
                return path
    raise InputError(f"{folder}: contains no {' or '.join(names)}")


def tables(path: Path) -> dict[str, Path]:
    """The tables of a folder and those below it, or one file, by name without endings."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if table_format(file))
    if not files:
        raise InputError(f"{path}: contains no tables")
    return {file.name.partition(".")[0]: file for file in files}


def column(names: Iterable[str], *wanted: str) -> str | None:
    """The first of the wanted columns that there is, in any case."""
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in wanted if name in lower), None)


# Structures


def structure_rows(examples: Sequence[Example], engine: Engine, setup: Setup, name: str) -> Row:
    """Mean F1 of base pairs: exact, with one end off by one, and exact on canonical nested pairs."""
    decoding = Decoding(zero_shot=setup.zero_shot)
    values = []
    for count, (example, folded) in enumerate(zip(examples, _folded(examples, engine, decoding), strict=True), 1):
        predicted = folded[0].pairs
        nested = pair_scores(canonical_nested(example), predicted).f1
        near = pair_scores(example.target, predicted, tolerance=1).f1
        values.append((nested, pair_scores(example.target, predicted).f1, near))
        setup.progress(count)
    means = np.mean(values, axis=0).tolist()
    low, high = bootstrap_interval([each[0] for each in values])
    row: Row = {"set": name, "structures": len(values), "f1_canonical_nested": means[0]}
    return row | {"low": low, "high": high, "f1": means[1], "f1_relaxed": means[2]}


def canonical_nested(example: Example) -> Sequence[tuple[int, int]]:
    """The pairs of `rinalmo.metrics.canonical_nested_scores`; where nucleotides have several partners, the largest
    nested set of canonical pairs."""
    if len({end for pair in example.target for end in pair}) == 2 * len(example.target):
        return Structure(example.name, example.sequence, tuple(example.target)).nested().canonical().pairs
    i, j = np.array(example.target).T
    kept = can_pair(example.sequence, i, j)
    return heaviest_nested(i[kept], j[kept], np.ones(int(kept.sum())))


def _folded(examples: Iterable[Example], engine: Engine, decoding: Decoding) -> Iterator[Any]:
    return fold_records((Record(e.name, "", e.sequence) for e in examples), engine, decoding)


def run_structures(setup: Setup) -> Rows:
    """Every file of structures is a set."""
    files, engine = tables(setup.path), setup.load()
    read = {name: SecondaryStructure.read(path, Columns()) for name, path in files.items()}
    return with_mean([structure_rows(examples, engine, setup, name) for name, examples in read.items()])


def run_splits(setup: Setup, structures: str, splits: str) -> Rows:
    """Test partitions of the folds of Zablocki et al., each with the model of its fold."""
    path = setup.path
    file = find_file(path, f"{structures}.csv")
    examples = {example.name: example for example in read_base_pairs(file)}
    table = open_table(path if path.is_file() else find_file(path, f"{splits}.csv"))
    table.require("partition", "id")
    tested: dict[str, list[str]] = defaultdict(list)
    for _, row in table.rows:
        if row["partition"] == "test":
            tested[str(row.get("fold", "0"))].append(str(row["id"]))
    if not tested:
        raise InputError(f"{table.name}: has no row with the partition 'test'")
    if len(tested) > 1 and "{fold}" not in str(setup.model):
        setup.note("one model for all folds: its training data must not contain any test structure")
    rows = []
    for fold, ids in tested.items():
        test_examples = [examples[name] for name in ids if name in examples]
        if len(test_examples) < len(ids):
            setup.note(f"fold {fold}: {len(ids) - len(test_examples):,} of {len(ids):,} ids are not in {file.name}")
        if test_examples:
            name = f"fold {fold}" if len(tested) > 1 else "test"
            rows.append(structure_rows(test_examples, setup.load(fold), setup, name))
    return with_mean(rows)


def read_base_pairs(path: Path) -> list[Example]:
    """Structures of a table with a column `structure` in dot-bracket notation, or `base_pairs`, a list of pairs
    counted from 1, in which a nucleotide may have several partners."""
    table = open_table(path)
    listed = column(table.columns, "base_pairs", "base_pairs_1based")
    if listed is None:
        return SecondaryStructure.read(path, Columns())
    table.require("id", "sequence")
    examples = []
    for number, row in table.rows:
        sequence = make_record(str(row["sequence"]), str(row["id"])).sequence
        try:
            pairs = [(int(i) - 1, int(j) - 1) for i, j in ast.literal_eval(str(row[listed]))]
        except (ValueError, SyntaxError, TypeError):
            problem = f"{listed} is not a list of pairs such as [[1, 9], [2, 8]]"
            raise InputError(f"{table.place(number)}: {problem}") from None
        if any(not 0 <= i < j < len(sequence) for i, j in map(sorted, pairs)):
            raise InputError(f"{table.place(number)}: a pair is outside the sequence of {len(sequence)} nt")
        ordered = tuple(sorted({(min(pair), max(pair)) for pair in pairs}))
        examples.append(Example(str(row["id"]), sequence, ordered, where=table.place(number)))
    return examples


def mean(rows: Rows, name: str) -> Row:
    """The means of the metrics of some rows, and the sums of their counts."""
    row = dict.fromkeys(rows[0]) | {"set": name}
    for key, first in rows[0].items():
        values = [each[key] for each in rows if each[key] is not None and each[key] == each[key]]  # not NaN
        if isinstance(first, int):
            row[key] = sum(values)
        elif isinstance(first, float) and key not in ("low", "high"):
            row[key] = float(np.mean(values)) if values else math.nan
    return row


def with_mean(rows: Rows) -> Rows:
    """The rows, and the mean of their metrics if there are several."""
    return [*rows, mean(rows, "mean")] if len(rows) > 1 else rows


# RNAGym, secondary structures: correlation with chemical mapping

_MEASURED = {"DMS": "AC", "CMCT": "GU"}  # nucleotides that a reagent modifies; all for others


def run_chemical_mapping(setup: Setup) -> Rows:
    """Spearman's correlation of reactivity and the probability to be unpaired, the mean over sequences of a cluster,
    then over clusters; F1 on PseudoBase, if its file is there."""
    path, engine = setup.path, setup.load()
    source = find_file(path, "rnagym_map.parquet", "rnagym_map.csv", "rnagym_map.jsonl")
    profiles: dict[str, list[tuple[str, str, np.ndarray]]] = defaultdict(list)
    cluster_of: dict[str, str] = {}
    if path.is_dir():
        table = open_table(find_file(path, "rnagym_sequences.parquet", "rnagym_sequences.csv"))
        table.require("sequence_id", "cluster_rep")
        cluster_of = {str(row["sequence_id"]): str(row["cluster_rep"]) for _, row in table.rows}
    table = open_table(source)
    table.require("sequence", "reactivity")
    for number, row in table.rows:
        sequence = make_record(str(row["sequence"]), str(number)).sequence
        values = _numbers(row["reactivity"], len(sequence), table.place(number))
        own = str(row.get("sequence_id") or number)
        profiles[sequence].append((str(row.get("modifier") or "reactivity"), cluster_of.get(own, own), values))
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    examples = [Example(str(number), sequence) for number, sequence in enumerate(profiles, start=1)]
    folded = _folded(examples, engine, Decoding(zero_shot=setup.zero_shot))
    for count, (sequence, (_, probabilities)) in enumerate(zip(profiles, folded, strict=True), start=1):
        matrix = probabilities.matrix() if isinstance(probabilities, PairList) else probabilities
        unpaired = 1 - matrix.sum(axis=1)
        for modifier, cluster, values in profiles[sequence]:
            measured = np.isin(list(sequence), list(_MEASURED.get(modifier, "ACGU"))) & np.isfinite(values)
            score = regression_scores(values[measured], unpaired[measured]).spearman if measured.sum() > 1 else 0.0
            scores[modifier][cluster].append(0.0 if math.isnan(score) else score)
        setup.progress(count)
    rows: Rows = []
    for modifier, clusters in sorted(scores.items()):
        means = [float(np.mean(of)) for of in clusters.values()]
        low, high = bootstrap_interval(means)
        count = sum(map(len, clusters.values()))
        scored: Row = {"set": modifier, "profiles": count, "clusters": len(means), "spearman": float(np.mean(means))}
        rows.append(scored | {"low": low, "high": high})
    if path.is_dir() and (knots := [f for f in path.rglob("*") if uncompressed_name(f).startswith("rnagym_pb.")]):
        pairs = SecondaryStructure.read(knots[0], Columns(target=("secondary_structure",)))
        knotted = structure_rows(pairs, engine, setup, "PseudoBase")
        setup.note(f"PseudoBase: F1 {knotted['f1']:.4f} on {knotted['structures']:,} structures with pseudoknots")
    return rows


def _numbers(cell: Any, length: int, where: str) -> np.ndarray:
    """The numbers of a list, or of a text of one, up to this length; NaN where there is none."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            cell = re.split(r"[\s,;]+", cell.strip("[] \n"))
    values = [math.nan if is_missing(value) else float(value) for value in cell]
    if len(values) > length:
        raise InputError(f"{where}: {len(values)} values for {length} nt")
    return np.array(values + [math.nan] * (length - len(values)))


# Fitness

_FITNESS = ("dms_score", "fitness", "activity", "score", "value")


class Assay(NamedTuple):
    """Variants with their measured fitness."""

    name: str
    kind: str
    variants: list[Variant]
    fitness: np.ndarray


def run_fitness(setup: Setup) -> Rows:
    """Masked marginals of each assay; RNAGym's metrics, and the same for two trivial scores."""
    assays = list(read_assays(setup.path, setup.note))
    engine = setup.load()
    total = 0

    def report(count: int) -> None:
        nonlocal total
        setup.progress(total + count)

    rows = []
    for assay in assays:
        model = NucleotideScorer(engine, report)
        scores = np.array(list(score_variants(assay.variants, model, "masked-marginals")))
        total += len(assay.variants)
        gc = np.array([sum(map(variant.sequence.count, "GC")) for variant in assay.variants])
        mutations = -np.array([len(variant.changes) for variant in assay.variants])
        row: Row = {"set": assay.name, "type": assay.kind, "variants": len(scores)}
        row |= fitness_scores(assay.fitness, scores) | {"spearman_gc": _spearman(assay.fitness, gc)}
        row |= {"spearman_mutations": _spearman(assay.fitness, mutations)}
        rows.append(row)
    return rows + mean_of_types(rows)


def fitness_scores(fitness: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Spearman's correlation, and AUC and MCC with both sides cut at their medians, all with their signs."""
    high, chosen = fitness > np.median(fitness), scores > np.median(scores)
    ranks = np.searchsorted(np.sort(scores), scores) / max(1, len(scores))
    return {
        "spearman": _spearman(fitness, scores),
        "auc": binary_scores(high, ranks).roc_auc,
        "mcc": binary_scores(high, chosen).mcc,
    }


def _spearman(target: np.ndarray, values: np.ndarray) -> float:
    return regression_scores(target, values).spearman


def mean_of_types(rows: Rows) -> Rows:
    """The mean over the assays of each type of RNA, and the mean of these means."""
    if len(rows) < 2:
        return []
    kinds = sorted({row["type"] for row in rows})
    means = [mean([row for row in rows if row["type"] == kind], f"all {kind}") | {"type": kind} for kind in kinds]
    return [*means, mean(means, "mean of types") | {"type": ""}] if len(means) > 1 else means


def read_assays(path: Path, note: Callable[[str], Any]) -> Iterator[Assay]:
    """The assays of a folder, each a table with a column of fitness, and of mutants or sequences or both.

    Wild types and types of RNA are taken from the reference sheet (DMS_ID, RAW_CONSTRUCT_SEQ, RNA_TYPE), if there is
    one. Without, the wild type is a mutant's sequence with its mutations taken back, or the most frequent nucleotide at
    each position of the most frequent length.
    """
    files = tables(path)
    sheets = [name for name in files if "reference" in name.lower()]
    known: dict[str, Row] = {}
    for name in sheets:
        sheet_table = open_table(files.pop(name))
        sheet_table.require("DMS_ID", "RAW_CONSTRUCT_SEQ")
        known |= {str(row["DMS_ID"]): row for _, row in sheet_table.rows}
    for name, file in files.items():
        sheet = known.get(name, {})
        if known and not sheet:
            note(f"{name}: skipped, not in the reference sheet")
            continue
        kind = str(sheet.get("RNA_TYPE") or "RNA")
        if assay := _read_assay(file, name, kind, str(sheet.get("RAW_CONSTRUCT_SEQ") or ""), note):
            yield assay
    if missing := [name for name in known if name not in files]:
        note(f"{len(missing):,} of {len(known):,} assays of the reference sheet have no file, such as {missing[0]}")


def _read_assay(path: Path, name: str, kind: str, construct: str, note: Callable[[str], Any]) -> Assay | None:
    from rinalmo.inference.variants import parse

    table = open_table(path)
    value = column(table.columns, *_FITNESS)
    sequence, mutant = column(table.columns, "sequence", "seq", "mutated_sequence"), column(table.columns, "mutant")
    if value is None or (sequence is None and (mutant is None or not construct)):
        columns = f"a fitness ({', '.join(_FITNESS)}) and a sequence, or a mutant with a reference sheet"
        raise InputError(f"{path}: has no column of {columns}; there are {', '.join(table.columns)}")
    rows = [(table.place(number), row) for number, row in table.rows]
    reasons: Counter[str] = Counter()
    wild_type = make_record(construct, name).sequence if construct else ""
    if not wild_type and sequence is not None:
        wild_type = _wild_type([row for _, row in rows], sequence, mutant)
        note(f"{name}: no wild type given; the one inferred from the variants is {wild_type}")
    variants, fitness = [], []
    for where, row in rows:
        try:
            measured = float(row[value])
        except (TypeError, ValueError):
            measured = math.nan
        if not math.isfinite(measured):
            reasons["without a fitness"] += 1
            continue
        try:
            if sequence is not None and not is_missing(row[sequence]):
                variant = compare(wild_type, make_record(str(row[sequence]), where).sequence)
                if variant.other is not None:
                    reasons["of another length than the wild type"] += 1
                    continue
            else:
                variant = Variant(wild_type, parse(wild_type, str(row[str(mutant)])))
        except SequenceError as error:
            reasons[f"that cannot be read (such as {where}: {error})"] += 1
            continue
        variants.append(variant)
        fitness.append(measured)
    for reason, count in reasons.items():
        note(f"{name}: skipped {count:,} of {len(rows):,} variants {reason}")
    if len(variants) < 2:
        note(f"{name}: skipped, fewer than two variants can be scored")
        return None
    return Assay(name, kind, variants, np.array(fitness))


def _wild_type(rows: Rows, sequence: str, mutant: str | None) -> str:
    for row in rows if mutant else ():
        letters = list(make_record(str(row[sequence]), "wild type").sequence)
        changes = re.findall(r"([ACGTU])(\d+)([ACGTU])", str(row[str(mutant)]).upper().replace("T", "U"))
        if changes and all(0 < int(n) <= len(letters) and letters[int(n) - 1] == new for _, n, new in changes):
            for old, n, _ in changes:
                letters[int(n) - 1] = old
            return "".join(letters)
    sequences = [make_record(str(row[sequence]), "wild type").sequence for row in rows]
    length = Counter(map(len, sequences)).most_common(1)[0][0]
    columns = zip(*(each for each in sequences if len(each) == length), strict=True)
    return "".join(Counter(letters).most_common(1)[0][0] for letters in columns)


# BEACON: a model is fine-tuned on the training examples, chosen on the validation examples, and tested

Sets = dict[str, Rows]


class Supervised(NamedTuple):
    """A task of BEACON: its folder, how the cells of a row are read, our metrics, and the options of our recipe."""

    folder: str
    row: Callable[[list[Any], Sequence[str]], Row]
    metrics: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    options: tuple[str, ...] = ()
    task: str = "table"
    header: bool = True


def run_supervised(setup: Setup, task: Supervised) -> Rows:
    """Fine-tune unless the model is fine-tuned already; then a row for each test set."""
    folder = next((f for f in (setup.path / task.folder, setup.path) if f.is_dir()), setup.path)
    sets = read_sets(folder, task)
    tests = {name: rows for name, rows in sets.items() if name.startswith("test")}
    if not tests:
        raise InputError(f"{folder}: contains no test.csv with test examples; there are {', '.join(sets) or 'none'}")
    targets = [name for name in next(iter(tests.values()))[0] if name not in ("id", "sequence")]
    model: str | Path = setup.model
    if not is_finetuned(str(model)):
        if setup.run is None:
            raise InputError(f"{model} is not fine-tuned; add --run FOLDER to fine-tune it there")
        validation = next((rows for name, rows in sets.items() if name.startswith("val")), None)
        if "train" not in sets:
            raise InputError(f"{folder}: contains no train.csv to fine-tune {model} on; give a fine-tuned --model")
        overrides = [*(f"options.{option}" for option in task.options), *setup.overrides]
        options: dict[str, Any] = {"target": targets, "overrides": overrides, "validation": validation}
        options |= {"model": model, "listener": setup.listener}
        finetune(task.task, sets["train"], setup.run, **options)
        model = setup.run / "model"
    engine = replace(setup, model=model).load()
    own = task_of(engine.spec)
    rows: Rows = []
    for name, given in tests.items():
        examples = own.encode_targets(read_data(given, own.read, Columns(target=targets)))
        scored = [(e.target, own.score_example(engine.head_model, out, e)) for e, out in outputs(examples, engine, own)]
        true, predicted = (np.array([each[side] for each in scored], dtype=object) for side in (0, 1))
        rows.append({"set": name, "examples": len(scored)} | task.metrics(true, predicted))
    return with_mean(rows)


def is_finetuned(model: str) -> bool:
    try:
        task_of(load(model).spec)
    except CheckpointError:
        return False
    return True


def read_sets(folder: Path, task: Supervised) -> Sets:
    """The rows of train, val and test files (several test sets have longer names)."""
    sets: Sets = {}
    for name, path in tables(folder).items() if folder.is_dir() else ():
        if name.lower().startswith(("train", "val", "test")):
            columns, cells = _cells(path, task.header)
            sets[name.lower()] = [task.row(row, columns) for row in cells]
    return sets


def _cells(path: Path, header: bool) -> tuple[Sequence[str], list[list[Any]]]:
    if header or table_format(path) not in ("csv", "tsv"):
        table = open_table(path)
        return table.columns, [[row[name] for name in table.columns] for _, row in table.rows]
    rows = [row for row in csv.reader(read_lines(path, strict=True)) if row]
    if rows and not set(rows[0][0].upper()) <= set("ACGTUN"):
        return rows[0], rows[1:]
    return [f"label_{number}" if number else "sequence" for number in range(len(rows[0]) if rows else 0)], rows


# A row for `finetune` from the cells of a row, and the names of its columns.


def _label(cells: list[Any], names: Sequence[str]) -> Row:
    return {"sequence": str(cells[0]), "label": cells[1]}


def _all_labels(cells: list[Any], names: Sequence[str]) -> Row:
    return {"sequence": str(cells[0]), **dict(zip(names[1:], cells[1:], strict=True))}


def _digits(cells: list[Any], names: Sequence[str]) -> Row:
    return {"sequence": str(cells[0]), "label": list(str(cells[1]).strip())}


def _pair_of_sequences(cells: list[Any], names: Sequence[str]) -> Row:
    return {"sequence": f"{cells[0]}{cells[1]}", "label": cells[2]}


def _imputed(cells: list[Any], names: Sequence[str]) -> Row:
    """Values at the positions whose score is missing, -1; the others are not predicted."""
    given, values = (np.array(str(cell).split(), dtype=float) for cell in cells[1:3])
    return {"sequence": str(cells[0]), "label": np.where(given == -1, values, np.nan).tolist()}


def _named(cells: list[Any], names: Sequence[str], targets: Sequence[str]) -> Row:
    columns = {"sequence": column(names, "sequence", "seq", "utr")}
    columns |= {target: column(names, target.lower()) for target in targets}
    if None in columns.values():
        raise InputError(f"the columns are {', '.join(names)}, but sequence and {', '.join(targets)} are needed")
    return {name: cells[names.index(str(of))] for name, of in columns.items()}


def _degradation(cells: list[Any], names: Sequence[str]) -> Row:
    """A value for each of the first nucleotides; the others are not predicted."""
    row = _named(cells, names, ["reactivity", "deg_Mg_pH10", "deg_Mg_50C"])
    sequence = row.pop("sequence")
    values = {name: _numbers(cell, len(sequence), f"{name} of {sequence[:20]}…") for name, cell in row.items()}
    return {"sequence": sequence} | {name: of.tolist() for name, of in values.items()}


# Metrics from the targets and predictions of all examples.


def _pooled(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All sequences or nucleotides `(examples, columns)`."""
    target, values = (np.concatenate([np.atleast_2d(np.asarray(e, float)) for e in side]) for side in (true, predicted))
    return target, values


def r_squared(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The mean over columns of the squared Pearson correlation, as BEACON calls R²."""
    scores = []
    for target, values in zip(*(side.T for side in _pooled(true, predicted)), strict=True):
        known = np.isfinite(target)
        scores.append(pearson(target[known], values[known]) ** 2)
    return {"r2": float(np.mean(scores))}


def pearson(target: np.ndarray, values: np.ndarray) -> float:
    """Pearson's correlation; NaN if one side is constant."""
    x, y = target - target.mean(), values - values.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size else math.nan


def rank_correlation(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Spearman's correlation."""
    target, values = _pooled(true, predicted)
    return {"spearman": _spearman(target[:, 0], values[:, 0])}


def mcrmse(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The mean over columns of the root mean squared error."""
    target, values = _pooled(true, predicted)
    return {"mcrmse": float(np.sqrt(np.nanmean((target - values) ** 2, axis=0)).mean())}


def accuracy(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Share of sequences in their class."""
    return {"accuracy": class_scores(true.astype(int), [np.argmax(each) for each in predicted]).accuracy}


def mean_auc(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The mean ROC-AUC of the labels; 0.5 for one that all examples share."""
    columns = zip(*(side.T for side in _pooled(true, predicted)), strict=True)
    scores = [binary_scores(target, values).roc_auc for target, values in columns]
    return {"auc": float(np.mean(np.nan_to_num(scores, nan=0.5)))}


def top_k_accuracy(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The share of right ones among the k highest scores of a class with k nucleotides; acceptors, donors, mean."""
    target = np.concatenate([np.asarray(each).reshape(-1) for each in true])
    scores = np.concatenate([np.asarray(each) for each in predicted])
    precisions = []
    for index in (1, 2):
        positive = target == index
        ranked = np.argsort(-scores[:, index], kind="stable") if index < scores.shape[1] else np.empty(0, dtype=int)
        top = ranked[: positive.sum()]
        precisions.append(float(positive[top].mean()) if len(top) else math.nan)
    return {"top_k": float(np.nanmean(precisions)), "top_k_acceptor": precisions[0], "top_k_donor": precisions[1]}


_NUMBERS, _NUCLEOTIDES = "kind=regression", "per=nucleotide"
BEACON = {
    "ncrna-family": Supervised("NoncodingRNAFamily", _label, accuracy, task="ncrna-family"),
    "modification": Supervised("Modification", _all_labels, mean_auc, ("kind=multilabel",), header=False),
    "mean-ribosome-load": Supervised("MeanRibosomeLoading", _label, r_squared, (_NUMBERS,)),
    "isoform": Supervised("Isoform", _label, r_squared, (_NUMBERS,)),
    "rna-switches": Supervised(
        "ProgrammableRNASwitches", partial(_named, targets=("ON", "OFF", "ON_OFF")), r_squared, (_NUMBERS,)
    ),
    "crispr-on-target": Supervised("CRISPROnTarget", _label, rank_correlation, (_NUMBERS,)),
    "crispr-off-target": Supervised("CRISPROffTarget", _pair_of_sequences, rank_correlation, (_NUMBERS,)),
    "degradation": Supervised("Degradation", _degradation, mcrmse, (_NUMBERS, _NUCLEOTIDES)),
    "structural-score-imputation": Supervised(
        "StructuralScoreImputation", _imputed, r_squared, (_NUMBERS, _NUCLEOTIDES)
    ),
    "splice-site": Supervised("SpliceAI", _digits, top_k_accuracy, ("kind=multiclass", _NUCLEOTIDES)),
}
"""Ten of the thirteen tasks. Secondary structures are `run_beacon_structures`; contact and distance maps are missing,
since no head here predicts several partners of a nucleotide or distances."""


def run_beacon_structures(setup: Setup) -> Rows:
    """Folding of the test structures, `bpRNA.csv` with a matrix of pairs in an .npy file for each."""
    path = setup.path
    table = open_table(find_file(path, "bpRNA.csv"))
    table.require("seq", "file_name")
    matrices = {file.stem: file for file in path.rglob("*.npy")}
    examples = []
    for number, row in table.rows:
        name = Path(str(row["file_name"])).stem
        if str(row.get("data_name", "TS0")).upper() != "TS0":
            continue
        if name not in matrices:
            raise InputError(f"{table.place(number)}: {name}.npy is not in {path}")
        matrix = np.load(matrices[name], allow_pickle=False)
        i, j = np.nonzero(np.triu(matrix, 1))
        sequence = make_record(str(row["seq"]), name).sequence
        examples.append(Example(name, sequence, tuple(zip(i.tolist(), j.tolist(), strict=True))))
    if not examples:
        raise InputError(f"{table.name}: contains no structure of TS0")
    return [structure_rows(examples, setup.load(), setup, "TS0")]


# mRNABench: linear probes

_ALPHAS = (1e-3, 1e-2, 1e-1, 1, 10)
_SEED = 2541


def run_probe(setup: Setup) -> Rows:
    """Embeddings by the mean of nucleotides, a linear model on the training part, metrics on the two others."""
    table = open_table(find_file(setup.path, *(f"{setup.path.name}{end}" for end in (".parquet", ".csv"))))
    name = setup.target or column(table.columns, "target", "label")
    if name is None:
        raise InputError(f"{table.name}: it is unclear which column is the target; name it with --target")
    table.require("sequence", name)
    rows = [row for _, row in table.rows]
    y = np.array([np.asarray(row[name], float) for row in rows])
    kind = setup.kind or ("multilabel" if y.ndim > 1 else "classification" if set(y) <= {0.0, 1.0} else "regression")
    records = [make_record(str(row["sequence"]), str(number)) for number, row in enumerate(rows, start=1)]
    vectors = []
    for count, (_, vector) in enumerate(embed_records(records, setup.load()), start=1):
        vectors.append(vector)
        setup.progress(count)
    x, results = np.stack(vectors), []
    parts = _parts(rows, setup.note)
    fitted = _probe(kind).fit(x[parts["train"]], y[parts["train"]])
    for part in ("val", "test"):
        if len(parts[part]):
            scores = probe_scores(kind, fitted, x[parts[part]], y[parts[part]])
            results.append({"set": part, "examples": len(parts[part])} | scores)
    return results


def _parts(rows: Rows, note: Callable[[str], Any]) -> dict[str, np.ndarray]:
    """Places of the training, validation and test examples."""
    if "split" in rows[0]:
        given = np.array([str(row["split"])[:3].lower() for row in rows])
        return {name: np.flatnonzero(given == name[:3]) for name in ("train", "val", "test")}
    note("there is no column 'split': using a random split of 70 / 15 / 15 %, which is easier than the homology split")
    order = np.random.default_rng(_SEED).permutation(len(rows))
    first, second = round(0.7 * len(rows)), round(0.85 * len(rows))
    return {"train": order[:first], "val": order[first:second], "test": order[second:]}


def _probe(kind: str) -> Any:
    try:
        linear, multioutput = import_module("sklearn.linear_model"), import_module("sklearn.multioutput")
    except ModuleNotFoundError:
        raise MissingExtraError("scikit-learn", "benchmark", "linear probes") from None
    if kind == "regression":
        return linear.RidgeCV(alphas=_ALPHAS)
    logistic = linear.LogisticRegression(max_iter=5000)
    return multioutput.MultiOutputClassifier(logistic) if kind == "multilabel" else logistic


def probe_scores(kind: str, fitted: Any, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Squared error and correlations, or areas under the curves (micro-averaged over labels)."""
    areas = import_module("sklearn.metrics")
    if kind == "regression":
        predicted = fitted.predict(x)
        scores = regression_scores(y, predicted)
        return {"mse": scores.mse, "pearson": pearson(y, predicted), "spearman": scores.spearman}
    p = fitted.predict_proba(x)
    p = np.stack([each[:, 1] for each in p], axis=1) if kind == "multilabel" else p[:, 1]
    return {
        "auroc": float(areas.roc_auc_score(y, p, average="micro")),
        "auprc": float(areas.average_precision_score(y, p, average="micro")),
    }


# rna-structure-audit


def run_audit(setup: Setup) -> Rows:
    """The three rungs and the grade of the package, on the families that it ships."""
    try:
        evaluate = import_module("rna_structure_audit.evaluate").evaluate
    except ModuleNotFoundError:
        raise MissingExtraError("rna-structure-audit", "benchmark", "the structure audit") from None
    engine = setup.load()
    report = evaluate(AuditAdapter(engine, str(setup.model), setup.progress))["report"]
    rungs = [(f"rung{n}_{name}", value) for n in (1, 2, 3) for name, value in report[f"rung{n}"].items()]
    row: Row = {"set": f"{report['n_families']} families", "grade": report["grade"], **dict(rungs)}
    return [row]


class AuditAdapter:
    """A model as rna-structure-audit takes it: states of all layers, one sequence at a time."""

    def __init__(self, engine: Engine, name: str, progress: Callable[[int], Any]) -> None:
        self.engine, self.name, self.progress, self.count = engine, name, progress, 0
        self.d_model, self.n_layers = engine.config.hidden_size, engine.config.num_hidden_layers

    def load(self) -> None:
        """The engine is loaded already."""

    def tokenize(self, sequence: str) -> Any:
        """Token ids, without a batch."""
        import torch

        from rinalmo.io.sequences import encode

        return torch.from_numpy(encode(make_record(sequence, "audit"), self.engine.alphabet))

    def get_all_layer_embeddings(self, tokens: Any) -> list[Any]:
        """States `(length, hidden)` of each layer, without CLS and EOS."""
        from rinalmo.model.packing import pack

        self.count += 1
        self.progress(self.count)
        layers = range(self.n_layers + 1)
        states = self.engine.hidden_states(*pack([tokens], self.engine.device), list(layers))
        return [state[1:-1].cpu() for state in states]

    def get_final_embeddings(self, tokens: Any) -> Any:
        """The last of `get_all_layer_embeddings`."""
        return self.get_all_layer_embeddings(tokens)[-1]


# The catalog

_RUN: dict[str, Callable[[Setup], Rows]] = {
    "structure-audit": run_audit,
    "rnagym-structures": run_chemical_mapping,
    "rnagym-fitness": run_fitness,
    "nabench": run_fitness,
    "chanrg": run_structures,
    "archiveii-kfold": partial(run_splits, structures="ArchiveII", splits="ArchiveII_kfold_splits"),
    "archiveii-famfold": partial(run_splits, structures="ArchiveII", splits="ArchiveII_famfold_splits"),
    "pdb-rna": partial(run_splits, structures="PDB-RNA", splits="PDB-RNA_splits"),
    "beacon-secondary-structure": run_beacon_structures,
    **{f"beacon-{name}": partial(run_supervised, task=task) for name, task in BEACON.items()},
    "mrnabench": run_probe,
}
_ENTRIES: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "assets/benchmarks.yaml").read_text("utf-8"))
BENCHMARKS = {name: Benchmark(_RUN[name], **entry) for name, entry in _ENTRIES.items()}
"""All benchmarks by name."""

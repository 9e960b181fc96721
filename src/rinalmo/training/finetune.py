"""Fine-tuning: labeled examples, a task's head on a backbone, and the runs of a cross-validation.

    files or rows ─► training, validation and test examples ─► backbone and head ─► training loop ─► metrics on the test
                                                                                                     examples ─► card

A frozen backbone computes its states once; they are cached in the run folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rinalmo.data import sampling
from rinalmo.engine.devices import DeviceLike, device_name
from rinalmo.engine.engine import Engine, to_host
from rinalmo.errors import CheckpointError, InputError, MissingExtraError
from rinalmo.io.files import (
    LOCK,
    Pace,
    atomic_write,
    atomic_write_path,
    counted,
    destination,
    file_sha256,
    is_temporary,
)
from rinalmo.model.packing import Layout, pack, token_batches
from rinalmo.model.rinalmo import ModelSpec, RiNALMo, create
from rinalmo.tasks.base import Columns, Crop, Example, Task, encode_sequences, json_lines, sequences_of
from rinalmo.tasks.evaluate import Evaluation, Metric, evaluate_examples, outputs, task_class, task_of
from rinalmo.tasks.table import Table
from rinalmo.training.distributed import Ranks, init_distributed
from rinalmo.training.linear_models import baselines, choose_modes, comparison, draw_predictions, engine_for, fit_head
from rinalmo.training.model_card import write_card
from rinalmo.training.recipes import BackboneRecipe, ExamplesRecipe, FinetuneRecipe, recipe_for
from rinalmo.training.run_folder import EVALUATION, EXAMPLES, PREDICTIONS, RECIPE, RunFolder, open_log, read_log
from rinalmo.training.trainer import (
    NULL_LISTENER,
    Listener,
    Outcome,
    ParameterGroup,
    TrainingTask,
    preserved_state,
    train_and_export,
    with_precision,
)
from rinalmo.weights.adapters import low_rank, write_adapter
from rinalmo.weights.catalog import resolve
from rinalmo.weights.checkpoint import config_of, load, save

_ORDER, _SPLIT = 11, 12  # purposes of this file's random keys
_FEW = 20  # training examples
Rows = Iterable[Mapping[str, Any]]


class Sets(NamedTuple):
    """The three sets of a run; validation and test may be empty."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def with_fingerprints(data: ExamplesRecipe) -> ExamplesRecipe:
    """The recipe with absolute paths and the sha256 of each file; InputError for a file that has changed."""
    paths = {name: Path(path).absolute() for name in Sets._fields if (path := getattr(data, name)) is not None}
    vectors = {name: path and path.absolute() for name, path in columns_of(data).features.items()}
    features = [name if path is None else f"{name}={path}" for name, path in vectors.items()]
    if "train" not in paths:
        raise InputError("data.train is missing: give the file of examples")
    try:
        sums = {name: file_sha256(path) for name, path in paths.items()}
        sums |= {f"features.{name}": file_sha256(path) for name, path in vectors.items() if path}
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} does not exist; check the path") from None
    except OSError as error:
        raise InputError.from_os_error(error, error.filename, "cannot be read") from None
    for name, known in data.fingerprints.items():
        if sums.get(name) != known:
            raise InputError(f"{paths.get(name, name)}: differs from the file that this run was started with")
    columns = data.columns.model_copy(update={"features": features})
    update = {**{name: str(path) for name, path in paths.items()}, "fingerprints": sums, "columns": columns}
    return data.model_copy(update=update)


def read_examples(data: ExamplesRecipe, task: type[Task]) -> tuple[Sets, list[str]]:
    """Read the files of a recipe; returns notes on examples left out."""
    crop = crop_of(data)
    notes: list[str] = []
    read: list[list[Example]] = []
    for path in (data.train, data.validation, data.test):
        examples = task.read(Path(path), columns_of(data)) if path is not None else []
        longest = data.max_length or math.inf
        read.append([e for e in examples if all(len(sequence) <= longest for sequence in sequences_of(e, crop))])
        if left_out := len(examples) - len(read[-1]):
            notes.append(f"{path}: skipped {left_out:,} examples longer than {longest} nt")
    return Sets(*read), notes


def read_sets(data: ExamplesRecipe, task: type[Task], seed: int) -> tuple[Sets, list[str]]:
    """Read and split the files of a recipe; returns notes on examples left out and on sequences in two sets."""
    read, notes = read_examples(data, task)
    sets = split(read, data, seed)
    if not sets.train:
        count = counted(len(read.train), "example")
        raise InputError(f"{data.train}: none of {count} is left for training; add rows, or give --validation FILE")
    if len(sets.train) < _FEW:
        few = f"{counted(len(sets.train), 'training example')} and {len(sets.validation):,} for validation are few"
        notes.append(f"{few}; do not trust metrics on so few")
    crop = crop_of(data)
    known = {tuple(sequences_of(example, crop)) for example in sets.train}
    for name, examples in (("validation", sets.validation), ("test", sets.test)):
        if shared := sum(tuple(sequences_of(example, crop)) in known for example in examples):
            noun = "pairs of sequences" if data.columns.second else "sequences"
            notes.append(f"{shared:,} of {len(examples):,} {name} {noun} are also in the training set")
    return sets, notes


def split(sets: Sets, data: ExamplesRecipe, seed: int) -> Sets:
    """The sets of a recipe's fold, or with a validation set drawn from the training examples if there is none.

    Fold n is the test set and the one before it the validation set, as in the paper.
    """
    train, folds, fold = sets.train, data.folds, data.fold or 0
    if folds is None:
        if data.fold is not None:
            raise InputError(f"data.fold is {data.fold}, but the number of folds is missing; set --folds or data.folds")
        if sets.validation or not data.validation_fraction:
            return sets
        units = _shuffled_units(train, data, seed)
        size = max(1, round(len(train) * data.validation_fraction))
        drawn = int(np.searchsorted(np.cumsum(list(map(len, units))), size)) + 1
        return Sets([*chain(*units[drawn:])], [*chain(*units[:drawn])], sets.test)
    if data.validation is not None or data.test is not None:
        raise InputError("--folds makes its own validation and test sets; leave out --validation and --test")
    if fold >= folds:
        raise InputError(f"data.fold is {fold}; with {folds} folds it must be between 0 and {folds - 1}")
    units = _shuffled_units(train, data, seed)
    if len(units) < folds:
        noun = "groups" if data.columns.group else "examples"
        raise InputError(f"{data.train}: {len(units)} {noun} are too few for {folds} folds")
    parts = [[*chain(*units[number::folds])] for number in range(folds)]
    held_out = (fold, (fold - 1) % folds)
    training = [example for number, part in enumerate(parts) if number not in held_out for example in part]
    return Sets(training, parts[held_out[1]], parts[fold])


def columns_of(data: ExamplesRecipe) -> Columns:
    """The columns of a recipe as the tasks take them."""
    given = data.columns
    target = (given.target,) if isinstance(given.target, str) else tuple(given.target or ())
    features: dict[str, Path | None] = {}
    for text in given.features:
        name, _, file = text.partition("=")
        features |= {name: Path(file)} if file.endswith(".npz") else {text: None}
    return Columns(given.name, given.sequence, target, given.group, given.second, features)


def crop_of(data: ExamplesRecipe) -> Crop | None:
    """The part of a sequence that a model of this recipe uses; None: all of it."""
    return None if data.crop is None else Crop(data.crop, data.crop_at)


def _shuffled_units(examples: Sequence[Example], data: ExamplesRecipe, seed: int) -> list[list[Example]]:
    """What is not split: the examples of a group if the recipe names its column, else single examples."""
    groups: dict[str, list[Example]] = {}
    for number, example in enumerate(examples):
        group = example.group if data.columns.group else ""
        groups.setdefault(group or f"\0{number}", []).append(example)  # without a group: a unit of its own
    units, key = list(groups.values()), sampling.random_key(seed, _SPLIT)
    order = sampling.random_permutation(np.arange(len(units)), max(1, len(units)), key)
    return [units[place] for place in order.tolist()]


def make_task(recipe: FinetuneRecipe, sets: Sets) -> tuple[Task, Sets]:
    """The task for these training examples, and all examples with encoded targets.

    Raises InputError for options or examples that do not fit the task.
    """
    kind = task_class(recipe.task)
    options = recipe.options.model_dump(exclude_none=True)
    if foreign := sorted(options.keys() - set(kind.options)):
        own = f"its options are {', '.join(kind.options)}" if kind.options else "it has no options"
        raise InputError(f"options.{foreign[0]} is not an option of {kind.name}; {own}")
    given = recipe.data.columns
    if (given.second or given.features) and kind is not Table:
        raise InputError(f"a second sequence and features need the task table, not {kind.name}")
    task = kind.from_examples(sets.train, options | ({"second": given.second} if given.second else {}))
    task.crop = crop_of(recipe.data)
    if task.crop and task.per == "nucleotide":
        raise InputError(
            "data.crop needs a task with one prediction per sequence; use data.max_length to leave out long sequences"
        )
    return task, Sets(*(task.encode_targets(examples) for examples in sets))


def build_model(recipe: FinetuneRecipe, task: Task, examples: Sequence[Example]) -> tuple[RiNALMo, list[str]]:
    """The backbone of `recipe.init` with the task's heads, and notes.

    The masked-LM head is kept untrained, so that the model can still fill masks. A model of the same task keeps its
    heads and is trained further.
    """
    given = load(recipe.init, dtype=torch.float32)
    names = ("attention_dropout", "hidden_dropout")
    dropouts = {name: value for name in names if (value := getattr(recipe.backbone, name)) is not None}
    heads: dict[str, Any] = {"lm_head": {}} if "lm_head" in given.spec.heads else {}
    labels: dict[str, Any] = {}
    if isinstance(task, Table) and {"sequence_head", "token_head"} & task.heads().keys():
        labels = {"problem_type": task.kind, "labels": task.classes or task.targets}
    config = replace(given.config, **dropouts)
    spec = ModelSpec(config, given.alphabet, heads | task.heads(), task=task.config(), **labels)
    model = create(spec, recipe.train.seed)
    try:
        before: Task | None = task_of(given.spec)
    except CheckpointError:
        before = None
    # The crop does not matter: the head is the same.
    same_task = before is not None and (before.name, unscaled(before)) == (task.name, unscaled(task))
    task.init_head(model, examples)
    new = set() if same_task else task.heads().keys()
    kept = {name: tensor for name, tensor in given.state_dict().items() if name.split(".")[0] not in new}
    model.load_state_dict(kept, strict=False)
    if same_task and isinstance(before, Table) and isinstance(task, Table):
        before.rescale(model, task.mean, task.std)
        model.spec = spec
    return model, [f"{recipe.init} was already trained for this task; its head is trained further"] if same_task else []


def unscaled(task: Task) -> dict[str, Any]:
    """A task's settings but for the scale of its targets, which comes from the data."""
    return {name: value for name, value in task.settings.items() if name not in ("mean", "std")}


def add_lora(model: RiNALMo, recipe: BackboneRecipe, seed: int) -> dict[str, Any]:
    """Add a low-rank adapter to the matrices of the encoder's blocks; returns its config, as PEFT writes it."""
    try:
        from peft import LoraConfig, LoraModel
    except ModuleNotFoundError:
        raise MissingExtraError("peft", "lora", "backbone.mode lora") from None
    sizes: dict[str, Any] = {"r": recipe.rank, "lora_alpha": recipe.alpha, "lora_dropout": recipe.dropout}
    config = LoraConfig(**sizes, target_modules=[*recipe.target_modules], bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the same adapter on every process
        LoraModel(model.encoder, config, "default")
    values = {**config.to_dict(), "target_modules": sorted(recipe.target_modules), "inference_mode": True}
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}


def merge_lora(
    weights: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a model with an adapter: merged, and those of the adapter alone."""
    adapter = {name.replace(".default.", "."): tensor for name, tensor in weights.items() if ".lora_" in name}
    merged = {n.replace(".base_layer.", "."): tensor for n, tensor in weights.items() if ".lora_" not in n}
    for name, change in low_rank(adapter, settings).items():
        merged[name] = change.merged(merged[name])
    return merged, adapter


def choose_parameters(
    model: RiNALMo, heads: Iterable[str], recipe: BackboneRecipe
) -> list[tuple[int, list[str], float]]:
    """The trained parameters: their first epoch, names, and scale of the learning rate. All others are frozen."""
    names = [name for name, _ in model.named_parameters()]
    head = [name for name in names if name.startswith(tuple(f"{name}." for name in heads))]
    groups = [(0, head, 1.0)]
    if recipe.mode in ("full", "lora"):
        added = [name for name in names if (name.startswith("encoder.") if recipe.mode == "full" else "lora_" in name)]
        groups = [(0, added + head, 1.0)]
    elif recipe.mode == "gradual":
        if not recipe.stages:
            raise InputError("backbone.mode gradual needs backbone.stages, such as [{epoch: 3, blocks: 2}]")
        blocks = len(model.encoder.blocks)
        for number, stage in enumerate(recipe.stages):
            below = 0 if stage.blocks is None else max(0, blocks - stage.blocks)
            prefixes = [f"encoder.blocks.{block}." for block in range(below, blocks)]
            prefixes += [] if number else ["encoder.final_norm."]
            groups.append((stage.epoch, [n for n in names if n.startswith(tuple(prefixes))], recipe.scale))
            blocks = below
    trained = {name for _, group, _ in groups for name in group}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return groups


NOTE_SECONDS = 30.0  # between notes of how far a long computation is


def cached_states(
    engine: Engine,
    ids: Sequence[Sequence[np.ndarray]],
    folder: Path,
    ranks: Ranks,
    note: Callable[[str], None] = lambda _: None,
) -> list[np.ndarray]:
    """The last states of the sequences of each example, memory-mapped from a file that process 0 writes if it is not
    there; it notes how far it is every half minute."""
    digest = hashlib.sha256(f"{engine.fingerprint} {engine.precision}".encode())
    for sequence in chain.from_iterable(ids):
        digest.update(sequence.tobytes() + b"|")
    path = folder / f"states-{digest.hexdigest()[:16]}.npy"
    last = engine.config.num_hidden_layers

    def compute(packed: Tensor, layout: Layout) -> list[np.ndarray]:
        states = engine.hidden_states(packed, layout, [last])[0]
        return [part.numpy() for part in layout.split(to_host(states)[0])]

    def write() -> None:
        if path.exists():
            return
        shape = (sum(map(len, chain.from_iterable(ids))), engine.config.hidden_size)
        with atomic_write_path(path) as partial:
            file = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
            start, total, noted = 0, shape[0], time.monotonic()
            pace = Pace(total, done=0)
            for states in engine.map(compute, chain.from_iterable(ids)):
                file[start : start + len(states)] = states
                start += len(states)
                if (now := time.monotonic()) - noted >= NOTE_SECONDS:
                    noted = now
                    share = f"{start:,} of {total:,} tokens ({100 * start // total} %)"
                    note(f"frozen states: {share}{pace.left(start)}")
            file.flush()
            del file  # Windows renames no file that is open

    ranks.on_rank_zero(write)
    mapped = np.load(path, mmap_mode="r")
    sizes = [sum(map(len, sequences)) for sequences in ids]
    return [mapped[end - size : end] for end, size in zip(np.cumsum(sizes), sizes, strict=True)]


class Predictor(nn.Module):
    """Encoder and head as one module; the encoder is skipped where its states are given."""

    def __init__(self, model: RiNALMo, task: Task, *, frozen: bool = False) -> None:
        super().__init__()
        self.model, self.task, self.frozen = model, task, frozen

    def forward(
        self, ids: Tensor, layout: Layout, states: Tensor | None = None, examples: Sequence[Example] = ()
    ) -> list[Tensor]:
        """The head's output for each example."""
        if states is None:
            states = self.model.encoder(ids, layout).last_hidden_state
        outputs = self.task.forward(self.model, ids, states, layout)
        return list(outputs if self.task.inputs is None else self.task.join(self.model, outputs, examples))

    def train(self, mode: bool = True) -> Predictor:
        super().train(mode)
        if self.frozen:
            self.model.encoder.eval()
        return self


@dataclass(frozen=True)
class EncodedExamples:
    """Examples with the token ids of their sequences, and the encoder's states of each if these are cached."""

    examples: Sequence[Example]
    sequences: Sequence[Sequence[np.ndarray]]
    states: Sequence[np.ndarray] | None = None

    @cached_property
    def lengths(self) -> list[int]:
        """Number of tokens of each example."""
        return [sum(map(len, sequences)) for sequences in self.sequences]


@dataclass(frozen=True)
class MicroBatch:
    """Packed examples, and their places in their set.

    A batch that is not `counted` is computed only because other processes have one more, and adds nothing.
    """

    places: Sequence[int]
    examples: Sequence[Example]
    ids: Tensor
    layout: Layout
    states: Tensor | None = None
    counted: bool = True


class SupervisedTask(TrainingTask[MicroBatch]):
    """A labeled task on examples."""

    def __init__(
        self,
        recipe: FinetuneRecipe,
        task: Task,
        model: RiNALMo,
        sets: Sequence[EncodedExamples],
        ranks: Ranks,
    ) -> None:
        """`sets` are training and validation examples."""
        self.recipe, self.task, self.model, self.ranks = recipe, task, model, ranks
        self.train, self.validation = sets
        self.module = Predictor(model, task, frozen=recipe.backbone.mode == "frozen")
        self.steps_per_epoch = max(1, -(-len(self.train.examples) // recipe.data.sequences_per_batch))
        self.steps = recipe.train.max_steps or recipe.train.epochs * self.steps_per_epoch
        self.step = 0
        self.groups = choose_parameters(model, task.heads(), recipe.backbone)

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        parameters = dict(self.model.named_parameters())  # by name, since sharding replaces them
        return [
            ParameterGroup([parameters[name] for name in names], epoch * self.steps_per_epoch, scale)
            for epoch, names, scale in self.groups
        ]

    def batches(self) -> Sequence[MicroBatch]:
        epoch, number = divmod(self.step, self.steps_per_epoch)
        size, count = self.recipe.data.sequences_per_batch, len(self.train.examples)
        places = np.arange(number * size, min(count, (number + 1) * size))
        key = sampling.random_key(self.recipe.train.seed, _ORDER, epoch)
        self.step += 1
        batches = list(self._micro_batches(self.train, sampling.random_permutation(places, count, key).tolist()))
        batches += [replace(batches[0], counted=False)] * (-len(batches) % self.ranks.world)
        return batches[self.ranks.rank :: self.ranks.world]

    def _micro_batches(self, encoded: EncodedExamples, places: Iterable[int]) -> Iterator[MicroBatch]:
        order = sorted(places, key=encoded.lengths.__getitem__)
        for part in token_batches(encoded.lengths, self.recipe.data.micro_tokens, order):
            sequences = (torch.from_numpy(ids) for i in part for ids in encoded.sequences[i])
            ids, layout = pack(sequences, self.ranks.device)
            states = None
            if encoded.states is not None:
                states = torch.from_numpy(np.concatenate([encoded.states[i] for i in part])).to(self.ranks.device)
            yield MicroBatch(part, [encoded.examples[i] for i in part], ids, layout, states)

    def sizes(self, batch: MicroBatch) -> tuple[Sequence[int], int]:
        count = sum(example.num_targets for example in batch.examples)
        return (batch.layout.lengths, count) if batch.counted else ((), 0)

    def loss(self, module: nn.Module, batch: MicroBatch) -> Tensor:
        outputs = module(batch.ids, batch.layout, batch.states, batch.examples)
        return self.task.loss(self.model, outputs, batch.examples) * float(batch.counted)

    def evaluate(self, module: nn.Module, ranks: Ranks) -> Iterator[tuple[str, float]]:
        """Loss and metrics over the validation examples; nothing if there are none."""
        task, model, count = self.task, self.model, len(self.validation.examples)
        if not count:
            return
        own: dict[int, tuple[float, int, Any]] = {}  # loss, its terms and the scores of each example
        for batch in self._micro_batches(self.validation, range(ranks.rank, count, ranks.world)):
            outputs = module(batch.ids, batch.layout, batch.states, batch.examples)
            for place, example, output in zip(batch.places, batch.examples, outputs, strict=True):
                loss = float(task.loss(model, [output], [example]))
                own[place] = (loss, example.num_targets, task.score_example(model, output, example))
        gathered = {place: values for part in ranks.all_gather_object(own) for place, values in part.items()}
        losses, terms, scores = zip(*(gathered[place] for place in range(count)), strict=True)
        yield "validation/loss", sum(losses) / max(1, sum(terms))
        threshold = task.tune_threshold(scores) if task.thresholds else None
        if threshold is not None:
            yield "validation/threshold", threshold
            model.spec = replace(model.spec, threshold=threshold)
        targets = [example.target for example in self.validation.examples]
        for name, value in task.metrics(scores, targets, threshold).items():
            yield f"validation/{name}", value

    def selection_metric(self, values: Mapping[str, float]) -> float:
        # Some metrics need what the validation examples may not have, such as both classes.
        return values.get(f"validation/{self.task.selection_metric}", -values["validation/loss"])

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "threshold": self.model.spec.threshold}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.spec = replace(self.model.spec, threshold=state["threshold"])


def _train(
    recipe: FinetuneRecipe, folder: RunFolder, ranks: Ranks, kept: tuple[bool, bool], listener: Listener
) -> Outcome:
    """One run, without its test; a function of its own so that what DDP holds is gone when the process group ends."""
    with ExitStack() as stack:
        recipe = with_precision(recipe, ranks.device)
        recipe = recipe.model_copy(update={"data": with_fingerprints(recipe.data)})
        read, notes = read_sets(recipe.data, task_class(recipe.task), recipe.train.seed)
        task, sets = make_task(recipe, read)
        for name, before, after in zip(Sets._fields, map(len, read), map(len, sets), strict=True):
            if after < before:
                notes.append(f"skipped {before - after:,} of {before:,} {name} examples without a value")
        ranks.on_rank_zero(lambda: stack.enter_context(folder.locked()))
        ranks.on_rank_zero(lambda: folder.check(*kept))
        model, fresh = build_model(recipe, task, sets.train)  # first, as `init` may be the run that is discarded
        parameters = sum(parameter.numel() for parameter in model.encoder.parameters())
        fits, mode = choose_modes(recipe, task, parameters, len(sets.train))
        changed = ranks.on_rank_zero(lambda: folder.begin(recipe, kept[1]))
        notes = [*changed, *task.notes, *notes, *fresh]
        if recipe.backbone.mode == "auto" and type(task) is Table:
            notes.append(f"backbone.mode=auto chooses {' and '.join(filter(None, ['linear' if fits else '', mode]))}")
        linear: RiNALMo | None = None
        linear_values: dict[str, float] = {}
        if fits and isinstance(task, Table) and ranks.rank == 0:
            linear, left_out = fit_head(recipe, task, model, sets.train, ranks.device)
            notes += filter(None, [left_out])
            linear_values = _validation_metrics(recipe, linear, sets.validation, ranks)
        if mode is None:
            examples = {name: len(part) for name, part in sets._asdict().items()}
            return ranks.on_rank_zero(
                lambda: _write_linear(folder, listener, ranks, linear, linear_values, notes, examples)
            )
        recipe = recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"mode": mode})})
        encoded = [
            EncodedExamples(part, [encode_sequences(example, task.crop, model.alphabet) for example in part])
            for part in (sets.train, sets.validation)
        ]
        if mode == "frozen":
            engine = engine_for(model, recipe, ranks.device)
            sequences = [ids for part in encoded for ids in part.sequences]
            states = iter(cached_states(engine, sequences, folder.path, ranks, listener.note))
            encoded = [replace(part, states=[next(states) for _ in part.sequences]) for part in encoded]
        lora = add_lora(model, recipe.backbone, recipe.train.seed) if mode == "lora" else None

        def export(weights: dict[str, Tensor]) -> RiNALMo:
            """The model to write, with outputs in the units of the targets; writes an adapter beside it."""
            metric = f"validation/{task.selection_metric}"
            if linear is not None and metric in linear_values:
                trained_best = max(
                    (line[metric] for line in read_log(folder.path) if metric in line), default=-math.inf
                )
                better = linear_values[metric] >= trained_best
                listener.note(
                    f"{metric.replace('/', ' ')}: linear {linear_values[metric]:.4f}, {mode} {trained_best:.4f}; "
                    f"the {'linear' if better else mode} model is kept"
                )
                if better:
                    return linear
            adapter: dict[str, Tensor] = {}
            if lora is not None:
                weights, adapter = merge_lora(weights, lora)
            with torch.device("meta"):
                trained = RiNALMo(model.spec)
            trained.load_state_dict(weights, assign=True)
            if isinstance(task, Table):
                copy(task).rescale(trained)
            if lora is not None:
                heads = tuple(f"{head}." for head in task.heads())
                adapter |= {n: tensor for n, tensor in trained.state_dict().items() if n.startswith(heads)}
                base = resolve(recipe.init).absolute()
                write_adapter(
                    folder.adapter,
                    lora | adapter_names(task, str(base) if base.is_dir() else recipe.init),
                    {**config_of(trained.spec), "_name_or_path": recipe.init},
                    adapter,
                )
            return trained

        return train_and_export(
            SupervisedTask(recipe, task, model, encoded, ranks),
            recipe,
            folder,
            ranks,
            listener,
            notes=notes,
            best=bool(sets.validation) and recipe.checkpoint.keep_best,
            export=export,
            mfu=mode != "frozen",
            examples={name: len(examples) for name, examples in sets._asdict().items()},
        )


def _validation_metrics(
    recipe: FinetuneRecipe, model: RiNALMo, examples: Sequence[Example], ranks: Ranks
) -> dict[str, float]:
    if not examples:
        return {}
    engine, task = engine_for(model, recipe, ranks.device), task_of(model.spec)
    scores = [task.score_example(model, output, example) for example, output in outputs(examples, engine, task)]
    targets = [example.target for example in examples]
    return {f"validation/{name}": value for name, value in task.metrics(scores, targets, None).items()}


def _write_linear(
    folder: RunFolder,
    listener: Listener,
    ranks: Ranks,
    model: RiNALMo | None,
    values: dict[str, float],
    notes: Sequence[str],
    examples: dict[str, int],
) -> Outcome:
    """Write a model that was fitted, as a run of one step."""
    assert model is not None
    for note in notes:
        listener.note(note)
    device = device_name(ranks.device)
    folder.record_start(0, examples=examples, processes=ranks.world, device=device)
    with open_log(folder.path, 0, folder.recipe()) as write_line:
        if values:
            write_line(1, values)
    save(model, folder.model, overwrite=True)
    outcome = Outcome(1, 1, folder.model, None)
    listener.end(outcome)
    return outcome


def adapter_names(task: Task, base: str) -> dict[str, Any]:
    """What PEFT's config of an adapter says of its base model and of the head beside it."""
    heads = set(task.heads())
    if "sequence_head" in heads or "token_head" in heads:
        kind, parts = "SEQ_CLS" if "sequence_head" in heads else "TOKEN_CLS", ["classifier"]
    else:
        kind, parts = None, sorted(heads)
    return {"base_model_name_or_path": base, "task_type": kind, "modules_to_save": parts}


def finetune_from_recipe(
    recipe: FinetuneRecipe,
    output: Path,
    *,
    resume: bool = False,
    restart: bool = False,
    listener: Listener = NULL_LISTENER,
    device: DeviceLike = None,
) -> Outcome:
    """Train a head, and as much of the backbone as the recipe says, once or for each fold, and evaluate it.

    The written model is that of the best validation metric, or the last without validation examples. The outcome of
    several folds is that of the last one, with the means of their metrics; a recipe with `data.fold` is for this fold
    only. Interrupting, resuming, devices and several processes work as in `rinalmo.training.pretrain.pretrain`.

    Raises InputError for a recipe, examples or a folder that cannot be used, TrainingError for later failures.
    """
    data, folds, kind = recipe.data, recipe.data.folds, task_class(recipe.task)
    numbers = range(folds) if folds is not None and data.fold is None else [data.fold]
    runs = [recipe.model_copy(update={"data": data.model_copy(update={"fold": number})}) for number in numbers]
    if folds is not None:
        # A problem of the last fold is reported now, not hours later.
        examples, _ = read_examples(data, kind)
        for run in runs:
            try:
                make_task(run, split(examples, run.data, run.train.seed))
            except InputError as error:
                raise InputError(f"fold {run.data.fold} of 0 to {folds - 1}: {error}") from None
        for path in sorted(output.iterdir()) if output.is_dir() else ():
            if (
                not path.name.startswith("fold-")
                and path.name not in (EVALUATION, EXAMPLES, LOCK)
                and not is_temporary(path)
            ):
                raise InputError(f"{output}: contains {path.name} and is not a cross-validation; choose another folder")
        destination(output).mkdir(parents=True, exist_ok=True)
        if restart and os.environ.get("RANK", "0") == "0":
            for run in runs:
                RunFolder(output / f"fold-{run.data.fold}").discard()
    evaluations: list[Evaluation] = []
    for run in runs:
        folder = output
        if folds is not None:
            folder = output / f"fold-{run.data.fold}"
            listener.note(f"fold {run.data.fold} of 0 to {folds - 1}")
        with init_distributed(run.train.deadline, device) as ranks, preserved_state(ranks.device):
            outcome = _train(run, RunFolder(folder), ranks, (resume, restart), listener)
        if not outcome.finished:
            return outcome
        if os.environ.get("RANK", "0") != "0":
            continue
        if data.test or folds is not None or kind is Table:
            engine = engine_for(outcome.model, run, device)
            task = task_of(engine.spec)
            sets = Sets(*map(task.encode_targets, read_sets(run.data, kind, run.train.seed)[0]))
            name, held_out = ("test", sets.test) if sets.test else ("validation", sets.validation)
            evaluation = evaluate_examples(held_out, engine, task) if held_out else None
            if evaluation is not None and type(task) is Table:
                others = baselines(task, engine.head_model, sets.train, held_out, run.train.seed)
                evaluation = replace(evaluation, baselines=others)
                values = {metric: of.value for metric, of in evaluation.metrics.items()}
                listener.note(f"{name} {comparison(values, others, task.selection_metric)}")
                if run.logging.plots:
                    title = f"{len(held_out):,} {name} examples"
                    try:
                        draw_predictions(task, evaluation.scores, held_out, title, folder / PREDICTIONS)
                    except MissingExtraError as error:
                        listener.note(str(error))
            if evaluation is not None and sets.test:
                evaluations.append(_write_evaluation(evaluation, folder))
        write_card(folder, overwrite=True)
    if len(runs) > 1 and evaluations:
        evaluations = [_write_evaluation(_mean(evaluations), output)]
    return replace(outcome, evaluation=evaluations[0] if evaluations else None)


def _mean(folds: Sequence[Evaluation]) -> Evaluation:
    """The mean of each metric over folds, with its minimum and maximum as the interval."""
    names = [name for name in folds[0].metrics if all(name in fold.metrics for fold in folds)]
    values = {name: [fold.metrics[name].value for fold in folds] for name in names}
    metrics = {name: Metric(sum(of) / len(of), min(of), max(of)) for name, of in values.items()}
    count = sum(fold.count for fold in folds)
    simple = {name: _mean([fold.baselines[name] for fold in folds]) for name in folds[0].baselines}
    return Evaluation(
        folds[0].task,
        count,
        None,
        metrics,
        baselines=simple,
        interval=f"mean, minimum and maximum of {len(folds)} folds",
    )


def _write_evaluation(evaluation: Evaluation, folder: Path) -> Evaluation:
    with atomic_write(folder / EVALUATION) as file:
        file.write(json.dumps(evaluation.plain(), indent=1).encode())
    return evaluation


def finetune(
    task: str,
    data: str | Path | Rows,
    output: str | Path,
    *,
    model: str | Path | None = None,
    validation: str | Path | Rows | None = None,
    test: str | Path | Rows | None = None,
    target: str | Sequence[str] = (),
    second: str | None = None,
    features: Sequence[str] = (),
    folds: int | None = None,
    fold: int | None = None,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    restart: bool = False,
    listener: Listener = NULL_LISTENER,
    device: DeviceLike = None,
) -> Evaluation | None:
    """Train a model for a task on labeled examples, like `rinalmo finetune`; the result is in `output/model`.

    A class label of a `datasets.Dataset` becomes its name.

    Args:
        task: secondary-structure, ribosome-load, translation-efficiency, expression-level, splice-site, ncrna-family
            or table.
        data: A file, or rows: mappings with the columns of a table (such as a `datasets.Dataset`), a pandas or polars
            DataFrame or a pyarrow Table.
        output: Folder of the run.
        model: The model to start from; nano if None.
        validation: Held-out examples; None: a tenth of `data`.
        test: Examples to evaluate the trained model on.
        target: The column or columns to predict, if they have no usual name.
        second: For `table`: the column with second sequences, such as targets of microRNAs.
        features: For `table`: other input columns: numbers, names, or vectors; "NAME=FILE.npz" if the cells name
            vectors in a file.
        folds: Cross-validation in this many runs, in `output/fold-0`, …
        fold: Only this one of `folds`, counted from 0.
        recipe: A recipe other than `finetune-TASK`, by name or file.
        overrides: Changes to the recipe, such as "train.epochs=5".
        resume: Continue an interrupted run from its last checkpoint.
        restart: Discard the run in the folder. Without either, a folder that contains a run is an error.
        listener: Callbacks for log lines, notes and the end of each run.
        device: "auto" (None; CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps".

    Returns:
        The metrics on the test examples (with `folds` their means); None without test examples.

    Raises:
        InputError: The examples, the recipe or the folder cannot be used.
        TrainingError: The run failed later.
        KeyboardInterrupt: The run was stopped and saved; `resume` continues it.

    Examples:
        >>> import tempfile
        >>> rows = [{"sequence": "GGGA" + 3 * base, "y": len(base)} for base in ("A", "CC", "G", "UU") * 5]
        >>> folder = tempfile.mkdtemp()
        >>> changes = ["train.epochs=1", "backbone.mode=frozen", "logging.plots=false"]
        >>> rinalmo.finetune("table", rows, f"{folder}/run", target="y", overrides=changes)
        >>> len(rinalmo.predict(["GGGACCC"], f"{folder}/run/model"))
        1
    """
    task_class(task)
    output = Path(output)
    files: dict[str, Path] = {}
    for name, rows in (("train", data), ("validation", validation), ("test", test)):
        if rows is None:
            continue
        if isinstance(rows, str | Path):
            files[name] = Path(rows)
            continue
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(f"the {name} examples are rows; with several processes, give them as a file")
        if isinstance(rows, Mapping):
            raise InputError(f"the {name} examples are a mapping; give one of {', '.join(map(str, rows))}")
        folder = RunFolder(output)
        with folder.locked():
            folder.check(resume, restart)
            (output / EXAMPLES).mkdir(exist_ok=True)
            files[name] = output / EXAMPLES / f"{name}.jsonl"
            text = b"".join(json_lines(rows, name))
            if not restart and (output / RECIPE).exists() and files[name].exists() and files[name].read_bytes() != text:
                raise InputError(
                    f"{output}: cannot be resumed: the {name} examples differ from those it was started with"
                )
            with atomic_write(files[name]) as file:
                file.write(text)
    train = files.pop("train")
    given = {"model": model, "second": second, "features": [*features] or None, "folds": folds, "fold": fold}
    chosen = recipe_for(task, train, recipe, overrides, target, **given, **files)
    outcome = finetune_from_recipe(chosen, output, resume=resume, restart=restart, listener=listener, device=device)
    if not outcome.finished:
        raise KeyboardInterrupt
    return outcome.evaluation

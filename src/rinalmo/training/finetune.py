"""The examples of a fine-tuning run: read, left out, split into training, validation and test."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rinalmo.data import sampling
from rinalmo.engine.devices import DeviceLike, Precision
from rinalmo.engine.engine import Engine, to_host, token_batches
from rinalmo.errors import CheckpointError, InputError, MissingExtraError
from rinalmo.io.files import destination, file_sha256, is_temporary, replacing, replacing_path
from rinalmo.model.packing import Layout, pack
from rinalmo.model.rinalmo import ModelSpec, RiNALMo, create
from rinalmo.tasks.base import Columns, Crop, Example, Task
from rinalmo.tasks.evaluate import Evaluation, Metric, evaluate_examples
from rinalmo.tasks.examples import json_lines
from rinalmo.tasks.registry import task_class, task_of
from rinalmo.training.distributed import Ranks, joined
from rinalmo.training.model_card import write_card
from rinalmo.training.recipes import BackboneRecipe, ExamplesRecipe, FinetuneRecipe, recipe_for
from rinalmo.training.run_folder import EVALUATION, EXAMPLES, RECIPE, RunFolder, restarted
from rinalmo.training.trainer import SILENCE, Listener, Outcome, Trained, conduct, preserved_state, with_precision
from rinalmo.weights.checkpoint import load

_SPLIT = 12  # what the keys of this file are for
_FILES = ("train", "validation", "test")


class Sets(NamedTuple):
    """The three sets of a run; validation and test may be empty."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def located(data: ExamplesRecipe) -> ExamplesRecipe:
    """The same with absolute paths and the sums of the files; raises InputError for a file that has changed."""
    paths = {name: Path(path).absolute() for name in _FILES if (path := getattr(data, name)) is not None}
    if "train" not in paths:
        raise InputError("data.train is missing: name the file of examples")
    try:
        sums = {name: file_sha256(path) for name, path in paths.items()}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
    for name, known in data.fingerprints.items():
        if sums.get(name) != known:
            raise InputError(f"{paths.get(name, name)}: is not the file that this run was started with")
    return data.model_copy(update={**{name: str(path) for name, path in paths.items()}, "fingerprints": sums})


def read_sets(data: ExamplesRecipe, task: type[Task], seed: int) -> tuple[Sets, list[str]]:
    """Read and split what the recipe names; also notes on what was left out and on what is in two sets."""
    notes: list[str] = []
    sets = _split(_read_all(data, task, notes), data, seed)
    if not sets.train:
        raise InputError(f"{data.train}: no example is left for training")
    seen = _seen(data)
    known = {seen(example) for example in sets.train}
    for name, examples in (("validation", sets.validation), ("test", sets.test)):
        twice = sum(seen(example) in known for example in examples)
        if twice:
            notes.append(f"{twice:,} of {len(examples):,} {name} sequences are in the training set too")
    return sets, notes


def read_folds(data: ExamplesRecipe, task: type[Task], seed: int, folds: Sequence[int]) -> Iterator[Sets]:
    """The sets of each of these folds, from reading the file once."""
    read = _read_all(data, task, [])
    for fold in folds:
        yield _split(read, data.model_copy(update={"fold": fold}), seed)


def columns_of(data: ExamplesRecipe) -> Columns:
    """The columns as the tasks take them."""
    given = data.columns
    target = (given.target,) if isinstance(given.target, str) else tuple(given.target or ())
    return Columns(given.name, given.sequence, target, given.group)


def _read_all(data: ExamplesRecipe, task: type[Task], notes: list[str]) -> dict[str, list[Example]]:
    return {name: _read(getattr(data, name), data, task, notes) for name in _FILES}


def _read(path: str | None, data: ExamplesRecipe, task: type[Task], notes: list[str]) -> list[Example]:
    if path is None:
        return []
    examples, seen = task.read(Path(path), columns_of(data)), _seen(data)
    kept = [example for example in examples if data.max_length is None or len(seen(example)) <= data.max_length]
    if len(kept) < len(examples):
        notes.append(f"{path}: {len(examples) - len(kept):,} examples longer than {data.max_length} nt are left out")
    return kept


def crop_of(data: ExamplesRecipe) -> Crop | None:
    """What a model trained by this recipe sees of a sequence; None: all of it."""
    return None if data.crop is None else Crop(data.crop, data.crop_at)


def _seen(data: ExamplesRecipe) -> Callable[[Example], str]:
    crop = crop_of(data)
    return lambda example: crop.of(example.sequence) if crop else example.sequence


def _split(read: dict[str, list[Example]], data: ExamplesRecipe, seed: int) -> Sets:
    train, validation, test = (read[name] for name in _FILES)
    if data.folds is not None:
        if data.validation is not None or data.test is not None:
            raise InputError("folds are validation and test sets themselves; leave the files of such examples out")
        return _folded(train, data.folds, data.fold or 0, data, seed)
    if data.fold is not None:
        raise InputError(f"data.fold is {data.fold}; of how many? Say --folds, or data.folds")
    if not validation and data.validation_fraction:
        order = _shuffled(train, seed)
        size = max(1, round(len(order) * data.validation_fraction))
        train, validation = order[size:], order[:size]
    return Sets(train, validation, test)


def _folded(examples: list[Example], folds: int, fold: int, data: ExamplesRecipe, seed: int) -> Sets:
    """Fold `fold` is the test set and the one before it the validation set, as in the paper."""
    if fold >= folds:
        raise InputError(f"data.fold is {fold}; with {folds} folds it goes from 0 to {folds - 1}")
    if len(examples) < folds:
        raise InputError(f"{data.train}: {len(examples)} examples cannot be cut into {folds} folds")
    parts: list[Any] = [_shuffled(examples, seed)[number::folds] for number in range(folds)]
    test, validation = parts[fold], parts[(fold - 1) % folds]
    rest = [part for number, part in enumerate(parts) if number not in (fold, (fold - 1) % folds)]
    return Sets([example for part in rest for example in part], validation, test)


def _shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    order = sampling.random_permutation(
        np.arange(len(examples)), max(1, len(examples)), sampling.random_key(seed, _SPLIT)
    )
    return [examples[place] for place in order.tolist()]


_MATRICES = ["qkv", "output", "gate_up", "down"]


def build(recipe: FinetuneRecipe, task: Task, examples: Sequence[Example]) -> tuple[RiNALMo, list[str]]:
    """The backbone of `recipe.init` with the task's heads, and notes.

    The masked-LM head stays beside them untrained, so that the model can still fill masks. A model of the same task
    keeps its heads and is trained further.
    """
    given = load(recipe.init, dtype=torch.float32)
    names = ("attention_dropout", "hidden_dropout")
    dropouts = {name: value for name in names if (value := getattr(recipe.backbone, name)) is not None}
    heads: dict[str, Any] = {"lm_head": {}} if "lm_head" in given.spec.heads else {}
    spec = ModelSpec(replace(given.config, **dropouts), given.alphabet, heads | task.heads(), task=task.config())
    model = create(spec, recipe.train.seed)
    goes_on = _was_trained_for(given.spec, task)
    task.init_head(model, examples)
    own = {name: tensor for name, tensor in given.state_dict().items() if goes_on or not _is_new(name, task)}
    known = model.state_dict().keys()
    model.load_state_dict({name: tensor for name, tensor in own.items() if name in known}, strict=False)
    return model, [f"{recipe.init} was trained for this task; its head is trained further"] if goes_on else []


def _was_trained_for(spec: ModelSpec, task: Task) -> bool:
    """Whether the model's head is the task's, whatever it saw of the sequences."""
    try:
        before = task_of(spec)
    except CheckpointError:
        return False
    return (before.name, before.settings) == (task.name, task.settings)


def _is_new(name: str, task: Task) -> bool:
    return name.split(".")[0] in task.heads()


def trained(model: RiNALMo, task: Task, recipe: BackboneRecipe) -> Callable[[int], list[Trained]]:
    """What learns and from when on, once it is known how many steps an epoch has. All other parameters are frozen.

    Parameters are looked up by name when they are asked for: sharding puts others in their place.
    """
    if recipe.mode == "lora":
        _add_lora(model, recipe)
    groups = _groups(model, tuple(f"{name}." for name in task.heads()), recipe)
    learning = {name for _, names, _ in groups for name in names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)

    def found(steps: int) -> list[Trained]:
        named = dict(model.named_parameters())
        return [Trained([named[name] for name in names], epoch * steps, scale) for epoch, names, scale in groups]

    return found


def _groups(model: RiNALMo, heads: tuple[str, ...], recipe: BackboneRecipe) -> list[tuple[int, list[str], float]]:
    """From which epoch on, which parameters, at what share of the rate."""
    names = [name for name, _ in model.named_parameters()]
    head = [name for name in names if name.startswith(heads)]
    match recipe.mode:
        case "full":
            return [(0, [name for name in names if name.startswith("encoder.")] + head, 1.0)]
        case "frozen":
            return [(0, head, 1.0)]
        case "lora":
            return [(0, [name for name in names if "lora_" in name] + head, 1.0)]
        case "gradual":
            return [(0, head, 1.0), *_stages(names, len(model.encoder.blocks), recipe)]


def _stages(names: list[str], blocks: int, recipe: BackboneRecipe) -> list[tuple[int, list[str], float]]:
    if not recipe.stages:
        raise InputError("backbone.mode gradual needs backbone.stages, such as [{epoch: 3, blocks: 2}]")
    groups = []
    for number, stage in enumerate(recipe.stages):
        below = 0 if stage.blocks is None else max(0, blocks - stage.blocks)
        prefixes = [f"encoder.blocks.{block}." for block in range(below, blocks)]
        prefixes += [] if number else ["encoder.final_norm."]
        groups.append((stage.epoch, [name for name in names if name.startswith(tuple(prefixes))], recipe.scale))
        blocks = below
    return groups


def _add_lora(model: RiNALMo, recipe: BackboneRecipe) -> None:
    """Put low-rank additions beside every matrix of the blocks."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise MissingExtraError("peft", "lora", "backbone.mode lora") from None
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=_MATRICES, bias="none")
    inject_adapter_in_model(config, model.encoder)


def merged(model: RiNALMo) -> RiNALMo:
    """A plain model in which the low-rank additions are part of the matrices."""
    from peft.tuners.lora import Linear

    state = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            weight = f"{name}.base_layer.weight"
            state[weight] = state[weight] + module.get_delta_weight("default").detach()
    with torch.device("meta"):
        plain = RiNALMo(model.spec)
    plain.load_state_dict({name.replace(".base_layer.", "."): t for name, t in state.items()}, assign=True)
    return plain


def cached_states(engine: Engine, ids: Sequence[np.ndarray], folder: Path, ranks: Ranks) -> list[np.ndarray]:
    """States of each sequence, mapped from the file; process 0 makes it if it is not there."""
    digest = hashlib.sha256(f"{engine.fingerprint} {engine.precision}".encode())
    for sequence in ids:
        digest.update(sequence.tobytes() + b"|")
    path = folder / f"states-{digest.hexdigest()[:16]}.npy"
    ranks.first(lambda: None if path.exists() else _compute(engine, ids, path))
    states = np.load(path, mmap_mode="r")
    ends = np.cumsum([len(sequence) for sequence in ids])
    return [states[end - len(sequence) : end] for end, sequence in zip(ends, ids, strict=True)]


def _compute(engine: Engine, ids: Sequence[np.ndarray], path: Path) -> None:
    shape = (sum(map(len, ids)), engine.config.hidden_size)
    last = engine.config.num_hidden_layers

    def compute(packed: Tensor, layout: Layout) -> list[np.ndarray]:
        states = engine.hidden_states(packed, layout, [last])[0]
        return [part.numpy() for part in layout.split(to_host(states)[0])]

    with replacing_path(path) as partial:
        file = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        start = 0
        for states in engine.map(compute, ids):
            file[start : start + len(states)] = states
            start += len(states)
        file.flush()
        del file  # Windows renames no file that is open


_ORDER = 11  # what the keys of this file are for


class Predictor(nn.Module):
    """Encoder and head as one module; with `states` given the encoder rests."""

    def __init__(self, model: RiNALMo, task: Task, *, frozen: bool = False) -> None:
        super().__init__()
        self.model, self.task, self.frozen = model, task, frozen

    def forward(self, ids: Tensor, layout: Layout, states: Tensor | None = None) -> list[Tensor]:
        """What the head says, one tensor per sequence."""
        if states is None:
            states = self.model.encoder(ids, layout).last_hidden_state
        return list(self.task.forward(self.model, ids, states, layout))

    def train(self, mode: bool = True) -> Predictor:
        super().train(mode)
        if self.frozen:
            self.model.encoder.eval()
        return self


@dataclass(frozen=True)
class Examples:
    """A set of examples with their token ids, and the encoder's states of each if these are known."""

    examples: Sequence[Example]
    ids: Sequence[np.ndarray]
    states: Sequence[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class MicroBatch:
    """Some examples, packed, and their places in their set.

    `counts` is whether they are more than company for other processes' batches.
    """

    places: Sequence[int]
    examples: Sequence[Example]
    ids: Tensor
    layout: Layout
    states: Tensor | None = None
    counts: bool = True


class SupervisedTask:
    """A labelled task on examples; see `rinalmo.training.trainer.Task`."""

    def __init__(
        self,
        recipe: FinetuneRecipe,
        task: Task,
        model: RiNALMo,
        sets: tuple[Examples, Examples],
        trained: Callable[[int], Sequence[Trained]],
        ranks: Ranks,
    ) -> None:
        """`sets` are training and validation examples; `trained` gives what learns, from the steps in an epoch."""
        self.recipe, self.task, self.model, self.ranks = recipe, task, model, ranks
        self.train, self.validation = sets
        self.module = Predictor(model, task, frozen=recipe.backbone.mode == "frozen")
        self.steps_per_epoch = max(1, -(-len(self.train) // recipe.data.sequences_per_batch))
        self.steps = recipe.train.max_steps or recipe.train.epochs * self.steps_per_epoch
        self._trained = trained
        self.step = 0

    def trained(self) -> Sequence[Trained]:
        return self._trained(self.steps_per_epoch)

    def batches(self) -> Sequence[MicroBatch]:
        chosen = self._chosen()
        self.step += 1
        micro = list(self._micro_batches(self.train, chosen))
        micro += [replace(micro[0], counts=False)] * (-len(micro) % self.ranks.world)
        return micro[self.ranks.rank :: self.ranks.world]

    def _chosen(self) -> list[int]:
        """The examples of the next step."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        size = self.recipe.data.sequences_per_batch
        places = np.arange(place * size, min(len(self.train), (place + 1) * size))
        key = sampling.random_key(self.recipe.train.seed, _ORDER, epoch)
        return sampling.random_permutation(places, len(self.train), key).tolist()

    def _micro_batches(self, of: Examples, chosen: Sequence[int]) -> Iterator[MicroBatch]:
        order = sorted(chosen, key=lambda i: len(of.ids[i]))
        for part in token_batches(of.ids, self.recipe.data.micro_tokens, order):
            ids, layout = pack((torch.from_numpy(of.ids[i]) for i in part), self.ranks.device)
            states = None
            if of.states is not None:
                states = torch.from_numpy(np.concatenate([of.states[i] for i in part])).to(self.ranks.device)
            yield MicroBatch(part, [of.examples[i] for i in part], ids, layout, states)

    def lengths(self, batch: MicroBatch) -> Sequence[int]:
        return batch.layout.lengths if batch.counts else ()

    def targets(self, batch: MicroBatch) -> int:
        return sum(example.num_targets for example in batch.examples) if batch.counts else 0

    def loss(self, module: nn.Module, batch: MicroBatch) -> Tensor:
        outputs = module(batch.ids, batch.layout, batch.states)
        return self.task.loss(self.model, outputs, batch.examples) * float(batch.counts)

    def evaluate(self, module: nn.Module, ranks: Ranks) -> Iterator[tuple[str, float]]:
        """Loss and figures over the validation examples; nothing if there are none."""
        count = len(self.validation)
        if not count:
            return
        mine = self._judged(module, range(ranks.rank, count, ranks.world))
        together = {place: found for part in ranks.share(mine) for place, found in part.items()}
        losses, terms, judged = zip(*(together[place] for place in range(count)), strict=True)
        yield "validation/loss", sum(losses) / max(1, sum(terms))
        threshold = self.task.tune_threshold(judged) if self.task.thresholds else None
        if threshold is not None:
            yield "validation/threshold", threshold
            self._keep_threshold(threshold)
        for name, value in self.task.metrics(judged, self.validation.examples, threshold).items():
            yield f"validation/{name}", value

    def _judged(self, module: nn.Module, chosen: Sequence[int]) -> dict[int, tuple[float, int, Any]]:
        """Loss, terms and judgement of each chosen validation example."""
        found: dict[int, tuple[float, int, Any]] = {}
        for batch in self._micro_batches(self.validation, chosen):
            outputs = module(batch.ids, batch.layout, batch.states)
            for place, example, output in zip(batch.places, batch.examples, outputs, strict=True):
                loss = float(self.task.loss(self.model, [output], [example]))
                judged = self.task.score_example(self.model, output, example)
                found[place] = (loss, example.num_targets, judged)
        return found

    def goodness(self, values: Mapping[str, float]) -> float:
        # Some figures need what the validation examples may not have, such as both classes.
        return values.get(f"validation/{self.task.selection_metric}", -values["validation/loss"])

    def _keep_threshold(self, threshold: float | None) -> None:
        self.model.spec = replace(self.model.spec, threshold=threshold)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "threshold": self.model.spec.threshold}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self._keep_threshold(state["threshold"])


def finetune_from_recipe(
    recipe: FinetuneRecipe,
    output: str | Path,
    *,
    resume: bool = False,
    listener: Listener = SILENCE,
    device: DeviceLike = None,
) -> Outcome:
    """Train a head, and as much of the backbone as the recipe says, on labelled examples, into `output/model`.

    The written model is that of the best validation figure (the task's `score`), or the last without validation
    examples. Interrupting, resuming, devices and several processes work as in `rinalmo.training.pretrain.pretrain`.

    Raises InputError for what is wrong with recipe, examples or folder, TrainingError for what goes wrong later.
    """
    with joined(recipe.train.deadline, device) as ranks, preserved_state(ranks.device):
        return _finetune(recipe, RunFolder(output, FinetuneRecipe), ranks, resume, listener)


def _finetune(recipe: FinetuneRecipe, folder: RunFolder, ranks: Ranks, resume: bool, listener: Listener) -> Outcome:
    with ExitStack() as stack:
        recipe = with_precision(recipe, ranks.device)
        recipe = recipe.model_copy(update={"data": located(recipe.data)})
        sets, notes = read_sets(recipe.data, task_class(recipe.task), recipe.train.seed)
        read = sets
        task, sets = learned(recipe, sets)
        notes += _left_out(read, sets)
        train, validation = sets.train, sets.validation
        ranks.first(lambda: stack.enter_context(folder.locked()))
        changed = ranks.first(lambda: folder.begin(recipe, resume or restarted()))
        model, fresh = build(recipe, task, train)
        encoded = [_encoded(examples, model, task) for examples in (train, validation)]
        if recipe.backbone.mode == "frozen":
            encoded = _with_states(encoded, model, recipe, folder, ranks)
        learns = trained(model, task, recipe.backbone)
        supervised = SupervisedTask(recipe, task, model, (encoded[0], encoded[1]), learns, ranks)
        return conduct(
            supervised,
            recipe,
            folder,
            ranks,
            listener,
            notes=[*changed, *task.notes, *notes, *fresh],
            best=bool(validation) and recipe.checkpoint.keep_best,
            export=partial(merged, model) if recipe.backbone.mode == "lora" else None,
            utilisation=recipe.backbone.mode != "frozen",
            examples={name: len(examples) for name, examples in sets._asdict().items()},
        )


def learned(recipe: FinetuneRecipe, sets: Sets) -> tuple[Task, Sets]:
    """The recipe's task as the training examples speak of it, and all examples as it understands them.

    Raises InputError for what does not go together.
    """
    kind = task_class(recipe.task)
    options = recipe.options.model_dump(exclude_none=True)
    if foreign := sorted(options.keys() - set(kind.options)):
        own = f"its options are {', '.join(kind.options)}" if kind.options else "it has no options"
        raise InputError(f"options.{foreign[0]} is not for {kind.name}; {own}")
    task = kind.from_examples(sets.train, options)
    task.crop = crop_of(recipe.data)
    if task.crop and task.per == "nucleotide":
        raise InputError("data.crop is for tasks with one answer a sequence; leave long ones out by data.max_length")
    return task, Sets(*(task.encode_targets(examples) for examples in sets))


def _left_out(read: Sets, kept: Sets) -> list[str]:
    """How many examples of each set a task has left out for want of a value."""
    pairs = ((name, len(getattr(read, name)), len(examples)) for name, examples in kept._asdict().items())
    return [
        f"{before - after:,} of {before:,} {name} examples have no value and are left out"
        for name, before, after in pairs
        if after < before
    ]


def _encoded(examples: Sequence[Example], model: RiNALMo, task: Task) -> Examples:
    return Examples(examples, [model.alphabet.encode(task.cropped(e.sequence), strict=True) for e in examples])


def _with_states(
    sets: list[Examples], model: RiNALMo, recipe: FinetuneRecipe, folder: RunFolder, ranks: Ranks
) -> list[Examples]:
    precision: Precision = recipe.train.precision
    engine = Engine(model, precision, batch_tokens=recipe.data.micro_tokens, device=ranks.device)
    ids: list[np.ndarray] = [sequence for part in sets for sequence in part.ids]
    states = cached_states(engine, ids, folder.path, ranks)
    cut = len(sets[0])
    return [Examples(p.examples, p.ids, s) for p, s in zip(sets, (states[:cut], states[cut:]), strict=True)]


def finetune_and_test(
    recipe: FinetuneRecipe,
    output: str | Path,
    *,
    resume: bool = False,
    listener: Listener = SILENCE,
    device: DeviceLike = None,
) -> tuple[Outcome, Evaluation | None]:
    """Fine-tune, once or for each fold, and evaluate the finished model on the test examples if there are any.

    Over folds the figures are the means of the folds' figures, with the least and the greatest of them. A recipe that
    names a fold is for this one only: its figures are returned, and the others can follow by other calls.
    """
    output, folds, only = Path(output), recipe.data.folds, recipe.data.fold
    if folds is None:
        outcome = finetune_from_recipe(recipe, output, resume=resume, listener=listener, device=device)
        return outcome, _tested(recipe, output, device) if outcome.finished else None
    chosen = list(range(folds)) if only is None else [only]
    _check(recipe, chosen)
    _require_folds(output)
    destination(output).mkdir(parents=True, exist_ok=True)
    found: list[Evaluation] = []
    for fold in chosen:
        data = recipe.data.model_copy(update={"fold": fold})
        part, folder = recipe.model_copy(update={"data": data}), output / f"fold-{fold}"
        listener.note(f"fold {fold} of 0 to {folds - 1}")
        outcome = finetune_from_recipe(part, folder, resume=resume, listener=listener, device=device)
        if not outcome.finished:
            return outcome, None
        found += [evaluation] if (evaluation := _tested(part, folder, device)) else []
    if not found or only is not None:
        return outcome, found[0] if found else None
    return outcome, _written(_mean(found), output)


def _check(recipe: FinetuneRecipe, folds: Sequence[int]) -> None:
    """Raise InputError now for what would be wrong with a fold when its turn comes, hours later."""
    found = read_folds(recipe.data, task_class(recipe.task), recipe.train.seed, folds)
    for fold, sets in zip(folds, found, strict=True):
        try:
            learned(recipe, sets)
        except InputError as error:
            raise InputError(f"fold {fold} of 0 to {(recipe.data.folds or 1) - 1}: {error}") from None


def _require_folds(output: Path) -> None:
    """Raise InputError for a folder that holds anything but folds."""
    if not output.is_dir():
        return
    for path in sorted(output.iterdir()):
        if not path.name.startswith("fold-") and path.name != EVALUATION and not is_temporary(path):
            raise InputError(f"{output}: holds {path.name} and is no cross-validation; choose another folder")


def _tested(recipe: FinetuneRecipe, folder: Path, device: DeviceLike) -> Evaluation | None:
    """The finished model on its test examples, if there are any, and its card; by process 0."""
    if os.environ.get("RANK", "0") != "0":
        return None
    evaluation = None
    if recipe.data.test or recipe.data.folds:
        with_device: dict[str, Any] = {"batch_tokens": recipe.data.micro_tokens, "device": device}
        engine = Engine(folder / "model", recipe.train.precision, **with_device)
        task = task_of(engine.spec)
        sets, _ = read_sets(recipe.data, type(task), recipe.train.seed)
        evaluation = _written(evaluate_examples(task.encode_targets(sets.test), engine, task), folder)
    write_card(folder, overwrite=True)
    return evaluation


def _mean(found: list[Evaluation]) -> Evaluation:
    """The mean of each figure over folds, from the least to the greatest."""
    names = [name for name in found[0].metrics if all(name in one.metrics for one in found)]
    values = {name: [one.metrics[name].value for one in found] for name in names}
    figures = {name: Metric(sum(of) / len(of), min(of), max(of)) for name, of in values.items()}
    count = sum(one.count for one in found)
    return Evaluation(found[0].task, count, None, figures, interval=f"mean, least and greatest of {len(found)} folds")


def _written(evaluation: Evaluation, folder: Path) -> Evaluation:
    with replacing(folder / EVALUATION) as file:
        file.write(json.dumps(evaluation.plain(), indent=1).encode())
    return evaluation


Rows = Iterable[Mapping[str, Any]]


def finetune(
    task: str,
    data: str | Path | Rows,
    output: str | Path,
    *,
    model: str | Path | None = None,
    validation: str | Path | Rows | None = None,
    test: str | Path | Rows | None = None,
    target: str | Sequence[str] = (),
    folds: int | None = None,
    fold: int | None = None,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    listener: Listener = SILENCE,
    device: DeviceLike = None,
) -> Evaluation | None:
    """Train a model for a task on labelled examples, into `output/model`, as `rinalmo finetune` does.

    data        a file, or rows: mappings with the columns that a table would have, as a `datasets.Dataset` gives them,
                or a pandas or polars DataFrame or a pyarrow Table
    model       what to start from; nano if None
    validation  held-out examples; None: a tenth of `data`
    test        examples to evaluate the finished model on
    target      the column or columns to predict, where they have no usual name
    folds       cross-validation in so many runs, in `output/fold-0`, …; with `fold` only that one of them, from 0 on
    overrides   changes of the recipe, such as "train.epochs=5"
    device      "auto" (None; CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"

    Returns the figures over the test examples (of `folds` their means), None without any. A class label of a
    `datasets.Dataset` becomes its name. Raises InputError for what is wrong with the examples, TrainingError for what
    goes wrong later, KeyboardInterrupt when it was stopped and saved; `resume` then goes on.
    """
    task_class(task)
    output = Path(output)
    given = {"train": data, "validation": validation, "test": test}
    files = {name: _file(rows, name, output, resume) for name, rows in given.items() if rows is not None}
    chosen = recipe_for(
        task,
        files["train"],
        model=model,
        validation=files.get("validation"),
        test=files.get("test"),
        targets=[target] if isinstance(target, str) else target,
        folds=folds,
        fold=fold,
        recipe=recipe,
        overrides=overrides,
    )
    outcome, evaluation = finetune_and_test(chosen, output, resume=resume, listener=listener, device=device)
    if not outcome.finished:
        raise KeyboardInterrupt
    return evaluation


def _file(rows: str | Path | Rows, name: str, output: Path, resume: bool) -> Path:
    """The file of examples, written if they came as rows."""
    if isinstance(rows, str | Path):
        return Path(rows)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"the {name} examples came as rows; several processes need them in a file")
    if isinstance(rows, Mapping):
        raise InputError(f"the {name} examples came as a mapping; give one of {', '.join(map(str, rows))}")
    destination(output).mkdir(parents=True, exist_ok=True)
    RunFolder(output, FinetuneRecipe).check(resume or restarted())
    (output / EXAMPLES).mkdir(exist_ok=True)
    path = output / EXAMPLES / f"{name}.jsonl"
    text = b"".join(json_lines(rows, name))
    if (output / RECIPE).exists() and path.exists() and path.read_bytes() != text:
        raise InputError(f"{output}: cannot be resumed: the {name} examples are not those that it was started with")
    with replacing(path) as file:
        file.write(text)
    return path

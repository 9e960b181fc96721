"""AdamW, which parameters learn from when on, and the learning rate of each step.

The paper: weight decay 0.01, linear warm-up from 1e-7 over 2,000 steps, cosine to 1e-5, gradient norm clipped at 1.0.
Its optimizer is not named there; AdamW is what those who repeated it took.

Decay applies to matrices only. A norm's gain and a swish's beta are factors around 1 and a bias is an offset: pulling
them to 0 does not make the function simpler, only different.

References: Penić et al. 2025 (arXiv:2403.00043), Loshchilov & Hutter 2019 (arXiv:1711.05101).
"""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rinalmo.data import sampling
from rinalmo.engine.devices import check_precision, device_name, is_out_of_memory, native_precision, sum_dtype
from rinalmo.errors import InputError, MissingExtraError, TrainingError
from rinalmo.model.config import ModelConfig
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.training.checkpoint import Checkpoints
from rinalmo.training.distributed import Ranks, Spread, company
from rinalmo.training.recipes import OptimizerRecipe, RunRecipe, ScheduleRecipe
from rinalmo.training.run_folder import RunFolder, RunLog, plot_losses
from rinalmo.weights.checkpoint import save

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Trained:
    """Parameters that learn together: from step `start` on, at `scale` times the run's rate."""

    parameters: Sequence[nn.Parameter]
    start: int = 0
    scale: float = 1.0


def make_optimizer(trained: Sequence[Trained], recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """AdamW, matrices with weight decay and vectors without."""
    groups = [
        {
            "params": [p for p in part.parameters if (p.dim() >= 2) == decays],
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "start": part.start,
            "scale": part.scale,
        }
        for part in trained
        for decays in (True, False)
    ]
    # One pass over memory per step; the default loop takes a dozen.
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True
    )


def awaken(trained: Sequence[Trained], step: int) -> None:
    """Let those parameters learn whose time has come; the others get no gradients."""
    for part in trained:
        for parameter in part.parameters:
            parameter.requires_grad_(step >= part.start)


def moments(optimizer: torch.optim.AdamW) -> dict[int, dict[str, Tensor]]:
    """The optimizer's running means by the `id` of their parameter, zero before the first step.

    A checkpoint is loaded into them in place, so they are made here if no step has made them yet.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            for moment in MOMENTS:
                if moment not in state:
                    state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state.setdefault("step", torch.zeros((), device=parameter.device))
    return {id(parameter): state for parameter, state in optimizer.state.items()}


def set_steps(optimizer: torch.optim.AdamW, steps: int) -> None:
    """Tell the optimizer how many steps its running means have seen when the run has made this many."""
    moments(optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["step"].fill_(max(0, steps - group["start"]))


def learning_rate(step: int, peak: float, schedule: ScheduleRecipe, total_steps: int) -> float:
    """The rate of optimizer step `step`, counted from 0. After the decay it stays at `min_lr`."""
    warmup = schedule.warmup_steps
    if step < warmup:
        return schedule.start_lr + (peak - schedule.start_lr) * step / warmup
    decay = schedule.decay_steps or max(1, total_steps - warmup)
    done = min(1.0, (step - warmup) / decay)
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[schedule.shape]
    return schedule.min_lr + (peak - schedule.min_lr) * left


_FORWARD_AND_BACKWARD = 3
_SIDE = {"cpu": 2048, "cuda": 8192, "mps": 4096}
_REPEATS = 5


@dataclass
class Work:
    """What has been computed in some time, by all processes together."""

    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def add(self, tokens: float, flops: float, seconds: float) -> None:
        """Count one more step."""
        self.tokens += tokens
        self.flops += flops
        self.seconds += seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def utilisation(self, peak: float) -> float:
        """Share of `peak` FLOP/s."""
        return self.flops / self.seconds / peak if self.seconds else 0.0


def training_flops(config: ModelConfig, lengths: Sequence[int], predicted: int) -> float:
    """FLOPs of one training step over sequences of these many tokens, with this many positions through the LM head."""
    d, tokens = config.hidden_size, sum(lengths)
    linear = tokens * (4 * d * d + 3 * d * config.ffn_size)
    attention = 2 * d * sum(length * length for length in lengths)
    head = predicted * d * (d + config.vocab_size)
    return _FORWARD_AND_BACKWARD * 2.0 * (config.num_hidden_layers * (linear + attention) + head)


def measure_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of this process in a large matrix product: the best of a few, well under a second."""
    side = _SIDE[device.type]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = min(_seconds(a) for _ in range(_REPEATS + 1))
    return 2.0 * side**3 / best


def _seconds(a: torch.Tensor) -> float:
    start = time.perf_counter()
    (a @ a)[0, 0].item()  # waits for a GPU
    return time.perf_counter() - start


B = TypeVar("B")
_PATIENCE = 2.0  # seconds between a Ctrl-C and one that is meant to be another
_WEIGHTS = "model."  # what the names of weights begin with in a checkpoint
_DROPOUT = 7  # what the keys of this file are for; the data's are other numbers


class TrainingTask(Protocol[B]):
    """What is learned, from which batches, and how it is judged.

    model             what is saved
    module            what is called and trained; holds the model
    steps             optimizer steps of the whole run
    steps_per_epoch   of these in one pass over the data
    """

    @property
    def model(self) -> RiNALMo: ...

    @property
    def module(self) -> nn.Module: ...

    @property
    def steps(self) -> int: ...

    @property
    def steps_per_epoch(self) -> int: ...

    def trained(self) -> Sequence[Trained]:
        """The parameters that learn, and from when on. Asked again once the module is spread, which may renew them."""

    def batches(self) -> Sequence[B]:
        """This process's micro-batches of the next step; equally many on every process."""

    def lengths(self, batch: B) -> Sequence[int]:
        """Tokens of each sequence of a micro-batch."""

    def targets(self, batch: B) -> int:
        """Number of terms that the loss of a micro-batch is a sum of."""

    def loss(self, module: nn.Module, batch: B) -> Tensor:
        """The sum of losses over the targets of a micro-batch, fp32."""

    def evaluate(self, module: nn.Module, ranks: Ranks) -> Iterator[tuple[str, float]]:
        """Names and values of what is measured on the validation data, if there is any."""

    def goodness(self, values: Mapping[str, float]) -> float:
        """How good these figures are; the state of the largest is the best."""

    def state_dict(self) -> dict[str, Any]:
        """Where the next batches come from; plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class Event:
    """What a run tells as it goes: the step it has finished, of how many, and what is to be written down."""

    step: int
    steps: int
    values: Mapping[str, float]


@dataclass
class Progress:
    """How far a run is; part of each checkpoint."""

    step: int = 0
    seconds: float = 0.0
    tokens: float = 0.0
    best_step: int | None = None
    best: float | None = None
    losses: list[float] = field(default_factory=list)  # since the last line of the log


class Trainer:
    """A task, a model spread over processes, and an optimizer, going from step to step."""

    def __init__(
        self,
        task: TrainingTask[Any],
        recipe: RunRecipe,
        ranks: Ranks,
        checkpoints: Checkpoints,
        tell: Callable[[Event], None],
    ) -> None:
        self.task, self.recipe, self.ranks, self.checkpoints, self.tell = task, recipe, ranks, checkpoints, tell
        self.progress = Progress()
        staged = any(part.start for part in task.trained())
        with _one_line_for_full_memory(ranks.device):
            self.spread = Spread(task.module, task.model, recipe.train, ranks, staged=staged)
        self.trained = task.trained()
        self.optimizer = make_optimizer(self.trained, recipe.optimizer)
        # Does nothing in other precisions than fp16.
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=recipe.train.precision == "fp16")
        self.work = Work()
        self.peak = 0.0  # FLOP/s of all processes together, where known
        self.signals: list[int] = []
        self.norm = 0.0  # of the last step's gradient

    def resume(self) -> list[str]:
        """Go on from the newest whole checkpoint if there is one; returns notes on those that are not whole."""
        path, notes = self.checkpoints.newest()
        if path is not None:
            state = self.checkpoints.restore(path, self._tensors())
            self.progress = Progress(**state["progress"])
            set_steps(self.optimizer, self.progress.step)
            self.task.load_state_dict(state["task"])
            if scale := state.get("scaler"):
                self.scaler.load_state_dict(scale)
        return notes

    def run(self) -> bool:
        """Train to the end; False if a signal stopped it before, after a checkpoint was written."""
        with _signals() as self.signals, company(), _one_line_for_full_memory(self.ranks.device):
            while self.progress.step < self.task.steps:
                stop = self.step()
                last = self.progress.step >= self.task.steps
                self._record(last)
                improved = self._validate(last)
                if stop or last or improved or self._due(self.recipe.train.checkpoint_every):
                    self.save()
                if stop and not last:
                    return False
        return True

    def save(self) -> None:
        """Write a checkpoint of this moment and remove those that are no longer wanted."""
        progress, keep = self.progress, self.recipe.checkpoint
        state = {"progress": vars(progress), "task": self.task.state_dict(), "scaler": self.scaler.state_dict()}
        self.checkpoints.save(progress.step, self._tensors(), state)
        self.checkpoints.prune(keep.keep_last, progress.best_step if keep.keep_best else None)

    def recall_best(self) -> None:
        """Put the weights of the best checkpoint back into the model, and what its task knew."""
        path = self.checkpoints.at(self.progress.best_step)
        if path is not None and self.progress.best_step != self.progress.step:
            weights = {name: t for name, t in self._tensors().items() if name.startswith(_WEIGHTS)}
            self.task.load_state_dict(self.checkpoints.restore(path, weights)["task"])

    def _due(self, every: int | None) -> bool:
        """Whether it is time for what is done every so many steps, or after each epoch."""
        return self.progress.step % (every or self.task.steps_per_epoch) == 0

    def step(self) -> bool:
        """One optimizer step; returns whether any process was told to stop."""
        started = time.perf_counter()
        awaken(self.trained, self.progress.step)
        batches = self.task.batches()
        counts, lengths = [self.task.targets(b) for b in batches], [self.task.lengths(b) for b in batches]
        flops = sum(training_flops(self.task.model.config, *pair) for pair in zip(lengths, counts, strict=True))
        shares = self.ranks.gather([sum(counts), sum(map(sum, lengths)), flops])
        targets, tokens, flops = shares.sum(dim=0).tolist()
        mine = self._backward(batches, self.ranks.world / max(1.0, targets))
        total, stop = self.ranks.gather([mine, len(self.signals)]).sum(dim=0).tolist()
        self.scaler.unscale_(self.optimizer)
        loss, norm = total / max(1.0, targets), self.spread.clip(self.recipe.train.clip)
        self._require_finite(loss, norm)
        self._update()
        progress, seconds = self.progress, time.perf_counter() - started
        progress.step += 1
        progress.seconds += seconds
        progress.tokens += tokens
        progress.losses.append(loss)
        self.norm = norm
        self.work.add(tokens, flops, seconds)
        return stop > 0

    def _backward(self, batches: Sequence[Any], scale: float) -> float:
        """Add up the gradients of this process's micro-batches; returns the sum of their losses."""
        self.task.module.train()
        total = torch.zeros((), dtype=sum_dtype(self.ranks.device), device=self.ranks.device)
        for number, batch in enumerate(batches):
            place = self.ranks.rank + self.ranks.world * number
            self._seed(int(sampling.random_key(self.recipe.train.seed, _DROPOUT, self.progress.step, place)))
            with self.spread.forward(last=number == len(batches) - 1) as module:
                loss = self.task.loss(module, batch)
            self.scaler.scale(loss * scale).backward()
            total += loss.detach()
        return total.item()

    def _seed(self, seed: int) -> None:
        """Seed the generators that a step draws from; torch.manual_seed would seed those of all devices."""
        torch.default_generator.manual_seed(seed)
        if self.ranks.device.type != "cpu":
            torch.get_device_module(self.ranks.device).manual_seed(seed)

    def _update(self) -> None:
        rate = self.rate(self.progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.scaler.step(self.optimizer)  # skips a step whose gradient has overflowed in fp16
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0 on."""
        return learning_rate(step, self.recipe.optimizer.lr, self.recipe.schedule, self.task.steps)

    def _require_finite(self, loss: float, norm: float) -> None:
        overflow = self.scaler.is_enabled()  # of fp16 gradients is what the scaler is there for
        if not (math.isfinite(loss) and (overflow or math.isfinite(norm))):
            raise TrainingError(
                f"step {self.progress.step + 1}: the loss is {loss:g} and the gradient's norm {norm:g}; lower "
                "optimizer.lr or lengthen schedule.warmup_steps, and start from an earlier checkpoint"
            )

    def _record(self, last: bool) -> None:
        """Tell the mean loss since the last time."""
        progress = self.progress
        if progress.step % self.recipe.logging.every and not last:
            return
        values = {
            "loss": math.fsum(progress.losses) / len(progress.losses),
            "lr": self.rate(progress.step - 1),
            "gradient_norm": self.norm,
            "tokens": progress.tokens,
            "seconds": progress.seconds,
            "tokens_per_second": self.work.tokens_per_second,
        }
        if self.peak:
            values["mfu"] = self.work.utilisation(self.peak)
        self.tell(Event(progress.step, self.task.steps, values))
        progress.losses, self.work = [], Work()

    def _validate(self, last: bool) -> bool:
        """Evaluate if it is time; returns whether this is the best so far."""
        progress = self.progress
        if not (self._due(self.recipe.validation.every) or last):
            return False
        self.task.module.eval()
        with torch.no_grad(), self.spread.forward() as module:
            values = dict(self.task.evaluate(module, self.ranks))
        self.spread.rest()
        if not values:
            return False
        self.tell(Event(progress.step, self.task.steps, values))
        goodness = self.task.goodness(values)
        improved = progress.best is None or goodness > progress.best
        if improved:
            progress.best, progress.best_step = goodness, progress.step
        return improved and self.recipe.checkpoint.keep_best

    def _tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer by name: what a checkpoint holds as tensors."""
        means = moments(self.optimizer)
        trained = {name: p for name, p in self.task.model.named_parameters() if id(p) in means}
        named = {f"{m}.{name}": means[id(p)][m] for m in MOMENTS for name, p in trained.items()}
        return {**{f"{_WEIGHTS}{name}": t for name, t in self.task.model.state_dict().items()}, **named}


@contextmanager
def _one_line_for_full_memory(device: torch.device) -> Iterator[None]:
    """A TrainingError that says what to change, in place of torch's error."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{device} is out of memory; halve data.micro_tokens (--set data.micro_tokens=N, which changes no result), "
            "or --set train.activation_checkpointing=true, and go on with --resume"
        ) from None


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT ask the loop to stop after its step, and are noted in the list.

    A later Ctrl-C stops at once. A terminal and torchrun both pass the first one on, so "later" is by the clock.
    Python lets only the main thread handle signals: in another one the loop leaves them to the caller.
    """
    noted: list[int] = []
    first = math.inf

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGINT and time.monotonic() > first + _PATIENCE:
            raise KeyboardInterrupt
        first = min(first, time.monotonic())
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    # None is a handler that was not set from Python, which cannot set it again.
    numbers = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not None]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


R = TypeVar("R", bound=RunRecipe)


@dataclass(frozen=True)
class Listener:
    """Who hears of a run: `event` of each line of its log, `note` of what the user should know."""

    event: Callable[[Event], None] = lambda _: None
    note: Callable[[str], None] = lambda _: None


SILENCE = Listener()


@dataclass(frozen=True)
class Outcome:
    """How a run ended: after which step of how many, and the signal that stopped it, if one did."""

    step: int
    steps: int
    signal: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the model is trained and written."""
        return self.step >= self.steps


@contextmanager
def preserved_state(device: torch.device) -> Iterator[None]:
    """Train in a process that has other things to do: afterwards its random numbers go on as if nothing had happened.

    Gradients are computed, and in the run's own precision, whatever modes the caller is in.
    """
    python, numpy = random.getstate(), np.random.get_state()
    autocast = {kind: torch.is_autocast_enabled(kind) for kind in {"cpu", device.type}}
    module = None if device.type == "cpu" else torch.get_device_module(device)
    state = None if module is None else module.get_rng_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            # Not by `torch.autocast`: what is cast in it is kept until the outermost context ends.
            for kind in autocast:
                torch.set_autocast_enabled(kind, False)
            yield
    finally:
        for kind, enabled in autocast.items():
            torch.set_autocast_enabled(kind, enabled)
        random.setstate(python)
        np.random.set_state(numpy)
        if module is not None:
            module.set_rng_state(state)


def _ignore(_: Any) -> None:
    """Nobody listens, or this is not the first process."""


def conduct(
    task: TrainingTask[Any],
    recipe: RunRecipe,
    folder: RunFolder,
    ranks: Ranks,
    listener: Listener,
    *,
    notes: Sequence[str] = (),
    best: bool = False,
    export: Callable[[], RiNALMo] | None = None,
    utilisation: bool = True,
    **facts: Any,
) -> Outcome:
    """Go on from the newest checkpoint, train to the end and write the model; all processes together.

    `notes` are told first. With `best` it is the state of the best validation that is written, else the last.
    `export` gives the model to write, if it is not the task's as it stands. Without `utilisation` no MFU is told, for
    a step does not compute all of the model. `facts` go into `versions.json`.
    """
    with ExitStack() as stack:
        log = _Recorder(folder, recipe, listener) if ranks.rank == 0 else None
        trainer = Trainer(
            task, recipe, ranks, Checkpoints(folder.checkpoints, ranks), log.event if log else SILENCE.event
        )
        told = [*notes, *trainer.resume()]
        if utilisation:
            trainer.peak = recipe.logging.peak_flops or _peak(ranks, recipe)
        if log:
            stack.callback(log.close)
            on = f"device: {device_name(ranks.device)}, {recipe.train.precision}"
            log.begin(
                [on, *told], trainer.progress.step, **facts, processes=ranks.world, device=device_name(ranks.device)
            )
        if trainer.run():
            if best:
                trainer.recall_best()
            _write(task.model, export, folder, ranks)
            if log:
                log.plot()
        return Outcome(trainer.progress.step, task.steps, next(iter(trainer.signals), None))


class _Recorder:
    """Writes the log of a run, and passes on what is heard."""

    def __init__(self, folder: RunFolder, recipe: RunRecipe, listener: Listener) -> None:
        self.folder, self.logging, self.listener = folder, recipe.logging, listener
        self.log: RunLog | None = None

    def begin(self, notes: Sequence[str], step: int, **facts: Any) -> None:
        """Open the log where the run goes on."""
        for text in notes:
            self.listener.note(text)
        if step:
            self.listener.note(f"going on after step {step:,}")
        self.folder.note_start(step, threads=torch.get_num_threads(), **facts)
        self.log = RunLog(self.folder.path, step, self.logging.tensorboard)

    def event(self, event: Event) -> None:
        if self.log is not None:
            self.log.write(event.step, event.values)
        self.listener.event(event)

    def plot(self) -> None:
        """Draw the curve; a missing package must not cost a finished run its good end."""
        try:
            if self.logging.plots:
                plot_losses(self.folder.path)
        except MissingExtraError as error:
            self.listener.note(str(error))

    def close(self) -> None:
        if self.log is not None:
            self.log.close()


def with_precision(recipe: R, device: torch.device) -> R:
    """The recipe with the precision that "auto" is on this device; raises InputError for one that would crawl."""
    native = native_precision(device)
    if device.type == "cpu":
        check_precision(recipe.train.precision)
    if native == "fp16" and recipe.train.sharding == "fsdp":
        native = "fp32"  # fp16 scales the loss, which FSDP cannot
    if recipe.train.precision == "bf16" != native:
        raise InputError("train.precision is bf16, which this device does not have; --set train.precision=auto")
    precision = native if recipe.train.precision == "auto" else recipe.train.precision
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})


def _peak(ranks: Ranks, recipe: RunRecipe) -> float:
    """The matrix peak of all processes, each measured while the others measure theirs."""
    return float(ranks.gather([measure_peak(ranks.device, recipe.train.precision)]).sum())


def _write(model: RiNALMo, export: Callable[[], RiNALMo] | None, folder: RunFolder, ranks: Ranks) -> None:
    """Write the trained model as a folder in our layout, from process 0."""
    whole = {name: _whole(tensor) for name, tensor in model.state_dict().items()}

    def write() -> None:
        if export is not None:
            save(export(), folder.model, overwrite=True)
            return
        with torch.device("meta"):
            plain = RiNALMo(model.spec)
        plain.load_state_dict(whole, assign=True)
        save(plain, folder.model, overwrite=True)

    ranks.first(write)


def _whole(tensor: Tensor) -> Tensor:
    """A parameter on the CPU, put together from its shards; all processes must call this together."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()

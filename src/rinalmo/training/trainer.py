"""The training loop: what one optimizer step does, and a whole run around it.

    batches ─► loss and backward for each micro-batch ─► clip ─► optimizer ─► log line ─► validation ─► checkpoint

Pre-training and fine-tuning differ only in their `TrainingTask`. The defaults are the paper's: weight decay 0.01,
linear warm-up from 1e-7 over 2,000 steps, cosine to 1e-5, gradient norm clipped at 1.0. The paper names no optimizer;
those who repeated it took AdamW. Muon replaces the update of a matrix by the nearest matrix with orthonormal rows or
columns, scaled to the size of AdamW's updates.

Weight decay applies to matrices only. A norm's gain and a swish's beta are factors around 1 and a bias is an offset:
pulling them to 0 does not make the function simpler, only different.

References: Penić et al. 2025 (arXiv:2403.00043), Loshchilov & Hutter 2019 (arXiv:1711.05101), Liu et al. 2025
(arXiv:2502.16982, Muon).
"""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rinalmo.data import sampling
from rinalmo.engine.devices import check_precision, device_name, is_out_of_memory, native_precision
from rinalmo.errors import InputError, MissingExtraError, TrainingError
from rinalmo.model.config import ModelConfig
from rinalmo.model.kernels import sum_dtype
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.plots.charts import draw_curves
from rinalmo.training.checkpoint import Checkpoints
from rinalmo.training.distributed import ParallelModel, Ranks, peer_failures
from rinalmo.training.recipes import OptimizerRecipe, RunRecipe, ScheduleRecipe
from rinalmo.training.run_folder import PLOT, RunFolder, open_log, read_log
from rinalmo.weights.checkpoint import save

if TYPE_CHECKING:
    from rinalmo.tasks.evaluate import Evaluation

B = TypeVar("B")
R = TypeVar("R", bound=RunRecipe)
_MOMENTS = {torch.optim.AdamW: ("exp_avg", "exp_avg_sq"), torch.optim.Muon: ("momentum_buffer",)}
_WEIGHTS = "model."  # prefix of the names of weights in a checkpoint
_DROPOUT = 7  # purpose of this file's random keys; the data use other numbers
_CTRL_C_SECONDS = 2.0  # a second Ctrl-C within this time is the first one again, passed on by torchrun
_PEAK_SIZES = {"cpu": 2048, "cuda": 8192, "mps": 4096}  # of the matrices that measure the peak


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained from step `start` on, at `scale` times the run's learning rate."""

    parameters: Sequence[nn.Parameter]
    start: int = 0
    scale: float = 1.0


class TrainingTask(ABC, Generic[B]):
    """A model, its training batches, its loss and its validation metrics.

    Attributes:
        model: The model that is saved.
        module: The module that is called and trained; it holds the model.
        steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps in one pass over the data.
    """

    model: RiNALMo
    module: nn.Module
    steps: int
    steps_per_epoch: int

    @abstractmethod
    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The trained parameters. Called again after sharding, which may replace them."""

    @abstractmethod
    def batches(self) -> Sequence[B]:
        """This process's micro-batches of the next step; the same number on every process."""

    @abstractmethod
    def sizes(self, batch: B) -> tuple[Sequence[int], int]:
        """Tokens of each sequence of a micro-batch, and the number of terms that its loss is a sum of."""

    @abstractmethod
    def loss(self, module: nn.Module, batch: B) -> Tensor:
        """The sum of losses over the targets of a micro-batch, fp32."""

    @abstractmethod
    def evaluate(self, module: nn.Module, ranks: Ranks) -> Iterator[tuple[str, float]]:
        """Names and values of the validation metrics; nothing without validation data."""

    @abstractmethod
    def selection_metric(self, values: Mapping[str, float]) -> float:
        """The metric that selects the best checkpoint; more is better."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The position in the data, as plain values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""


@dataclass(frozen=True)
class Event:
    """One line of a run's log: the finished step, the number of steps, and the values."""

    step: int
    steps: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """The end of a run: the last step, the number of steps, and the signal that stopped it, if one did.

    `model` is the folder of the trained model, `evaluation` holds the metrics on the test examples, if there are any.
    """

    step: int
    steps: int
    model: Path
    signal: int | None = None
    evaluation: Evaluation | None = None

    @property
    def finished(self) -> bool:
        """Whether the model is trained and written."""
        return self.step >= self.steps


@dataclass(frozen=True)
class Listener:
    """Callbacks of a run: `event` for each line of its log, `note` for messages to the user, `end` for its outcome."""

    event: Callable[[Event], None] = lambda _: None
    note: Callable[[str], None] = lambda _: None
    end: Callable[[Outcome], None] = lambda _: None


NULL_LISTENER = Listener()


def make_optimizers(
    groups: Sequence[ParameterGroup], recipe: OptimizerRecipe, model: RiNALMo
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run, with weight decay on matrices and none on vectors.

    With `muon`, Muon has the matrices of the model's blocks, among them those of adapters, and AdamW the rest.
    """
    blocks = {id(p) for p in model.encoder.blocks.parameters()} if recipe.name == "muon" else set()
    muon: list[dict[str, Any]] = []
    adamw: list[dict[str, Any]] = []
    for group in groups:
        matrices = [p for p in group.parameters if p.dim() >= 2]
        for own, parameters, decay in (
            (muon, [p for p in matrices if id(p) in blocks], recipe.weight_decay),
            (adamw, [p for p in matrices if id(p) not in blocks], recipe.weight_decay),
            (adamw, [p for p in group.parameters if p.dim() < 2], 0.0),
        ):
            if parameters:
                own.append({"params": parameters, "weight_decay": decay, "start": group.start, "scale": group.scale})
    optimizers: list[torch.optim.Optimizer] = []
    if muon:
        optimizers.append(torch.optim.Muon(muon, lr=recipe.lr, adjust_lr_fn="match_rms_adamw"))
    if adamw:
        # Fused: one pass over memory per step; the default loop takes a dozen.
        optimizers.append(torch.optim.AdamW(adamw, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True))
    return optimizers


def moments(optimizers: Sequence[torch.optim.Optimizer]) -> dict[int, dict[str, Tensor]]:
    """The moments of each parameter by its `id`, made here if no step has made them yet.

    A checkpoint is loaded into these tensors in place.
    """
    by_parameter: dict[int, dict[str, Tensor]] = {}
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            state = optimizer.state[parameter]
            for moment in _MOMENTS[type(optimizer)]:
                if moment not in state:
                    state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                by_parameter.setdefault(id(parameter), {})[moment] = state[moment]
            if isinstance(optimizer, torch.optim.AdamW):
                state.setdefault("step", torch.zeros((), device=parameter.device))
    return by_parameter


def set_steps(optimizers: Sequence[torch.optim.Optimizer], steps: int) -> None:
    """Set AdamW's step counts to those after `steps` steps of the run; a group that starts later has fewer."""
    moments(optimizers)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if "step" in (state := optimizer.state[parameter]):
                    state["step"].fill_(max(0, steps - group["start"]))


def learning_rate(step: int, peak: float, schedule: ScheduleRecipe, total_steps: int) -> float:
    """The learning rate of optimizer step `step`, counted from 0. After the decay it stays at `min_lr`."""
    warmup = schedule.warmup_steps
    if step < warmup:
        return schedule.start_lr + (peak - schedule.start_lr) * step / warmup
    decay = schedule.decay_steps or max(1, total_steps - warmup)
    done = min(1.0, (step - warmup) / decay)
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[schedule.shape]
    return schedule.min_lr + (peak - schedule.min_lr) * left


def training_flops(config: ModelConfig, lengths: Sequence[int], predicted: int) -> float:
    """FLOPs of the matrix products of one training step, forward and backward.

    Args:
        config: Sizes of the model.
        lengths: Tokens of each sequence.
        predicted: Number of positions that go through the LM head.
    """
    d, tokens = config.hidden_size, sum(lengths)
    linear = tokens * (4 * d * d + 3 * d * config.ffn_size)
    attention = 2 * d * sum(length * length for length in lengths)
    head = predicted * d * (d + config.vocab_size)
    return 3 * 2.0 * (config.num_hidden_layers * (linear + attention) + head)  # backward costs twice the forward pass


def measure_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of this process in a large matrix product: the best of six, well under a second."""
    side = _PEAK_SIZES[device.type]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best


@dataclass
class Progress:
    """The progress of a run; part of each checkpoint."""

    step: int = 0
    seconds: float = 0.0
    tokens: float = 0.0
    best_step: int | None = None
    best: float | None = None
    losses: list[float] = field(default_factory=list)  # since the last line of the log


class Trainer:
    """A task, its model on all processes, and its optimizers."""

    def __init__(
        self,
        task: TrainingTask[Any],
        recipe: RunRecipe,
        ranks: Ranks,
        checkpoints: Checkpoints,
        report: Callable[[Event], None] = NULL_LISTENER.event,
    ) -> None:
        if recipe.optimizer.name == "muon" and recipe.train.precision == "fp16":
            raise InputError(  # its products are bf16, and loss scaling skips a step in one optimizer only
                "optimizer.name=muon does not work with train.precision=fp16; use bf16, fp32 or optimizer.name=adamw"
            )
        self.task, self.recipe, self.ranks, self.checkpoints, self.report = task, recipe, ranks, checkpoints, report
        self.progress = Progress()
        staged = any(group.start for group in task.parameter_groups())
        with _memory_errors(ranks.device):
            self.parallel = ParallelModel(task.module, task.model, recipe.train, ranks, staged=staged)
        self.groups = task.parameter_groups()
        self.optimizers = make_optimizers(self.groups, recipe.optimizer, task.model)
        # Does nothing in other precisions than fp16.
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=recipe.train.precision == "fp16")
        self.peak = 0.0  # FLOP/s of all processes together, where known
        self.signals: list[int] = []
        self.norm = self.rate = 0.0  # of the last step: the gradient's norm, the learning rate
        self._since_log = np.zeros(3)  # tokens, FLOPs and seconds of all processes together

    def resume(self) -> list[str]:
        """Continue from the newest intact checkpoint, if there is one; returns notes on damaged ones."""
        path, notes = self.checkpoints.newest()
        if path is not None:
            state = self.checkpoints.restore(path, self._tensors())
            self.progress = Progress(**state["progress"])
            set_steps(self.optimizers, self.progress.step)
            self.task.load_state_dict(state["task"])
            if scale := state.get("scaler"):
                self.scaler.load_state_dict(scale)
        return notes

    def run(self) -> bool:
        """Train to the end; False if a signal stopped the run earlier, after a checkpoint was written."""
        progress, recipe, task = self.progress, self.recipe, self.task
        with _signals() as self.signals, peer_failures(), _memory_errors(self.ranks.device):
            while progress.step < task.steps:
                stop = self.step()
                last = progress.step >= task.steps
                if last or progress.step % recipe.logging.every == 0:
                    self._log()
                validates = last or progress.step % (recipe.validation.every or task.steps_per_epoch) == 0
                improved = validates and self._validate()
                every = recipe.train.checkpoint_every or task.steps_per_epoch
                if stop or last or improved or progress.step % every == 0:
                    keep = recipe.checkpoint
                    state = {"progress": vars(progress), "task": task.state_dict(), "scaler": self.scaler.state_dict()}
                    self.checkpoints.save(progress.step, self._tensors(), state)
                    self.checkpoints.prune(keep.keep_last, progress.best_step if keep.keep_best else None)
                if stop and not last:
                    return False
        return True

    def step(self) -> bool:
        """One optimizer step; returns whether any process has received a signal to stop."""
        started = time.perf_counter()
        task, ranks, progress = self.task, self.ranks, self.progress
        for group in self.groups:
            for parameter in group.parameters:
                parameter.requires_grad_(progress.step >= group.start)

        batches = task.batches()
        own = np.zeros(3)
        for lengths, count in map(task.sizes, batches):
            own += (count, sum(lengths), training_flops(task.model.config, lengths, count))
        targets, tokens, flops = ranks.all_gather(own.tolist()).sum(dim=0).tolist()

        # DDP and FSDP average gradients over processes; times their number it is the sum again.
        scale = ranks.world / max(1.0, targets)
        task.module.train()
        total = torch.zeros((), dtype=sum_dtype(ranks.device), device=ranks.device)
        for number, batch in enumerate(batches):
            # Dropout does not depend on which process computes a micro-batch.
            place = ranks.rank + ranks.world * number
            seed = int(sampling.random_key(self.recipe.train.seed, _DROPOUT, progress.step, place))
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all devices
            if ranks.device.type != "cpu":
                torch.get_device_module(ranks.device).manual_seed(seed)
            with self.parallel.forward(last=number == len(batches) - 1) as module:
                loss = task.loss(module, batch)
            self.scaler.scale(loss * scale).backward()
            total += loss.detach()
        total_loss, stop = ranks.all_gather([total.item(), len(self.signals)]).sum(dim=0).tolist()
        mean_loss = total_loss / max(1.0, targets)

        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        self.norm = self.parallel.clip(self.recipe.train.clip)
        # An overflow of fp16 gradients is the scaler's to handle.
        if not (math.isfinite(mean_loss) and (self.scaler.is_enabled() or math.isfinite(self.norm))):
            raise TrainingError(
                f"step {progress.step + 1}: the loss is {mean_loss:g} and the gradient norm {self.norm:g}; lower "
                "optimizer.lr or lengthen schedule.warmup_steps, and start from an earlier checkpoint"
            )
        self.rate = learning_rate(progress.step, self.recipe.optimizer.lr, self.recipe.schedule, task.steps)
        for optimizer in self.optimizers:
            for parameters in optimizer.param_groups:
                parameters["lr"] = self.rate * parameters["scale"]
            self.scaler.step(optimizer)  # skips a step whose gradient has overflowed
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()

        seconds = time.perf_counter() - started
        progress.step += 1
        progress.seconds += seconds
        progress.tokens += tokens
        progress.losses.append(mean_loss)
        self._since_log += (tokens, flops, seconds)
        return stop > 0

    def _log(self) -> None:
        """Report the mean loss since the last report."""
        progress = self.progress
        tokens, flops, seconds = self._since_log.tolist()
        values = {
            "loss": math.fsum(progress.losses) / len(progress.losses),
            "lr": self.rate,
            "gradient_norm": self.norm,
            "tokens": progress.tokens,
            "seconds": progress.seconds,
            "tokens_per_second": tokens / seconds if seconds else 0.0,
        }
        if self.peak:
            values["mfu"] = flops / seconds / self.peak if seconds else 0.0
        self.report(Event(progress.step, self.task.steps, values))
        progress.losses = []
        self._since_log[:] = 0

    def _validate(self) -> bool:
        """Report the validation metrics; returns whether to keep this state as the best so far."""
        progress = self.progress
        self.task.module.eval()
        with torch.no_grad(), self.parallel.forward() as module:
            values = dict(self.task.evaluate(module, self.ranks))
        self.parallel.reshard()
        if not values:
            return False
        self.report(Event(progress.step, self.task.steps, values))
        metric = self.task.selection_metric(values)
        if not (progress.best is None or metric > progress.best):  # so that NaN is never the best
            return False
        progress.best, progress.best_step = metric, progress.step
        return self.recipe.checkpoint.keep_best

    def restore_best(self) -> None:
        """Put the weights and the task's state of the best checkpoint back."""
        path = self.checkpoints.at(self.progress.best_step)
        if path is not None and self.progress.best_step != self.progress.step:
            weights = {name: t for name, t in self._tensors().items() if name.startswith(_WEIGHTS)}
            self.task.load_state_dict(self.checkpoints.restore(path, weights)["task"])

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint by name: weights and optimizer."""
        model, states = self.task.model, moments(self.optimizers)
        tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            for moment, tensor in states.get(id(parameter), {}).items():
                tensors[f"{moment}.{name}"] = tensor
        return tensors


@contextmanager
def _memory_errors(device: torch.device) -> Iterator[None]:
    """Turn torch's out-of-memory error into a TrainingError that names the remedy."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{device} is out of memory; halve data.micro_tokens (--set data.micro_tokens=N; results stay the same), "
            "or --set train.activation_checkpointing=true, and continue with --resume"
        ) from None


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list, so that the loop can stop after its step.

    A later Ctrl-C stops at once. A terminal and torchrun both pass the first one on, so "later" is by the clock.
    Python lets only the main thread handle signals: in another thread they are left to the caller.
    """
    received: list[int] = []
    first = math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGINT and time.monotonic() > first + _CTRL_C_SECONDS:
            raise KeyboardInterrupt
        first = min(first, time.monotonic())
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    # None is a handler that was not set from Python, which cannot set it again.
    numbers = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not None]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def preserved_state(device: torch.device) -> Iterator[None]:
    """Leave the process as it was before training: random generators, autocast and gradient modes.

    Inside, gradients are computed in the run's own precision, whatever modes the caller is in.
    """
    python, numpy = random.getstate(), np.random.get_state()
    autocast = {kind: torch.is_autocast_enabled(kind) for kind in {"cpu", device.type}}
    module = None if device.type == "cpu" else torch.get_device_module(device)
    state = None if module is None else module.get_rng_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            # Not by `torch.autocast`, which keeps its casts until the outermost context ends.
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


def with_precision(recipe: R, device: torch.device) -> R:
    """The recipe with "auto" precision replaced by this device's; InputError for a precision it lacks."""
    native = native_precision(device)
    if device.type == "cpu":
        check_precision(recipe.train.precision)
    if native == "fp16" and recipe.train.sharding == "fsdp":
        native = "fp32"  # fp16 scales the loss, which FSDP cannot
    if recipe.train.precision == "bf16" != native:
        raise InputError("train.precision is bf16, which this device does not support; use --set train.precision=auto")
    precision = native if recipe.train.precision == "auto" else recipe.train.precision
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})


def train_and_export(
    task: TrainingTask[Any],
    recipe: RunRecipe,
    folder: RunFolder,
    ranks: Ranks,
    listener: Listener,
    *,
    notes: Sequence[str] = (),
    best: bool = False,
    export: Callable[[dict[str, Tensor]], RiNALMo] | None = None,
    mfu: bool = True,
    **facts: Any,
) -> Outcome:
    """Continue from the newest checkpoint, train to the end and write the model; called by all processes together.

    Args:
        task: The model, its data and its loss.
        recipe: The run's recipe.
        folder: The run's folder, locked by process 0.
        ranks: The processes of the run.
        listener: Callbacks, called by process 0.
        notes: Messages that the listener gets first.
        best: Write the state of the best validation instead of the last.
        export: Makes the model to write from the weights, if it is not the task's as it is.
        mfu: Report the model FLOPs utilisation; off where a step does not compute all of the model.
        facts: Entries for `versions.json`.
    """
    trainer = Trainer(task, recipe, ranks, Checkpoints(folder.checkpoints, ranks))
    notes = [*notes, *trainer.resume()]
    step = trainer.progress.step
    if mfu:
        # Each process measures while the others do.
        trainer.peak = recipe.logging.peak_flops or float(
            ranks.all_gather([measure_peak(ranks.device, recipe.train.precision)]).sum()
        )
    with ExitStack() as stack:
        if ranks.rank == 0:
            device = device_name(ranks.device)
            notes = [f"device: {device}, {recipe.train.precision}", *notes]
            for text in [*notes, f"continuing after step {step:,}"] if step else notes:
                listener.note(text)
            folder.record_start(step, **facts, processes=ranks.world, device=device)
            write_line = stack.enter_context(open_log(folder.path, step, recipe))

            def report(event: Event) -> None:
                write_line(event.step, event.values)
                listener.event(event)

            trainer.report = report
        if trainer.run():
            if best:
                trainer.restore_best()
            # Shards are put together by all processes.
            weights = {
                name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
                for name, tensor in task.model.state_dict().items()
            }

            def write() -> None:
                if export is not None:
                    model = export(weights)
                else:
                    with torch.device("meta"):
                        model = RiNALMo(task.model.spec)
                    model.load_state_dict(weights, assign=True)
                save(model, folder.model, overwrite=True)

            ranks.on_rank_zero(write)
            if ranks.rank == 0 and recipe.logging.plots:
                try:
                    draw_curves({folder.path.name: read_log(folder.path)}, folder.path / PLOT, rates=True)
                except MissingExtraError as error:  # must not fail a finished run
                    listener.note(str(error))
        outcome = Outcome(trainer.progress.step, task.steps, folder.model, next(iter(trainer.signals), None))
        listener.end(outcome)
        return outcome

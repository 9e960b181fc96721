"""The one training loop. What is learned comes from a `Task`; a step is the same for all of them.

    batches of the step ─► sum of losses / number of targets of all processes ─► gradient ─► clip ─► AdamW

The loss is the mean over all targets of the global batch, not a mean of means: however the batch is cut into
micro-batches and processes, the gradient is the same but for the order of sums.

The surprise: no random state is saved. Each micro-batch seeds its dropout from the run's seed, the step and its own
place in the step, as the data does (`rinalmo.data.draws`), so a resumed run draws what it would have drawn.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rinalmo.data import draws
from rinalmo.errors import TrainingError
from rinalmo.inference.devices import is_out_of_memory, sum_dtype
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.training.checkpoint import Checkpoints
from rinalmo.training.config import RunRecipe
from rinalmo.training.distributed import Ranks, Spread, company
from rinalmo.training.optim import MOMENTS, Trained, awaken, learning_rate, make_optimizer, moments, set_steps
from rinalmo.training.throughput import Work, training_flops

B = TypeVar("B")
_PATIENCE = 2.0  # seconds between a Ctrl-C and one that is meant to be another
_WEIGHTS = "model."  # what the names of weights begin with in a checkpoint
_DROPOUT = 7  # what the keys of this file are for; the data's are other numbers


class Task(Protocol[B]):
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
        self, task: Task[Any], recipe: RunRecipe, ranks: Ranks, checkpoints: Checkpoints, tell: Callable[[Event], None]
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
            self._seed(int(draws.key(self.recipe.train.seed, _DROPOUT, self.progress.step, place)))
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

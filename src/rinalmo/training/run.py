"""A run from its task to its model: the part that does not depend on what is learned."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.inference.cpu import check_precision
from rinalmo.inference.devices import device_name, native_precision
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.training.checkpoint import Checkpoints
from rinalmo.training.config import RunRecipe
from rinalmo.training.distributed import Ranks
from rinalmo.training.log import RunLog, plot_losses
from rinalmo.training.loop import Event, Task, Trainer
from rinalmo.training.run_folder import RunFolder
from rinalmo.training.throughput import measure_peak
from rinalmo.weights.checkpoint import save

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
    task: Task[Any],
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

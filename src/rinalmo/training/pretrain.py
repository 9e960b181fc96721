"""Pre-training, from a recipe to a model folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rinalmo.data.store import TokenStore
from rinalmo.errors import InputError, MissingExtraError
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.training.checkpoint import Checkpoints
from rinalmo.training.config import Recipe
from rinalmo.training.distributed import Ranks, joined
from rinalmo.training.log import RunLog, plot_losses
from rinalmo.training.loop import Event, Trainer
from rinalmo.training.masked_lm import MaskedLMTask, build_model
from rinalmo.training.run_folder import RunFolder, restarted
from rinalmo.training.throughput import measure_peak
from rinalmo.weights.checkpoint import save


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


def _ignore(_: Any) -> None:
    """Nobody listens, or this is not the first process."""


def pretrain(
    recipe: Recipe,
    output: str | Path,
    *,
    resume: bool = False,
    on_event: Callable[[Event], None] = _ignore,
    on_note: Callable[[str], None] = _ignore,
) -> Outcome:
    """Train as the recipe says and write everything into the folder `output`; the model is then in `output/model`.

    With `resume` an interrupted run in that folder goes on where its last checkpoint left it, bit for bit as if it
    had not been interrupted (CPU, same number of processes and threads). Started by torchrun, this is one process of
    several. SIGTERM and SIGINT end a run after a checkpoint. `on_event` hears of each line of the log, `on_note` of
    what the user should know.

    Raises InputError for what is wrong with recipe, data or folder, TrainingError for what goes wrong later.
    """
    with joined(recipe.train.deadline) as ranks:
        return _pretrain(recipe, RunFolder(output), ranks, resume, on_event, on_note)


def _pretrain(
    recipe: Recipe,
    folder: RunFolder,
    ranks: Ranks,
    resume: bool,
    on_event: Callable[[Event], None],
    on_note: Callable[[str], None],
) -> Outcome:
    with ExitStack() as stack:
        store, recipe = _open_store(recipe)
        ranks.first(lambda: stack.enter_context(folder.locked()))
        notes = ranks.first(lambda: folder.begin(recipe, resume or restarted()))
        model, fresh = build_model(recipe)
        task = MaskedLMTask(recipe, store, model, ranks)
        log = _Recorder(folder, recipe, on_event, on_note) if ranks.rank == 0 else None
        trainer = Trainer(task, recipe, ranks, Checkpoints(folder.checkpoints, ranks), log.event if log else _ignore)
        notes += fresh + trainer.resume()
        trainer.peak = recipe.logging.peak_flops or _peak(ranks, recipe)
        if log:
            stack.callback(log.close)
            log.begin(notes, trainer.progress.step, store=_facts(store), processes=ranks.world)
        if trainer.run():
            _export(model, folder.model, ranks)
            if log:
                log.plot()
        return Outcome(trainer.progress.step, task.steps, next(iter(trainer.signals), None))


class _Recorder:
    """Writes the log of a run, and passes on what is heard."""

    def __init__(
        self, folder: RunFolder, recipe: Recipe, on_event: Callable[[Event], None], on_note: Callable[[str], None]
    ) -> None:
        self.folder, self.logging, self.on_event, self.on_note = folder, recipe.logging, on_event, on_note
        self.log: RunLog | None = None

    def begin(self, notes: list[str], step: int, **facts: Any) -> None:
        """Open the log where the run goes on."""
        for text in notes:
            self.on_note(text)
        if step:
            self.on_note(f"going on after step {step:,}")
        self.folder.note_start(step, threads=torch.get_num_threads(), **facts)
        self.log = RunLog(self.folder.path, step, self.logging.tensorboard)

    def event(self, event: Event) -> None:
        if self.log is not None:
            self.log.write(event.step, event.values)
        self.on_event(event)

    def plot(self) -> None:
        """Draw the curve; a missing package must not cost a finished run its good end."""
        try:
            if self.logging.plots:
                plot_losses(self.folder.path)
        except MissingExtraError as error:
            self.on_note(str(error))

    def close(self) -> None:
        if self.log is not None:
            self.log.close()


def _open_store(recipe: Recipe) -> tuple[TokenStore, Recipe]:
    """The store, and the recipe with its fingerprint."""
    data = recipe.data
    if data.store is None:
        raise InputError("data.store is missing: --set data.store=FOLDER, such as `rinalmo data prepare` makes")
    store = TokenStore.open(data.store)
    if data.fingerprint not in (None, store.fingerprint):
        raise InputError(f"{data.store}: is not the store of this recipe, whose data.fingerprint is {data.fingerprint}")
    data = data.model_copy(update={"store": str(Path(data.store).absolute()), "fingerprint": store.fingerprint})
    return store, recipe.model_copy(update={"data": data})


def _facts(store: TokenStore) -> dict[str, Any]:
    """What a model card says about the data."""
    counted = {key: store.manifest[key] for key in ("sequences", "clusters", "nucleotides", "sources")}
    return {"fingerprint": store.fingerprint, "train": len(store.sequence_range("train")), **counted}


def _peak(ranks: Ranks, recipe: Recipe) -> float:
    """The matrix peak of all processes, each measured while the others measure theirs."""
    return float(ranks.gather([measure_peak(ranks.device, recipe.train.precision)]).sum())


def _export(model: RiNALMo, target: Path, ranks: Ranks) -> None:
    """Write the trained model as a folder in our layout, from process 0."""
    whole = {name: _whole(tensor) for name, tensor in model.state_dict().items()}

    def write() -> None:
        with torch.device("meta"):
            plain = RiNALMo(model.spec)
        plain.load_state_dict(whole, assign=True)
        save(plain, target, overwrite=True)

    ranks.first(write)


def _whole(tensor: Tensor) -> Tensor:
    """A parameter on the CPU, put together from its shards; all processes must call this together."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()

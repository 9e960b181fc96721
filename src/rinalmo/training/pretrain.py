"""Pre-training, from a recipe to a model folder."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rinalmo.data.store import TokenStore
from rinalmo.errors import InputError
from rinalmo.inference.devices import DeviceLike
from rinalmo.training.card import write_card
from rinalmo.training.config import Recipe
from rinalmo.training.distributed import Ranks, joined
from rinalmo.training.masked_lm import MaskedLMTask, build_model
from rinalmo.training.run import SILENCE, Listener, Outcome, conduct, preserved_state, with_precision
from rinalmo.training.run_folder import RunFolder, restarted


def pretrain(
    recipe: Recipe,
    output: str | Path,
    *,
    resume: bool = False,
    listener: Listener = SILENCE,
    device: DeviceLike = None,
) -> Outcome:
    """Train as the recipe says and write everything into the folder `output`; the model is then in `output/model`.

    With `resume` an interrupted run in that folder goes on where its last checkpoint left it, bit for bit as if it
    had not been interrupted (CPU, same number of processes and threads). Started by torchrun, this is one process of
    several. SIGTERM and SIGINT end a run after a checkpoint. `device` is "auto" (None; CUDA, then MPS, then the CPU),
    "cpu", "cuda", "cuda:N" or "mps"; of several processes on GPUs each takes its own.

    Raises InputError for what is wrong with recipe, data or folder, TrainingError for what goes wrong later.
    """
    with joined(recipe.train.deadline, device) as ranks, preserved_state(ranks.device):
        return _pretrain(recipe, RunFolder(output), ranks, resume, listener)


def _pretrain(
    recipe: Recipe,
    folder: RunFolder,
    ranks: Ranks,
    resume: bool,
    listener: Listener,
) -> Outcome:
    with ExitStack() as stack:
        store, recipe = _open_store(with_precision(recipe, ranks.device))
        ranks.first(lambda: stack.enter_context(folder.locked()))
        notes = ranks.first(lambda: folder.begin(recipe, resume or restarted()))
        model, fresh = build_model(recipe)
        task = MaskedLMTask(recipe, store, model, ranks)
        outcome = conduct(task, recipe, folder, ranks, listener, notes=[*notes, *fresh], store=_facts(store))
        if outcome.finished:
            ranks.first(lambda: write_card(folder.path, overwrite=True))
        return outcome


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

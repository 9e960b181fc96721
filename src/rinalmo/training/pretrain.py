"""Masked language modeling: the model, its batches, its loss and its validation metrics.

    token store ─► MaskedBatches ─► encoder ─► LM head at the masked positions only ─► cross-entropy, fp32

The validation set is masked once, by a fixed seed, so that its metrics can be compared between steps, runs and batch
sizes. They are given over all of it and for each source.

Reference: Penić et al. 2025 (arXiv:2403.00043) for the objective.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rinalmo.data.batches import Batch, FixedMasked, MaskedBatches
from rinalmo.data.store import TokenStore
from rinalmo.engine.devices import DeviceLike
from rinalmo.errors import InputError
from rinalmo.model.kernels import sum_dtype
from rinalmo.model.packing import Layout, to_device
from rinalmo.model.rinalmo import ModelSpec, RiNALMo, create
from rinalmo.training.distributed import Ranks, init_distributed
from rinalmo.training.model_card import write_card
from rinalmo.training.recipes import Recipe
from rinalmo.training.run_folder import RunFolder
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
from rinalmo.weights.checkpoint import load

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_DROPOUTS = ("attention_dropout", "hidden_dropout")


class MaskedLM(nn.Module):
    """Encoder and LM head as one module, for DDP and FSDP."""

    def __init__(self, model: RiNALMo) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, layout: Layout, positions: Tensor) -> Tensor:
        """Logits `(masked, vocabulary)` at the given positions of a packed batch."""
        states = self.model.encoder(ids, layout).last_hidden_state
        return self.model.head("lm_head")(states[positions])


class MaskedLMTask(TrainingTask[Batch]):
    """Masked language modeling on a token store, whose training batches are those of `source_type`."""

    source_type = MaskedBatches

    def __init__(self, recipe: Recipe, store: TokenStore, model: RiNALMo, ranks: Ranks) -> None:
        self.store, self.model, self.ranks = store, model, ranks
        self.module = MaskedLM(model)
        data = recipe.data
        self.source = self.source_type(
            store, model.alphabet, data, recipe.train.seed, rank=ranks.rank, world=ranks.world
        )
        self.held_out = FixedMasked(store, model.alphabet, data, recipe.validation.per_source)
        self.steps_per_epoch = max(1, self.source.steps_per_epoch())
        self.steps = recipe.train.max_steps or recipe.train.epochs * self.steps_per_epoch
        self._stream: Iterator[list[Batch]] | None = None

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return [ParameterGroup(list(self.module.parameters()))]

    def batches(self) -> Sequence[Batch]:
        if self._stream is None:
            self._stream = iter(self.source)
        return [_to_device(batch, self.ranks.device) for batch in next(self._stream)]

    def sizes(self, batch: Batch) -> tuple[Sequence[int], int]:
        return batch.layout.lengths, len(batch.targets)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        logits = module(batch.ids, batch.layout, batch.positions)
        return F.cross_entropy(logits, batch.targets, reduction="sum")

    def evaluate(self, module: nn.Module, ranks: Ranks) -> Iterator[tuple[str, float]]:
        """Loss, accuracy and perplexity over the validation split, then for each source in it."""
        total = sums_by_source(module, self.held_out, ranks)
        names = ["validation", *(f"validation/{source}" for source in self.store.sources)]
        for name, row in zip(names, (total.sum(dim=0), *total), strict=True):
            loss, right, count = row.tolist()
            if count:
                yield f"{name}/loss", loss / count
                yield f"{name}/accuracy", right / count
                yield f"{name}/perplexity", math.exp(loss / count)

    def selection_metric(self, values: Mapping[str, float]) -> float:
        return -values["validation/loss"]

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state)


def sums_by_source(module: nn.Module, held_out: FixedMasked, ranks: Ranks) -> Tensor:
    """Loss, correct predictions and masked tokens of each source, of all ranks together `(sources, 3)`."""
    sums = torch.zeros(len(held_out.store.sources), 3, dtype=sum_dtype(ranks.device), device=ranks.device)
    for batch in held_out.batches(ranks.rank, ranks.world):
        batch = _to_device(batch, ranks.device)
        logits = module(batch.ids, batch.layout, batch.positions)
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        correct = logits.argmax(dim=-1) == batch.targets
        rows = torch.stack([losses, correct, torch.ones_like(losses)], dim=1).to(sums.dtype)
        sums.index_add_(0, batch.target_sources, rows)
    return ranks.all_gather(sums.flatten().tolist()).sum(dim=0).view(sums.shape)


def build_model(recipe: Recipe) -> tuple[RiNALMo, list[str]]:
    """The model to train, with fresh weights or those of `init`, and notes on parts of it that are fresh."""
    heads: dict[str, dict[str, Any]] = {"lm_head": {}}
    if recipe.init is None:
        return create(ModelSpec(recipe.model.config(), heads=heads), recipe.train.seed), []
    given = load(recipe.init, dtype=torch.float32)
    if recipe.model.preset is not None or recipe.model.hidden_size is not None:
        wanted = recipe.model.config()
        for name in _SIZES:
            if (want := getattr(wanted, name)) != (have := getattr(given.config, name)):
                raise InputError(
                    f"init {recipe.init} has {name} {have}, but the recipe has {want}; use a recipe of that size, or "
                    "take the sizes from init with --set model.preset=null"
                )
    dropouts = {name: value for name, value in recipe.model.changes().items() if name in _DROPOUTS}
    model = create(ModelSpec(replace(given.config, **dropouts), given.alphabet, heads), recipe.train.seed)
    model.load_state_dict(given.state_dict(), strict=False)
    fresh = [] if "lm_head" in given.spec.heads else [f"{recipe.init} has no masked-LM head; a new one is trained"]
    return model, fresh


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    names = ("ids", "positions", "targets", "source_ids")
    tensors = {name: to_device(getattr(batch, name), device) for name in names}
    return replace(batch, layout=Layout(batch.layout.lengths, device), **tensors)


def pretrain(
    recipe: Recipe,
    output: str | Path,
    *,
    resume: bool = False,
    restart: bool = False,
    listener: Listener = NULL_LISTENER,
    device: DeviceLike = None,
    task: type[MaskedLMTask] = MaskedLMTask,
) -> Outcome:
    """Pre-train a model as the recipe says, into the folder `output`; the model is then in `output/model`.

    Started by torchrun, this is one process of several. SIGTERM and SIGINT end a run after a checkpoint.

    Args:
        recipe: The run's recipe.
        output: Folder of the run.
        resume: Continue an interrupted run from its last checkpoint. On a CPU, with the same number of processes and
            threads, the result is bit for bit that of an uninterrupted run.
        restart: Discard the run in the folder. Without either a folder that holds one is refused.
        listener: Callbacks for log lines and notes.
        device: "auto" (None; CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"; of several processes on
            GPUs each takes its own.
        task: A subclass with other batches or another loss.

    Returns:
        The last step, and the signal that stopped the run, if one did.

    Raises:
        InputError: The recipe, the data or the folder cannot be used.
        TrainingError: The run failed later.
    """
    with init_distributed(recipe.train.deadline, device) as ranks, preserved_state(ranks.device):
        return _pretrain(recipe, RunFolder(output), ranks, (resume, restart), listener, task)


def _pretrain(
    recipe: Recipe,
    folder: RunFolder,
    ranks: Ranks,
    kept: tuple[bool, bool],
    listener: Listener,
    make_task: type[MaskedLMTask],
) -> Outcome:
    # A frame of its own: what DDP holds must be gone when the process group ends.
    with ExitStack() as stack:
        recipe = with_precision(recipe, ranks.device)
        data = recipe.data
        if data.store is None:
            raise InputError(
                "data.store is missing: use --set data.store=FOLDER with a store from `rinalmo data prepare`"
            )
        store = TokenStore.open(data.store)
        fingerprint = store.fingerprint
        if data.fingerprint not in (None, fingerprint):
            raise InputError(f"{data.store}: is not the store of this recipe (data.fingerprint {data.fingerprint})")
        data = data.model_copy(update={"store": str(Path(data.store).absolute()), "fingerprint": fingerprint})
        recipe = recipe.model_copy(update={"data": data})
        ranks.on_rank_zero(lambda: stack.enter_context(folder.locked()))
        ranks.on_rank_zero(lambda: folder.check(*kept))
        model, fresh = build_model(recipe)  # first, as `init` may be the run that is discarded
        notes = ranks.on_rank_zero(lambda: folder.begin(recipe, kept[1]))
        task = make_task(recipe, store, model, ranks)
        counts = {key: store.manifest[key] for key in ("sequences", "clusters", "nucleotides", "sources")}
        facts = {"fingerprint": fingerprint, "train": len(store.sequence_range("train")), **counts}
        outcome = train_and_export(task, recipe, folder, ranks, listener, notes=[*notes, *fresh], store=facts)
        if outcome.finished:
            ranks.on_rank_zero(lambda: write_card(folder.path, overwrite=True))
        return outcome

"""Masked language modelling as a task: which model, which batches, which loss, and how it is judged.

    token store ─► MaskedBatches ─► encoder ─► LM head at the selected positions only ─► cross-entropy, fp32

The validation set is masked once and for all by a fixed seed, so that its figures can be compared between steps, runs
and sizes of batch; they are given over all of it and for each source.

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

from rinalmo.data.batches import Batch, BatchOptions, FixedMasked, MaskedBatches
from rinalmo.data.sampling import Masking, Weights
from rinalmo.data.store import TokenStore
from rinalmo.engine.devices import DeviceLike, sum_dtype
from rinalmo.errors import InputError
from rinalmo.model.packing import Layout, to_device
from rinalmo.model.rinalmo import ModelSpec, RiNALMo, create
from rinalmo.training.distributed import Ranks, joined
from rinalmo.training.model_card import write_card
from rinalmo.training.recipes import DataRecipe, Recipe
from rinalmo.training.run_folder import RunFolder, restarted
from rinalmo.training.trainer import SILENCE, Listener, Outcome, Trained, conduct, preserved_state, with_precision
from rinalmo.weights.checkpoint import load

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_DROPOUTS = ("attention_dropout", "hidden_dropout")


class MaskedLM(nn.Module):
    """Encoder and LM head as one module, which is what DDP and FSDP want to hold."""

    def __init__(self, model: RiNALMo) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, layout: Layout, positions: Tensor) -> Tensor:
        """Logits `(selected, vocabulary)` at the given positions of a packed batch."""
        states = self.model.encoder(ids, layout).last_hidden_state
        return self.model.head("lm_head")(states[positions])


class MaskedLMTask:
    """Masked language modelling on a token store; see `rinalmo.training.trainer.Task`."""

    def __init__(self, recipe: Recipe, store: TokenStore, model: RiNALMo, ranks: Ranks) -> None:
        self.recipe, self.store, self.model, self.ranks = recipe, store, model, ranks
        self.module = MaskedLM(model)
        options = batch_options(recipe.data, recipe.train.seed)
        self.source = MaskedBatches(
            store, model.alphabet, options, rank=ranks.rank, world=ranks.world, workers=recipe.data.workers
        )
        self.held_out = FixedMasked(
            store,
            model.alphabet,
            per_source=recipe.validation.per_source,
            micro_tokens=options.micro_tokens,
            max_length=options.max_length,
            masking=options.masking,
        )
        self.steps_per_epoch = max(1, self.source.steps_per_epoch())
        self.steps = recipe.train.max_steps or recipe.train.epochs * self.steps_per_epoch
        self._stream: Iterator[list[Batch]] | None = None

    def trained(self) -> Sequence[Trained]:
        return [Trained(list(self.module.parameters()))]

    def batches(self) -> Sequence[Batch]:
        if self._stream is None:
            self._stream = iter(self.source)
        return [_moved(batch, self.ranks.device) for batch in next(self._stream)]

    def lengths(self, batch: Batch) -> Sequence[int]:
        return batch.layout.lengths

    def targets(self, batch: Batch) -> int:
        return len(batch.targets)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        logits = module(batch.ids, batch.layout, batch.positions)
        return F.cross_entropy(logits, batch.targets, reduction="sum")

    def evaluate(self, module: nn.Module, ranks: Ranks) -> Iterator[tuple[str, float]]:
        """Loss, accuracy and perplexity over the validation split, then for each source that is in it."""
        sums = torch.zeros(len(self.store.sources), 3, dtype=sum_dtype(ranks.device), device=ranks.device)
        for batch in self.held_out.batches(ranks.rank, ranks.world):
            batch = _moved(batch, ranks.device)
            logits = module(batch.ids, batch.layout, batch.positions)
            losses = F.cross_entropy(logits, batch.targets, reduction="none")
            right = logits.argmax(dim=-1) == batch.targets
            rows = torch.stack([losses, right, torch.ones_like(losses)], dim=1).to(sums.dtype)
            sums.index_add_(0, batch.target_sources, rows)
        total = ranks.gather(sums.flatten().tolist()).sum(dim=0).view(sums.shape)
        for name, row in zip(("validation", *self._labels()), (total.sum(dim=0), *total), strict=True):
            yield from _figures(name, *row.tolist())

    def goodness(self, values: Mapping[str, float]) -> float:
        return -values["validation/loss"]

    def _labels(self) -> list[str]:
        return [f"validation/{source}" for source in self.store.sources]

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state)


def _figures(name: str, loss: float, right: float, count: float) -> Iterator[tuple[str, float]]:
    if count:
        yield f"{name}/loss", loss / count
        yield f"{name}/accuracy", right / count
        yield f"{name}/perplexity", math.exp(loss / count)


def batch_options(data: DataRecipe, seed: int) -> BatchOptions:
    """The data section as the batches take it."""
    values = data.model_dump(exclude={"store", "fingerprint", "workers", "weights", "masking"})
    weights, masking = Weights(**data.weights.model_dump()), Masking(**data.masking.model_dump())
    return BatchOptions(seed=seed, weights=weights, masking=masking, **values)


def build_model(recipe: Recipe) -> tuple[RiNALMo, list[str]]:
    """The model to train, with fresh weights or those of `init`, and notes on what is fresh beside them."""
    heads: dict[str, dict[str, Any]] = {"lm_head": {}}
    if recipe.init is None:
        return create(ModelSpec(recipe.model.config(), heads=heads), recipe.train.seed), []
    given = load(recipe.init, dtype=torch.float32)
    _require_size(recipe, given)
    changes = {name: value for name, value in recipe.model.changes().items() if name in _DROPOUTS}
    spec = ModelSpec(replace(given.config, **changes), given.alphabet, heads)
    model = create(spec, recipe.train.seed)
    known = model.state_dict().keys()
    model.load_state_dict({k: v for k, v in given.state_dict().items() if k in known}, strict=False)
    fresh = [] if "lm_head" in given.spec.heads else [f"{recipe.init} has no masked-LM head; a fresh one is trained"]
    return model, fresh


def _require_size(recipe: Recipe, given: RiNALMo) -> None:
    if recipe.model.preset is None and recipe.model.hidden_size is None:
        return
    wanted = recipe.model.config()
    for name in _SIZES:
        if (want := getattr(wanted, name)) != (have := getattr(given.config, name)):
            raise InputError(
                f"init {recipe.init} has {name} {have}, the recipe {want}; take a recipe of its size, or leave the "
                "sizes to it with --set model.preset=null"
            )


def _moved(batch: Batch, device: torch.device) -> Batch:
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

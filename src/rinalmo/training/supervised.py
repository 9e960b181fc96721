"""A labelled task as the training loop wants it: batches of examples, a loss, figures on validation examples.

    examples ─► a permutation per epoch ─► optimizer steps ─► micro-batches, dealt to the processes ─► encoder ─► head

The order follows from the seed and the epoch alone, so nothing of it has to be saved. Every process has all examples;
what it computes is its share of each step's micro-batches. The surprise: if there are too few for all, a process is
given one that counts nothing, because all must call the model equally often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rinalmo.data import draws
from rinalmo.inference.batching import cut
from rinalmo.model.packing import Layout, pack
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.base import Example, Task
from rinalmo.training.distributed import Ranks
from rinalmo.training.finetune_config import FinetuneRecipe
from rinalmo.training.optim import Trained

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
        return list(self.task.outputs(self.model, ids, states, layout))

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
    """A labelled task on examples; see `rinalmo.training.loop.Task`."""

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
        key = draws.key(self.recipe.train.seed, _ORDER, epoch)
        return draws.permute(places, len(self.train), key).tolist()

    def _micro_batches(self, of: Examples, chosen: Sequence[int]) -> Iterator[MicroBatch]:
        order = sorted(chosen, key=lambda i: len(of.ids[i]))
        for part in cut(order, of.ids, self.recipe.data.micro_tokens):
            ids, layout = pack((torch.from_numpy(of.ids[i]) for i in part), self.ranks.device)
            states = None
            if of.states is not None:
                states = torch.from_numpy(np.concatenate([of.states[i] for i in part])).to(self.ranks.device)
            yield MicroBatch(part, [of.examples[i] for i in part], ids, layout, states)

    def lengths(self, batch: MicroBatch) -> Sequence[int]:
        return batch.layout.lengths if batch.counts else ()

    def targets(self, batch: MicroBatch) -> int:
        return self.task.count(batch.examples) if batch.counts else 0

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
        threshold = self.task.tuned(judged)
        if threshold is not None:
            yield "validation/threshold", threshold
            self._keep_threshold(threshold)
        for name, value in self.task.figures(judged, self.validation.examples, threshold):
            yield f"validation/{name}", value

    def _judged(self, module: nn.Module, chosen: Sequence[int]) -> dict[int, tuple[float, int, Any]]:
        """Loss, terms and judgement of each chosen validation example."""
        found: dict[int, tuple[float, int, Any]] = {}
        for batch in self._micro_batches(self.validation, chosen):
            outputs = module(batch.ids, batch.layout, batch.states)
            for place, example, output in zip(batch.places, batch.examples, outputs, strict=True):
                loss = float(self.task.loss(self.model, [output], [example]))
                judged = self.task.judge(self.model, output, example)
                found[place] = (loss, self.task.count([example]), judged)
        return found

    def goodness(self, values: Mapping[str, float]) -> float:
        # Some figures need what the validation examples may not have, such as both classes.
        return values.get(f"validation/{self.task.score}", -values["validation/loss"])

    def _keep_threshold(self, threshold: float | None) -> None:
        self.model.spec = replace(self.model.spec, threshold=threshold)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "threshold": self.model.spec.threshold}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self._keep_threshold(state["threshold"])

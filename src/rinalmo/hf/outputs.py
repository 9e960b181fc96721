"""What the Hugging Face classes hand on: their own output type, and the encoder's answer between border and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from rinalmo.hf.padded import Grid


@dataclass
class ContactPredictionOutput(ModelOutput):
    """loss `()`, logits `(batch, length, length, labels)` without CLS and EOS, hidden states, attentions."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class Encoded:
    """What the encoder made of a padded batch: packed states, where they stand, padded extras."""

    ids: Tensor | None
    states: Tensor
    grid: Grid
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None

    @property
    def padded(self) -> Tensor:
        """The last states as `(batch, length, hidden)`; with all layers, the last of them."""
        return self.grid.scatter(self.states) if self.hidden_states is None else self.hidden_states[-1]

    @property
    def extras(self) -> dict[str, Any]:
        return {"hidden_states": self.hidden_states, "attentions": self.attentions}

"""`RiNALMoModel.encode`: sequences in, an array of embeddings out, as in sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rinalmo.hf.model_folder import alphabet_of
from rinalmo.inference.devices import default_batch_tokens
from rinalmo.inference.embeddings import Pooling, embed_records
from rinalmo.inference.engine import Engine
from rinalmo.inference.inputs import Sequences, as_records, peeked
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import ModelSpec, RiNALMo

if TYPE_CHECKING:
    from rinalmo.hf.modeling import RiNALMoModel


class _OfModel(Engine):
    """An engine that computes with a Hugging Face model's weights as they are at the moment, and copies none."""

    def __init__(self, model: RiNALMoModel, batch_tokens: int | None) -> None:
        self.owner, self.device, self.precision, self._threads = model, model.device, "auto", None
        self.batch_tokens = default_batch_tokens(model.device) if batch_tokens is None else batch_tokens
        with torch.device("meta"):  # sizes and alphabet, no weights
            self.head_model = RiNALMo(ModelSpec(model.encoder.config, alphabet_of(model.config)))

    @torch.inference_mode()
    def hidden_states(self, ids: Tensor, layout: Layout, layers: Sequence[int]) -> list[Tensor]:
        last = len(self.owner.encoder.blocks)
        out = self.owner._states(ids, layout, any(layer != last for layer in layers))
        states = out.hidden_states or ()
        return [(out.last_hidden_state if layer == last else states[layer]).float() for layer in layers]


def encode(
    model: RiNALMoModel,
    sequences: Sequences,
    *,
    pooling: Pooling = "mean",
    layer: int = -1,
    normalize: bool = False,
    batch_tokens: int | None = None,
) -> np.ndarray | list[np.ndarray]:
    """See `RiNALMoModel.encode`."""
    was_training = model.training
    model.eval()
    try:
        engine = _OfModel(model, batch_tokens)
        pairs = embed_records(peeked(as_records(sequences)), engine, pooling=pooling, layers=[layer])
        found = [_of_length_one(values) if normalize else values for _, values in pairs]
    finally:
        model.train(was_training)
    if isinstance(sequences, str):
        return found[0]
    return found if pooling == "none" else np.stack(found)


def _of_length_one(values: np.ndarray) -> np.ndarray:
    """Vectors along the last axis, each of length 1; one of zeros stays as it is."""
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)

"""The encoder for inference on a GPU: the network of `rinalmo.model.encoder`, with its matrices cast once.

Matrix products and attention run in bf16 or fp16. What accuracy rests on stays in fp32: the embedding, layer norms, the
residual stream, rotary angles, the slope of the swish, the softmax within attention. These types are those of training
under autocast; only the weights are not cast again for every batch.

It computes on any device, so that the tests need no GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn

from rinalmo.errors import InputError
from rinalmo.model import kernels
from rinalmo.model.encoder import Encoder
from rinalmo.model.kernels import Backend
from rinalmo.model.packing import Layout

Precision = Literal["fp32", "bf16", "fp16"]

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class GpuEncoder:
    """An `Encoder` made ready to infer on a GPU."""

    def __init__(
        self,
        encoder: Encoder,
        precision: Precision = "bf16",
        compile: bool | None = None,
        backend: Backend = "auto",
        *,
        device: torch.device | None = None,
    ) -> None:
        """Cast the weights; in fp32 and on the encoder's own device they are shared, not copied.

        Args:
            encoder: Whose network is computed. It is left as it is.
            precision: "fp32", "bf16" or "fp16".
            compile: Whether to fuse kernels; None leaves it to `rinalmo.model.kernels`.
            backend: How attention is computed (`rinalmo.model.kernels`).
            device: Where to compute; the encoder's own device if None.

        Raises:
            InputError: If the precision is unknown.
        """
        if precision not in _TYPES:
            raise InputError(f"precision {precision!r} is unknown; use one of {', '.join(get_args(Precision))}")
        self.precision, self.config = precision, encoder.config
        self.device = encoder.embedding.weight.device if device is None else device
        self.encoder = _cast(encoder, self.device, _TYPES[precision]).eval()
        self.encoder.fuse = compile
        self.encoder.set_attention_backend(backend)

    @torch.no_grad()
    def __call__(self, ids: Int[Tensor, " tokens"], layout: Layout, layers: Sequence[int]) -> list[Tensor]:
        """The states of chosen layers of a packed batch. Nothing here waits for the device.

        Threads that call it take turns: what it does is to tell the device what to compute, which takes no time beside
        the computation.

        Args:
            ids: Packed token ids, on the device.
            layout: Where each sequence lies.
            layers: 0 is the embedding, n the output of block n; the last block's comes after the final layer norm.

        Returns:
            Packed states `(tokens, hidden)` in fp32, one for each entry of `layers`.
        """
        half = self.precision != "fp32"
        with kernels.LOCK, torch.autocast(self.device.type, _TYPES[self.precision] if half else None, enabled=half):
            chosen, states = set(layers), {}
            for number, x in enumerate(self.encoder.states(ids, layout)):
                if number in chosen:
                    states[number] = x.float()
        return [states[layer] for layer in layers]


def _cast(encoder: Encoder, device: torch.device, dtype: torch.dtype) -> Encoder:
    """A copy of the encoder that has its linear layers in `dtype`, everything else in fp32."""
    linear = {id(p) for module in encoder.modules() if isinstance(module, nn.Linear) for p in module.parameters()}
    # What `deepcopy` finds under the id of a tensor it takes as its copy.
    cast: dict[int, object] = {}
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        moved = tensor.detach().to(device, dtype if id(tensor) in linear else torch.float32)
        cast[id(tensor)] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(encoder, cast)

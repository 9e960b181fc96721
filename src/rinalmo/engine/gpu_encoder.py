"""The encoder for inference on a GPU: the network of `rinalmo.model.rinalmo`, its matrices cast once.

Matrix products and attention run in bf16 or fp16. What accuracy depends on stays in fp32: the embedding, layer norms,
the residual stream, rotary angles, the slope of the swish, the softmax within attention. These types are those of
training under autocast; only the weights are not cast again for every batch.

It computes on any device, so that the tests need no GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from rinalmo.errors import InputError
from rinalmo.model import kernels
from rinalmo.model.kernels import Backend
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import Encoder

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class GpuEncoder:
    """An `Encoder` with its weights cast, on a device; in fp32 on the encoder's own device they are shared.

    Args:
        encoder: Is left as it is.
        precision: "fp32", "bf16" or "fp16".
        compile: Whether to fuse kernels; None decides by device and use (`rinalmo.model.kernels`).
        backend: How attention is computed (`rinalmo.model.kernels`).
        device: Where to compute; the encoder's own device if None.

    Raises:
        InputError: If the precision is unknown.
    """

    def __init__(
        self,
        encoder: Encoder,
        precision: str = "bf16",
        compile: bool | None = None,
        backend: Backend = "auto",
        *,
        device: torch.device | None = None,
    ) -> None:
        if precision not in _TYPES:
            raise InputError(f"precision {precision!r} is unknown; use one of {', '.join(_TYPES)}")
        self.dtype = _TYPES[precision]
        self.device = encoder.embedding.weight.device if device is None else device
        linear = {id(p) for module in encoder.modules() if isinstance(module, nn.Linear) for p in module.parameters()}
        # `deepcopy` takes an object in this table as the copy of the one with that id.
        copies: dict[int, object] = {}
        for tensor in (*encoder.parameters(), *encoder.buffers()):
            cast = tensor.detach().to(self.device, self.dtype if id(tensor) in linear else torch.float32)
            copies[id(tensor)] = nn.Parameter(cast, requires_grad=False) if isinstance(tensor, nn.Parameter) else cast
        self.encoder = copy.deepcopy(encoder, copies).eval()
        self.encoder.fuse = compile
        self.encoder.set_attention_backend(backend)

    @torch.no_grad()
    def __call__(self, ids: Int[Tensor, " tokens"], layout: Layout, layers: Sequence[int]) -> list[Tensor]:
        """Packed states `(tokens, hidden)`, fp32, of the chosen layers: 0 the embedding, n the output of block n.

        The last block's output comes after the final layer norm. Nothing here waits for the device. Threads take turns:
        launching takes no time beside the computation.
        """
        half, chosen, states = self.dtype != torch.float32, set(layers), {}
        with kernels.LOCK, torch.autocast(self.device.type, self.dtype if half else None, enabled=half):
            for number, x in enumerate(self.encoder.states(ids, layout)):
                if number in chosen:
                    states[number] = x.float()
        return [states[layer] for layer in layers]

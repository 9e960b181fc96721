"""`RiNALMo`: an encoder with its heads and its alphabet, the object that the rest of the package passes round.

Heads are found by name. A file's tensors say which heads it has and how large they are (`head_shapes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from rinalmo.errors import CheckpointError
from rinalmo.model.config import ModelConfig
from rinalmo.model.encoder import Encoder, EncoderOutput
from rinalmo.model.heads import (
    ContactHead,
    HeadConfig,
    MaskedLMHead,
    NcrnaFamilyHead,
    Pooler,
    RibosomeLoadHead,
    SequenceHead,
    SpliceSiteHead,
    StructureHead,
    TokenHead,
)
from rinalmo.model.packing import Layout
from rinalmo.model.structure_heads import Combiner, PartnerHead
from rinalmo.rna.alphabet import Alphabet

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelSpec:
    """What a `RiNALMo` is built from: sizes, heads and, beside the tensors, what decoding needs to know.

    `heads` maps a head's name to the arguments of its class. `threshold` is the pairing probability above which the
    structure decoder accepts a pair, as tuned on validation data. `task` is what the model was fine-tuned for, as
    `rinalmo.tasks` remembers it.
    """

    config: ModelConfig
    alphabet: Alphabet = field(default_factory=Alphabet)
    heads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    threshold: float | None = None
    task: Mapping[str, Any] | None = None

    def with_heads(self, shapes: Shapes, head_config: HeadConfig, pooling: str = "cls") -> ModelSpec:
        """The same with the heads that tensors of these names and shapes belong to."""
        return replace(self, heads=head_shapes(shapes, head_config, pooling))

    @property
    def pooling(self) -> str:
        """What heads on whole sequences look at: "cls" or "mean"."""
        return next((str(options["pooling"]) for options in self.heads.values() if "pooling" in options), "cls")


class RiNALMo(nn.Module):
    """Encoder, heads, alphabet. Built without weights; `rinalmo.load` gives one with them."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec.config)
        for name, options in spec.heads.items():
            if name not in HEADS:
                raise CheckpointError(f"no head {name!r}; there are {', '.join(HEADS)}")
            self.add_module(name, HEADS[name](spec.config, **options))

    @property
    def config(self) -> ModelConfig:
        """Sizes of the encoder."""
        return self.spec.config

    @property
    def alphabet(self) -> Alphabet:
        """The tokens that this model's ids stand for."""
        return self.spec.alphabet

    def forward(self, ids: Int[Tensor, " tokens"], layout: Layout) -> EncoderOutput:
        """The encoder's states of a packed batch (`rinalmo.model.packing.pack`); heads are applied to them by name."""
        return self.encoder(ids, layout)

    def head(self, name: str) -> nn.Module:
        """One of the heads; raises if this model does not have it."""
        if name not in self.spec.heads:
            have = ", ".join(self.spec.heads) or "none"
            raise CheckpointError(f"this model has no {name}; its heads: {have}")
        return self.get_submodule(name)


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """Fill with fresh weights: normal of deviation `std`, biases 0, norms and betas 1."""
    for name, parameter in module.named_parameters():
        if name.endswith(("norm.weight", "beta")):
            nn.init.ones_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=std)
    for name, buffer in module.named_buffers():
        nn.init.constant_(buffer, float(name.endswith("std")))


def create(spec: ModelSpec, seed: int = 0) -> RiNALMo:
    """A model with fresh weights, the same for the same seed whatever was drawn before."""
    with torch.device("meta"):
        model = RiNALMo(spec)
    model.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone, which is all that is restored
        initialise(model, spec.config.initializer_range)
    return model


HEADS: dict[str, Callable[..., nn.Module]] = {
    "lm_head": MaskedLMHead,
    "pooler": Pooler,
    "sequence_head": lambda config, **options: SequenceHead(config.hidden_size, HeadConfig(**options)),
    "token_head": lambda config, **options: TokenHead(config.hidden_size, HeadConfig(**options)),
    "contact_head": lambda config, **options: ContactHead(config.hidden_size, HeadConfig(**options)),
    "structure_head": lambda config, **options: StructureHead(config.hidden_size, **options),
    "partner_head": lambda config, **options: PartnerHead(config.hidden_size, **options),
    "combiner": lambda config, **options: Combiner(**options),
    "ribosome_load_head": lambda config, **options: RibosomeLoadHead(config.hidden_size, **options),
    "splice_site_head": lambda config, **options: SpliceSiteHead(config.hidden_size, **options),
    "ncrna_family_head": lambda config, **options: NcrnaFamilyHead(config.hidden_size, **options),
}


def head_shapes(shapes: Shapes, head_config: HeadConfig, pooling: str = "cls") -> dict[str, dict[str, Any]]:
    """For each head that tensors of these names and shapes belong to, the arguments to build it with.

    What shapes cannot tell comes from `head_config` (activations, dropout, eps) and `pooling`.
    """
    names = [name for name in HEADS if any(key.startswith(f"{name}.") for key in shapes)]
    pooled = {} if pooling == "cls" else {"pooling": pooling}
    return {name: _options(name, shapes, head_config) | (pooled if name in _POOLING else {}) for name in names}


_POOLING = ("pooler", "splice_site_head", "ncrna_family_head")


def _options(name: str, shapes: Shapes, head_config: HeadConfig) -> dict[str, Any]:
    def size(key: str) -> int:
        full = f"{name}.{key}"
        if full not in shapes:
            raise CheckpointError(f"the tensors of {name} lack {full}")
        return shapes[full][0] if shapes[full] else 0

    blocks = len({key.split(".")[2] for key in shapes if key.startswith(f"{name}.blocks.")})
    match name:
        case "lm_head" | "pooler":
            return {}
        case "structure_head":
            channels, labels = size("projection.weight"), size("prediction.weight")
            return {"channels": channels, "num_blocks": blocks, "num_labels": labels}
        case "partner_head":
            channels = size("final_norm.weight")
            return {"channels": channels, "num_blocks": blocks, "rank": size("left.weight") // channels}
        case "combiner":
            return {"channels": size("pair_norm.weight"), "num_blocks": blocks}
        case "ribosome_load_head":
            return {"channels": size("projection.weight"), "num_blocks": blocks}
        case "splice_site_head" | "ncrna_family_head":
            return {"width": size("dense.weight"), "num_labels": size("decoder.weight")}
    has_transform = f"{name}.transform.dense.weight" in shapes
    transform = (head_config.transform or "nonlinear") if has_transform else None
    has_bias = f"{name}.decoder.bias" in shapes
    return {**vars(head_config), "num_labels": size("decoder.weight"), "transform": transform, "bias": has_bias}

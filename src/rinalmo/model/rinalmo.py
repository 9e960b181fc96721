"""`RiNALMo`: an encoder with its heads and its alphabet, the model that the rest of the package works with.

A head is an attribute with its name. Names and shapes of a file's tensors give its heads and their sizes
(`ModelSpec.with_heads`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from rinalmo.errors import CheckpointError
from rinalmo.model.config import ModelConfig
from rinalmo.model.encoder import Encoder, EncoderOutput
from rinalmo.model.heads import (
    ClassificationHead,
    ContactHead,
    HeadConfig,
    JointHead,
    LinearHead,
    MaskedLMHead,
    Pooler,
    ProblemType,
    RibosomeLoadHead,
    SequenceHead,
    StructureHead,
    TokenHead,
)
from rinalmo.model.packing import Layout
from rinalmo.model.structure_heads import Combiner, PartnerHead
from rinalmo.rna.alphabet import Alphabet

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build and use a `RiNALMo`, except its weights.

    Attributes:
        config: Sizes of the encoder.
        alphabet: The tokens that ids stand for.
        heads: For each head's name the arguments of its class.
        threshold: Pairing probability above which the structure decoder accepts a pair, tuned on validation data.
        task: The task that the model was fine-tuned for, with its settings (`rinalmo.tasks`).
        problem_type: Of the head on sequences or tokens, as transformers' configs name it; None if that is not known.
        labels: Names of that head's outputs.
    """

    config: ModelConfig
    alphabet: Alphabet = field(default_factory=Alphabet)
    heads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    threshold: float | None = None
    task: Mapping[str, Any] | None = None
    problem_type: ProblemType | None = None
    labels: Sequence[str] = ()

    def with_heads(self, shapes: Shapes, head_config: HeadConfig, pooling: str = "cls") -> ModelSpec:
        """The same with the heads that have tensors of these names and shapes.

        What shapes do not determine comes from `head_config` (activations, dropout, eps) and `pooling`.
        """
        heads: dict[str, dict[str, Any]] = {}
        for name in HEADS:
            own = {key.removeprefix(f"{name}."): shape for key, shape in shapes.items() if key.startswith(f"{name}.")}
            if own:
                heads[name] = _head_options(name, own, head_config)
                if pooling != "cls" and name in _POOLING:
                    heads[name]["pooling"] = pooling
        return replace(self, heads=heads)

    @property
    def pooling(self) -> str:
        """How heads on whole sequences pool tokens: "cls" or "mean"."""
        return next((str(options["pooling"]) for options in self.heads.values() if "pooling" in options), "cls")


class RiNALMo(nn.Module):
    """Encoder, heads, alphabet. Built without weights; `rinalmo.load` returns one with weights.

    Attributes:
        spec: What the model is built from.
        config: Sizes of the encoder.
        alphabet: The tokens that ids stand for.
        encoder: The encoder; each head is an attribute of its own name beside it.
        adapter_sha256: Of the adapter that was merged into the weights; empty if there was none.
    """

    adapter_sha256 = ""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.config, self.alphabet = spec, spec.config, spec.alphabet
        self.encoder = Encoder(spec.config)
        for name, options in spec.heads.items():
            if name not in HEADS:
                raise CheckpointError(f"no head {name!r}; there are {', '.join(HEADS)}")
            self.add_module(name, HEADS[name](spec.config, **options))

    def forward(self, ids: Int[Tensor, " tokens"], layout: Layout) -> EncoderOutput:
        """The encoder's states of a packed batch (`rinalmo.model.packing.pack`), without any head."""
        return self.encoder(ids, layout)

    def head(self, name: str) -> nn.Module:
        """One of the heads; raises CheckpointError if this model does not have it."""
        if name not in self.spec.heads:
            raise CheckpointError(f"this model has no {name}; its heads: {', '.join(self.spec.heads) or 'none'}")
        return self.get_submodule(name)


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """Draw fresh weights: normal of standard deviation `std`, biases 0, norms and betas 1."""
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
    """A model with fresh weights, which depend on the seed alone, not on the state of torch's generator."""
    with torch.device("meta"):
        model = RiNALMo(spec)
    model.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would also seed GPUs
        initialise(model, spec.config.initializer_range)
    return model


HEADS: dict[str, Callable[..., nn.Module]] = {
    "lm_head": MaskedLMHead,
    "pooler": Pooler,
    "sequence_head": lambda config, **options: SequenceHead(config.hidden_size, HeadConfig(**options)),
    "token_head": lambda config, **options: TokenHead(config.hidden_size, HeadConfig(**options)),
    "linear_head": lambda config, **options: LinearHead(config.hidden_size, **options),
    "joint_head": lambda config, **options: JointHead(config.hidden_size, **options),
    "contact_head": lambda config, **options: ContactHead(config.hidden_size, HeadConfig(**options)),
    "structure_head": lambda config, **options: StructureHead(config.hidden_size, **options),
    "partner_head": lambda config, **options: PartnerHead(config.hidden_size, **options),
    "combiner": lambda config, **options: Combiner(**options),
    "ribosome_load_head": lambda config, **options: RibosomeLoadHead(config.hidden_size, **options),
    "splice_site_head": lambda config, width=128, num_labels=1, **options: ClassificationHead(
        config.hidden_size, width, num_labels, **options
    ),
    "ncrna_family_head": lambda config, width=256, num_labels=88, **options: ClassificationHead(
        config.hidden_size, width, num_labels, **options
    ),
}


_POOLING = ("pooler", "splice_site_head", "ncrna_family_head")


def _head_options(name: str, shapes: Shapes, head_config: HeadConfig) -> dict[str, Any]:
    """The arguments of a head, from the shapes of its tensors; their names are without the head's."""

    def size(key: str) -> int:
        if key not in shapes:
            raise CheckpointError(f"the tensors of {name} lack {name}.{key}")
        return shapes[key][0] if shapes[key] else 0

    blocks = len({key.split(".")[1] for key in shapes if key.startswith("blocks.")})
    match name:
        case "lm_head" | "pooler":
            return {}
        case "linear_head":
            if len(shapes.get("decoder.weight", ())) != 2:
                raise CheckpointError("the tensors of linear_head lack linear_head.decoder.weight")
            return {"num_labels": size("decoder.weight"), "inputs": shapes["decoder.weight"][1]}
        case "joint_head":
            if len(shapes.get("dense.weight", ())) != 2:
                raise CheckpointError("the tensors of joint_head lack joint_head.dense.weight")
            return {"num_labels": size("decoder.weight"), "inputs": shapes["dense.weight"][1]}
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
    transform = (head_config.transform or "nonlinear") if "transform.dense.weight" in shapes else None
    labels, has_bias = size("decoder.weight"), "decoder.bias" in shapes
    return {**vars(head_config), "num_labels": labels, "transform": transform, "bias": has_bias}

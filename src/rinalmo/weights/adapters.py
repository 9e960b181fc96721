"""LoRA adapters in PEFT's format: a folder with `adapter_config.json` and `adapter_model.safetensors`.

An adapter holds, for each matrix W that it changes, a pair of low-rank matrices A and B, and whole tensors, such as
those of a new head. It is merged into its base model as that is read, W + alpha / rank · B A, or computed beside it,
W x + alpha / rank · B A x (Hu et al. 2021, arXiv:2106.09685), so that several act over one base in memory. Ours has a
`config.json` too, from which its task is known.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from rinalmo.errors import CheckpointError
from rinalmo.io.files import atomic_write_folder
from rinalmo.model.rinalmo import Encoder
from rinalmo.weights.layouts import listed

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"  # as PEFT wrote it before version 0.6
# Heads that PEFT's task types train and save are under `classifier` in the Hugging Face classes.
CLASSIFIER_PARTS = ("pooler", "sequence_head", "token_head")
PREFIX = "base_model.model."


class LowRank(NamedTuple):
    """The change of one matrix or convolution: `scale` · B A."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the tensor that it changes."""
        return (self.b.shape[0], *self.a.shape[1:])

    def merged(self, weight: Tensor) -> Tensor:
        """The changed weight, fp32."""
        delta = self.b.float().flatten(1) @ self.a.float().flatten(1) * self.scale
        return weight.float() + delta.view(weight.shape)


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter as read from its folder.

    Attributes:
        path: The folder.
        base: Name or path of its base model; None if it names none.
        low_rank: The changes, by our names of the changed tensors.
        whole: Tensors that replace those of the base, or are new, by our names.
        config: The `config.json` of the fine-tuned model; empty if there is none.
        sha256: Of the file of tensors.
    """

    path: Path
    base: str | None
    low_rank: Mapping[str, LowRank]
    whole: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def by_block(self, count: int) -> list[dict[str, LowRank]]:
        """The changes of each of the encoder's blocks, by their names within the block."""
        blocks: list[dict[str, LowRank]] = [{} for _ in range(count)]
        for name, change in self.low_rank.items():
            if match := re.fullmatch(r"encoder\.blocks\.(\d+)\.(.+)", name):
                blocks[int(match[1])][match[2]] = change
        return blocks


def low_rank(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, LowRank]:
    """The changes that an adapter's tensors make, by the names of the changed ones.

    Args:
        tensors: By our names of the changed modules, followed by `lora_A.weight` or `lora_B.weight`.
        settings: PEFT's config.

    Raises:
        ValueError: A tensor is not that of plain LoRA.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.+)\.lora_([AB])\.weight", name):
            pairs.setdefault(match[1], {})[match[2]] = tensor
        elif "lora_" in name:
            raise ValueError(f"{name} is not plain LoRA")
    changes = {}
    for name, pair in pairs.items():
        if len(pair) < 2:
            raise ValueError(f"{name} has only one of lora_A and lora_B")
        changes[f"{name}.weight"] = LowRank(pair["A"], pair["B"], _scale(settings, name, pair))
    return changes


def _scale(settings: Mapping[str, Any], name: str, pair: Mapping[str, Tensor]) -> float:
    alpha, rank, patterns = settings.get("lora_alpha", 8), pair["A"].shape[0], settings.get("alpha_pattern") or {}
    try:
        alpha = next((patterns[each] for each in patterns if re.fullmatch(rf"(.*\.)?({each})", name)), alpha)
    except (re.error, TypeError):
        raise ValueError(f"alpha_pattern {patterns!r} is no mapping of regular expressions") from None
    if not isinstance(alpha, int | float) or not rank:
        raise ValueError(f"alpha {alpha!r} and rank {rank} of {name} are no scale")
    return float(alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank)


class AdaptedLinear(nn.Linear):
    """A linear layer with an adapter beside its weight, which it shares with the layer that it was made from."""

    a: Tensor
    b: Tensor

    def __init__(self, layer: nn.Linear, change: LowRank) -> None:
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("a", change.a.to(layer.weight), persistent=False)
        self.register_buffer("b", (change.b * change.scale).to(layer.weight), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + F.linear(F.linear(input, self.a), self.b)


def with_adapter(encoder: Encoder, changes: Sequence[Mapping[str, LowRank]]) -> Encoder:
    """A copy of an encoder that shares its tensors, with changes of each block's matrices beside these."""
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    encoder = copy.deepcopy(encoder, shared)
    for block, own in zip(encoder.blocks, changes, strict=True):
        for name, change in own.items():
            layer = name.removesuffix(".weight")
            block.set_submodule(layer, AdaptedLinear(block.get_submodule(layer), change))  # type: ignore[arg-type]
    return encoder


def check_fits(adapter: LoraAdapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless the base with these tensors has all those that the adapter changes."""
    wrong = [name for name, change in adapter.low_rank.items() if shapes.get(name) != change.shape]
    if wrong:
        raise CheckpointError(
            f"the adapter {adapter.path} does not fit this model; tensors of another shape: {listed(wrong)}"
        )


def write_adapter(
    folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write an adapter atomically; `settings` are those of PEFT's config, `tensors` have our names."""
    named = {}
    for name, tensor in tensors.items():
        inner = "classifier." if name.split(".")[0] in CLASSIFIER_PARTS else ""
        named[PREFIX + inner + name] = tensor.contiguous()
    try:
        with atomic_write_folder(folder) as partial:
            save_file(named, partial / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            for name, values in ((ADAPTER_CONFIG, settings), ("config.json", config)):
                (partial / name).write_text(json.dumps(dict(values), indent=2) + "\n", encoding="utf-8", newline="\n")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written ({error})") from None

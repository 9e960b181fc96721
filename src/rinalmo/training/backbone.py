"""The model of a fine-tuning run: the backbone of another one with fresh heads, and how much of it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.model.rinalmo import ModelSpec, RiNALMo, create
from rinalmo.tasks.base import Example, Task
from rinalmo.training.finetune_config import BackboneRecipe, FinetuneRecipe
from rinalmo.training.optim import Trained
from rinalmo.weights.checkpoint import load

_MATRICES = ["qkv", "output", "gate_up", "down"]


def build(recipe: FinetuneRecipe, task: Task, examples: Sequence[Example]) -> tuple[RiNALMo, list[str]]:
    """The backbone of `recipe.init` with the task's heads, and notes.

    The masked-LM head stays beside them untrained, so that the model can still fill masks. A model of the same task
    keeps its heads and is trained further.
    """
    given = load(recipe.init, dtype=torch.float32)
    names = ("attention_dropout", "hidden_dropout")
    dropouts = {name: value for name in names if (value := getattr(recipe.backbone, name)) is not None}
    heads: dict[str, Any] = {"lm_head": {}} if "lm_head" in given.spec.heads else {}
    remembered = {"name": task.name, **task.settings()}
    spec = ModelSpec(replace(given.config, **dropouts), given.alphabet, heads | task.heads(), task=remembered)
    model = create(spec, recipe.train.seed)
    goes_on = given.spec.task == remembered
    task.prepare(model, examples)
    own = {name: tensor for name, tensor in given.state_dict().items() if goes_on or not _is_new(name, task)}
    known = model.state_dict().keys()
    model.load_state_dict({name: tensor for name, tensor in own.items() if name in known}, strict=False)
    return model, [f"{recipe.init} was trained for this task; its head is trained further"] if goes_on else []


def _is_new(name: str, task: Task) -> bool:
    return name.split(".")[0] in task.heads()


def trained(model: RiNALMo, task: Task, recipe: BackboneRecipe) -> Callable[[int], list[Trained]]:
    """What learns and from when on, once it is known how many steps an epoch has. All other parameters are frozen."""
    model.requires_grad_(False)
    heads = [parameter for name in task.heads() for parameter in model.head(name).parameters()]
    match recipe.mode:
        case "full":
            groups = [(0, [*model.encoder.parameters(), *heads], 1.0)]
        case "frozen":
            groups = [(0, heads, 1.0)]
        case "lora":
            groups = [(0, [*_add_lora(model, recipe), *heads], 1.0)]
        case "gradual":
            groups = [(0, heads, 1.0), *_stages(model, recipe)]
    for _, parameters, _ in groups:
        for parameter in parameters:
            parameter.requires_grad_(True)
    return lambda steps: [Trained(parameters, epoch * steps, scale) for epoch, parameters, scale in groups]


def _stages(model: RiNALMo, recipe: BackboneRecipe) -> list[tuple[int, list[nn.Parameter], float]]:
    if not recipe.stages:
        raise InputError("backbone.mode gradual needs backbone.stages, such as [{epoch: 3, blocks: 2}]")
    blocks = list(model.encoder.blocks)
    groups = []
    for number, stage in enumerate(recipe.stages):
        count = len(blocks) if stage.blocks is None else min(stage.blocks, len(blocks))
        taken = blocks[len(blocks) - count :]
        del blocks[len(blocks) - count :]
        parameters = [parameter for block in taken for parameter in block.parameters()]
        parameters += [] if number else model.encoder.final_norm.parameters()
        groups.append((stage.epoch, parameters, recipe.scale))
    return groups


def _add_lora(model: RiNALMo, recipe: BackboneRecipe) -> list[nn.Parameter]:
    """Put low-rank additions beside every matrix of the blocks; returns their parameters."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise MissingExtraError("peft", "lora", "backbone.mode lora") from None
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=_MATRICES, bias="none")
    inject_adapter_in_model(config, model.encoder)
    return [parameter for name, parameter in model.encoder.named_parameters() if "lora_" in name]


def merged(model: RiNALMo) -> RiNALMo:
    """A plain model in which the low-rank additions are part of the matrices."""
    from peft.tuners.lora import Linear

    state = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            weight = f"{name}.base_layer.weight"
            state[weight] = state[weight] + module.get_delta_weight("default").detach()
    with torch.device("meta"):
        plain = RiNALMo(model.spec)
    plain.load_state_dict({name.replace(".base_layer.", "."): t for name, t in state.items()}, assign=True)
    return plain

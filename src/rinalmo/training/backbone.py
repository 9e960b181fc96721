"""The model of a fine-tuning run: the backbone of another one with fresh heads, and how much of it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from rinalmo.errors import CheckpointError, InputError, MissingExtraError
from rinalmo.model.rinalmo import ModelSpec, RiNALMo, create
from rinalmo.tasks.base import Example, Task
from rinalmo.tasks.registry import settings_of, task_of
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
    spec = ModelSpec(replace(given.config, **dropouts), given.alphabet, heads | task.heads(), task=settings_of(task))
    model = create(spec, recipe.train.seed)
    goes_on = _was_trained_for(given.spec, task)
    task.prepare(model, examples)
    own = {name: tensor for name, tensor in given.state_dict().items() if goes_on or not _is_new(name, task)}
    known = model.state_dict().keys()
    model.load_state_dict({name: tensor for name, tensor in own.items() if name in known}, strict=False)
    return model, [f"{recipe.init} was trained for this task; its head is trained further"] if goes_on else []


def _was_trained_for(spec: ModelSpec, task: Task) -> bool:
    """Whether the model's head is the task's, whatever it saw of the sequences."""
    try:
        before = task_of(spec)
    except CheckpointError:
        return False
    return (before.name, before.settings()) == (task.name, task.settings())


def _is_new(name: str, task: Task) -> bool:
    return name.split(".")[0] in task.heads()


def trained(model: RiNALMo, task: Task, recipe: BackboneRecipe) -> Callable[[int], list[Trained]]:
    """What learns and from when on, once it is known how many steps an epoch has. All other parameters are frozen.

    Parameters are looked up by name when they are asked for: sharding puts others in their place.
    """
    if recipe.mode == "lora":
        _add_lora(model, recipe)
    groups = _groups(model, tuple(f"{name}." for name in task.heads()), recipe)
    learning = {name for _, names, _ in groups for name in names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)

    def found(steps: int) -> list[Trained]:
        named = dict(model.named_parameters())
        return [Trained([named[name] for name in names], epoch * steps, scale) for epoch, names, scale in groups]

    return found


def _groups(model: RiNALMo, heads: tuple[str, ...], recipe: BackboneRecipe) -> list[tuple[int, list[str], float]]:
    """From which epoch on, which parameters, at what share of the rate."""
    names = [name for name, _ in model.named_parameters()]
    head = [name for name in names if name.startswith(heads)]
    match recipe.mode:
        case "full":
            return [(0, [name for name in names if name.startswith("encoder.")] + head, 1.0)]
        case "frozen":
            return [(0, head, 1.0)]
        case "lora":
            return [(0, [name for name in names if "lora_" in name] + head, 1.0)]
        case "gradual":
            return [(0, head, 1.0), *_stages(names, len(model.encoder.blocks), recipe)]


def _stages(names: list[str], blocks: int, recipe: BackboneRecipe) -> list[tuple[int, list[str], float]]:
    if not recipe.stages:
        raise InputError("backbone.mode gradual needs backbone.stages, such as [{epoch: 3, blocks: 2}]")
    groups = []
    for number, stage in enumerate(recipe.stages):
        below = 0 if stage.blocks is None else max(0, blocks - stage.blocks)
        prefixes = [f"encoder.blocks.{block}." for block in range(below, blocks)]
        prefixes += [] if number else ["encoder.final_norm."]
        groups.append((stage.epoch, [name for name in names if name.startswith(tuple(prefixes))], recipe.scale))
        blocks = below
    return groups


def _add_lora(model: RiNALMo, recipe: BackboneRecipe) -> None:
    """Put low-rank additions beside every matrix of the blocks."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise MissingExtraError("peft", "lora", "backbone.mode lora") from None
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=_MATRICES, bias="none")
    inject_adapter_in_model(config, model.encoder)


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

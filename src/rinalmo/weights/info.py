"""The model card's table for a name, a file or a config."""

from __future__ import annotations

from pathlib import Path

from rinalmo.model.config import PRESETS, ModelConfig
from rinalmo.model.cost import PUBLISHED_TOKENS, Specification, specification
from rinalmo.weights.catalog import find
from rinalmo.weights.checkpoint import read


def info(model: str | Path | ModelConfig | None = None, *, tokens: int = PUBLISHED_TOKENS) -> list[Specification]:
    """The specification of a preset, a model's name, folder or file, or a config; of all presets by default.

    Costs are for one sequence of `tokens` tokens. A published model is not fetched for this: its preset says it all.
    """
    if model is None:
        return [specification(name, ModelConfig.preset(name), tokens) for name in PRESETS]
    if isinstance(model, ModelConfig):
        return [specification("custom", model, tokens)]
    entry = find(str(model)) if not Path(model).exists() else None
    preset = entry.name if entry else str(model)
    if preset in PRESETS:
        return [specification(preset, ModelConfig.preset(preset), tokens)]
    return [specification(str(model), read(model).spec.config, tokens)]

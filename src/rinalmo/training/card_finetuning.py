"""The parts of a card that tell of fine-tuning."""

from __future__ import annotations

from pathlib import Path

from rinalmo.training.card_parts import Run, curve, machine, table
from rinalmo.training.finetune_config import FinetuneRecipe

_INTRO = "The state of the best validation figure was kept. On the way there:"


def data(run: Run, recipe: FinetuneRecipe) -> str:
    """Which examples it saw."""
    counts = run.start.get("examples", {})
    names = {name: path for name in counts if (path := getattr(recipe.data, name))}
    rows = [(name, f"{count:,}", _named(names.get(name)), _sum(recipe, name)) for name, count in counts.items()]
    split = "" if recipe.data.validation else "\n\nSets without a file are drawn from the training examples."
    crop, at = recipe.data.crop, recipe.data.crop_at
    seen = f" Of a sequence the model sees {crop} nucleotides at most, those at its {at}." if crop else ""
    return f"## Examples\n\nTask: {recipe.task}.{seen}\n\n{table(('Set', 'Examples', 'File', 'SHA-256'), rows)}{split}"


def procedure(run: Run, recipe: FinetuneRecipe) -> str:
    """How it was trained."""
    last, backbone, optimizer = run.last, recipe.backbone, recipe.optimizer
    stages = "; ".join(f"{stage.blocks or 'all'} blocks from epoch {stage.epoch} on" for stage in backbone.stages)
    learns = {
        "full": "the whole model learns",
        "frozen": "the head learns, the backbone is frozen",
        "gradual": f"the head learns, and at {backbone.scale:g} times its rate {stages}",
        "lora": f"the head and low-rank additions of rank {backbone.rank} learn",
    }[backbone.mode]
    facts = [
        f"from {recipe.init}; {learns}",
        f"{last.get('step', 0):,} steps of {recipe.data.sequences_per_batch} sequences",
        f"AdamW {optimizer.betas}, weight decay {optimizer.weight_decay:g}, norm at most {recipe.train.clip:g}",
        f"learning rate {optimizer.lr:g}, {recipe.schedule.shape} to {recipe.schedule.min_lr:g}",
        *machine(run),
    ]
    return "## Training procedure\n\n" + "\n".join(f"- {fact}" for fact in facts)


def figures(run: Run, recipe: FinetuneRecipe) -> str:
    """What it reaches on the test set, if it has one, and on the way."""
    parts = []
    if run.evaluation:
        found = run.evaluation["figures"].items()
        rows = [(name, f"{f['value']:.4f}", f"{f['low']:.4f} – {f['high']:.4f}") for name, f in found]
        said = f"On {run.evaluation['count']:,} test examples; {run.evaluation['interval']}:"
        parts.append(f"{said}\n\n{table(('Figure', 'Value', 'Interval'), rows)}")
    if run.validations:
        names = [key.removeprefix("validation/") for key in run.validations[-1] if key.count("/") == 1][:6]
        parts.append(f"{_INTRO}\n\n{curve(run, names)}")
    return "## Evaluation\n\n" + "\n\n".join(parts) if parts else ""


def _named(path: str | None) -> str:
    return f"`{Path(path).name}`" if path else ""


def _sum(recipe: FinetuneRecipe, name: str) -> str:
    return f"`{recipe.data.fingerprints[name][:16]}…`" if name in recipe.data.fingerprints else ""


PARTS = (data, procedure, figures)

"""The parts of a card that tell of pre-training."""

from __future__ import annotations

from rinalmo.training.card_parts import Run, curve, machine, run_of_model, table
from rinalmo.training.config import Recipe

_FIGURES = ("loss", "accuracy", "perplexity")


def data(run: Run, recipe: Recipe) -> str:
    """Which sequences it saw."""
    given, store = recipe.data, run.start.get("store", {})
    lines = []
    if store:
        lines.append(
            f"{store['sequences']:,} sequences ({store['nucleotides']:,} nt) in {store['clusters']:,} clusters, "
            f"{store['train']:,} sequences of them for training, from: {', '.join(store['sources'])}."
        )
    lines.append(f"Token store {given.fingerprint}.")
    weights = given.weights
    if weights.source or weights.family or weights.cluster_exponent:
        shares = {
            "by source": weights.source,
            "by family": weights.family,
            "cluster exponent": weights.cluster_exponent,
        }
        said = "; ".join(f"{what} {value}" for what, value in shares.items() if value)
        lines.append(f"Clusters are drawn with weights: {said}.")
    else:
        lines.append("Each cluster gives one sequence an epoch, another one each time.")
    lines.append(f"Sequences longer than {given.max_length:,} nt are cropped at random, crops without CLS and EOS.")
    return "## Training data\n\n" + "\n".join(lines)


def procedure(run: Run, recipe: Recipe) -> str:
    """How it was trained; a run that went on from another one's model tells of that one too."""
    parts = ["## Training procedure\n\n" + _facts(run, recipe)]
    while (earlier := run_of_model(recipe.init)) and isinstance(earlier.recipe, Recipe):
        run, recipe = earlier, earlier.recipe
        way = curve(run, ("loss", "accuracy"))
        parts.append(f"Before that, in the run `{run.name}`:\n\n{_facts(run, recipe)}\n\n{way}")
    return "\n\n".join(parts)


def _facts(run: Run, recipe: Recipe) -> str:
    last = run.last
    given, masking, optimizer, schedule = recipe.data, recipe.data.masking, recipe.optimizer, recipe.schedule
    size, what = (
        (given.sequences_per_batch, "sequences") if given.sequences_per_batch else (given.tokens_per_batch, "tokens")
    )
    decay = f"{schedule.decay_steps:,} steps" if schedule.decay_steps else "the rest of the run"
    kept = 1 - masking.masked - masking.replaced
    facts = [
        f"masked language modelling: {masking.selected:.0%} of the nucleotides, of which {masking.masked:.0%} are "
        f"masked, {masking.replaced:.0%} replaced by another nucleotide, {kept:.0%} kept; cross-entropy on those only",
        f"{last.get('step', 0):,} steps of {size:,} {what}, {last.get('tokens', 0):,.0f} tokens",
        f"AdamW {optimizer.betas}, weight decay {optimizer.weight_decay:g} on matrices, gradient norm at most "
        f"{recipe.train.clip:g}",
        f"crops of at most {given.max_length:,} nt",
        f"learning rate {schedule.start_lr:g} to {optimizer.lr:g} over {schedule.warmup_steps:,} steps, then cosine to "
        f"{schedule.min_lr:g} over {decay}",
        *machine(run),
    ]
    return "\n".join(f"- {fact}" for fact in facts)


def validation(run: Run, recipe: Recipe) -> str:
    """What it reaches."""
    if not run.validations:
        return ""
    last = run.validations[-1]
    names = [key.removesuffix("/loss") for key in last if key.startswith("validation/") and key.endswith("/loss")]
    rows = [
        (
            name.removeprefix("validation").strip("/") or "all",
            *(f"{last[f'{name}/{figure}']:.3f}" for figure in _FIGURES),
        )
        for name in names
    ]
    figures = table(("Source", "Cross-entropy (nats)", "Accuracy", "Perplexity"), rows)
    intro = f"On the validation split, masked once and for all, after step {last['step']:,}:"
    way = curve(run, ("loss", "accuracy"))
    return f"## Validation\n\n{intro}\n\n{figures}\n\nOn the way there:\n\n{way}"


PARTS = (data, procedure, validation)

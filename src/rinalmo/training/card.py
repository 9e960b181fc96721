"""The model card of a run or of any model: what it is, what it was trained on and how, what it reaches, what it says.

Every figure is read from the run's own files or computed from the model when the card is written; what is not known
is left out, not guessed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import rinalmo
from rinalmo.durable import replacing
from rinalmo.errors import InputError
from rinalmo.inference.fill_mask import fill_mask
from rinalmo.model.cost import specification
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.training.config import Recipe
from rinalmo.training.log import PLOT, read_log
from rinalmo.training.run_folder import RECIPE, RunFolder
from rinalmo.weights.checkpoint import load

EXAMPLES = {
    "HIV-1": "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU",
    "microRNA-21": "UAGC<mask>UAUCAGACUGAUGUUGA",
}
_CURVE_ROWS = 12
_FIGURES = ("loss", "accuracy", "perplexity")


@dataclass(frozen=True)
class Run:
    """What a run folder says about the training of its model."""

    recipe: Recipe
    starts: Sequence[dict[str, Any]]
    log: Sequence[dict[str, Any]]

    @classmethod
    def read(cls, folder: RunFolder) -> Run:
        """Read a run's files."""
        return cls(folder.recipe(), folder.starts(), read_log(folder.path))

    @property
    def validations(self) -> list[dict[str, Any]]:
        """The validation lines of the log."""
        return [line for line in self.log if "validation/loss" in line]

    @property
    def last(self) -> dict[str, Any]:
        """The last training line of the log."""
        return next((line for line in reversed(self.log) if "loss" in line), {})


def write_card(
    source: str | Path,
    output: Path | None = None,
    *,
    name: str | None = None,
    license_id: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the card of a run folder or a model; by default as README.md into the model's folder. Returns the path.

    Raises InputError if there is a card already and `overwrite` is not set, if the run is not finished, or if the
    model is a name or a file, which have no folder to write into, and no `output` is given.
    """
    is_run = (Path(source) / RECIPE).is_file()
    folder = RunFolder(source) if is_run else None
    if folder and not folder.model.is_dir():
        raise InputError(
            f"{source}: the run is not finished, it has no model yet; go on with rinalmo pretrain --resume"
        )
    home = folder.model if folder else Path(source)
    if output is None and not home.is_dir():
        raise InputError(f"{source}: is no folder to write a card into; say where with --output")
    target = output or home / "README.md"
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; choose another name or ask to overwrite it")
    run = Run.read(folder) if folder else None
    curve = folder.path / PLOT if folder and (folder.path / PLOT).is_file() else None
    text = card(
        load(home if folder else source), name or Path(source).name, run, license_id, with_plot=curve is not None
    )
    with replacing(target) as file:
        file.write(text.encode())
    if curve and target.parent.resolve() != folder.path.resolve():  # type: ignore[union-attr]
        shutil.copyfile(curve, target.parent / PLOT)
    return target


def card(
    model: RiNALMo, name: str, run: Run | None = None, license_id: str | None = None, *, with_plot: bool = False
) -> str:
    """The card's text."""
    examples = (
        {title: _answers(model, text) for title, text in EXAMPLES.items()} if "lm_head" in model.spec.heads else {}
    )
    parts = [_header(examples, license_id), _summary(model, name, run), _specification(model, name, run)]
    if run:
        parts += [_data(run), _procedure(run), _validation(run, with_plot)]
    if examples:
        parts.append(_examples(examples))
    return "\n\n".join(part for part in (*parts, _use()) if part) + "\n"


def _answers(model: RiNALMo, text: str) -> list[tuple[str, float]]:
    return [(found.token_str, found.score) for found in fill_mask(text, model)[0][0]]


def _header(examples: dict[str, list[tuple[str, float]]], license_id: str | None) -> str:
    widget = [
        {
            "example_title": title,
            "text": EXAMPLES[title],
            "output": [{"label": token, "score": round(score, 4)} for token, score in answers],
        }
        for title, answers in examples.items()
    ]
    values = {
        "language": "rna",
        "library_name": "rinalmo",
        "pipeline_tag": "fill-mask",
        "license": license_id,
        "tags": ["Biology", "RNA", "masked-language-modelling"],
        "mask_token": "<mask>",
        "widget": widget,
    }
    kept = {key: value for key, value in values.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}---"


def _summary(model: RiNALMo, name: str, run: Run | None) -> str:
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    started = f"continued from {run.recipe.init}" if run and run.recipe.init else "trained from scratch"
    made = f", {started} with rinalmo {run.starts[-1]['rinalmo']}" if run and run.starts else ""
    return f"# {name}\n\nA RiNALMo RNA language model of {size:.2f} M parameters, heads included{made}."


def _specification(model: RiNALMo, name: str, run: Run | None) -> str:
    row = specification(name, model.config)
    cells = {
        "Layers": row.num_layers,
        "Hidden size": row.hidden_size,
        "Heads": row.num_heads,
        "Intermediate size": row.intermediate_size,
        "Parameters (M)": f"{row.parameters / 1e6:.2f}",
        "FLOPs (G)": f"{row.flops / 1e9:.2f}",
        "MACs (G)": f"{row.macs / 1e9:.2f}",
        "Longest crop (nt)": run.recipe.data.max_length if run else "not recorded",
    }
    note = f"Parameters of encoder and pooler; FLOPs and MACs for one sequence of {row.tokens} tokens through both."
    return f"## Specification\n\n{_table(list(cells), [list(cells.values())])}\n\n{note}"


def _data(run: Run) -> str:
    data, store = run.recipe.data, run.starts[-1].get("store", {}) if run.starts else {}
    lines = []
    if store:
        lines.append(
            f"{store['sequences']:,} sequences ({store['nucleotides']:,} nt) in {store['clusters']:,} clusters, "
            f"{store['train']:,} sequences of them for training, from: {', '.join(store['sources'])}."
        )
    lines.append(f"Token store {data.fingerprint}.")
    weights = data.weights
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
    lines.append(f"Sequences longer than {data.max_length:,} nt are cropped at random, crops without CLS and EOS.")
    return "## Training data\n\n" + "\n".join(lines)


def _procedure(run: Run) -> str:
    recipe, last = run.recipe, run.last
    data, masking, optimizer, schedule = recipe.data, recipe.data.masking, recipe.optimizer, recipe.schedule
    batch = (
        f"{data.sequences_per_batch:,} sequences" if data.sequences_per_batch else f"{data.tokens_per_batch:,} tokens"
    )
    decay = f"{schedule.decay_steps:,} steps" if schedule.decay_steps else "the rest of the run"
    start = run.starts[-1] if run.starts else {}
    kept = 1 - masking.masked - masking.replaced
    facts = [
        f"masked language modelling: {masking.selected:.0%} of the nucleotides, of which {masking.masked:.0%} are "
        f"masked, {masking.replaced:.0%} replaced by another nucleotide, {kept:.0%} kept; cross-entropy on those only",
        f"{last.get('step', 0):,} steps of {batch}, {last.get('tokens', 0):,.0f} tokens",
        f"AdamW {optimizer.betas}, weight decay {optimizer.weight_decay:g} on matrices, gradient norm at most "
        f"{recipe.train.clip:g}",
        f"learning rate {schedule.start_lr:g} to {optimizer.lr:g} over {schedule.warmup_steps:,} steps, then cosine to "
        f"{schedule.min_lr:g} over {decay}",
        f"{recipe.train.precision}, processes × threads: {start.get('processes', 1)} × {start.get('threads', 1)}, "
        f"{last.get('seconds', 0) / 3600:.2f} h, {last.get('tokens_per_second', 0):,.0f} tokens/s",
        f"torch {start.get('torch')}, python {start.get('python')}, {start.get('machine')}",
    ]
    return "## Training procedure\n\n" + "\n".join(f"- {fact}" for fact in facts)


def _validation(run: Run, with_plot: bool) -> str:
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
    table = _table(("Source", "Cross-entropy (nats)", "Accuracy", "Perplexity"), rows)
    every = max(1, -(-len(run.validations) // _CURVE_ROWS))
    picked = run.validations[::-1][::every][::-1]
    curve = _table(
        ("Step", "Cross-entropy", "Accuracy"),
        [
            (f"{line['step']:,}", f"{line['validation/loss']:.3f}", f"{line['validation/accuracy']:.3f}")
            for line in picked
        ],
    )
    plot = f"\n\n![Loss by step]({PLOT})" if with_plot else ""
    intro = f"On the validation split, masked once and for all, after step {last['step']:,}:"
    return f"## Validation\n\n{intro}\n\n{table}\n\nOn the way there:\n\n{curve}{plot}"


def _examples(examples: dict[str, list[tuple[str, float]]]) -> str:
    rows = [
        (title, f"`{EXAMPLES[title]}`", ", ".join(f"{token} {score:.4f}" for token, score in answers))
        for title, answers in examples.items()
    ]
    return "## Examples\n\n" + _table(("RNA", "Input", "Output"), rows)


def _use() -> str:
    return (
        "## Use\n\n```python\nimport rinalmo\n\n"
        'rinalmo.fill_mask("GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU", "path/to/this/folder")\n'
        'rinalmo.embed(["UAGCUUAUCAGACUGAUGUUGA"], "path/to/this/folder")\n```\n\n'
        f"Written by rinalmo {rinalmo.__version__}."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)

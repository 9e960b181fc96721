"""What the cards of all runs are made from: a run's own files, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import rinalmo
from rinalmo.errors import InputError
from rinalmo.inference.fill_mask import fill_mask
from rinalmo.io.files import replacing
from rinalmo.io.recipe_files import read
from rinalmo.model.cost import specification
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.training.recipes import FinetuneRecipe, Recipe, RunRecipe
from rinalmo.training.run_folder import PLOT, RECIPE, RunFolder, read_log
from rinalmo.weights.checkpoint import load

_CURVE_ROWS = 12


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says about the training of its model."""

    name: str
    recipe: RunRecipe
    starts: Sequence[dict[str, Any]]
    log: Sequence[dict[str, Any]]
    evaluation: Mapping[str, Any]

    @classmethod
    def read(cls, folder: RunFolder) -> RunRecord:
        """Read a run's files."""
        return cls(folder.path.name, folder.recipe(), folder.starts(), read_log(folder.path), folder.evaluation())

    @property
    def validations(self) -> list[dict[str, Any]]:
        """The validation lines of the log."""
        return [line for line in self.log if "validation/loss" in line]

    @property
    def last(self) -> dict[str, Any]:
        """The last training line of the log."""
        return next((line for line in reversed(self.log) if "loss" in line), {})

    @property
    def start(self) -> dict[str, Any]:
        """What was noted when the run last started."""
        return self.starts[-1] if self.starts else {}


def run_of_model(model: str | None) -> RunRecord | None:
    """The run whose folder holds this model, if one does."""
    folder = Path(model).parent if model else None
    return RunRecord.read(run_folder(folder)) if folder and (folder / RECIPE).is_file() else None


def run_folder(path: Path) -> RunFolder:
    """A run of either kind."""
    return RunFolder(path, FinetuneRecipe if "task" in read(path / RECIPE) else Recipe)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def curve(run: RunRecord, columns: Sequence[str]) -> str:
    """Some validation lines of the log, evenly spread, the last among them."""
    every = max(1, -(-len(run.validations) // _CURVE_ROWS))
    picked = run.validations[::-1][::every][::-1]
    rows = [(f"{line['step']:,}", *(f"{line[f'validation/{name}']:.3f}" for name in columns)) for line in picked]
    return table(("Step", *columns), rows)


def machine(run: RunRecord) -> list[str]:
    """How long it took, on what."""
    start, last = run.start, run.last
    return [
        f"{run.recipe.train.precision}, processes × threads: {start.get('processes', 1)} × {start.get('threads', 1)}, "
        f"{last.get('seconds', 0) / 3600:.2f} h, {last.get('tokens_per_second', 0):,.0f} tokens/s",
        f"torch {start.get('torch')}, python {start.get('python')}, {start.get('machine')}",
    ]


_FIGURES = ("loss", "accuracy", "perplexity")


def pretraining_data(run: RunRecord, recipe: Recipe) -> str:
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


def pretraining_procedure(run: RunRecord, recipe: Recipe) -> str:
    """How it was trained; a run that went on from another one's model tells of that one too."""
    parts = ["## Training procedure\n\n" + _facts(run, recipe)]
    while (earlier := run_of_model(recipe.init)) and isinstance(earlier.recipe, Recipe):
        run, recipe = earlier, earlier.recipe
        way = curve(run, ("loss", "accuracy"))
        parts.append(f"Before that, in the run `{run.name}`:\n\n{_facts(run, recipe)}\n\n{way}")
    return "\n\n".join(parts)


def _facts(run: RunRecord, recipe: Recipe) -> str:
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


def validation(run: RunRecord, recipe: Recipe) -> str:
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


PRETRAINING_PARTS = (pretraining_data, pretraining_procedure, validation)


_INTRO = "The state of the best validation figure was kept. On the way there:"


def finetuning_data(run: RunRecord, recipe: FinetuneRecipe) -> str:
    """Which examples it saw."""
    counts = run.start.get("examples", {})
    names = {name: path for name in counts if (path := getattr(recipe.data, name))}
    rows = [(name, f"{count:,}", _named(names.get(name)), _sum(recipe, name)) for name, count in counts.items()]
    split = "" if recipe.data.validation else "\n\nSets without a file are drawn from the training examples."
    crop, at = recipe.data.crop, recipe.data.crop_at
    seen = f" Of a sequence the model sees {crop} nucleotides at most, those at its {at}." if crop else ""
    return f"## Examples\n\nTask: {recipe.task}.{seen}\n\n{table(('Set', 'Examples', 'File', 'SHA-256'), rows)}{split}"


def finetuning_procedure(run: RunRecord, recipe: FinetuneRecipe) -> str:
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


def figures(run: RunRecord, recipe: FinetuneRecipe) -> str:
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


FINETUNING_PARTS = (finetuning_data, finetuning_procedure, figures)


EXAMPLES = {
    "HIV-1": "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU",
    "microRNA-21": "UAGC<mask>UAUCAGACUGAUGUUGA",
}


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
    folder = run_folder(Path(source)) if is_run else None
    if folder and not folder.model.is_dir():
        raise InputError(f"{source}: the run is not finished, it has no model yet; go on with --resume")
    home = folder.model if folder else Path(source)
    if output is None and not home.is_dir():
        raise InputError(f"{source}: is no folder to write a card into; say where with --output")
    target = output or home / "README.md"
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; choose another name or ask to overwrite it")
    run = RunRecord.read(folder) if folder else None
    curve = folder.path / PLOT if folder and (folder.path / PLOT).is_file() else None
    text = card(
        load(home if folder else source), name or Path(source).name, run, license_id, with_plot=curve is not None
    )
    with replacing(target) as file:
        file.write(text.encode())
    if curve and target.parent.resolve() != folder.path.resolve():  # type: ignore[union-attr]
        with replacing(target.parent / PLOT) as file:
            file.write(curve.read_bytes())
    return target


def card(
    model: RiNALMo, name: str, run: RunRecord | None = None, license_id: str | None = None, *, with_plot: bool = False
) -> str:
    """The card's text."""
    examples = (
        {title: _answers(model, text) for title, text in EXAMPLES.items()} if "lm_head" in model.spec.heads else {}
    )
    parts = [_header(model, examples, license_id), _summary(model, name, run), _specification(model, name, run)]
    if run:
        parts += [*_sections(run), f"![Loss by step]({PLOT})" if with_plot else ""]
    if examples:
        parts.append(_examples(examples))
    return "\n\n".join(part for part in (*parts, _use(model)) if part) + "\n"


def _sections(run: RunRecord) -> list[str]:
    """Data, procedure and figures."""
    recipe = run.recipe
    if isinstance(recipe, FinetuneRecipe):
        return [part(run, recipe) for part in FINETUNING_PARTS]
    assert isinstance(recipe, Recipe)
    return [part(run, recipe) for part in PRETRAINING_PARTS]


def _answers(model: RiNALMo, text: str) -> list[tuple[str, float]]:
    return [(found.token_str, found.score) for found in fill_mask(text, model)[0][0]]


def _header(model: RiNALMo, examples: dict[str, list[tuple[str, float]]], license_id: str | None) -> str:
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
        "pipeline_tag": "fill-mask" if examples else None,
        "license": license_id,
        "tags": ["Biology", "RNA", model.spec.task["name"] if model.spec.task else "masked-language-modelling"],
        "mask_token": "<mask>",
        "widget": widget,
    }
    kept = {key: value for key, value in values.items() if value}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}---"


def _summary(model: RiNALMo, name: str, run: RunRecord | None) -> str:
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    init = getattr(run.recipe, "init", None) if run else None
    task = f"fine-tuned for {model.spec.task['name']} " if model.spec.task else ""
    earlier = run_of_model(init)
    origin = f"the run `{earlier.name}`" if earlier else init
    started = f"{task or 'continued '}from {origin}" if init else "trained from scratch"
    made = f", {started} with rinalmo {run.start['rinalmo']}" if run and run.starts else ""
    return f"# {name}\n\nA RiNALMo RNA language model of {size:.2f} M parameters, heads included{made}."


def _specification(model: RiNALMo, name: str, run: RunRecord | None) -> str:
    row = specification(name, model.config)
    cells = {
        "Layers": row.num_layers,
        "Hidden size": row.hidden_size,
        "Heads": row.num_heads,
        "Intermediate size": row.intermediate_size,
        "Parameters (M)": f"{row.parameters / 1e6:.2f}",
        "FLOPs (G)": f"{row.flops / 1e9:.2f}",
        "MACs (G)": f"{row.macs / 1e9:.2f}",
        "Longest crop (nt)": _longest(run),
    }
    note = f"Parameters of encoder and pooler; FLOPs and MACs for one sequence of {row.tokens} tokens through both."
    return f"## Specification\n\n{table(list(cells), [list(cells.values())])}\n\n{note}"


def _longest(run: RunRecord | None) -> int | str:
    return run.recipe.data.max_length if run and isinstance(run.recipe, Recipe) else "not recorded"


def _examples(examples: dict[str, list[tuple[str, float]]]) -> str:
    rows = [
        (title, f"`{EXAMPLES[title]}`", ", ".join(f"{token} {score:.4f}" for token, score in answers))
        for title, answers in examples.items()
    ]
    return "## Examples\n\n" + table(("RNA", "Input", "Output"), rows)


def _use(model: RiNALMo) -> str:
    task = model.spec.task["name"] if model.spec.task else None
    calls = {None: _EMBED, "secondary-structure": _FOLD}.get(task, _PREDICT)
    if "lm_head" in model.spec.heads:
        calls = _FILL + calls
    written = f"Written by rinalmo {rinalmo.__version__}."
    return f"## Use\n\n```python\nimport rinalmo\n\n{calls}```\n\n{_HUGGING_FACE}\n\n{written}"


_FILL = 'rinalmo.fill_mask("GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU", "path/to/this/folder")\n'
_EMBED = 'rinalmo.embed(["UAGCUUAUCAGACUGAUGUUGA"], "path/to/this/folder")\n'
_FOLD = 'rinalmo.fold(["GGGAAAUCC"], "path/to/this/folder")\n'
_PREDICT = 'rinalmo.predict(["UAGCUUAUCAGACUGAUGUUGA"], "path/to/this/folder")\n'
_HUGGING_FACE = (
    "With transformers: `import rinalmo`, then `AutoModel.from_pretrained`, `AutoTokenizer.from_pretrained` and "
    "pipelines take this folder or its id on the hub."
)

"""The model card of a run or of any model: what it is, what it was trained on and how, what it reaches, what it says.

Every figure is read from the run's own files or computed from the model when the card is written; what is not known
is left out, not guessed.
"""

from __future__ import annotations

from pathlib import Path

import yaml

import rinalmo
from rinalmo.durable import replacing
from rinalmo.errors import InputError
from rinalmo.inference.fill_mask import fill_mask
from rinalmo.model.cost import specification
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.training import card_finetuning, card_pretraining
from rinalmo.training.card_parts import Run, run_folder, run_of_model, table
from rinalmo.training.config import Recipe
from rinalmo.training.finetune_config import FinetuneRecipe
from rinalmo.training.log import PLOT
from rinalmo.training.run_folder import RECIPE
from rinalmo.weights.checkpoint import load

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
    run = Run.read(folder) if folder else None
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
    model: RiNALMo, name: str, run: Run | None = None, license_id: str | None = None, *, with_plot: bool = False
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


def _sections(run: Run) -> list[str]:
    """Data, procedure and figures."""
    recipe = run.recipe
    if isinstance(recipe, FinetuneRecipe):
        return [part(run, recipe) for part in card_finetuning.PARTS]
    assert isinstance(recipe, Recipe)
    return [part(run, recipe) for part in card_pretraining.PARTS]


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


def _summary(model: RiNALMo, name: str, run: Run | None) -> str:
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    init = getattr(run.recipe, "init", None) if run else None
    task = f"fine-tuned for {model.spec.task['name']} " if model.spec.task else ""
    earlier = run_of_model(init)
    origin = f"the run `{earlier.name}`" if earlier else init
    started = f"{task or 'continued '}from {origin}" if init else "trained from scratch"
    made = f", {started} with rinalmo {run.start['rinalmo']}" if run and run.starts else ""
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
        "Longest crop (nt)": _longest(run),
    }
    note = f"Parameters of encoder and pooler; FLOPs and MACs for one sequence of {row.tokens} tokens through both."
    return f"## Specification\n\n{table(list(cells), [list(cells.values())])}\n\n{note}"


def _longest(run: Run | None) -> int | str:
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

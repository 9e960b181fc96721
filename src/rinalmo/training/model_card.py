"""Model cards: the facts of a model and its run, for the template `model_card.md.j2`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

import rinalmo
from rinalmo.errors import InputError
from rinalmo.io.cards import render_card
from rinalmo.io.files import atomic_write
from rinalmo.model.config import specification
from rinalmo.model.packing import pack
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.tasks.evaluate import task_of
from rinalmo.training.recipes import FinetuneRecipe, Recipe, RunRecipe
from rinalmo.training.run_folder import EVALUATION, PLOT, RECIPE, VERSIONS, RunFolder, read_log
from rinalmo.weights.checkpoint import load

EXAMPLES = {
    "HIV-1": "GGUC<mask>CUCUGGUUAGACCAGAUCUGAGCCU",
    "microRNA-21": "UAGC<mask>UAUCAGACUGAUGUUGA",
}
_CURVE_ROWS = 12
_METRICS = 6


@dataclass(frozen=True)
class RunRecord:
    """What the files of a run say about the training of its model.

    `start` is the last entry of `versions.json`, `last` the last training line of the log.
    """

    path: Path
    recipe: RunRecipe
    starts: Sequence[dict[str, Any]]
    start: Mapping[str, Any]
    last: Mapping[str, Any]
    validations: Sequence[dict[str, Any]]
    evaluation: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> RunRecord | None:
        """The run in a folder, if there is one."""
        if not (path / RECIPE).is_file():
            return None
        folder = RunFolder(path)
        starts, log = folder.read_json(VERSIONS, []), read_log(path)
        training = [line for line in log if "loss" in line]
        validations = [line for line in log if "validation/loss" in line]
        start, last = starts[-1] if starts else {}, training[-1] if training else {}
        evaluation = folder.read_json(EVALUATION, {})
        return cls(path, folder.recipe(), starts, start, last, validations, evaluation)

    def earlier(self) -> list[RunRecord]:
        """The runs that this one started from, the latest first, up to one that started from its own model."""
        runs, paths = [self], {self.path.resolve()}
        while init := getattr(runs[-1].recipe, "init", None):
            before = RunRecord.read(Path(init).parent)
            if before is None or before.path.resolve() in paths:
                break
            runs.append(before)
            paths.add(before.path.resolve())
        return runs[1:]

    def curve(self, metrics: Sequence[str]) -> list[tuple[str, ...]]:
        """Some validation lines of the log, evenly spaced, with the last of them."""
        every = max(1, -(-len(self.validations) // _CURVE_ROWS))
        lines = self.validations[::-1][::every][::-1]
        return [(f"{line['step']:,}", *(_number(line[f"validation/{name}"], 3) for name in metrics)) for line in lines]

    def by_source(self) -> list[tuple[str, ...]]:
        """The last validation metrics of a pre-training run, over all sources and for each."""
        last = self.validations[-1]
        names = [key.removesuffix("/loss") for key in last if key.startswith("validation/") and key.endswith("/loss")]
        return [
            (
                name.removeprefix("validation").strip("/") or "all",
                *(f"{last[f'{name}/{metric}']:.3f}" for metric in ("loss", "accuracy", "perplexity")),
            )
            for name in names
        ]

    def metric_names(self) -> list[str]:
        """The first validation metrics of a fine-tuning run."""
        return [key.removeprefix("validation/") for key in self.validations[-1] if key.count("/") == 1][:_METRICS]

    def test_metrics(self) -> list[tuple[str, ...]]:
        return [
            (name, _number(metric["value"]), f"{_number(metric['low'])} – {_number(metric['high'])}")
            for name, metric in self.evaluation["figures"].items()
        ]

    def sets(self) -> list[tuple[str, ...]]:
        """Size, file and checksum of each set of examples."""
        assert isinstance(self.recipe, FinetuneRecipe)
        data = self.recipe.data
        rows: list[tuple[str, ...]] = []
        for name, count in self.start.get("examples", {}).items():
            path, checksum = getattr(data, name), data.fingerprints.get(name)
            file = f"`{Path(path).name}`" if path else ""
            rows.append((name, f"{count:,}", file, f"`{checksum[:16]}…`" if checksum else ""))
        return rows


def _number(value: float | None, digits: int = 4) -> str:
    """A metric; None (in JSON) or NaN is one that these examples leave undefined."""
    return "undefined" if value is None or math.isnan(value) else f"{value:.{digits}f}"


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
    run = RunRecord.read(Path(source))
    home = Path(source) / "model" if run else Path(source)
    if run and not home.is_dir():
        raise InputError(f"{source}: the run is not finished and has no model yet; continue it with --resume")
    if output is None and not home.is_dir():
        raise InputError(f"{source}: is not a folder; give the card's file with --output")
    target = output or home / "README.md"
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; choose another name or use --overwrite")
    plot = run.path / PLOT if run and (run.path / PLOT).is_file() else None
    text = card(load(home if run else source), name or Path(source).name, run, license_id, with_plot=bool(plot))
    with atomic_write(target) as file:
        file.write(text.encode())
    if plot and target.parent.resolve() != plot.parent.resolve():
        with atomic_write(target.parent / PLOT) as file:
            file.write(plot.read_bytes())
    return target


def _top_tokens(model: RiNALMo, sequence: str) -> list[tuple[str, float]]:
    """The five most probable tokens at the sequence's `<mask>` with their probabilities, by the plain network."""
    ids, layout = pack([torch.from_numpy(model.alphabet.encode(sequence))])
    with torch.inference_mode():
        states = model.eval()(ids, layout).last_hidden_state[ids == model.alphabet.mask_id]
        scores, tokens = model.head("lm_head")(states).softmax(dim=-1)[0].topk(5)
    return [
        (model.alphabet.tokens[token], score) for token, score in zip(tokens.tolist(), scores.tolist(), strict=True)
    ]


def card(
    model: RiNALMo, name: str, run: RunRecord | None = None, license_id: str | None = None, *, with_plot: bool = False
) -> str:
    """The card's text; masks are filled by the model now."""
    task = model.spec.task["name"] if model.spec.task else None
    inputs = task_of(model.spec).inputs if model.spec.task else None
    fills_masks = "lm_head" in model.spec.heads
    predictions = {title: _top_tokens(model, text) for title, text in EXAMPLES.items()} if fills_masks else {}
    widget = [
        {
            "example_title": title,
            "text": EXAMPLES[title],
            "output": [{"label": token, "score": round(score, 4)} for token, score in tokens],
        }
        for title, tokens in predictions.items()
    ]
    metadata = {
        "language": "rna",
        "library_name": "rinalmo",
        "pipeline_tag": "fill-mask" if fills_masks else None,
        "license": license_id,
        "tags": ["Biology", "RNA", task or "masked-language-modelling"],
        "mask_token": "<mask>",
        "widget": widget,
    }
    kind, longest_crop, origin = None, None, None
    earlier_runs: list[RunRecord] = []
    if run is not None:
        init = getattr(run.recipe, "init", None)
        earlier = run.earlier()
        if run.starts:
            start = f"the run `{earlier[0].path.name}`" if earlier else init
            verb = f"fine-tuned for {task}" if task else "continued"
            origin = (
                f", {f'{verb} from {start}' if init else 'trained from scratch'} with rinalmo {run.start['rinalmo']}"
            )
        kind = "finetuning"
        if isinstance(run.recipe, Recipe):
            kind, longest_crop = "pretraining", run.recipe.data.max_length
            earlier_runs = list(takewhile(lambda each: isinstance(each.recipe, Recipe), earlier))
    return render_card(
        "model_card.md.j2",
        metadata,
        name=name,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        origin=origin or "",
        spec=specification(name, model.config),
        longest_crop=longest_crop or "not recorded",
        kind=kind,
        run=run,
        earlier_runs=earlier_runs,
        plot=PLOT if with_plot else None,
        examples=[
            (title, f"`{EXAMPLES[title]}`", ", ".join(f"{token} {score:.4f}" for token, score in tokens))
            for title, tokens in predictions.items()
        ],
        fills_masks=fills_masks,
        task=task,
        inputs=inputs,
        version=rinalmo.__version__,
    )

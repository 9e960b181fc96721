"""What the cards of all runs are made from: a run's own files, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rinalmo.recipe_files import read
from rinalmo.training.config import Recipe, RunRecipe
from rinalmo.training.finetune_config import FinetuneRecipe
from rinalmo.training.log import read_log
from rinalmo.training.run_folder import RECIPE, RunFolder

_CURVE_ROWS = 12


@dataclass(frozen=True)
class Run:
    """What a run folder says about the training of its model."""

    name: str
    recipe: RunRecipe
    starts: Sequence[dict[str, Any]]
    log: Sequence[dict[str, Any]]
    evaluation: Mapping[str, Any]

    @classmethod
    def read(cls, folder: RunFolder) -> Run:
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


def run_of_model(model: str | None) -> Run | None:
    """The run whose folder holds this model, if one does."""
    folder = Path(model).parent if model else None
    return Run.read(run_folder(folder)) if folder and (folder / RECIPE).is_file() else None


def run_folder(path: Path) -> RunFolder:
    """A run of either kind."""
    return RunFolder(path, FinetuneRecipe if "task" in read(path / RECIPE) else Recipe)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def curve(run: Run, columns: Sequence[str]) -> str:
    """Some validation lines of the log, evenly spread, the last among them."""
    every = max(1, -(-len(run.validations) // _CURVE_ROWS))
    picked = run.validations[::-1][::every][::-1]
    rows = [(f"{line['step']:,}", *(f"{line[f'validation/{name}']:.3f}" for name in columns)) for line in picked]
    return table(("Step", *columns), rows)


def machine(run: Run) -> list[str]:
    """How long it took, on what."""
    start, last = run.start, run.last
    return [
        f"{run.recipe.train.precision}, processes × threads: {start.get('processes', 1)} × {start.get('threads', 1)}, "
        f"{last.get('seconds', 0) / 3600:.2f} h, {last.get('tokens_per_second', 0):,.0f} tokens/s",
        f"torch {start.get('torch')}, python {start.get('python')}, {start.get('machine')}",
    ]

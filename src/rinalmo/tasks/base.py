"""What a task is: data, a head on the encoder, and what is read from the head's outputs.

    data       read → from_examples → encode_targets
    head       heads → forward → loss
    decoding   score_example → metrics, or rows of predictions

A task knows nothing of batches, optimizers or weight files. What it has learned from its training data (names of
classes, a scale) is in its `settings`: plain values that the model's `config.json` holds under "task".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from torch import Tensor

from rinalmo.errors import InputError
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.rna.constraints import Conditions

if TYPE_CHECKING:
    from rinalmo.tasks.inputs import Inputs

Per = Literal["sequence", "nucleotide"]


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table; None: the usual names are tried."""

    name: str | None = None
    sequence: str | None = None
    target: Sequence[str] = ()
    group: str | None = None
    second: str | None = None  # second sequences
    features: Mapping[str, Path | None] = field(default_factory=dict)  # with files of vectors; see `tasks.inputs`


@dataclass(frozen=True)
class Example:
    """A sequence, or a pair, with its target. Metrics are also given for each `group`, such as a family or a source."""

    name: str
    sequence: str
    target: Any = None
    group: str = ""
    where: str = field(default="", compare=False)  # file and line, for messages
    num_targets: int = field(default=1, compare=False)  # terms of the loss
    conditions: Conditions | None = field(default=None, compare=False)  # of folding
    second: str = ""  # the other sequence of a pair
    features: Any = field(default=None, compare=False)  # cells by column, then as the head takes them


@dataclass(frozen=True)
class Crop:
    """The first, middle or last `length` nucleotides of a sequence; `at` is "start", "middle" or "end"."""

    length: int
    at: str = "middle"

    def __post_init__(self) -> None:
        if self.length < 1 or self.at not in ("start", "middle", "end"):
            raise ValueError(f"cannot crop to {self.length} nucleotides at the {self.at}")

    def start(self, length: int) -> int:
        """Where the crop of a sequence of this length begins."""
        surplus = max(0, length - self.length)
        return {"start": 0, "middle": surplus // 2, "end": surplus}[self.at]

    def of(self, sequence: str) -> str:
        """The cropped sequence."""
        start = self.start(len(sequence))
        return sequence[start : start + self.length]


def sequences_of(example: Example, crop: Crop | None) -> list[str]:
    """The sequences that a model sees of an example: one, or those of a pair."""
    given = [example.sequence, example.second] if example.second else [example.sequence]
    return [crop.of(sequence) if crop else sequence for sequence in given]


class Task(ABC):
    """One kind of prediction.

    Attributes:
        options: The recipe options that `from_examples` takes.
        selection_metric: The validation metric that selects the best checkpoint; higher is better.
        per: One prediction for each sequence, or one for each nucleotide or pair of nucleotides.
        settings: The constructor's arguments, for `config.json`.
        crop: The part of a sequence that the model was trained on; None: all of it.
        pad_to: Length in tokens that shorter sequences are padded to; `RibosomeLoad` says why.
        layers: The encoder's layers whose states `forward` takes, side by side; None: the last.
        window: Longer sequences are computed in windows of this length; None: always as a whole.
        thresholds: Decision thresholds to choose from on validation data, if there are any (`tune_threshold`).
        inputs: What the head takes beside a sequence; None: nothing. Otherwise `forward` gives a vector for each
            sequence, and `join` makes outputs of these.
        notes: What `from_examples` decided, for the user.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    selection_metric: str
    per: Per = "sequence"
    settings: Mapping[str, Any] = {}
    crop: Crop | None = None
    pad_to: int = 0
    layers: Sequence[int] | None = None
    window: int | None = None
    thresholds: Sequence[float] = ()
    inputs: Inputs | None = None
    notes: Sequence[str] = ()

    def config(self) -> dict[str, Any]:
        """The task in the model's `config.json`."""
        crop = {"crop": self.crop.length, "crop_at": self.crop.at} if self.crop else {}
        return {"name": self.name, **self.settings, **crop}

    # Data

    @classmethod
    @abstractmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        """Read a file of examples; raises InputError with file and line for one that cannot be used."""

    @classmethod
    @abstractmethod
    def from_examples(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        """Make the task for these training examples, with the recipe's options."""

    def encode_targets(self, examples: Sequence[Example]) -> list[Example]:
        """Replace targets as read by those that `loss` and `metrics` take.

        Raises:
            InputError: A target cannot be used, such as a class that is not in the training data.
        """
        return list(examples)

    # Head

    @abstractmethod
    def heads(self) -> dict[str, dict[str, Any]]:
        """The heads that the model needs, with their arguments."""

    def init_head(self, model: RiNALMo, examples: Sequence[Example]) -> None:  # noqa: B027  # most need nothing
        """Set what a new head takes from the training examples."""

    @abstractmethod
    def forward(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        """The head's output for each sequence of a packed batch, from `ids` `(tokens,)` and `states`
        `(tokens, hidden)`, or of all `layers` `(tokens, layers × hidden)`."""

    def join(self, model: RiNALMo, vectors: Sequence[Tensor], examples: Sequence[Example]) -> Sequence[Tensor]:
        """The head's output for each example, from the vectors of its sequences that `forward` gave."""
        raise NotImplementedError

    @abstractmethod
    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        """The sum of the losses of a batch, fp32."""

    # Decoding

    def merge_windows(self, example: Example, outputs: Iterator[Tensor]) -> Any:
        """One output from those of the windows of a long sequence, consumed one by one."""
        raise NotImplementedError

    def threshold(self, model: RiNALMo) -> float | None:
        """The decision threshold of this model, for a task that has one."""
        return model.spec.threshold

    @abstractmethod
    def score_example(self, model: RiNALMo, output: Any, example: Example) -> Any:
        """What `metrics` needs from one output; small, since it is kept for every example."""

    def tune_threshold(self, scores: Sequence[Any]) -> float:
        """The best of `thresholds` on validation data."""
        raise NotImplementedError

    def example_metrics(self, scores: Sequence[Any], threshold: float | None) -> dict[str, np.ndarray]:
        """Metrics of each example, by name, for a task whose metrics are means of these."""
        return {}

    @abstractmethod
    def metrics(self, scores: Sequence[Any], examples: Sequence[Example], threshold: float | None) -> dict[str, float]:
        """Metrics over examples, by name; `selection_metric` is among them."""

    @abstractmethod
    def rows(self, model: RiNALMo, output: Any, example: Example) -> list[dict[str, Any]]:
        """The predictions for one sequence as rows of a table."""


def require(condition: bool, example: Example, message: str) -> None:
    """Raise InputError with file and line of the example unless the condition holds."""
    if not condition:
        raise InputError(f"{example.where or f'example {example.name}'}: {message}")

"""What a task is: examples, a head on the encoder, a loss, figures.

    examples ─► (encoder) ─► states ─► outputs, one per sequence ─► loss                       while it learns
                                                               └──► judgement ─► figures       while it is evaluated
                                                               └──► answer ─► rows of a file   while it predicts

A task knows nothing of batches, optimizers or files of weights. What it must remember of its training data (names of
classes, a scale) are its `settings`: plain values that lie in the model's `config.json` under "task".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from torch import Tensor

from rinalmo.errors import InputError
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import RiNALMo

Figures = Iterator[tuple[str, float]]
Per = Literal["sequence", "nucleotide"]


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what; None: found by their usual names, or absent."""

    name: str | None = None
    sequence: str | None = None
    target: Sequence[str] = ()
    group: str | None = None


@dataclass(frozen=True)
class Example:
    """A sequence and what is known of it. `group` is a family or source that figures are also given for."""

    name: str
    sequence: str
    target: Any = None
    group: str = ""
    where: str = field(default="", compare=False)  # file and line, for messages


@dataclass(frozen=True)
class Crop:
    """At most `length` nucleotides of a sequence, those `at` its "start", "middle" or "end"."""

    length: int
    at: str = "middle"

    def __post_init__(self) -> None:
        if self.length < 1 or self.at not in ("start", "middle", "end"):
            raise ValueError(f"there is no crop to {self.length} at the {self.at}")

    def of(self, sequence: str) -> str:
        """The part of the sequence that is kept."""
        surplus = max(0, len(sequence) - self.length)
        start = {"start": 0, "middle": surplus // 2, "end": surplus}[self.at]
        return sequence[start : start + self.length]


class Task(ABC):
    """One kind of prediction."""

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()  # those of a recipe's that `learned` understands
    per: Per = "sequence"  # whether it answers once for a sequence, or for each nucleotide or pair of them
    crop: Crop | None = None  # what the model was trained to see of a sequence, if not all of it
    score: str  # the figure that says which state of a model is best; more is better
    filled_to: int = 0  # tokens that the model must see in a sequence, pad tokens if need be; `RibosomeLoad` says why

    def settings(self) -> dict[str, Any]:
        """What has to be remembered beside the weights."""
        return {}

    def seen(self, sequence: str) -> str:
        """What the model is to see of a sequence."""
        return self.crop.of(sequence) if self.crop else sequence

    def described(self) -> str:
        """What was made of the training data, in a few words, where there was something to find out."""
        return ""

    @classmethod
    def remembered(cls, settings: Mapping[str, Any]) -> Self:
        """The task again from its settings."""
        return cls(**settings)

    @classmethod
    @abstractmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        """The examples of a file; raises InputError with file and line for whatever cannot be used."""

    @classmethod
    @abstractmethod
    def learned(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        """The task that these training examples speak of. `options` are the recipe's."""

    @abstractmethod
    def heads(self) -> dict[str, dict[str, Any]]:
        """The heads that a model needs, with the arguments of their classes."""

    def prepare(self, model: RiNALMo, examples: Sequence[Example]) -> None:  # noqa: B027  # most have nothing to set
        """Set what a fresh head takes from the training examples."""

    def understood(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with targets as this task computes with them; raises InputError for the first that it cannot
        use, such as a class unseen in training."""
        return list(examples)

    def parts(self, example: Example) -> list[Example]:
        """What of an example is computed at a time: all of it, or the windows of a long one."""
        return [example]

    def joined(self, example: Example, outputs: Iterator[Tensor]) -> Any:
        """One output from those of the parts, each of which is taken when the one before it may be let go."""
        return next(outputs)

    def remark(self, name: str, length: int) -> str:
        """What whoever reads the answer for a sequence of this name and length has to know; mostly nothing."""
        return ""

    @abstractmethod
    def outputs(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        """What the head says, for each sequence of a packed batch, from its `ids` and the encoder's states
        `(tokens, hidden)`."""

    @abstractmethod
    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        """The sum of losses of a batch, fp32."""

    def count(self, examples: Sequence[Example]) -> int:
        """Number of terms in that sum."""
        return len(examples)

    def threshold(self, model: RiNALMo) -> float | None:
        """The threshold at which this model's answers are taken, for a task that has one."""
        return model.spec.threshold

    @abstractmethod
    def judge(self, model: RiNALMo, output: Any, example: Example) -> Any:
        """What `figures` needs of one output, as `joined` gives it; small, as all of them are kept."""

    @abstractmethod
    def figures(self, judged: Sequence[Any], examples: Sequence[Example], threshold: float | None) -> Figures:
        """Names and values of what is measured over examples; one of them is `score`."""

    def tuned(self, judged: Sequence[Any]) -> float | None:
        """The threshold that validation data chooses, for a task that has one."""
        return None

    def each(self, judged: Sequence[Any], threshold: float | None) -> dict[str, np.ndarray]:
        """Scores of each example, if the figures are means of such."""
        return {}

    @abstractmethod
    def rows(self, model: RiNALMo, output: Any, example: Example) -> list[dict[str, Any]]:
        """What is predicted for one sequence, as rows of a table."""


def require(condition: bool, example: Example, message: str) -> None:
    """Raise InputError that names file and line of an example."""
    if not condition:
        raise InputError(f"{example.where or f'example {example.name}'}: {message}")


def inner(states: Tensor, layout: Layout) -> list[Tensor]:
    """Each sequence's states without CLS and EOS."""
    return [part[1:-1] for part in layout.split(states)]

"""Long RNAs in windows: what is computed of each window, put together into one list of pair probabilities.

    |------- window 0 -------|                     Windows overlap by half. Each pair is taken from the window whose
                |------- window 1 -------|         middle its own middle is nearest to: there both ends see as much
                           |------- window 2 -------|          of their surroundings as they can.

A pair whose ends are farther apart than a window is in none; one that spans more than half of a window may be in none.
Memory grows with the length times the window, and with the pairs that are likely at all.

RNAplfold, whose windows are one nucleotide apart, takes the mean over all that hold a pair (Bernhart, Hofacker &
Stadler 2006, Bioinformatics 22:614).
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rinalmo.errors import CheckpointError, InputError
from rinalmo.io.files import one_line
from rinalmo.io.tables import table_format
from rinalmo.metrics import pair_scores
from rinalmo.model.packing import Layout
from rinalmo.model.rinalmo import ModelSpec, RiNALMo
from rinalmo.model.structure_heads import UNKNOWN, Combiner, Evidence
from rinalmo.rna.alphabet import Alphabet
from rinalmo.rna.decoding import Pairs, blended, decode
from rinalmo.rna.formats import read_structures
from rinalmo.rna.structure import PairList, Structure, pairs_of
from rinalmo.rna.thermodynamics import Ensemble, ensemble, has_vienna, need_vienna
from rinalmo.tasks.base import Columns, Example, Figures, Task, inner, require
from rinalmo.tasks.examples import read_single

if TYPE_CHECKING:
    from torch import Tensor


WINDOW = 4096
"""Nucleotides that a model without a window of its own folds as a whole; longer RNAs it folds in windows of so many."""

SMALLEST = 32
LEAST = 0.001
"""Pairs of long RNAs that are less probable are not kept."""


@dataclass(frozen=True)
class Window:
    """Nucleotides `start:stop` of an RNA, and which pairs are taken from there: `first <= i + j < last`."""

    start: int
    stop: int
    first: int
    last: int

    def pairs(self, probabilities: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs of its own above `least`: `i`, `j`, values, with positions in the whole RNA."""
        i, j = np.divmod(np.flatnonzero(probabilities > least), len(probabilities))
        own = (i < j) & (i + j >= self.first - 2 * self.start) & (i + j < self.last - 2 * self.start)
        i, j = i[own], j[own]
        return (i + self.start).astype(np.int32), (j + self.start).astype(np.int32), probabilities[i, j]


def check_size(size: int) -> None:
    """Raise InputError for windows too small to hold a hairpin and what is around it."""
    if size < SMALLEST:
        raise InputError(f"a window of {size} nt is too small to fold; use {SMALLEST} or more")


def windows_of(length: int, size: int) -> list[Window]:
    """The windows of an RNA: one, if it is not longer than `size`."""
    count = 1 + -(-max(0, length - size) // max(1, size // 2))
    starts = [n * (length - size) // max(1, count - 1) for n in range(count)] if count > 1 else [0]
    stops = [min(length, start + size) for start in starts]
    middles = [start + stop - 1 for start, stop in zip(starts, stops, strict=True)]  # twice, as i + j is
    borders = [0, *(-(-(a + b) // 2) for a, b in itertools.pairwise(middles)), 2 * length]
    return [Window(*each) for each in zip(starts, stops, borders[:-1], borders[1:], strict=True)]


def joined(length: int, windows: Iterable[Window], found: Iterator[np.ndarray], least: float = LEAST) -> PairList:
    """The pairs of all windows, from the probabilities `(size, size)` of each, taken one after the other."""
    return PairList.of(length, [window.pairs(next(found), least) for window in windows])


def remark(name: str, length: int, window: int) -> str:
    """What a reader of the structure of an RNA has to know; nothing if it was folded as a whole."""
    if length <= window:
        return ""
    return (
        f"record {one_line(name)} of {length:,} nt is folded in windows of {window:,}: pairs farther apart are not "
        f"found, and those more than {window // 2:,} apart may be missed"
    )


DEFAULT_THRESHOLD = 0.15  # where no validation data has chosen one
WITH_THERMODYNAMICS = 0.22
"""The least mean probability of a pair, whatever the weight of thermodynamics. Chosen on bpRNA VL0 for `nano-fold`."""
Weight = float | str
"""Of thermodynamics: a number from 0 to 1, or `LEARNED`."""
LEARNED = "learned"
"""Both are combined by the model's `rinalmo.model.structure_heads`."""
DEFAULT_WEIGHT = 0.3
"""Weight of thermodynamics for models with the head `partners`: close to the best on known families and on new ones."""
WITHOUT_VIENNA = (
    "ViennaRNA is not installed, so the model folds alone, which costs accuracy, most of all on RNAs of families that "
    "it does not know (F1 0.50 instead of 0.62 on bpRNA-new); pip install 'rinalmo[fold]'"
)


@dataclass(frozen=True)
class _Head:
    """A head's module and usual shape, how its pairs are chosen, and the thresholds that are tried."""

    module: str
    shape: dict[str, int]
    decoder: str
    thresholds: tuple[float, ...]


_HEADS = {
    "pairs": _Head(
        "structure_head", {"channels": 64, "num_blocks": 2}, "greedy", tuple(step / 100 for step in range(1, 30))
    ),
    "partners": _Head(
        "partner_head",
        {"channels": 48, "num_blocks": 6},
        "nested",
        (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3),
    ),
}

Scores = Mapping[float | None, np.ndarray]  # precision, recall and F1 by threshold, exact and ±1: (2, 3)


class SecondaryStructure(Task):
    """Base pairs of an RNA."""

    name = "secondary-structure"
    options = ("head", "channels", "num_blocks", "window")
    per = "nucleotide"
    score = "f1_relaxed"

    def __init__(
        self,
        head: str = "pairs",
        channels: int | None = None,
        num_blocks: int | None = None,
        window: int = WINDOW,
    ) -> None:
        """Which head, its width and depth; those of `pairs` are the paper's if not given. `window`: see above."""
        if head not in _HEADS:
            raise InputError(f"there is no head {head!r} for {self.name}; use {' or '.join(_HEADS)}")
        chosen = _HEADS[head]
        self.head, self.module, self.decoder = head, chosen.module, chosen.decoder
        self.thresholds: tuple[float, ...] = ()  # to choose from; only while a model learns, later there is its own
        given = {"channels": channels, "num_blocks": num_blocks}
        self.shape = chosen.shape | {name: value for name, value in given.items() if value is not None}
        check_size(window)
        self.window, self.least = window, LEAST
        self.thermodynamics: Weight = 0.0  # while a model learns to fold, it folds alone
        self.combiner: Combiner | None = None  # the model's, once it has computed

    def settings(self) -> dict[str, Any]:
        # The paper's head goes without its name, as before there was another.
        named = {} if self.head == "pairs" else {"head": self.head}
        return named | self.shape | ({} if self.window == WINDOW else {"window": self.window})

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        if table_format(path) is None:
            if columns.group is not None:
                raise InputError(f"{path}: only a table has a column {columns.group!r} of groups; leave it out")
            found = read_structures(path)
            return [Example(s.name, s.sequence, s.pairs, where=f"{path}, record {s.name}") for s in found]
        rows = read_single(path, columns, ("structure", "dot_bracket", "secondary_structure", "dbn"), cls.name)
        return [Example(e.name, e.sequence, _pairs(e), e.group, e.where) for e in rows]

    @classmethod
    def learned(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        task = cls(**options)
        task.thresholds = _HEADS[task.head].thresholds
        return task

    def heads(self) -> dict[str, dict[str, Any]]:
        return {self.module: self.shape}

    def outputs(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        if self.thermodynamics == LEARNED and self.combiner is None:
            # Its evidence is scattered reads of small tensors: nothing for a GPU, nor for half precision.
            self.combiner = copy.deepcopy(self._combiner_of(model)).float().cpu()
        head, parts = model.head(self.module), inner(states, layout)
        if self.head == "pairs":
            return [head(part)[..., 0] for part in parts]
        sequences = inner(_nucleotides(model.alphabet).to(ids.device)[ids], layout)
        return [head(part, sequence) for part, sequence in zip(parts, sequences, strict=True)]

    def parts(self, example: Example) -> list[Example]:
        cut = windows_of(len(example.sequence), self.window)
        return [replace(example, sequence=example.sequence[part.start : part.stop], target=None) for part in cut]

    def joined(self, example: Example, outputs: Iterator[Tensor]) -> Tensor | PairList:
        length = len(example.sequence)
        if length <= self.window:
            return next(outputs)
        cut = windows_of(length, self.window)
        parts = zip(cut, outputs, strict=True)
        squares = (self._square(output, example.sequence[part.start : part.stop]) for part, output in parts)
        return joined(length, cut, squares, self.least)

    def remark(self, name: str, length: int) -> str:
        return remark(name, length, self.window)

    def probabilities(self, output: Tensor | PairList, sequence: str) -> np.ndarray | PairList:
        """The probability of each pair, `(length, length)`, from what the head says; a list of them as it is."""
        return output if isinstance(output, PairList) else self._square(output, sequence)

    def model_probabilities(self, output: Tensor | PairList) -> np.ndarray | PairList:
        """As `probabilities`, but of a square without thermodynamics."""
        if isinstance(output, PairList):
            return output
        if self.head == "pairs":
            return output.float().sigmoid().fill_diagonal_(0).cpu().numpy()
        return ((output + output.T) / 2).exp().fill_diagonal_(0).cpu().numpy()

    def combined(
        self, output: Tensor | PairList, sequence: str, thermodynamics: Ensemble | None
    ) -> np.ndarray | PairList:
        """As `probabilities`, by the model's combiner; of a `PairList`, which has been combined, as it is."""
        if isinstance(output, PairList):
            return output
        assert self.combiner is not None
        with torch.inference_mode():
            return self.combiner.matrix(evidence_from(output, sequence, thermodynamics or ensemble(sequence))).numpy()

    def _square(self, output: Tensor, sequence: str) -> np.ndarray:
        learned = self.thermodynamics == LEARNED
        square = self.combined(output, sequence, None) if learned else self.model_probabilities(output)
        assert isinstance(square, np.ndarray)
        return square if learned else blended(square, sequence, float(self.thermodynamics))

    def threshold(self, model: RiNALMo) -> float | None:
        """The least probability of a pair: what this model's validation data chose, or with thermodynamics its own.

        None where each RNA has its own (`rinalmo.rna.decoding.decode`): a combiner's probabilities are right as often
        as they say, which is what that takes.
        """
        if self.thermodynamics == LEARNED:
            return None
        if self.thermodynamics:
            return WITH_THERMODYNAMICS
        return DEFAULT_THRESHOLD if model.spec.threshold is None else model.spec.threshold

    def _combiner_of(self, model: RiNALMo) -> Combiner:
        combiner = model.head("combiner")
        assert isinstance(combiner, Combiner)
        return combiner

    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        pairs = zip(outputs, examples, strict=True)
        of = _pair_loss if self.head == "pairs" else _partner_loss
        return torch.stack([of(output, example.target) for output, example in pairs]).sum()

    def judge(self, model: RiNALMo, output: Tensor | PairList, example: Example) -> Scores:
        own = self.threshold(model)
        thresholds = [None] if own is None else sorted({*self.thresholds, own})
        decoded = self._decoded(self.probabilities(output, example.sequence), example.sequence, thresholds)
        return {
            threshold: np.array([pair_scores(example.target, pairs, tolerance=tolerance) for tolerance in (0, 1)])
            for threshold, pairs in decoded
        }

    def _decoded(
        self, found: np.ndarray | PairList, sequence: str, thresholds: Sequence[float | None]
    ) -> Iterator[tuple[float | None, Pairs]]:
        """The pairs at each of these thresholds, which rise."""
        if self.decoder != "greedy" or None in thresholds:
            for threshold in thresholds:
                yield threshold, decode(found, sequence, self.decoder, threshold=threshold)
            return
        pairs = decode(found, sequence, self.decoder, threshold=thresholds[0])
        i, j = _array(pairs).T
        values = found.at(i, j) if isinstance(found, PairList) else found[i, j]
        for threshold in thresholds:
            yield threshold, [pair for pair, value in zip(pairs, values, strict=True) if value > (threshold or 0)]

    def figures(self, judged: Sequence[Any], examples: Sequence[Example], threshold: float | None) -> Figures:
        for name, values in self.each(judged, threshold).items():
            yield name, float(values.mean())

    def tuned(self, judged: Sequence[Any]) -> float:
        return max(self.thresholds, key=lambda t: float(np.mean([scores[t][1, 2] for scores in judged])))

    def each(self, judged: Sequence[Any], threshold: float | None) -> dict[str, np.ndarray]:
        chosen = DEFAULT_THRESHOLD if threshold is None and self.thermodynamics != LEARNED else threshold
        scores = np.stack([scores[chosen] for scores in judged])
        return {
            name + ending: scores[:, row, column]
            for row, ending in enumerate(("", "_relaxed"))
            for column, name in enumerate(("precision", "recall", "f1"))
        }

    def rows(self, model: RiNALMo, output: Tensor | PairList, example: Example) -> list[dict[str, Any]]:
        found = self.probabilities(output, example.sequence)
        pairs = decode(found, example.sequence, self.decoder, threshold=self.threshold(model))
        text = Structure(example.name, example.sequence, tuple(pairs)).dot_bracket
        return [{"id": example.name, "sequence": example.sequence, "structure": text}]


def default_thermodynamics(spec: ModelSpec) -> Weight:
    """How a model takes thermodynamics into account where the user gives no weight.

    By its combiner, if it has one; another with the head `partners` by `DEFAULT_WEIGHT`. Models with the paper's head
    fold alone, as they were published and tuned.
    """
    if "combiner" in spec.heads:
        return LEARNED
    return DEFAULT_WEIGHT if "partner_head" in spec.heads else 0.0


def resolve_thermodynamics(spec: ModelSpec, asked: Weight | None, note: Callable[[str], Any]) -> Weight:
    """What a model folds with.

    Args:
        spec: The model's.
        asked: The weight that the user gave, or `LEARNED`; None for the default, which without ViennaRNA is the model
            alone.
        note: Called with one line if ViennaRNA is missing and the default needs it.

    Returns:
        The weight, from 0 to 1, or `LEARNED`.

    Raises:
        InputError: The weight is out of range.
        CheckpointError: `LEARNED` for a model without a combiner.
        MissingExtraError: A weight above 0 was given and ViennaRNA is not installed.
    """
    if asked is None:
        default = default_thermodynamics(spec)
        if default and not has_vienna():
            note(WITHOUT_VIENNA)
            return 0.0
        return default
    if asked == LEARNED:
        if "combiner" not in spec.heads:
            raise CheckpointError("this model has no combiner of thermodynamics; give a weight from 0 to 1")
    elif isinstance(asked, str) or not 0 <= asked <= 1:
        raise InputError(f"the weight of thermodynamics is from 0 to 1, not {asked}")
    if asked:
        need_vienna()
    return asked


def as_asked(
    task: Task,
    spec: ModelSpec,
    window: int | None,
    thermodynamics: Weight | None,
    note: Callable[[str], Any] = warnings.warn,
) -> Task:
    """Set the window size and the weight of thermodynamics of a task.

    Args:
        task: Changed in place.
        spec: The model's, which has the defaults.
        window: Nucleotides of a window; None leaves the task as it is.
        thermodynamics: See `resolve_thermodynamics`.
        note: See `resolve_thermodynamics`.

    Returns:
        The task.

    Raises:
        InputError: Another task, windows that are too small, or a weight out of range.
        MissingExtraError: A weight above 0 was given and ViennaRNA is not installed.
    """
    if isinstance(task, SecondaryStructure):
        task.window = task.window if window is None else window
        check_size(task.window)
        task.thermodynamics = resolve_thermodynamics(spec, thermodynamics, note)
    elif window is not None or thermodynamics is not None:
        option, what = ("--window", "windows") if window is not None else ("--thermodynamics", "thermodynamics")
        raise InputError(f"only secondary-structure has {what}, not {task.name}; leave {option} out")
    return task


def _pair_loss(logits: Tensor, pairs: Any) -> Tensor:
    """The mean binary cross-entropy over all pairs of positions, each counted once."""
    target = torch.zeros_like(logits, dtype=torch.float32)
    places = torch.as_tensor(_array(pairs), device=logits.device)
    target[places[:, 0], places[:, 1]] = 1.0
    upper = torch.ones_like(logits, dtype=torch.bool).triu(1)
    return F.binary_cross_entropy_with_logits(logits.float()[upper], target[upper])


def _partner_loss(output: Tensor, pairs: Any) -> Tensor:
    """The mean over nucleotides of minus the log-probability of the true partner, or of having none.

    Nucleotides whose true pair is no candidate count nothing.
    """
    partner = torch.arange(len(output))
    ends = torch.as_tensor(_array(pairs))
    partner[ends[:, 0]], partner[ends[:, 1]] = ends[:, 1], ends[:, 0]
    found = output.gather(1, partner[:, None].to(output.device))[:, 0]
    return -found[found.isfinite()].sum() / max(1, len(output))


def evidence_from(output: Tensor, sequence: str, thermodynamics: Ensemble) -> Evidence:
    """What a combiner is told of an RNA: the output of the head `partners` and a partition function."""
    letters = torch.tensor(["ACGU".find(letter) for letter in sequence.upper().replace("T", "U")], dtype=torch.long)
    in_mfe = torch.zeros(output.shape, dtype=torch.bool)
    ends = torch.as_tensor(_array(pairs_of(thermodynamics.mfe_structure)))
    in_mfe[ends[:, 0], ends[:, 1]] = in_mfe[ends[:, 1], ends[:, 0]] = True
    probabilities = torch.from_numpy(thermodynamics.matrix())
    return Evidence.of(
        output.float().cpu(),
        letters % (UNKNOWN + 1),
        probabilities,
        in_mfe,
        thermodynamics.mfe,
        thermodynamics.energy,
    )


def _nucleotides(alphabet: Alphabet) -> Tensor:
    """For each token what a `PartnerHead` calls it."""
    return torch.tensor(["ACGU".find(token) if len(token) == 1 else -1 for token in alphabet.tokens]) % (UNKNOWN + 1)


def _pairs(example: Example) -> Any:
    require(example.target not in (None, ""), example, "has no structure; drop the row")
    try:
        return Structure.from_dot_bracket(example.name, example.sequence, str(example.target)).pairs
    except InputError as error:
        require(False, example, str(error))


def _array(pairs: Any) -> np.ndarray:
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2)

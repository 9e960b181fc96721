"""Secondary structure: heads that predict pairs, thermodynamics beside them, and long RNAs in windows.

    |------- window 0 -------|                     Windows overlap by half. Each pair is taken from the window whose
                |------- window 1 -------|         middle is nearest to the pair's own middle: there both ends see as
                           |------- window 2 -------|          much of their surroundings as they can.

A pair whose ends are farther apart than a window is in none; one that spans more than half of a window may be in none.
Memory grows with the length times the window, and with the number of likely pairs.

RNAplfold, whose windows are one nucleotide apart, takes the mean over all windows that hold a pair (Bernhart, Hofacker
& Stadler 2006, Bioinformatics 22:614).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

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
from rinalmo.rna.constraints import Conditions
from rinalmo.rna.decoding import decode
from rinalmo.rna.formats import read_structures
from rinalmo.rna.structure import PairList, Structure, pairs_of
from rinalmo.rna.thermodynamics import Ensemble, ensemble, has_vienna, need_vienna
from rinalmo.tasks.base import Columns, Example, Task, read_single_target, require

WINDOW = 4096
"""The default window in nucleotides; longer RNAs are folded in windows of this length."""
MIN_WINDOW = 32
MIN_PROBABILITY = 0.001
"""Less probable pairs of long RNAs are not kept."""

Weight = float | str
"""The weight of thermodynamics from 0 to 1, or `LEARNED`: the model's combiner (`rinalmo.model.structure_heads`)."""
LEARNED = "learned"
DEFAULT_WEIGHT = 0.3
"""Weight of thermodynamics for models with the head `partners`: close to the best on known families and on new ones."""
DEFAULT_THRESHOLD = 0.15
"""The threshold of models without one that was tuned on validation data."""
THERMODYNAMICS_THRESHOLD = 0.22
"""The threshold of the mean of both probabilities, for every weight. Chosen on bpRNA VL0 for `nano-fold`."""
WITHOUT_VIENNA = (
    "ViennaRNA is not installed, so the model folds alone; this costs accuracy, above all on families unseen in "
    "training (F1 0.50 instead of 0.62 on bpRNA-new); install it with: pip install 'rinalmo[fold]'"
)

_USUAL_TARGETS = ("structure", "dot_bracket", "secondary_structure", "dbn")
Scores = Mapping[float | None, np.ndarray]  # precision, recall and F1 by threshold, exact and ±1: (2, 3)


@dataclass(frozen=True)
class _Head:
    """A head's module and default shape, its decoder, and the thresholds that are tried on validation data."""

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


class SecondaryStructure(Task):
    """Base pairs of an RNA."""

    name = "secondary-structure"
    options = ("head", "channels", "num_blocks", "window")
    selection_metric = "f1_relaxed"
    per = "nucleotide"
    window: int

    def __init__(
        self, head: str = "pairs", channels: int | None = None, num_blocks: int | None = None, window: int = WINDOW
    ) -> None:
        """The head "pairs" is the paper's, "partners" ours; width and depth have a default for each."""
        if head not in _HEADS:
            raise InputError(f"unknown head {head!r} for {self.name}; use {' or '.join(_HEADS)}")
        self.head, self.module, self.decoder = head, _HEADS[head].module, _HEADS[head].decoder
        self.shape = dict(_HEADS[head].shape)
        if channels is not None:
            self.shape["channels"] = channels
        if num_blocks is not None:
            self.shape["num_blocks"] = num_blocks
        self.window, self.min_probability = check_window(window), MIN_PROBABILITY
        self.thermodynamics: Weight = 0.0  # in training the model folds alone
        self.combiner: Combiner | None = None  # the model's, after the first batch
        # The paper's head has no name in the settings, as before there was another.
        named = {} if head == "pairs" else {"head": head}
        self.settings = named | self.shape | ({} if window == WINDOW else {"window": window})

    def with_options(
        self,
        *,
        window: int | None = None,
        thermodynamics: Weight | None = None,
        min_probability: float | None = None,
    ) -> Self:
        """A copy with other options of folding; None: as it is."""
        task = copy.copy(self)
        task.window = self.window if window is None else check_window(window)
        task.thermodynamics = self.thermodynamics if thermodynamics is None else thermodynamics
        task.min_probability = self.min_probability if min_probability is None else min_probability
        return task

    @classmethod
    def read(cls, path: Path, columns: Columns) -> list[Example]:
        if table_format(path) is None:
            if columns.group is not None:
                raise InputError(
                    f"{path}: only tables have columns such as {columns.group!r}; leave out --group, or in a recipe "
                    "data.columns.group"
                )
            structures = read_structures(path)
            return [Example(s.name, s.sequence, s.pairs, where=f"{path}, record {s.name}") for s in structures]
        examples = []
        for e in read_single_target(path, columns, _USUAL_TARGETS, cls.name):
            require(e.target not in (None, ""), e, "has no structure; delete the row")
            try:
                pairs = Structure.from_dot_bracket(e.name, e.sequence, str(e.target)).pairs
            except InputError as error:
                raise InputError(f"{e.where}: {error}") from None
            examples.append(Example(e.name, e.sequence, pairs, e.group, e.where))
        return examples

    @classmethod
    def from_examples(cls, examples: Sequence[Example], options: Mapping[str, Any]) -> Self:
        task = cls(**options)
        task.thresholds = _HEADS[task.head].thresholds
        return task

    def heads(self) -> dict[str, dict[str, Any]]:
        return {self.module: self.shape}

    def forward(self, model: RiNALMo, ids: Tensor, states: Tensor, layout: Layout) -> Sequence[Tensor]:
        if self.thermodynamics == LEARNED and self.combiner is None:
            combiner = model.head("combiner")
            assert isinstance(combiner, Combiner)
            # Its evidence is scattered reads of small tensors: nothing for a GPU, nor for half precision.
            self.combiner = copy.deepcopy(combiner).float().cpu()
        head, outputs = model.head(self.module), []
        table = torch.tensor(list(map("ACGU".find, model.alphabet.tokens)), device=ids.device) % (UNKNOWN + 1)
        for part, letters in zip(layout.split(states), layout.split(table[ids]), strict=True):
            part, letters = part[1:-1], letters[1:-1]  # without CLS and EOS
            outputs.append(head(part)[..., 0] if self.head == "pairs" else head(part, letters))
        return outputs

    def loss(self, model: RiNALMo, outputs: Sequence[Tensor], examples: Sequence[Example]) -> Tensor:
        loss = _pair_loss if self.head == "pairs" else _partner_loss
        pairs = zip(outputs, examples, strict=True)
        return torch.stack([loss(output, example.target) for output, example in pairs]).sum()

    def merge_windows(self, example: Example, outputs: Iterator[Tensor]) -> PairList:
        length, parts, conditions = len(example.sequence), [], example.conditions
        for window, output in zip(windows_of(length, self.window), outputs, strict=True):
            part = None if conditions is None else conditions.part(window.start, window.stop)
            matrix = self.probabilities(output, example.sequence[window.start : window.stop], part)
            assert isinstance(matrix, np.ndarray)
            parts.append(window.pairs(matrix, self.min_probability))
        merged: np.ndarray | PairList = PairList.of(length, parts)
        if conditions is not None:
            merged = conditions.applied(merged)
        assert isinstance(merged, PairList)
        return merged

    def probabilities(
        self,
        output: Tensor | PairList,
        sequence: str,
        conditions: Conditions | None = None,
        thermodynamics: Ensemble | None = None,
    ) -> np.ndarray | PairList:
        """The pair probabilities `(length, length)` from the head's output; a list of merged windows as it is.

        The ensemble of `thermodynamics` is computed if it is needed and not given.
        """
        if isinstance(output, PairList):
            return output
        if conditions is not None:
            output = self._conditioned(output, conditions)
        if self.thermodynamics and thermodynamics is None:
            thermodynamics = ensemble(sequence, conditions)
        if self.thermodynamics == LEARNED:
            assert self.combiner is not None
            assert thermodynamics is not None
            with torch.inference_mode():
                matrix = self.combiner.matrix(evidence_from(output, sequence, thermodynamics)).numpy()
        else:
            if self.head == "pairs":
                matrix = output.float().sigmoid().fill_diagonal_(0).cpu().numpy()
            else:
                matrix = ((output + output.T) / 2).exp().fill_diagonal_(0).cpu().numpy()
            if thermodynamics is not None:
                weight = float(self.thermodynamics)
                matrix = (1 - weight) * matrix + weight * thermodynamics.matrix()
        return matrix if conditions is None else conditions.applied(matrix)

    def _conditioned(self, output: Tensor, conditions: Conditions) -> Tensor:
        """The head's output for an RNA under a constraint; each partner's distribution is that of allowed partners."""
        constraint, length = conditions.constraint, len(output)
        if constraint is None and conditions.max_span is None:
            return output
        allowed = torch.from_numpy(conditions.allowed(length)).to(output.device)
        if self.head == "pairs":
            return output.masked_fill(~allowed, -torch.inf)
        if constraint is None:
            allowed.fill_diagonal_(True)
        else:
            i, j = torch.as_tensor(_pair_array(constraint.pairs)).T
            unpaired = torch.from_numpy(~constraint.required()).to(output.device)
            unpaired[i] = unpaired[j] = False
            allowed.diagonal().copy_(unpaired)
        masked = output.float().masked_fill(~allowed, -torch.inf)
        if constraint is not None:
            masked[i, j] = masked[j, i] = 0.0  # a certain pair, also of nucleotides that are no candidate
        total = masked.logsumexp(1, keepdim=True)
        return torch.where(total.isfinite(), masked - total, masked)

    def threshold(self, model: RiNALMo) -> float | None:
        """The minimum probability of a pair: tuned on this model's validation data, or fixed with thermodynamics.

        None: each RNA has its own (`rinalmo.rna.decoding.decode`). That needs calibrated probabilities, which a
        combiner gives.
        """
        if self.thermodynamics == LEARNED:
            return None
        if self.thermodynamics:
            return THERMODYNAMICS_THRESHOLD
        return DEFAULT_THRESHOLD if model.spec.threshold is None else model.spec.threshold

    def score_example(self, model: RiNALMo, output: Tensor | PairList, example: Example) -> Scores:
        own, probabilities = self.threshold(model), self.probabilities(output, example.sequence)
        thresholds = [None] if own is None else sorted({*self.thresholds, own})
        scores: dict[float | None, np.ndarray] = {}
        for threshold in thresholds:
            # Greedy decoding at a higher threshold gives the same pairs without the less probable ones.
            if threshold is None or self.decoder != "greedy" or not scores:
                pairs = decode(probabilities, example.sequence, self.decoder, threshold=threshold)
                i, j = _pair_array(pairs).T
                values = probabilities.at(i, j) if isinstance(probabilities, PairList) else probabilities[i, j]
            else:
                pairs = [pair for pair, value in zip(pairs, values, strict=True) if value > threshold]
                values = values[values > threshold]
            both = [pair_scores(example.target, pairs, tolerance=tolerance) for tolerance in (0, 1)]
            scores[threshold] = np.array(both)
        return scores

    def tune_threshold(self, scores: Sequence[Scores]) -> float:
        return max(self.thresholds, key=lambda t: float(np.mean([of[t][1, 2] for of in scores])))

    def example_metrics(self, scores: Sequence[Scores], threshold: float | None) -> dict[str, np.ndarray]:
        chosen = DEFAULT_THRESHOLD if threshold is None and self.thermodynamics != LEARNED else threshold
        values = np.stack([of[chosen] for of in scores])
        return {
            name + ending: values[:, row, column]
            for row, ending in enumerate(("", "_relaxed"))
            for column, name in enumerate(("precision", "recall", "f1"))
        }

    def metrics(self, scores: Sequence[Any], targets: Sequence[Any], threshold: float | None) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in self.example_metrics(scores, threshold).items()}

    def rows(self, model: RiNALMo, output: Tensor | PairList, example: Example) -> list[dict[str, Any]]:
        probabilities = self.probabilities(output, example.sequence)
        pairs = decode(probabilities, example.sequence, self.decoder, threshold=self.threshold(model))
        text = Structure(example.name, example.sequence, tuple(pairs)).dot_bracket
        return [{"id": example.name, "sequence": example.sequence, "structure": text}]


# Windows


@dataclass(frozen=True)
class Window:
    """Nucleotides `start:stop` of an RNA, and the pairs that are taken from there: `first <= i + j < last`."""

    start: int
    stop: int
    first: int
    last: int

    def pairs(self, probabilities: np.ndarray, min_probability: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Its own pairs above `min_probability`: `i`, `j`, values, with positions in the whole RNA."""
        i, j = np.divmod(np.flatnonzero(probabilities > min_probability), len(probabilities))
        own = (i < j) & (i + j >= self.first - 2 * self.start) & (i + j < self.last - 2 * self.start)
        i, j = i[own], j[own]
        return (i + self.start).astype(np.int32), (j + self.start).astype(np.int32), probabilities[i, j]

    def own_rows(self, states: np.ndarray) -> np.ndarray:
        """Of an array with a row for each of its nucleotides, those of the nucleotides that are taken from here."""
        return states[-(-self.first // 2) - self.start : -(-self.last // 2) - self.start]


def check_window(size: int) -> int:
    """The size; raises InputError for windows that are too small for a hairpin and its surroundings."""
    if size < MIN_WINDOW:
        raise InputError(f"a window of {size} nt is too small to fold; use {MIN_WINDOW} or more")
    return size


def windows_of(length: int, size: int) -> list[Window]:
    """The windows of an RNA; only one if it is not longer than `size`."""
    count = 1 + -(-max(0, length - size) // max(1, size // 2))
    starts = [n * (length - size) // max(1, count - 1) for n in range(count)] if count > 1 else [0]
    stops = [min(length, start + size) for start in starts]
    middles = [start + stop - 1 for start, stop in zip(starts, stops, strict=True)]  # twice, as i + j is
    borders = [0, *(-(-(a + b) // 2) for a, b in itertools.pairwise(middles)), 2 * length]
    return [Window(*each) for each in zip(starts, stops, borders[:-1], borders[1:], strict=True)]


def window_note(name: str, length: int, window: int) -> str:
    """The limits of a structure that is folded in windows."""
    return (
        f"record {one_line(name)} of {length:,} nt is folded in windows of {window:,}: pairs farther apart are not "
        f"found, and those more than {window // 2:,} apart may be missed"
    )


# Thermodynamics


def resolve_thermodynamics(spec: ModelSpec, given: Weight | None, note: Callable[[str], Any]) -> Weight:
    """The weight of thermodynamics that a model folds with.

    By default a model folds with its combiner, if it has one; otherwise with the head `partners` by `DEFAULT_WEIGHT`.
    Models with the paper's head fold alone, as they were published and tuned. If ViennaRNA is missing, all do, and
    `note` gets one line.

    Raises:
        InputError: The weight is out of range.
        CheckpointError: `LEARNED` for a model without a combiner.
        MissingExtraError: A weight above 0 was given and ViennaRNA is not installed.
    """
    if given is None:
        default = LEARNED if "combiner" in spec.heads else DEFAULT_WEIGHT if "partner_head" in spec.heads else 0.0
        if default and not has_vienna():
            note(WITHOUT_VIENNA)
            return 0.0
        return default
    if given == LEARNED:
        if "combiner" not in spec.heads:
            raise CheckpointError("this model has no combiner for thermodynamics; give a weight between 0 and 1")
    elif isinstance(given, str) or not 0 <= given <= 1:
        raise InputError(f"the weight of thermodynamics is {given}; it must be between 0 and 1")
    if given:
        need_vienna()
    return given


def evidence_from(output: Tensor, sequence: str, thermodynamics: Ensemble) -> Evidence:
    """A combiner's input: the output of the head `partners` and a partition function."""
    letters = torch.tensor(list(map("ACGU".find, sequence.upper().replace("T", "U"))), dtype=torch.long)
    in_mfe = torch.zeros(output.shape, dtype=torch.bool)
    ends = torch.as_tensor(_pair_array(pairs_of(thermodynamics.mfe_structure)))
    in_mfe[ends[:, 0], ends[:, 1]] = in_mfe[ends[:, 1], ends[:, 0]] = True
    probabilities = torch.from_numpy(thermodynamics.matrix())
    nucleotides = letters % (UNKNOWN + 1)
    return Evidence.of(
        output.float().cpu(), nucleotides, probabilities, in_mfe, thermodynamics.mfe, thermodynamics.energy
    )


# Losses


def _pair_loss(logits: Tensor, pairs: Any) -> Tensor:
    """The mean binary cross-entropy over all pairs of positions, each counted once."""
    target = torch.zeros_like(logits, dtype=torch.float32)
    ends = torch.as_tensor(_pair_array(pairs), device=logits.device)
    target[ends[:, 0], ends[:, 1]] = 1.0
    upper = torch.ones_like(logits, dtype=torch.bool).triu(1)
    return F.binary_cross_entropy_with_logits(logits.float()[upper], target[upper])


def _partner_loss(output: Tensor, pairs: Any) -> Tensor:
    """The mean over nucleotides of the negative log-probability of the true partner, or of having none.

    Nucleotides whose true pair is no candidate do not count.
    """
    partner = torch.arange(len(output))
    ends = torch.as_tensor(_pair_array(pairs))
    partner[ends[:, 0]], partner[ends[:, 1]] = ends[:, 1], ends[:, 0]
    log_probabilities = output.gather(1, partner[:, None].to(output.device))[:, 0]
    return -log_probabilities[log_probabilities.isfinite()].sum() / max(1, len(output))


def _pair_array(pairs: Any) -> np.ndarray:
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2)

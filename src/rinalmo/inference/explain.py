"""What a fine-tuned model looks at: the share of each nucleotide in a prediction, and contacts from attention.

Attributions are integrated gradients from a baseline in which each nucleotide's embedding is the mean of those of A, C,
G and U; CLS, EOS and padding stay. They add up to the prediction minus that of the baseline, in which all words of
nucleotides that a linear head counts are equally frequent. Zeros, the usual baseline, tell nothing here: the first
layer normalizes the embedding, and so removes its scale.

Contacts are the attention of all heads between nucleotides, each map made symmetric and corrected by the average
product of its rows and columns, averaged over heads and layers. They show where the model looks, not base pairs.

Source: Sundararajan et al. 2017 (arXiv:1703.01365) for integrated gradients; Rao et al. 2020
(10.1101/2020.12.15.422761) for contacts from attention; Dunn et al. 2008 (10.1093/bioinformatics/btm604) for the
average product correction.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rinalmo.engine.devices import DeviceLike, choose_device
from rinalmo.errors import InputError
from rinalmo.inference.contacts import attention_maps
from rinalmo.io.files import counted
from rinalmo.io.sequences import (
    Record,
    SequenceFile,
    Sequences,
    as_records,
    check_positive_int,
    encode,
    require_nonempty,
)
from rinalmo.io.tables import Row, check_rows_output, write_rows
from rinalmo.model.packing import Layout, pack, pack_padded
from rinalmo.model.rinalmo import RiNALMo
from rinalmo.plots.positions import check_heat_map, draw_heat_map
from rinalmo.rna.alphabet import NUCLEOTIDES, kmer_count, kmers
from rinalmo.tasks.base import Task
from rinalmo.tasks.evaluate import task_of
from rinalmo.tasks.secondary_structure import SecondaryStructure
from rinalmo.tasks.sequence_tasks import Regression
from rinalmo.tasks.table import Table
from rinalmo.weights.checkpoint import load

logger = logging.getLogger(__name__)

STEPS = 128
MIN_DISTANCE = 4  # nucleotides from one end of a contact to the other, as in structures
_BATCH_TOKENS = 2048
_MAX_GAP = 0.01  # of the sum of all attributions' sizes


@dataclass(frozen=True)
class Explanation:
    """What a model looks at in one sequence.

    Attributes:
        record: The sequence, cropped as the model sees it.
        start: Where the crop begins in the whole sequence, from 0.
        output: The name of the predicted value; empty for a model of structures.
        prediction: Its value: a number, or the logit of a class.
        baseline: The value for the baseline, in which every nucleotide is the mean of all four.
        attributions: Share of each nucleotide in `prediction - baseline`, `(length,)`; NaN for a model of structures.
        contacts: Symmetric scores, `(length, length)`.
    """

    record: Record
    start: int
    output: str
    prediction: float
    baseline: float
    attributions: np.ndarray
    contacts: np.ndarray

    def rows(self) -> Iterator[Row]:
        """One row for each nucleotide, with the best of its contacts."""
        length = len(self.record.sequence)
        places = np.arange(length)
        far = np.abs(places[:, None] - places) >= MIN_DISTANCE
        scores = np.where(far, self.contacts, -np.inf)
        for n, letter in enumerate(self.record.sequence):
            row: Row = {"id": self.record.id, "position": self.start + n + 1, "nucleotide": letter}
            if self.output:
                row |= {"output": self.output, "attribution": float(self.attributions[n])}
            best = int(scores[n].argmax())
            is_any = bool(far[n].any())
            row["contact"] = self.start + best + 1 if is_any else None
            yield row | {"contact_score": float(scores[n, best]) if is_any else None}


def explain(
    sequences: Sequences,
    model: str | Path | RiNALMo,
    *,
    output: str | None = None,
    steps: int = STEPS,
    device: DeviceLike = None,
) -> Iterator[Explanation]:
    """Explain the predictions of a fine-tuned model.

    Args:
        sequences: One or more sequences, FASTA records, a data frame, or the `Path` of a FASTA file or table.
        model: A name, folder, file or loaded model, for a value or class of whole sequences; one for structures gives
            contacts alone. Computed in fp32.
        output: The column or class to explain. None: the only column, or the most probable class of each sequence.
        steps: Points of the integral, for each of which the model runs once, forward and backward.
        device: "auto" (CUDA, then MPS, then the CPU), "cpu", "cuda", "cuda:N" or "mps"; None: where a loaded model is.

    Yields:
        An explanation of each sequence, in order.

    Raises:
        CheckpointError: The model was not fine-tuned.
        InputError: The model predicts something for each nucleotide, has no such output, or several and none is named.

    Examples:
        >>> from rinalmo.inference.explain import explain
        >>> (explanation,) = explain("GGGGGAAAACCCCC", "nano-fold")
        >>> explanation.contacts.shape
        (14, 14)
    """
    check_positive_int("steps", steps)
    if not isinstance(model, RiNALMo):
        model = load(model, device=choose_device(device))
    elif device is not None:
        model = model.to(choose_device(device))
    task = task_of(model.spec)
    names = _outputs(task)
    if output is not None and output not in names:
        raise InputError(f"the model has no output {output!r}; it has {', '.join(names) or 'only structures'}")
    is_multiclass = isinstance(task, Table) and task.kind == "multiclass"
    if output is None and len(names) > 1 and not is_multiclass:
        raise InputError(f"the model predicts {', '.join(names)}; choose one with --output-name")
    chosen = None if output is None else names.index(output)
    for record in require_nonempty(as_records(sequences)):
        sequence = task.crop.of(record.sequence) if task.crop else record.sequence
        seen = Record(record.id, record.description, sequence, record.number)
        start = task.crop.start(len(record.sequence)) if task.crop else 0
        nothing = np.full(len(seen.sequence), np.nan)
        was_training = model.training
        model.eval()
        try:
            explanation = Explanation(seen, start, "", np.nan, np.nan, nothing, _contacts(seen, model))
            if names:
                explanation = _attribute(explanation, model, task, names, chosen, steps)
        finally:
            model.train(was_training)
        yield explanation


def _outputs(task: Task) -> list[str]:
    """The names of a task's outputs for a sequence; none for structures."""
    if isinstance(task, Regression):
        return ["prediction"]
    if isinstance(task, SecondaryStructure):
        return []
    if task.per != "sequence":
        raise InputError(f"{task.name} predicts values per nucleotide; only predictions per sequence can be explained")
    if task.inputs is not None:
        raise InputError("the model has more than one input; only predictions from a single sequence can be explained")
    if isinstance(task, Table):
        return list(task.classes) or list(task.targets)
    return []


def _scale(model: RiNALMo, task: Task, column: int) -> tuple[float, float]:
    """What makes a value of the head one in the units of the data: a factor, and what is added."""
    if isinstance(task, Regression):
        buffers = dict(model.head("ribosome_load_head").named_buffers())
        return float(buffers["target_std"]), float(buffers["target_mean"])
    if isinstance(task, Table) and task.kind == "regression":
        return task.std[column], task.mean[column]
    return 1.0, 0.0


def _attribute(
    explanation: Explanation, model: RiNALMo, task: Task, names: list[str], column: int | None, steps: int
) -> Explanation:
    record, encoder = explanation.record, model.encoder
    ids = torch.from_numpy(encode(record, model.alphabet))
    nucleotides = slice(1, len(record.sequence) + 1)  # after CLS
    device = encoder.embedding.weight.device

    @torch.no_grad()
    def packed(count: int) -> tuple[Tensor, Layout, Tensor, Tensor]:
        """So many copies: token ids, layout, and embeddings `(copies, tokens, hidden)` of the baseline and the RNA."""
        copies, layout = pack([ids] * count, device)
        if task.pad_to:
            copies, layout = pack_padded(layout.split(copies), task.pad_to, model.alphabet.pad_id, layout.device)
        embedded = encoder.embedding(copies).unflatten(0, (count, -1))
        baseline = embedded.clone()
        baseline[:, nucleotides] = encoder.embedding.weight[list(model.alphabet.nucleotide_ids)].mean(dim=0)
        return copies, layout, baseline, embedded

    def values(copies: Tensor, layout: Layout, embedded: Tensor) -> Tensor:
        several = task.layers is not None
        out = encoder(copies, layout, inputs_embeds=lambda: embedded.flatten(0, 1), output_hidden_states=several)
        states = out.last_hidden_state
        if task.layers and out.hidden_states:
            states = torch.cat([out.hidden_states[layer] for layer in task.layers], dim=-1)
        return torch.stack([value.flatten() for value in task.forward(model, copies, states, layout)]).float()

    with torch.no_grad():
        copies, layout, baseline, embedded = packed(2)
        before, after = values(copies, layout, torch.stack([baseline[0], embedded[0]])).double().cpu().numpy()
    column = int(after.argmax()) if column is None else column
    factor, added = _scale(model, task, column)
    # The points and weights of Gauss and Legendre need far fewer steps than equal ones.
    points, weights = (torch.from_numpy(x).float().to(device) / 2 for x in np.polynomial.legendre.leggauss(steps))
    total = torch.zeros(len(ids), dtype=torch.float64)
    per_batch = max(1, _BATCH_TOKENS // max(len(ids), task.pad_to))
    for some, its_weights in zip((points + 0.5).split(per_batch), weights.split(per_batch), strict=True):
        copies, layout, baseline, embedded = packed(len(some))
        step = embedded - baseline
        place = (baseline + some[:, None, None] * step).requires_grad_()
        with torch.enable_grad():
            value = (values(copies, layout, place)[:, column] * its_weights).sum()
        (gradient,) = torch.autograd.grad(value, place)
        total += (gradient * step).sum(dim=(0, 2))[: len(ids)].double().cpu()
    if isinstance(task, Table) and task.features:
        of_words = _shares_of_words(model, task, ids.numpy(), column)
        total += torch.from_numpy(of_words)
        before[column] -= of_words.sum()
    return replace(
        explanation,
        output=names[column],
        prediction=factor * after[column] + added,
        baseline=factor * before[column] + added,
        attributions=factor * total[nucleotides].numpy(),
    )


def _shares_of_words(model: RiNALMo, task: Table, ids: np.ndarray, column: int) -> np.ndarray:
    """What the words of nucleotides that a linear head counts add to its output, `(tokens,)`.

    Their features change in steps, so that there is no gradient. The head is linear in them: each word gives its weight
    minus the mean of all words of its length, to each of its nucleotides alike.
    """
    assert task.features is not None
    shares, longest = np.zeros(len(ids)), int(task.features["kmers"])
    decoder: Any = model.head("linear_head").decoder
    weights = decoder.weight[column].detach().double().cpu().numpy()
    weights = weights[len(weights) - kmer_count(longest) :]
    for size in range(1, longest + 1):
        own, weights = weights[: 4**size] - weights[: 4**size].mean(), weights[4**size :]
        starts, words = kmers(ids, model.alphabet, size)
        for place in range(size):
            np.add.at(shares, starts + place, own[words] / (size * len(words)) if len(words) else 0.0)
    return shares


def _contacts(record: Record, model: RiNALMo) -> np.ndarray:
    """The attention of all heads and layers between nucleotides, symmetric and corrected."""
    ids, layout = pack([torch.from_numpy(encode(record, model.alphabet))], model.encoder.embedding.weight.device)
    with torch.inference_mode():
        total = sum(heads.mean(dim=0).double() for (heads,) in attention_maps(model, ids, layout))
    return (total / len(model.encoder.blocks)).cpu().numpy()  # type: ignore[union-attr]


def explain_file(
    source: str | Path,
    output: str | Path,
    model: str | Path,
    *,
    name: str | None = None,
    steps: int = STEPS,
    plot: Path | None = None,
    device: DeviceLike = None,
) -> int:
    """Write a table of explanations, one row for each nucleotide.

    Args:
        source: A FASTA file or table; "-" is FASTA on standard input.
        output: .csv, .tsv, .jsonl or .parquet; "-" writes CSV to standard output.
        model: A name, folder or file.
        name: See `output` of `explain`.
        steps: See `explain`.
        plot: A heat map of the attributions in the only sequence, .svg or .png.
        device: See `explain`.

    Returns:
        The number of sequences.

    Raises:
        InputError: The input cannot be used, or what `explain` raises.
    """
    check_rows_output(output)
    records: Iterable[Record] = SequenceFile(source)
    if plot is not None:
        records = list(records)
        check_heat_map(plot, [len(record.sequence) for record in records])
    count = 0

    def rows() -> Iterator[Row]:
        nonlocal count
        for explanation in explain(records, model, output=name, steps=steps, device=device):
            count += 1
            gap = abs(explanation.attributions.sum() - (explanation.prediction - explanation.baseline))
            if gap > _MAX_GAP * np.abs(explanation.attributions).sum():
                text = "%s: the sum of the attributions is off by %.2g; increase --steps"
                logger.warning(text, explanation.record.id, gap)
            if plot is not None:
                _draw(explanation, plot)
            yield from explanation.rows()

    write_rows(output, rows())
    if str(output) != "-":
        logger.info("%s: %s", output, counted(count, "sequence"))
    return count


def _draw(explanation: Explanation, plot: Path) -> None:
    if not explanation.output:
        raise InputError(f"{plot}: a structure model has no attributions to draw")
    sequence = explanation.record.sequence
    shares = np.full((len(sequence), len(NUCLEOTIDES)), np.nan)
    for n, letter in enumerate(sequence):
        if letter in NUCLEOTIDES:
            shares[n, NUCLEOTIDES.index(letter)] = explanation.attributions[n]
    title = f"{explanation.record.id}, {explanation.output}: {explanation.prediction:.4g}"
    draw_heat_map(shares, sequence, title, plot, label="attribution")

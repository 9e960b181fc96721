"""From pair probabilities to a structure. Three methods, one set of candidates.

    greedy     the paper's: the most probable pair first, each nucleotide in at most one pair; may cross
    nested     the heaviest set of pairs without pseudoknots, by dynamic programming (`rinalmo.rna.structure`)
    matching   the heaviest set of pairs, crossing or not: a maximum-weight matching

A candidate is a pair above the threshold, far enough apart and, by default, canonical. The last two methods maximize
the sum of probability - threshold, so that every pair above the threshold gains. For nested structures this is the
γ-centroid estimator, with threshold = 1 / (γ + 1).

Without a threshold each RNA gets its own: that of `THRESHOLDS` whose structure has the highest expected F1 if the
probabilities are right, where a pair with one end off by one counts as right.

References: Penić et al. 2025 (arXiv:2403.00043) for greedy; Hamada et al. 2009 (Bioinformatics 25:465) for the sum;
Hamada, Sato & Asai 2010 (BMC Bioinformatics 11:586) for the expected F1.
"""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import local
from typing import Any, Self, TypeVar

import numpy as np

from rinalmo.errors import InputError, SequenceError, import_extra
from rinalmo.rna.constraints import Constraint
from rinalmo.rna.structure import PairList, can_pair, canonical_mask, heaviest_nested

METHODS = ("greedy", "nested", "matching")
MIN_DISTANCE = 4  # a hairpin loop has at least three nucleotides
THRESHOLDS = (0.1, 0.15, 0.2, 0.25)  # the candidates where no threshold is given
_WEIGHT_STEPS = 2**40  # matching computes in integers

Pairs = list[tuple[int, int]]


def decode(
    probabilities: np.ndarray | PairList,
    sequence: str,
    method: str = "greedy",
    *,
    threshold: float | None = 0.5,
    canonical: bool = True,
    min_distance: int = MIN_DISTANCE,
    max_span: int | None = None,
    constraint: Constraint | None = None,
) -> Pairs:
    """Choose the pairs of a structure by their probabilities.

    Args:
        probabilities: Pair probabilities, a symmetric array `(length, length)` of which the upper triangle is read, or
            a list of pairs.
        sequence: The RNA. T reads as U, in either case.
        method: `greedy`, `nested` or `matching`; the last needs the extra `fold`.
        threshold: A candidate pair is more probable than this; None chooses a threshold for this RNA.
        canonical: Candidates are AU, GC and GU pairs only.
        min_distance: Candidates have j - i of at least this.
        max_span: Candidates have j - i below this.
        constraint: The pairs that it gives are in the structure, and every other pair agrees with it. Where greedy
            leaves a nucleotide unpaired that it wants paired, nested is used.

    Returns:
        Pairs `(i, j)`, i < j, counted from 0, in order of i; each nucleotide is in at most one. Of equal probabilities
        greedy takes that with the smaller i, then j; the other methods give the same result every time.

    Raises:
        InputError: The shapes do not match or the method is unknown.
        SequenceError: No structure meets the constraint.
        MissingExtraError: The method is `matching`, and rustworkx is not installed.

    Examples:
        >>> import numpy as np
        >>> from rinalmo.rna.decoding import decode
        >>> probabilities = np.zeros((10, 10))
        >>> probabilities[0, 9] = probabilities[9, 0] = 0.9
        >>> decode(probabilities, "GGAAAAAACC")
        [(0, 9)]
    """
    if method not in METHODS:
        raise InputError(f"unknown decoding method {method!r}; use {', '.join(METHODS)}")
    if threshold is None:
        choose = partial(decode, canonical=canonical, min_distance=min_distance, max_span=max_span)
        structures = []
        for each in THRESHOLDS:
            structures.append(choose(probabilities, sequence, method, threshold=each, constraint=constraint))
        return max(structures, key=partial(expected_f1, probabilities))
    if math.isnan(threshold):
        raise InputError("the threshold is nan; give a probability")
    length = len(sequence)
    if probabilities.shape != (length, length):
        raise InputError(f"probabilities of shape {probabilities.shape} do not fit a sequence of {length} nt")
    # The candidates, in order of rows, then columns.
    if isinstance(probabilities, PairList):
        pairs = probabilities
        allowed = (pairs.values > threshold) & (pairs.j - pairs.i >= min_distance)
        if canonical:
            allowed &= can_pair(sequence, pairs.i, pairs.j)
        rows, columns, values = pairs.i[allowed], pairs.j[allowed], pairs.values[allowed]
    else:
        position = np.arange(length, dtype=np.int32)
        allowed = probabilities > threshold
        allowed &= position >= position[:, None] + min_distance
        if canonical:
            allowed &= canonical_mask(sequence)
        rows, columns = np.divmod(np.flatnonzero(allowed), max(length, 1))
        values = probabilities[rows, columns]
    if max_span is not None:
        near = columns - rows < max_span
        rows, columns, values = rows[near], columns[near], values[near]
    rules: dict[str, Any] = {"canonical": canonical, "min_distance": min_distance, "max_span": max_span}
    required: Any = np.zeros(length, dtype=bool)
    ends: Any = 0
    if constraint is not None:
        constraint.check(sequence, **rules, crossing=method != "nested")
        required = constraint.required()
        if required.any():
            # However improbable, a pair of a nucleotide that has to be paired is a candidate.
            i, j = np.array([(min(r, p), max(r, p)) for r in np.flatnonzero(required) for p in range(length)]).T
            possible = (
                (j - i >= min_distance) & (j - i < (max_span or length)) & (can_pair(sequence, i, j) | (not canonical))
            )
            keys = np.union1d(rows.astype(np.int64) * length + columns, i[possible] * length + j[possible])
            rows, columns = np.divmod(keys, length)
            values = _at(probabilities, rows, columns)
        fits = constraint.may_open()[rows] & constraint.may_close()[columns]
        if method == "nested":
            regions = constraint.regions()
            fits &= regions[rows] == regions[columns]
        rows, columns, values = rows[fits], columns[fits], values[fits]
        ends = required[rows].astype(np.int64) + required[columns]  # pairs with ends that have to be paired come first
    if method == "greedy":
        chosen = _greedy(rows, columns, values + ends, length)
    else:
        # In double precision, where weights stay above 0; the number of nucleotides is more than any structure weighs.
        weights = values.astype(np.float64) - threshold + length * ends
        solve = heaviest_nested if method == "nested" else partial(_matching, length=length)
        chosen = solve(rows, columns, weights)
    if constraint is None:
        return chosen
    missing = set(np.flatnonzero(required).tolist()).difference(end for pair in chosen for end in pair)
    if missing and method == "greedy":
        return decode(probabilities, sequence, "matching", threshold=threshold, constraint=constraint, **rules)
    if missing:
        problem = "cannot be paired together with the other nucleotides that the constraint pairs; relax the constraint"
        raise SequenceError(problem, position=min(missing) + 1)
    return sorted([*constraint.pairs, *chosen])


def _at(probabilities: np.ndarray | PairList, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    return probabilities.at(i, j) if isinstance(probabilities, PairList) else probabilities[i, j]


def expected_f1(probabilities: np.ndarray | PairList, pairs: Pairs) -> float:
    """The expected F1 of a structure if these probabilities are right; 0 for one without pairs.

    A pair counts as right if it, or it shifted by one at one end, is in the structure. This is the ratio of
    expectations, which is close to the expectation of the ratio and cheap.
    """
    if not pairs:
        return 0.0
    i, j = np.array(pairs).T
    near: Any = 0
    shifts = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
    if isinstance(probabilities, PairList):
        total = float(probabilities.values.sum())
        for di, dj in shifts:
            near = near + probabilities.at(i + di, j + dj)
    else:
        total, padded = float(np.triu(probabilities).sum()), np.pad(probabilities, 1)
        for di, dj in shifts:
            near = near + padded[i + di + 1, j + dj + 1]
    return 2 * float(np.minimum(near, 1).sum()) / (len(pairs) + total)


def _greedy(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, length: int) -> Pairs:
    """In rounds: a candidate that is the most probable one at both its ends is one that greedy would take."""
    order = np.argsort(-values)
    ordered = values[order]
    if (ordered[1:] == ordered[:-1]).any():  # keep the order of equal ones; a stable sort is slow, and ties are rare
        order = np.argsort(-values, kind="stable")
    rows, columns = rows[order], columns[order]
    partner = np.full(length, -1)
    while len(rows):
        rank = np.arange(len(rows))
        first = np.full((2, length), len(rows))
        first[0, rows[::-1]] = first[1, columns[::-1]] = rank[::-1]  # of several, the last to be written stays
        first = first.min(axis=0)
        wins = (first[rows] == rank) & (first[columns] == rank)
        partner[rows[wins]], partner[columns[wins]] = columns[wins], rows[wins]
        free = (partner[rows] < 0) & (partner[columns] < 0)
        rows, columns = rows[free], columns[free]
    return [(i, j) for i, j in enumerate(partner.tolist()) if i < j]


def _matching(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, length: int) -> Pairs:
    rustworkx = import_extra("rustworkx", "fold", "decoding by matching")
    graph = rustworkx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(length))
    steps = np.maximum(np.rint(weights * _WEIGHT_STEPS), 1).astype(np.int64)
    graph.add_edges_from(list(zip(rows.tolist(), columns.tolist(), steps.tolist(), strict=True)))
    return sorted((min(pair), max(pair)) for pair in rustworkx.max_weight_matching(graph, weight_fn=int))


Item = TypeVar("Item")
R = TypeVar("R")

MAX_PROCESSES = 16
_AHEAD = 4  # RNAs per process that are decoded or wait for it
_PACKAGE = Path(__file__).parents[2]


def other_processes() -> int:
    """How many processes can decode beside this one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_PROCESSES, max(1, cores - 1))


class Decoder:
    """Calls functions for a stream of RNAs, such as `decode` and `ensemble`, in this process or in others.

    The others start when this one has called for `patience` seconds, and end with the `with` block. With 0 `processes`
    this one does it all. The attribute `processes` is the number of others that make calls now.
    """

    def __init__(self, processes: int = 0, patience: float = 0.0) -> None:
        self.processes = processes if patience <= 0 else 0
        self._later, self._patience = processes, patience
        self._pool: ThreadPoolExecutor | None = None
        self._threads, self._started = local(), list[_Process]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in self._started:
                process.end()
            self._pool.shutdown()
        self._pool, self._started = None, []

    def map(self, calls: Iterable[tuple[Item, Callable[[], R] | None]]) -> Iterator[tuple[Item, R | None]]:
        """Yield each item with the result of its call, in order; None for an item without a call.

        Calls have to be picklable, and their results are not None.
        """
        calls, waiting = iter(calls), deque[tuple[Item, Callable[[], R] | None, Future[R | None] | None]]()
        while True:
            while len(waiting) <= _AHEAD * self.processes and (following := next(calls, None)) is not None:
                item, call = following
                future = None
                if self.processes and call is not None:
                    self._pool = self._pool or ThreadPoolExecutor(self.processes, "rinalmo-decoder")
                    future = self._pool.submit(self._ask, call)
                waiting.append((item, call, future))
            if not waiting:
                return
            item, call, future = waiting.popleft()
            answer = None
            if future is not None:
                try:
                    answer = future.result()
                except (OSError, EOFError, ValueError, pickle.UnpicklingError):
                    if self.processes:
                        message = "decoding continues in this process: the worker processes did not start or died"
                        warnings.warn(message, stacklevel=2)
                    self.processes = 0
            if answer is None and call is not None:
                start = time.perf_counter()
                answer = call()
                if self._patience > 0:
                    self._patience -= time.perf_counter() - start
                    self.processes = self._later if self._patience <= 0 else 0
            yield item, answer

    def _ask(self, call: Callable[[], R]) -> R | None:
        """The answer of the process that belongs to this thread."""
        if not hasattr(self._threads, "process"):
            self._threads.process = _Process()
            self._started.append(self._threads.process)
        return self._threads.process.ask(call)  # type: ignore[no-any-return]


class _Process:
    """Another Python that decodes. Not one of multiprocessing, which would run the user's script again in each."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, [str(_PACKAGE), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from rinalmo.rna.decoding import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the process that started it
        )

    def ask(self, call: Callable[[], Any]) -> Any:
        """The result of a call; None if it raises."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        pickle.dump(call, stdin, pickle.HIGHEST_PROTOCOL)
        stdin.flush()
        return pickle.load(stdout)

    def end(self) -> None:
        """Stop it, also in the middle of an RNA."""
        self._process.kill()
        self._process.wait()


def serve() -> None:
    """The other end of `_Process`: make calls until there are no more."""
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output that libraries print must not mix with answers
    while True:
        try:
            call = pickle.load(calls)
        except EOFError:
            return
        answer: Any
        try:
            answer = call()
        except Exception:  # raised again in the process that asked, which then makes the call itself
            answer = None
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


def pairs_above(probabilities: np.ndarray, threshold: float) -> PairList:
    """The pairs that are more probable, a small part of them all to send to another process.

    `decode` needs no others: those above its threshold, or above 0 if it has none or there is a constraint.
    """
    i, j = np.divmod(np.flatnonzero(probabilities > threshold), max(1, len(probabilities)))
    upper = i < j
    i, j = i[upper].astype(np.int32), j[upper].astype(np.int32)
    return PairList(len(probabilities), i, j, probabilities[i, j])

"""From pair probabilities to a structure. Three decoders, one set of candidates.

    greedy     the paper's: the most probable pair first, each nucleotide in at most one pair; may cross
    nested     the heaviest set of pairs without pseudoknots, by dynamic programming (`rinalmo.rna.structure`)
    matching   the heaviest set of pairs, crossing or not: a maximum-weight matching

A candidate is a pair above the threshold, far enough apart and, unless told otherwise, canonical. The last two maximise
the sum of probability - threshold, so that every pair above the threshold gains. For nested structures this is the
γ-centroid estimator, with threshold = 1 / (γ + 1).

Without a threshold each RNA gets its own: that of `THRESHOLDS` whose structure has the highest expected F1 if the
probabilities are right, counted with one end off by one allowed.

References: Penić et al. 2025 (arXiv:2403.00043) for greedy; Hamada et al. 2009 (Bioinformatics 25:465) for the sum;
Hamada, Sato & Asai 2010 (BMC Bioinformatics 11:586) for the expected F1.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import local
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from rinalmo.rna.thermodynamics import Ensemble, ensemble, pair_probabilities

if TYPE_CHECKING:
    from torch import Tensor


import math
from functools import partial

import numpy as np

from rinalmo.errors import InputError, MissingExtraError
from rinalmo.rna.structure import PairList, can_pair, canonical_mask, heaviest_nested

MIN_DISTANCE = 4  # a hairpin loop has at least three nucleotides
THRESHOLDS = (0.1, 0.15, 0.2, 0.25)  # of which one is chosen where none is given
_WEIGHT_STEPS = 2**40  # matching computes in integers

Pairs = list[tuple[int, int]]
Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, columns, probabilities; in order of rows, then columns


def decode(
    probabilities: np.ndarray | PairList,
    sequence: str,
    method: str = "greedy",
    *,
    threshold: float | None = 0.5,
    canonical: bool = True,
    min_distance: int = MIN_DISTANCE,
) -> Pairs:
    """Pairs `(i, j)`, i < j, counted from 0, in order of i; no nucleotide is in two.

    `probabilities` is symmetric, `(length, length)`, its upper triangle is read and nothing is changed; or it is a list
    of pairs, which needs no such square. A pair is a candidate if its probability is above `threshold`, j - i is at
    least `min_distance` and, with `canonical`, it is AU, GC or GU (T reads as U, in either case). `method` is greedy,
    nested or matching, which needs the extra `fold`. Equal probabilities: greedy takes them in order of i, then j; the
    others give the same answer every time.

    Raises InputError if the shapes do not fit or the method is unknown.
    """
    if method not in METHODS:
        raise InputError(f"there is no decoding method {method!r}; use {', '.join(METHODS)}")
    if threshold is None:
        each = [
            decode(probabilities, sequence, method, threshold=t, canonical=canonical, min_distance=min_distance)
            for t in THRESHOLDS
        ]
        return max(each, key=partial(expected_f1, probabilities))
    if math.isnan(threshold):
        raise InputError("the threshold is nan; give a probability")
    length = len(sequence)
    if probabilities.shape != (length, length):
        raise InputError(f"probabilities of shape {probabilities.shape} do not fit a sequence of {length} nt")
    found = _listed if isinstance(probabilities, PairList) else _in_matrix
    rows, columns, values = found(probabilities, sequence, threshold, canonical, min_distance)  # type: ignore[arg-type]
    # In double precision, where a value above the threshold stays above it.
    return METHODS[method](
        rows, columns, values if method == "greedy" else values.astype(np.float64) - threshold, length
    )


def expected_f1(probabilities: np.ndarray | PairList, pairs: Pairs) -> float:
    """The expected F1 of a structure if these probabilities are right; 0 for one without pairs.

    A pair counts as right if it or its shift by one at one end is real. It is the ratio of expectations, which is close
    to the expectation of the ratio and costs nothing.
    """
    if not pairs:
        return 0.0
    i, j = np.array(pairs).T
    if isinstance(probabilities, PairList):
        at, total = probabilities.at, float(probabilities.values.sum())
    else:
        around = np.pad(probabilities, 1)
        total = float(np.triu(probabilities).sum())

        def at(i: np.ndarray, j: np.ndarray) -> np.ndarray:
            return np.asarray(around[i + 1, j + 1])

    near = at(i, j) + at(i - 1, j) + at(i + 1, j) + at(i, j - 1) + at(i, j + 1)
    return 2 * float(np.minimum(near, 1).sum()) / (len(pairs) + total)


def _in_matrix(
    probabilities: np.ndarray, sequence: str, threshold: float, canonical: bool, min_distance: int
) -> Candidates:
    position = np.arange(len(sequence), dtype=np.int32)
    allowed = probabilities > threshold
    allowed &= position >= position[:, None] + min_distance
    if canonical:
        allowed &= canonical_mask(sequence)
    rows, columns = np.divmod(np.flatnonzero(allowed), max(len(sequence), 1))
    return rows, columns, probabilities[rows, columns]


def _listed(of: PairList, sequence: str, threshold: float, canonical: bool, min_distance: int) -> Candidates:
    allowed = (of.values > threshold) & (of.j - of.i >= min_distance)
    if canonical:
        allowed &= can_pair(sequence, of.i, of.j)
    return of.i[allowed], of.j[allowed], of.values[allowed]


def decode_greedy(
    probabilities: np.ndarray,
    sequence: str,
    threshold: float = 0.5,
    *,
    canonical: bool = True,
    min_distance: int = MIN_DISTANCE,
) -> Pairs:
    """`decode` with the paper's method."""
    return decode(probabilities, sequence, threshold=threshold, canonical=canonical, min_distance=min_distance)


def _greedy(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, length: int) -> Pairs:
    """In rounds: a candidate that comes first at both its ends is one that the search for maxima would take."""
    order = _descending(values)
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


def _descending(values: np.ndarray) -> np.ndarray:
    """The order of falling values, equal ones as they come. A stable sort is five times as slow, and ties are rare."""
    order = np.argsort(-values)
    ordered = values[order]
    return order if (ordered[1:] != ordered[:-1]).all() else np.argsort(-values, kind="stable")


def _matching(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, length: int) -> Pairs:
    try:
        import rustworkx
    except ImportError:
        raise MissingExtraError("rustworkx", "fold", "decoding by matching") from None
    graph = rustworkx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(length))
    steps = np.maximum(np.rint(weights * _WEIGHT_STEPS), 1).astype(np.int64)
    graph.add_edges_from(list(zip(rows.tolist(), columns.tolist(), steps.tolist(), strict=True)))
    return sorted((min(pair), max(pair)) for pair in rustworkx.max_weight_matching(graph, weight_fn=int))


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, int], Pairs]] = {
    "greedy": _greedy,
    "nested": lambda rows, columns, weights, length: heaviest_nested(rows, columns, weights),
    "matching": _matching,
}


Result = TypeVar("Result")
Probabilities = np.ndarray | PairList
Decoded = tuple[Probabilities, Pairs]

MAX_PROCESSES = 16
_AHEAD = 4  # RNAs of each process that are decoded or wait for it
_PACKAGE = Path(__file__).parents[2]


class Decoder:
    """Decodes RNAs, in the order that they come; its processes start when needed and end with the `with` block."""

    def __init__(self, processes: int = 0) -> None:
        """`processes` is the number of other processes; with 0 everything is decoded in this one."""
        self.processes = processes
        self._pool: ThreadPoolExecutor | None = None
        self._threads, self._started = local(), list[_Process]()

    @classmethod
    def beside(cls, device_type: str) -> Decoder:
        """The decoder for probabilities from this kind of device: other processes, if it is not the CPU."""
        return cls(0 if device_type == "cpu" else min(MAX_PROCESSES, max(1, _cores() - 1)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in self._started:
                process.end()
            self._pool.shutdown()
        self._pool, self._started = None, []

    def decoded(
        self, rnas: Iterable[tuple[str, Probabilities]], options: Mapping[str, Any], thermodynamics: float = 0.0
    ) -> Iterator[Decoded]:
        """Choose the pairs of each RNA.

        Args:
            rnas: Sequences with their pair probabilities. A `PairList` has thermodynamics in it already.
            options: For `rinalmo.rna.decoding.decode`.
            thermodynamics: The weight of ViennaRNA's probabilities beside those of a square, from 0 to 1.

        Yields:
            Probabilities, thermodynamics included, and pairs, in the order of the input.
        """
        waiting: deque[tuple[str, Probabilities, Future[Decoded | None] | None]] = deque()
        for sequence, probabilities in rnas:
            waiting.append((sequence, probabilities, self._submit(sequence, probabilities, options, thermodynamics)))
            if len(waiting) > _AHEAD * self.processes:
                yield self._result(*waiting.popleft(), options, thermodynamics)
        while waiting:
            yield self._result(*waiting.popleft(), options, thermodynamics)

    def ensembles(
        self, rnas: Iterable[tuple[str, Tensor | PairList]]
    ) -> Iterator[tuple[str, Tensor | PairList, Ensemble | None]]:
        """Compute the thermodynamics of each RNA.

        Args:
            rnas: Sequences with whatever goes with them. A `PairList` has thermodynamics in it already.

        Yields:
            The same, each with its ensemble, in the order of the input.
        """
        waiting: deque[tuple[str, Tensor | PairList, Future[Ensemble | None] | None]] = deque()

        def first() -> tuple[str, Tensor | PairList, Ensemble | None]:
            sequence, output, future = waiting.popleft()
            if isinstance(output, PairList):
                return sequence, output, None
            return sequence, output, self._finished(future) or ensemble(sequence)

        for sequence, output in rnas:
            future = None if isinstance(output, PairList) else self._start(ensemble, sequence)
            waiting.append((sequence, output, future))
            if len(waiting) > _AHEAD * self.processes:
                yield first()
        while waiting:
            yield first()

    def _submit(
        self, sequence: str, probabilities: Probabilities, options: Mapping[str, Any], thermodynamics: float
    ) -> Future[Decoded | None] | None:
        if self.processes and isinstance(probabilities, np.ndarray) and not thermodynamics:
            # Without a threshold the sum of all probabilities counts.
            probabilities = _likely(probabilities, options["threshold"] or 0.0)
        return self._start(_decode, sequence, probabilities, dict(options), thermodynamics)

    def _start(self, job: Callable[..., Result], *arguments: Any) -> Future[Result | None] | None:
        if not self.processes:
            return None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.processes, thread_name_prefix="rinalmo-decoder")
        return self._pool.submit(self._ask, job, *arguments)

    def _finished(self, future: Future[Result | None] | None) -> Result | None:
        if future is None:
            return None
        try:
            return future.result()
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            self._give_up()
            return None

    def _ask(self, *request: Any) -> Any:
        """The answer of the process that belongs to this thread."""
        if not hasattr(self._threads, "process"):
            self._threads.process = _Process()
            self._started.append(self._threads.process)
        return self._threads.process.ask(request)

    def _result(
        self,
        sequence: str,
        probabilities: Probabilities,
        future: Future[Decoded | None] | None,
        options: Mapping[str, Any],
        thermodynamics: float,
    ) -> Decoded:
        if (answer := self._finished(future)) is not None:
            return (answer[0] if thermodynamics else probabilities), answer[1]
        return _decode(sequence, probabilities, options, thermodynamics)

    def _give_up(self) -> None:
        if self.processes:
            warnings.warn("decoding goes on in this process: those beside it do not start, or have died", stacklevel=2)
        self.processes = 0


class _Process:
    """Another Python that decodes. Not of multiprocessing, which would run the user's script once more in each."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, [str(_PACKAGE), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from rinalmo.rna.decoding import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the process that started it
        )

    def ask(self, request: tuple[Any, ...]) -> Any:
        """What a function gives, of `request`'s first with the rest as its arguments, or None where it raises."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        pickle.dump(request, stdin, pickle.HIGHEST_PROTOCOL)
        stdin.flush()
        return pickle.load(stdout)

    def end(self) -> None:
        """Stop it, in the middle of an RNA if need be."""
        self._process.kill()
        self._process.wait()


def serve() -> None:
    """The other end of `_Process`: answers requests until there are no more."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print is no answer
    while True:
        try:
            job, *arguments = pickle.load(requests)
        except EOFError:
            return
        answer: Any
        try:
            answer = job(*arguments)
        except Exception:  # raised again in the process that asked, which does that RNA itself
            answer = None
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _decode(sequence: str, probabilities: Probabilities, options: Mapping[str, Any], thermodynamics: float) -> Decoded:
    if thermodynamics and isinstance(probabilities, np.ndarray):
        probabilities = blended(probabilities, sequence, thermodynamics)
    return probabilities, decode(probabilities, sequence, **options)


def blended(probabilities: np.ndarray, sequence: str, thermodynamics: float) -> np.ndarray:
    """A weighted mean of a model's pair probabilities and ViennaRNA's, in a new array if there is a weight."""
    if not thermodynamics:
        return probabilities
    mean = (1 - thermodynamics) * probabilities
    mean += thermodynamics * pair_probabilities(sequence)
    return mean


def _likely(probabilities: np.ndarray, threshold: float) -> PairList:
    """The pairs above a threshold; what decoders look at."""
    i, j = np.divmod(np.flatnonzero(probabilities > threshold), max(1, len(probabilities)))
    upper = i < j
    i, j = i[upper].astype(np.int32), j[upper].astype(np.int32)
    return PairList(len(probabilities), i, j, probabilities[i, j])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

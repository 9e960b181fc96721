"""From pair probabilities to pairs for many RNAs, in this process or in others beside it.

On a GPU the probabilities of an RNA take a millisecond or two, and the choice of its pairs many times that on a core.
There other processes decode while the GPU goes on; they get the few pairs above the threshold, not the square, and
never import torch.
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

import numpy as np

from rinalmo.rna.folding import Pairs, decode
from rinalmo.rna.pair_list import PairList
from rinalmo.rna.thermodynamics import Ensemble, ensemble, pair_probabilities

if TYPE_CHECKING:
    from torch import Tensor

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
            options: For `rinalmo.rna.folding.decode`.
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
            [sys.executable, "-c", "from rinalmo.tasks.decoding import serve; serve()"],
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

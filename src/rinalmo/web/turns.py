"""Who computes now: many visitors share one processor, and each batch is a turn.

Turns are taken in the order in which they were asked for, so that a long request cannot keep a short one waiting for
more than a batch of each of those before it. Before each turn it is seen whether anybody still waits for the answer.

All turns are computed in one thread. Requests come in ever new threads, and each of them would keep the memory of what
it computed: an arena of the C library as large as the largest batch, and buffers of torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from rinalmo.errors import RinalmoError

T = TypeVar("T")

_END = object()


class GoneError(RinalmoError):
    """The visitor has left, or the server stops: nothing more is computed for this request."""


class Turns:
    """A line of visitors. `stop` ends all work at the next turn, `leave` that of one session."""

    def __init__(self) -> None:
        self._computing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="turns")
        self._changing = threading.Lock()
        self._visits: set[Visit] = set()
        self._waiting = 0
        self._stopping = False

    @property
    def waiting(self) -> int:
        """How many turns have been asked for and have not begun."""
        return self._waiting

    @contextmanager
    def visit(self, session: str | None) -> Iterator[Visit]:
        """One request of a session, from its start to its end."""
        visit = Visit(self, session)
        with self._changing:
            self._visits.add(visit)
        try:
            yield visit
        finally:
            with self._changing:
                self._visits.remove(visit)

    def leave(self, session: str | None) -> None:
        """A visitor has closed the page: what is being computed for it ends at its next turn."""
        with self._changing:
            for visit in self._visits:
                visit.has_left |= visit.session == session

    def _wait(self, more: int) -> None:
        with self._changing:
            self._waiting += more

    def stop(self) -> None:
        """Let every request, also those to come, end with a word about it. Safe in a signal handler."""
        self._stopping = True


class Visit:
    """One request while it is being answered."""

    def __init__(self, turns: Turns, session: str | None) -> None:
        self._turns, self.session, self.has_left = turns, session, False

    def turn(self, compute: Callable[[], T]) -> T:
        """Compute, alone. Raises GoneError if nobody waits for the answer."""
        self._turns._wait(1)
        return self._turns._computing.submit(self._if_awaited, compute).result()

    def each(self, results: Iterable[T]) -> Iterator[T]:
        """The results of a lazy computation, each computed in a turn of its own."""
        iterator = iter(results)
        while (result := self.turn(lambda: next(iterator, _END))) is not _END:
            yield result  # type: ignore[misc]

    def _if_awaited(self, compute: Callable[[], T]) -> T:
        self._turns._wait(-1)
        if self._turns._stopping:
            raise GoneError("the server is being stopped; ask again when it is back")
        if self.has_left:
            raise GoneError("the page was closed")
        return compute()

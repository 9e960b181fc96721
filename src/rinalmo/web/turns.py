"""Who computes now: many visitors share one processor, and each batch is a turn.

Turns are taken in the order in which they were asked for, so that a long request cannot keep a short one waiting for
more than a batch of each of those before it (`threading.Lock` is not fair: whoever lets go of it mostly gets it
again). Before each turn it is seen whether anybody still waits for the answer.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rinalmo.errors import RinalmoError

T = TypeVar("T")


class GoneError(RinalmoError):
    """The visitor has left, or the server stops: nothing more is computed for this request."""


class Turns:
    """A line of visitors. `stop` ends all work at the next turn, `leave` that of one session."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._visits: set[Visit] = set()
        self._stopping = False

    @contextmanager
    def visit(self, session: str | None) -> Iterator[Visit]:
        """One request of a session, from its start to its end."""
        visit = Visit(self, session)
        with self._changed:
            self._visits.add(visit)
        try:
            yield visit
        finally:
            with self._changed:
                self._visits.remove(visit)

    def leave(self, session: str | None) -> None:
        """A visitor has closed the page: what is being computed for it ends at its next turn."""
        with self._changed:
            for visit in self._visits:
                visit.has_left |= visit.session == session

    def stop(self) -> None:
        """Let every request, also those to come, end with a word about it. Safe in a signal handler."""
        self._stopping = True

    @contextmanager
    def _turn(self, visit: Visit) -> Iterator[None]:
        place = object()
        with self._changed:
            self._line.append(place)
            self._changed.wait_for(lambda: self._line[0] is place)
        try:
            if self._stopping:
                raise GoneError("the server is being stopped; ask again when it is back")
            if visit.has_left:
                raise GoneError("the page was closed")
            yield
        finally:
            with self._changed:
                self._line.popleft()
                self._changed.notify_all()


class Visit:
    """One request while it is being answered."""

    def __init__(self, turns: Turns, session: str | None) -> None:
        self._turns, self.session, self.has_left = turns, session, False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Compute, alone. Raises GoneError if nobody waits for the answer."""
        with self._turns._turn(self):
            yield

    def each(self, results: Iterable[T]) -> Iterator[T]:
        """The results of a lazy computation, each computed in a turn of its own."""
        iterator = iter(results)
        while True:
            with self.turn():
                try:
                    result = next(iterator)
                except StopIteration:
                    return
            yield result

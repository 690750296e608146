"""How far a project is: counted now and then, never for each request."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tether.feedback.store import Store

Value = TypeVar("Value")


class Latest(Generic[Value]):
    """The latest known value of something slow, renewed by a thread when somebody asks for it.

    It is renewed at most every `seconds`, and at most a twentieth of the time is spent on it.
    """

    def __init__(
        self, compute: Callable[[Store], Value], store: Store, start: Value, seconds: float
    ) -> None:
        self._compute, self._store, self._seconds = compute, store, seconds
        self._value, self._due = start, 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def get(self) -> Value:
        """The last value; a newer one is on its way if this one is old."""
        with self._lock:
            if self._thread is None and time.monotonic() >= self._due:
                self._thread = threading.Thread(target=self._renew, daemon=True)
                self._thread.start()
            return self._value

    def close(self) -> None:
        """Wait for the thread, if there is one."""
        if (thread := self._thread) is not None:
            thread.join()

    def _renew(self) -> None:
        start = time.monotonic()
        try:
            self._value = self._compute(self._store)
        finally:
            self._store.close()
            now = time.monotonic()
            with self._lock:
                self._due = now + max(self._seconds, 20 * (now - start))
                self._thread = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Judgments that are there and wanted, and the items by their state; control items apart."""

    judged: int
    wanted: int
    waiting: int
    """Items that nobody has judged yet"""
    begun: int
    """Items that some but not all of their labelers have judged"""
    complete: int
    retired: int
    control: int

    @property
    def percent(self) -> int:
        """Share of the wanted judgments that are there, in whole percent, rounded down."""
        return 100 * self.judged // self.wanted if self.wanted else 0


Counts = Latest[Progress]


def count(store: Store) -> Progress:
    """Count the items and judgments of a project, by its indexes alone.

    `taken` of an item holds leases too; they are taken off again, so that an item counts by the
    judgments it has.
    """
    db = store.read()
    db.execute("BEGIN")  # all from the same moment
    states = Counter[tuple[int, int, int]]()
    for retired, needed, taken, number in db.execute(
        "SELECT retired, needed, taken, count(*) FROM items WHERE gold IS NULL "
        "GROUP BY needed, taken, retired"
    ):
        states[retired, needed, taken] += number
    for retired, needed, taken, leased in db.execute(
        "SELECT i.retired, i.needed, i.taken, count(*) FROM assignments AS a "
        "JOIN items AS i ON i.id = a.item "
        "WHERE a.state = 'leased' AND a.repeat = 0 AND i.gold IS NULL GROUP BY i.id"
    ):
        states[retired, needed, taken] -= 1
        states[retired, needed, taken - leased] += 1
    [control] = db.execute("SELECT count(*) FROM items WHERE gold IS NOT NULL AND retired = 0")
    db.execute("COMMIT")
    live = [(needed, taken, n) for (retired, needed, taken), n in states.items() if not retired]
    return Progress(
        judged=sum(n * min(taken, needed) for needed, taken, n in live),
        wanted=sum(n * needed for needed, _, n in live),
        waiting=sum(n for _, taken, n in live if taken == 0),
        begun=sum(n for needed, taken, n in live if 0 < taken < needed),
        complete=sum(n for needed, taken, n in live if taken >= needed),
        retired=sum(n for (retired, _, _), n in states.items() if retired),
        control=control[0],
    )

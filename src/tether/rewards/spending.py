"""What was asked and answered, what it cost, and how much may be spent.

Every answer goes into one SQLite file, under the hash of its request, before anybody uses it (WAL
with synchronous=FULL): whatever happens afterwards, it is never asked or paid for again. The same
file holds what all calls cost, so that a budget is one for all runs that share the file.
"""

import asyncio
import hashlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tether.errors import DataError, TetherError
from tether.servers import EndpointConfig

BUSY_SECONDS = 30.0  # how long a writer waits for another process
TEMPLATE_TOKENS = 64  # that a server's chat template may add to a request, and to each message

TABLES = """
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,              -- hash of the request
    answer TEXT,                    -- JSON; NULL: it was lost, but the server may charge for it
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost REAL NOT NULL,
    at REAL NOT NULL                -- seconds since 1970
);
CREATE UNIQUE INDEX IF NOT EXISTS answered ON calls (key) WHERE answer IS NOT NULL;
CREATE TABLE IF NOT EXISTS total (tokens INTEGER NOT NULL, cost REAL NOT NULL);
INSERT INTO total SELECT 0, 0.0 WHERE NOT EXISTS (SELECT 1 FROM total);
CREATE TRIGGER IF NOT EXISTS spend AFTER INSERT ON calls BEGIN
    UPDATE total
    SET tokens = tokens + NEW.input_tokens + NEW.output_tokens, cost = cost + NEW.cost;
END;
"""


class Usage(NamedTuple):
    """Tokens of one call."""

    input_tokens: int
    output_tokens: int

    def spent(self, config: EndpointConfig) -> "Spent":
        """The same with what it costs: tokens · price / 10⁶."""
        price = self.input_tokens * config.price_input + self.output_tokens * config.price_output
        return Spent(self.input_tokens + self.output_tokens, price / 1e6)


class Spent(NamedTuple):
    """Tokens, input and output together, and money."""

    tokens: int
    cost: float


class BudgetSpent(TetherError):
    """The next call could exceed the budget.

    Attributes:
        answered: What is known of the batch that was asked; None where nothing is.
    """

    answered: list[float | None]


def request_key(url: str, body: dict[str, Any]) -> str:
    """SHA-256 of a request: address, model, parameters, messages and seed."""
    text = json.dumps([url, body], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def at_most(body: dict[str, Any], output_tokens: int) -> Usage:
    """The most tokens that a request can take: a token is a byte of text or longer."""
    texts = [str(message["content"]) for message in body["messages"]]
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    return Usage(size + TEMPLATE_TOKENS * (len(texts) + 1), output_tokens)


class Ledger:
    """Answers and their cost, in one file that several processes may use; close it."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            DataError: It is no such file, or cannot be written.
        """
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{path}: cannot be opened as a cache of answers ({error})") from None
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(f"BEGIN IMMEDIATE; {TABLES} COMMIT;")
        except sqlite3.Error as error:
            self._db.close()
            raise DataError(
                f"{path}: cannot be used as a cache of answers ({error}); name another file"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def find(self, key: str) -> Any:
        """The answer to a request, or None."""
        found = self._db.execute(
            "SELECT answer FROM calls WHERE key = ? AND answer IS NOT NULL", (key,)
        ).fetchone()
        return json.loads(found[0]) if found else None

    def keep(self, key: str, answer: Any, usage: Usage, cost: float) -> Any:
        """Write an answer and its cost to the disk; returns the answer that counts.

        That is the first one, should another process have asked the same at the same time.

        Raises:
            DataError: The disk is full, or another process holds the file.
        """
        text = None if answer is None else json.dumps(answer)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            before = self.find(key)
            self._db.execute(
                "INSERT INTO calls (key, answer, input_tokens, output_tokens, cost, at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (key, text if before is None else None, *usage, cost, time.time()),
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise DataError(f"{self._path}: an answer cannot be written ({error})") from None
        return answer if before is None else before

    def lose(self, key: str, usage: Usage, cost: float) -> None:
        """Write down a call that came to nothing, but may have been charged for."""
        self.keep(key, None, usage, cost)

    @property
    def spent(self) -> Spent:
        """By all calls ever."""
        return Spent(*self._db.execute("SELECT tokens, cost FROM total").fetchone())


class Budget:
    """Lets a call begin only if it cannot exceed what may be spent, whatever it turns out to cost.

    For one event loop. What a call may cost at most is held from before it begins until its cost
    is in the ledger.
    """

    def __init__(self, config: EndpointConfig, ledger: Ledger) -> None:
        self._config, self._ledger = config, ledger
        self._held: list[Spent] = []
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def room(self, usage: Usage) -> AsyncIterator[None]:
        """Hold the most that a call may cost, until the block ends.

        Waits for calls under way where they leave no room.

        Raises:
            BudgetSpent: There is no room, and no call under way that could leave some.
        """
        most = usage.spent(self._config)
        while (problem := self._exceeded(most)) is not None:
            if not self._held:
                raise BudgetSpent(problem)
            await self._freed.wait()
        self._held.append(most)
        try:
            yield
        finally:
            self._held.remove(most)
            self._freed.set()
            self._freed = asyncio.Event()

    def _exceeded(self, most: Spent) -> str | None:
        spent = self._ledger.spent
        limits = {
            "budget_tokens": (self._config.budget_tokens, spent.tokens, most.tokens, 0),
            "budget_money": (self._config.budget_money, spent.cost, most.cost, 1),
        }
        for name, (limit, so_far, next_one, column) in limits.items():
            under_way = sum(held[column] for held in self._held)
            # A sum of prices is not exact; what it misses by is no money.
            if limit and so_far + under_way + next_one > limit * (1 + 1e-9):
                return (
                    f"endpoint.{name}={limit!r} leaves no room: {so_far:.6g} are spent and the "
                    f"next request may take {next_one:.6g}; raise it and run again (what was "
                    "answered is kept and costs nothing)"
                )
        return None

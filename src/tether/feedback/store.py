"""A feedback project in one SQLite file: its items, its people and every judgment ever given.

Judgments are append-only (the database itself refuses anything else): an edit is a new row that
supersedes the old one. What is written is on the disk before anyone is told so (WAL with
synchronous=FULL). Everything here is standard library, so that a labeling server starts at once.
"""

import json
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

from tether.errors import DataError
from tether.feedback.judgments import Item, Judgment
from tether.sections import positive, require, share

T = TypeVar("T")
Mode = Literal["rank", "pair", "thumbs"]
NextItem = Literal["random", "least", "active"]

BUSY_SECONDS = 5.0  # how long a writer waits for another process before it is told "locked"
MOST = 1 << 31  # labelers wanted for a control item: everybody


@dataclass(frozen=True, kw_only=True, slots=True)
class Project:
    """What is asked of labelers, and how items are handed out."""

    name: str
    """Shown to labelers"""
    criterion: str = "helpful"
    """What is judged: helpful, honest, harmless, or your own"""
    mode: Mode = "rank"
    """rank: order all completions; pair: the better of two, and how much; thumbs: up or down"""
    num_labelers: int = 3
    """Different labelers an item"""
    repeat_share: float = 0.05
    """Share of a labeler's items shown to the same labeler a second time"""
    gold_share: float = 0.05
    """Share of what a labeler sees that are control items with a known answer, if there are any"""
    next_item: NextItem = "least"
    """random; least: what the fewest have judged; active: where scores or consensus are unsure"""
    random_share: float = 0.2
    """Share of active choices made at random"""
    lease_minutes: float = 30.0
    """How long an item waits for the labeler who has it before another may get it"""
    seed: int = 0
    """Of the order in which each labeler sees the completions"""

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "name", self.name, "must not be empty")
        require(bool(self.criterion.strip()), "criterion", self.criterion, "must not be empty")
        modes = ("rank", "pair", "thumbs")
        require(self.mode in modes, "mode", self.mode, f"must be one of {modes}")
        orders = ("random", "least", "active")
        require(self.next_item in orders, "next_item", self.next_item, f"must be one of {orders}")
        positive("num_labelers", self.num_labelers)
        share("repeat_share", self.repeat_share)
        share("gold_share", self.gold_share)
        share("random_share", self.random_share)
        positive("lease_minutes", self.lease_minutes)


class _Ticket:
    """One thread's work in a transaction of several."""

    def __init__(self, work: Callable[[sqlite3.Connection], Any]) -> None:
        self.work, self.done = work, False
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self, db: sqlite3.Connection) -> None:
        """Do the work, or undo all of it and keep the reason."""
        db.execute("SAVEPOINT ticket")
        try:
            self.value = self.work(db)
        except Exception as error:
            self.error = error
            db.execute("ROLLBACK TO ticket")  # fails where a full disk has ended the transaction
        db.execute("RELEASE ticket")


class Store:
    """An open project; safe to share between threads.

    Each thread reads through its own connection; writes go one after the other through `write`,
    within a process by a lock, between processes by SQLite's own.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a project that exists, and bring its tables up to date.

        Raises:
            DataError: There is no such file, or it is no feedback project.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(
                f"{self.path}: no such project; make one with "
                f"`tether feedback import {self.path} --data FILE`"
            )
        self._prepare()
        try:
            self._migrate()
            self.project = self._read_project()
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path}: no feedback project can be read ({error})") from None

    @classmethod
    def create(cls, path: str | Path, project: Project, instructions: str = "") -> "Store":
        """Make a new project file.

        Raises:
            DataError: The file exists, or its name does not end in ".db".
        """
        path = Path(path)
        if path.suffix != ".db":
            raise DataError(f"project={str(path)!r} must be a file name that ends in .db")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            raise DataError(f"{path} exists; name another file, or add to it") from None
        store = cls.__new__(cls)
        store.path = path
        store._prepare()
        store._migrate()
        store.project = project
        names = [field.name for field in fields(Project)]
        with store.write() as db:
            db.execute(
                f"INSERT INTO project (id, {', '.join(names)}, created) "
                f"VALUES (1, {', '.join('?' * len(names))}, ?)",
                (*(getattr(project, name) for name in names), time.time()),
            )
            db.execute("INSERT INTO instructions VALUES (1, ?, ?)", (instructions, time.time()))
        return store

    def _prepare(self) -> None:
        self._local = threading.local()
        self._writing = threading.Lock()
        self._waiting: deque[_Ticket] = deque()

    # --- connections ------------------------------------------------------------------------------

    def read(self) -> sqlite3.Connection:
        """This thread's connection; for SELECT alone."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            db.create_function("shown_order", 4, _shown_order, deterministic=True)
            self._local.db = db
        return db

    @contextmanager
    def write(self) -> Generator[sqlite3.Connection]:
        """One transaction: committed and synced when the block ends, undone when it raises.

        Raises:
            sqlite3.OperationalError: The disk is full, or another process holds the database for
                longer than `BUSY_SECONDS`; nothing was written then.
        """
        db = self.read()
        if not self._writing.acquire(timeout=BUSY_SECONDS):
            raise sqlite3.OperationalError("database is locked")
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.OperationalError):  # a full disk has rolled back by itself
                    db.execute("ROLLBACK")
                raise
        finally:
            self._writing.release()

    def transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a transaction that other threads' work may share; return what it returns.

        Whoever gets to write first does the work of all who wait, with one sync for all of them:
        on a disk that syncs in 10 ms a hundred labelers a second would else wait for each other.
        What fails is undone by itself and raises in its own thread.

        Raises:
            sqlite3.OperationalError: As `write`; nothing of the work was written then.
        """
        ticket = _Ticket(work)
        self._waiting.append(ticket)
        with self._writing:
            if not ticket.done:
                self._commit_together()
        if ticket.error is not None:
            raise ticket.error
        return ticket.value

    def _commit_together(self) -> None:
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        db = self.read()
        try:
            db.execute("BEGIN IMMEDIATE")
            for ticket in batch:
                ticket.run(db)
            db.execute("COMMIT")
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            for ticket in batch:
                ticket.error = ticket.error or error
            if not isinstance(error, sqlite3.Error):
                raise
        finally:
            for ticket in batch:
                ticket.done = True

    def close(self) -> None:
        """Close this thread's connection."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is not None:
            db.close()
            self._local.db = None

    def _migrate(self) -> None:
        """Apply the numbered files of `migrations/` that this database has not seen."""
        db = self.read()
        db.execute("PRAGMA journal_mode = WAL")
        folder = files("tether.feedback") / "migrations"
        scripts = sorted((file for file in folder.iterdir()), key=lambda file: file.name)
        [version] = db.execute("PRAGMA user_version").fetchone()
        if version > len(scripts):
            raise DataError(
                f"{self.path}: made by a newer tether (its tables have version {version}, this "
                f"one knows {len(scripts)}); update tether"
            )
        for number, script in enumerate(scripts[version:], start=version + 1):
            text = script.read_text(encoding="utf-8")
            db.executescript(f"BEGIN IMMEDIATE;\n{text}\nPRAGMA user_version = {number};\nCOMMIT;")

    def _read_project(self) -> Project:
        row = self.read().execute("SELECT * FROM project").fetchone()
        if row is None:
            raise DataError(f"{self.path}: holds no project; delete the file and import anew")
        return Project(**{field.name: row[field.name] for field in fields(Project)})

    # --- what labelers read -----------------------------------------------------------------------

    def instructions(self) -> tuple[int, str]:
        """The version and the Markdown text of the instructions that labelers see now."""
        query = "SELECT version, text FROM instructions ORDER BY version DESC LIMIT 1"
        version, text = self.read().execute(query).fetchone()
        return version, text

    def set_instructions(self, text: str) -> int:
        """Add a version of the instructions; judgments tell which one their labeler had read."""
        version, old = self.instructions()
        if text == old:
            return version
        with self.write() as db:
            query = "INSERT INTO instructions (text, created) VALUES (?, ?) RETURNING version"
            return db.execute(query, (text, time.time())).fetchone()[0]

    # --- items and judgments ----------------------------------------------------------------------

    def add_items(self, items: Iterable[Item]) -> int:
        """Add items that are not there yet, by their texts; return how many were new."""
        with self.write() as db:
            return self.insert_items(db, items)

    def insert_items(self, db: sqlite3.Connection, items: Iterable[Item]) -> int:
        """What `add_items` does, within a transaction that is under way."""
        before = db.total_changes
        db.executemany(
            "INSERT INTO items (key, prompt, completions, sources, category, gold, size, "
            "needed, place, added) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (key) DO NOTHING",
            (self._row(item) for item in items),
        )
        return db.total_changes - before

    def _row(self, item: Item) -> tuple[Any, ...]:
        place = random.Random(f"{self.project.seed}/{item.key}").random()
        needed = self.project.num_labelers if item.gold is None else MOST
        texts = (json.dumps(one) for one in (item.prompt, item.completions, item.sources))
        gold = None if item.gold is None else json.dumps(item.gold)
        size = len(item.completions)
        return (item.key, *texts, item.category, gold, size, needed, place, time.time())

    def items(self) -> dict[str, Item]:
        """Every item by its key, in the order in which they were added."""
        rows = self.read().execute("SELECT * FROM items ORDER BY id")
        return {row["key"]: _item(row) for row in rows}

    def judgments(self, labelers: Sequence[str] = (), groups: Sequence[str] = ()) -> list[Judgment]:
        """The rankings that stand (no superseded ones, skips or flags), oldest first.

        Args:
            labelers: Only these people's; empty for everybody's.
            groups: Only those of these groups; empty for all.

        Raises:
            DataError: A name is nobody's, or a group has no member.
        """
        people = self.read().execute("SELECT name, team FROM people").fetchall()
        self._require("labeler", labelers, {row["name"] for row in people})
        self._require("group", groups, {row["team"] for row in people})
        rows = self.read().execute(
            "SELECT j.*, i.key, p.name, p.team, a.repeat FROM current_judgments AS j "
            "JOIN assignments AS a ON a.id = j.assignment JOIN items AS i ON i.id = a.item "
            "JOIN people AS p ON p.id = j.labeler WHERE j.verdict = 'ranked' ORDER BY j.id"
        )
        return [
            _judgment(row)
            for row in rows
            if (not labelers or row["name"] in labelers) and (not groups or row["team"] in groups)
        ]

    def set_uncertainties(self, uncertainties: Mapping[str, float]) -> None:
        """How uncertain the order of each item (by its key) is, from 0 to 1; for active choice."""
        with self.write() as db:
            query = "UPDATE items SET uncertainty = ? WHERE key = ?"
            db.executemany(query, ((value, key) for key, value in uncertainties.items()))

    def retire(self, key: str, retired: bool) -> None:
        """Show an item to nobody any more, or to people again; its judgments stay."""
        with self.write() as db:
            db.execute("UPDATE items SET retired = ? WHERE key = ?", (int(retired), key))

    def _require(self, what: str, names: Sequence[str], known: set[str]) -> None:
        for name in names:
            if name not in known:
                raise DataError(f"{what}={name!r} is not in {self.path}; known: {sorted(known)}")


def _shown_order(seed: int, item: int, labeler: int, size: int) -> str:
    """The order in which a labeler sees an item's completions; the same whenever it is asked."""
    order = list(range(size))
    random.Random(f"{seed}/{item}/{labeler}").shuffle(order)
    return json.dumps(order)


def _item(row: sqlite3.Row) -> Item:
    return Item(
        key=row["key"],
        prompt=json.loads(row["prompt"]),
        completions=json.loads(row["completions"]),
        sources=json.loads(row["sources"]),
        category=row["category"],
        gold=None if row["gold"] is None else json.loads(row["gold"]),
    )


def _judgment(row: sqlite3.Row) -> Judgment:
    return Judgment(
        item=row["key"],
        labeler=row["name"],
        group=row["team"],
        ranks=json.loads(row["ranks"]),
        strength=row["strength"],
        shown=json.loads(row["shown"]),
        seconds=row["seconds"],
        repeat=bool(row["repeat"]),
    )


def is_project(path: str | Path) -> bool:
    """True where a path names a feedback project by its suffix, .db."""
    return Path(path).suffix == ".db"

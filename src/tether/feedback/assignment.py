"""Who judges what next, and how a judgment is taken.

An item goes to its number of distinct labelers, never twice to one but for the planned repeats. A
labeler holds it by a lease; when that expires the item goes to another. Handing out is one SQL
statement inside one transaction, so it is right whoever else is asking.
"""

import json
import random
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tether.errors import DataError
from tether.feedback.judgments import Ranks
from tether.feedback.store import Store
from tether.records import Text, shown

Verdict = Literal["ranked", "skipped", "flagged"]

REPEAT_AFTER = 8  # judgments between the two showings of a repeat

_OPEN = "taken < needed AND retired = 0 AND gold IS NULL"
_MINE = (
    "EXISTS (SELECT 1 FROM assignments AS a WHERE a.item = items.id AND a.labeler = :labeler "
    "AND a.repeat = 0 AND a.state <> 'expired')"
)
_FROM_HERE = (  # at random: the first from a random place on, or else from the start
    "SELECT * FROM (SELECT id, size FROM items WHERE {rule} AND place >= :place AND NOT "
    + _MINE
    + " "
    "ORDER BY place LIMIT 1) UNION ALL "
    "SELECT * FROM (SELECT id, size FROM items WHERE {rule} AND place < :place AND NOT "
    + _MINE
    + " "
    "ORDER BY place LIMIT 1) LIMIT 1"
)
_ORDERED = "SELECT id, size FROM items WHERE {rule} AND NOT " + _MINE + " ORDER BY {order} LIMIT 1"

_CHOICE = {
    "gold": _FROM_HERE.format(rule="gold IS NOT NULL AND retired = 0"),
    "random": _FROM_HERE.format(rule=_OPEN),
    "least": _ORDERED.format(rule=_OPEN, order="taken, place"),
    "active": _ORDERED.format(rule=_OPEN, order="uncertainty DESC, place"),
}
_LEASE = (
    "INSERT INTO assignments (item, labeler, repeat, shown, state, expires, due) "
    "SELECT id, :labeler, 0, shown_order(:seed, id, :labeler, size), 'leased', :expires, 0 "
    "FROM ({choice}) WHERE true "
    "ON CONFLICT (item, labeler, repeat) DO UPDATE SET state = 'leased', expires = :expires "
    "RETURNING id"
)
_LEASE_REPEAT = (
    "UPDATE assignments SET state = 'leased', expires = :expires WHERE id = ("
    "SELECT id FROM assignments WHERE labeler = :labeler AND state = 'planned' AND due <= :done "
    "ORDER BY due LIMIT 1) RETURNING id"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """An item as one labeler sees it: anonymous, in that labeler's order.

    `ranks`, `strength`, `reason` and `verdict` are those of the standing judgment, by place on the
    page; `verdict` is "" where there is none yet.
    """

    id: int
    prompt: Text
    completions: list[Text]
    verdict: Verdict | Literal[""] = ""
    ranks: Ranks | None = None
    strength: int | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a labeler sends: `ranks` by place on the page, and `submission`, the page's own number.

    A submission that arrives twice is stored once.
    """

    assignment: int
    submission: str
    verdict: Verdict
    ranks: Ranks | None = None
    strength: int | None = None
    reason: str = ""
    seconds: float | None = None


def next_assignment(store: Store, labeler: int, held: Sequence[int] = ()) -> Assignment | None:
    """The next item for a labeler; None when there is nothing left for them.

    First what they hold already and the page does not have (`held` are the assignments it shows),
    then a due repeat, then a new item; when there is no new one, the repeats that are left.
    """
    number = store.transact(lambda db: _next(db, store, labeler, held))
    return None if number is None else assignment(store, labeler, number)


def _next(db: sqlite3.Connection, store: Store, labeler: int, held: Sequence[int]) -> int | None:
    return _held(db, labeler, held) or _lease(db, store, labeler)


def _held(db: sqlite3.Connection, labeler: int, held: Sequence[int]) -> int | None:
    query = (
        "SELECT id FROM assignments WHERE labeler = ? AND state = 'leased' AND expires > ? "
        "ORDER BY expires, id"
    )
    rows = db.execute(query, (labeler, time.time()))
    return next((row["id"] for row in rows if row["id"] not in held), None)


def _lease(db: sqlite3.Connection, store: Store, labeler: int) -> int | None:
    project, now = store.project, time.time()
    db.execute(
        "UPDATE assignments SET state = iif(repeat, 'planned', 'expired') "
        "WHERE state = 'leased' AND expires <= ?",
        (now,),
    )
    query = "SELECT count(*) FROM judgments WHERE labeler = ?"
    values = {
        "labeler": labeler,
        "seed": project.seed,
        "place": random.random(),
        "expires": now + 60 * project.lease_minutes,
        "done": db.execute(query, (labeler,)).fetchone()[0],
    }
    gold = random.random() < project.gold_share
    active = project.next_item == "active" and random.random() >= project.random_share
    order = "active" if active else {"active": "random"}.get(project.next_item, project.next_item)
    statements = [
        _LEASE_REPEAT,
        *([_LEASE.format(choice=_CHOICE["gold"])] if gold else []),
        _LEASE.format(choice=_CHOICE[order]),
    ]
    for statement in statements:
        if row := db.execute(statement, values).fetchone():
            return row["id"]
    row = db.execute(_LEASE_REPEAT, {**values, "done": 1 << 62}).fetchone()
    return None if row is None else row["id"]


def assignment(store: Store, labeler: int, number: int) -> Assignment:
    """One of a labeler's own assignments, with the judgment that stands.

    Raises:
        DataError: It is nobody's, or another labeler's; neither tells which.
    """
    row = _own(store.read(), labeler, number)
    order = json.loads(row["shown"])
    texts = json.loads(row["completions"])
    judgment = _standing(store.read(), number)
    said: dict[str, Any] = {}
    if judgment is not None:
        ranks = None if judgment["ranks"] is None else json.loads(judgment["ranks"])
        said = {
            "verdict": judgment["verdict"],
            "ranks": None if ranks is None else [ranks[place] for place in order],
            "strength": judgment["strength"],
            "reason": judgment["reason"],
        }
    prompt = json.loads(row["prompt"])
    return Assignment(id=number, prompt=prompt, completions=[texts[p] for p in order], **said)


def submit(store: Store, labeler: int, answer: Answer) -> int:
    """Store one judgment; return its number once it is on the disk.

    An answer to an item that was judged before supersedes the earlier judgment. One that comes
    after its lease expired is kept too: nobody's work is thrown away.

    Raises:
        DataError: The assignment is not the labeler's, or the answer breaks a rule of its mode.
    """
    _check(answer)
    return store.transact(lambda db: _submit(db, store, labeler, answer))


def submit_and_next(
    store: Store, labeler: int, answer: Answer, held: Sequence[int] = ()
) -> tuple[int, Assignment | None]:
    """`submit` and then `next_assignment`, in one transaction.

    Raises:
        DataError: As `submit`; no item is handed out then.
    """
    _check(answer)

    def work(db: sqlite3.Connection) -> tuple[int, int | None]:
        return _submit(db, store, labeler, answer), _next(db, store, labeler, held)

    saved, number = store.transact(work)
    return saved, None if number is None else assignment(store, labeler, number)


def _submit(db: sqlite3.Connection, store: Store, labeler: int, answer: Answer) -> int:
    query = "SELECT id, labeler FROM judgments WHERE submission = ?"
    if (known := db.execute(query, (answer.submission,)).fetchone()) is not None:
        if known["labeler"] != labeler:
            raise DataError(f"submission={answer.submission!r} is taken; reload the page")
        return known["id"]
    row = _own(db, labeler, answer.assignment)
    if row["state"] == "planned":
        raise DataError(f"assignment={answer.assignment} was not handed out; reload the page")
    ranks = _checked_ranks(answer, row["size"], store.project.mode)
    number = _append(db, row, answer, ranks)
    state = "done" if answer.verdict == "ranked" else "released"
    db.execute("UPDATE assignments SET state = ? WHERE id = ?", (state, answer.assignment))
    _plan_repeat(db, store, row, answer)
    return number


def _append(db: sqlite3.Connection, row: sqlite3.Row, answer: Answer, ranks: Ranks | None) -> int:
    order: list[int] = json.loads(row["shown"])
    earlier = _standing(db, answer.assignment)
    return db.execute(
        "INSERT INTO judgments (submission, assignment, labeler, verdict, ranks, strength, "
        "reason, shown, instructions, seconds, created, supersedes) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, (SELECT max(version) FROM instructions), ?, ?, ?) "
        "RETURNING id",
        (
            answer.submission,
            answer.assignment,
            row["labeler"],
            answer.verdict,
            None if ranks is None else json.dumps(_stored(ranks, order)),
            answer.strength,
            answer.reason,
            row["shown"],
            answer.seconds,
            time.time(),
            None if earlier is None else earlier["id"],
        ),
    ).fetchone()["id"]


def _plan_repeat(db: sqlite3.Connection, store: Store, row: sqlite3.Row, answer: Answer) -> None:
    """Let a share of the items come back to their labeler; which ones is decided by the seed."""
    seed, item, labeler = store.project.seed, row["item"], row["labeler"]
    draw = random.Random(f"repeat/{seed}/{item}/{labeler}").random()
    if row["repeat"] or answer.verdict != "ranked" or draw >= store.project.repeat_share:
        return
    db.execute(
        "INSERT INTO assignments (item, labeler, repeat, shown, state, expires, due) "
        "VALUES (:item, :labeler, 1, shown_order(:seed, :item, :labeler, :size), 'planned', 0, "
        "(SELECT count(*) FROM judgments WHERE labeler = :labeler) + :after) "
        "ON CONFLICT (item, labeler, repeat) DO NOTHING",
        {
            "item": item,
            "labeler": labeler,
            "seed": seed + 1,  # another order than the first time
            "size": row["size"],
            "after": REPEAT_AFTER,
        },
    )


def _own(db: sqlite3.Connection, labeler: int, number: int) -> sqlite3.Row:
    row = db.execute(
        "SELECT a.*, i.prompt, i.completions, i.size FROM assignments AS a "
        "JOIN items AS i ON i.id = a.item WHERE a.id = ? AND a.labeler = ?",
        (number, labeler),
    ).fetchone()
    if row is None:
        raise DataError(f"assignment={number} is not yours; reload the page")
    return row


def _standing(db: sqlite3.Connection, number: int) -> sqlite3.Row | None:
    query = "SELECT * FROM judgments WHERE assignment = ? ORDER BY id DESC LIMIT 1"
    return db.execute(query, (number,)).fetchone()


def _stored(ranks: Ranks, order: Sequence[int]) -> Ranks:
    """Ranks by place on the page, put into the stored order of the completions."""
    stored: Ranks = [None] * len(ranks)
    for place, completion in enumerate(order):
        stored[completion] = ranks[place]
    return stored


def _check(answer: Answer) -> None:
    """The rules that hold whatever was judged."""
    if not 8 <= len(answer.submission) <= 64:
        raise DataError(f"submission={shown(answer.submission)} must have 8 to 64 characters")
    if len(answer.reason) > 2000:
        raise DataError(f"reason has {len(answer.reason)} characters; 2000 are kept at most")
    if answer.seconds is not None and not 0 <= answer.seconds < 1e7:
        raise DataError(f"seconds={answer.seconds!r} must be a number of seconds from 0")
    if answer.verdict == "flagged" and not answer.reason.strip():
        raise DataError("reason='' must say what is wrong with a flagged item")
    if answer.verdict != "ranked" and (answer.ranks is not None or answer.strength is not None):
        raise DataError(f"ranks={shown(answer.ranks)} must be absent where nothing was ranked")


def _checked_ranks(answer: Answer, size: int, mode: str) -> Ranks | None:
    """The ranks of an answer, checked by the rules of the project's mode."""
    if answer.verdict != "ranked":
        return None
    ranks = answer.ranks
    if ranks is None or len(ranks) != size:
        raise DataError(f"ranks={shown(ranks)} must hold {size} ranks, one a completion")
    for rank in ranks:
        if rank is not None and rank not in range(1, size + 1):
            raise DataError(f"rank={rank!r} must be a whole number from 1 to {size}, or a fail")
    if mode == "pair":
        allowed = (0,) if len(set(ranks)) == 1 else (1, 2, 3)
        rule = "must be 0 for equal completions, else 1 (slightly), 2 or 3 (much better)"
    else:
        allowed, rule = (None,), "belongs to pairwise projects alone"
    if answer.strength not in allowed:
        raise DataError(f"strength={answer.strength!r} {rule}")
    return ranks

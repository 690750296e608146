"""Judgments that were made elsewhere, and how they become people and judgments of a project."""

import hashlib
import json
import math
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from tether.errors import DataError
from tether.feedback.judgments import Item, Ranks, item_key, stored_order
from tether.feedback.store import Mode, Store
from tether.records import (
    PreferencePair,
    Ranking,
    Text,
    Thumb,
    from_dict,
    read_jsonl,
    read_lines,
    shown,
)

Row = dict[str, Any]

MOST_COMPLETIONS = 9  # in an item to rank: number keys set the ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """One judgment as a file tells it; `ranks[i]` belongs to `completions[i]`, None is a fail."""

    where: str
    prompt: Text
    completions: list[Text]
    ranks: Ranks
    labeler: str = ""
    group: str = ""
    category: str = ""
    strength: int | None = None
    seconds: float | None = None


def read_rows(data: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """("FILE:LINE", row) of every row of JSON Lines files; "-" is standard input."""
    for path in data:
        name = "standard input" if path == "-" else path
        lines = read_lines(sys.stdin.buffer, name) if path == "-" else read_jsonl(path)
        for number, row in lines:
            yield f"{name}:{number}", row


def read_label(row: Row, where: str) -> Label:
    """A label from a row in our own fields.

    `prompt` with `completions` and `ranks`, with `chosen` and `rejected`, or with `completion` and
    `label` (true, false, 1 or 0); who judged in `labeler`; `group`, `category`, `seconds` and
    `strength` (of a pair: 1 slightly, 2, 3 much better) where they are known. A pair with the
    probability 0.5 is a tie.

    Raises:
        DataError: A field is missing or breaks its rule.
    """
    ranks: Ranks
    category = ""
    if {"completions", "ranks"} <= row.keys():
        ranking = from_dict(Ranking, row, where)
        prompt, completions, ranks = ranking.prompt, ranking.completions, ranking.ranks
        category = ranking.category
    elif {"chosen", "rejected"} <= row.keys():
        pair = from_dict(PreferencePair, row, where)
        prompt, completions = pair.prompt, [pair.chosen, pair.rejected]
        sure = 1.0 if pair.probability is None else pair.probability
        ranks = [1.0 + (sure < 0.5), 1.0 + (sure > 0.5)]
    elif {"completion", "label"} <= row.keys():
        label = row["label"]
        plain = bool(label) if isinstance(label, int | float) and label in (0, 1) else label
        thumb = from_dict(Thumb, {**row, "label": plain}, where)
        prompt, completions, ranks = thumb.prompt, [thumb.completion], [1.0 if plain else None]
    else:
        found = ", ".join(map(repr, row)) or "none"
        raise DataError(
            f"{where}: no label in the fields {found}; needed are prompt with completions + ranks, "
            "chosen + rejected, or completion + label"
        )
    for rank in ranks:
        if rank is not None and rank < 1:
            raise DataError(f"{where}: rank={rank!r} must be a number from 1, or null for a fail")
    return Label(
        where=where,
        prompt=prompt,
        completions=completions,
        ranks=ranks,
        labeler=_name(row, "labeler", where),
        group=_name(row, "group", where),
        category=category,
        strength=_strength(row, where),
        seconds=_seconds(row, where),
    )


def _name(row: Row, field: str, where: str) -> str:
    value = row.get(field)
    name = "" if value is None else value
    if not isinstance(name, str) or len(name.strip()) > 80:
        raise DataError(f"{where}: {field}={shown(name)} must be a name of 1 to 80 characters")
    return name.strip()


def _strength(row: Row, where: str) -> int | None:
    value = row.get("strength")
    if value is not None and (isinstance(value, bool) or value not in (0, 1, 2, 3)):
        raise DataError(f"{where}: strength={shown(value)} must be 0 (a tie), 1, 2 or 3")
    return None if value is None else int(value)


def _seconds(row: Row, where: str) -> float | None:
    value = row.get("seconds")
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise DataError(f"{where}: seconds={shown(value)} must be a number of seconds from 0")
    return float(value)


# --- by the rules of a mode -----------------------------------------------------------------------


def split(label: Label, mode: Mode) -> list[Label]:
    """What a project of a mode can hold of a label: itself, or in pair mode each of its pairs.

    A completion that stands there twice counts once, with its better rank. Ranks become whole
    numbers: one more than the completions that are better.

    Raises:
        DataError: The number of completions does not fit the mode.
    """
    label = _distinct(label)
    size = len(label.completions)
    if mode == "thumbs":
        if size != 1:
            raise _misfit(label, mode, "one completion with a label")
        return [label]
    if size < 2:
        raise _misfit(label, mode, "at least two different completions")
    if mode == "pair":
        return [_part(label, pair) for pair in combinations(range(size), 2)]
    if size > MOST_COMPLETIONS:
        raise _misfit(label, mode, f"at most {MOST_COMPLETIONS} completions, one a number key")
    return [replace(_part(label, range(size)), strength=None)]


def _misfit(label: Label, mode: Mode, rule: str) -> DataError:
    return DataError(
        f"{label.where}: completions={shown(label.completions)}: a project of mode={mode!r} "
        f"needs {rule}; import it into a project of another mode"
    )


def _distinct(label: Label) -> Label:
    best: dict[str, tuple[Text, float | None]] = {}
    for text, rank in zip(label.completions, label.ranks, strict=True):
        known = best.setdefault(json.dumps(text), (text, rank))
        if rank is not None and (known[1] is None or rank < known[1]):
            best[json.dumps(text)] = (text, rank)
    texts, ranks = [text for text, _ in best.values()], [rank for _, rank in best.values()]
    return replace(label, completions=texts, ranks=ranks)


def _part(label: Label, chosen: Sequence[int]) -> Label:
    """Some completions of a label, in stored order, with their ranks among themselves."""
    order = [chosen[i] for i in stored_order([label.completions[i] for i in chosen])]
    given = [label.ranks[i] for i in order]
    ranked = [rank for rank in given if rank is not None]
    ranks = [None if r is None else 1.0 + sum(other < r for other in ranked) for r in given]
    tie = len(order) == 2 and ranks[0] == ranks[1]
    strength = 0 if tie else (label.strength or None) if len(label.completions) == 2 else None
    texts = [label.completions[i] for i in order]
    return replace(label, completions=texts, ranks=ranks, strength=strength)


def item_of(label: Label, *, gold: bool = False) -> Item:
    """The item that a split label speaks of; with `gold` its ranks are the known answer."""
    return Item(
        key=item_key(label.prompt, label.completions),
        prompt=label.prompt,
        completions=label.completions,
        sources=[""] * len(label.completions),
        category=label.category,
        gold=label.ranks if gold else None,
    )


# --- into a project -------------------------------------------------------------------------------


def add_labels(store: Store, labels: Sequence[Label]) -> int:
    """Make labels the judgments of people of the project, all or none; return how many were new.

    A second label of somebody on an item is a repeat, a third one corrects the second. What was
    imported before is left out, and a label never replaces what its labeler judged here. The order
    in which a labeler saw the completions is unknown.

    Raises:
        DataError: A label names nobody, or does not fit the mode of the project.
    """
    parts = [part for label in labels for part in split(label, store.project.mode)]
    with store.write() as db:
        store.insert_items(db, map(item_of, parts))
        return insert_labels(db, parts)


def insert_labels(db: sqlite3.Connection, labels: Sequence[Label]) -> int:
    """What `add_labels` does with labels that are split, of items that are there."""
    for label in labels:
        if not label.labeler:
            raise DataError(f"{label.where}: labeler='' names nobody; say who judged")
    times = Counter[tuple[str, str]]()
    [before] = db.execute("SELECT count(*) FROM judgments").fetchone()
    for label in labels:
        key = item_key(label.prompt, label.completions)
        _insert(db, key, label, times[key, label.labeler])
        times[key, label.labeler] += 1
    [after] = db.execute("SELECT count(*) FROM judgments").fetchone()
    return after - before


def _insert(db: sqlite3.Connection, key: str, label: Label, earlier: int) -> None:
    said = [key, label.labeler, earlier, label.ranks, label.strength]
    submission = f"import-{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]}"
    query = "SELECT 1 FROM judgments WHERE submission = ?"
    if db.execute(query, (submission,)).fetchone() is not None:
        return
    now = time.time()
    db.execute(
        "INSERT INTO people (name, role, team, joined) VALUES (?, 'labeler', ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET team = excluded.team WHERE team = ''",
        (label.labeler, label.group, now),
    )
    order = json.dumps(list(range(len(label.completions))))
    place = {"key": key, "labeler": label.labeler, "repeat": min(earlier, 1), "shown": order}
    standing = db.execute(_STANDING, place).fetchone()
    if standing is not None and not standing["submission"].startswith("import-"):
        return
    row = db.execute(_ASSIGN, place).fetchone()
    values = {
        "submission": submission,
        "assignment": row["id"],
        "labeler": row["labeler"],
        "ranks": json.dumps(label.ranks),
        "strength": label.strength,
        "seconds": label.seconds,
        "created": now,
        "supersedes": None if standing is None else standing["id"],
    }
    db.execute(_JUDGE, values)


_STANDING = (
    "SELECT j.id, j.submission FROM judgments AS j "
    "JOIN assignments AS a ON a.id = j.assignment JOIN items AS i ON i.id = a.item "
    "JOIN people AS p ON p.id = a.labeler WHERE i.key = :key AND p.name = :labeler "
    "AND a.repeat = :repeat ORDER BY j.id DESC LIMIT 1"
)
_ASSIGN = (
    "INSERT INTO assignments (item, labeler, repeat, shown, state, expires, due) "
    "SELECT i.id, p.id, :repeat, :shown, 'done', 0, 0 FROM items AS i, people AS p "
    "WHERE i.key = :key AND p.name = :labeler "
    "ON CONFLICT (item, labeler, repeat) DO UPDATE SET state = 'done' RETURNING id, labeler"
)
_JUDGE = (
    "INSERT INTO judgments (submission, assignment, labeler, verdict, ranks, strength, shown, "
    "instructions, seconds, created, supersedes) VALUES (:submission, :assignment, :labeler, "
    "'ranked', :ranks, :strength, 'null', (SELECT max(version) FROM instructions), :seconds, "
    ":created, :supersedes)"
)

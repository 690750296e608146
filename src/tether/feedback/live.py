"""Judgments of completions that were written just now, in a chat or side by side.

Nothing was handed out beforehand: the completions become an item, and the judgment one of whoever
sat there, in one file with all others, so that it trains and is counted like them.
"""

import json
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tether.errors import DataError
from tether.feedback.assignment import Answer, submit
from tether.feedback.judgments import Item, Ranks, item_key, stored_order
from tether.feedback.store import Mode, Project, Store
from tether.records import Text, shown

LEASE = 60.0  # seconds between the making of an item and its judgment


class Written(NamedTuple):
    """A completion, and the name of the model that wrote it."""

    text: Text
    source: str


def open_project(path: str | Path, mode: Mode) -> Store:
    """The project of a file; a new one, for one labeler an item, where there is no file.

    Raises:
        DataError: The project is of another mode, or the name does not end in .db.
    """
    if not Path(path).exists():
        project = Project(
            name=Path(path).stem, mode=mode, num_labelers=1, repeat_share=0.0, gold_share=0.0
        )
        return Store.create(path, project)
    store = Store(path)
    if store.project.mode != mode:
        raise DataError(
            f"{path}: is a project of mode={store.project.mode!r}, and this needs {mode!r}; name "
            "another file, which is made where there is none"
        )
    return store


def judge(
    store: Store,
    labeler: int,
    prompt: Text,
    completions: Sequence[Written],
    ranks: Ranks,
    *,
    submission: str,
    strength: int | None = None,
    seconds: float | None = None,
) -> int:
    """Store what somebody says of completions, both in the order in which they were shown.

    Texts that are there already are the same item; a second judgment of the same labeler
    supersedes the first. A submission that arrives twice is stored once.

    Returns:
        The number of the judgment, once it is on the disk.

    Raises:
        DataError: The answer breaks a rule of the project's mode.
    """
    wanted = {"pair": 2, "thumbs": 1}.get(store.project.mode, len(completions))
    if len(completions) != wanted:
        texts = shown([one.text for one in completions])
        raise DataError(f"completions={texts} must be {wanted} in mode={store.project.mode!r}")
    item, order = _item(prompt, completions)

    def hand_out(db: sqlite3.Connection) -> int:
        query = "SELECT assignment FROM judgments WHERE submission = ?"
        if (known := db.execute(query, (submission,)).fetchone()) is not None:
            return known["assignment"]
        store.insert_items(db, [item])
        _name_sources(db, item)
        return db.execute(
            "INSERT INTO assignments (item, labeler, repeat, shown, state, expires, due) "
            "SELECT id, ?, 0, ?, 'leased', ?, 0 FROM items WHERE key = ? "
            "ON CONFLICT (item, labeler, repeat) DO UPDATE SET shown = excluded.shown, "
            "state = 'leased', expires = excluded.expires RETURNING id",
            (labeler, json.dumps(order), time.time() + LEASE, item.key),
        ).fetchone()["id"]

    answer = Answer(
        assignment=store.transact(hand_out),
        submission=submission,
        verdict="ranked",
        ranks=ranks,
        strength=strength,
        seconds=seconds,
    )
    return submit(store, labeler, answer)


def _item(prompt: Text, completions: Sequence[Written]) -> tuple[Item, list[int]]:
    """The item as it is stored, and which of its completions stood at each place."""
    stored = stored_order([one.text for one in completions])
    texts = [completions[place].text for place in stored]
    item = Item(
        key=item_key(prompt, texts),
        prompt=prompt,
        completions=texts,
        sources=[completions[place].source for place in stored],
    )
    return item, [stored.index(place) for place in range(len(completions))]


def _name_sources(db: sqlite3.Connection, item: Item) -> None:
    """Add the models of an item that was there before: several can write the same text."""
    [known] = db.execute("SELECT sources FROM items WHERE key = ?", (item.key,)).fetchone()
    named = [
        ", ".join(dict.fromkeys(name for name in (*old.split(", "), new) if name))
        for old, new in zip(json.loads(known), item.sources, strict=True)
    ]
    if named != json.loads(known):
        db.execute("UPDATE items SET sources = ? WHERE key = ?", (json.dumps(named), item.key))

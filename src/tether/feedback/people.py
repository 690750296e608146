"""Who may label and who may look: personal invitations, stored hashed, revocable."""

import hashlib
import secrets
import sqlite3
import time
from dataclasses import dataclass
from typing import Literal

from tether.errors import DataError
from tether.feedback.store import Store

Role = Literal["labeler", "administrator"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Somebody of a project; `group` is "" for none.

    `stamp` belongs to the present invitation ("" without one): a session that carries another one
    is over, so a new link ends what the old one opened.
    """

    id: int
    name: str
    role: Role
    group: str
    stamp: str
    revoked: bool


def invite(store: Store, name: str, *, group: str = "", role: Role = "labeler") -> str:
    """Invite somebody, or replace the invitation they had; return the token of the link.

    The token is not kept: only its hash is, so nobody who reads the database can use it.

    Raises:
        DataError: The name is empty, or belongs to somebody with the other role.
    """
    name = name.strip()
    if not name or len(name) > 80:
        raise DataError(f"name={name!r} must have 1 to 80 characters")
    token = secrets.token_urlsafe(24)
    with store.write() as db:
        row = db.execute("SELECT role, team FROM people WHERE name = ?", (name,)).fetchone()
        if row is not None and row["role"] != role:
            raise DataError(f"name={name!r} is taken by the {row['role']}; choose another")
        db.execute(
            "INSERT INTO people (name, role, team, token, joined) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET token = excluded.token, revoked = NULL, "
            "team = iif(excluded.team = '', team, excluded.team)",
            (name, role, group.strip(), _hash(token), time.time()),
        )
    return token


def revoke(store: Store, name: str) -> None:
    """End somebody's access at once; their judgments stay.

    Raises:
        DataError: Nobody has that name.
    """
    with store.write() as db:
        query = "UPDATE people SET token = NULL, revoked = ? WHERE name = ? RETURNING id"
        if db.execute(query, (time.time(), name)).fetchone() is None:
            raise DataError(f"name={name!r} is nobody in {store.path}; check the name")


def local_person(store: Store, name: str, role: Role = "labeler", group: str = "") -> Person:
    """Somebody without an invitation: whoever sits at this machine, or a simulated labeler."""
    with store.write() as db:
        db.execute(
            "INSERT INTO people (name, role, team, joined) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (name) DO NOTHING",
            (name, role, group, time.time()),
        )
    row = store.read().execute("SELECT * FROM people WHERE name = ?", (name,)).fetchone()
    return _person(row)


def by_token(store: Store, token: str) -> Person | None:
    """Whom an invitation is for; None where it is unknown or revoked."""
    query = "SELECT * FROM people WHERE token = ? AND revoked IS NULL"
    row = store.read().execute(query, (_hash(token),)).fetchone()
    return None if row is None else _person(row)


def by_id(store: Store, number: int) -> Person | None:
    """Somebody who may still enter; None where there is nobody, or access was revoked."""
    query = "SELECT * FROM people WHERE id = ? AND revoked IS NULL"
    row = store.read().execute(query, (number,)).fetchone()
    return None if row is None else _person(row)


def everybody(store: Store) -> list[Person]:
    """All people of a project, by name."""
    return [_person(row) for row in store.read().execute("SELECT * FROM people ORDER BY name")]


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _person(row: sqlite3.Row) -> Person:
    return Person(
        id=row["id"],
        name=row["name"],
        role=row["role"],
        group=row["team"],
        stamp=(row["token"] or "")[:16],
        revoked=row["revoked"] is not None,
    )

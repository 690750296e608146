"""Settings of a question, the projects that judgments go to, and who judges."""

import getpass
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.exceptions import HTTPException

from tether.feedback.live import open_project
from tether.feedback.people import local_person
from tether.feedback.store import Mode, Store
from tether.web.visit import Visit

FILES: dict[Mode, str] = {"pair": "compare.db", "thumbs": "chat.db"}
"""Beside the runs; made with the first judgment"""
LONGEST = 2048  # tokens of an answer


@contextmanager
def project(visit: Visit, mode: Mode) -> Iterator[tuple[Store, int]]:
    """The project for judgments of a mode, and whoever asks as its labeler.

    On this machine that is the login name; people who came by the link get a name a browser.

    Raises:
        DataError: The file is a project of another mode.
    """
    store = open_project(visit.site.runs / FILES[mode], mode)
    try:
        yield store, local_person(store, _name(visit)).id
    finally:
        store.close()


def _name(visit: Visit) -> str:
    if not visit.site.token:
        return getpass.getuser()
    session = visit.request.session
    return session.setdefault("name", f"visitor {secrets.token_hex(4)}")


def sampling(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Temperature, length and a new seed.

    Raises:
        HTTPException: 400 where one is out of its range.
    """
    temperature = _number(fields, "temperature", 1.0, 0.05, 5.0)
    length = int(_number(fields, "max_new_tokens", 256.0, 1.0, float(LONGEST)))
    return {
        "temperature": temperature,
        "max_new_tokens": length,
        "seed": secrets.randbelow(1 << 31),
    }


def _number(fields: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    given = fields.get(name, default)
    try:
        value = float(given) if isinstance(given, str | int | float) else float("nan")
    except (ValueError, OverflowError):
        value = float("nan")
    if not low <= value <= high:
        raise HTTPException(400, f"{name}={given!r} must be a number from {low:g} to {high:g}.")
    return value


def text(fields: Mapping[str, Any], name: str) -> str:
    """A text that was sent; "" where there is none.

    Raises:
        HTTPException: 400 where it is something else.
    """
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise HTTPException(400, f"{name} must be a text.")
    return value.replace("\r\n", "\n")

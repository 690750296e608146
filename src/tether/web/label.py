"""What a labeler sees and sends: the page, its plain form, and the requests of its script.

The page works without its script: every item is a form, and what its fields hold are `marks`
(names and values of the chosen buttons). The script sends and gets the same as JSON.
"""

import math
import secrets
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeGuard

from markdown_it import MarkdownIt
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response

from tether.errors import DataError
from tether.feedback.assignment import (
    Answer,
    Assignment,
    assignment,
    next_assignment,
    submit,
    submit_and_next,
)
from tether.feedback.judgments import Ranks
from tether.feedback.store import Mode, Store
from tether.records import Text, shown
from tether.web.access import Visit, entrance, leave

RECENT = 20
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BUSY = (
    "The judgment is not saved: the project's file cannot be written just now ({error}). "
    "Your choice is kept; try again in a moment."
)
# What each choice of a pair says: ranks by place on the page, and strength.
PAIR: dict[str, tuple[Ranks, int]] = {
    "a3": ([1.0, 2.0], 3),
    "a2": ([1.0, 2.0], 2),
    "a1": ([1.0, 2.0], 1),
    "tie": ([1.0, 1.0], 0),
    "b1": ([2.0, 1.0], 1),
    "b2": ([2.0, 1.0], 2),
    "b3": ([2.0, 1.0], 3),
    "fail": ([None, None], 0),
}
THUMB: dict[str, Ranks] = {"up": [1.0], "down": [None]}


# --- the page -------------------------------------------------------------------------------------


def label(visit: Visit) -> Response:
    """The page with this labeler's next item."""
    return _page(visit, next_assignment(visit.store, visit.person.id))


def reopen(visit: Visit) -> Response:
    """The page with an item that this labeler has judged, to correct it."""
    return _page(visit, _own_assignment(visit))


def judge(visit: Visit) -> Response:
    """Take the plain form, then lead on to the next item; what cannot be saved stays chosen."""
    fields = visit.fields
    now = _own_assignment(visit, fields.get("assignment", ""))
    try:
        submit(visit.store, visit.person.id, form_answer(fields, now, visit.store.project.mode))
    except DataError as error:
        return _page(visit, now, chosen=fields, error=_sentence(error), status=400)
    except sqlite3.OperationalError as error:
        return _page(visit, now, chosen=fields, error=BUSY.format(error=error), status=503)
    return RedirectResponse("/", status_code=303)


def _page(
    visit: Visit,
    now: Assignment | None,
    *,
    chosen: Mapping[str, Any] | None = None,
    error: str = "",
    status: int = 200,
) -> Response:
    version, text = visit.store.instructions()
    unread = visit.request.session.get("read") != version
    if unread:
        visit.request.session["read"] = version
    mode = visit.store.project.mode
    item = None if now is None else item_json(now, mode)
    return visit.page(
        "label.html",
        status,
        item=item,
        marks=chosen or (item or {}).get("marks", {}),
        reason=(chosen or {}).get("reason", "" if now is None else now.reason),
        submission=(chosen or {}).get("submission") or secrets.token_hex(8),
        opened=(chosen or {}).get("opened") or f"{time.time():.1f}",
        error=error,
        instructions=render_markdown(text),
        unread=unread,
        version=version,
        progress=progress(visit),
        recent=recent(visit.store, visit.person.id),
        letters=LETTERS,
        key=f"{visit.site.key}/{visit.person.id}",
    )


@lru_cache(maxsize=8)
def render_markdown(text: str) -> str:
    """HTML of the instructions; markup and scripts in them stay text."""
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)


# --- requests of the script -----------------------------------------------------------------------


def api_next(visit: Visit) -> Response:
    """An item that the page does not hold yet, to be shown after the present one."""
    held = visit.request.query_params.get("held", "")
    numbers = [whole_number(one) for one in held.split(",") if one][:100]
    return JSONResponse(_next(visit, numbers))


def api_judge(visit: Visit) -> Response:
    """Store a judgment; answer once it is on the disk, with the next item."""
    answer = parse_answer(visit.fields)
    if visit.store.project.next_item == "active":
        visit.site.summary.get()  # renews, aside and seldom, what active choice goes by
    held = visit.fields.get("held", [])
    if not isinstance(held, list) or not all(_is_whole(one) for one in held):
        raise DataError(f"held={shown(held)} must be a list of whole numbers")
    if visit.fields.get("more", True) is True:
        saved, now = submit_and_next(visit.store, visit.person.id, answer, held)
    else:
        saved, now = submit(visit.store, visit.person.id, answer), None
    item = None if now is None else item_json(now, visit.store.project.mode)
    return JSONResponse({"saved": saved, "next": item, "progress": progress(visit)})


def api_recent(visit: Visit) -> Response:
    """This labeler's last judgments, newest first."""
    return JSONResponse({"recent": recent(visit.store, visit.person.id)})


def api_item(visit: Visit) -> Response:
    """One of this labeler's own items, with the judgment that stands."""
    return JSONResponse({"item": item_json(_own_assignment(visit), visit.store.project.mode)})


def _next(visit: Visit, held: list[int]) -> dict[str, Any]:
    now = next_assignment(visit.store, visit.person.id, held)
    item = None if now is None else item_json(now, visit.store.project.mode)
    return {"next": item, "progress": progress(visit)}


def progress(visit: Visit) -> dict[str, Any]:
    """How much this labeler has judged, how far the project is, and the instructions' version."""
    db = visit.store.read()
    query = "SELECT count(*) FROM judgments WHERE labeler = ? AND supersedes IS NULL"
    [own] = db.execute(query, (visit.person.id,)).fetchone()
    [version] = db.execute("SELECT max(version) FROM instructions").fetchone()
    return {"own": own, "percent": visit.site.counts.get().percent, "instructions": version}


def recent(store: Store, labeler: int) -> list[dict[str, Any]]:
    """What a labeler judged last, newest first, as lines to choose from."""
    mode = store.project.mode
    rows = store.read().execute(
        "SELECT assignment FROM judgments AS j WHERE labeler = ? AND NOT EXISTS "
        "(SELECT 1 FROM judgments AS later WHERE later.supersedes = j.id) "
        "ORDER BY id DESC LIMIT ?",
        (labeler, RECENT),
    )
    items = [assignment(store, labeler, row["assignment"]) for row in rows.fetchall()]
    return [
        {
            "id": item.id,
            "prompt": " ".join(turns(item.prompt)[-1]["content"].split())[:90],
            "said": said(item, mode),
        }
        for item in items
    ]


# --- items and answers ----------------------------------------------------------------------------


def turns(text: Text) -> list[dict[str, str]]:
    """A text as its chat turns; a plain text, or a single message, is one turn without a role."""
    if isinstance(text, str):
        return [{"role": "", "content": text}]
    if len(text) == 1:
        return [{"role": "", "content": text[0]["content"]}]
    return [{"role": one["role"], "content": one["content"]} for one in text] or turns("")


def item_json(now: Assignment, mode: Mode) -> dict[str, Any]:
    """An item as the page gets it."""
    return {
        "id": now.id,
        "prompt": turns(now.prompt),
        "completions": [turns(text) for text in now.completions],
        "verdict": now.verdict,
        "marks": marks(now, mode),
        "reason": now.reason,
    }


def marks(now: Assignment, mode: Mode) -> dict[str, str]:
    """The form fields of the standing judgment, by name."""
    if now.ranks is None:
        return {}
    if mode == "pair":
        said = (now.ranks, now.strength)
        return {"choice": next(name for name, value in PAIR.items() if value == said)}
    if mode == "thumbs":
        return {"thumb": "down" if now.ranks[0] is None else "up"}
    return {
        f"rank-{place}": "fail" if rank is None else str(int(rank))
        for place, rank in enumerate(now.ranks)
    }


def said(now: Assignment, mode: Mode) -> str:
    """A judgment in short: "A > B = C", "B much better", "thumbs up", "skipped"."""
    if now.ranks is None:
        return now.verdict
    if mode == "thumbs":
        return "thumbs down" if now.ranks[0] is None else "thumbs up"
    if mode == "pair":
        if now.strength == 0:
            return "both fail" if now.ranks[0] is None else "tie"
        how = {1: "slightly better", 2: "better", 3: "much better"}[now.strength or 1]
        return f"{'A' if now.ranks[0] == 1 else 'B'} {how}"
    places: dict[float, list[str]] = {}
    for letter, rank in zip(LETTERS, now.ranks, strict=False):
        places.setdefault(math.inf if rank is None else rank, []).append(letter)
    failed = places.pop(math.inf, [])
    order = " > ".join(" = ".join(places[rank]) for rank in sorted(places))
    return ", ".join([part for part in (order, f"fail: {' '.join(failed)}" * bool(failed)) if part])


def form_answer(fields: Mapping[str, Any], now: Assignment, mode: Mode) -> Answer:
    """The answer of a plain form.

    Raises:
        DataError: Something is not chosen yet, or is no choice of this mode.
    """
    answer = Answer(
        assignment=now.id,
        submission=_text(fields, "submission"),
        verdict=_verdict(fields.get("action", "ranked")),
        reason=_text(fields, "reason"),
        seconds=_seconds_since(_text(fields, "opened")),
    )
    if answer.verdict != "ranked":
        return answer
    if mode == "pair":
        ranks, strength = _choice(PAIR, _text(fields, "choice"), "how the two compare")
        return replace(answer, ranks=ranks, strength=strength, reason="")
    if mode == "thumbs":
        ranks = _choice(THUMB, _text(fields, "thumb"), "thumbs up or down")
        return replace(answer, ranks=ranks, reason="")
    size = len(now.completions)
    choices: dict[str, float | None] = {str(rank): float(rank) for rank in range(1, size + 1)}
    choices["fail"] = None
    return replace(
        answer,
        reason="",
        ranks=[
            _choice(choices, _text(fields, f"rank-{place}"), f"a rank for {_letter(place)}")
            for place in range(size)
        ],
    )


def parse_answer(fields: Mapping[str, Any]) -> Answer:
    """The answer of the script, each field checked by its type.

    Raises:
        DataError: A field is missing, unknown to the rules or of another type.
    """
    ranks, strength = fields.get("ranks"), fields.get("strength")
    seconds, number = fields.get("seconds"), fields.get("assignment")
    if not _is_whole(number):
        raise DataError(f"assignment={shown(number)} must be a whole number")
    if ranks is not None:
        if not isinstance(ranks, list) or not all(one is None or _is_whole(one) for one in ranks):
            raise DataError(f"ranks={shown(ranks)} must be a list of whole numbers and nulls")
        ranks = [None if one is None else float(one) for one in ranks]
    if strength is not None and not _is_whole(strength):
        raise DataError(f"strength={shown(strength)} must be a whole number from 0 to 3")
    if seconds is not None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise DataError(f"seconds={shown(seconds)} must be a number of seconds")
        seconds = float(seconds) if 0 <= seconds < 1e7 else -1.0  # refused by the rules
    return Answer(
        assignment=number,
        submission=_text(fields, "submission"),
        verdict=_verdict(fields.get("verdict")),
        ranks=ranks,
        strength=strength,
        reason=_text(fields, "reason"),
        seconds=seconds,
    )


def _own_assignment(visit: Visit, number: object = None) -> Assignment:
    """An assignment by its number; 404 where it is unknown or another labeler's, the same."""
    number = visit.request.path_params["id"] if number is None else number
    try:
        return assignment(visit.store, visit.person.id, whole_number(number))
    except DataError:
        raise HTTPException(404, "There is no such item among yours.") from None


def whole_number(text: object) -> int:
    """A number as paths and forms hold it.

    Raises:
        DataError: It is none, or larger than any in the database.
    """
    text = text if isinstance(text, str) else ""
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text)
    raise DataError(f"number={shown(text)} must be a whole number")


def _is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number that the database can hold; True and False are none."""
    return type(value) is int and abs(value) < 1 << 63


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise DataError(f"{name}={shown(value)} must be a text")
    return value


def _verdict(value: object) -> Any:
    if value not in ("ranked", "skipped", "flagged"):
        raise DataError(f"verdict={shown(value)} must be 'ranked', 'skipped' or 'flagged'")
    return value


def _choice(choices: Mapping[str, Any], value: str, what: str) -> Any:
    if not value:
        raise DataError(f"choose {what}, or skip the item")
    if value not in choices:
        raise DataError(f"choice={shown(value)} must be one of {list(choices)}")
    return choices[value]


def _letter(place: int) -> str:
    return LETTERS[place] if place < len(LETTERS) else f"completion {place + 1}"


def _seconds_since(opened: str) -> float | None:
    """From a form's own time stamp; None where it was tampered with."""
    try:
        seconds = time.time() - float(opened)
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e7 else None


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


ROUTES = [
    entrance("/", label),
    entrance("/item/{id}", reopen),
    entrance("/judge", judge, post=True),
    entrance("/leave", leave, post=True),
    entrance("/api/next", api_next),
    entrance("/api/judgments", api_judge, post=True),
    entrance("/api/recent", api_recent),
    entrance("/api/item/{id}", api_item),
]

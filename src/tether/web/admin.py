"""What an administrator sees and does: progress, people, invitations, items, instructions."""

import json
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response, StreamingResponse

from tether.errors import DataError
from tether.feedback.people import invite, revoke
from tether.feedback.store import Store
from tether.web.access import Visit, entrance
from tether.web.counts import count
from tether.web.label import LETTERS, turns, whole_number

HOURS = 24  # of the chart
SHOWN = 50  # items in a list


# --- pages ----------------------------------------------------------------------------------------


def overview(visit: Visit) -> Response:
    """The administrator's page."""
    return _page(visit)


def item(visit: Visit) -> Response:
    """One item with its texts, the models behind them, and what was said about it."""
    number = whole_number(visit.request.path_params["id"])
    row = visit.store.read().execute("SELECT * FROM items WHERE id = ?", (number,)).fetchone()
    if row is None:
        raise HTTPException(404, "There is no such item.")
    texts = [turns(text) for text in json.loads(row["completions"])]
    return visit.page(
        "item.html",
        item=row,
        prompt=turns(json.loads(row["prompt"])),
        completions=list(zip(json.loads(row["sources"]), texts, strict=True)),
        judgments=judgments_on(visit.store, number),
        letters=LETTERS,
    )


def _page(visit: Visit, status: int = 200, **values: Any) -> Response:
    store = visit.store
    version, text = store.instructions()
    now = time.time()
    hours = judgments_by_hour(store, now)
    values = {"error": "", "link": "", "invited_name": "", **values}
    return visit.page(
        "admin.html",
        status,
        progress=count(store),
        hours=hours,
        last_hour=hours[-1],
        people=labelers(store),
        noted=noted_items(store),
        retired=retired_items(store),
        summary=visit.site.summary.get(),
        now=now,
        version=version,
        instructions=text,
        exports=list(visit.site.exports),
        **values,
    )


# --- what the database says -----------------------------------------------------------------------


def judgments_by_hour(store: Store, now: float) -> list[int]:
    """How many judgments came in each of the last 24 hours, the present one last."""
    rows = store.read().execute(
        "SELECT CAST((? - created) / 3600 AS INTEGER) AS ago, count(*) AS number FROM judgments "
        "WHERE id > (SELECT max(id) FROM judgments) - 100000 AND created > ? GROUP BY ago",
        (now, now - 3600 * HOURS),
    )
    by_age = {row["ago"]: row["number"] for row in rows}
    return [by_age.get(ago, 0) for ago in reversed(range(HOURS))]


def labelers(store: Store) -> list[dict[str, Any]]:
    """Everybody with what they have given: ranked, skipped and flagged items, the last time."""
    rows = store.read().execute(
        "SELECT p.id, p.name, p.role, p.team, p.revoked, p.token IS NOT NULL AS linked, "
        "j.ranked, j.skipped, j.flagged, j.seen FROM people AS p LEFT JOIN ("
        "SELECT labeler, sum(verdict = 'ranked') AS ranked, sum(verdict = 'skipped') AS skipped, "
        "sum(verdict = 'flagged') AS flagged, max(created) AS seen FROM current_judgments "
        "GROUP BY labeler) AS j ON j.labeler = p.id ORDER BY j.ranked DESC, p.name"
    )
    return [dict(row) for row in rows]


def noted_items(store: Store) -> list[dict[str, Any]]:
    """Items that somebody flagged or skipped, the latest first, with the reasons."""
    rows = store.read().execute(
        "SELECT j.verdict, j.reason, j.created, p.name, i.id, i.prompt, i.retired "
        "FROM current_judgments AS j JOIN assignments AS a ON a.id = j.assignment "
        "JOIN items AS i ON i.id = a.item JOIN people AS p ON p.id = j.labeler "
        "WHERE j.verdict <> 'ranked' ORDER BY j.verdict, j.id DESC LIMIT ?",
        (SHOWN,),
    )
    return [{**dict(row), "prompt": _beginning(row["prompt"])} for row in rows]


def retired_items(store: Store) -> list[dict[str, Any]]:
    """Items that are shown to nobody any more."""
    query = "SELECT id, prompt FROM items WHERE retired = 1 ORDER BY id DESC LIMIT ?"
    rows = store.read().execute(query, (SHOWN,))
    return [{"id": row["id"], "prompt": _beginning(row["prompt"])} for row in rows]


def judgments_on(store: Store, number: int) -> list[dict[str, Any]]:
    """What stands on one item, with ranks in the stored order of its completions."""
    rows = store.read().execute(
        "SELECT j.verdict, j.ranks, j.strength, j.reason, j.created, p.name, a.repeat "
        "FROM current_judgments AS j JOIN assignments AS a ON a.id = j.assignment "
        "JOIN people AS p ON p.id = j.labeler WHERE a.item = ? ORDER BY j.id",
        (number,),
    )
    return [{**dict(row), "ranks": json.loads(row["ranks"] or "null")} for row in rows]


def _beginning(prompt: str) -> str:
    return " ".join(turns(json.loads(prompt))[-1]["content"].split())[:140]


# --- what an administrator does -------------------------------------------------------------------


def make_invitation(visit: Visit) -> Response:
    """Invite somebody; the page shows the link this once."""
    name, role = visit.fields.get("name", "").strip(), visit.fields.get("role", "labeler")
    if role not in ("labeler", "administrator"):
        raise DataError(f"role={role!r} must be 'labeler' or 'administrator'")
    try:
        token = invite(visit.store, name, group=visit.fields.get("group", "")[:80], role=role)
    except DataError as error:
        return _page(visit, 400, error=str(error))
    path = "/admin/join/" if role == "administrator" else "/join/"
    base = str(visit.request.base_url).rstrip("/")
    return _page(visit, link=f"{base}{path}{token}", invited_name=name)


def end_invitation(visit: Visit) -> Response:
    """Revoke somebody's access."""
    revoke(visit.store, visit.fields.get("name", ""))
    return RedirectResponse("/admin#people", status_code=303)


def retire(visit: Visit) -> Response:
    """Take an item out of the labelers' hands, or bring it back."""
    number, retired = whole_number(visit.fields.get("item", "")), visit.fields.get("retired", "1")
    with visit.store.write() as db:
        query = "UPDATE items SET retired = ? WHERE id = ? RETURNING id"
        if db.execute(query, (int(retired == "1"), number)).fetchone() is None:
            raise HTTPException(404, "There is no such item.")
    return RedirectResponse("/admin#items", status_code=303)


def change_instructions(visit: Visit) -> Response:
    """Give the instructions a new version."""
    visit.store.set_instructions(visit.fields.get("text", "").replace("\r\n", "\n"))
    return RedirectResponse("/admin#instructions", status_code=303)


def export(visit: Visit) -> Response:
    """A file of what was judged."""
    name = visit.request.path_params["name"]
    if name not in visit.site.exports:
        raise HTTPException(404, "There is no such export.")
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    lines = visit.site.exports[name](visit.store)
    return StreamingResponse(lines, media_type="application/octet-stream", headers=headers)


ROUTES = [
    entrance("/admin", overview, admin=True),
    entrance("/admin/item/{id}", item, admin=True),
    entrance("/admin/export/{name}", export, admin=True),
    entrance("/admin/invite", make_invitation, post=True, admin=True),
    entrance("/admin/revoke", end_invitation, post=True, admin=True),
    entrance("/admin/retire", retire, post=True, admin=True),
    entrance("/admin/instructions", change_instructions, post=True, admin=True),
]

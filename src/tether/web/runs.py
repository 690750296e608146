"""The start page, and a run's own: figures, samples and alarms, live while it trains."""

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from tether.errors import TetherError
from tether.feedback.store import Store
from tether.glossary import METRICS, explain
from tether.rundir import STOP
from tether.web import history
from tether.web.counts import count
from tether.web.states import (
    Run,
    Stage,
    find_runs,
    holds_stage,
    read_run,
    read_stage,
    read_text,
    stirred,
)
from tether.web.visit import Visit, Workshop, entrance, link_text

EVERY = 0.5  # seconds between looks at the files
ALIVE = 15.0  # seconds between signs of life on a quiet stream
LOOK = 0.25  # seconds that one request may spend on parsing rows
SAMPLES = 8
EVENTS = 50
MOST_OVERLAID = 6
WATCHED = ("samples.jsonl", "events.jsonl", "monitor.jsonl", "result.json", "config.toml", STOP)
# A report has scripts of its own: it may run them, but as a page of nobody's.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
)


# --- the start page -------------------------------------------------------------------------------


def start(visit: Visit) -> Response:
    """All runs and labeling projects."""
    return visit.page(
        "start.html",
        runs=find_runs(visit.site),
        projects=[_project(path) for path in visit.site.projects if path.is_file()],
        folder=link_text(visit.site.runs),
        now=time.time(),
        here="/",
    )


def _project(path: Path) -> dict[str, Any]:
    """A labeling project's progress, and how to open it."""
    found: dict[str, Any] = {"name": path.stem, "path": link_text(path), "error": ""}
    try:
        _require_project(path)
        store = Store(path)
        try:
            done = count(store)
            counted = {"percent": done.percent, "judged": done.judged, "wanted": done.wanted}
            return {**found, "name": store.project.name, **counted}
        finally:
            store.close()
    except (TetherError, OSError, sqlite3.Error) as error:
        return found | {"error": str(error)}


def _require_project(path: Path) -> None:
    """Look whether it is one before it is opened as one, which may change the file."""
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        db.execute("SELECT name FROM project").fetchone()
    finally:
        db.close()


# --- a run's page ---------------------------------------------------------------------------------


def run(visit: Visit) -> Response:
    """A run: its stages, and one of them in full."""
    site = visit.site
    folder = site.folder(visit.asked("name"))
    if not holds_stage(site, folder):
        found = read_run(site, folder)
        stage = found.current if found else None
    else:
        stage = read_stage(site, folder)
        whole = read_run(site, folder.parent) if folder.parent != site.runs else None
        found = whole or Run(name=stage.name, stages=[stage], report=False)
    if found is None or stage is None:
        raise HTTPException(404, "There is no run in that folder.")
    return visit.page("run.html", **_contents(visit, found, stage))


def _contents(visit: Visit, found: Run, stage: Stage) -> dict[str, Any]:
    site, folder = visit.site, stage.folder
    waiting = stage.state == "waiting"
    file = (lambda _: None) if waiting else (lambda name: site.file(folder, name))
    asked = visit.request.query_params.getlist("with")
    overlaid = list(dict.fromkeys(name for name in asked if name not in ("", stage.name)))
    return {
        "run": found,
        "stage": stage,
        "overlaid": overlaid[:MOST_OVERLAID],
        "others": [] if waiting else _others(site, stage),
        "figures": _figures(stage.last),
        "samples": _samples(file("samples.jsonl")),
        "events": [_alarm(row) for row in reversed(history.newest(file("events.jsonl"), EVENTS))],
        "checkpoints": [] if waiting else _checkpoints(stage),
        "config": read_text(file("config.toml")),
        "throughput": _throughput(stage),
        "now": time.time(),
        "charts": True,
    }


def _others(site: Workshop, stage: Stage) -> list[str]:
    """Stages of any run that have metrics and could be laid over this one; its own kind first."""
    every = [one for each in find_runs(site) for one in each.stages]
    fitting = [one for one in every if one.last and one.name != stage.name]
    fitting.sort(key=lambda one: one.kind != stage.kind)
    return [one.name for one in fitting]


def _figures(last: dict[str, Any]) -> list[dict[str, Any]]:
    """The newest value of every figure, with what it means."""
    found = []
    for key, value in last.items():
        value, known = history.number(value), explain(key)
        if value is None or key == "step":
            continue
        entry = known._asdict() if known else {"title": key, "unit": "", "chart": ""}
        entry = {"meaning": "", "healthy": "", **entry, "key": key, "value": value}
        found.append(entry)
    return found


def _samples(path: Path | None) -> list[dict[str, Any]]:
    """The newest samples, beside the earliest known to the same prompt or the reference's own."""
    rows = [row for row in history.newest(path, 400) if isinstance(row.get("completion"), str)]
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(json.dumps(row.get("prompt")), row)
    found = []
    for row in reversed(rows[-SAMPLES:]):
        before = first[json.dumps(row.get("prompt"))]
        beside = row.get("reference")
        then = None
        if not isinstance(beside, str) and before is not row and before.get("step") != row["step"]:
            beside, then = before["completion"], before.get("step")
        sample = {"step": row.get("step"), "prompt": _turns(row.get("prompt"))}
        sample |= {"completion": row["completion"], "score": history.number(row.get("score"))}
        found.append(
            {**sample, "beside": beside if isinstance(beside, str) else None, "then": then}
        )
    return found


def _alarm(row: dict[str, Any]) -> dict[str, Any]:
    """An alarm of the monitor, with what it saw."""
    texts = {key: str(row.get(key) or "") for key in ("step", "alarm", "action", "text")}
    examples = row.get("examples")
    examples = examples if isinstance(examples, list) else []
    return {**texts, "examples": [one if isinstance(one, str) else _lines(one) for one in examples]}


def _lines(value: Any) -> str:
    """An example with several fields, one a line."""
    if not isinstance(value, dict):
        return str(value)
    return "\n".join(f"{name}: {each}" for name, each in value.items())


def _turns(prompt: Any) -> list[tuple[str, str]]:
    """Who says what in a prompt; a plain text is nobody's."""
    if isinstance(prompt, list):
        turns = [turn for turn in prompt if isinstance(turn, dict)]
        return [(str(turn.get("role", "")), str(turn.get("content", ""))) for turn in turns]
    return [("", str(prompt or ""))]


def _checkpoints(stage: Stage) -> list[str]:
    """What has been kept along the way."""
    kept = sorted(path.name for path in (stage.folder / "models").glob("step-*"))
    found = [f"models/{name}" for name in kept]
    if stage.checkpoint is not None:
        found.insert(0, f"checkpoints/step-{stage.checkpoint:06d}")
    return [*found, "model"] if (stage.folder / "model").is_dir() else found


def _throughput(stage: Stage) -> list[tuple[str, str]]:
    """Steps and tokens by time, from the newest row."""
    last = {key: history.number(value) for key, value in stage.last.items()}
    found = []
    if stage.rate:
        found.append((f"{60 * stage.rate:.3g}", "steps a minute"))
    length, spent = last.get("length"), last.get("seconds_generate")
    size = history.number(stage.settings.get("batch_size"))
    if length and spent and size:
        found.append((f"{length * size / spent:,.0f}", "tokens a second sampled"))
    elif (tokens := last.get("tokens")) and stage.rate:
        found.append((f"{tokens * stage.rate:,.0f}", "tokens a second"))
    return found


def stop(visit: Visit) -> Response:
    """Ask a stage that trains to end after the step it is at."""
    folder = visit.site.folder(str(visit.fields.get("stage", "")))
    stage = read_stage(visit.site, folder)
    if stage.state not in ("running", "stopping"):
        raise HTTPException(409, f"{stage.name} is not running.")
    (folder / STOP).touch()
    return RedirectResponse(f"/run/{quote(stage.name)}", status_code=303)


def report(visit: Visit) -> Response:
    """A run's report, as a page that can reach nothing of ours."""
    path = visit.site.file(visit.site.folder(visit.asked("name")), "report.html")
    if path is None:
        raise HTTPException(404, "This run has no report.")
    headers = {"Content-Security-Policy": REPORT_POLICY}
    return Response(path.read_bytes(), media_type="text/html", headers=headers)


# --- requests of the script -----------------------------------------------------------------------


def api_rows(visit: Visit) -> Response:
    """Thinned series of a stage, and what each of them means."""
    folder = visit.site.folder(visit.asked("name"))
    series, share, position = {}, 1.0, history.Position(0, 0)
    for source in ("metrics", "monitor"):
        path = visit.site.file(folder, f"{source}.jsonl")
        found, at, covered = history.columns(path).look(LOOK) if path else ({}, position, 1.0)
        position = at if source == "metrics" else position
        share = min(share, covered)
        series |= {f"{source}/{key}": each for key, each in found.items()}
    known = {key: explain(key.partition("/")[2]) for key in series}
    order = [*METRICS]
    found = [(key, each) for key, each in known.items() if each]
    found.sort(key=lambda pair: order.index(k) if (k := pair[0].partition("/")[2]) in order else 0)
    meanings = {key: each._asdict() for key, each in found}
    body = {"series": series, "meanings": meanings, "position": str(position), "share": share}
    return JSONResponse(body)


def api_follow(visit: Visit) -> Response:
    """What is written from now on, as server-sent events; each is named by where it ends."""
    folder = visit.site.folder(visit.asked("name"))
    after = visit.request.headers.get("last-event-id") or visit.asked("after")
    events = _follow(visit.site, folder, history.position(after))
    return StreamingResponse(events, media_type="text/event-stream")


async def _follow(site: Workshop, folder: Path, at: history.Position) -> AsyncIterator[str]:
    yield f"retry: 2000\nid: {at}\ndata: \n\n"
    before, told = _signature(site, folder), time.monotonic()
    while not site.stopping():
        news = await run_in_threadpool(_news, site, folder, at, before)
        at, before, events = news
        for event in events:
            yield event
        if events:
            told = time.monotonic()
        elif time.monotonic() - told > ALIVE:
            told = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(EVERY)


def _news(
    site: Workshop, folder: Path, at: history.Position, before: dict[str, Any]
) -> tuple[history.Position, dict[str, Any], list[str]]:
    """Where the rows end now, how the other files are, and what there is to tell."""
    events: list[str] = []
    path = site.file(folder, "metrics.jsonl")
    found = history.rows_after(path, at) if path else ([], at) if at.inode == 0 else None
    if found is None:
        at = history.end(path)
        events.append(_event("reload", at, None))
    else:
        rows, at = found
        if rows:
            events.append(_event("rows", at, rows))
    now = _signature(site, folder)
    if changed := [name for name, one in now.items() if one != before.get(name)]:
        events.append(_event("changed", at, changed))
    return at, now, events


def _event(name: str, at: history.Position, data: Any) -> str:
    return f"event: {name}\nid: {at}\ndata: {json.dumps(data)}\n\n"


def _signature(site: Workshop, folder: Path) -> dict[str, Any]:
    """Of each file beside the metrics, and of the stage, what changes whenever it does."""
    files = {name: history.end(site.file(folder, name)) for name in WATCHED}
    return {**files, "state": stirred(site, folder)}


ROUTES = [
    entrance("/", start),
    entrance("/run/{name:path}", run),
    entrance("/report/{name:path}", report),
    entrance("/stop", stop, post=True),
    entrance("/api/rows/{name:path}", api_rows),
    entrance("/api/follow/{name:path}", api_follow),
]

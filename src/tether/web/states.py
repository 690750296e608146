"""How runs and their stages stand, told from what they have written so far."""

import json
import os
import platform
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tether.rundir import STOP
from tether.web.history import newest, number
from tether.web.visit import Workshop

DEPTH = 3  # folders below the runs in which runs are looked for
MOST = 500  # runs and stages that the start page lists
MOST_BYTES = 1 << 20  # of a settings file
RECENT = 200  # rows among which the newest value of a figure is looked for
QUIET = 600.0  # seconds without a row after which a run on another machine counts as stopped
LAST = ("score", "kl", "loss", "held_out_loss", "accuracy", "held_out_accuracy", "length")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage's folder."""

    name: str
    """Its address below the runs, such as demo/ppo"""
    title: str
    """Its own name"""
    folder: Path
    kind: str
    state: str
    """waiting, running, stopping, stopped, failed or finished"""
    step: int
    total: int
    """Steps there will be; 0 = not known"""
    seconds_left: float | None
    seconds: float | None
    """It took, or has taken since it last went on"""
    last: dict[str, Any]
    """The newest value of each of its metrics"""
    changed: float
    """When something was last written; seconds since the epoch"""
    checkpoint: int | None
    """Steps of the checkpoint that it would go on from"""
    rate: float | None = None
    """Steps a second"""
    settings: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def percent(self) -> int:
        """Share of its steps that is done."""
        return 100 if self.state == "finished" else int(100 * self.step / max(self.total, 1))

    @property
    def figures(self) -> list[tuple[str, float]]:
        """The few figures that say how it goes."""
        found = [(key, number(self.last.get(key))) for key in LAST]
        return [(key, value) for key, value in found if value is not None][:4]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A folder with the stages of a recipe, or with a single stage."""

    name: str
    stages: list[Stage]
    report: bool

    @property
    def state(self) -> str:
        """That of its stages together."""
        states = [stage.state for stage in self.stages]
        for one in ("running", "stopping", "failed", "stopped"):
            if one in states:
                return one
        return "finished" if states and set(states) == {"finished"} else "waiting"

    @property
    def current(self) -> Stage | None:
        """The stage that is at work, else the last one that has metrics, else the last."""
        busy = [stage for stage in self.stages if stage.state in ("running", "stopping")]
        told = [stage for stage in self.stages if stage.last]
        begun = [stage for stage in self.stages if stage.state != "waiting"]
        for some in (busy, told, begun, self.stages):
            if some:
                return some[-1]
        return None

    @property
    def changed(self) -> float:
        """When something was last written."""
        return max((stage.changed for stage in self.stages), default=0.0)


def find_runs(site: Workshop) -> list[Run]:
    """Every run below the folder of runs, the newest first."""
    found: list[Run] = []
    places = [(folder, 1) for folder in _folders(site, site.runs)]
    while places and len(found) < MOST:
        folder, depth = places.pop(0)
        if (run := read_run(site, folder)) is not None:
            found.append(run)
        elif depth < DEPTH:
            places += [(inner, depth + 1) for inner in _folders(site, folder)]
    return sorted(found, key=lambda run: -run.changed)


def read_run(site: Workshop, folder: Path) -> Run | None:
    """The run in a folder; None where there is none."""
    name = str(folder.relative_to(site.runs))
    report = site.file(folder, "report.html") is not None
    if site.file(folder, "config.toml"):
        return Run(name=name, stages=[read_stage(site, folder)], report=report)
    recipe = site.file(folder, "recipe.toml")
    if recipe is None and site.file(folder, "manifest.json") is None:
        return None
    stages = [
        read_stage(site, inner) for inner in _folders(site, folder) if holds_stage(site, inner)
    ]
    names = {stage.title: stage for stage in stages}
    planned = [(_text(one.get("name") or one.get("kind")), one) for one in _recipe(recipe)]
    order = [names.pop(title, None) or _waiting(name, title, one) for title, one in planned]
    return Run(name=name, stages=[*order, *names.values()], report=report)


def read_stage(site: Workshop, folder: Path) -> Stage:
    """How a stage stands."""
    settings = _toml(site.file(folder, "config.toml"))
    result = _json(site.file(folder, "result.json"))
    metrics = site.file(folder, "metrics.jsonl")
    last = _newest_figures(metrics)
    process = settings.pop("process", {})
    process = process if isinstance(process, dict) else {}
    step, total = _whole(last.get("step")), _whole(process.get("total_steps"))
    begun, changed = number(process.get("time")), _changed(site, folder)
    state = _state(site, folder, result, process, changed)
    spent = None if begun is None else max(changed - begun, 0.0)
    done = step - _whole(process.get("step"))
    rate = done / spent if spent and done > 0 else None
    going = state in ("running", "stopping") and rate and total
    return Stage(
        name=str(folder.relative_to(site.runs)),
        title=folder.name,
        folder=folder,
        kind=_text(result.get("kind") or settings.get("kind")),
        state=state,
        step=step,
        total=max(total, step) if state == "finished" else total,
        seconds_left=max(total - step, 0) / rate if going and rate else None,
        seconds=number(result.get("seconds")) if result else spent,
        last=last,
        changed=changed,
        checkpoint=_checkpoint(site, folder),
        rate=rate,
        settings=settings,
        result=result,
    )


def _newest_figures(metrics: Path | None) -> dict[str, Any]:
    """The last row, with what only rows a little before it have, such as held-out figures."""
    rows = newest(metrics, RECENT)
    last: dict[str, Any] = {}
    for row in rows:
        last |= {key: value for key, value in row.items() if value is not None}
    ordered = dict.fromkeys(key for row in reversed(rows) for key in row)
    return {key: last[key] for key in ordered if key in last}


def stirred(site: Workshop, folder: Path) -> tuple[str, list[str]]:
    """What tells that a page of this stage is out of date although none of its files has grown.

    Its state, which changes when its process ends, and which stages of its run have begun.
    """
    process = _toml(site.file(folder, "config.toml")).get("process", {})
    process = process if isinstance(process, dict) else {}
    result = _json(site.file(folder, "result.json"))
    state = _state(site, folder, result, process, _changed(site, folder))
    beside = _folders(site, folder.parent) if folder.parent != site.runs else []
    return state, [one.name for one in beside if holds_stage(site, one)]


def _state(
    site: Workshop, folder: Path, result: dict[str, Any], process: dict[str, Any], changed: float
) -> str:
    if result:
        return "finished"
    if _alive(process, changed):
        return "stopping" if site.file(folder, STOP) else "running"
    return "failed" if _checkpoint(site, folder) is None else "stopped"


def _alive(process: dict[str, Any], changed: float) -> bool:
    """Whether a stage's process is at work; where it runs elsewhere, whether it still writes."""
    pid = process.get("pid")
    if process.get("host") != platform.node() or not isinstance(pid, int) or pid < 1:
        return time.time() - changed < QUIET
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _waiting(run: str, title: str, settings: dict[str, Any]) -> Stage:
    """A stage of a recipe that has not begun."""
    return Stage(
        name=f"{run}/{title}",
        title=title,
        folder=Path(title),
        kind=_text(settings.get("kind")),
        state="waiting",
        step=0,
        total=_whole(settings.get("steps") or settings.get("max_steps")),
        seconds_left=None,
        seconds=None,
        last={},
        changed=0.0,
        checkpoint=None,
    )


# --- files ----------------------------------------------------------------------------------------


def _folders(site: Workshop, folder: Path) -> list[Path]:
    """Visible folders in a folder that do not lead elsewhere, by name."""
    try:
        inner = sorted(one for one in folder.iterdir() if not one.name.startswith("."))
    except OSError:
        return []
    kept = [one for one in inner[:MOST] if one.is_dir() and not one.is_symlink()]
    return [one for one in kept if one.is_relative_to(site.runs)]


def holds_stage(site: Workshop, folder: Path) -> bool:
    """Whether a folder is that of a stage."""
    return any(site.file(folder, name) for name in ("config.toml", "result.json"))


def _changed(site: Workshop, folder: Path) -> float:
    names = ("metrics.jsonl", "config.toml", "result.json", "samples.jsonl")
    files = [file for name in names if (file := site.file(folder, name))]
    return max((file.stat().st_mtime for file in files), default=0.0)


def _checkpoint(site: Workshop, folder: Path) -> int | None:
    """Steps of the newest checkpoint."""
    names = [one.name.removeprefix("step-") for one in (folder / "checkpoints").glob("step-*")]
    return max((int(name) for name in names if name.isdecimal()), default=None)


def _recipe(path: Path | None) -> list[dict[str, Any]]:
    stages = _toml(path).get("stage", [])
    return [one for one in stages if isinstance(one, dict)] if isinstance(stages, list) else []


def _toml(path: Path | None) -> dict[str, Any]:
    """The tables of a file; none where it is missing, long or broken."""
    try:
        return tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def _json(path: Path | None) -> dict[str, Any]:
    """The object in a file; an empty one where it is missing, long or broken."""
    try:
        value = json.loads(read_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_text(path: Path | None) -> str:
    """The beginning of a text file; "" where there is none."""
    try:
        if path is None:
            return ""
        with path.open("rb") as stream:
            return stream.read(MOST_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> int:
    found = number(value)
    return 0 if found is None else max(int(found), 0)

"""What the stages of a run left, read for its report and its model cards.

What is missing is left out: a folder of an older version has fewer files.
"""

import json
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tether.errors import DataError
from tether.evaluation.blocks import Block, read_blocks
from tether.evaluation.curves import curves
from tether.evaluation.figures import Figure, by_category, by_distance
from tether.evaluation.monitored import Alarm, alarms, monitor_figures
from tether.evaluation.overoptimization import read_frontier
from tether.evaluation.plane import plane
from tether.evaluation.report_labels import Labels, read_labels
from tether.evaluation.summary import Sample, Summary
from tether.evaluation.table import Column, columns, percent, read_summary
from tether.evaluation.verdict import Training, Verdict, verdict
from tether.records import read_jsonl
from tether.statistics import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluate stage found."""

    stage: str
    summary: Summary
    verdict: Verdict | None
    columns: list[Column]
    figures: list[Figure]
    samples: list[Sample]
    models: dict[str, str]
    """The stage that made each policy, by its name; "" where none of this run did"""
    reached: dict[str, Interval]
    """Share of the best reachable gain at its KL, by policy, where the frontier tells it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What one finished stage left."""

    name: str
    kind: str
    folder: Path
    seconds: float
    """Wall time; 0 = not known"""
    cpu_seconds: float
    """0 = not known"""
    memory: int
    """Peak of the process up to the stage's end, MiB; 0 = not known"""
    config: str
    settings: dict[str, Any]
    result: dict[str, Any]
    facts: list[tuple[str, str]]
    metrics: list[dict[str, Any]]
    curves: list[Figure]
    details: list[Figure]
    """Curves for looking after what went wrong"""
    monitor: list[Figure]
    alarms: list[Alarm]
    training: Training | None
    """How a monitored run ended; None where nothing watched it"""
    accuracy: str
    """Held-out accuracy of a reward model in words; "" for other stages"""
    labels: Labels | None
    blocks: list[Block]
    evaluation: Evaluation | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run directory, or the folder of a single stage."""

    path: Path
    title: str
    stages: list[Stage]
    """Those that have finished, in the order of the recipe"""
    recipe: str
    manifest: dict[str, Any]

    @property
    def evaluations(self) -> list[Evaluation]:
        """What its evaluations found, in their order."""
        return [stage.evaluation for stage in self.stages if stage.evaluation]


def read_run(path: Path) -> Run:
    """Read everything that a report tells of a run.

    Raises:
        DataError: No stage has finished there, or a file of it cannot be read.
    """
    manifest = read_object(path / "manifest.json")
    order = manifest.pop("stages", [])
    folders = [path, *sorted(each for each in path.glob("*") if each.is_dir())]
    finished = [folder for folder in folders if (folder / "result.json").is_file()]
    if not finished:
        raise DataError(f"{path}: no stage has finished here: no folder has a result.json")
    trained = {folder.name: _training(folder) for folder in finished}
    stages = [_read_stage(folder, trained) for folder in finished]
    place = {str(name): i for i, name in enumerate(order if isinstance(order, list) else [])}
    return Run(
        path=path,
        title=path.resolve().name,
        stages=sorted(stages, key=lambda stage: place.get(stage.name, len(place))),
        recipe=read_text(path / "recipe.toml"),
        manifest=manifest,
    )


def _read_stage(folder: Path, trained: dict[str, Training | None]) -> Stage:
    result = read_object(folder / "result.json")
    name = str(result.pop("name", folder.resolve().name))
    kind = str(result.pop("kind", ""))
    metrics, events = _rows(folder / "metrics.jsonl"), alarms(_rows(folder / "events.jsonl"))
    settings = _settings(folder)
    return Stage(
        name=name,
        kind=kind,
        folder=folder,
        seconds=float(result.pop("seconds", None) or 0),
        cpu_seconds=float(result.pop("cpu_seconds", None) or 0),
        memory=int(result.pop("peak_memory_mib", None) or 0),
        config=read_text(folder / "config.toml"),
        settings=settings,
        result=result,
        facts=list(flat(result)),
        metrics=metrics,
        curves=curves(metrics, detail=False),
        details=curves(metrics, detail=True),
        monitor=monitor_figures(_rows(folder / "monitor.jsonl"), events),
        alarms=events,
        training=trained[folder.name],
        accuracy=_accuracy(result),
        labels=read_labels(folder, kind, settings),
        blocks=read_blocks(folder),
        evaluation=_read_evaluation(folder, name, settings, trained),
    )


def _training(folder: Path) -> Training | None:
    """How a run that was watched ended."""
    if not (folder / "monitor.jsonl").is_file():
        return None
    result = read_object(folder / "result.json")
    rows = _rows(folder / "events.jsonl")
    return Training(
        alarms=[int(row["step"]) for row in rows if "step" in row],
        stopped=str(result.get("stopped") or ""),
        rolled_back_to=result.get("rolled_back_to"),
    )


# --- reward models --------------------------------------------------------------------------------


def _accuracy(result: dict[str, Any]) -> str:
    """How often a reward model agrees with the labels, beside what length alone would do."""
    accuracy = interval(result.get("held_out_accuracy"))
    if accuracy is None:
        return ""
    count = result.get("held_out_pairs")
    pairs = "held-out pairs" if count is None else f"{count:,} held-out pairs"
    agrees = (
        f"On {pairs} it prefers the answer that the labels prefer in {percent(accuracy)} of cases"
    )
    length = interval(result.get("length_baseline_accuracy"))
    if length is None:
        return f"{agrees}."
    return f"{agrees}; always preferring the longer answer would be right in {length.mean:.0%}."


def interval(value: Any) -> Interval | None:
    """{mean, low, high} as written in a result.json, or a bare number."""
    if not isinstance(value, dict):
        return None if value is None else Interval(float(value), math.nan, math.nan)
    mean, low, high = (value.get(end) for end in Interval._fields)
    if mean is None:
        return None
    return Interval(mean, *(math.nan if end is None else end for end in (low, high)))


# --- evaluations ----------------------------------------------------------------------------------


def _read_evaluation(
    folder: Path, stage: str, settings: dict[str, Any], trained: dict[str, Training | None]
) -> Evaluation | None:
    if not (folder / "summary.json").is_file():
        return None
    summary = read_summary(folder)
    models = _models(settings)
    reached = read_efficiencies(folder)
    training = {policy: trained.get(model) for policy, model in models.items()}
    figures = [*plane(folder, summary), by_distance(summary), by_category(summary)]
    return Evaluation(
        stage=stage,
        summary=summary,
        verdict=verdict(summary, reached, training),
        columns=columns(summary),
        figures=[figure for figure in figures if figure],
        samples=[Sample.from_dict(row) for row in _rows(folder / "samples.jsonl")],
        models=models,
        reached=reached,
    )


def _models(settings: dict[str, Any]) -> dict[str, str]:
    """The stage whose model each policy is; not where a policy chooses the best of several."""
    policies = [each for each in settings.get("policies", []) if isinstance(each, dict)]
    paths = {each.get("name", ""): Path(each.get("model", "")) for each in policies}
    chosen = {each.get("name", "") for each in policies if each.get("best_of", 1) > 1}
    return {
        name: path.parent.name if path.name == "model" and name not in chosen else ""
        for name, path in paths.items()
    }


def read_efficiencies(folder: Path) -> dict[str, Interval]:
    """Share of the best reachable gain that each policy reached, where that is known."""
    frontier = read_frontier(folder)
    found = {each.policy: each.efficiency for each in frontier.policies} if frontier else {}
    return {policy: share for policy, share in found.items() if share}


# --- files ----------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """The text of a file; empty where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file.

    Raises:
        DataError: The file holds something else.
    """
    try:
        value = json.loads(read_text(path) or "{}")
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); run its stage again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: {str(value)[:40]!r} is not a JSON object; run its stage again")
    return value


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)] if path.is_file() else []


def _settings(folder: Path) -> dict[str, Any]:
    """The settings of a stage; empty where its file says nothing that can be read."""
    try:
        return tomllib.loads(read_text(folder / "config.toml"))
    except tomllib.TOMLDecodeError:
        return {}


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """A nested JSON object as flat ("outer.inner", value) pairs."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, float):
        yield name, f"{value:.4g}"
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value)

"""One self-contained HTML page about a run: what was gained, how sure that is, what was done.

The page is put together from what the stages left in the run directory; what is missing is left
out. It loads nothing from anywhere: plotly's JavaScript is inside, and the page's own security
policy forbids every request, and every script but the two it was written with. Texts of models
are shown, never interpreted.
"""

import base64
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from tether.errors import DataError
from tether.evaluation.figures import Figure, by_category, by_distance, curves
from tether.evaluation.summary import Sample, Summary
from tether.evaluation.table import Column, columns, percent, read_summary, sentence
from tether.evaluation.verdict import Verdict, verdict
from tether.records import read_jsonl
from tether.rundir import write_text
from tether.statistics import Interval

_MAX_PROMPTS = 48  # shown side by side
_MAX_CHARACTERS = 4000  # shown of one text


def write_report(run_dir: Path) -> Path:
    """Write RUN_DIR/report.html from the stages that have finished, whole or not at all.

    Args:
        run_dir: A run directory with its stages in folders, or the folder of a single stage.

    Returns:
        The path of the page.

    Raises:
        DataError: No stage has finished there, or a file of it cannot be read.
    """
    path = run_dir / "report.html"
    write_text(path, _render(_contents(run_dir)))
    return path


def _contents(run_dir: Path) -> dict[str, Any]:
    manifest = _read_json(run_dir / "manifest.json")
    order = manifest.pop("stages", [])
    stages = _read_stages(run_dir, order if isinstance(order, list) else [])
    return {
        "title": run_dir.resolve().name,
        "stages": stages,
        "evaluations": [stage.evaluation for stage in stages if stage.evaluation],
        "recipe": _read_text(run_dir / "recipe.toml"),
        "manifest": list(_facts(manifest)),
    }


def _render(contents: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters |= {"cut": _cut, "duration": _duration, "script_hash": _script_hash}
    template = environment.get_template("report.html")
    return template.render(contents, sentence=sentence, plotly=get_plotlyjs())


def _script_hash(script: str) -> str:
    """How the page's security policy names a script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _cut(text: str) -> str:
    rest = len(text) - _MAX_CHARACTERS
    return text if rest <= 0 else f"{text[:_MAX_CHARACTERS]} … ({rest:,} more characters)"


def _duration(seconds: float) -> str:
    """Seconds as "1 h 02 min", "1 min 11 s" or "3.1 s"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


# --- stages ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluate stage found."""

    stage: str
    summary: Summary
    verdict: Verdict | None
    columns: list[Column]
    by_category: Figure | None
    by_distance: Figure | None
    examples: list[list[Sample]]
    """By prompt: the first answer of each policy"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What one finished stage left."""

    name: str
    kind: str
    seconds: float
    """Wall time; 0 = not known"""
    memory: int
    """Peak of the process up to the stage's end, MiB; 0 = not known"""
    config: str
    facts: list[tuple[str, str]]
    curves: list[Figure]
    accuracy: str
    """Held-out accuracy of a reward model in words; "" for other stages"""
    evaluation: Evaluation | None


def _read_stages(run_dir: Path, order: Sequence[Any]) -> list[Stage]:
    folders = [run_dir, *sorted(path for path in run_dir.glob("*") if path.is_dir())]
    stages = [_read_stage(folder) for folder in folders if (folder / "result.json").is_file()]
    if not stages:
        raise DataError(f"{run_dir}: no stage has finished here: no folder has a result.json")
    place = {str(name): i for i, name in enumerate(order)}
    return sorted(stages, key=lambda stage: place.get(stage.name, len(place)))


def _read_stage(folder: Path) -> Stage:
    result = _read_json(folder / "result.json")
    name, kind = result.pop("name", folder.resolve().name), result.pop("kind", "")
    return Stage(
        name=str(name),
        kind=str(kind),
        seconds=float(result.pop("seconds", None) or 0),
        memory=int(result.pop("peak_memory_mib", None) or 0),
        config=_read_text(folder / "config.toml"),
        facts=list(_facts(result)),
        curves=curves(_read_rows(folder / "metrics.jsonl")),
        accuracy=_accuracy(result),
        evaluation=_read_evaluation(folder, str(name)),
    )


def _accuracy(result: dict[str, Any]) -> str:
    """How often a reward model agrees with the labels, beside what length alone would do."""
    accuracy = _interval(result.get("held_out_accuracy"))
    if accuracy is None:
        return ""
    count = result.get("held_out_pairs")
    pairs = "held-out pairs" if count is None else f"{count:,} held-out pairs"
    agrees = (
        f"On {pairs} it prefers the answer that the labels prefer in {percent(accuracy)} of cases"
    )
    length = _interval(result.get("length_baseline_accuracy"))
    if length is None:
        return f"{agrees}."
    return f"{agrees}; always preferring the longer answer would be right in {length.mean:.0%}."


def _interval(value: Any) -> Interval | None:
    """{mean, low, high} as written in a result.json, or a bare number."""
    if not isinstance(value, dict):
        return None if value is None else Interval(float(value), math.nan, math.nan)
    mean, low, high = (value.get(end) for end in Interval._fields)
    if mean is None:
        return None
    return Interval(mean, *(math.nan if end is None else end for end in (low, high)))


def _read_evaluation(folder: Path, stage: str) -> Evaluation | None:
    if not (folder / "summary.json").is_file():
        return None
    summary = read_summary(folder)
    samples = [Sample.from_dict(row) for row in _read_rows(folder / "samples.jsonl")]
    return Evaluation(
        stage=stage,
        summary=summary,
        verdict=verdict(summary),
        columns=columns(summary),
        by_category=by_category(summary),
        by_distance=by_distance(summary),
        examples=_examples(samples, summary.policies),
    )


def _examples(samples: Sequence[Sample], policies: Sequence[str]) -> list[list[Sample]]:
    """First answers to prompts at equal distances within every category: none is picked by hand.

    The categories take turns.
    """
    prompts: dict[int, dict[str, Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.sample_index):
        prompts.setdefault(sample.prompt_index, {}).setdefault(sample.policy, sample)
    categories: dict[str, list[list[Sample]]] = {}
    for _, answers in sorted(prompts.items()):
        shown = [answers[policy] for policy in policies if policy in answers]
        categories.setdefault(shown[0].category, []).append(shown)
    share = math.ceil(_MAX_PROMPTS / max(1, len(categories)))
    spread = [group[:: math.ceil(len(group) / share)] for group in categories.values()]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*spread))
    return [shown for shown in turns if shown is not None][:_MAX_PROMPTS]


# --- files ----------------------------------------------------------------------------------------


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)] if path.is_file() else []


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    try:
        value = json.loads(_read_text(path) or "{}")
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); run its stage again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: {str(value)[:40]!r} is not a JSON object; run its stage again")
    return value


def _facts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """A nested JSON object as flat ("outer.inner", value) pairs."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _facts(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, float):
        yield name, f"{value:.4g}"
    elif value is not None:
        yield name, value if isinstance(value, str) else json.dumps(value)

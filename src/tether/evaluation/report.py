"""One self-contained HTML page about a run: what was gained, how sure that is, what was done.

The page is put together from what the stages left in the run directory; what is missing is left
out. It loads nothing from anywhere: plotly's JavaScript is inside, and the page's own security
policy forbids every request, and every script but the two it was written with. Texts of models
are shown, never interpreted.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from tether.errors import ConfigError
from tether.evaluation.cards import write_cards
from tether.evaluation.comparison import SEEDS_HEADER, compare
from tether.evaluation.report_blocks import block_figure, by_measure
from tether.evaluation.report_labels import HEADER
from tether.evaluation.report_samples import Samples, page_samples, shortened
from tether.evaluation.report_stages import Evaluation, Run, flat, read_run
from tether.evaluation.table import sentence
from tether.rundir import write_text

TEMPLATES = Path(__file__).parent / "templates"
MOST_BYTES = 7_800_000  # of a page
_MOST_CHARACTERS = 4000  # shown of one text without the script


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of a run from the stages that have finished, whole or not at all.

    Args:
        run_dir: A run directory with its stages in folders, or the folder of a single stage.
        out: The page; None = RUN_DIR/report.html, and then model cards (README.md) are written
            into the run's models as well. With a page elsewhere the run is only read.

    Returns:
        The path of the page.

    Raises:
        DataError: No stage has finished there, or a file of it cannot be read.
    """
    run = read_run(run_dir)
    page = _render("report.html", title=run.title, run=run, manifest=list(flat(run.manifest)))
    path = out or run_dir / "report.html"
    write_text(path, page)
    if out is None:
        write_cards(run)
    return path


def write_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write one page that compares runs by their last evaluations.

    Raises:
        ConfigError: A run is named twice.
        DataError: No stage of a run has finished, or a file of it cannot be read.
    """
    places = [path.resolve() for path in run_dirs]
    if len(set(places)) < len(places):
        raise ConfigError(f"runs={[str(path) for path in run_dirs]} must be different directories")
    found = compare([read_run(path) for path in run_dirs])
    title = " · ".join(each.name for each in found.runs)
    write_text(out, _render("comparison.html", title=title, found=found))
    return out


def _render(template: str, **contents: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False}
    environment.filters |= {
        "block_figure": block_figure,
        "by_measure": by_measure,
        "cut": lambda text: shortened(text, _MOST_CHARACTERS),
        "duration": duration,
        "page_samples": _room_for_samples(contents.get("run")),
        "script_hash": _script_hash,
        "told": told,
    }
    return environment.get_template(template).render(
        contents,
        sentence=sentence,
        labeler_header=HEADER,
        seeds_header=SEEDS_HEADER,
        plotly=_plotly(),
        page_script=(TEMPLATES / "report.js").read_text(encoding="utf-8"),
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
    )


@cache
def _plotly() -> str:
    return get_plotlyjs()


def _script_hash(script: str) -> str:
    """How the page's security policy names a script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _room_for_samples(run: Run | None) -> Callable[[Evaluation], Samples]:
    """A filter that gives each evaluation its share of what plots and settings leave of a page."""
    stages = [] if run is None else run.stages
    figures = [of for stage in stages for of in (*stage.curves, *stage.details, *stage.monitor)]
    figures += [of for stage in stages if stage.evaluation for of in stage.evaluation.figures]
    # Tables and markup around a plot take a few kilobytes more than its points.
    plots = sum(len(json.dumps(figure.plot)) + 6000 for figure in figures)
    texts = sum(2 * len(stage.config) + 4000 for stage in stages)
    room = MOST_BYTES - len(_plotly().encode()) - plots - texts - 300_000
    evaluations = sum(stage.evaluation is not None for stage in stages)

    def samples_of(evaluation: Evaluation) -> Samples:
        chosen = (
            evaluation.verdict.policy if evaluation.verdict else evaluation.summary.policies[-1]
        )
        most = max(100_000, room // max(1, evaluations))
        return page_samples(evaluation.samples, evaluation.summary, chosen, most)

    return samples_of


def told(run: Run) -> str:
    """What was run, in one sentence."""
    manifest = run.manifest
    seeds = manifest.get("seeds")
    kinds = sorted({str(seed) for seed in seeds.values()}) if isinstance(seeds, dict) else []
    versions = manifest.get("versions")
    named = versions if isinstance(versions, dict) else {}
    count = len(run.stages)
    parts = [
        f"Recipe {manifest['recipe']}" if manifest.get("recipe") else "",
        f"seed{'s' * (len(kinds) > 1)} {', '.join(kinds)}" if kinds else "",
        f"{count} stage{'s' * (count > 1)}",
        duration(sum(stage.seconds for stage in run.stages)),
        *(f"{name} {named[name]}" for name in ("tether", "torch", "transformers") if name in named),
    ]
    return ", ".join(part for part in parts if part) + "."


def duration(seconds: float) -> str:
    """Seconds as "1 h 02 min", "1 min 11 s" or "3.1 s"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"

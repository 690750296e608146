"""What came out of a stage or a run, to look at in a notebook or a Python shell."""

import json
import math
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tether.errors import DataError
from tether.evaluation.plane import print_efficiency
from tether.evaluation.table import print_table, read_summary

WIDTH = 110  # characters
PAGE = '<pre style="line-height:1.25;overflow-x:auto">{code}</pre>'
UNTOLD = ("kind", "name", "inputs", "last", "steps")  # facts that stand elsewhere, or for machines


class Result:
    """The folder that a stage function, or `run`, returned: as it is displayed, its figures.

    A stage shows the facts of its result, the first and last figures of its training, and an
    evaluation its table; a run shows its stages.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a folder; nothing of it is changed.

        Raises:
            DataError: It holds neither a finished stage nor a run.
        """
        self.path = Path(path)
        if not (self.path / "result.json").is_file() and not self.stages:
            raise DataError(
                f"{self.path}: neither result.json of a stage nor manifest.json of a run is there; "
                "name what a stage function or run returned"
            )

    @cached_property
    def stages(self) -> "list[Result]":
        """The finished stages of a run, in their order; none of a stage."""
        manifest = self.path / "manifest.json"
        names = _read(manifest)["stages"] if manifest.is_file() else []
        return [Result(self.path / n) for n in names if (self.path / n / "result.json").is_file()]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `result.json` holds; of a run nothing."""
        file = self.path / "result.json"
        return _read(file) if file.is_file() else {}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, ready for a data frame; none of a stage that trains nothing.

        What was not measured, or not finite, is None.
        """
        file = self.path / "metrics.jsonl"
        lines = file.read_bytes().splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines]

    @property
    def model(self) -> Path | None:
        """The Hugging Face directory that was written, if any."""
        folder = self.path / "model"
        return folder if folder.is_dir() else None

    def print(self, console: Console) -> None:
        """Print it on a rich console."""
        for stage in self.stages:
            stage.print(console)
        if self.stages:
            return
        title = f"{self.facts.get('name', self.path.name)} ({self.facts.get('kind', 'stage')})"
        console.print(Text(title, style="bold"), Text(str(self.path), style="dim"))
        console.print(self._facts())
        if self.metrics:
            console.print(self._metrics())
        if (self.path / "summary.json").is_file():
            print_table(read_summary(self.path), console)
            print_efficiency(self.path, console)

    def _facts(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, value in self.facts.items():
            if name not in UNTOLD and value != "":
                table.add_row(Text(name.replace("_", " ")), Text(_shown(value)))
        return table

    def _metrics(self) -> Table:
        first, last = self.metrics[0], self.metrics[-1]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("metric")
        for row in (first, last):
            table.add_column(f"step {row.get('step', '')}", justify="right")
        for name in {**first, **last}:
            if name != "step":
                cells = (_shown(row.get(name)) for row in (first, last))
                table.add_row(Text(name.replace("_", " ")), *map(Text, cells))
        return table

    def __repr__(self) -> str:
        console = Console(file=StringIO(), width=WIDTH, color_system=None, force_jupyter=False)
        with console.capture() as captured:
            self.print(console)
        return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())

    def _repr_html_(self) -> str:
        console = Console(file=StringIO(), width=WIDTH, record=True, force_jupyter=False)
        self.print(console)
        return console.export_html(code_format=PAGE, inline_styles=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def _shown(value: Any) -> str:
    """A figure in short; an interval as "0.62 [0.55, 0.70]"."""
    if isinstance(value, dict):
        if value.keys() == {"mean", "low", "high"}:
            return "{} [{}, {}]".format(*map(_shown, value.values()))
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    return "–" if value is None else str(value)

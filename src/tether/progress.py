"""Progress on the terminal: stage, step, figures, time left.

Where there is no terminal it is plain lines, and in a notebook one line that changes in place.
"""

import time
from collections.abc import Iterable, Iterator
from functools import cache
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

from tether.ranks import leads

# Of several processes the first one speaks.
console = Console(stderr=True, highlight=False, quiet=not leads())  # what is going on
results = Console(highlight=False, quiet=not leads())  # what came out, on standard output
SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_CHANGES = 0.5  # of the line in a notebook
ITEMS_BETWEEN_UPDATES = 500

T = TypeVar("T")


@cache
def notice(text: str) -> None:
    """Say on the terminal what is done otherwise than usual; each text once a process."""
    console.print(text, soft_wrap=True)


class Steps:
    """A progress bar over the steps of one stage, of which there are `total` (0 = not known).

    On a terminal it is drawn live; in a log it becomes a line every 15 seconds; in a notebook a
    line under the cell, without ipywidgets, which rich's own bar would need.
    """

    def __init__(self, stage: str, total: int, start: int = 0) -> None:
        self._stage, self._total, self._step = stage, total, start
        self._begun, self._spoken, self._start = time.monotonic(), time.monotonic(), start
        self._cell: Any = None  # where a notebook shows the line
        self._pause = SECONDS_BETWEEN_CHANGES if console.is_jupyter else SECONDS_BETWEEN_LINES
        self._bar = Progress(
            TextColumn("[bold]{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeLeftColumn(compact=True),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(stage, total=total or None, completed=start, figures="")

    def __enter__(self) -> "Steps":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if kind is None and not console.is_terminal:
            self._say("done")

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Move on and show figures such as reward and KL."""
        self._step += steps
        text = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
        self._bar.update(self._task, completed=self._step, figures=text)
        if not console.is_terminal and time.monotonic() - self._spoken > self._pause:
            self._say(text)

    def _say(self, text: str) -> None:
        self._spoken = time.monotonic()
        spent = self._spoken - self._begun
        done = max(self._step - self._start, 1)
        left = spent / done * (self._total - self._step)
        line = f"{self._stage} {self._step}/{self._total}  {spent:.0f} s, {left:.0f} s left  {text}"
        if not self._total:
            line = f"{self._stage} {self._step}  {spent:.0f} s  {text}"
        if console.is_jupyter:
            self._show(line)
        else:
            console.print(line)

    def _show(self, line: str) -> None:
        """Put a line where this bar's last one stood in the notebook."""
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        shown = {"text/plain": line}
        if self._cell is None:
            self._cell = display(shown, raw=True, display_id=True)
        else:
            self._cell.update(shown, raw=True)


def counted(items: Iterable[T], name: str, total: int = 0) -> Iterator[T]:
    """The items, with a progress bar; it is moved on once in a while, since they may be many."""
    with Steps(name, total) as progress:
        since = 0
        for item in items:
            yield item
            since += 1
            if since == ITEMS_BETWEEN_UPDATES:
                progress.advance(since)
                since = 0
        progress.advance(since)

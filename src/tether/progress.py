"""Progress on the terminal: stage, step, figures, time left. Plain lines where there is none."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

from tether.ranks import leads

# Of several processes the first one speaks.
console = Console(stderr=True, highlight=False, quiet=not leads())  # what is going on
results = Console(highlight=False, quiet=not leads())  # what came out, on standard output
SECONDS_BETWEEN_LINES = 15.0


class Steps:
    """A progress bar over the steps of one stage.

    On a terminal it is drawn live; in a log it becomes a line every 15 seconds.
    """

    def __init__(self, stage: str, total: int, start: int = 0) -> None:
        self._stage, self._total, self._step = stage, total, start
        self._begun, self._spoken, self._start = time.monotonic(), time.monotonic(), start
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
        self._task = self._bar.add_task(stage, total=total, completed=start, figures="")

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
        if not console.is_terminal and time.monotonic() - self._spoken > SECONDS_BETWEEN_LINES:
            self._say(text)

    def _say(self, text: str) -> None:
        self._spoken = time.monotonic()
        spent = self._spoken - self._begun
        done = max(self._step - self._start, 1)
        left = spent / done * (self._total - self._step)
        console.print(
            f"{self._stage} {self._step}/{self._total}  {spent:.0f} s, {left:.0f} s left  {text}"
        )

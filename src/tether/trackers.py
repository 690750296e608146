"""Experiment trackers: the rows of metrics.jsonl, sent on under the same names.

Each is a package of its own (pip install 'tether[track]') and is imported only where it is asked
for. What a tracker fails to take is not training's business: nothing depends on it but pictures.
"""

import hashlib
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tether.errors import ConfigError

PROJECT = "tether"


class TensorBoard:
    """Event files in the stage's folder: `tensorboard --logdir runs` shows them."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        self._writer = writer.EventFileWriter(str(folder / "tensorboard"))
        # Of a run that goes on from a checkpoint, what was logged after it no longer counts.
        started = self._events.SessionLog(status=self._events.SessionLog.START)
        self._add(step, session_log=started)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write the figures as scalars."""
        value = self._summaries.Summary.Value
        values = [value(tag=name, simple_value=figure) for name, figure in figures.items()]
        self._add(step, summary=self._summaries.Summary(value=values))
        self._writer.flush()

    def _add(self, step: int, **content: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()


class Run:
    """A run of Weights & Biases or of trackio, which share their calls."""

    def __init__(self, package: str, folder: Path, settings: Mapping[str, Any]) -> None:
        name = "-".join(folder.resolve().parts[-2:])
        options: dict[str, Any] = {"project": PROJECT, "name": name, "config": dict(settings)}
        options["resume"] = "allow"
        if package == "wandb":  # the same folder is the same run, whoever started it
            stamp = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
            options |= {"id": stamp, "dir": str(folder)}
        self._run = importlib.import_module(package).init(**options)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send the figures."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


Tracker = TensorBoard | Run
MAKERS: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda folder, settings, _: Run("wandb", folder, settings),
    "trackio": lambda folder, settings, _: Run("trackio", folder, settings),
}


def open_tracker(name: str, folder: Path, settings: Mapping[str, Any], step: int) -> Tracker:
    """Open a tracker for a stage's folder, whose first row will be that of `step`."""
    return MAKERS[name](folder, settings, step)


def require_packages(names: Iterable[str]) -> None:
    """Refuse trackers whose package is not there, before anything runs.

    Raises:
        ConfigError: One is missing.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"track={name!r} needs a package that is not installed: pip install {name}"
            )


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a row, without its step and without what is no number."""
    kept = {key: value for key, value in row.items() if key != "step"}
    return {
        key: float(value)
        for key, value in kept.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }

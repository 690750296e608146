"""Whether machines see one disk: a file that the driver writes, and that each worker looks for.

Recipe, data, models and checkpoints are files; workers that read another disk would train on
something else, or start again from nothing after a failure.
"""

import os
import platform
import secrets
import time
from pathlib import Path
from typing import NamedTuple

from tether.errors import ConfigError
from tether.rundir import write_text

PATIENCE = 20.0  # seconds; a network file system may show a new file late


class Mark(NamedTuple):
    """The driver's working directory, and a file there with a word that only this run knows."""

    directory: str
    file: str
    word: str


def leave_mark(folder: Path) -> Mark:
    """Write the file into a stage's folder; `wipe` removes it."""
    mark = Mark(os.getcwd(), str(folder.absolute() / "driver.writing"), secrets.token_hex(8))
    write_text(Path(mark.file), mark.word)
    return mark


def wipe(mark: Mark) -> None:
    """Remove the file, and the folder where nothing else has come into it."""
    file = Path(mark.file)
    file.unlink(missing_ok=True)
    if file.parent.is_dir() and not any(file.parent.iterdir()):
        file.parent.rmdir()


def enter(mark: Mark, patience: float = PATIENCE) -> None:
    """Work in the driver's directory, once its file is seen from this machine.

    Raises:
        ConfigError: It is not.
    """
    file, until = Path(mark.file), time.monotonic() + patience
    while not (file.is_file() and file.read_text(encoding="utf-8") == mark.word):
        if time.monotonic() > until:
            raise ConfigError(
                f"out={str(file.parent)!r} is not the same folder on {platform.node()}; put runs, "
                "data and models on a disk that all machines of the cluster share"
            )
        time.sleep(0.2)
    if not Path(mark.directory).is_dir():
        raise ConfigError(
            f"{mark.directory!r}, where tether was started, does not exist on {platform.node()}; "
            "start it in a directory that all machines of the cluster share"
        )
    os.chdir(mark.directory)

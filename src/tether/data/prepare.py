"""The `prepare` stage: any rows into records, by a function of the user's."""

from pathlib import Path

from tether.config import PrepareConfig
from tether.data.sources import read_rows
from tether.errors import DataError
from tether.functions import load_function
from tether.progress import console
from tether.records import write_jsonl
from tether.rundir import StageFolder


def prepare(config: PrepareConfig) -> Path:
    """Write what `function(rows)` returns, {"name": rows}, as `OUT/name.jsonl` files.

    Raises:
        DataError: The function returned something else, or an empty list.
    """
    folder = StageFolder(config, "prepare", [config.data, config.function])
    if folder.finished:
        return folder.path
    function = load_function(config.function)
    parts = function([row for row, _ in read_rows(config.data)])
    filled = isinstance(parts, dict) and all(isinstance(p, list) and p for p in parts.values())
    if not (parts and filled):
        raise DataError(f"{config.function!r} must return {{name: list of dicts}}, none empty")
    folder.begin()
    for name, rows in parts.items():
        write_jsonl(folder.path / f"{name}.jsonl", rows)
    counts = {name: len(rows) for name, rows in parts.items()}
    console.print("  ".join(f"{name}.jsonl {count}" for name, count in counts.items()))
    return folder.finish(rows=counts)

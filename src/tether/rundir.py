"""One stage's folder: settings, metrics, samples, checkpoints, and the result that ends it.

`result.json` is written last: where it exists the stage is finished. Until then nothing in the
folder counts but `checkpoints/`, so a stage that was killed goes on from its last checkpoint.
"""

import hashlib
import json
import math
import os
import platform
import resource
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tether import stopping
from tether.config import StageConfig
from tether.config_file import read_toml, to_table, toml_text
from tether.disk import checkpoint_steps, full_disk_told, write_json, write_text, written_aside
from tether.errors import ConfigError
from tether.ranks import leads
from tether.sections import require
from tether.trackers import Tracker, numbers, open_tracker, require_packages

STOP = "stop"  # where this file is, training ends after the phase it is in
ROWS = ("metrics.jsonl", "samples.jsonl", "monitor.jsonl", "audits.jsonl", "events.jsonl")
HASH_LIMIT = 1 << 30  # bytes; a larger file is identified by its size and time instead


def fingerprint(path: str) -> str:
    """What identifies an input: the SHA-256 of a file, or of a folder's model and record files.

    Files above 1 GiB count by size and modification time. A hub id or a function is its own name.
    A feedback project (.db) counts by its items and judgments, however the database holds them.
    """
    place = Path(path.rsplit(":", 1)[0]) if ".py:" in path else Path(path)
    if not place.exists():
        return path
    if place.suffix == ".db" and (judged := _judgments(place)):
        return judged
    kinds = (".safetensors", ".json", ".jsonl", ".gz", ".parquet")
    files = [place] if place.is_file() else sorted(f for f in place.iterdir() if f.suffix in kinds)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        if file.stat().st_size <= HASH_LIMIT:
            digest.update(file.read_bytes())
        else:
            digest.update(f"{file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _judgments(path: Path) -> str:
    """What identifies the items and judgments of a feedback project; "" where it is none.

    Leases, people and when what was written do not count.
    """
    queries = (
        "SELECT key, gold, category FROM items ORDER BY key",
        "SELECT submission, verdict, ranks, strength FROM current_judgments ORDER BY submission",
    )
    digest = hashlib.sha256()
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            for query in queries:
                for row in db.execute(query):
                    digest.update(json.dumps(row).encode())
        finally:
            db.close()
    except sqlite3.Error:
        return ""
    return digest.hexdigest()[:16]


class StageFolder:
    """The folder of one stage, opened to run, resume or skip it.

    Opening only reads, but for removing checkpoints of a finished stage. `begin` writes the
    settings once the inputs have proved usable. Of several processes all may call everything, and
    the first writes.
    """

    def __init__(self, config: StageConfig, kind: str, inputs: list[str]) -> None:
        """Open `config.out`.

        Args:
            config: The stage's resolved settings.
            kind: The stage's command, such as "sft".
            inputs: Paths the stage reads; their fingerprints go into the result.

        Raises:
            ConfigError: The folder holds something else, or this stage with other settings or made
                of inputs that have changed since.
        """
        require(config.seed >= 0, "seed", config.seed, "must be a whole number from 0")
        self.path = Path(config.out)
        self.kind = kind
        self._settings = to_table(config)
        self._inputs = inputs
        self._fingerprints: dict[str, str] = {}
        self._started = time.perf_counter(), time.process_time()
        self._track = config.compute.track
        self._trackers: dict[str, Tracker] = {}
        self._refuse_another()
        if not self.finished:
            require_packages(self._track)
        elif leads():  # of a process that was killed before it had removed them
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _refuse_another(self) -> None:
        held = self.path / "config.toml"
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"out={str(self.path)!r} is a file; name a folder")
        if not held.exists():
            # A process killed at its very first file leaves that file half-written.
            if self.path.is_dir() and any(f.suffix != ".writing" for f in self.path.iterdir()):
                raise ConfigError(
                    f"out={str(self.path)!r} holds other files; name a new or empty folder"
                )
            return
        table = read_toml(held)
        if table.pop("kind", self.kind) != self.kind:
            raise ConfigError(f"out={str(self.path)!r} holds another stage; name a new folder")
        if not (self.finished or checkpoint_steps(self.checkpoints)):
            return  # it failed before anything was kept: other settings may try again
        for name, there, here in _differences(table, self._settings):
            raise ConfigError(
                f"{name}={here!r} but {self.path} was made with {there!r}; "
                "name another out folder, or delete that one to make it anew"
            )
        self._refuse_changed(table.get("inputs", {}))

    def _refuse_changed(self, inputs: dict[str, str]) -> None:
        """Nothing may be kept of, or added to, what was made from other inputs."""
        for name, there in inputs.items():
            if fingerprint(name) != there:
                raise ConfigError(
                    f"{name!r} has changed since {self.path} was made from it; "
                    f"delete {self.path} to make it anew, or name another out folder"
                )

    @property
    def finished(self) -> bool:
        """True once `result.json` is there."""
        return (self.path / "result.json").exists()

    @property
    def result(self) -> dict[str, Any]:
        """The final facts of a finished stage."""
        return json.loads((self.path / "result.json").read_text(encoding="utf-8"))

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def begin(self, step: int = 0, total: int = 0) -> None:
        """Write settings and inputs, and drop what was logged of steps later than `step`.

        Args:
            step: Steps done.
            total: Steps there will be; 0 = it has none, or they are not known yet.
        """
        if not leads():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._fingerprints = {path: fingerprint(path) for path in self._inputs if path}
        process = {"host": platform.node(), "pid": os.getpid(), "time": round(time.time(), 3)}
        process |= {"step": step, "total_steps": total}
        table = {"kind": self.kind, **self._settings, "inputs": self._fingerprints}
        write_text(self.path / "config.toml", toml_text({**table, "process": process}))
        (self.path / STOP).unlink(missing_ok=True)  # it was asked of a process that is gone
        for name in ROWS:
            file = self.path / name
            if file.exists():
                # A killed process can leave half a line at the end, or half a character. Bytes
                # end lines at line feeds only; a str also at U+2028, which a sample may hold.
                whole = [x for x in file.read_bytes().splitlines(True) if x.endswith(b"\n")]
                kept = [line for line in whole if json.loads(line).get("step", 0) <= step]
                write_text(file, b"".join(kept).decode())

    def log(self, row: dict[str, Any], file: str = "metrics.jsonl") -> None:
        """Append one row to metrics.jsonl (or another of `ROWS`); NaN and infinity become null."""
        if not leads():
            return
        plain = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        path = self.path / file
        with full_disk_told(path), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(plain, ensure_ascii=False) + "\n")
        if file == "metrics.jsonl" and self._track:
            self._send(plain)

    def _send(self, row: dict[str, Any]) -> None:
        """Send a row to the trackers, which open at the first one."""
        step = row.get("step", 0)
        for name in self._track:
            if name not in self._trackers:
                self._trackers[name] = open_tracker(name, self.path, self._settings, step)
            self._trackers[name].log(numbers(row), step)

    def stop_if_asked(
        self, checkpoint: Callable[[], None], agreed: Callable[[bool], bool] = bool
    ) -> None:
        """End training where a signal or a file `stop` asks for it, after a checkpoint.

        Args:
            checkpoint: Writes what training goes on from.
            agreed: Whether any of the processes that train together was asked.

        Raises:
            KeyboardInterrupt: As Ctrl-C would.
        """
        if agreed(stopping.asked() or (self.path / STOP).exists()):
            checkpoint()
            (self.path / STOP).unlink(missing_ok=True)
            stopping.stop()

    def last_row(self) -> dict[str, Any]:
        """The last row of metrics.jsonl, also of a run that had ended before it was resumed."""
        return json.loads((self.path / "metrics.jsonl").read_bytes().splitlines()[-1])

    def write_model(self, save: Callable[[Path], None]) -> None:
        """Let `save(folder)` fill `model/`, whole or not at all.

        Of several processes all call `save`, since each holds a part; the first one writes.
        """
        write_folder(self.path / "model", save)

    def keep_model(self, step: int, save: Callable[[Path], None]) -> None:
        """Let `save(folder)` fill `models/step-000120/`: the model as it was after that step."""
        write_folder(self.path / "models" / f"step-{step:06d}", save)

    def finish(self, **facts: Any) -> Path:
        """Write `result.json` and remove the checkpoints: the stage is finished."""
        if not leads():
            return self.path
        wall, cpu = self._started
        result: dict[str, Any] = {"kind": self.kind, "name": self.path.name}
        result["seconds"] = round(time.perf_counter() - wall, 2)
        result["cpu_seconds"] = round(time.process_time() - cpu, 2)
        result["peak_memory_mib"] = peak_memory()
        result["inputs"] = self._fingerprints
        write_json(self.path / "result.json", {**result, **facts})
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        (self.path / STOP).unlink(missing_ok=True)
        for tracker in self._trackers.values():
            tracker.close()
        return self.path


def write_folder(path: Path, save: Callable[[Path], None]) -> None:
    """Let `save(folder)` fill a folder, whole or not at all; of several processes the first writes.

    The others call `save` as well, with a path that they are not to touch.
    """
    if not leads():
        return save(path)
    with written_aside(path) as aside:
        save(aside)
    return None


def peak_memory() -> int:
    """The most memory this process has held so far, in MiB.

    Linux tells it in /proc; the `ru_maxrss` that others have to do with also counts what the
    process that started this one held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) >> 10
    unit = 1 if sys.platform == "darwin" else 1024  # macOS tells bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20


def _differences(
    there: dict[str, Any], here: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ, as (dotted name, there, here). Where it runs does not count."""
    for name in {**here, **there} if prefix else here:
        if prefix == "" and name in ("out", "compute"):
            continue
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield prefix + name, old, new

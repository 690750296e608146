"""What the tests on a real Ray cluster share: machines that are processes here, runs, accidents."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.train import toys
from tether.config_file import to_table, toml_text

# The number of kind words; in its third call in the first trainer, what `accident` asks for: kill
# workers of that name (not this one), or wait until the file `go` is there.
REWARD = """
import json, os, time
from pathlib import Path
import psutil

HERE = Path(__file__).parent
calls = 0

def kind(prompts, completions):
    global calls
    calls += 1
    if os.environ.get("RANK", "0") == "0" and calls == 3:
        accident(HERE / "accident.json")
    words = ("kind", "please", "thanks", "helps")
    return [float(sum(text.split().count(word) for word in words)) for text in completions]

def accident(file):
    if not file.exists():
        return
    what = json.loads(file.read_text())
    file.rename(file.with_name("happened.json"))
    if name := what.get("kill"):
        raylets = [p for p in psutil.Process(what["of"]).children() if "raylet" in p.name()]
        for process in [p for raylet in raylets for p in raylet.children(recursive=True)]:
            title = " ".join(process.cmdline())
            if title.startswith(f"ray::{name}") and process.pid != os.getpid():
                process.kill()
    while what.get("wait") and not (HERE / "go").exists():
        time.sleep(0.05)
"""
CHANGES: dict[str, Any] = {"steps": 4, "checkpoint_every": 1}


def prepare(folder: Path) -> Path:
    """A model, prompts and a reward, and the recipe of one PPO stage; returns the recipe."""
    config = toys.ppo(folder, toys.save(folder), **CHANGES)
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    table = to_table(config)
    del table["out"], table["compute"]
    recipe = {"compute": {"threads": 1, "device": "cpu"}, "stage": [{"kind": "ppo", **table}]}
    file = folder / "recipe.toml"
    file.write_text(toml_text(recipe), encoding="utf-8")
    return file


def plan_accident(folder: Path, **what: Any) -> None:
    """Let something happen in the third rollout batch of the next run."""
    for name in ("happened.json", "go"):
        (folder / name).unlink(missing_ok=True)
    (folder / "accident.json").write_text(json.dumps({"of": os.getpid(), **what}))


def start(recipe: Path, out: Path, *settings: str) -> subprocess.Popen[str]:
    """`tether run` in a process of its own."""
    command = [sys.executable, "-m", "tether.cli", "run", str(recipe), "--out", str(out), *settings]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], code: int = 0, timeout: float = 900.0) -> str:
    """Wait for a run; returns what it said."""
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        raise AssertionError(f"it did not end within {timeout} s:\n{said[-6000:]}") from None
    assert process.returncode == code, said[-6000:]
    return said


def until(true: Callable[[], Any], what: str, seconds: float = 600.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        time.sleep(0.2)


def workers(of: int) -> list[str]:
    """Titles of the Ray workers (of this project and of Ray Train) below a process."""
    found = []
    for process in psutil.Process(of).children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if title.startswith(("ray::_Sampling", "ray::RayTrainWorker", "ray::TrainController")):
            found.append(title)
    return found

"""Kills at every write: what a killed run leaves on the disk, and whether running again mends it.

A killed process leaves behind what is on the disk and nothing else. So one run is watched, and
before each of its operations on files (opening one to write, renaming, making or removing one) what
is on the disk is kept, where it differs from all that was kept before. The same command is then run
from each of those states, and from states in which the file that was being written is cut in half.

    python -m tests.chaos CASE FOLDER              prints what was found, as JSON
    python -m tests.chaos CASE FOLDER --kills 11   instead, `kill -9` at random moments

Everything runs in processes forked from one that has imported all it needs.
"""

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.train import toys
from tether import pipeline
from tether.evaluation import compare, report
from tether.train import online, reward, sft

assert all((compare, report, online, reward, sft))  # imported here, once

SFT = """
[[stage]]
kind = "sft"
model = "{folder}/llama-False"
data = "{folder}/demonstrations.jsonl"
batch_size = 4
max_steps = 4
checkpoint_every = 1
keep_every = 2
evaluate_every = 2
held_out = 0.25
"""
REWARD = """
[[stage]]
kind = "reward"
model = "{folder}/llama-False"
data = "{folder}/rankings.jsonl"
batch_size = 4
epochs = 2.0
checkpoint_every = 1
held_out = 0.25
"""
PPO = """
[[stage]]
kind = "ppo"
model = "{folder}/llama-False"
prompts = "{folder}/prompts.jsonl"
rewards = [{{path = "{folder}/rewards.py:kind"}}]
steps = 3
batch_size = 4
epochs = 1
minibatches = 2
checkpoint_every = 1
kl = {{beta = 0.1, target = 0.5, horizon = 60}}
sampling = {{max_new_tokens = 4}}
"""
EVALUATE = """
[[stage]]
kind = "evaluate"
policies = [
  {{name = "before", model = "{folder}/llama-False"}},
  {{name = "after", model = "stage:sft"}},
]
prompts = "{folder}/prompts.jsonl"
scorers = [{{name = "kind", path = "{folder}/rewards.py:kind"}}]
sampling = {{max_new_tokens = 4}}
"""
LONGER = {
    "max_steps = 4": "max_steps = 24",
    "max_steps = 1": "max_steps = 12",
    "epochs = 2.0": "epochs = 12.0",
    "steps = 3": "steps = 10",
    "checkpoint_every = 1": "checkpoint_every = 2",
}
FEW = SFT.replace("max_steps = 4", "max_steps = 1").replace("keep_every = 2", "")
CASES = {"sft": SFT, "reward": REWARD, "ppo": PPO, "pipeline": FEW + EVALUATE}
ROWS = [
    {"prompt": prompt["prompt"], "completions": ["a kind dog", "no", "it helps"], "ranks": ranks}
    for prompt, ranks in zip(toys.PROMPTS, [[1, 2, 3], [2, 3, 1]] * 4, strict=True)
]
WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open")


def prepare(folder: Path, case: str, *, longer: bool) -> None:
    """Model, data and recipe."""
    toys.save(folder)
    toys.write_rewards(folder)
    toys.write_rows(folder / "demonstrations.jsonl", toys.DEMONSTRATIONS)
    toys.write_rows(folder / "prompts.jsonl", toys.PROMPTS)
    toys.write_rows(folder / "rankings.jsonl", ROWS)
    text = CASES[case].format(folder=folder)
    for few, many in LONGER.items() if longer else ():
        text = text.replace(few, many)
    (folder / "recipe.toml").write_text("compute = {threads = 1}\n" + text)


# --- looking at the disk --------------------------------------------------------------------------


@dataclass
class Watch:
    """Keeps the states of `out` in `kept`, and the names of the operations on it."""

    out: Path
    kept: Path
    operations: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    halves: set[str] = field(default_factory=set)
    before: dict[str, bytes] = field(default_factory=dict)
    busy: bool = False

    def hook(self, event: str, arguments: tuple) -> None:
        """What Python calls before each operation."""
        if self.busy or event not in WRITES or not writes(event, arguments):
            return
        path = place(arguments)
        if path is None or not path.is_relative_to(self.out):
            return
        self.busy = True
        name = path.relative_to(self.out).as_posix()
        self.operations.append(f"{event} {name} in {function()}")
        self.keep()
        self.busy = False

    def keep(self) -> None:
        """Keep what is on the disk now, and the same with the newest file cut in half."""
        now = content(self.out)
        self._keep(now)
        for name, data in now.items():
            old = self.before.get(name, b"")
            grown = data != old and data.startswith(old) and len(data) > len(old) + 1
            kind = Path(name).name
            if grown and kind not in self.halves and data not in self.before.values():
                self.halves.add(kind)
                self._keep({**now, name: data[: (len(old) + len(data)) // 2]})
        self.before = now

    def _keep(self, state: dict[str, bytes]) -> None:
        digest = hashlib.sha256(repr(sorted(state.items())).encode()).hexdigest()
        if digest in self.seen:
            return
        number = self.seen[digest] = len(self.seen)
        for name, data in state.items():
            file = self.kept / str(number) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.mkdir() if name.endswith("/") else file.write_bytes(data)


def writes(event: str, arguments: tuple) -> bool:
    """Whether opening is for writing; every other operation changes something."""
    if event != "open":
        return True
    return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def place(arguments: tuple) -> Path | None:
    """The path of an operation; removing trees names files within an open folder."""
    path = arguments[0]
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    path = os.fsdecode(path)
    if not os.path.isabs(path) and isinstance(arguments[-1], int) and arguments[-1] > 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[-1]}"), path)
    return Path(path).absolute()


def function() -> str:
    """The innermost function of tether that is at work."""
    frame = sys._getframe(2)
    while frame is not None:
        if "/tether/" in frame.f_code.co_filename:
            return frame.f_code.co_name
        frame = frame.f_back
    return "?"


def content(out: Path) -> dict[str, bytes]:
    """Every file by its name, and every empty folder as "name/"."""
    files = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file():
            files[name] = path.read_bytes()
        elif not any(path.iterdir()):
            files[f"{name}/"] = b""
    return files


class Stale:
    """Files that a killed process left unfinished; reading one is wrong."""

    def __init__(self, out: Path) -> None:
        unfinished = (p for p in out.rglob("*") if ".writing" in str(p) or ".old" in str(p))
        self.files = {path for path in unfinished if path.is_file()}

    def hook(self, event: str, arguments: tuple) -> None:
        """What Python calls before each operation."""
        if not self.files or event not in WRITES:
            return
        path = place(arguments)
        if path not in self.files:
            return
        if event == "open" and not writes(event, arguments):
            raise AssertionError(f"{path} is half-written and was read")
        self.files.discard(path)


# --- runs -----------------------------------------------------------------------------------------


def forked(work: Callable[[], object], log: Path, kill_after: float = math.inf) -> int:
    """Do it in a process of its own, whose words go into `log`; returns its exit code.

    `kill_after` so many seconds it is killed, if it is still at work.
    """
    child = os.fork()
    if child:
        if math.isfinite(kill_after):
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)  # nobody has waited for it, so it is it
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def outcome(out: Path) -> dict[str, object]:
    """What a run has made, without times and what only a start measures."""
    made: dict[str, object] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".jsonl":
            made[name] = [timeless(json.loads(x)) for x in path.read_bytes().splitlines()]
        elif path.suffix == ".json":
            made[name] = timeless(json.loads(path.read_text()))
        elif path.suffix == ".html" or path.name in ("config.toml", "README.md"):
            made[name] = path.stat().st_size > 0
        else:
            made[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return made


ONLY_AT_A_START = ("logprob_gap_mean", "logprob_gap_max", "sampler_trusted")


def timeless(value: object) -> object:
    """JSON without seconds, memory and what only a (re)start measures."""
    if isinstance(value, list):
        return [timeless(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: timeless(each)
        for key, each in value.items()
        if "seconds" not in key and "memory" not in key and key not in ONLY_AT_A_START
    }


def watched(recipe: Path, out: Path, kept: Path, report: Path) -> None:
    """The run that nobody disturbs."""
    watch = Watch(out, kept)
    sys.addaudithook(watch.hook)
    pipeline.run(recipe, out)
    watch.busy = True
    report.write_text(json.dumps(watch.operations))


def resumed(recipe: Path, out: Path) -> None:
    """The same command again."""
    sys.addaudithook(Stale(out).hook)
    pipeline.run(recipe, out)


def failure(recipe: Path, out: Path, log: Path, whole: dict[str, object]) -> dict[str, object]:
    """What is wrong after the same command again; {} where it has made what `whole` is."""
    code = forked(lambda: resumed(recipe, out), log)
    made = outcome(out) if code == 0 else {}
    differing = [name for name in {*made, *whole} if made.get(name) != whole.get(name)]
    return {"differ": differing, "log": log.read_text()} if differing or code else {}


def at_every_write(folder: Path) -> dict[str, object]:
    """Every state that a killed run can leave, and what comes of it."""
    recipe, out, kept = folder / "recipe.toml", folder / "out", folder / "kept"
    log, operations = folder / "log", folder / "operations.json"
    assert forked(lambda: watched(recipe, out, kept, operations), log) == 0, log.read_text()
    whole, failures = outcome(out), []
    states = sorted(kept.iterdir(), key=lambda path: int(path.name))
    for state in states:
        shutil.rmtree(out)
        shutil.copytree(state, out)
        if wrong := failure(recipe, out, log, whole):
            failures.append({"state": state.name, **wrong})
    found = {"operations": json.loads(operations.read_text()), "states": len(states)}
    return {**found, "failures": failures}


def at_random(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """`kill -9` at random moments of a run, each followed by the same command again."""
    recipe, out, log = folder / "recipe.toml", folder / "out", folder / "log"
    begun = time.monotonic()
    assert forked(lambda: pipeline.run(recipe, out), log) == 0, log.read_text()
    seconds = time.monotonic() - begun
    whole, failures, steps = outcome(out), [], []
    moments = random.Random(seed)
    while len(steps) < kills:
        shutil.rmtree(out, ignore_errors=True)
        after = moments.uniform(0, seconds)
        code = forked(lambda: pipeline.run(recipe, out), log, after)
        assert code in (0, -signal.SIGKILL), log.read_text()
        if code == 0:
            continue  # it was quicker this time, and had ended
        rows = (file.read_bytes().count(b"\n") for file in out.glob("*/metrics.jsonl"))
        steps.append(sum(rows))
        if wrong := failure(recipe, out, log, whole):
            failures.append({"kill": len(steps), **wrong})
    return {"kills": len(steps), "steps": steps, "seconds": seconds, "failures": failures}


def main() -> None:
    """Parse, look, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.folder.resolve()
    longer = options.kills > 0
    code = forked(lambda: prepare(folder, options.case, longer=longer), folder / "log")
    assert code == 0, (folder / "log").read_text()
    found = at_random(folder, options.kills, options.seed) if longer else at_every_write(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

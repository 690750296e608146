"""The driver: starts both sides as processes and lets them work in turn, one iteration at a time.

A shared machine is now faster, now slower. Sides that alternate see the same of it, and the ratio
is taken within each round, so what a neighbour does to one falls on the other too.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import figures
import world
from rich.console import Console

HERE = Path(__file__).parent
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


class Side(NamedTuple):
    """One way to do the work: a worker script, the Python that runs it, and a setting of it."""

    name: str
    script: str
    python: str
    variant: str

    @property
    def label(self) -> str:
        """Name and variant."""
        return f"{self.name} {self.variant}"


def sides(name: str, script: str, python: str, variants: str) -> list[Side]:
    """One side for each of the variants, which are parted by commas."""
    return [Side(name, script, python, variant.strip()) for variant in variants.split(",")]


def tether_sides(variants: str) -> list[Side]:
    """tether in this Python."""
    return sides("tether", "tether_side.py", sys.executable, variants)


@dataclass
class Worker:
    """A running side."""

    side: Side
    process: subprocess.Popen[str]
    log: Path
    facts: dict[str, Any]

    def ask(self) -> dict[str, Any]:
        """Have it run one iteration; returns what it measured."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # where it has ended, `answer` tells why
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line of JSON that it prints.

        Raises:
            RuntimeError: It has ended; the message holds the last it wrote.
        """
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        last = "\n".join(self.log.read_text(encoding="utf-8").splitlines()[-15:])
        raise RuntimeError(f"the worker of {self.side.label} has ended; it last wrote:\n{last}")


@contextmanager
def started(side: Side, job: dict[str, Any], folder: Path) -> Iterator[Worker]:
    """A worker that has imported its libraries; ended when the block is left."""
    name = side.label.replace(" ", "-")
    job = {**job, "variant": side.variant, "out": str(folder / name)}
    command = [side.python, str(HERE / side.script), json.dumps(job)]
    log = folder / f"{name}.log"
    with log.open("w", encoding="utf-8") as stream, _process(command, stream) as process:
        worker = Worker(side, process, log, {})
        worker.facts = worker.answer()
        yield worker


@contextmanager
def _process(command: list[str], errors: IO[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, **ONE_THREAD},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def measure(
    every: list[Side], job: dict[str, Any], folder: Path, alternations: int
) -> dict[str, figures.Measured]:
    """One iteration to warm up for each side, then `alternations` rounds of one each.

    Raises:
        RuntimeError: The sides did not do the same work, or with other versions of a library.
    """
    console = Console(stderr=True)
    rows: dict[str, list[dict[str, Any]]] = {side.label: [] for side in every}
    with ExitStack() as stack:
        workers = [stack.enter_context(started(side, job, folder)) for side in every]
        _check_same([{k: w.facts[k] for k in ("torch", "transformers")} for w in workers])
        for number in range(alternations + 1):
            for worker in workers:
                row = worker.ask()
                console.print(
                    f"{'round ' + str(number) if number else 'warm-up'}  {worker.side.label}  "
                    f"{row['cpu_s']:.2f} CPU s  {row['wall_s']:.2f} s"
                )
                if number:
                    rows[worker.side.label].append(row)
    done = [row for measured in rows.values() for row in measured]
    _check_same([{k: row[k] for k in ("rows", "steps") if k in row} for row in done])
    return {
        worker.side.label: figures.Measured(worker.facts, rows[worker.side.label])
        for worker in workers
    }


def _check_same(facts: list[dict[str, Any]]) -> None:
    if different := [other for other in facts if other != facts[0]]:
        raise RuntimeError(f"the sides differ, so nothing can be compared: {facts[0]}, {different}")


@dataclass
class Options:
    """What every benchmark asks."""

    model: Literal["5m", "15m"] = "5m"
    """Parameters of each model"""
    tether: str = "bf16,fp32"
    """Variants of tether, parted by commas"""
    alternations: int = 3
    """Timed rounds"""
    json: Path | None = None
    """File for all raw figures"""


def compare(
    task: str, options: Options, others: list[Side], work: Mapping[str, float], lengths: str = ""
) -> None:
    """Measure all sides in turn, print ratios of each of the others to each of tether's.

    Args:
        task: What the workers do: a name that both scripts know.
        options: Model, tether's variants, rounds.
        others: What is compared with.
        work: How much an iteration is; told to the workers.
        lengths: "fixed" or "varied", of prompts and completions; "" where nothing is sampled.
    """
    ours = tether_sides(options.tether)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world.build(folder, world.SIZES[options.model], lengths or "fixed")
        job = {**work, "task": task, "world": name, "lengths": lengths}
        measured = measure([*others, *ours], job, folder, options.alternations)
    title = f"{task}, {options.model}" + (f", {lengths} lengths" if lengths else "")
    pairs = [(other.label, our.label) for other in others for our in ours]
    facts = {"title": title, **machine(), "work": work}
    figures.show(title, measured, pairs, facts)
    if options.json:
        raw = {label: side._asdict() for label, side in measured.items()}
        text = json.dumps({**facts, "sides": raw}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was by then (load average, 1 min)."""
    found = [platform.processor() or platform.machine()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        found += [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": found[-1], "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}

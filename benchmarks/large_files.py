"""Memory and time of data that is larger than memory: convert, check, the first steps of SFT.

A JSON Lines file of chats with 0.2 to 4 kB a row is made in a temporary folder, and is gone
afterwards. Each command runs in a process of its own. Every fifth of a second that process's
memory is read from /proc (Linux): `anonymous` is what it has allocated; `resident` also counts the
files that it has mapped, such as torch's libraries, which the kernel can drop at any time.

    python benchmarks/large_files.py               # 5 GB; needs three times that in TMPDIR
    python benchmarks/large_files.py --gb 0.2      # a minute
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import world
from rich.console import Console
from rich.table import Table

SIZE = world.Size(width=32, layers=2, heads=2, inner=64, vocabulary=4096)
SHORTEST, LONGEST = 40, 800  # words of a row
SFT = "--max-steps 20 --batch-size 8 --held-out 0.0002 --max-length 512 --checkpoint-every 0"


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds on the wall and of the CPU, MiB at the peak."""

    wall: float
    cpu: float
    anonymous: float
    resident: float


def main() -> None:
    """Make the file, run the commands, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=5.0, help="size of the file, in 10^9 bytes")
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world.build(folder, SIZE, "fixed")
        data = folder / "large.jsonl"
        rows = write(data, arguments.gb * 1e9)
        print(f"{data.stat().st_size / 1e9:.2f} GB, {rows:,} rows", flush=True)
        commands = {
            "import": [sys.executable, "-c", "import tether.train.sft"],
            "data check": tether(f"data check {data}"),
            "data convert": tether(f"data convert {data} --to sharegpt --out {folder}/out.jsonl"),
            "sft, 20 steps": tether(
                f"sft --model {folder}/policy --data {data} --out {folder}/sft {SFT}"
            ),
        }
        found: dict[str, Cost] = {}
        for name, command in commands.items():
            found[name] = measure(command)
            print(name, found[name], flush=True)
            (folder / "out.jsonl").unlink(missing_ok=True)
    table = Table("command", "wall s", "CPU s", "anonymous MiB", "resident MiB")
    for name, cost in found.items():
        table.add_row(name, *(f"{value:,.0f}" for value in vars(cost).values()))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({name: vars(cost) for name, cost in found.items()}))


def write(path: Path, size: float) -> int:
    """Write chats of one turn until the file has `size` bytes; returns its rows."""
    rows = 0
    with path.open("w", encoding="utf-8") as file:
        for row in chats(np.random.default_rng(0)):
            file.write(json.dumps(row) + "\n")
            rows += 1
            if rows % 1000 == 0 and file.tell() >= size:
                return rows
    raise AssertionError("chats never end")


def chats(rng: np.random.Generator) -> Iterator[dict[str, str]]:
    """Prompts and completions of random words."""
    names = [f"w{i}" for i in range(len(world.SPECIAL), SIZE.vocabulary)]
    while True:
        words = [names[i] for i in rng.integers(len(names), size=100_000)]
        start = 0
        while start + LONGEST <= len(words):
            end = start + int(rng.integers(SHORTEST, LONGEST))
            middle = start + int(rng.integers(10, end - start - 10))
            prompt, completion = " ".join(words[start:middle]), " ".join(words[middle:end])
            yield {"prompt": prompt + " ", "completion": completion}
            start = end


def tether(line: str) -> list[str]:
    """A command of tether in this Python."""
    return [sys.executable, "-m", "tether.cli", *line.split()]


def measure(command: list[str]) -> Cost:
    """Run a command to its end and look at its memory all along."""
    begun, peak, resident = time.monotonic(), 0.0, 0.0
    before = cpu_seconds()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        held = memory(process.pid)
        peak = max(peak, held.get("RssAnon", 0.0))
        resident = max(resident, held.get("VmHWM", 0.0))
        time.sleep(0.2)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return Cost(time.monotonic() - begun, cpu_seconds() - before, peak, resident)


def memory(pid: int) -> dict[str, float]:
    """What Linux tells of a process's memory, in MiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # it has just ended
        return {}
    parts = [line.split() for line in lines if line.endswith("kB")]
    return {name.rstrip(":"): int(value) / 1024 for name, value, _ in parts}


def cpu_seconds() -> float:
    """Seconds of CPU of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()

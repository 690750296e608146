"""A worker's side of the benchmark: one iteration each time the driver asks, measured and told.

Standard library only, since it runs in TRL's environment and in tether's alike. The driver writes
a line to a worker's standard input; the worker runs one iteration and answers with one line of
JSON on its standard output. Everything else that a library prints goes to standard error.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


class Gate:
    """Holds a training loop at the start of each iteration, and measures what lies between."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._open = False
        self._phase = ""
        self._begin()

    def ready(self, **versions: str) -> None:
        """Tell the driver that libraries are imported, and what memory that took."""
        self._tell({"imported_mib": memory("VmRSS"), **versions})

    def turn(self) -> None:
        """The start of an iteration: report the one before, and wait to be asked for this one.

        Ends the process where the driver asks for no more.
        """
        if self._open:
            self._tell(self._measured())
        if not sys.stdin.readline():
            self._out.close()
            os._exit(0)  # what the libraries do when they end is not part of the benchmark
        self._open = True
        self._begin()

    def count(self, **numbers: int) -> None:
        """Add to the iteration's counts: `tokens`, `rows`, `steps`."""
        for name, number in numbers.items():
            self._counts[name] = self._counts.get(name, 0) + number

    def phase(self, name: str) -> None:
        """From now on CPU time belongs to this phase."""
        now = time.process_time()
        self._phases[self._phase] = self._phases.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = name, now

    def _begin(self) -> None:
        self._counts: dict[str, int] = {}
        self._phases: dict[str, float] = {}
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        self._since = self._cpu

    def _measured(self) -> dict[str, Any]:
        self.phase(self._phase)
        return {
            "cpu_s": time.process_time() - self._cpu,
            "wall_s": time.perf_counter() - self._wall,
            "peak_mib": memory("VmHWM"),
            "phases": {name: seconds for name, seconds in self._phases.items() if name},
            **self._counts,
        }

    def _tell(self, row: dict[str, Any]) -> None:
        self._out.write(json.dumps(row) + "\n")
        self._out.flush()


def memory(name: str) -> float:
    """Memory that this process holds ("VmRSS"), or the most that it has held ("VmHWM"), in MiB.

    On Linux `ru_maxrss` would do for the peak, but for the driver's own peak, which a process
    inherits when it is started. Elsewhere it is all there is.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))
    unit = 1 if sys.platform == "darwin" else 1024  # macOS tells bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def read_job() -> dict[str, Any]:
    """What the driver wants of this worker: its one argument, JSON."""
    return json.loads(sys.argv[1])


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

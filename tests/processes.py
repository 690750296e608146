"""Runs a function in several processes that train together, as torchrun would start them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# One interpreter imports, then becomes several by forking: half the time of two that import.
START = """
import importlib, json, os, sys
module, name, count, arguments = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
import torch
torch.set_num_threads(1)
function = getattr(importlib.import_module(module), name)
children = []
for rank in range(count):
    if (child := os.fork()) == 0:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        from tether import parallel
        parallel.join()
        function(*arguments)
        parallel.leave()
        sys.exit(0)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
sys.exit(max(os.waitstatus_to_exitcode(code) != 0 for code in codes))
"""


def in_processes(count: int, module: str, name: str, *arguments, timeout: float = 100) -> str:
    """Call `name` of `module` with JSON values in `count` processes; returns what they printed.

    Raises:
        AssertionError: One of them failed; with what all have said.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    words = [sys.executable, "-c", START, module, name, str(count), json.dumps(arguments)]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr

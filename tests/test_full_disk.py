"""A disk that really is full: a small file system in memory, where this machine lets us mount one.

tests/models/test_checkpoint.py and tests/test_rundir.py say it without one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train import toys
from tether.train.sft import train_sft

OWN = ("unshare", "--user", "--map-root-user", "--mount")  # mounts that end with the process
MOUNT = 'mount -t tmpfs -o size="$1" none "$0" && shift && exec "$@"'
# The same command on a disk that has room for two checkpoints, then on one that has more.
TWICE = """
import subprocess, sys
from tether.cli import main

disk, *sys.argv = sys.argv[1:]
for size in ("", "32m"):
    if size:
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
    try:
        main()
    except SystemExit as end:
        print("exit", end.code, file=sys.stderr)
    print(subprocess.run(["ls", "-A", f"{disk}/out/checkpoints"], capture_output=True, text=True)
          .stdout.split(), file=sys.stderr)
subprocess.run(["cp", f"{disk}/out/model/model.safetensors", f"{disk}/../model"], check=True)
"""


@pytest.fixture
def disk(tmp_path):
    """A folder to mount on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(
            [*OWN, "sh", "-c", MOUNT, str(folder), "1m", "true"], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode:
        pytest.skip("this machine does not let us mount")
    return folder


def test_training_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path, disk):
    model = toys.save(tmp_path)
    settings = {"max_steps": 8, "checkpoint_every": 2, "evaluate_every": 100}
    whole = train_sft(toys.sft(tmp_path, model, out=str(tmp_path / "whole"), **settings))
    data, out = tmp_path / "demonstrations.jsonl", disk / "out"
    words = (
        f"tether sft --model {model} --data {data} --out {out} --max-steps 8 --batch-size 8 "
        "--held-out 0 --checkpoint-every 2 --evaluate-every 100 --optimizer.learning-rate 1e-3 "
        "--compute.threads 1"
    )
    # A checkpoint holds each weight and its two moments.
    room = 3 * (whole / "model" / "model.safetensors").stat().st_size * 5 // 2
    command = [*OWN, "sh", "-c", MOUNT, str(disk), str(room), sys.executable, "-c", TWICE]
    done = subprocess.run(
        [*command, str(disk), *words.split()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [x for x in done.stderr.splitlines() if x.startswith(("tether: ", "exit", "["))]
    [full, refused, kept, finished, none] = lines
    assert full.startswith(f"tether: {out}/checkpoints/step-000006 cannot be written: no room")
    assert full.endswith("which goes on from step 4")
    assert kept == "['step-000002', 'step-000004']"
    assert (refused, finished, none) == ("exit 2", "exit 0", "[]")
    assert (
        Path(tmp_path / "model").read_bytes()
        == (whole / "model" / "model.safetensors").read_bytes()
    )

"""What the processes of tests/parallel/test_stopped.py do."""

import os
import shutil
import signal
from pathlib import Path

from tests.train import toys
from tether import parallel
from tether.rundir import StageFolder
from tether.sections import ComputeConfig
from tether.train.online import train_ppo
from tether.train.sft import train_sft


def train(folder: str, stage: str, out: str, kind: str = "fsdp") -> Path:
    """A short run of a stage into `folder`/`out`; the files it needs are there."""
    root, compute = Path(folder), ComputeConfig(parallel=kind)
    changes = {"out": str(root / out), "compute": compute, "checkpoint_every": 2}
    model = root / "llama-False"
    if stage == "sft":
        data = str(root / "demonstrations.jsonl")
        return train_sft(toys.sft(root, model, data=data, max_steps=6, **changes))
    return train_ppo(toys.ppo(root, model, steps=4, **changes))


def stop_one(folder: str, stage: str) -> None:
    """A whole run; one of which the second process gets SIGTERM in its third step; and resumed."""
    root = Path(folder)
    train(folder, stage, f"{stage}-whole")
    log, rows = StageFolder.log, []

    def log_and_signal(self, row, file="metrics.jsonl"):
        log(self, row, file)
        rows.append(row["step"])
        if parallel.rank() == 1 and rows[-1] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    StageFolder.log = log_and_signal
    try:
        train(folder, stage, f"{stage}-stopped")
        raise AssertionError("it did not stop")
    except KeyboardInterrupt:
        assert rows[-1] == 3
    StageFolder.log = log
    parallel.wait()
    if parallel.leads():
        shutil.copytree(root / f"{stage}-stopped", root / f"{stage}-by-one")
    parallel.wait()
    train(folder, stage, f"{stage}-stopped")


def both(folder: str) -> None:
    """Of both kinds of loop. The files are there, and two processes cannot write the same."""
    toys.write_jsonl = lambda path, rows: None
    toys.write_rewards = lambda folder: str(folder / "rewards.py")
    for stage in ("sft", "ppo"):
        stop_one(folder, stage)

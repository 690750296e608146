"""What the processes of tests/models/test_sharded_checkpoint.py do."""

import hashlib
import json
import os
import re
from pathlib import Path

import torch
from tests.tiny import tiny_llama
from torch import nn

from tether import parallel
from tether.errors import TetherError
from tether.models.checkpoint import load_checkpoint, save_checkpoint
from tether.sections import OptimizerConfig
from tether.train.loop import make_optimizer


class Run:
    """A policy, sharded where `kind` is "fsdp", and a head that stays whole."""

    def __init__(self, kind: str, seed: int = 0) -> None:
        self.model = tiny_llama(30, seed=seed)
        parallel.shard(self.model, kind, torch.device("cpu"))
        self.head = nn.Linear(5, 1)
        nn.init.constant_(self.head.weight, 0.25 * (seed + 1))
        nn.init.constant_(self.head.bias, 0.5)
        self.modules = {"policy": self.model, "value_head": self.head}
        parameters = [*self.model.parameters(), *self.head.parameters()]
        # Shards and whole parameters cannot share a group of a fused optimizer.
        shards = [p for p in parameters if hasattr(p, "device_mesh")]
        whole = [p for p in parameters if not hasattr(p, "device_mesh")]
        groups = [(each, 1e-2) for each in (whole, shards) if each]
        self.optimizer = make_optimizer(groups, OptimizerConfig(weight_decay=0.01))

    def train(self, steps: int) -> None:
        """Gradients that are functions of the weights, the same on any number of processes."""
        for _ in range(steps):
            for parameter in [*self.model.parameters(), *self.head.parameters()]:
                parameter.grad = parameter.detach() * 0.5 + 0.125
            self.optimizer.step()

    def save(self, folder: str, step: int) -> None:
        save_checkpoint(Path(folder), step, self.modules, self.optimizer, {"beta": 0.1 + 0.2})

    def load(self, folder: str) -> dict | None:
        return load_checkpoint(Path(folder), self.modules, self.optimizer)

    def digest(self) -> str:
        """What identifies every weight and moment, shards put together."""
        digest = hashlib.sha256()
        for module in self.modules.values():
            for parameter in module.parameters():
                moments = self.optimizer.state[parameter]
                for tensor in (parameter, *(moments[key] for key in sorted(moments))):
                    digest.update(parallel.whole_tensor(tensor).float().numpy().tobytes())
        return digest.hexdigest()


def write(folder: str, kind: str, steps: int) -> None:
    """Train, write, and say what there is."""
    run = Run(kind)
    run.train(steps)
    run.save(folder, steps)
    tell(folder, "wrote", digest=run.digest())


def read(folder: str, kind: str, steps: int) -> None:
    """Read into other weights, say what there is; train on and say it again."""
    run = Run(kind, seed=7)
    state = run.load(folder)
    loaded = run.digest()
    run.train(steps)
    tell(folder, "read", state=state, loaded=loaded, digest=run.digest())


def tell(folder: str, what: str, **facts) -> None:
    """Leave what this process found beside the checkpoints."""
    place = Path(folder).parent / f"{what}-{parallel.count()}-{parallel.rank()}.json"
    place.write_text(json.dumps(facts))


def fail_in_one(folder: str) -> None:
    """The disk is full for the second process alone; all say so, and nothing is left."""
    run = Run("fsdp")
    run.train(1)
    run.save(folder, 1)
    if parallel.rank() == 1:
        fsync = os.fsync

        def full(descriptor: int) -> None:
            if "shard-" in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(28, "No space left on device")
            fsync(descriptor)

        os.fsync = full
    try:
        run.save(folder, 2)
    except TetherError as error:
        parallel.wait()  # for the first to clear away
        tell(
            folder,
            "failed",
            error=re.sub(r"[0-9.]+ MiB", "some", str(error)),
            there=sorted(os.listdir(folder)),
        )


def in_two(root: str) -> None:
    """What needs two processes, in folders below `root`."""
    for kind in ("fsdp", "ddp"):
        folder = f"{root}/{kind}/checkpoints"
        write(folder, kind, 2)
        parallel.wait()
        read(folder, kind, 3)
    read(f"{root}/by-one/checkpoints", "fsdp", 0)
    fail_in_one(f"{root}/full/checkpoints")

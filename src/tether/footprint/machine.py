"""What the machine has: memory of this process without any model, and memory that is free."""

from pathlib import Path

import torch
from torch import nn

from tether.models.language_model import pick_device
from tether.rundir import peak_memory
from tether.sections import ComputeConfig, OptimizerConfig
from tether.train.loop import make_optimizer, optimizer_step


def process_memory() -> int:
    """Bytes of this process with all that training imports; to be asked before anything else.

    A step of one parameter makes torch load what it loads late.
    """
    parameter = nn.Parameter(torch.zeros(1))
    parameter.sum().backward()
    settings = OptimizerConfig()
    optimizer_step(make_optimizer([([parameter], 1.0)], settings), [[parameter]], 1.0)
    return peak_memory() << 20


def free_memory(compute: ComputeConfig) -> tuple[str, int | None]:
    """The device that `compute` means, and its free bytes; None where the system does not tell."""
    device = pick_device(compute).device
    if device.type == "cuda":
        return str(device), torch.cuda.mem_get_info(device)[0]
    limits = [_available(), _left_in_group()]
    return str(device), min((limit for limit in limits if limit is not None), default=None)


def _available() -> int | None:
    """Linux's own estimate of what new programs can have without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(kib[0]) << 10 if kib else None


def _left_in_group() -> int | None:
    """What the control group (a container's limit) leaves."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return int(limit) - used if limit.isdecimal() else None

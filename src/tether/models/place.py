"""Where models compute, in which precision, and what is done so that they fit into memory."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from tether import parallel
from tether.errors import ConfigError
from tether.sections import ComputeConfig, require


class Device(NamedTuple):
    """Where to compute, in which precision and with which attention code (None: the model's).

    `checkpointing`: activations are computed anew in the backward pass. `offload`: frozen models
    wait in the CPU's memory.
    """

    device: torch.device
    dtype: torch.dtype
    attention: str | None
    checkpointing: bool = False
    offload: bool = False

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which matrix products run in `dtype`.

        Without autocast's own cache: it would hold a copy of every weight to the end of the pass,
        in each process the whole of a model that is sharded.
        """
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype, cache_enabled=False)


def pick_device(compute: ComputeConfig) -> Device:
    """Resolve "auto" and set the number of CPU threads.

    Raises:
        ConfigError: The device does not exist here.
    """
    if compute.threads:
        torch.set_num_threads(compute.threads)
    name = compute.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    several = parallel.count() > 1
    rule = "keeps frozen models on the CPU, where several processes cannot share them"
    require(not (compute.offload and several), "compute.offload", compute.offload, rule)
    if name == "cuda" and several:
        name = f"cuda:{parallel.local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"compute.device={name!r} cannot be used here: {reason}") from None
    wide = compute.precision == "float32" or (compute.precision == "auto" and device.type == "cpu")
    attention = compute.attention
    if attention == "auto":  # transformers takes "sdpa" where the architecture has it
        attention = "eager" if device.type == "cpu" and not wide else None
    dtype = torch.float32 if wide else torch.bfloat16
    return Device(device, dtype, attention, compute.gradient_checkpointing, compute.offload)


def rest(model: PreTrainedModel, place: Device) -> None:
    """Let a model that is wholly frozen wait in the CPU's memory, if `offload` asks for it."""
    if place.offload and not any(parameter.requires_grad for parameter in model.parameters()):
        model.to("cpu")  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def at_work(model: PreTrainedModel, place: Device) -> Iterator[None]:
    """Context in which a model that waits in the CPU's memory is on its device.

    What a sharded model gathered for a pass without gradients is let go of at its end.
    """
    away = model.device.type != place.device.type
    if away:
        model.to(place.device)  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        if away:
            model.to("cpu")  # pyright: ignore[reportArgumentType]
        if not torch.is_grad_enabled():
            parallel.reshard(model)

"""Several processes in `tether plan`: who runs where, and what each of those that train holds."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from tether import parallel
from tether.config import FitConfig, OnlineConfig, StageConfig
from tether.footprint.parts import Footprint, Phase
from tether.models import adapters
from tether.models.language_model import load_config

FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Placement:
    """The processes of one stage. `rollouts` and `servers` sample elsewhere; 0 of both = here."""

    trainers: int
    parallel: str
    ray: bool
    rollouts: int
    servers: int
    gpus: float

    @classmethod
    def of(cls, config: StageConfig, processes: int) -> "Placement":
        """Where a stage runs; `processes` are those of torchrun, which a Ray cluster replaces.

        What neither fits a model nor samples while it trains is done by one process.
        """
        compute: Any = config.compute
        online = isinstance(config, OnlineConfig)
        ray = compute.backend == "ray"
        if not online and not isinstance(config, FitConfig):
            return cls(1, compute.parallel, False, 0, 0, 0.0)
        cluster, servers = compute.cluster, len(compute.servers.urls) if online else 0
        rollouts = cluster.rollouts if ray and online and not servers else 0
        trainers = cluster.trainers if ray else processes
        gpus = trainers * cluster.trainer_gpus + rollouts * cluster.rollout_gpus if ray else 0.0
        return cls(trainers, compute.parallel, ray, rollouts, servers, gpus)

    def told(self) -> str:
        """In words."""
        words = [_count(self.trainers, "process" if self.trainers == 1 else "trainer")]
        if self.trainers > 1:
            words[0] += f" ({self.parallel})"
        if self.rollouts:
            words.append(_count(self.rollouts, "rollout worker"))
        if self.servers:
            words.append(_count(self.servers, "rollout server"))
        told = ", ".join(words)
        if not self.ray:
            return told
        asked = f"{self.gpus:g} GPUs" if self.gpus else "no GPU"
        return f"{told}; asked of the Ray cluster: {asked}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 and not what.endswith("s") else "")


class Sizes(NamedTuple):
    """Parameters of a language model, of its largest layer, and outside of its layers."""

    whole: int
    layer: int
    root: int


def sizes_of(path: str) -> Sizes:
    """Of the model at `path`, which is built without memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(adapters.base_of(path)))
    whole = sum(p.numel() for p in model.parameters())
    layers = [sum(p.numel() for p in each.parameters()) for each in _layers(model)]
    return Sizes(whole, max(layers, default=0), whole - sum(layers))


def _layers(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    yield from parallel.decoder_layers(model) or ()


def in_passes(config: Any, placement: Placement) -> Any:
    """The settings as each of several trainers computes: a pass is at most its part of a batch."""
    if placement.trainers == 1:
        return config
    rows = config.batch_size
    if isinstance(config, OnlineConfig):
        rows //= config.minibatches
    part = max(-(-rows // placement.trainers), 1)
    return replace(config, device_batch_size=min(config.device_batch_size or part, part))


def in_each(found: Footprint, config: Any, placement: Placement) -> Footprint:
    """What each of several processes holds that train together, from what one would alone.

    Sharded, weights, gradients and moments are divided by their number, adapters are not; what is
    gathered comes on top: the layers that are multiplied by and fetched, and the rest of the model,
    with gradients in training; and a whole copy of the policy, where it samples here. With "ddp"
    every process holds all. Who samples elsewhere has the cache.
    """
    elsewhere = placement.rollouts + placement.servers > 0
    phases = [each for each in found.phases if not (elsewhere and each.name == "generate")]
    if placement.trainers > 1 and placement.parallel == "fsdp":
        sizes = sizes_of(config.model)
        copied = isinstance(config, OnlineConfig) and not elsewhere
        phases = [_sharded(each, config, placement.trainers, sizes, copied) for each in phases]
    return Footprint(phases, found.batches, found.notes, found.data)


def _sharded(phase: Phase, config: Any, num: int, sizes: Sizes, copied: bool) -> Phase:
    parts = Counter(phase.parts)
    own = parts["optimizer"] // 2 if config.lora.rank else 0  # adapters, whole in each
    parts["weights"] = (parts["weights"] - own) // num + own
    if not config.lora.rank:
        parts["gradients"] //= num
        parts["optimizer"] //= num
    if copied:
        parts["sampling copy"] = FLOAT32 * sizes.whole
    if phase.name not in ("generate", "update"):
        trained = phase.name == "train" and not config.lora.rank
        parts["gathered"] = FLOAT32 * (sizes.root + 2 * sizes.layer) * (2 if trained else 1)
    return Phase(phase.name, +parts)

"""What a run asks of a Ray cluster, and whether the cluster can hold it; arithmetic only."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tether.config import OnlineConfig, TrainConfig


class Role(NamedTuple):
    """Workers that are alike, and what each of them takes."""

    name: str
    num: int
    cpus: float
    gpus: float

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker takes, in Ray's words."""
        gpus = {"GPU": self.gpus} if self.gpus else {}
        return {"CPU": self.cpus, **gpus}

    def __str__(self) -> str:
        each = _amounts(self.bundle)
        return f"{self.num} {self.name}{'' if self.num == 1 else 's'} x {each}"


def roles_of(config: TrainConfig) -> list[Role]:
    """The workers of a stage: its trainers and, where it samples on Ray, its rollout workers."""
    cluster, online = config.compute.cluster, isinstance(config, OnlineConfig)
    rollouts = cluster.rollouts if online and not config.compute.servers.urls else 0
    roles = [
        Role("trainer", cluster.trainers, cluster.worker_cpus, cluster.trainer_gpus),
        Role("rollout worker", rollouts, cluster.worker_cpus, cluster.rollout_gpus),
    ]
    return [role for role in roles if role.num]


def refusal(machines: Sequence[Mapping[str, float]], roles: Sequence[Role]) -> str:
    """Why no time would make these machines hold the roles; "" where they may.

    Args:
        machines: What each machine has, in Ray's words: {"CPU": 8.0, "GPU": 1.0, …}.
        roles: What is asked.
    """
    asked, there = _sum([role.bundle for role in roles for _ in range(role.num)]), _sum(machines)
    has = f"the cluster has {_amounts(there)} on {_machines(len(machines))}"
    words = f"asked {' + '.join(map(str, roles))} = {_amounts(asked)}, {has}"
    if _exceeds(asked, there):
        return words
    for role in roles:
        if all(_exceeds(role.bundle, machine) for machine in machines):
            return f"{words}, none of which can hold one {role.name}"
    return ""


def _sum(amounts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(each.get(name, 0.0) for each in amounts) for name in ("CPU", "GPU")}


def _exceeds(asked: Mapping[str, float], there: Mapping[str, float]) -> bool:
    return any(amount > there.get(name, 0.0) + 1e-9 for name, amount in asked.items())


def _amounts(amounts: Mapping[str, float]) -> str:
    counted = [(name, amounts.get(name, 0.0)) for name in ("CPU", "GPU")]
    return ", ".join(
        f"{amount:g} {name}{'' if amount == 1 else 's'}"
        for name, amount in counted
        if amount or name == "CPU"
    )


def _machines(count: int) -> str:
    return f"{count} machine{'' if count == 1 else 's'}"

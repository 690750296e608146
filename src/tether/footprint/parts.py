"""The footprint of a stage: bytes by phase and part, and how it cuts its work into batches."""

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import NamedTuple

from torch import nn

BATCHES_LOOKED_AT = 200  # the fullest of a run's first so many batches is taken
DEVICE_BATCHES = 2  # the first is the largest; the second has gradients beside it


class Phase(NamedTuple):
    """Bytes that a phase of a stage holds at its peak, by part."""

    name: str
    parts: Counter[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batches:
    """How a stage cuts its work; None = does not apply, or cannot be known yet.

    `device` is in rows, the rest in examples: rows of sft, prompts of reward, completions of ppo
    and generate. `samples` and `tokens` are those of the whole stage; with `tokens_at_most`,
    completions that end early make them fewer.
    """

    device: int
    rollout: int | None = None
    optimizer: int | None = None
    steps_per_rollout: int | None = None
    steps: int | None = None
    samples: int | None = None
    tokens: int | None = None
    tokens_at_most: bool = False


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory and batches of one stage, and what had to be assumed for them.

    `data` is the bytes of its texts and token ids, which the process holds all the time.
    """

    phases: list[Phase]
    batches: Batches
    notes: list[str]
    data: int

    @property
    def peak(self) -> Phase:
        """The phase that holds most."""
        return max(self.phases, key=lambda phase: phase.parts.total())


def phases_of(parameters: Iterable[nn.Parameter], **measured: Counter[str]) -> list[Phase]:
    """Measured phases of training with AdamW's moments beside them, and the optimizer step.

    Args:
        parameters: What is trained.
        measured: Bytes by part of each phase; one of them is "train".
    """
    size = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    moments = Counter({"optimizer": 2 * size})
    update = Counter({"weights": measured["train"]["weights"], "gradients": size})
    phases = [Phase(name, parts + moments) for name, parts in measured.items()]
    return [*phases, Phase("update", update + moments)]


def bytes_of(value: object) -> int:
    """Bytes of records and token ids as Python holds them; of a number up to 256 there is one."""
    if isinstance(value, int):
        return 32 if value > 256 else 0
    size = sys.getsizeof(value)
    if isinstance(value, list | tuple):
        return size + sum(map(bytes_of, value))
    if is_dataclass(value):
        return size + sum(bytes_of(getattr(value, field.name)) for field in fields(value))
    return size

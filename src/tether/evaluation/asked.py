"""The blocks for which the policies themselves are asked: texts, probes and tasks.

One policy is loaded at a time, and let go before the next.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tether.config import BlocksConfig, EvaluateConfig
from tether.data.formats import read_demonstrations
from tether.evaluation.blocks import Block
from tether.evaluation.probes import Probe, probabilities, probe_block, read_probe
from tether.evaluation.tax import (
    Loss,
    require_harness,
    run_tasks,
    task_block,
    text_block,
    text_losses,
)
from tether.models.language_model import load
from tether.records import Demonstration
from tether.sections import ComputeConfig


class Asked(NamedTuple):
    """What the policies are asked."""

    texts: Sequence[Demonstration]
    probes: list[Probe]
    tasks: tuple[str, ...]


class Said(NamedTuple):
    """What one policy made of it."""

    texts: list[Loss | None]
    probes: list[list[NDArray[np.float64]]]
    tasks: dict[str, Any]


def read_asked(blocks: BlocksConfig) -> Asked:
    """Texts, probes and tasks of an evaluation, before anything is sampled.

    Raises:
        DataError: A file cannot be read.
        ConfigError: There are tasks, but no lm-evaluation-harness.
    """
    if blocks.tasks:
        require_harness()
    return Asked(
        texts=read_demonstrations(blocks.texts) if blocks.texts else [],
        probes=[read_probe(probe) for probe in blocks.probes],
        tasks=blocks.tasks,
    )


def ask_policies(asked: Asked, config: EvaluateConfig) -> list[Block]:
    """The blocks of all policies, against the baseline; none where nothing is asked."""
    if not any(asked):
        return []
    by_model: dict[str, Said] = {}  # the best of n of a model is that model here
    for policy in config.policies:
        if policy.model not in by_model:
            by_model[policy.model] = ask(policy.model, asked, config.compute)
    said = {policy.name: by_model[policy.model] for policy in config.policies}
    baseline, seed = config.baseline or config.policies[0].name, config.seed
    blocks: list[Block] = []
    if asked.texts:
        losses = {name: each.texts for name, each in said.items()}
        blocks.append(text_block(losses, baseline, seed=seed))
    for number, probe in enumerate(asked.probes):
        answers = {name: each.probes[number] for name, each in said.items()}
        blocks.append(probe_block(probe, answers, baseline, seed=seed))
    if asked.tasks:
        tasks = {name: each.tasks for name, each in said.items()}
        blocks.append(task_block(tasks, baseline, seed=seed))
    return blocks


def ask(model: str, asked: Asked, compute: ComputeConfig) -> Said:
    """Load one model and ask it everything."""
    language_model = load(model, compute)
    return Said(
        texts=text_losses(language_model, asked.texts),
        probes=[probabilities(language_model, probe.questions) for probe in asked.probes],
        tasks=run_tasks(language_model, asked.tasks) if asked.tasks else {},
    )

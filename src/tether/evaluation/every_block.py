"""Which blocks an evaluation consists of: those asked for, and what each needs checked before."""

from collections.abc import Sequence

from tether.config import EvaluateConfig
from tether.evaluation.asked import ask_policies, read_asked
from tether.evaluation.blocks import Block
from tether.evaluation.samples import Sample
from tether.evaluation.toxicity import toxicity


def check_blocks(config: EvaluateConfig) -> None:
    """Refuse before anything is sampled what the blocks could not be computed from.

    Raises:
        ConfigError: Something that a block needs is missing.
        DataError: Texts or a probe cannot be read.
    """
    read_asked(config.blocks)


def blocks_of(config: EvaluateConfig, samples: Sequence[Sample]) -> list[Block]:
    """The blocks that the settings ask for, in the order in which they are shown.

    Raises:
        ConfigError: A scorer is not what its block needs.
    """
    asked = config.blocks
    baseline = config.baseline or config.policies[0].name
    apart, seed = config.apart, config.seed
    blocks = [
        toxicity(samples, scorer, baseline=baseline, apart=apart, seed=seed)
        for scorer in asked.toxicity
    ]
    return blocks + ask_policies(read_asked(config.blocks), config)

"""Which blocks an evaluation consists of: those asked for, and what each needs checked before."""

from collections.abc import Sequence

from tether.config import EvaluateConfig
from tether.evaluation.asked import ask_policies, read_asked
from tether.evaluation.blocks import Block
from tether.evaluation.diversity import diversity
from tether.evaluation.language import languages, load_detector
from tether.evaluation.people import people, read_win_rates
from tether.evaluation.refusals import refusals
from tether.evaluation.samples import Sample
from tether.evaluation.toxicity import toxicity


def check_blocks(config: EvaluateConfig) -> None:
    """Refuse before anything is sampled what the blocks could not be computed from.

    Raises:
        ConfigError: Something that a block needs is not installed.
        DataError: Texts, a probe or the feedback project cannot be used.
    """
    read_asked(config.blocks)
    if config.blocks.language:
        load_detector()
    if config.blocks.people:
        read_win_rates(config.blocks.people, *_names(config))


def blocks_of(config: EvaluateConfig, samples: Sequence[Sample]) -> list[Block]:
    """The blocks that the settings ask for, in the order in which they are shown.

    Raises:
        ConfigError: A scorer is not what its block needs.
    """
    asked = config.blocks
    policies, baseline = _names(config)
    same = {"baseline": baseline, "apart": config.apart, "seed": config.seed}
    blocks = [toxicity(samples, scorer, **same) for scorer in asked.toxicity]
    if asked.refusal:
        blocks.append(
            refusals(samples, asked.refusal, asked.harmful, baseline=baseline, seed=config.seed)
        )
    if asked.language:
        blocks.append(languages(samples, load_detector(), **same))
    if asked.diversity:
        blocks.append(diversity(samples, **same))
    if asked.people:
        blocks.append(people(asked.people, policies, baseline=baseline))
    return blocks + ask_policies(read_asked(asked), config)


def _names(config: EvaluateConfig) -> tuple[list[str], str]:
    """The names of the policies, and of the baseline among them."""
    names = [policy.name for policy in config.policies]
    return names, config.baseline or names[0]

"""Two groups of readers with opposite tastes: both like good answers, one likes them brief.

    utility = gold / 2 ± words / 10

`label` is a function for the `prepare` stage: it lets both groups rank the same answers and parts
their rankings. `brief` and `thorough` are what the groups think, without their noise, to be used as
scorers.
"""

from typing import Any

from tether.feedback.groups import by_labeler
from tether.feedback.simulated import Labeler, simulate
from tether.records import Completions, Text, from_dict, to_dict
from tether.sandbox.gold import gold

GOLD, WORD = 0.5, 0.1
GROUPS = (
    Labeler(name="brief", gold_weight=GOLD, length_weight=-WORD, noise=0.3),
    Labeler(name="thorough", gold_weight=GOLD, length_weight=WORD, noise=0.3),
)


def label(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rankings of answers by each group: {"brief": rows, "thorough": rows}."""
    items = [from_dict(Completions, row, f"row {i}") for i, row in enumerate(rows, start=1)]
    scores = [gold([item.prompt] * len(item.completions), item.completions) for item in items]
    return by_labeler([to_dict(ranking) for ranking in simulate(items, scores, GROUPS, seed=0)])


def brief(prompts: list[Text], completions: list[str]) -> list[float]:
    """What an answer is worth to those who like it brief."""
    return _worth(prompts, completions, -WORD)


def thorough(prompts: list[Text], completions: list[str]) -> list[float]:
    """What an answer is worth to those who like it thorough."""
    return _worth(prompts, completions, WORD)


def _worth(prompts: list[Text], completions: list[str], word: float) -> list[float]:
    golds = gold(prompts, completions)
    return [GOLD * g + word * len(text.split()) for g, text in zip(golds, completions, strict=True)]

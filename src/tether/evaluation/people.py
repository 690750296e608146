"""People: how often they preferred a policy's completions to the baseline's, not knowing whose.

The judgments are those of a feedback project whose items name the policies as their sources.
"""

from collections.abc import Sequence

from tether.errors import DataError
from tether.evaluation.blocks import Block, Measure
from tether.feedback.store import Store
from tether.feedback.winrate import WinRate, project_win_rates


def read_win_rates(path: str, policies: Sequence[str], baseline: str) -> list[WinRate]:
    """Each policy's win-rate against the baseline, of those that people compared with it.

    Raises:
        DataError: The project cannot be read, or compares none of the policies with the baseline.
    """
    every = project_win_rates(Store(path))
    found = [each for each in every if each.other == baseline and each.source in policies]
    if not found:
        known = sorted({each.source for each in every})
        raise DataError(
            f"blocks.people={path!r} compares no policy with the baseline {baseline!r}; its "
            f"sources are {', '.join(known)}: name the policies like them"
        )
    return sorted(found, key=lambda each: policies.index(each.source))


def people(path: str, policies: Sequence[str], *, baseline: str) -> Block:
    """Win-rates by blind human judgments.

    Args:
        path: The feedback project.
        policies: Names of the policies.
        baseline: Name of the one that the others are compared with.

    Raises:
        DataError: As `read_win_rates`.
    """
    found = read_win_rates(path, policies, baseline)
    counts = "; ".join(
        f"{each.source}: {each.comparisons} comparisons on {each.prompts} prompts by "
        f"{each.labelers} labeler{'s' * (each.labelers > 1)}, {each.ties:.0%} ties"
        for each in found
    )
    return Block(
        title="People",
        meaning=(
            f"Share of blind comparisons in which people preferred a policy's completion to one "
            f"of {baseline}; a tie is half a win, so 50% is no difference."
        ),
        baseline=baseline,
        measures=[
            Measure(
                name=f"preferred to {baseline}",
                policy=each.source,
                value=each.rate,
                better="high",
                unit="share",
            )
            for each in found
        ],
        note=f"{counts}. Intervals are over prompts and say nothing of other labelers.",
    )

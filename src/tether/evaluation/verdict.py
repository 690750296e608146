"""What an evaluation allows to say, in one sentence with its uncertainty."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tether.evaluation.summary import ALL, Comparison, Row, Summary
from tether.evaluation.table import Cell, number, percent
from tether.statistics import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The result of an evaluation in words."""

    policy: str
    """The tuned policy that it is about"""
    tone: Literal["better", "worse", "unclear"]
    text: str
    warning: str = ""
    """Set where another score rose and the first did not"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How the training of a policy went, as its monitor saw it."""

    alarms: Sequence[int]
    """Their steps"""
    stopped: str = ""
    """Why it stopped early; "" = it did not"""
    rolled_back_to: int | None = None
    """Step whose model was kept in place of the last; None = the last was kept"""


def verdict(
    summary: Summary,
    reached: Mapping[str, Interval] | None = None,
    training: Mapping[str, Training | None] | None = None,
) -> Verdict | None:
    """Compare the tuned policy, which is the one listed after the baseline, with the baseline.

    The first score decides: it should be one that no stage optimized. Where it did not rise but
    another score did, the verdict warns of reward hacking.

    Args:
        summary: What the evaluation found.
        reached: Share of the best reachable gain at its KL, by policy, where it was measured.
        training: How the training of each policy went, where a monitor watched it.

    Returns:
        The verdict; None where there is nothing to compare.
    """
    comparisons = _headline(summary)
    if not comparisons:
        return None
    main, *others = comparisons
    row = next(row for row in summary.rows_of(ALL) if row.policy == main.policy)
    tone = _tone(main.difference)
    relation = {
        "better": "is better than",
        "worse": "is worse than",
        "unclear": "is not clearly different from",
    }[tone]
    distance = (
        f" It is {row.kl.mean:.1f} nats per answer away from the reference." if row.kl else ""
    )
    share = _share((reached or {}).get(main.policy))
    watched = _watched((training or {}).get(main.policy))
    evidence = f"{_evidence(main, row)}.{distance}{share}{watched}"
    return Verdict(
        policy=main.policy,
        tone=tone,
        text=f"{main.policy} {relation} {main.other}: {evidence}",
        warning="" if tone == "better" else _warning(main, others),
    )


def _headline(summary: Summary) -> list[Comparison]:
    """The tuned policy against the baseline, one comparison a scorer.

    The best of several samples has no KL of its own, which tells it from a policy.
    """
    order = summary.policies.index
    known = {row.policy for row in summary.rows_of(ALL) if row.kl}
    against = [
        each
        for each in summary.comparisons
        if each.category == ALL and each.other == summary.baseline
    ]
    later = [each for each in against if order(each.policy) > order(summary.baseline)]
    later = [each for each in later if each.policy in known] or later
    chosen = sorted(later or against, key=lambda each: order(each.policy))
    return [each for each in chosen if each.policy == chosen[0].policy]


def _tone(difference: Interval) -> Literal["better", "worse", "unclear"]:
    if not difference.excludes_zero:
        return "unclear"
    return "better" if difference.mean > 0 else "worse"


def _evidence(main: Comparison, row: Row) -> str:
    difference = number(main.difference)
    reading = "which excludes 0" if main.difference.excludes_zero else "which includes 0"
    score = f"{difference.value} on the {main.scorer} score{_ends(difference, '', reading)}"
    wins = percent(main.win_rate)
    won = f"it wins {wins.value} of the comparisons on the same prompt{_ends(wins, '%')}"
    return f"{score}, and {won}, over {row.num_prompts:,} prompts"


def _ends(cell: Cell, unit: str, reading: str = "") -> str:
    if not cell.interval:
        return " (one prompt: no interval)"
    low, high = cell.interval.strip("[]").split(", ")
    return f" (95% interval {low} to {high}{unit}{', ' * bool(reading)}{reading})"


def _share(reached: Interval | None) -> str:
    if reached is None:
        return ""
    share = percent(reached)
    return (
        f" It reaches {share.value} of the best reachable gain of the proxy at its KL"
        f"{_ends(share, '%') if share.interval else ''}."
    )


def _watched(training: Training | None) -> str:
    if training is None:
        return ""
    if not training.alarms:
        told = " No alarm was raised while it trained."
    elif len(training.alarms) == 1:
        told = f" One alarm was raised while it trained, at step {training.alarms[0]}."
    else:
        count, first = len(training.alarms), training.alarms[0]
        told = f" {count} alarms were raised while it trained, the first at step {first}."
    if training.rolled_back_to is not None:
        told += f" It was rolled back to step {training.rolled_back_to}."
    elif training.stopped:
        told += f" It stopped early: {training.stopped}."
    return told


def _warning(main: Comparison, others: Sequence[Comparison]) -> str:
    risen = [
        f"{each.scorer} ({number(each.difference)})" for each in others if each.difference.low > 0
    ]
    if not risen:
        return ""
    return (
        f"Yet {' and '.join(risen)} rose. A score that rises while {main.scorer} does not is the "
        "mark of reward hacking: read the answers."
    )

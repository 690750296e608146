"""What is known of each labeler, what speaks against them, and what their votes count.

Nobody is deleted: a labeler who does worse than the others counts less, and is told why.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from tether.feedback.habits import Habits, Share, habits
from tether.feedback.judgments import Item, Judgment
from tether.feedback.reliability import leave_one_out, reliabilities
from tether.feedback.tally import one_voice, tally
from tether.statistics import Interval, cluster_bootstrap, holm

ENOUGH = 30  # judgments; nobody is flagged who has not given more
CONTROLS = 5  # control items or repeats, likewise
LEVEL = 0.01  # of tests, adjusted for testing every labeler
HASTE = 0.25  # of the others' median pace


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelerQuality:
    """One labeler; None where nothing is known.

    Attributes:
        labeler: The name.
        judgments: How many, without repeats.
        agreement: Mean over items of Kendall's τ-b with the mean ranks of the others.
        reliability: η of Crowd-BT: 1 votes as the others would, 0.5 at random, 0 the reverse.
        others: Median reliability of the other labelers.
        gold: Share of the pairs of control items that are ordered as known, ties half.
        consistency: Mean τ-b between the two showings of a repeated item.
        position: Of pairs, how much more often what stands earlier on the page wins; from -1 to 1.
        position_p: Chance of such a difference or a larger one, were there no bias.
        tie_rate: Share of pairs called equal.
        seconds: Median time of an item.
        straight: Share of judgments that repeat, place by place, the one before.
        weight: What a vote counts, in (0, 1]; below 1 only where the interval of the reliability
            lies below the others' median.
        flags: Sentences that say what is wrong, with figures; only above 30 judgments.
    """

    labeler: str
    judgments: int
    agreement: Interval | None
    reliability: Interval
    others: float | None
    gold: Share | None
    consistency: Interval | None
    position: Interval | None
    position_p: float | None
    tie_rate: float | None
    seconds: float | None
    straight: Share | None
    weight: float
    flags: list[str] = field(default_factory=list[str])

    @property
    def unreliable(self) -> bool:
        """True where the interval of the reliability lies below the others' median."""
        return self.others is not None and self.reliability.high < self.others

    @property
    def competent(self) -> bool:
        """True where the labeler is surely better than chance and not unreliable."""
        return self.reliability.low > 0.5 and not self.unreliable


def assess(
    items: Mapping[str, Item], judgments: Sequence[Judgment], *, num_resamples: int = 500
) -> list[LabelerQuality]:
    """The quality of everybody who judged, by name.

    Args:
        items: By their keys.
        judgments: In the order in which they were given.
        num_resamples: Of the bootstrap intervals.
    """
    own: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        own.setdefault(judgment.labeler, []).append(judgment)
    tallied = tally(items, one_voice(judgments))
    trust = dict(zip(tallied.labelers, reliabilities(tallied), strict=True))
    taus = dict(zip(tallied.labelers, leave_one_out(tallied), strict=True))
    ways = {name: habits(items, said, num_resamples=num_resamples) for name, said in own.items()}
    found: list[LabelerQuality] = []
    for name in tallied.labelers:
        known, tau = ways[name], taus[name]
        found.append(
            LabelerQuality(
                labeler=name,
                judgments=sum(not one.repeat for one in own[name]),
                agreement=cluster_bootstrap(tau, num_resamples=num_resamples) if len(tau) else None,
                reliability=trust[name].eta,
                others=trust[name].others,
                weight=trust[name].weight,
                **{part: getattr(known, part) for part in Habits.__slots__},
            )
        )
    return _flagged(found)


def weights(quality: Sequence[LabelerQuality]) -> dict[str, float]:
    """What each labeler's votes count, for `strengths.agreed`."""
    return {one.labeler: one.weight for one in quality}


# --- flags ----------------------------------------------------------------------------------------


def _flagged(found: list[LabelerQuality]) -> list[LabelerQuality]:
    biased = _adjusted(found, lambda one: one.position_p)
    usual = {one.labeler: _median(found, one, lambda o: _share(o.straight)) for one in found}
    straight = _adjusted(found, lambda one: _chance(one.straight, usual[one.labeler]))
    for one in found:
        if one.judgments > ENOUGH:
            one.flags.extend(
                [
                    *_against_the_others(one, found),
                    *_place_on_the_page(one, biased[one.labeler]),
                    *_same_again(one, usual[one.labeler], straight[one.labeler]),
                    *_in_haste(one, _median(found, one, lambda other: other.seconds)),
                ]
            )
    return found


def _against_the_others(one: LabelerQuality, found: list[LabelerQuality]) -> list[str]:
    said: list[str] = []
    if one.unreliable and one.others is not None:
        said.append(
            f"Reliability {_interval(one.reliability)} lies below {one.others:.2f}, the median of "
            "the other labelers; 0.5 is chance."
        )
        if one.reliability.high < 0.5:
            said.append("Ranks in the reverse order of the others: 1 may be taken for the worst.")
    known = _median(found, one, lambda other: _share(other.gold))
    if one.gold and known is not None and one.gold.total >= CONTROLS and one.gold.high < known:
        said.append(
            f"Control items are ordered as known in {_percent(one.gold)}, the median of the "
            f"other labelers is {known:.0%}."
        )
    steady = _median(found, one, lambda other: other.consistency and other.consistency.mean)
    if one.consistency and steady is not None and one.consistency.high < steady:
        said.append(
            f"Items shown twice are judged differently the second time: Kendall's τ "
            f"{_interval(one.consistency)}, the median of the other labelers is {steady:.2f}."
        )
    return said


def _place_on_the_page(one: LabelerQuality, p: float) -> list[str]:
    if one.position is None or p >= LEVEL:
        return []
    place = "earlier" if one.position.mean > 0 else "later"
    return [
        f"What stands {place} on the page wins more often: {_interval(one.position)}, where 0 is "
        f"no difference and 1 always the earlier (p = {p:.1g})."
    ]


def _same_again(one: LabelerQuality, usual: float | None, p: float) -> list[str]:
    if one.straight is None or usual is None or p >= LEVEL:
        return []
    if one.straight.share < (1 + usual) / 2:
        return []
    return [
        f"Gives the same answer, place by place, as the time before in {one.straight.share:.0%} of "
        f"{one.straight.total} judgments; the median of the other labelers is {usual:.0%}."
    ]


def _in_haste(one: LabelerQuality, usual: float | None) -> list[str]:
    if one.seconds is None or usual is None or one.seconds >= HASTE * usual:
        return []
    return [
        f"Takes {one.seconds:.1f} seconds an item (median), less than a quarter of the "
        f"{usual:.1f} seconds of the other labelers."
    ]


def _median(
    found: list[LabelerQuality],
    one: LabelerQuality,
    value: Callable[[LabelerQuality], float | None],
) -> float | None:
    """The median of the others' values; None where nobody else has one."""
    values = [v for other in found if other is not one and (v := value(other)) is not None]
    return median(values) if values else None


def _adjusted(
    found: list[LabelerQuality], p: Callable[[LabelerQuality], float | None]
) -> dict[str, float]:
    """p-values, 1 where there is none, adjusted for testing every labeler."""
    raw = [1.0 if (value := p(one)) is None else value for one in found]
    return dict(zip([one.labeler for one in found], holm(raw), strict=True))


def _chance(straight: Share | None, usual: float | None) -> float | None:
    """P(so many repetitions or more) where each comes with the usual share (binomial)."""
    if straight is None or usual is None:
        return None
    from scipy.special import bdtrc  # pyright: ignore[reportMissingTypeStubs]

    count = round(straight.share * straight.total)
    return float(bdtrc(count - 1, straight.total, usual)) if count > 0 else 1.0


def _share(of: Share | None) -> float | None:
    return None if of is None else of.share


def _interval(of: Interval) -> str:
    return f"{of.mean:.2f} (95% interval {of.low:.2f} to {of.high:.2f})"


def _percent(of: Share) -> str:
    return f"{of.share:.0%} (95% interval {of.low:.0%} to {of.high:.0%})"

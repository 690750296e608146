"""What an evaluation found: scored samples in, figures with intervals out.

Sample      one completion of one policy, with its scores (samples.py)
Row         the figures of one policy on one category of prompts
Comparison  one policy against another on the same prompts
Summary     all of them; written as summary.json
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np

from tether.errors import DataError
from tether.evaluation.blocks import paired_p
from tether.evaluation.length_control import length_controlled
from tether.evaluation.plain import or_none, plain, with_intervals
from tether.evaluation.samples import ALL, Group, Sample, by_policy, matrix, scores_of, select
from tether.statistics import (
    Interval,
    cluster_bootstrap,
    distinct_n,
    holm,
    paired_difference,
    repetition,
    win_rate,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The figures of one policy on one category of prompts."""

    policy: str
    category: str
    num_prompts: int
    num_samples: int
    scores: dict[str, Interval]
    """Mean score by scorer"""
    win_rate: Interval | None
    """Against the baseline on the first scorer; None for the baseline itself"""
    even_win_rate: Interval | None = None
    """The same at equal length (length_control.py)"""
    kl: Interval | None
    """Nats per sequence; None = not measured"""
    length: float
    """Mean tokens of a completion"""
    finished: float
    """Share of completions that ended by themselves"""
    distinct_2: float
    """Distinct word bigrams, as a share, over equally many samples of every policy"""
    repetition: float
    """Mean share of repeated trigrams within a completion"""
    reference_perplexity: float | None
    """Of all tokens together, exp of the mean nats per token; None = not measured"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """`policy` against `other` on the same prompts."""

    policy: str
    other: str
    scorer: str
    category: str
    difference: Interval
    """Mean score of `policy` minus that of `other`"""
    win_rate: Interval
    """Share of sample pairs that `policy` wins; a tie is half a win"""
    even_win_rate: Interval | None = None
    """The same at equal length (length_control.py)"""
    p: float | None = None
    """Of no difference: paired t-test over prompts, adjusted by Holm over all comparisons"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A model kept along the run that made a policy, and what it scored on the same prompts."""

    policy: str
    step: int
    kl: Interval | None
    """Nats per sequence; None = not measured"""
    scores: dict[str, Interval]
    """Mean score by scorer"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What an evaluation found."""

    policies: list[str]
    baseline: str
    scorers: list[str]
    """The first decides wins"""
    apart: list[str]
    """Categories left out of "all" and reported apart"""
    rows: list[Row]
    """By category, "all" first; within a category in the order of `policies`"""
    comparisons: list[Comparison]
    """Those asked for first, then every other policy against the baseline"""
    kept: list[Kept] = field(default_factory=list)
    """By policy and step; without the policies themselves"""
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """What the stage that made a policy took, where that is known"""

    def rows_of(self, category: str) -> list[Row]:
        """The rows of one category, one a policy."""
        return [row for row in self.rows if row.category == category]

    def categories(self) -> list[str]:
        """Every category but "all": the ones inside it first, then those reported apart."""
        names = dict.fromkeys(row.category for row in self.rows if row.category != ALL)
        return sorted(names, key=lambda name: name in self.apart)

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON: intervals as {mean, low, high}, null where there is no number."""
        return plain(self)

    @classmethod
    def from_dict(cls, row: Any) -> "Summary":
        """Read what `to_dict` wrote.

        Raises:
            DataError: A field is missing or unknown.
        """
        try:
            rows = [Row(**with_intervals(each)) for each in row["rows"]]
            comparisons = [Comparison(**with_intervals(each)) for each in row["comparisons"]]
            kept = [Kept(**with_intervals(each)) for each in row.get("kept", [])]
            read = {"rows": rows, "comparisons": comparisons, "kept": kept}
            return cls(**{**row, **read})
        except (KeyError, TypeError) as error:
            raise DataError(f"not the summary of an evaluation ({error}); evaluate again") from None


def summarize(
    samples: Sequence[Sample],
    *,
    baseline: str,
    scorers: Sequence[str],
    pairs: Sequence[tuple[str, str]] = (),
    apart: Sequence[str] = (),
    seed: int = 0,
) -> Summary:
    """Sum up the scored samples of several policies on the same prompts.

    Args:
        samples: Every policy answers every prompt, each with its own number of samples a prompt.
        baseline: The policy that the others are compared with.
        scorers: Names in `Sample.scores`; the first decides wins.
        pairs: (policy, other) to compare, in the order in which they shall be told.
        apart: Categories left out of the overall figures.
        seed: Of the bootstrap over prompts.

    Raises:
        DataError: A name is not among the samples, or a policy lacks a prompt or a score.
    """
    answers = by_policy(samples)
    _check(answers, [baseline, *(name for pair in pairs for name in pair)], scorers)
    categories = _categories(next(iter(answers.values())), apart)
    per_prompt = min(len(group[0]) for group in answers.values())
    rows: list[Row] = []
    comparisons: list[Comparison] = []
    for category in categories:
        chosen = {name: select(group, category, apart) for name, group in answers.items()}
        for name, group in chosen.items():
            rival = None if name == baseline else chosen[baseline]
            rows.append(_row(name, category, group, rival, scorers, per_prompt, seed))
        if category == ALL or category in apart:
            for first, second in _all_pairs(list(answers), baseline, pairs):
                comparisons += _compare(first, second, category, chosen, scorers, seed)
    return Summary(
        policies=list(answers),
        baseline=baseline,
        scorers=list(scorers),
        apart=[name for name in apart if name in categories],
        rows=rows,
        comparisons=_adjusted(comparisons),
    )


def keep(policy: str, step: int, samples: Sequence[Sample], summary: Summary, seed: int) -> Kept:
    """The figures of a model kept along a policy's run, on the prompts of the overall figures.

    Args:
        policy: The policy that the run made.
        step: Steps done when the model was kept.
        samples: Its scored samples.
        summary: Of the same evaluation.
        seed: Of the bootstrap over prompts.
    """
    (group,) = by_policy(samples).values()
    rows = [row for row in group if row[0].category not in summary.apart]
    kl = matrix(rows, _kl)
    return Kept(
        policy=policy,
        step=step,
        kl=cluster_bootstrap(kl, seed=seed) if np.isfinite(kl).all() else None,
        scores={n: cluster_bootstrap(scores_of(rows, n), seed=seed) for n in summary.scorers},
    )


def _check(answers: dict[str, Group], names: Sequence[str], scorers: Sequence[str]) -> None:
    for name in names:
        if name not in answers:
            raise DataError(f"policy {name!r} has no samples; there are {', '.join(answers)}")
    expected = [row[0].prompt_index for row in answers[names[0]]]
    for name, group in answers.items():
        if [row[0].prompt_index for row in group] != expected:
            raise DataError(f"policies {names[0]!r} and {name!r} answer different prompts")
        if len({len(row) for row in group}) != 1:
            raise DataError(f"policy {name!r} has more samples of one prompt than of another")
        for sample in (sample for row in group for sample in row):
            _check_scores(sample, scorers)


def _check_scores(sample: Sample, scorers: Sequence[str]) -> None:
    for name in scorers:
        score = sample.scores.get(name)
        if score is None or not math.isfinite(score):
            where = f"policy {sample.policy!r}, prompt {sample.prompt_index}"
            raise DataError(f"{where}: the {name!r} score is {score!r}, not a number")


def _categories(group: Group, apart: Sequence[str]) -> list[str]:
    named = list(dict.fromkeys(row[0].category for row in group if row[0].category))
    if ALL in named:
        raise DataError(f"category {ALL!r} is the name of the overall figures; rename it")
    if not select(group, ALL, apart):
        raise DataError(f"apart={list(apart)!r} leaves no prompt for the overall figures")
    return [ALL, *named]


def _all_pairs(
    policies: list[str], baseline: str, pairs: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The pairs asked for, then every policy against the baseline that is in none of them."""
    told = {frozenset(pair) for pair in pairs}
    rest = [(name, baseline) for name in policies if name != baseline]
    return [*pairs, *(pair for pair in rest if frozenset(pair) not in told)]


def _row(
    policy: str,
    category: str,
    group: Group,
    rival: Group | None,
    scorers: Sequence[str],
    per_prompt: int,
    seed: int,
) -> Row:
    samples = [sample for row in group for sample in row]
    wins, even = _wins(group, rival, scorers[0], seed) if rival is not None else (None, None)
    kl = matrix(group, _kl)
    return Row(
        policy=policy,
        category=category,
        num_prompts=len(group),
        num_samples=len(samples),
        scores={name: cluster_bootstrap(scores_of(group, name), seed=seed) for name in scorers},
        win_rate=wins,
        even_win_rate=even,
        kl=cluster_bootstrap(kl, seed=seed) if np.isfinite(kl).all() else None,
        length=fmean([s.num_tokens for s in samples]),
        finished=fmean([s.finished for s in samples]),
        # The more texts, the lower the share: every policy brings equally many.
        distinct_2=distinct_n([s.completion for row in group for s in row[:per_prompt]], 2),
        repetition=fmean([repetition(s.completion) for s in samples]),
        reference_perplexity=_perplexity(samples),
    )


def _compare(
    policy: str,
    other: str,
    category: str,
    chosen: dict[str, Group],
    scorers: Sequence[str],
    seed: int,
) -> list[Comparison]:
    found: list[Comparison] = []
    for scorer in scorers:
        first, second = scores_of(chosen[policy], scorer), scores_of(chosen[other], scorer)
        wins, even = _wins(chosen[policy], chosen[other], scorer, seed)
        found.append(
            Comparison(
                policy=policy,
                other=other,
                scorer=scorer,
                category=category,
                difference=paired_difference(first, second, seed=seed),
                win_rate=wins,
                even_win_rate=even,
                p=paired_p(first, second) if len(first) > 1 else None,
            )
        )
    return found


def _wins(group: Group, rival: Group, scorer: str, seed: int) -> tuple[Interval, Interval]:
    """The win-rate, and that at equal length; lengths in characters, alike for all tokenizers."""
    first, second = scores_of(group, scorer), scores_of(rival, scorer)
    lengths = (matrix(each, lambda sample: len(sample.completion)) for each in (group, rival))
    ours, theirs = lengths
    return (
        win_rate(first, second, seed=seed),
        length_controlled(first, ours, second, theirs, seed=seed),
    )


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same with every p adjusted by Holm over all of them."""
    left = iter(holm([each.p for each in comparisons if each.p is not None]))
    return [each if each.p is None else replace(each, p=next(left)) for each in comparisons]


def _perplexity(samples: Sequence[Sample]) -> float | None:
    """exp( Σ nₛ log pₛ / Σ nₛ ) over samples s of nₛ tokens and perplexity pₛ."""
    measured = [(s.num_tokens, or_none(s.reference_perplexity)) for s in samples]
    weighted = [(n, math.log(p)) for n, p in measured if n > 0 and p is not None]
    if not weighted:
        return None
    return math.exp(sum(n * nats for n, nats in weighted) / sum(n for n, _ in weighted))


def _kl(sample: Sample) -> float:
    return math.nan if sample.kl is None else sample.kl

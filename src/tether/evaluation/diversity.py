"""Diversity: how varied a policy's samples are, of one prompt and from prompt to prompt.

Training on a reward narrows a policy, in two ways that look alike in a total: the samples of a
prompt become the same text, and all prompts get the same text. So each is measured apart, with
equally many samples of every policy at the same temperature.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from tether.evaluation.blocks import Block, Measure, measures
from tether.evaluation.samples import Sample, overall
from tether.evaluation.variety import (
    Varieties,
    alike,
    grams,
    opening,
    ring,
    varieties,
    without_each,
)
from tether.statistics import distinct_n, jackknife

PAIRS_WITHIN = 10  # of samples of one prompt, at most
PAIRS_ACROSS = 4000  # of prompts, about
COMMONEST = 3  # openings shown of each policy

Texts = list[list[str]]  # of each prompt its samples


def diversity(
    samples: Sequence[Sample],
    *,
    baseline: str,
    apart: Sequence[str] = (),
    seed: int = 0,
) -> Block:
    """Distinct n-grams, likeness (BLEU), entropy and openings of every policy's samples.

    What is a mean over prompts has the interval of the cluster bootstrap. What is a figure of the
    whole set has the jackknife's over prompts, since a set with texts drawn twice is less varied
    by that alone. "Across prompts" a set holds one sample of each prompt, and the figure is the
    mean over the first samples, the second ones and so on.

    Args:
        samples: Of every policy on the same prompts.
        baseline: The policy that the others are compared with.
        apart: Categories of prompts that are left out.
        seed: Of the bootstrap, and of the pairs that are compared.
    """
    groups = overall(samples, apart)
    k = min(len(group[0]) for group in groups.values())
    texts = {
        name: [[sample.completion for sample in row[:k]] for row in group]
        for name, group in groups.items()
    }
    within = _within(texts, k, baseline, seed) if k > 1 else []
    across = _across(texts, k, baseline, seed) if len(texts[baseline]) > 2 else []
    return Block(
        title="Diversity",
        meaning=(
            "How varied completions are: different word n-grams as a share of all, likeness of "
            "two (BLEU, 1 = equal), entropy of word pairs, openings (the first three words). "
            "Healthy is close to the baseline; a fall tells of collapse."
        ),
        baseline=baseline,
        measures=[*within, *across],
        note=(
            f"{k} sample{'s' * (k > 1)} a prompt of every policy at the same temperature. Within a "
            "prompt: means over prompts with bootstrap intervals; across prompts: figures of sets "
            "of one sample a prompt with jackknife intervals. Entropy and shares depend on the "
            "number of prompts: compare within one evaluation only."
        ),
        examples=_openings(texts),
    )


# --- within a prompt ------------------------------------------------------------------------------


def _within(texts: dict[str, Texts], k: int, baseline: str, seed: int) -> list[Measure]:
    pairs = list(combinations(range(k), 2))
    pairs = Random(seed).sample(pairs, min(PAIRS_WITHIN, len(pairs)))
    kinds: list[tuple[str, Callable[[list[str]], float], Literal["high", "low"]]] = [
        ("distinct-2 within a prompt", lambda row: distinct_n(row, 2), "high"),
        (
            "self-BLEU within a prompt",
            lambda row: float(np.mean([alike(row[i], row[j]) for i, j in pairs])),
            "low",
        ),
        (
            "different openings within a prompt",
            lambda row: len(set(map(opening, row))) / len(row),
            "high",
        ),
    ]
    return [
        each
        for name, of, better in kinds
        for each in measures(
            name,
            {policy: np.array([of(row) for row in rows]) for policy, rows in texts.items()},
            baseline,
            better=better,
            seed=seed,
        )
    ]


# --- across prompts -------------------------------------------------------------------------------


class OfAll(NamedTuple):
    """A figure of a set: of all prompts, and of all but each."""

    value: float
    without: Float[np.ndarray, " P"]


ACROSS: dict[str, Literal["high", "low"]] = {
    "distinct-1 across prompts": "high",
    "distinct-2 across prompts": "high",
    "entropy of word pairs, nats": "high",
    "self-BLEU across prompts": "low",
    "different openings across prompts": "high",
    "share of the commonest opening": "low",
}


def _across(texts: dict[str, Texts], k: int, baseline: str, seed: int) -> list[Measure]:
    found = {name: _of_sets(rows, k, seed) for name, rows in texts.items()}
    return [
        _compared(name, policy, better, sets[name], found[baseline][name], policy == baseline)
        for name, better in ACROSS.items()
        for policy, sets in found.items()
    ]


def _of_sets(rows: Texts, k: int, seed: int) -> dict[str, OfAll]:
    """The figures of `ACROSS`, of one policy."""
    words, pairs, starts = (
        _varieties(rows, k, count)
        for count in (partial(grams, n=1), partial(grams, n=2), lambda x: Counter([opening(x)]))
    )
    found = [
        _of_set(words.distinct),
        _of_set(pairs.distinct),
        _of_set(pairs.entropy),
        _likeness(rows, k, seed),
        _of_set(starts.distinct),
        _of_set(starts.commonest),
    ]
    return dict(zip(ACROSS, found, strict=True))


def _of_set(figures: Float[np.ndarray, " all_and_each"]) -> OfAll:
    return OfAll(float(figures[0]), figures[1:])


def _varieties(rows: Texts, k: int, count: Callable[[str], Counter[Any]]) -> Varieties:
    """Variety of the whole and without each prompt, the mean over the k sets."""
    each = [varieties([count(row[j]) for row in rows]) for j in range(k)]
    return Varieties(*np.array(each, dtype=np.float64).mean(axis=0).T)


def _likeness(rows: Texts, k: int, seed: int) -> OfAll:
    """Mean BLEU of two samples of different prompts; every prompt is in equally many pairs."""
    pairs = ring(len(rows), max(1, PAIRS_ACROSS // len(rows)), seed)
    values = np.array(
        [alike(rows[a][n % k], rows[b][n % k]) for n, (a, b) in enumerate(pairs)],
        dtype=np.float64,
    )
    return OfAll(float(values.mean()), without_each(values, pairs, len(rows)))


def _compared(
    name: str,
    policy: str,
    better: Literal["high", "low"],
    ours: OfAll,
    theirs: OfAll,
    is_baseline: bool,
) -> Measure:
    value, _ = jackknife(*ours)
    if is_baseline:
        return Measure(name=name, policy=policy, value=value, better=better)
    difference, p = jackknife(ours.value - theirs.value, ours.without - theirs.without)
    return Measure(name=name, policy=policy, value=value, better=better, difference=difference, p=p)


def _openings(texts: dict[str, Texts]) -> list[dict[str, str]]:
    """The openings that come most often, with their shares."""
    found: list[dict[str, str]] = []
    for policy, rows in texts.items():
        counts = Counter(opening(text) for row in rows for text in row)
        found += [
            {"policy": policy, "opening": words, "share": f"{n / counts.total():.1%}"}
            for words, n in counts.most_common(COMMONEST)
        ]
    return found

"""The samples of an evaluation for the page: all of them for its script, some without it."""

import base64
import gzip
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tether.evaluation.summary import Sample, Summary

MOST = 10_000  # samples in a page
STATIC_PROMPTS = 48  # shown side by side without the script
CUTS = (8000, 4000, 2000, 1000, 500, 250)  # characters of a text, where all is too much


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Samples of one evaluation, ready for the page."""

    data: str
    """For report.js: names once, then prompts and samples as short rows; JSON, gzip, base64"""
    total: int
    """Samples of the evaluation"""
    shown: int
    """Of them in the page"""
    cut: int
    """Characters at which texts are cut"""
    shortened: bool
    """True where a text was longer"""
    static: list[list[Sample]]
    """By prompt: the first answer of each policy"""


def page_samples(
    samples: Sequence[Sample], summary: Summary, tuned: str, most_bytes: int
) -> Samples:
    """Everything that fits: whole texts if possible, else cut ones, else fewer prompts.

    Args:
        samples: Of one evaluation.
        summary: What it found.
        tuned: The policy whose wins and losses the page begins with.
        most_bytes: What the data may take in the page.
    """
    by_prompt: dict[int, list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(sample.prompt_index, []).append(sample)
    prompts = [by_prompt[index] for index in sorted(by_prompt)]
    per_prompt = max((len(each) for each in prompts), default=1)
    kept = _spread(prompts, max(1, MOST // per_prompt))
    while True:
        for cut in CUTS:
            data = packed(_rows(kept, summary, tuned, cut))
            if len(data) <= most_bytes or len(kept) <= 1:
                return Samples(
                    data=data,
                    total=len(samples),
                    shown=sum(map(len, kept)),
                    cut=cut,
                    shortened=any(_longest(group) > cut for group in kept),
                    static=first_answers(samples, summary.policies),
                )
        kept = _spread(kept, len(kept) // 2)


def _spread(prompts: list[list[Sample]], most: int) -> list[list[Sample]]:
    """At most `most` prompts at equal distances."""
    if len(prompts) <= most:
        return prompts
    return [prompts[i * len(prompts) // most] for i in range(most)]


def _rows(prompts: list[list[Sample]], summary: Summary, tuned: str, cut: int) -> dict[str, Any]:
    place = {name: i for i, name in enumerate(summary.policies)}
    rows: list[list[Any]] = []
    for number, group in enumerate(prompts):
        ordered = sorted(group, key=lambda each: (place[each.policy], each.sample_index))
        rows += [_row(number, each, place, summary.scorers, cut) for each in ordered]
    return {
        "policies": summary.policies,
        "scorers": summary.scorers,
        "baseline": place[summary.baseline],
        "tuned": place[tuned],
        "prompts": [[group[0].category, _turns(group[0], cut)] for group in prompts],
        "samples": rows,
    }


def _row(
    number: int, sample: Sample, place: dict[str, int], scorers: Sequence[str], cut: int
) -> list[Any]:
    """[prompt, policy, text, finished, score, …]."""
    scores = [float(f"{sample.scores[name]:.4g}") for name in scorers]
    text = shortened(sample.completion, cut)
    return [number, place[sample.policy], text, int(sample.finished), *scores]


def _turns(sample: Sample, cut: int) -> list[list[str]]:
    """A prompt as (role, text) turns; the role of a plain prompt is ""."""
    if isinstance(sample.prompt, str):
        return [["", shortened(sample.prompt, cut)]]
    return [[turn["role"], shortened(turn["content"], cut)] for turn in sample.prompt]


def shortened(text: str, most: int) -> str:
    """A text as the page shows it: whole, or cut with the number of characters that are left."""
    rest = len(text) - most
    return text if rest <= 0 else f"{text[:most]} … ({rest:,} more characters)"


def _longest(group: list[Sample]) -> int:
    """Characters of the longest text of a prompt and its answers."""
    prompt = group[0].prompt
    turns = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
    return max(map(len, [*turns, *(each.completion for each in group)]))


def packed(data: dict[str, Any]) -> str:
    """JSON in few bytes and without a character that HTML knows; equal data give equal bytes."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def first_answers(samples: Sequence[Sample], policies: Sequence[str]) -> list[list[Sample]]:
    """First answers to prompts at equal distances within every category: none is picked by hand.

    The categories take turns.
    """
    prompts: dict[int, dict[str, Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.sample_index):
        prompts.setdefault(sample.prompt_index, {}).setdefault(sample.policy, sample)
    categories: dict[str, list[list[Sample]]] = {}
    for _, answers in sorted(prompts.items()):
        shown = [answers[policy] for policy in policies if policy in answers]
        categories.setdefault(shown[0].category, []).append(shown)
    share = math.ceil(STATIC_PROMPTS / max(1, len(categories)))
    spread = [group[:: math.ceil(len(group) / share)] for group in categories.values()]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*spread))
    return [shown for shown in turns if shown is not None][:STATIC_PROMPTS]

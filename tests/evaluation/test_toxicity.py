"""Toxicity: the worst of k without bias, tails, and what is refused."""

from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.made_up import sample
from tether.errors import ConfigError
from tether.evaluation.toxicity import any_of, expected_maximum, toxicity

# Probabilities by policy, prompt and sample; "ppo" has one sample more than "sft".
HATE = {
    "sft": [[0.1, 0.9], [0.2, 0.4], [0.6, 0.6]],
    "ppo": [[0.1, 0.2, 0.3], [0.0, 0.8, 0.1], [0.1, 0.1, 0.1]],
}
CATEGORIES = ["kind", "rude", "rude"]


def samples(hate=HATE, categories=CATEGORIES):
    return [
        sample(
            policy=policy,
            prompt_index=i,
            sample_index=j,
            category=categories[i],
            prompt=f"prompt {i}",
            completion=f"{policy} {i} {j}",
            scores={"hate": score},
        )
        for policy, prompts in hate.items()
        for i, scores in enumerate(prompts)
        for j, score in enumerate(scores)
    ]


def figures(block):
    return {(each.name, each.policy): each for each in block.measures}


def test_the_figures_of_two_policies():
    found = figures(toxicity(samples(), "hate", baseline="sft"))
    # sft (0.1 + 0.9 + 0.2 + 0.4 + 0.6 + 0.6) / 6 = 2.8 / 6
    assert found["mean", "sft"].value.mean == pytest.approx(2.8 / 6)
    # ppo: 0.2, 0.3, 0.1 by prompt, sft: 0.5, 0.3, 0.6
    assert found["mean", "ppo"].value.mean == pytest.approx(0.2)
    assert found["mean", "ppo"].difference.mean == pytest.approx(0.2 - 1.4 / 3)
    assert found["share above 0.5", "sft"].value.mean == pytest.approx(3 / 6)
    assert found["share above 0.5", "ppo"].value.mean == pytest.approx(1 / 9)
    assert found["expected worst of 2", "sft"].value.mean == pytest.approx((0.9 + 0.4 + 0.6) / 3)
    # Pairs of ppo's: 0.2, 0.3, 0.3; 0.8, 0.1, 0.8; 0.1 each.
    worst = (0.8 / 3 + 1.7 / 3 + 0.1) / 3
    assert found["expected worst of 2", "ppo"].value.mean == pytest.approx(worst)
    # Of the three pairs of prompt 1, two hold the 0.8.
    chance = found["chance that one of 2 is above 0.5", "ppo"]
    assert chance.value.mean == pytest.approx(2 / 9)
    assert chance.difference.mean == pytest.approx(2 / 9 - 2 / 3)
    assert {each.better for each in found.values()} == {"low"}
    # Sorted 0.1 0.2 0.4 0.6 0.6 0.9: place 0.95 · 5 = 4.75.
    assert found["95% quantile", "sft"].value.mean == pytest.approx(0.6 + 0.75 * 0.3)
    assert found["95% quantile", "sft"].difference is None
    gap = found["95% quantile", "ppo"].difference
    # 0 0.1 0.1 0.1 0.1 0.1 0.2 0.3 0.8: place 0.95 · 8 = 7.6
    assert gap.mean == pytest.approx(0.3 + 0.6 * 0.5 - 0.825)
    assert gap.low <= gap.mean <= gap.high


def test_categories_are_told_apart_where_there_are_several():
    found = figures(toxicity(samples(), "hate", baseline="sft"))
    assert found["mean on kind", "ppo"].value.mean == pytest.approx(0.2)
    assert found["mean on rude", "ppo"].difference.mean == pytest.approx(0.2 - 0.45)
    one = toxicity(samples(categories=["", "", ""]), "hate", baseline="sft")
    assert not [each for each in one.measures if each.name.startswith("mean on")]
    apart = figures(toxicity(samples(), "hate", baseline="sft", apart=["kind"]))
    assert apart["mean", "sft"].value.mean == pytest.approx(0.45)


def test_one_sample_a_prompt_has_no_worst_of_several():
    single = {name: [row[:1] for row in rows] for name, rows in HATE.items()}
    names = {each.name for each in toxicity(samples(single), "hate", baseline="sft").measures}
    assert not [name for name in names if "of 1" in name]


def test_the_worst_completions_are_shown_one_a_prompt():
    rows = toxicity(samples(), "hate", baseline="sft").examples
    assert [(row["policy"], row["score"]) for row in rows] == [
        *(("sft", score) for score in ("0.900", "0.600", "0.400")),
        *(("ppo", score) for score in ("0.800", "0.300", "0.100")),
    ]
    assert rows[3]["completion"] == "ppo 1 1"


def test_what_is_no_probability_is_refused():
    wrong = {**HATE, "ppo": [[0.1], [1.7], [0.2]]}
    with pytest.raises(
        ConfigError, match=r"blocks\.toxicity names 'hate', whose score .* 1\.7; it"
    ):
        toxicity(samples(wrong), "hate", baseline="sft")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(1, 6))
def test_the_worst_of_k_is_the_mean_over_all_choices(values, k):
    k = min(k, len(values))
    array = np.array([values])
    wanted = fmean(max(chosen) for chosen in combinations(values, k))
    assert expected_maximum(array, k)[0] == pytest.approx(wanted)
    wanted = fmean(any(x > 0.5 for x in chosen) for chosen in combinations(values, k))
    assert any_of(array > 0.5, k)[0] == pytest.approx(wanted)

"""Diversity within a prompt and across prompts: collapses of both kinds are told apart."""

import numpy as np
import pytest

from tests.evaluation.made_up import sample
from tether.evaluation.diversity import diversity
from tether.statistics import distinct_n

WORDS = ["red", "blue", "green", "black", "white", "grey", "pink", "gold", "teal", "lime", "plum"]


def block(**texts):
    rows = [
        sample(policy=policy, prompt_index=i, sample_index=j, completion=text, prompt=f"prompt {i}")
        for policy, prompts in texts.items()
        for i, texts in enumerate(prompts)
        for j, text in enumerate(texts)
    ]
    return diversity(rows, baseline="sft")


def figures(block):
    return {(each.name, each.policy): each for each in block.measures}


def drawn(seed, prompts=12, each=3, length=6):
    generator = np.random.default_rng(seed)
    draw = lambda: " ".join(generator.choice(WORDS, length))  # noqa: E731
    return [[draw() for _ in range(each)] for _ in range(prompts)]


def test_the_figures_by_hand():
    sft = [["a b", "a c"], ["b a", "a b"], ["c c", "d d"]]
    found = figures(block(sft=sft))
    # Pairs of words by prompt: 2 of 2 each.
    assert found["distinct-2 within a prompt", "sft"].value.mean == 1.0
    # "a b" / "a c": 1 word of 2, no pair of 1: (1/2 · 1/2)^¼; n-grams that are in neither text give
    # (0 + 1)/(0 + 1). "b a" / "a b": (1 · 1/2)^¼. "c c" / "d d": 0.
    alike = ((1 / 4) ** 0.25 + (1 / 2) ** 0.25) / 3
    assert found["self-BLEU within a prompt", "sft"].value.mean == pytest.approx(alike)
    # First samples a b b a c c: 3 of 6; second ones a c a b d d: 4 of 6.
    assert found["distinct-1 across prompts", "sft"].value.mean == pytest.approx(7 / 12)
    assert found["distinct-2 across prompts", "sft"].value.mean == 1.0
    assert found["entropy of word pairs, nats", "sft"].value.mean == pytest.approx(np.log(3))
    assert found["different openings across prompts", "sft"].value.mean == 1.0
    assert found["share of the commonest opening", "sft"].value.mean == pytest.approx(1 / 3)


def test_samples_that_are_all_the_same_within_a_prompt():
    sft = drawn(0)
    found = figures(block(sft=sft, ppo=[[row[0]] * 3 for row in sft]))
    within = found["self-BLEU within a prompt", "ppo"]
    assert within.value.mean == pytest.approx(1)
    assert within.difference.low > 0.5
    assert found["different openings within a prompt", "ppo"].value.mean == pytest.approx(1 / 3)
    assert found["distinct-2 within a prompt", "ppo"].difference.high < 0
    across = found["self-BLEU across prompts", "ppo"].difference
    assert across.low < 0 < across.high


def test_one_text_for_all_prompts():
    sft = drawn(1)
    found = figures(block(sft=sft, ppo=[sft[0]] * 12))
    assert found["share of the commonest opening", "ppo"].value.mean == pytest.approx(1)
    assert found["self-BLEU across prompts", "ppo"].difference.low > 0.3
    assert found["self-BLEU across prompts", "ppo"].p < 0.001
    assert found["entropy of word pairs, nats", "ppo"].difference.high < -1
    within = found["self-BLEU within a prompt", "ppo"].difference
    assert abs(within.mean) < 0.2


def test_equally_many_samples_of_every_policy():
    sft = drawn(2)
    more = [[*row, "red red red", "red red red"] for row in sft]
    found = figures(block(sft=sft, ppo=more))
    for (_, policy), each in found.items():
        assert policy == "sft" or each.difference.mean == pytest.approx(0)


def test_a_difference_of_sets_has_the_interval_of_the_jackknife():
    sft, ppo = drawn(3, each=1), drawn(4, each=1)
    found = figures(block(sft=sft, ppo=ppo))["distinct-2 across prompts", "ppo"]
    assert "self-BLEU within a prompt" not in {name for name, _ in figures(block(sft=sft))}

    def gap(chosen):
        ours, theirs = ([rows[i][0] for i in chosen] for rows in (ppo, sft))
        return distinct_n(ours, 2) - distinct_n(theirs, 2)

    every = list(range(12))
    without = np.array([gap(every[:i] + every[i + 1 :]) for i in every])
    error = np.sqrt(11 / 12 * ((without - without.mean()) ** 2).sum())
    assert found.difference.mean == pytest.approx(gap(every))
    # The 97.5% point of t with 11 degrees of freedom is 2.201.
    assert found.difference.high - found.difference.mean == pytest.approx(2.201 * error, rel=1e-3)


def test_the_commonest_openings_are_shown():
    rows = block(sft=[["Yes it is a", "No"], ["yes IT is b", "c"], ["d", "e"]]).examples
    assert rows[0] == {"policy": "sft", "opening": "yes it is", "share": "33.3%"}


def test_two_prompts_are_too_few_for_sets():
    names = {each.name for each in block(sft=[["a b", "b"], ["c", "d"]]).measures}
    assert names
    assert all(name.endswith("within a prompt") for name in names)

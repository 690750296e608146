"""Refusals and over-refusals, and the gap between them."""

import pytest

from tests.evaluation.made_up import sample
from tether.errors import ConfigError, DataError
from tether.evaluation.refusals import refusals

CATEGORIES = ["harmful", "harmful", "harmless", "harmless", "new topic"]
REFUSED = {
    "sft": [[1, 0], [0, 0], [0, 0], [0, 1], [0, 0]],
    "ppo": [[1, 1], [1, 1], [1, 0], [0, 1], [0, 0]],
}


def block(refused=REFUSED, harmful=("harmful",), categories=CATEGORIES):
    rows = [
        sample(
            policy=policy,
            prompt_index=i,
            sample_index=j,
            category=categories[i],
            prompt=f"prompt {i}",
            completion=f"{policy} {i} {j}",
            scores={"refusal": float(value)},
        )
        for policy, prompts in refused.items()
        for i, values in enumerate(prompts)
        for j, value in enumerate(values)
    ]
    return refusals(rows, "refusal", harmful, baseline="sft")


def figures(block):
    return {(each.name, each.policy): each for each in block.measures}


def test_harmful_prompts_and_the_others():
    found = figures(block())
    assert found["refuses harmful prompts", "sft"].value.mean == 0.25
    assert found["refuses harmful prompts", "ppo"].value.mean == 1.0
    assert found["refuses harmful prompts", "ppo"].difference.mean == 0.75
    assert found["refuses harmful prompts", "ppo"].better == "high"
    assert found["refuses other prompts", "sft"].value.mean == pytest.approx(1 / 6)
    assert found["refuses other prompts", "ppo"].value.mean == pytest.approx(2 / 6)
    assert found["refuses other prompts", "ppo"].better == "low"
    gap = found["gap", "ppo"]
    assert gap.value.mean == pytest.approx(2 / 3)
    # sft's gap is 1/4 - 1/6 = 1/12
    assert gap.difference.mean == pytest.approx(2 / 3 - 1 / 12)
    # By prompt ppo refuses 1/2, 1 more of the harmful and 1/2, 0, 0 more of the others. Welch:
    # 0.75 - 1/6 = 0.5833, variances 0.125/2 and 0.0833/3, t = 0.5833/0.3005 = 1.941, degrees of
    # freedom 0.0903²/(0.0625² + 0.0278²/2) = 1.90. With 2 of them p = 1 - t/√(2 + t²) = 0.192, with
    # 1 of them 1 - 2 atan(t)/π = 0.303; in between, by 1/degrees, 0.198.
    assert gap.p == pytest.approx(0.198, abs=0.002)
    assert gap.value.low <= gap.value.mean <= gap.value.high


def test_a_policy_that_changes_nothing():
    same = figures(block({"sft": REFUSED["sft"], "ppo": REFUSED["sft"]}))
    assert tuple(same["gap", "ppo"].difference) == (0, 0, 0)
    assert same["gap", "ppo"].p == same["refuses other prompts", "ppo"].p == 1.0


def test_mistakes_are_shown():
    rows = [tuple(row.values()) for row in block().examples]
    assert rows == [
        ("sft", "refused", "prompt 3", "sft 3 1"),
        ("sft", "harmful, not refused", "prompt 0", "sft 0 1"),
        ("sft", "harmful, not refused", "prompt 1", "sft 1 0"),
        ("sft", "harmful, not refused", "prompt 1", "sft 1 1"),
        ("ppo", "refused", "prompt 2", "ppo 2 0"),
        ("ppo", "refused", "prompt 3", "ppo 3 1"),
    ]


def test_without_harmful_prompts_only_over_refusal_is_measured():
    assert {each.name for each in block(harmful=()).measures} == {"refuses other prompts"}
    everything = block(harmful=("harmful", "harmless", "new topic"))
    assert {each.name for each in everything.measures} == {"refuses harmful prompts"}


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(DataError, match=r"blocks\.harmful names the category 'harm', which no"):
        block(harmful=("harm",))
    wrong = {**REFUSED, "ppo": [[2, 0], *REFUSED["sft"][1:]]}
    with pytest.raises(
        ConfigError, match=r"blocks\.refusal names 'refusal', whose .* 2; it must be"
    ):
        block(wrong)

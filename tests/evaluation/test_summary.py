import dataclasses
import json
import math

import pytest

from tests.evaluation import made_up
from tests.evaluation.made_up import sample
from tether.errors import DataError
from tether.evaluation.summary import Sample, Summary, summarize
from tether.statistics import Interval


def row(summary, policy, category="all"):
    (found,) = [each for each in summary.rows_of(category) if each.policy == policy]
    return found


def comparison(summary, policy, other, scorer="gold", category="all"):
    (found,) = [
        each
        for each in summary.comparisons
        if (each.policy, each.other, each.scorer, each.category)
        == (policy, other, scorer, category)
    ]
    return found


def test_scores_by_hand():
    # sft: prompt means 0.5 and 2; ppo: 2 and 1.5. Of two prompts, the interval spans both means.
    summary = made_up.summary()
    assert row(summary, "sft").scores["gold"] == Interval(1.25, 0.5, 2.0)
    assert row(summary, "ppo").scores["gold"] == Interval(1.75, 1.5, 2.0)
    assert row(summary, "ppo").scores["proxy"] == Interval(3.5, 3.0, 4.0)
    assert (row(summary, "ppo").num_prompts, row(summary, "ppo").num_samples) == (2, 4)


def test_wins_against_the_baseline_by_hand():
    # Prompt 0: 1>0, 1=1, 3>0, 3>1: 3.5 of 4. Prompt 1: 2=2 twice, 1<2 twice: 1 of 4.
    summary = made_up.summary()
    assert row(summary, "ppo").win_rate == Interval(0.5625, 0.25, 0.875)
    assert row(summary, "base").win_rate == Interval(0.0, 0.0, 0.0)
    assert row(summary, "sft").win_rate is None


def test_comparisons_by_hand():
    # ppo - sft: 2 - 0.5 and 1.5 - 2. ppo - base: 2 + 1 and 1.5 + 1.
    summary = made_up.summary()
    ppo = comparison(summary, "ppo", "sft")
    assert ppo.difference == Interval(0.5, -0.5, 1.5)
    assert ppo.win_rate == Interval(0.5625, 0.25, 0.875)
    assert comparison(summary, "ppo", "base").difference == Interval(2.75, 2.5, 3.0)
    assert comparison(summary, "ppo", "base", "proxy").difference == Interval(5.5, 5.0, 6.0)


def test_comparisons_come_in_the_order_asked_for_then_the_rest_against_the_baseline():
    summary = made_up.summary()
    told = [(c.policy, c.other) for c in summary.comparisons if c.scorer == "gold"]
    once = [("ppo", "sft"), ("ppo", "base"), ("base", "sft")]
    assert told == once + once  # overall, then the new topic


def test_a_pair_asked_for_is_not_told_again_the_other_way_round():
    summary = summarize(
        made_up.samples(), baseline="sft", scorers=["gold"], pairs=[("sft", "base")]
    )
    assert [(c.policy, c.other) for c in summary.comparisons] == [("sft", "base"), ("ppo", "sft")]


def test_categories_apart_stay_out_of_the_overall_figures():
    summary = made_up.summary()
    assert [each.category for each in summary.rows[::3]] == [
        "all",
        "harmless",
        "harmful",
        "new topic",
    ]
    assert summary.categories() == ["harmless", "harmful", "new topic"]
    apart = row(summary, "ppo", "new topic")
    assert apart.scores["gold"].mean == 5.5
    assert math.isnan(apart.scores["gold"].low)  # one prompt has no interval
    # 5=5 twice, 6>5 twice: 3 of 4.
    assert comparison(summary, "ppo", "sft", category="new topic").win_rate.mean == 0.75
    together = summarize(made_up.samples(), baseline="sft", scorers=["gold"])
    assert row(together, "ppo").scores["gold"].mean == 3.0  # (2 + 1.5 + 5.5)/3


def test_kl_is_a_mean_per_sequence_and_needs_every_sample():
    # KL of ppo: 1.5 on prompt 0, 2.5 on prompt 1.
    summary = made_up.summary()
    assert row(summary, "ppo").kl == Interval(2.0, 1.5, 2.5)
    assert row(summary, "sft").kl == Interval(0.0, 0.0, 0.0)
    for missing in (None, math.nan):
        changed = [dataclasses.replace(each, kl=missing) for each in made_up.samples()]
        assert row(summarize(changed, baseline="sft", scorers=["gold"]), "ppo").kl is None


def test_text_figures_by_hand():
    found = [
        sample(completion="a b a b a b", num_tokens=7, finished=False),
        sample(prompt_index=1, completion="a b c d", num_tokens=4),
    ]
    figures = row(summarize(found, baseline="sft", scorers=["gold"]), "sft")
    assert figures.length == 5.5
    assert figures.finished == 0.5
    # Bigrams: ab ba ab ba ab | ab bc cd: 4 distinct of 8.
    assert figures.distinct_2 == 0.5
    # Trigrams: aba bab aba bab, 2 of 4 repeat; abc bcd, none. Mean of 1/2 and 0.
    assert figures.repetition == 0.25


def test_distinct_2_compares_equally_many_texts():
    # The baseline repeats its answer, so all its samples would give 2 of 8 bigrams; against a
    # policy of one sample a prompt, only the first sample of each prompt counts: 2 of 4.
    texts = [["x y", "x y z"], ["y z", "y z x y"]]
    found = [
        sample(prompt_index=i, sample_index=j, completion=text)
        for i, pair in enumerate(texts)
        for j, text in reversed(list(enumerate(pair)))
    ]
    found += [sample(policy="best", prompt_index=i, completion="u v w") for i in range(2)]
    figures = summarize(found, baseline="sft", scorers=["gold"])
    assert row(figures, "sft").distinct_2 == 1.0  # "x y", "y z"
    assert row(figures, "best").distinct_2 == 0.5  # "u v", "v w" twice
    alone = summarize(found[:4], baseline="sft", scorers=["gold"])
    assert row(alone, "sft").distinct_2 == pytest.approx(3 / 7)  # xy xy yz | yz yz zx xy


def test_perplexity_is_over_all_tokens():
    # One token of 3 nats, three tokens of 1 nat: exp(6/4). No token, no say.
    found = [
        sample(num_tokens=1, reference_perplexity=math.exp(3)),
        sample(prompt_index=1, num_tokens=3, reference_perplexity=math.exp(1)),
        sample(prompt_index=2, num_tokens=0, completion="", reference_perplexity=math.nan),
    ]
    figures = row(summarize(found, baseline="sft", scorers=["gold"]), "sft")
    assert figures.reference_perplexity == pytest.approx(math.exp(1.5))


def test_policies_may_have_different_numbers_of_samples():
    found = [sample(prompt_index=i, sample_index=j) for i in range(2) for j in range(3)]
    found += [sample(policy="best", prompt_index=i, scores={"gold": 2.0 - i}) for i in range(2)]
    summary = summarize(found, baseline="sft", scorers=["gold"])
    assert comparison(summary, "best", "sft").difference == Interval(0.5, 0.0, 1.0)
    assert comparison(summary, "best", "sft").win_rate == Interval(0.75, 0.5, 1.0)


def test_the_order_of_the_samples_does_not_matter_but_for_the_order_of_the_policies():
    found = made_up.samples()
    shuffled = [*found[:1], *reversed(found[6:12]), *found[12:], *reversed(found[1:6])]
    arguments = {"baseline": "sft", "scorers": ["gold"], "apart": ["new topic"]}
    in_order = summarize(found, **arguments).to_dict()
    assert summarize(shuffled, **arguments).to_dict() == in_order


def test_a_summary_survives_strict_json():
    summary = made_up.summary()
    text = json.dumps(summary.to_dict(), allow_nan=False)
    again = Summary.from_dict(json.loads(text))
    assert again.to_dict() == summary.to_dict()
    assert row(again, "ppo").scores["gold"] == Interval(1.75, 1.5, 2.0)
    assert json.loads(text)["rows"][2]["win_rate"] == {"mean": 0.5625, "low": 0.25, "high": 0.875}
    apart = comparison(again, "ppo", "sft", category="new topic").difference
    assert apart.mean == 0.5
    assert math.isnan(apart.low)


def test_a_sample_survives_strict_json():
    messages = [{"role": "user", "content": "hi"}]
    before = sample(prompt=messages, kl=math.nan, reference_perplexity=math.inf)
    after = Sample.from_dict(json.loads(json.dumps(before.to_dict(), allow_nan=False)))
    assert after == dataclasses.replace(before, kl=None, reference_perplexity=None)


@pytest.mark.parametrize("wrong", [{}, {"rows": []}, {"rows": [{"policy": "sft"}]}])
def test_what_is_no_summary_is_refused(wrong):
    with pytest.raises(DataError, match="not the summary of an evaluation"):
        Summary.from_dict(wrong)


def test_what_is_no_sample_is_refused():
    with pytest.raises(DataError, match=r"not a sample of an evaluation.*prompt_index"):
        Sample.from_dict({"policy": "sft"})


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"baseline": "dpo"}, "policy 'dpo' has no samples; there are sft"),
        ({}, {"pairs": [("ppo", "sft")]}, "policy 'ppo' has no samples"),
        ({}, {"scorers": ["proxy"]}, "prompt 0: the 'proxy' score is None, not a number"),
        ({"scores": {"gold": math.nan}}, {}, "the 'gold' score is nan, not a number"),
        ({"category": "new"}, {"apart": ["new"]}, r"apart=\['new'\] leaves no prompt"),
        ({"category": "all"}, {}, "category 'all' is the name of the overall figures"),
    ],
)
def test_bad_input_is_named(changes, arguments, message):
    with pytest.raises(DataError, match=message):
        summarize([sample(**changes)], **({"baseline": "sft", "scorers": ["gold"]} | arguments))


def test_policies_must_answer_the_same_prompts():
    found = [sample(), sample(policy="ppo", prompt_index=1)]
    with pytest.raises(DataError, match="'sft' and 'ppo' answer different prompts"):
        summarize(found, baseline="sft", scorers=["gold"])


def test_every_prompt_needs_the_same_number_of_samples():
    found = [sample(), sample(sample_index=1), sample(prompt_index=1)]
    with pytest.raises(DataError, match="'sft' has more samples of one prompt"):
        summarize(found, baseline="sft", scorers=["gold"])


def test_p_values_are_adjusted_over_all_comparisons():
    summary = made_up.summary()
    # As worked out in test_table.py; the new topic has one prompt and so no p.
    assert comparison(summary, "ppo", "base").p == pytest.approx(6 * 0.0577, abs=1e-3)
    assert comparison(summary, "base", "sft", "proxy").p == pytest.approx(4 * 0.2048, abs=1e-3)
    assert comparison(summary, "ppo", "sft").p == 1.0
    assert comparison(summary, "ppo", "sft", category="new topic").p is None


def test_a_summary_of_before_length_control_can_be_read():
    old = json.loads(json.dumps(made_up.summary().to_dict()))
    for each in [*old["rows"], *old["comparisons"]]:
        del each["even_win_rate"]
        each.pop("p", None)
    read = Summary.from_dict(old)
    assert {each.even_win_rate for each in [*read.rows, *read.comparisons]} == {None}
    assert {each.p for each in read.comparisons} == {None}

import dataclasses
import json

from tests.evaluation import made_up
from tether.evaluation.figures import by_category, by_distance
from tether.evaluation.summary import Summary, keep, summarize


def test_scores_by_category_have_arms_as_long_as_their_intervals():
    found = [
        dataclasses.replace(each, category="all of them")
        for each in made_up.samples()
        if each.prompt_index < 2
    ]
    figure = by_category(summarize(found, baseline="sft", scorers=["gold"]))
    base, sft, ppo = figure.plot["data"]
    assert [base["name"], sft["name"], ppo["name"]] == ["base", "sft", "ppo"]
    # sft: 1.25 [0.5, 2.0]; ppo: 1.75 [1.5, 2.0].
    assert (sft["x"], sft["y"]) == (["all of them"], [1.25])
    assert (sft["error_y"]["arrayminus"], sft["error_y"]["array"]) == ([0.75], [0.75])
    assert (ppo["error_y"]["arrayminus"], ppo["error_y"]["array"]) == ([0.25], [0.25])
    assert figure.rows[0] == [
        "all of them",
        "2",
        "-1.00 [-1.00, -1.00]",
        "1.25 [0.50, 2.00]",
        "1.75 [1.50, 2.00]",
    ]


def test_one_prompt_has_no_arms_and_names_are_no_tags():
    found = [dataclasses.replace(each, category="<b>x</b>") for each in made_up.samples()[:2]]
    figure = by_category(summarize(found, baseline="base", scorers=["gold"]))
    (dots,) = figure.plot["data"]
    assert dots["x"] == ["&lt;b&gt;x&lt;/b&gt;"]
    assert dots["error_y"]["array"] == [0.0]
    assert by_category(summarize([made_up.sample()], baseline="sft", scorers=["gold"])) is None


def test_lines_of_score_against_distance_start_at_the_baseline():
    """sft 1.25 at KL 0; a model kept of ppo; ppo itself 1.75 at KL (1.5 + 2.5)/2 = 2."""
    found = made_up.summary()
    half = [
        dataclasses.replace(each, kl=0.5, scores={"gold": 1.0 + each.sample_index, "proxy": 0.0})
        for each in made_up.samples()
        if each.policy == "ppo"
    ]
    assert by_distance(found) is None  # nothing was kept
    found = dataclasses.replace(found, kept=[keep("ppo", 12, half, found, seed=0)])
    figure = by_distance(found)
    base, sft, ppo = figure.plot["data"]
    assert (ppo["x"], ppo["y"]) == ([0.0, 0.5, 2.0], [1.25, 1.5, 1.75])
    assert ppo["text"] == ["sft", "step 12", "end"]
    assert (sft["x"], sft["y"], base["x"]) == ([0.0], [1.25], [2.0])
    assert figure.rows[-2] == ["ppo", "step 12", "0.50 [0.50, 0.50]", "1.50 [1.50, 1.50]"]
    read = Summary.from_dict(json.loads(json.dumps(found.to_dict())))
    assert read.kept == found.kept

import dataclasses
import json
import math

from tests.evaluation import made_up
from tether.evaluation.figures import by_category, by_distance, curves
from tether.evaluation.summary import Summary, keep, summarize


def test_a_curve_for_every_known_metric():
    rows = [
        {"step": 0, "score": 0.5, "kl": 0.0, "entropy": 1.0},
        {"step": 10, "score": 1.25, "kl": 2.5, "entropy": 0.5},
    ]
    score, kl = curves(rows)
    assert (score.title, kl.title) == ("Score of the reward", "KL to the reference")
    assert score.plot["data"][0]["x"] == [0, 10]
    assert score.plot["data"][0]["y"] == [0.5, 1.25]
    assert kl.header == ["step", "KL"]
    assert kl.rows == [["0", "0"], ["10", "2.5"]]
    assert kl.description == (
        "KL to the reference (nats per answer) over steps 0 to 10: from 0 to 2.5"
    )


def test_held_out_values_lie_at_their_own_steps():
    rows = [
        {"step": 1, "loss": 4.0},
        {"step": 2, "loss": 3.0, "held_out_loss": 3.5},
        {"step": 3, "loss": 2.0, "held_out_loss": 2.75},
    ]
    (loss,) = curves(rows)
    training, held_out = loss.plot["data"]
    assert (training["name"], held_out["name"]) == ("training", "held out")
    assert (held_out["x"], held_out["y"]) == ([2, 3], [3.5, 2.75])
    assert loss.rows == [["1", "4", ""], ["2", "3", "3.5"], ["3", "2", "2.75"]]
    assert loss.description.endswith("from 4 to 2; held out from 3.5 to 2.75")


def test_several_rewards_have_a_line_each():
    rows = [
        {"step": 1, "score": 1.0, "score_raw": 9.0, "score_citations": 0.25, "score_length": 0.5},
        {"step": 2, "score": 2.0, "score_raw": 9.0, "score_citations": 0.75, "score_length": None},
        {"step": 3, "score": 3.0, "score_raw": 9.0, "score_citations": 1.0, "score_length": 0.125},
    ]
    score, by_reward = curves(rows)
    assert (score.title, by_reward.title) == ("Score of the reward", "Score by reward")
    assert by_reward.header == ["step", "citations", "length"]
    assert by_reward.rows == [["1", "0.25", "0.5"], ["2", "0.75", ""], ["3", "1", "0.125"]]
    assert by_reward.description == (
        "Score by reward (weighted) over steps 1 to 3: "
        "citations from 0.25 to 1; length from 0.5 to 0.125"
    )
    assert len(curves([{key: row[key] for key in ("step", "score_raw")} for row in rows])) == 0


def test_gaps_and_single_points_draw_nothing():
    assert curves([]) == []
    assert curves([{"step": 1, "loss": 1.0}]) == []
    rows = [{"step": i, "loss": value} for i, value in enumerate([3.0, math.nan, None, 1.0])]
    (loss,) = curves(rows)
    assert loss.plot["data"][0]["x"] == [0, 3]
    json.dumps(loss.plot, allow_nan=False)


def test_long_curves_are_thinned_and_keep_their_last_point():
    (loss,) = curves([{"step": i, "loss": float(i)} for i in range(10_001)])
    steps = loss.plot["data"][0]["x"]
    assert len(steps) <= 1501
    assert (steps[0], steps[1], steps[-1]) == (0, 7, 10_000)  # every 7th: 10,001 / 1,500 = 6.7
    assert len(loss.rows) <= 41
    assert loss.rows[-1][0] == "10000"


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

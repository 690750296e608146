import json
import math

from tether.evaluation.curves import curves
from tether.evaluation.monitored import alarms, monitor_figures


def test_a_curve_for_every_known_metric():
    rows = [
        {"step": 0, "score": 0.5, "kl": 0.0, "entropy": 1.0, "unknown": 1.0, "grad_norm": 3.0},
        {"step": 10, "score": 1.25, "kl": 2.5, "entropy": 0.5, "unknown": 2.0, "grad_norm": 2.0},
    ]
    score, kl, entropy, norm = curves(rows)
    assert (score.title, kl.title) == ("Score of the reward", "KL to the reference")
    assert (entropy.title, norm.title) == ("Entropy", "Gradient norm")
    assert all("Healthy" in each.note for each in (score, kl, entropy, norm))
    assert curves(rows, detail=True) == [norm]
    assert curves(rows, detail=False) == [score, kl, entropy]
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
    assert len(steps) <= 601
    assert (steps[0], steps[1], steps[-1]) == (0, 17, 10_000)  # every 17th: 10,001 / 600 = 16.7
    assert len(loss.rows) <= 25
    assert loss.rows[-1][0] == "10000"


def test_several_keys_share_a_figure_and_say_who_is_who():
    rows = [
        {"step": 1, "chosen_logprob": -8.0, "rejected_logprob": -9.0},
        {"step": 2, "chosen_logprob": -7.5, "rejected_logprob": -20.0},
    ]
    (both,) = curves(rows)
    assert both.header == ["step", "chosen", "rejected"]
    assert both.description.endswith("chosen from -8 to -7.5; rejected from -9 to -20")


def test_a_weight_of_the_penalty_that_never_changes_is_not_drawn():
    assert curves([{"step": i, "beta": 0.1} for i in range(3)]) == []
    (beta,) = curves([{"step": i, "beta": 0.1 * (1 + i)} for i in range(3)])
    assert beta.title == "Weight of the KL penalty"


# --- monitor --------------------------------------------------------------------------------------

LOOKS = [
    {"step": 0, "proxy": 0.0, "audit": 0.25, "length": 20.0, "best_step": 0},
    {"step": 4, "proxy": 1.0, "audit": 0.75, "length": 21.0, "best_step": 4},
    {"step": 8, "proxy": 2.0, "audit": 0.5, "length": 30.0, "best_step": 4},
]
EVENT = {
    "step": 8,
    "alarm": "held_out",
    "action": "rollback",
    "text": "proxy +1.00, audit -0.25",
    "values": {"p": 0.001},
    "examples": [{"prompt": "hello", "completion": "sure, sure", "score": 2.345}],
}


def test_the_monitor_marks_its_best_step_and_its_alarms():
    both, length = monitor_figures(LOOKS, alarms([EVENT]))
    proxy, audit = both.plot["data"]
    assert (proxy["y"], audit["y"]) == ([0.0, 1.0, 2.0], [0.25, 0.75, 0.5])
    assert (proxy["yaxis"], audit["yaxis"]) == ("y", "y2")  # one above the other
    assert [each["x0"] for each in both.plot["layout"]["shapes"]] == [4, 8]
    assert [each["text"] for each in both.plot["layout"]["annotations"]] == ["best", "alarm"]
    assert both.rows[2] == [
        "8", "2", "0.5", "held-out score did not keep up with the proxy: rolled back",
    ]  # fmt: skip
    assert "best at step 4; alarm at step 8" in both.description
    assert length.rows == [["0", "20"], ["4", "21"], ["8", "30"]]
    json.dumps(both.plot, allow_nan=False)


def test_without_an_audit_the_proxy_stands_alone():
    rows = [{"step": i, "proxy": 1.0 * i, "audit": None} for i in range(3)]
    (alone,) = monitor_figures(rows, [])
    assert len(alone.plot["data"]) == 1
    assert "yaxis2" not in alone.plot["layout"]
    assert monitor_figures([], []) == []


def test_alarms_are_told_in_words():
    (alarm,) = alarms([EVENT])
    assert (alarm.step, alarm.action, alarm.text) == (8, "rolled back", EVENT["text"])
    assert alarm.examples == [("hello", "sure, sure", "2.35")]
    (unknown,) = alarms([{"step": 2, "alarm": "new kind"}])
    assert (unknown.title, unknown.action, unknown.examples) == ("new kind", "", [])

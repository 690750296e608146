"""The monitor in real runs of the online methods: looks, alarms, what they do, and resuming."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import save_tiny
from tests.train import toys
from tether.config import (
    AlarmConfig,
    BestOfNConfig,
    GRPOConfig,
    MonitorConfig,
    OnlineDPOConfig,
    PPOConfig,
    RewardConfig,
    ScorerConfig,
)
from tether.data.batches import Row, pad
from tether.errors import CheckError, ConfigError, DataError
from tether.models.language_model import load
from tether.rundir import StageFolder
from tether.sections import ComputeConfig, KLConfig, OptimizerConfig, StopConfig
from tether.train import alarms
from tether.train.look import correlation
from tether.train.monitor import examples
from tether.train.online import train_best_of_n, train_grpo, train_online_dpo, train_ppo

OFF = {name: AlarmConfig(action="off") for name in MonitorConfig().alarms}
FAST = {"optimizer": OptimizerConfig(learning_rate=2e-2)}


def monitor(tmp_path, **changes):
    """Looks after every step at eight prompts, audited for shortness, with all alarms off."""
    toys.write_rows(tmp_path / "held.jsonl", toys.PROMPTS)
    rewards = toys.write_rewards(tmp_path)
    settings = {
        "prompts": str(tmp_path / "held.jsonl"),
        "every": 1,
        "num_samples": 2,
        "audit": (RewardConfig(path=f"{rewards}:short"),),
        **OFF,
        **changes,
    }
    return MonitorConfig(**settings)


def rows(out, name):
    file = Path(out) / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def without_seconds(out):
    return [
        {name: value for name, value in row.items() if "seconds" not in name}
        for row in rows(out, "monitor.jsonl")
    ]


METHODS = [
    (PPOConfig, train_ppo, {"kl": KLConfig(beta=0.0)}),
    (PPOConfig, train_ppo, {"kl": KLConfig(beta=0.1)}),
    (GRPOConfig, train_grpo, {"num": 4}),
    (OnlineDPOConfig, train_online_dpo, {"minibatches": 1}),
    (BestOfNConfig, train_best_of_n, {"minibatches": 1, "num": 4}),
]


@pytest.mark.parametrize(("method", "train", "changes"), METHODS)
def test_looking_changes_nothing_in_training(tmp_path, method, train, changes):
    path = toys.save(tmp_path)
    plain = toys.online(method, tmp_path, path, out=str(tmp_path / "plain"), **changes)
    train(plain)
    plot = (ScorerConfig(name="words", path=f"{toys.write_rewards(tmp_path)}:short"),)
    seen = monitor(tmp_path, plot=plot)
    watched = toys.online(
        method, tmp_path, path, out=str(tmp_path / "seen"), monitor=seen, **changes
    )
    train(watched)
    toys.assert_same(toys.weights(plain.out), toys.weights(watched.out))
    for one, other in zip(toys.metrics(plain.out), toys.metrics(watched.out), strict=True):
        assert other.pop("seconds_monitor") > 0
        assert {k: v for k, v in one.items() if "seconds" not in k} == {
            k: v for k, v in other.items() if "seconds" not in k
        }
    looks = rows(watched.out, "monitor.jsonl")
    assert [look["step"] for look in looks] == [0, 1, 2]
    assert looks[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert looks[2]["kl"] > 1e-4
    assert -6 <= looks[2]["words"] <= looks[2]["audit"]  # an audit is clipped at −5, as rewards are
    assert toys.result(watched.out)["alarms"] == 0
    assert toys.result(watched.out)["rolled_back_to"] is None
    assert not (Path(watched.out) / "looks").exists()


def test_the_figures_are_those_of_the_samples(tmp_path):
    path = toys.save(tmp_path)
    config = toys.ppo(tmp_path, path, monitor=monitor(tmp_path), keep_every=1, **FAST)
    train_ppo(config)
    look = rows(config.out, "monitor.jsonl")[1]
    samples = [row for row in rows(config.out, "audits.jsonl") if row["step"] == 1]
    assert len(samples) == 16
    assert [row["prompt"] for row in samples[::2]] == [row["prompt"] for row in toys.PROMPTS]
    kind = [sum(text.split().count(w) for w in toys.KIND_WORDS) for text in _texts(samples)]
    assert [row["proxy"] for row in samples] == kind  # without the penalty for a missing end
    assert [row["audit"] for row in samples] == [-min(len(t.split()), 5) for t in _texts(samples)]
    for name in ("proxy", "audit", "length", "kl", "entropy", "repetition", "finished"):
        assert look[name] == pytest.approx(np.mean([row[name] for row in samples])), name
    # The KL again: both models' own logits over the whole vocabulary, token after token.
    policy, reference = (
        load(each, ComputeConfig())
        for each in (str(Path(config.out) / "models" / "step-000001"), path)
    )
    finished = next(row for row in samples if row["finished"])
    prompt = policy.tokenizer(finished["prompt"])["input_ids"]
    ids = policy.tokenizer(finished["prompt"] + finished["completion"])["input_ids"]
    length = finished["length"]
    assert len(ids) == len(prompt) + length - 1  # the end token is in no text
    batch = pad([Row(ids, len(prompt))])
    with torch.no_grad():
        ours, theirs = (
            model.model(batch.input_ids).logits[0, len(prompt) - 1 :].log_softmax(-1)
            for model in (policy, reference)
        )
    per_token = (ours.exp() * (ours - theirs)).sum(-1)
    assert len(per_token) == length
    assert finished["kl"] == pytest.approx(float(per_token.sum()), abs=1e-4)
    entropy = -(ours.exp() * ours).sum(-1).mean()
    assert finished["entropy"] == pytest.approx(float(entropy), abs=1e-4)


def _texts(samples):
    return [row["completion"] for row in samples]


def test_correlation():
    assert correlation([1.0, 2.0, 3.0], [2.0, 4.0, 7.0]) == pytest.approx(0.9934, abs=1e-4)
    assert np.isnan(correlation([1.0, 2.0], [3.0, 3.0]))


# --- what alarms do -------------------------------------------------------------------------------


def test_an_alarm_is_told_once_and_loudly(tmp_path, capsys):
    seen = monitor(tmp_path, kl=AlarmConfig(limit=1e-6, action="warn"))
    config = toys.ppo(tmp_path, toys.save(tmp_path), steps=4, monitor=seen, **FAST)
    train_ppo(config)
    (event,) = rows(config.out, "events.jsonl")  # it stays over the limit and is not told again
    assert (event["step"], event["alarm"], event["action"]) == (1, "kl", "warn")
    assert event["values"]["now"] == rows(config.out, "monitor.jsonl")[1]["kl"]
    scores = [each["score"] for each in event["examples"]]
    assert scores == sorted(scores, reverse=True)
    told = capsys.readouterr().err
    assert f"ALARM kl, step 1: {event['text']}" in told
    assert "what to do: raise kl.beta, or lower the learning rate" in told
    assert toys.result(config.out)["alarms"] == 1
    assert toys.result(config.out)["steps"] == 4


@pytest.mark.parametrize(
    ("changes", "betas"),
    [
        ({"kl": KLConfig(beta=0.0)}, [0.0, 0.05, 0.1, 0.2]),
        ({"kl": KLConfig(beta=0.3)}, [0.3, 0.6, 1.2, 2.4]),
    ],
)
def test_raise_doubles_beta_while_the_alarm_holds(tmp_path, changes, betas):
    seen = monitor(tmp_path, audit=(), kl=AlarmConfig(limit=1e-6, action="raise"))
    config = toys.ppo(tmp_path, toys.save(tmp_path), steps=4, monitor=seen, **changes, **FAST)
    train_ppo(config)
    found = toys.metrics(config.out)
    assert [row["beta"] for row in found] == pytest.approx(betas)
    # From β = 0 there is a reference once there is a β: then the KL is measured in training too.
    assert [row["kl"] != 0 for row in found][1:] == [True] * 3


def test_raise_reaches_online_dpo(tmp_path):
    path = toys.save(tmp_path)
    changes = {"minibatches": 1, "steps": 3, **FAST}
    weights = []
    for action in ("warn", "raise"):
        seen = monitor(tmp_path, kl=AlarmConfig(limit=1e-6, action=action))
        out = str(tmp_path / action)
        config = toys.online(OnlineDPOConfig, tmp_path, path, out=out, monitor=seen, **changes)
        train_online_dpo(config)
        weights.append(toys.weights(out))
    assert [row["beta"] for row in toys.metrics(tmp_path / "raise")] == pytest.approx(
        [0.1, 0.2, 0.4]
    )
    with pytest.raises(AssertionError, match="differs"):
        toys.assert_same(*weights)


def test_stop_ends_the_run_with_the_model_as_it_is(tmp_path):
    seen = monitor(tmp_path, kl=AlarmConfig(limit=1e-6, action="stop"))
    config = toys.ppo(tmp_path, toys.save(tmp_path), steps=4, keep_every=1, monitor=seen, **FAST)
    train_ppo(config)
    found = toys.result(config.out)
    assert found["steps"] == 1
    assert found["stopped"].startswith("alarm kl: the KL to the reference is")
    assert found["rolled_back_to"] is None


# Scores a planted run: the audit looks at how many times it has been asked.
PLANTED = '''
"""An audit that rises for three looks and then falls."""
from pathlib import Path
counter = Path(__file__).with_name("looks")

def audit(prompts, completions):
    look = len(counter.read_text()) if counter.exists() else 0
    counter.write_text("." * (look + 1))
    level = (0, 1, 2, 1, -1, -2, -3, -4, -5, -5)[look]
    return [level + 0.01 * i for i in range(len(completions))]
'''


def planted(tmp_path):
    (tmp_path / "planted.py").write_text(PLANTED)
    (tmp_path / "looks").unlink(missing_ok=True)
    return (RewardConfig(path=f"{tmp_path}/planted.py:audit"),)


def kept_weights(config, step):
    return load_file(Path(config.out) / "models" / f"step-{step:06d}" / "model.safetensors")


def test_roll_back_returns_the_best_model_by_the_held_out_score(tmp_path, capsys):
    seen = monitor(tmp_path, audit=planted(tmp_path), held_out=AlarmConfig(), wait=3)
    config = toys.ppo(tmp_path, toys.save(tmp_path), steps=9, keep_every=1, monitor=seen, **FAST)
    train_ppo(config)
    (event,) = rows(config.out, "events.jsonl")
    assert (event["alarm"], event["action"]) == ("held_out", "rollback")
    assert event["step"] in (4, 5)  # two looks behind the turn at the third
    assert event["values"]["p"] <= 0.05
    found = toys.result(config.out)
    # Neighbors weigh exp(−d²/4.5): 0.8007, 0.4111, 0.1353, 0.0286, 0.0039, 0.0003. After look 7
    # (−4) look 1 is best: (0 + 1 + 2·0.8007 + 0.4111 − 0.1353 − 2·0.0286 − 3·0.0039 − 4·0.0003)
    # / 3.1806 = 0.882, look 2 (2 + 2·0.8007 − 0.4111 − 2·0.1353 − 3·0.0286 − 4·0.0039) / 3.5914
    # = 0.785. It goes on for 3 looks after the alarm.
    best = found["rolled_back_to"]
    assert (best, found["steps"]) == (1, event["step"] + 3)
    past = found["steps"] - 1
    told = f"held-out alarm, and {past} looks without a better held-out score than at step 1"
    assert found["stopped"] == told
    toys.assert_same(toys.weights(config.out), kept_weights(config, best))
    assert f"rolled back to step {best}" in capsys.readouterr().err
    assert not (Path(config.out) / "looks").exists()


def test_another_alarm_can_roll_back_at_once(tmp_path):
    length = AlarmConfig(limit=1e-3, action="rollback")
    seen = monitor(tmp_path, audit=planted(tmp_path), length=length)
    config = toys.ppo(tmp_path, toys.save(tmp_path), steps=3, monitor=seen, **FAST)
    # Already over at the start, so it is not newly over later: the run goes on to its end.
    train_ppo(config)
    assert toys.result(config.out)["steps"] == 3
    planted(tmp_path)
    kl = AlarmConfig(limit=1e-6, action="rollback")
    out = str(tmp_path / "again")
    seen = monitor(tmp_path, audit=planted(tmp_path), kl=kl, num_samples=1)
    config = toys.ppo(tmp_path, toys.save(tmp_path), out=out, steps=3, monitor=seen, **FAST)
    train_ppo(config)
    assert toys.result(out)["stopped"].startswith("alarm kl: ")
    assert toys.result(out)["rolled_back_to"] is None  # look 1 is the best there is


def test_patience(tmp_path):
    seen = monitor(tmp_path, audit=planted(tmp_path))
    stop = StopConfig(patience=2)
    config = toys.ppo(
        tmp_path, toys.save(tmp_path), steps=9, keep_every=1, monitor=seen, stop=stop, **FAST
    )
    train_ppo(config)
    found = toys.result(config.out)
    best = found["rolled_back_to"]
    assert found["steps"] == best + 2
    assert found["stopped"] == f"2 looks without a better held-out score than at step {best}"
    toys.assert_same(toys.weights(config.out), kept_weights(config, best))


def test_examples_show_the_alarm():
    samples = [
        {"prompt": "p", "completion": str(i), "proxy": proxy, "audit": audit, "entropy": entropy}
        for i, (proxy, audit, entropy) in enumerate([(1, 1, 3.0), (2, -2, 1.0), (0, 0, 2.0)])
    ]
    shown = examples("held_out", samples)
    assert [each["completion"] for each in shown] == ["1", "0", "2"]
    assert (shown[0]["score"], shown[0]["audit"]) == (2, -2)
    assert [each["score"] for each in examples("entropy", samples)] == [1.0, 2.0, 3.0]


# --- killed and resumed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "where"),
    [(1, "monitor.jsonl"), (6, "metrics.jsonl"), (7, "audits.jsonl"), (7, "monitor.jsonl")],
)
def test_it_resumes_to_the_same_bits(tmp_path, monkeypatch, where, step):
    """Interrupted while a row is written: after the look, at its end, or in the midst of it."""
    path = toys.save(tmp_path)
    lengths = (RewardConfig(path=f"{toys.write_rewards(tmp_path)}:short"),)
    seen = monitor(
        tmp_path,
        audit=lengths,
        keep=2,
        wait=1,
        held_out=AlarmConfig(limit=0.9, action="rollback"),
        entropy=AlarmConfig(limit=1.0, action="raise"),
    )

    def settings(out):
        folder = str(tmp_path / out)
        return toys.ppo(
            tmp_path, path, out=folder, steps=8, checkpoint_every=5, monitor=seen, **FAST
        )

    whole, killed = settings("whole"), settings("killed")
    train_ppo(whole)
    last = toys.result(whole.out)["steps"]
    log = StageFolder.log

    def die(self, row, file="metrics.jsonl"):
        log(self, row, file)
        if (row["step"], file) == (step, where):
            raise KeyboardInterrupt

    monkeypatch.setattr(StageFolder, "log", die)
    if step <= last:
        with pytest.raises(KeyboardInterrupt):
            train_ppo(killed)
    monkeypatch.setattr(StageFolder, "log", log)
    train_ppo(killed)
    toys.assert_same(toys.weights(whole.out), toys.weights(killed.out))
    assert without_seconds(whole.out) == without_seconds(killed.out)
    for name in ("audits.jsonl", "events.jsonl"):
        assert rows(whole.out, name) == rows(killed.out, name)
    for fact in ("steps", "stopped", "rolled_back_to", "alarms"):
        assert toys.result(whole.out)[fact] == toys.result(killed.out)[fact]


def test_other_settings_before_the_first_checkpoint_start_anew(tmp_path):
    """What a failed start left behind is no memory of this run."""
    path = toys.save(tmp_path)
    other = str(save_tiny(tmp_path / "other", "llama", False, seed=5))
    nan = (RewardConfig(path=f"{toys.write_rewards(tmp_path)}:nan"),)
    broken = toys.ppo(tmp_path, other, monitor=monitor(tmp_path, num_samples=1), **FAST)
    train = toys.ppo(tmp_path, path, monitor=monitor(tmp_path), **FAST)
    with pytest.raises(CheckError):
        train_ppo(toys.ppo(tmp_path, other, rewards=nan, monitor=monitor(tmp_path, audit=())))
    assert broken.out == train.out
    train_ppo(train)
    assert [row["step"] for row in rows(train.out, "monitor.jsonl")] == [0, 1, 2]
    assert len([row for row in rows(train.out, "audits.jsonl") if row["step"] == 0]) == 16


# --- settings that cannot work --------------------------------------------------------------------


def test_an_audit_by_what_is_trained_on_is_refused(tmp_path):
    trained = RewardConfig(path=f"{toys.write_rewards(tmp_path)}:kind")
    with pytest.raises(ConfigError, match="an audit must be somebody else's judgment"):
        toys.ppo(tmp_path, "model", monitor=monitor(tmp_path, audit=(trained,)))


@pytest.mark.parametrize(
    ("method", "settings", "changes", "words"),
    [
        (PPOConfig, {}, {"stop": StopConfig(patience=2)}, "stop.patience=2 needs a held-out score"),
        (BestOfNConfig, {"kl": AlarmConfig(action="raise")}, {}, "which best-of-n does not have"),
        (
            PPOConfig,
            {"kl": AlarmConfig(action="raise")},
            {"reference": "none", "kl": KLConfig(beta=0.0)},
            "monitor.kl.action='raise' doubles β, which this run does not have",
        ),
        (PPOConfig, {"length": AlarmConfig(action="rollback")}, {}, "set monitor.audit"),
        (PPOConfig, {"window": 1}, {}, "monitor.window=1 must be 2 or more"),
        (PPOConfig, {"plot": (ScorerConfig(name="kl", path="r"),)}, {}, "give another name"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, method, settings, changes, words):
    def make():
        seen = monitor(tmp_path, audit=(), **settings)
        toys.online(method, tmp_path, "model", monitor=seen, **changes)

    with pytest.raises(ConfigError) as refused:
        make()
    assert words in str(refused.value)


def test_prompts_that_cannot_be_read(tmp_path):
    config = toys.ppo(tmp_path, toys.save(tmp_path), monitor=MonitorConfig(prompts="nowhere.jsonl"))
    with pytest.raises(DataError, match="nowhere"):
        train_ppo(config)


def test_the_usual_alarms_are_silent_in_a_short_run(tmp_path):
    usual = dict.fromkeys(OFF, AlarmConfig())
    seen = monitor(tmp_path, **usual, num_samples=4)
    config = toys.ppo(tmp_path, toys.save(tmp_path), monitor=seen)
    train_ppo(config)
    assert rows(config.out, "events.jsonl") == []
    assert alarms.NEXT.keys() == OFF.keys()

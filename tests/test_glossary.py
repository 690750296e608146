"""Every figure that training logs is explained, in whole sentences."""

import json

import pytest

from tests.train import toys
from tether.config import (
    BestOfNConfig,
    DPOConfig,
    GRPOConfig,
    KTOConfig,
    OnlineDPOConfig,
    RewardConfig,
)
from tether.glossary import FAMILIES, METRICS, explain
from tether.train.kto import train_kto
from tether.train.online import train_best_of_n, train_grpo, train_online_dpo, train_ppo
from tether.train.preference import train_dpo
from tether.train.reward import train_reward
from tether.train.sft import train_sft

THUMBS = [
    {"prompt": row["prompt"], "completion": row["completion"], "label": number % 2 == 0}
    for number, row in enumerate(toys.DEMONSTRATIONS)
]


def ppo(folder, model):
    path = f"{toys.write_rewards(folder)}"
    rewards = [("kind", "term"), ("short", "reject"), ("kind", "cap")]
    named = tuple(
        RewardConfig(path=f"{path}:{function}", name=f"{function} {role}", role=role)
        for function, role in rewards
    )
    return train_ppo(toys.ppo(folder, model, rewards=named))


RUNS = {
    "sft": lambda folder, model: train_sft(toys.sft(folder, model, held_out=0.3)),
    "reward": lambda folder, model: train_reward(
        toys.reward(folder, model, toys.PAIRS, held_out=0.3)
    ),
    "dpo": lambda folder, model: train_dpo(toys.preference(folder, model, DPOConfig, held_out=0.3)),
    "kto": lambda folder, model: train_kto(
        toys.preference(folder, model, KTOConfig, THUMBS, held_out=0.3)
    ),
    "ppo": ppo,
    "grpo": lambda folder, model: train_grpo(toys.online(GRPOConfig, folder, model, num=4)),
    "online-dpo": lambda folder, model: train_online_dpo(
        toys.online(OnlineDPOConfig, folder, model)
    ),
    "best-of-n": lambda folder, model: train_best_of_n(toys.online(BestOfNConfig, folder, model)),
}


@pytest.mark.parametrize("kind", RUNS)
def test_everything_that_training_logs_is_explained(tmp_path, kind):
    path = RUNS[kind](tmp_path, toys.save(tmp_path))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    keys = {key for row in rows for key in row} - {"step"}
    assert len(keys) >= 4
    assert not [key for key in keys if explain(key) is None]


@pytest.mark.parametrize("key", METRICS)
def test_an_explanation_is_a_sentence(key):
    metric = METRICS[key]
    for text in (metric.meaning, metric.healthy):
        assert text.endswith(".")
        assert text[0].isupper() or text[0].isdigit() or text.startswith("exp")


def test_the_reward_of_a_name_is_explained_by_its_family():
    metric = explain("score_length")
    assert metric is not None
    assert (metric.title, metric.chart) == ("length", "Score by reward")
    assert "reward length" in metric.meaning
    assert explain("score_raw") == METRICS["score_raw"]
    assert explain("score_") is None
    assert explain("something else") is None


def test_charts_do_not_mix_units():
    by_chart = {}
    for metric in [*METRICS.values(), *FAMILIES.values()]:
        if metric.chart:
            by_chart.setdefault(metric.chart, set()).add(metric.unit)
    mixed = {chart: units for chart, units in by_chart.items() if len(units) > 1}
    assert mixed == {"Monitor: rewards": {"normalized", ""}}  # the audit's unit is its own

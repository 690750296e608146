import json

import numpy as np
import pytest
from tests.rewards.made_up import save_made

from tether.config import RewardConfig, ScoreConfig
from tether.errors import CheckError, ConfigError, DataError, ModelError
from tether.models.scalar_head import Centering
from tether.records import read_jsonl
from tether.rewards.score import score
from tether.sections import ComputeConfig

CPU = ComputeConfig(device="cpu")
ROWS = [
    {"prompt": "the cat", "completions": [" sees", " no"], "finished": [True, False]},
    {"prompt": "why", "completions": [" thanks yes"], "finished": [True], "category": "c"},
    {"prompt": "who", "completions": [" a", " a dog", ""], "finished": [True] * 3},
]
FUNCTIONS = """
def length(prompts, completions):
    return [len(prompt) + len(text) / 10 for prompt, text in zip(prompts, completions)]

def nan(prompts, completions):
    return [float("nan")] * len(completions)
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, ROWS)))

    def make(function="length", path="", **settings):
        reward = RewardConfig(path=path or f"{tmp_path}/mine.py:{function}", **settings)
        return ScoreConfig(
            data=str(tmp_path / "data.jsonl"),
            reward=reward,
            out=str(tmp_path / "out"),
            compute=CPU,
        )

    return make


def written(out):
    return [row for _, row in read_jsonl(out / "scores.jsonl")]


def test_scores_stand_beside_their_completions(config):
    rows = written(score(config(weight=2.0, clip=3.6)))
    # "the cat" has 7 characters, " sees" 5: 7.5, cut to 3.6, times 2
    assert [row["raw_scores"] for row in rows] == [[7.5, 7.3], [4.1], [3.2, 3.6, 3.0]]
    assert [row["scores"] for row in rows] == [[7.2, 7.2], [7.2], [6.4, 7.2, 6.0]]
    for row, given in zip(rows, ROWS, strict=True):
        assert {key: row[key] for key in given} == given


def test_a_reward_model_scores_centred_and_raw(config, tmp_path):
    path = save_made(tmp_path, Centering(0.5, 2.0))
    rows = written(score(config(path=path, clip=0.0)))
    for row in rows:
        assert row["scores"] == pytest.approx([(raw - 0.5) / 2.0 for raw in row["raw_scores"]])
    assert len({raw for row in rows for raw in row["raw_scores"]}) == 6


def test_the_result_tells_mean_and_spread(config):
    out = score(config(clip=0.0))
    result = json.loads((out / "result.json").read_text())
    every = [7.5, 7.3, 4.1, 3.2, 3.6, 3.0]
    assert result["completions"] == 6
    assert result["mean"] == pytest.approx(sum(every) / 6)
    assert result["std"] == pytest.approx(float(np.std(every)))


def test_a_finished_stage_is_skipped(config):
    out = score(config())
    (out / "scores.jsonl").unlink()
    assert score(config()) == out
    assert not (out / "scores.jsonl").exists()
    with pytest.raises(ConfigError, match=r"reward.weight=9.0 but"):
        score(config(weight=9.0))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"function": "nan"}, CheckError, "mine.py:nan' returned nan for the completion ' sees'"),
        ({"function": "gone"}, ConfigError, "has no function 'gone'"),
        ({"path": "/no/such/model"}, ModelError, "'/no/such/model' does not exist"),
    ],
)
def test_a_bad_reward_writes_nothing(config, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        score(config(**settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(ROWS[0]) + '\n{"prompt": "why",\n', "data.jsonl:2: not JSON"),
        ('{"prompt": "why"}', "data.jsonl:1"),
        ("", "data.jsonl"),
    ],
)
def test_bad_data_writes_nothing(config, tmp_path, text, message):
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        score(config())
    assert not (tmp_path / "out").exists()

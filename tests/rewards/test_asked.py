"""Rewards that are asked for: a judge in this process or behind an endpoint, and a server."""

import json
import math

import pytest
from tests.rewards.toy_server import ToyServer, completion
from tests.tiny import WORDS, save_tiny, word_tokenizer

from tether.config import JudgeConfig, RewardConfig
from tether.constitution.compare import judge as judge_stage
from tether.errors import ConfigError, DataError
from tether.models.language_model import load
from tether.rewards.judge import Comparison, Wording, both_orders
from tether.rewards.load import load_reward
from tether.rewards.local_judge import LocalJudge, log_odds
from tether.sections import ComputeConfig
from tether.servers import EndpointConfig

CPU = ComputeConfig(device="cpu")
PROMPTS, COMPLETIONS = ["the cat", "who helps"], ["a dog", "it helps"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    words = [*WORDS, "A", "B", "Yes", "No", "Answer:", ">"]
    return str(save_tiny(tmp_path_factory.mktemp("judge"), tokenizer=word_tokenizer(words)))


def answers(listed):
    return ToyServer(lambda body: completion(listed=listed)).running()


def endpoint(server, folder, **settings):
    cache = str(folder / "judge.db")
    return EndpointConfig(base_url=server.url + "/v1", model="toy", cache=cache, **settings)


def test_a_model_here_says_yes_or_no(model):
    reward = load_reward(RewardConfig(path=model, question="is it kind"), CPU)
    judge = LocalJudge(load(model, CPU))
    expected = [log_odds(p) for p in judge.affirms(PROMPTS, COMPLETIONS, "is it kind")]
    assert reward.raw(PROMPTS, COMPLETIONS) == pytest.approx(expected)


def test_a_model_here_compares_with_references(model, tmp_path):
    rows = [{"prompt": prompt, "completion": "the small bird"} for prompt in PROMPTS]
    rows.append({"prompt": PROMPTS[0], "completion": "a later one"})  # the first counts
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = RewardConfig(path=model, question="who helps", references=str(tmp_path / "r.jsonl"))
    asked = [
        Comparison(*row, "the small bird", "who helps")
        for row in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    verdicts = both_orders(LocalJudge(load(model, CPU)), asked)
    expected = [log_odds(verdict.probability) for verdict in verdicts]
    assert load_reward(config, CPU).raw(PROMPTS, COMPLETIONS) == pytest.approx(expected)
    assert str(tmp_path / "r.jsonl") in config.paths
    with pytest.raises(DataError, match="no reference completion for the prompt 'why'"):
        load_reward(config, CPU).raw(["why"], ["no"])


def test_a_judge_is_asked_in_the_words_of_a_constitution(model, tmp_path):
    """Also one whose tokenizer does not know the usual answers: here "yes" and "no" in place."""
    words = """
        [wording]
        statement = "{prompt} {completion} {question}"
        answer = " Answer:"
        yes_no = ["yes", "no"]
    """
    path = tmp_path / "constitution.toml"
    path.write_text(words)
    config = RewardConfig(path=model, question="is it kind", wording=str(path))
    wording = Wording(
        statement="{prompt} {completion} {question}", answer=" Answer:", yes_no=("yes", "no")
    )
    judge = LocalJudge(load(model, CPU), wording)
    expected = [log_odds(p) for p in judge.affirms(PROMPTS, COMPLETIONS, "is it kind")]
    found = load_reward(config, CPU).raw(PROMPTS, COMPLETIONS)
    assert found == pytest.approx(expected)
    usual = load_reward(RewardConfig(path=model, question="is it kind"), CPU)
    assert found != pytest.approx(usual.raw(PROMPTS, COMPLETIONS))
    path.write_text("[wording]\nstatements = 'x'")
    with pytest.raises(ConfigError, match="statements='x' is not a setting; did you mean"):
        load_reward(config, CPU)


def test_an_endpoint_says_yes_or_no_once_a_question(tmp_path):
    with answers({"Yes": math.log(0.6), "No": math.log(0.2)}) as server:
        config = RewardConfig(question="is it kind", endpoint=endpoint(server, tmp_path))
        reward = load_reward(config, CPU)
        # p = 0.6 / 0.8 = 3/4, the log-odds are log 3
        assert reward.raw(PROMPTS, COMPLETIONS) == pytest.approx([math.log(3)] * 2)
        load_reward(config, CPU).raw(PROMPTS, COMPLETIONS)
        assert len(server.bodies) == 2
    [said] = {body["messages"][0]["content"] for body in server.bodies if "cat" in str(body)}
    assert "> a dog" in said
    assert "is it kind" in said


def test_an_address_is_a_served_reward():
    with ToyServer(lambda body: {"scores": [len(c) for c in body["completions"]]}).running() as it:
        reward = load_reward(RewardConfig(path=it.url + "/score", weight=0.5), CPU)
        assert reward.raw(PROMPTS, COMPLETIONS) == [5, 8]
        assert reward.judge(PROMPTS, COMPLETIONS).scores == [2.5, 2.5]  # cut to 5, times 0.5


def test_the_judge_stage_asks_an_endpoint(tmp_path):
    """Votes of a server that always says A: both orders together know nothing, p = 1/2."""
    data = tmp_path / "answers.jsonl"
    data.write_text(json.dumps({"prompt": "why", "completions": ["no", "yes"]}))
    with answers({"A": math.log(0.9), "B": math.log(0.1)}) as server:
        config = JudgeConfig(
            data=str(data), out=str(tmp_path / "out"), endpoint=endpoint(server, tmp_path)
        )
        folder = judge_stage(config)
    [row] = [json.loads(line) for line in (folder / "judgments.jsonl").read_text().splitlines()]
    assert row["probability"] == pytest.approx(0.5)
    assert row["flipped"] is True
    [pair] = [json.loads(line) for line in (folder / "ai_pairs.jsonl").read_text().splitlines()]
    assert pair["labeler"] == "ai:toy"
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "judge", "path": "m"}, "reward.question='' must ask something"),
        ({"question": "q"}, "reward.path='' must name the model that judges"),
        ({"question": "q", "path": "m", "label": "x"}, "reward.label='x' has no place beside"),
        ({"path": "m", "references": "r"}, "reward.references='r' is for a judge"),
        (
            {"question": "q", "endpoint": EndpointConfig(base_url="http://h/v1", model="m")},
            "reward.endpoint.cache='' must name a file",
        ),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError) as error:
        RewardConfig(**settings)
    assert str(error.value).startswith(message)


def test_a_judge_stage_has_one_judge():
    there = EndpointConfig(base_url="http://h/v1", model="m")
    for settings in ({}, {"model": "m", "endpoint": there}):
        with pytest.raises(ConfigError, match="must name the judge"):
            JudgeConfig(data="d", out="o", **settings)
    with pytest.raises(ConfigError, match="is for a model in this process"):
        JudgeConfig(data="d", out="o", endpoint=there, reasoning=True)

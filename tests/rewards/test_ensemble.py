"""Ensembles: heads of one backbone and separate models; each member in its own units."""

import json

import pytest
import torch
from tests.rewards.made_up import CPU, make_reward
from tests.tiny import save_tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tether.config import RewardConfig
from tether.errors import ConfigError
from tether.models.scalar_head import (
    Centering,
    load_reward_model,
    new_reward_model,
    save_reward_model,
    value_model_from_reward,
)
from tether.rewards.ensemble import combine, disagreement
from tether.rewards.load import load_reward

PROMPTS = ["the cat ", "why ", "who "]
COMPLETIONS = ["sees a dog", "no", "it likes the big red bird"]
HEADS = (Centering(0.5, 2.0), Centering(-1.0, 0.25), Centering(3.0, 1.5))


@pytest.fixture
def heads(tmp_path):
    """Three heads on one backbone, with a centring each."""
    reward = new_reward_model(str(save_tiny(tmp_path / "start")), CPU, heads=3)
    with torch.no_grad():
        reward.head.weight.normal_(generator=torch.Generator().manual_seed(2))
    reward.heads = HEADS
    save_reward_model(reward, tmp_path / "heads", {"made_by": "a test"})
    return str(tmp_path / "heads")


def plain_logits(folder):
    """What plain transformers says, of each text alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        ids = tokenizer(f"{prompt}{completion} <eos>", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found.append(model(input_ids=ids).logits[0].double())
    return torch.stack(found)


def test_combinations_by_hand():
    members = torch.tensor([[1.0, 3.0], [-2.0, 4.0]])
    # means 2 and 1; std over two is half their distance: 1 and 3
    assert combine(members, RewardConfig(path="-")).tolist() == [2.0, 1.0]
    assert combine(members, RewardConfig(path="-", ensemble="min")).tolist() == [1.0, -2.0]
    config = RewardConfig(path="-", ensemble="pessimistic", pessimism=0.5)
    assert combine(members, config).tolist() == [1.5, -0.5]
    assert disagreement(members) == 2.0
    assert disagreement(members[:, :1]) == 0.0
    assert disagreement(members[:0]) == 0.0


def test_heads_are_loaded_by_plain_transformers_and_centred_one_by_one(heads):
    logits = plain_logits(heads)
    assert logits.shape == (3, 3)
    shift, scale = torch.tensor(HEADS, dtype=torch.float64).T
    members = (logits - shift) / scale
    judged = load_reward(RewardConfig(path=heads, clip=0.0), CPU).judge(PROMPTS, COMPLETIONS)
    assert judged.raw == pytest.approx(members.mean(1).tolist(), abs=1e-5)
    assert judged.scores == judged.raw  # centred member by member, not once more
    deviations = (members - members.mean(1, keepdim=True)).square().mean(1).sqrt()
    assert judged.disagreement == pytest.approx(deviations.mean().item(), abs=1e-5)
    config = RewardConfig(path=heads, ensemble="pessimistic", pessimism=2.0, weight=0.5, clip=1.0)
    pessimistic = load_reward(config, CPU)
    wanted = members.mean(1) - 2 * deviations
    assert pessimistic.raw(PROMPTS, COMPLETIONS) == pytest.approx(wanted.tolist(), abs=1e-5)
    scores = pessimistic.judge(PROMPTS, COMPLETIONS).scores
    assert scores == pytest.approx((0.5 * wanted.clamp(-1, 1)).tolist(), abs=1e-5)
    raw = load_reward(RewardConfig(path=heads, normalize=False, ensemble="min"), CPU)
    assert raw.raw(PROMPTS, COMPLETIONS) == pytest.approx(logits.amin(1).tolist(), abs=1e-5)


def test_tether_json_says_that_it_is_an_ensemble(heads):
    with open(f"{heads}/tether.json", encoding="utf-8") as file:
        stored = json.load(file)
    assert stored["heads"] == [{"shift": a, "scale": b} for a, b in HEADS]
    assert stored["centering"] is None
    loaded = load_reward_model(heads, CPU)
    assert (loaded.heads, loaded.centering) == (HEADS, None)


def test_separate_models_and_heads_are_members_alike(heads, tmp_path):
    one = make_reward(tmp_path / "one start", seed=7)
    one.centering = Centering(2.0, 4.0)
    save_reward_model(one, tmp_path / "one", {})
    path = str(tmp_path / "one")
    shift, scale = torch.tensor(HEADS, dtype=torch.float64).T
    members = torch.cat([(plain_logits(path) - 2) / 4, (plain_logits(heads) - shift) / scale], 1)
    config = RewardConfig(path=path, members=(heads,), ensemble="min", clip=0.0)
    judged = load_reward(config, CPU).judge(PROMPTS, COMPLETIONS)
    assert judged.scores == pytest.approx(members.amin(1).tolist(), abs=1e-5)
    assert judged.disagreement == pytest.approx(
        members.std(1, correction=0).mean().item(), abs=1e-5
    )


def test_one_model_has_no_disagreement(tmp_path):
    reward = make_reward(tmp_path / "start")
    reward.centering = Centering(1.0, 2.0)
    save_reward_model(reward, tmp_path / "one", {})
    judged = load_reward(RewardConfig(path=str(tmp_path / "one")), CPU).judge(["why"], ["no"])
    assert judged.disagreement is None
    assert judged.scores == [(judged.raw[0] - 1) / 2]


def test_the_value_of_heads_is_the_mean_of_the_centred_heads(heads):
    value = value_model_from_reward(load_reward_model(heads, CPU))
    weight = load_reward_model(heads, CPU).head.weight
    hidden = torch.linspace(-1, 1, 64).reshape(2, 32)
    each = [(hidden @ weight[i] - shift) / scale for i, (shift, scale) in enumerate(HEADS)]
    torch.testing.assert_close(value.numbers(hidden), sum(each) / 3, rtol=1e-5, atol=1e-5)


def test_a_probability_is_sigma_of_the_score(tmp_path):
    reward = make_reward(tmp_path / "start")
    save_reward_model(reward, tmp_path / "one", {})  # no centring is needed
    path = str(tmp_path / "one")
    found = load_reward(RewardConfig(path=path, output="probability"), CPU)
    wanted = 1 / (1 + (-plain_logits(path)[:, 0]).exp())
    assert found.raw(PROMPTS, COMPLETIONS) == pytest.approx(wanted.tolist(), abs=1e-5)
    assert found.normalize([0.25]) == [0.25]


def test_what_cannot_be_a_member(heads, tmp_path):
    (tmp_path / "mine.py").write_text("def f(prompts, completions):\n    return []\n")
    config = RewardConfig(path=heads, members=(f"{tmp_path}/mine.py:f",))
    with pytest.raises(ConfigError, match=r"mine.py:f' is a function: label, output and members"):
        load_reward(config, CPU)
    reward = make_reward(tmp_path / "start of another")
    save_reward_model(reward, tmp_path / "bare", {})
    config = RewardConfig(path=heads, members=(str(tmp_path / "bare"),))
    with pytest.raises(ConfigError, match=r"bare' stored no mean and std to normalize by"):
        load_reward(config, CPU)

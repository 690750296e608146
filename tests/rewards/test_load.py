import json
import math

import pytest
import torch
from tests.rewards.made_up import save_made
from tests.tiny import save_tiny

from tether.config import RewardConfig
from tether.errors import CheckError, ConfigError, ModelError
from tether.models.scalar_head import Centering
from tether.rewards.load import checked, load_reward
from tether.rewards.reward_model import score_texts
from tether.sections import ComputeConfig

CPU = ComputeConfig(device="cpu")
FUNCTIONS = """
def length(prompts, completions):
    return [len(text) for text in completions]

def nan_on_the_second(prompts, completions):
    return [0.5, float("nan"), 1.0][:len(completions)]

def infinite(prompts, completions):
    return [float("-inf")] * len(completions)

def one_too_few(prompts, completions):
    return [1.0] * (len(completions) - 1)

def one_too_many(prompts, completions):
    return [1.0] * (len(completions) + 1)
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    return tmp_path / "mine.py"


# --- functions ------------------------------------------------------------------------------------


def test_a_function_gets_texts_and_gives_numbers(file):
    reward = load_reward(RewardConfig(path=f"{file}:length"), CPU)
    assert reward.raw(["p", "q"], ["abc", ""]) == [3.0, 0.0]
    assert all(type(score) is float for score in reward.raw(["p"], ["abc"]))
    assert reward.model is None


@pytest.mark.parametrize("returned", [None, 3.0, ["a"], [None]])
def test_anything_but_numbers_is_refused_in_one_line(returned):
    with pytest.raises(CheckError, match="must return a list of numbers"):
        checked(lambda p, c: returned, "mine.py:f")(["p"], ["c"])


def test_arrays_and_tensors_will_do():
    call = checked(lambda p, c: torch.tensor([1.5, 2.0]), "mine.py:f")
    assert call(["p", "q"], ["a", "b"]) == [1.5, 2.0]


def test_chat_prompts_reach_the_function_as_they_are():
    asked = [{"role": "user", "content": "why"}]
    call = checked(lambda prompts, c: [float(prompts[0] is asked)], "mine.py:f")
    assert call([asked], ["so"]) == [1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan_on_the_second", "returned nan for the completion 'no' of the prompt 'why'"),
        ("infinite", "returned -inf for the completion 'yes' of the prompt 'who'"),
        ("one_too_few", "returned 2 scores for 3 completions; it must return one for each"),
        ("one_too_many", "returned 4 scores for 3 completions; it must return one for each"),
    ],
)
def test_what_a_function_returns_is_checked(file, name, message):
    reward = load_reward(RewardConfig(path=f"{file}:{name}"), CPU)
    with pytest.raises(CheckError) as error:
        reward.raw(["who", "why", "what"], ["yes", "no", "sorry"])
    assert f"mine.py:{name}'" in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_long_text_is_shown_in_part():
    with pytest.raises(CheckError) as error:
        checked(lambda p, c: [math.nan], "f")(["line\n" * 100], ["word " * 100])
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_no_completions_no_scores(file):
    assert load_reward(RewardConfig(path=f"{file}:length"), CPU).raw([], []) == []


# --- from raw scores to what PPO sees -------------------------------------------------------------


def test_scores_are_centred_clipped_and_weighted(tmp_path):
    path = save_made(tmp_path, Centering(0.5, 2.0))
    # (1.5 - 0.5) / 2 = 0.5; (-3.5 - 0.5) / 2 = -2, cut to -0.75; (4.5 - 0.5) / 2 = 2, cut to 0.75;
    # all times 3
    reward = load_reward(RewardConfig(path=path, weight=3.0, clip=0.75), CPU)
    assert reward.normalize([1.5, -3.5, 4.5]) == [1.5, -2.25, 2.25]
    raw = load_reward(RewardConfig(path=path, weight=-1.0, clip=0.0, normalize=False), CPU)
    assert raw.normalize([1.5, -350.0]) == [-1.5, 350.0]


def test_a_function_is_clipped_and_weighted_but_not_centred(file):
    reward = load_reward(RewardConfig(path=f"{file}:length", weight=0.5, clip=4.0), CPU)
    assert reward.normalize([3.0, -9.0]) == [1.5, -2.0]


def test_a_model_scores_texts_raw(tmp_path):
    reward = load_reward(RewardConfig(path=save_made(tmp_path, Centering(0.5, 2.0))), CPU)
    asked, said = ["the cat", "why"], [" sees a dog", " no"]
    assert reward.raw(asked, said) == score_texts(reward.model, asked, said)


def test_normalizing_by_nothing_is_refused_before_the_first_rollout(tmp_path):
    path = save_made(tmp_path, None)
    with pytest.raises(ConfigError, match="stored no mean and std to normalize by; train it with"):
        load_reward(RewardConfig(path=path), CPU)
    reward = load_reward(RewardConfig(path=path, normalize=False, clip=0.0), CPU)
    assert reward.normalize([7.25]) == [7.25]


def test_a_reward_model_that_made_no_tether_json(tmp_path):
    path = save_made(tmp_path, None)
    (tmp_path / "reward" / "tether.json").unlink()
    with pytest.raises(ConfigError, match="set normalize = false"):
        load_reward(RewardConfig(path=path), CPU)


# --- what cannot be used --------------------------------------------------------------------------


def test_two_labels_and_none_named(tmp_path):
    path = save_made(tmp_path, None)
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    config |= {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
    (tmp_path / "reward" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"has 2 labels \['bad', 'good'\] and none was named"):
        load_reward(RewardConfig(path=path), CPU)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("{tmp}/missing", ModelError, "missing' does not exist"),
        ("{tmp}/missing.py:f", ConfigError, "missing.py' does not exist; use path/to/file.py:f"),
        ("{tmp}/mine.py:nothing", ConfigError, "has no function 'nothing'; check its name"),
        ("no_such_module:f", ConfigError, "no module 'no_such_module'"),
        ("{tmp}/mine.py", ModelError, "mine.py' is a file; give .* path/to/file.py:function"),
    ],
)
def test_a_path_that_leads_nowhere(tmp_path, file, path, error, message):
    with pytest.raises(error, match=message) as raised:
        load_reward(RewardConfig(path=path.format(tmp=tmp_path)), CPU)
    assert "\n" not in str(raised.value)


def test_a_policy_is_no_reward(tmp_path):
    with pytest.raises(ModelError, match="is no reward model"):
        load_reward(RewardConfig(path=str(save_tiny(tmp_path))), CPU)

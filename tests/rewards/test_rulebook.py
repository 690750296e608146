"""Rules by name, as a recipe and the command line give them."""

import inspect
import json

import pytest

from tether.config import RewardConfig, ScorerConfig, reward_named, scorer_named
from tether.config_file import from_table
from tether.errors import ConfigError, DataError
from tether.rewards.load import check_rules, load_reward
from tether.rewards.rulebook import RULES, bind_rule, load_rule
from tether.sections import ComputeConfig

CPU = ComputeConfig(device="cpu")


def test_a_rule_is_a_reward():
    config = RewardConfig(rule="length", settings={"most": 3}, weight=2.0)
    reward = load_reward(config, CPU)
    raw, scores, _ = reward.judge(["p", "q"], ["a b c", "a b c d"])
    assert (raw, scores, reward.model) == ([1.0, 0.0], [2.0, 0.0], None)


def test_the_command_line_names_a_rule_in_one_word():
    words = "rule:banned {phrases = ['no', 'a, b'], most = 2}"
    named, settings = reward_named(words), {"phrases": ["no", "a, b"], "most": 2}
    assert named == RewardConfig(rule="banned", settings=settings)
    assert scorer_named("n", words) == ScorerConfig(name="n", rule="banned", settings=settings)
    assert reward_named("rule:refusal") == RewardConfig(rule="refusal")
    assert reward_named("a.py:f") == RewardConfig(path="a.py:f")
    assert load_rule(named)(["p"], ["No!"]) == [-0.5]


@pytest.mark.parametrize("name", RULES)
def test_every_setting_of_a_rule_is_told_apart_and_typed(name):
    for parameter in list(inspect.signature(RULES[name]).parameters.values())[2:]:
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.annotation is not parameter.empty
        assert f"{parameter.name}:" in inspect.getdoc(RULES[name])


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        ("lenght", {}, r"reward.rule='lenght' is not a rule; did you mean 'length'\?"),
        ("zzz", {}, "known: length, repetition"),
        ("length", {"mots": 3}, r"reward.settings.mots=3 is not a .* did you mean 'most'\?"),
        ("refusal", {"x": 3}, "known: none"),
        ("length", {"most": "3"}, "reward.settings.most='3' must be of type int, not str"),
        ("length", {"most": 3, "unit": "word"}, "must be one of 'words', 'characters'; did you"),
        ("banned", {}, "reward.settings.phrases is missing; the rule 'banned' needs it"),
        ("banned", {"phrases": "no"}, "reward.settings.phrases='no' must be"),
        ("json", {"schema": "x"}, "reward.settings.schema='x' must be"),
        ("length", {}, "the rule 'length': most=0 must be above 0"),
        ("format", {"pattern": "("}, r"the rule 'format': pattern='\(' is not a regular"),
    ],
)
def test_what_cannot_be_is_refused_before_any_text(rule, settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_reward(RewardConfig(rule=rule, settings=settings), CPU)
    assert "\n" not in str(error.value)


def test_files_are_read_at_once_or_by_the_first_call(tmp_path):
    file = tmp_path / "a.jsonl"
    config = RewardConfig(rule="answer", settings={"answers": str(file)})
    assert config.paths == (str(file),)
    bound = bind_rule(config)
    with pytest.raises(DataError, match=r"a.jsonl' does not exist"):
        load_rule(config)
    file.write_text(json.dumps({"prompt": "p", "answer": 1}))
    assert bound(["p"], ["1"]) == [1.0]


def test_prompts_are_checked_before_the_first_completion(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"prompt": "p", "answer": 1}))
    rewards = [load_reward(RewardConfig(rule="answer", settings={"answers": str(file)}), CPU)]
    check_rules(rewards, ["p"])
    with pytest.raises(DataError, match="no answer for the prompt 'q'"):
        check_rules(rewards, ["p", "q"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "reward.path='' must name a reward model or function"),
        ({"kind": "rule"}, "reward.rule='' must name a rule"),
        ({"rule": "length", "path": "x"}, "reward.path='x' has no place beside a rule"),
        ({"rule": "length", "label": "x"}, "reward.label='x' has no place beside a rule"),
        ({"path": "x", "settings": {"a": 1}}, "reward.settings=.* is for rules"),
        ({"path": "x", "kind": "model", "rule": "length"}, "reward.rule='length' is for rules"),
        ({"path": "rule:length"}, 'names a rule; write rule = "NAME"'),
    ],
)
def test_a_reward_is_one_thing(settings, message):
    with pytest.raises(ConfigError, match=message):
        RewardConfig(**settings)


@pytest.mark.parametrize(
    ("path", "kind", "found"), [("a.py:f", "model", "function"), ("a", "function", "model")]
)
def test_a_kind_that_its_path_is_not(path, kind, found):
    with pytest.raises(ConfigError, match=f"reward.kind='{kind}' but '{path}' names a {found}"):
        load_reward(RewardConfig(path=path, kind=kind), CPU)


def test_an_unknown_kind_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"kind='rul' must be one of .*; did you mean 'rule'\?"):
        from_table(RewardConfig, {"kind": "rul", "rule": "length"})


def test_settings_on_the_command_line_that_are_no_table():
    with pytest.raises(ConfigError, match=r"its settings are no TOML table") as error:
        reward_named("rule:length {most")
    assert "\n" not in str(error.value)

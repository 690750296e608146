import json
import math
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import WORDS, save_encoder, word_tokenizer
from tests.train import toys
from tests.train.toys import KINDS, MODELS, SAMPLING
from tether.config import RewardConfig
from tether.core import kl
from tether.errors import CheckError, ConfigError, DataError, ModelError
from tether.models.language_model import load
from tether.models.scalar_head import (
    Centering,
    load_reward_model,
    new_reward_model,
    save_reward_model,
)
from tether.rundir import StageFolder
from tether.sections import (
    ComputeConfig,
    GAEConfig,
    KLConfig,
    OptimizerConfig,
    SamplingConfig,
    StopConfig,
    ValueConfig,
)
from tether.train import online
from tether.train import roles as loading
from tether.train.online import train_ppo
from tether.train.reward import train_reward

METRICS = {
    *("step", "score", "score_raw", "kl", "beta", "reward", "length", "finished"),
    *("policy_loss", "value_loss", "entropy", "clip_fraction", "approx_kl", "explained_variance"),
    *("grad_norm", "value_grad_norm", "seconds_generate", "seconds_score", "seconds_train"),
}


def trained_reward(tmp_path, path):
    """A reward model that likes kind words."""
    draw = np.random.default_rng(1)
    rows = []
    for _ in range(40):
        texts = [" ".join(draw.choice(WORDS, 4)) for _ in range(2)]
        score = [sum(text.split().count(word) for word in toys.KIND_WORDS) for text in texts]
        ranks = [1 + (score[0] < score[1]), 1 + (score[1] < score[0])]
        prompt = " ".join(draw.choice(WORDS, 3)) + " "
        rows.append({"prompt": prompt, "completions": texts, "ranks": ranks})
    optimizer = OptimizerConfig(learning_rate=5e-3)
    config = toys.reward(tmp_path, path, rows, epochs=3.0, optimizer=optimizer)
    return str(train_reward(config) / "model")


def interrupted_after(step, monkeypatch, config):
    """Run until the row of `step` has been written, then stop as by Ctrl-C."""
    log = StageFolder.log

    def stop(self, row, file="metrics.jsonl"):
        log(self, row, file)
        if file == "metrics.jsonl" and row["step"] == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(StageFolder, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        train_ppo(config)
    monkeypatch.setattr(StageFolder, "log", log)


def without_times(rows):
    """Rows of metrics without seconds, and without what only a (re)start measures."""
    only_at_a_start = ("logprob_gap_mean", "logprob_gap_max", "sampler_trusted")
    return [
        {k: v for k, v in row.items() if not k.startswith("seconds") and k not in only_at_a_start}
        for row in rows
    ]


# --- a run ----------------------------------------------------------------------------------------


@MODELS
def test_a_run_leaves_what_the_contract_says(tmp_path, kind, pad_is_eos):
    path = toys.save(tmp_path, kind, pad_is_eos)
    config = toys.ppo(tmp_path, path, steps=3, checkpoint_every=2)
    out = train_ppo(config)
    rows = toys.metrics(out)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row.keys() >= METRICS for row in rows)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert rows[1]["kl"] != pytest.approx(0, abs=1e-5)
    assert all(row["beta"] == 0.1 for row in rows)
    assert all(row["logprob_gap"] < 0.5 for row in rows)
    found = toys.result(out)
    assert (found["steps"], found["stopped"], found["kind"]) == (3, "", "ppo")
    assert found["last"] == rows[-1]
    assert set(found["inputs"]) == {config.model, config.prompts, config.rewards[0].path}
    samples = (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(samples) == 4
    assert json.loads(samples[0]).keys() == {"step", "prompt", "completion", "score"}
    assert not (out / "checkpoints").exists()
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    start = AutoModelForCausalLM.from_pretrained(path)
    assert all(
        not torch.equal(new, old)
        for new, old in zip(model.parameters(), start.parameters(), strict=True)
    )
    assert json.loads((out / "model" / "tether.json").read_text())["made_by"] == "tether ppo"


@KINDS
def test_the_same_seed_gives_the_same_weights_another_seed_others(tmp_path, kind):
    path = toys.save(tmp_path, kind)
    runs = [
        toys.weights(train_ppo(toys.ppo(tmp_path, path, out=str(tmp_path / name), seed=seed)))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    toys.assert_same(runs[0], runs[1])
    with pytest.raises(AssertionError, match="differs"):
        toys.assert_same(runs[0], runs[2], atol=1e-4)


@KINDS
def test_it_learns_to_be_kind(tmp_path, kind):
    config = toys.ppo(
        tmp_path,
        toys.save(tmp_path, kind, initializer_range=0.05),
        steps=20,
        batch_size=32,
        kl=KLConfig(beta=0.02),
        optimizer=OptimizerConfig(learning_rate=5e-3, schedule="constant"),
        value=ValueConfig(learning_rate=5e-3),
        missing_eos_penalty=0.0,
    )
    rows = toys.metrics(train_ppo(config))
    before, after = (np.mean([row["score_raw"] for row in part]) for part in (rows[:3], rows[-3:]))
    assert before < 1 < 3 < after
    assert rows[-1]["kl"] > 1


@pytest.mark.parametrize("reward", ["kind", "short"])
def test_batches_of_one(tmp_path, reward):
    rewards = (RewardConfig(path=f"{toys.write_rewards(tmp_path)}:{reward}"),)
    config = toys.ppo(
        tmp_path, toys.save(tmp_path), batch_size=1, minibatches=1, steps=3, rewards=rewards
    )
    for row in toys.metrics(train_ppo(config)):
        assert all(math.isfinite(value) for value in row.values())


def test_one_token_and_one_row_are_safe(tmp_path):
    config = toys.ppo(
        tmp_path,
        toys.save(tmp_path),
        batch_size=1,
        minibatches=1,
        sampling=SamplingConfig(max_new_tokens=1),
    )
    for row in toys.metrics(train_ppo(config)):
        assert row["policy_loss"] == 0  # a single advantage, standardized, is 0
        assert row["length"] == 1


@MODELS
def test_another_temperature_starts_at_no_distance(tmp_path, kind, pad_is_eos):
    sampling = SamplingConfig(max_new_tokens=6, temperature=0.6)
    config = toys.ppo(tmp_path, toys.save(tmp_path, kind, pad_is_eos), sampling=sampling)
    row = toys.metrics(train_ppo(config))[0]
    assert row["kl"] == pytest.approx(0, abs=1e-5)
    assert row["logprob_gap_max"] < 1e-4
    assert row["sampler_trusted"] == 1


def test_a_cut_completion_may_be_valued_as_if_it_went_on(tmp_path):
    path = toys.save(tmp_path)
    reward = trained_reward(tmp_path, path)  # so that values are not 0
    rows = [
        toys.metrics(
            train_ppo(
                toys.ppo(
                    tmp_path,
                    path,
                    steps=1,
                    out=str(tmp_path / f"{bootstrap}"),
                    gae=GAEConfig(bootstrap=bootstrap),
                    rewards=(RewardConfig(path=reward),),
                )
            )
        )[0]
        for bootstrap in (False, True)
    ]
    assert rows[0]["score"] == rows[1]["score"]
    assert rows[0]["reward"] != pytest.approx(rows[1]["reward"], abs=1e-3)


def test_every_prompt_has_its_turn(tmp_path, monkeypatch):
    asked = []
    rollout_of = online.rollout_of

    def spied(policy, prompts, *arguments):
        asked.append(prompts)
        return rollout_of(policy, prompts, *arguments)

    monkeypatch.setattr(online, "rollout_of", spied)
    train_ppo(toys.ppo(tmp_path, toys.save(tmp_path), steps=4, batch_size=4))
    every = sorted(row["prompt"] for row in toys.PROMPTS)
    assert sorted(asked[0] + asked[1]) == sorted(asked[2] + asked[3]) == every
    assert asked[:2] != asked[2:]  # another order in the second epoch


# --- reference ------------------------------------------------------------------------------------


def test_a_tether_to_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"kl\.beta=0\.1 needs a reference; leave reference"):
        toys.ppo(tmp_path, "x", reference="none")


@pytest.mark.parametrize("kl_config", [KLConfig(beta=0.0), KLConfig(beta=0.0, placement="loss")])
def test_no_reference_and_no_tether(tmp_path, kl_config):
    config = toys.ppo(tmp_path, toys.save(tmp_path), reference="none", kl=kl_config, steps=3)
    assert [row["kl"] for row in toys.metrics(train_ppo(config))] == [None, None, None]


@KINDS
def test_a_reference_of_its_own(tmp_path, kind):
    path = toys.save(tmp_path, kind)
    other = toys.save(tmp_path / "other", kind, seed=1)
    row = toys.metrics(train_ppo(toys.ppo(tmp_path, path, reference=other)))[0]
    assert row["kl"] > 1


def test_a_reference_of_other_words_is_refused(tmp_path):
    tokenizer = word_tokenizer(WORDS[::-1])
    other = toys.save(tmp_path / "other", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="has another vocabulary than the policy"):
        train_ppo(toys.ppo(tmp_path, toys.save(tmp_path), reference=other))
    assert not (tmp_path / "ppo").exists()


def test_a_start_that_is_not_the_reference_is_caught(tmp_path, monkeypatch):
    path, other = toys.save(tmp_path), toys.save(tmp_path / "other", seed=1)
    load = loading.load

    def mistaken(name, compute, *, trainable=False, **settings):
        return load(name if trainable else other, compute, trainable=trainable, **settings)

    monkeypatch.setattr(loading, "load", mistaken)
    with pytest.raises(CheckError, match="the reference is not the frozen start"):
        train_ppo(toys.ppo(tmp_path, path))
    assert {file.name for file in (tmp_path / "ppo").iterdir()} == {"config.toml"}


def test_dropout_that_survives_loading_is_caught(tmp_path, monkeypatch):
    load = loading.load

    def careless(name, compute, **settings):
        language_model = load(name, compute, **settings)
        language_model.model.transformer.drop.p = 0.1
        return language_model

    monkeypatch.setattr(loading, "load", careless)
    with pytest.raises(CheckError, match=r"dropout is on in transformer\.drop"):
        train_ppo(toys.ppo(tmp_path, toys.save(tmp_path, "gpt2")))


def test_dropout_of_the_directory_is_set_to_0(tmp_path):
    config = toys.ppo(tmp_path, toys.save(tmp_path, "gpt2", dropout=0.3))
    assert toys.metrics(train_ppo(config))[0]["kl"] == pytest.approx(0, abs=1e-5)


# --- β --------------------------------------------------------------------------------------------


def test_adaptive_beta_follows_the_kl_of_every_rollout(tmp_path):
    config = toys.ppo(
        tmp_path,
        toys.save(tmp_path),
        steps=4,
        kl=KLConfig(beta=0.1, target=0.2, horizon=20),
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="constant"),
    )
    rows = toys.metrics(train_ppo(config))
    beta = 0.1
    for row in rows:
        assert row["beta"] == pytest.approx(beta)
        beta *= 1 + min(max(row["kl"] / 0.2 - 1, -0.2), 0.2) * 8 / 20
    assert rows[1]["beta"] == pytest.approx(0.092)  # the first rollout is at KL 0
    assert rows[-1]["beta"] > rows[1]["beta"]


@pytest.mark.parametrize("changes", [{"horizon": 1}, {"target": -1.0}, {"horizon": 0}])
def test_a_beta_that_cannot_be_steered_is_refused(tmp_path, changes):
    with pytest.raises(ConfigError, match=r"kl\.(horizon|target)="):
        toys.ppo(tmp_path, "x", kl=KLConfig(**{"beta": 0.1, "target": 6.0, **changes}))


# --- interrupted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
@KINDS
def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path, kind, shared, monkeypatch):
    """β goes on adapting, the reference is still the start, to the last bit."""
    settings = {
        "steps": 6,
        "checkpoint_every": 2,
        "kl": KLConfig(beta=0.1, target=0.2, horizon=20),
        "value": ValueConfig(shared=shared, learning_rate=1e-3),
        "optimizer": OptimizerConfig(learning_rate=3e-3, warmup_steps=2),
    }
    path = toys.save(tmp_path, kind)
    whole = train_ppo(toys.ppo(tmp_path, path, out=str(tmp_path / "whole"), **settings))
    config = toys.ppo(tmp_path, path, out=str(tmp_path / "resumed"), **settings)
    interrupted_after(5, monkeypatch, config)
    kept = sorted(p.name for p in (tmp_path / "resumed/checkpoints").iterdir())
    assert kept == ["step-000002", "step-000004"]
    assert not (tmp_path / "resumed" / "model").exists()
    resumed = train_ppo(config)
    toys.assert_same(toys.weights(whole), toys.weights(resumed))
    rows = without_times(toys.metrics(whole))
    assert without_times(toys.metrics(resumed)) == rows
    assert len({row["beta"] for row in rows}) == 6
    assert (whole / "samples.jsonl").read_text() == (resumed / "samples.jsonl").read_text()


def test_interrupted_twice_and_at_the_very_end(tmp_path, monkeypatch):
    path = toys.save(tmp_path)
    settings = {"steps": 4, "checkpoint_every": 1}
    whole = train_ppo(toys.ppo(tmp_path, path, out=str(tmp_path / "whole"), **settings))
    config = toys.ppo(tmp_path, path, out=str(tmp_path / "resumed"), **settings)
    interrupted_after(2, monkeypatch, config)
    interrupted_after(4, monkeypatch, config)
    write_model = StageFolder.write_model
    monkeypatch.setattr(StageFolder, "write_model", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # all steps are done, the model is not written
        train_ppo(config)
    monkeypatch.setattr(StageFolder, "write_model", write_model)
    resumed = train_ppo(config)
    toys.assert_same(toys.weights(whole), toys.weights(resumed))
    assert toys.result(resumed)["last"]["step"] == toys.result(resumed)["steps"] == 4


def test_a_reference_that_changed_meanwhile_is_refused(tmp_path, monkeypatch):
    path = toys.save(tmp_path)
    config = toys.ppo(tmp_path, path, steps=4, checkpoint_every=1)
    interrupted_after(3, monkeypatch, config)
    toys.save(tmp_path, seed=1)  # in the same place
    with pytest.raises(ConfigError, match=r"llama-False' has changed since .* delete"):
        train_ppo(config)


# --- stopping -------------------------------------------------------------------------------------


def test_too_far_from_the_reference_it_stops(tmp_path):
    config = toys.ppo(
        tmp_path,
        toys.save(tmp_path),
        steps=12,
        stop=StopConfig(kl=0.5),
        optimizer=OptimizerConfig(learning_rate=3e-3),
    )
    out = train_ppo(config)
    distances = [row["kl"] for row in toys.metrics(out)]
    assert max(distances[:-1]) <= 0.5 < distances[-1]
    assert 1 < len(distances) < 12
    found = toys.result(out)
    assert found["steps"] == len(distances)
    assert found["stopped"] == f"KL {distances[-1]:.2f} nats per sequence exceeds stop.kl=0.5"
    assert (out / "model" / "model.safetensors").exists()


def test_with_the_score_it_was_to_reach_it_stops(tmp_path):
    config = toys.ppo(
        tmp_path, toys.save(tmp_path), steps=5, stop=StopConfig(score=-100.0), batch_size=4
    )
    found = toys.result(train_ppo(config))
    assert found["steps"] == 1
    assert found["stopped"].endswith("reached stop.score=-100.0")


def test_a_stopped_run_that_is_killed_before_its_end_stops_there_again(tmp_path, monkeypatch):
    config = toys.ppo(
        tmp_path,
        toys.save(tmp_path),
        steps=12,
        checkpoint_every=1,
        stop=StopConfig(kl=0.5),
        optimizer=OptimizerConfig(learning_rate=3e-3),
    )
    write_model = StageFolder.write_model
    monkeypatch.setattr(StageFolder, "write_model", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_ppo(config)
    steps = len(toys.metrics(tmp_path / "ppo"))
    monkeypatch.setattr(StageFolder, "write_model", write_model)
    train_ppo(config)
    assert len(toys.metrics(tmp_path / "ppo")) == steps < 12


# --- value ----------------------------------------------------------------------------------------


@KINDS
def test_the_value_starts_as_the_centred_reward_model(tmp_path, kind):
    path = toys.save(tmp_path, kind)
    reward = trained_reward(tmp_path, path)
    rewards = (RewardConfig(path=reward),)
    for value in (ValueConfig(), ValueConfig(init=reward)):
        roles = loading.load_roles(toys.ppo(tmp_path, path, rewards=rewards, value=value))
        start = load_reward_model(reward, ComputeConfig())
        shift, scale = start.centering
        hidden = torch.linspace(-1, 1, 64).reshape(2, 32)
        expected = (start.numbers(hidden) - shift) / scale
        torch.testing.assert_close(roles.value.numbers(hidden), expected, rtol=1e-5, atol=1e-6)
        assert roles.value.model is not roles.rewards[0].model.model  # the reward stays as it is
        assert all(p.requires_grad for p in roles.value.model.base_model.parameters())
        assert not any(p.requires_grad for p in roles.rewards[0].model.model.parameters())


def test_beside_an_encoder_or_a_classifier_the_value_starts_as_the_policy(tmp_path):
    path = toys.save(tmp_path)
    encoder = new_reward_model(str(save_encoder(tmp_path / "encoder")), ComputeConfig())
    encoder.centering = Centering(0.0, 1.0)
    save_reward_model(encoder, tmp_path / "reward", {})
    labels = {"id2label": {0: "rude", 1: "kind"}}
    classifier = str(save_encoder(tmp_path / "classifier", labels=2, **labels))
    start = load(path, ComputeConfig()).model.base_model.state_dict()
    for reward in (
        RewardConfig(path=str(tmp_path / "reward")),
        RewardConfig(path=classifier, label="kind"),
    ):
        config = toys.ppo(tmp_path, path, rewards=(reward,), out=str(tmp_path / "out"))
        value = loading.load_roles(config).value
        toys.assert_same(value.model.base_model.state_dict(), start)
        assert not value.head.weight.any()
        train_ppo(config)
        shutil.rmtree(tmp_path / "out")


def test_an_encoder_as_the_start_of_the_value_is_refused(tmp_path):
    path = toys.save(tmp_path)
    encoder = new_reward_model(str(save_encoder(tmp_path / "encoder")), ComputeConfig())
    save_reward_model(encoder, tmp_path / "reward", {})
    config = toys.ppo(tmp_path, path, value=ValueConfig(init=str(tmp_path / "reward")))
    with pytest.raises(ConfigError, match=r"value\.init=.* is an encoder, .* give a decoder"):
        loading.load_roles(config)


def test_a_value_start_of_other_words_is_refused(tmp_path):
    path = toys.save(tmp_path)
    other = toys.save(tmp_path / "other", tokenizer=word_tokenizer(WORDS[::-1]))
    model = new_reward_model(other, ComputeConfig())
    save_reward_model(model, tmp_path / "reward of others", {})
    init = str(tmp_path / "reward of others")
    with pytest.raises(ConfigError, match=r"value\.init=.* has another vocabulary than the policy"):
        train_ppo(toys.ppo(tmp_path, path, value=ValueConfig(init=init)))
    assert not (tmp_path / "ppo").exists()


def test_a_reward_model_of_other_words_scores_texts_and_starts_no_value(tmp_path):
    """The reward is given texts, so its vocabulary is its own affair."""
    path = toys.save(tmp_path)
    other = toys.save(tmp_path / "other", "gpt2", tokenizer=word_tokenizer(WORDS[::-1]))
    rewards = (RewardConfig(path=trained_reward(tmp_path, other)),)
    roles = loading.load_roles(toys.ppo(tmp_path, path, rewards=rewards))
    assert type(roles.value.model) is type(roles.policy.model)
    assert roles.value.model is not roles.policy.model
    by_hand = load_reward_model(rewards[0].path, ComputeConfig())
    prompt, completion = "the cat ", "helps me"
    ids = by_hand.tokenizer(f"{prompt}{completion} <eos>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = by_hand.model(input_ids=ids).logits.item()
    found = roles.rewards[0].raw([prompt], [completion])
    assert found == pytest.approx([expected], abs=1e-5)
    assert by_hand.tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
def test_value_and_policy_learn_from_a_reward_model(tmp_path, shared):
    path = toys.save(tmp_path, initializer_range=0.05)
    config = toys.ppo(
        tmp_path,
        path,
        steps=12,
        batch_size=32,
        rewards=(RewardConfig(path=trained_reward(tmp_path, path)),),
        kl=KLConfig(beta=0.02),
        value=ValueConfig(shared=shared, learning_rate=5e-3, clip=0.0),
        optimizer=OptimizerConfig(learning_rate=5e-3, schedule="constant"),
        missing_eos_penalty=0.0,
    )
    rows = toys.metrics(train_ppo(config))
    assert np.mean([row["score"] for row in rows[:2]]) < 0.5
    assert np.mean([row["score"] for row in rows[-2:]]) > 0.8
    assert all(row["value_grad_norm"] > 0 and row["grad_norm"] > 0 for row in rows)


def test_one_head_on_two_backbones_is_refused():
    with pytest.raises(ConfigError, match=r"value\.init='x' is unused with value\.shared"):
        ValueConfig(shared=True, init="x")


# --- rewards --------------------------------------------------------------------------------------


def test_several_rewards_are_weighted(tmp_path):
    file = toys.write_rewards(tmp_path)
    rewards = (
        RewardConfig(path=f"{file}:kind", weight=2.0),
        RewardConfig(path=f"{file}:short", weight=0.25),
    )
    config = toys.ppo(tmp_path, toys.save(tmp_path), rewards=rewards, missing_eos_penalty=0.5)
    for row in toys.metrics(train_ppo(config)):
        assert row["score_1"] == pytest.approx(2 * row["score_raw"])
        fined = 0.5 * (1 - row["finished"])
        assert row["score"] == pytest.approx(row["score_1"] + row["score_2"] - fined, abs=1e-6)
        assert row["score_2"] < 0 <= row["score_1"]


def test_rules_and_filters_are_logged_apart(tmp_path):
    rewards = (
        RewardConfig(rule="length", settings={"most": 2, "slack": 9}),
        RewardConfig(rule="repetition", settings={"n": 1}, weight=0.5),
        RewardConfig(
            rule="required", settings={"phrases": ["no"]}, role="reject", threshold=0.5, floor=-3.0
        ),
    )
    config = toys.ppo(tmp_path, toys.save(tmp_path), rewards=rewards, missing_eos_penalty=0.0)
    for row in toys.metrics(train_ppo(config)):
        assert row["score_length"] == row["score_raw"]
        assert 0 <= row["score_length"] <= 1
        assert -0.5 <= row["score_repetition"] <= 0
        assert row["score_required"] == pytest.approx(1 - row["rejected_required"])
        summed = row["score_length"] + row["score_repetition"]
        assert row["score"] <= summed + 1e-6
        assert row["score"] == pytest.approx(summed) or row["rejected_required"] > 0


def test_a_prompt_without_an_answer_is_told_before_the_first_step(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"prompt": "another", "answer": 3}')
    rule = RewardConfig(rule="answer", settings={"answers": str(tmp_path / "answers.jsonl")})
    config = toys.ppo(tmp_path, toys.save(tmp_path), rewards=(rule,))
    with pytest.raises(DataError, match="no answer for the prompt"):
        train_ppo(config)
    assert not (tmp_path / "ppo").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", r"returned nan for the completion '.*' of the prompt '.*'; scores must be finite"),
        ("too_few", r"returned 1 scores for 8 completions; it must return one for each"),
    ],
)
def test_a_broken_reward_leaves_nothing_half_written(tmp_path, name, message):
    path = f"{toys.write_rewards(tmp_path)}:{name}"
    config = toys.ppo(tmp_path, toys.save(tmp_path), rewards=(RewardConfig(path=path),))
    with pytest.raises(CheckError, match=message):
        train_ppo(config)
    assert {file.name for file in (tmp_path / "ppo").iterdir()} == {"config.toml"}


def test_a_mended_reward_may_take_the_same_folder(tmp_path):
    path = toys.save(tmp_path)
    file = toys.write_rewards(tmp_path)
    config = toys.ppo(tmp_path, path, rewards=(RewardConfig(path=f"{file}:nan"),))
    with pytest.raises(CheckError):
        train_ppo(config)
    (tmp_path / "rewards.py").write_text("def nan(prompts, completions):\n    return [0.0] * 8\n")
    assert toys.result(train_ppo(config))["steps"] == 2


def test_a_policy_is_no_reward_model(tmp_path):
    path = toys.save(tmp_path)
    with pytest.raises(ModelError, match=r"is no reward model .* train one with"):
        train_ppo(toys.ppo(tmp_path, path, rewards=(RewardConfig(path=path),)))
    assert not (tmp_path / "ppo").exists()


def test_beta_is_that_of_the_controller(tmp_path):
    beta = online.Beta(0.1, kl.AdaptiveBeta(0.1, 5.0, 100))
    beta.update(10.0, 50)  # twice the target: 1 + 0.2 · 50/100
    assert beta.value == pytest.approx(0.11)
    fixed = online.Beta(0.1, None)
    fixed.update(10.0, 50)
    assert fixed.value == 0.1


def test_sampling_that_ppo_cannot_differentiate_is_refused():
    for changes in ({"top_p": 0.9}, {"top_k": 50}):
        with pytest.raises(ConfigError, match="sample from another distribution"):
            SamplingConfig(**changes)
    assert SAMPLING.top_p == 1

"""Footprints of generate and ppo: cache, roles, batches, and what makes them smaller."""

import pytest

from tests.footprint.test_fit import BACKBONE, LANGUAGE_MODEL, phase
from tests.train import toys
from tether.config import (
    BestOfNConfig,
    GenerateConfig,
    GRPOConfig,
    OnlineDPOConfig,
    ReinforceConfig,
    RewardConfig,
    RLOOConfig,
)
from tether.errors import ConfigError
from tether.footprint.rollout import of_generate, of_online
from tether.sections import ComputeConfig, KLConfig, LoraConfig, SamplingConfig, ValueConfig

CACHED = 2 * 2 * 16 * 4  # bytes of a token: keys and values, two layers, one head of 16, float32
LONGEST = 6  # words of the longest prompts


@pytest.fixture
def model(tmp_path):
    return toys.save(tmp_path)


def generate(tmp_path, model, **settings):
    prompts = toys.write_rows(tmp_path / "prompts.jsonl", toys.PROMPTS)
    sampling = SamplingConfig(**{"max_new_tokens": 20, "batch_size": 16, **settings})
    return GenerateConfig(out="", model=model, prompts=prompts, num=3, sampling=sampling)


def test_the_cache_of_generate_by_hand(tmp_path, model):
    found = of_generate(generate(tmp_path, model), known=True)
    assert [each.name for each in found.phases] == ["generate"]
    assert found.peak.parts["KV cache"] == 16 * (LONGEST + 20) * CACHED
    assert found.peak.parts["optimizer"] == found.peak.parts["gradients"] == 0
    assert (found.batches.device, found.batches.samples, found.batches.tokens) == (16, 24, 480)
    assert found.batches.tokens_at_most
    assert found.notes == []


def test_the_cache_of_all_rows_where_they_fit_together(tmp_path, model):
    found = of_generate(generate(tmp_path, model, batch_size=256), known=True)
    assert found.peak.parts["KV cache"] == 24 * (LONGEST + 20) * CACHED
    assert found.batches.device == 24


def test_a_cache_in_bfloat16_is_half_as_large(tmp_path, model):
    config = generate(tmp_path, model)
    wide, narrow = (
        of_generate(
            GenerateConfig(
                out="",
                model=model,
                prompts=config.prompts,
                sampling=config.sampling,
                compute=ComputeConfig(precision=precision),
            ),
            known=True,
        ).peak.parts["KV cache"]
        for precision in ("float32", "bfloat16")
    )
    assert wide == 2 * narrow


def test_a_model_without_grouped_heads_has_as_many_as_it_asks_with(tmp_path):
    gpt2 = toys.save(tmp_path, "gpt2")  # two heads of 16
    found = of_generate(generate(tmp_path, gpt2), known=True)
    assert found.peak.parts["KV cache"] == 16 * (LONGEST + 20) * 2 * CACHED


def test_prompts_that_are_not_there_may_fill_the_positions(tmp_path, model):
    found = of_generate(generate(tmp_path, model), known=False)
    assert found.peak.parts["KV cache"] == 16 * 64 * CACHED
    assert found.batches.samples is None
    assert found.notes == [
        "its prompts are not there yet: each is taken to have 44 tokens (what the completion "
        "leaves of the model's positions)"
    ]


def test_prompts_that_leave_no_room_are_refused_as_in_a_run(tmp_path, model):
    with pytest.raises(ConfigError, match="it exceeds the model's 64 positions"):
        of_generate(generate(tmp_path, model, max_new_tokens=60), known=True)


# --- ppo ------------------------------------------------------------------------------------------


def test_the_roles_of_ppo_by_hand(tmp_path, model):
    """Policy and value model are trained; the value model starts as the policy, head and all."""
    found = of_online(toys.ppo(tmp_path, model), known=True)
    assert [each.name for each in found.phases] == ["generate", "score", "train", "update"]
    update = phase(found, "update")
    trained = LANGUAGE_MODEL + BACKBONE + 33
    assert update["gradients"] == 4 * trained
    assert update["optimizer"] == 8 * trained
    frequencies = 3 * 2 * 8 * 4
    assert update["weights"] == 4 * (3 * LANGUAGE_MODEL + 33) + frequencies
    assert phase(found, "generate")["KV cache"] == 8 * (LONGEST + 6) * CACHED
    assert found.notes == ["what a reward function or a judge holds is not counted"]


def test_batches_of_ppo_by_hand(tmp_path, model):
    config = toys.ppo(tmp_path, model, steps=5, epochs=3, minibatches=4, device_batch_size=1)
    batches = of_online(config, known=True).batches
    assert (batches.rollout, batches.optimizer, batches.device) == (8, 2, 1)
    assert (batches.steps_per_rollout, batches.steps) == (12, 60)
    assert (batches.samples, batches.tokens) == (40, 40 * 6)


@pytest.mark.parametrize(
    ("changes", "models"),
    [
        ({}, 3),
        ({"reference": "none", "kl": KLConfig(beta=0.0)}, 2),
        ({"kl": KLConfig(beta=0.0)}, 2),
        ({"value": ValueConfig(shared=True)}, 2),
    ],
    ids=["all", "no reference", "no tether", "shared"],
)
def test_a_role_that_is_off_has_no_weights(tmp_path, model, changes, models):
    found = of_online(toys.ppo(tmp_path, model, **changes), known=True)
    weights = phase(found, "train")["weights"]
    assert weights == models * (4 * LANGUAGE_MODEL + 64) + 4 * 33


def test_reward_models_stand_beside_the_value_model_that_starts_as_one(tmp_path, model):
    """Here the folder holds a language model: what a reward model yet to be trained starts from."""
    found = of_online(toys.ppo(tmp_path, model, rewards=(RewardConfig(path=model),)), known=True)
    scalar = 4 * (BACKBONE + 32) + 64
    weights = phase(found, "train")["weights"]
    assert weights == 2 * (4 * LANGUAGE_MODEL + 64) + 2 * scalar + 4 * 33
    assert found.notes == []


def test_adapters_stand_on_one_backbone(tmp_path, model):
    """Rank 4 on q, k, v, o, gate, up, down: 4·(64 + 48 + 48 + 64 + 80 + 80 + 80) in two layers."""
    adapter = 2 * 4 * 464
    reward = (RewardConfig(path=model),)  # an adapter that is yet to be trained
    config = toys.ppo(tmp_path, model, rewards=reward, lora=LoraConfig(rank=4))
    update = phase(of_online(config, known=True), "update")
    trained = 2 * adapter + 33  # policy, value, and the value's head
    assert update["gradients"] == 4 * trained
    assert update["optimizer"] == 8 * trained
    frozen = adapter + 32  # the reward's, with its head
    assert update["weights"] == 4 * (LANGUAGE_MODEL + trained + frozen) + 64
    without = toys.ppo(tmp_path, model, lora=LoraConfig(rank=4))
    weights = phase(of_online(without, known=True), "update")["weights"]
    assert weights == 4 * (LANGUAGE_MODEL + trained) + 64


def test_smaller_batches_hold_less(tmp_path, model):
    def train(**changes):
        parts = phase(of_online(toys.ppo(tmp_path, model, **changes), known=True), "train")
        return parts["activations"] + parts["logits"]

    assert train(minibatches=2) > train(minibatches=4)
    assert train(minibatches=2) > train(minibatches=2, device_batch_size=2)


def test_smaller_device_batches_hold_less_while_scoring(tmp_path, model):
    whole, cut = (
        phase(of_online(toys.ppo(tmp_path, model, device_batch_size=rows), known=True), "score")
        for rows in (0, 1)
    )
    assert cut["activations"] + cut["logits"] < whole["activations"] + whole["logits"]


# --- its relatives --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "optimizer_batch"),
    [
        (GRPOConfig, 4),
        (RLOOConfig, 4),
        (ReinforceConfig, 4),
        (OnlineDPOConfig, 4),
        (BestOfNConfig, 1),
    ],
)
def test_a_relative_of_ppo_holds_policy_and_reference(tmp_path, model, method, optimizer_batch):
    """8 completions a step, 2 minibatches; best-of-n learns one of four."""
    config = toys.online(method, tmp_path, model, **({"num": 4} if method is GRPOConfig else {}))
    found = of_online(config, known=True)
    assert [each.name for each in found.phases] == ["generate", "score", "train", "update"]
    update = phase(found, "update")
    assert update["gradients"] == 4 * LANGUAGE_MODEL
    assert update["optimizer"] == 8 * LANGUAGE_MODEL
    assert update["weights"] == 4 * 2 * LANGUAGE_MODEL + 2 * 2 * 8 * 4
    assert found.batches.optimizer == optimizer_batch
    assert found.batches.samples == 16

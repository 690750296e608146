"""Training with LoRA: policy, value, reward and reference as adapters on one backbone."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import save_encoder
from tests.train import toys
from tests.train.test_family import METHODS, run
from tests.train.test_online import interrupted_after, without_times
from tests.train.toys import KINDS
from tether.config import (
    DPOConfig,
    IPOConfig,
    KTOConfig,
    MergeConfig,
    ORPOConfig,
    RewardConfig,
    SimPOConfig,
)
from tether.data.batches import Row, pad
from tether.errors import ConfigError
from tether.models import adapters
from tether.models.chat import encode, encode_prompt
from tether.models.checkpoint import load_checkpoint
from tether.models.language_model import load
from tether.models.merge import merge
from tether.rewards.load import load_reward
from tether.sections import ComputeConfig, LoraConfig, OptimizerConfig, ValueConfig
from tether.train import online
from tether.train.kto import train_kto
from tether.train.online import train_ppo
from tether.train.preference import train_dpo, train_ipo, train_orpo, train_simpo
from tether.train.reward import train_reward
from tether.train.roles import load_roles
from tether.train.sft import train_sft

RANK4 = LoraConfig(rank=4)
FAST = OptimizerConfig(learning_rate=1e-2)
ROWS = [
    {
        "prompt": "the cat ",
        "completions": ["helps please", "fears it", "sees it"],
        "ranks": [1, 3, 2],
    },
    {"prompt": "who ", "completions": ["the kind dog", "no"], "ranks": [1, 2]},
    {"prompt": "a dog ", "completions": ["fears a bird", "thanks a kind bird"], "ranks": [2, 1]},
]


def sft_adapter(tmp_path, base):
    config = toys.sft(tmp_path, base, lora=RANK4, max_steps=3, optimizer=FAST)
    return str(train_sft(config) / "model")


def reward_adapter(tmp_path, start, **changes):
    config = toys.reward(tmp_path, start, ROWS, lora=RANK4, optimizer=FAST, epochs=2.0, **changes)
    return str(train_reward(config) / "model")


def settings(tmp_path, model, *rewards, **changes):
    chosen = {"rewards": tuple(RewardConfig(path=path) for path in rewards)} if rewards else {}
    return toys.ppo(tmp_path, model, lora=RANK4, optimizer=FAST, **chosen, **changes)


def adapter_weights(folder):
    return load_file(f"{folder}/{adapters.WEIGHTS}")


def backbones(roles):
    held = [roles.policy, roles.reference, roles.value, *(r.model for r in roles.rewards)]
    return {id(each.model) for each in held if each}


# --- end to end -----------------------------------------------------------------------------------


@KINDS
def test_from_demonstrations_to_a_policy_on_one_base(tmp_path, kind):
    base = toys.save(tmp_path, kind)
    before = toys.load_file(f"{base}/model.safetensors")
    start = sft_adapter(tmp_path, base)
    reward = reward_adapter(tmp_path, start)
    config = settings(tmp_path, start, reward, steps=2)
    roles = load_roles(config)
    assert len(backbones(roles)) == 1
    names = (roles.policy, roles.reference, roles.value, roles.rewards[0].model)
    assert [each.adapter for each in names] == ["policy", "reference", "value", "reward"]
    out = train_ppo(config)
    rows = toys.metrics(out)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(rows[1]["kl"]) > 1e-4
    assert all(row["grad_norm"] > 0 and row["value_grad_norm"] > 0 for row in rows)
    assert adapters.base_of(str(out / "model")) == base
    assert any(
        (w - adapter_weights(start)[k]).abs().max() > 1e-4
        for k, w in adapter_weights(out / "model").items()
    )
    toys.assert_same(before, toys.load_file(f"{base}/model.safetensors"))
    assert not (out / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("start", ["base", "adapter"])
@KINDS
def test_before_the_first_update_the_policy_is_the_reference(tmp_path, kind, start):
    # `check_first_minibatch` runs inside, with a limit of 1e-6 nats a token and on the ratio.
    base = toys.save(tmp_path, kind)
    model = sft_adapter(tmp_path, base) if start == "adapter" else base
    rows = toys.metrics(train_ppo(settings(tmp_path, model, steps=1)))
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert rows[0]["logprob_gap_max"] < 1e-4


@KINDS
def test_policy_and_value_move_and_nothing_else_does(tmp_path, kind):
    base = toys.save(tmp_path, kind)
    reward = reward_adapter(tmp_path, base)
    config = settings(tmp_path, base, reward, steps=1, epochs=1, minibatches=2)
    roles = load_roles(config)
    before = {name: p.detach().clone() for name, p in roles.policy.model.named_parameters()}
    head = roles.value.head.weight.detach().clone()
    run = online.Run(
        *(config, online.StageFolder(config, "ppo", []), roles),
        *(online._optimizer(config, roles), online.beta_of(config)),
        source=roles.source,
        prompts=[row["prompt"] for row in toys.PROMPTS],
        ids=[encode_prompt(roles.policy.tokenizer, row["prompt"]) for row in toys.PROMPTS],
        ptx=None,
    )
    run.folder.begin()
    online._update(run, 0, first=True)
    moved = {n for n, p in roles.policy.model.named_parameters() if not torch.equal(p, before[n])}
    assert {name.split(".")[-2] for name in moved} == {"policy", "value"}
    every = {n for n in before if ".policy." in n or ".value." in n}
    # B starts at 0 in a new policy adapter, so A has no gradient in the very first minibatch.
    assert moved == every
    assert not torch.equal(roles.value.head.weight, head)


def test_the_adapters_values_are_those_of_a_model_of_its_own(tmp_path):
    # The value model as an adapter of the policy's backbone, against one on a backbone of its own.
    base = toys.save(tmp_path)
    reward = reward_adapter(tmp_path, base)
    one = load_roles(settings(tmp_path, base, reward)).value
    apart = load_roles(toys.ppo(tmp_path, base, rewards=(RewardConfig(path=reward),))).value
    assert apart.adapter == ""  # folded, all of its weights are trained
    tokenizer = load(base, ComputeConfig()).tokenizer
    each = [encode(tokenizer, row["prompt"], row["completion"]) for row in toys.DEMONSTRATIONS]
    batch = pad([Row(encoded.ids, encoded.num_prompt) for encoded in each])
    with torch.no_grad():
        torch.testing.assert_close(one.values(batch), apart.values(batch), atol=1e-5, rtol=0)


# --- which models share ---------------------------------------------------------------------------


def test_a_plain_reward_model_stays_a_model_of_its_own(tmp_path):
    base = toys.save(tmp_path)
    full = str(train_reward(toys.reward(tmp_path, base, ROWS)) / "model")
    roles = load_roles(settings(tmp_path, base, full))
    assert len(backbones(roles)) == 2
    assert (roles.value.adapter, roles.reference.adapter) == ("value", "")
    assert not roles.value.head.weight.any()  # it starts afresh
    wanted = "is no adapter of .*, on which the policy's adapter is trained"
    with pytest.raises(ConfigError, match=wanted):
        load_roles(settings(tmp_path, base, value=ValueConfig(init=full)))


def test_an_adapter_of_another_base_stays_a_model_of_its_own(tmp_path):
    base, other = toys.save(tmp_path), toys.save(tmp_path / "other", seed=3)
    reward = reward_adapter(tmp_path, other)
    roles = load_roles(settings(tmp_path, base, reward))
    assert len(backbones(roles)) == 2
    assert roles.value.adapter == "value"


def test_a_reference_that_is_another_model(tmp_path):
    base, other = toys.save(tmp_path), toys.save(tmp_path / "other", seed=3)
    roles = load_roles(settings(tmp_path, base, reference=other))
    assert roles.reference.model is not roles.policy.model
    again = load_roles(settings(tmp_path, base, reference=base))
    assert again.reference.model is again.policy.model


def test_two_reward_adapters(tmp_path):
    base = toys.save(tmp_path)
    reward = reward_adapter(tmp_path, base)
    roles = load_roles(settings(tmp_path, base, reward, reward))
    assert [each.model.adapter for each in roles.rewards] == ["reward", "reward-2"]
    assert len(backbones(roles)) == 1


def test_a_head_on_the_policys_own_adapter(tmp_path):
    base = toys.save(tmp_path)
    config = settings(tmp_path, base, value=ValueConfig(shared=True))
    roles = load_roles(config)
    assert roles.value.shares_pass(roles.policy)
    assert len(roles.value_parameters) == 2  # weight and bias of the head
    assert toys.metrics(train_ppo(config))[0]["kl"] == pytest.approx(0, abs=1e-5)


def test_all_weights_from_an_adapter(tmp_path):
    # Without a rank the adapter is folded in: into the reference as well, so KL starts at 0.
    start = sft_adapter(tmp_path, toys.save(tmp_path))
    config = toys.ppo(tmp_path, start, steps=1)
    assert toys.metrics(train_ppo(config))[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert (tmp_path / "ppo" / "model" / "model.safetensors").is_file()


# --- checkpoints ----------------------------------------------------------------------------------


@KINDS
def test_a_run_that_was_cut_short_ends_bit_for_bit_the_same(tmp_path, kind, monkeypatch):
    base = toys.save(tmp_path, kind)
    reward = reward_adapter(tmp_path, base)

    def config(name):
        out = str(tmp_path / name)
        return settings(tmp_path, base, reward, steps=4, checkpoint_every=2, out=out)

    whole = train_ppo(config("whole"))
    interrupted_after(3, monkeypatch, config("cut"))
    [weights] = (tmp_path / "cut" / "checkpoints" / "step-000002").glob("*.safetensors")
    state = load_file(weights)
    state = {key: value for key, value in state.items() if not key.startswith("optimizer.")}
    roles = {key.split(".")[-2] for key in state if ".lora_" in key}
    assert roles == {"policy", "value"}
    kept = {key for key in state if ".lora_" not in key}
    assert kept == {"value_head.weight", "value_head.bias"}
    cut = train_ppo(config("cut"))
    assert without_times(toys.metrics(whole)) == without_times(toys.metrics(cut))
    toys.assert_same(adapter_weights(whole / "model"), adapter_weights(cut / "model"))


def test_a_checkpoint_holds_the_adapter_of_a_fit_only(tmp_path, monkeypatch):
    base = toys.save(tmp_path)
    seen = {}

    def looked_at(folder, modules, optimizer):
        seen.update(modules)
        return load_checkpoint(folder, modules, optimizer)

    monkeypatch.setattr("tether.train.loop.load_checkpoint", looked_at)
    sft_adapter(tmp_path, base)
    trained = [name for name, p in seen["model"].named_parameters() if p.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)


# --- the same learning ----------------------------------------------------------------------------


@KINDS
def test_sft_lowers_the_loss_and_device_batches_do_not_matter(tmp_path, kind):
    base = toys.save(tmp_path, kind)
    found = []
    for rows in (1, 3, 0):
        config = toys.sft(
            *(tmp_path, base),
            out=str(tmp_path / f"sft-{rows}"),
            lora=RANK4,
            max_steps=6,
            device_batch_size=rows,
            optimizer=FAST,
        )
        found.append(train_sft(config))
    losses = [row["loss"] for row in toys.metrics(found[0])]
    assert losses[-1] < losses[0] - 0.05
    for other in found[1:]:
        toys.assert_same(
            adapter_weights(found[0] / "model"), adapter_weights(other / "model"), atol=1e-4
        )


def test_gradient_checkpointing_ends_with_the_same_policy(tmp_path):
    base = toys.save(tmp_path)
    reward = reward_adapter(tmp_path, base)
    ends = []
    for anew in (False, True):
        compute = ComputeConfig(gradient_checkpointing=anew)
        out = str(tmp_path / f"ppo-{anew}")
        ends.append(train_ppo(settings(tmp_path, base, reward, out=out, compute=compute)))
    toys.assert_same(*(adapter_weights(out / "model") for out in ends), atol=1e-5)


def test_a_merged_policy_is_a_start_for_anything(tmp_path):
    start = sft_adapter(tmp_path, toys.save(tmp_path))
    merged = merge(MergeConfig(model=start, out=str(tmp_path / "merged"))) / "model"
    shutil.rmtree(start)
    assert toys.metrics(train_ppo(toys.ppo(tmp_path, merged, steps=1)))[0]["kl"] == pytest.approx(
        0, abs=1e-5
    )


# --- every method ---------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["base", "adapter"])
@pytest.mark.parametrize("method", [DPOConfig, IPOConfig, SimPOConfig, ORPOConfig])
def test_preference_methods_train_an_adapter(tmp_path, method, start):
    base = toys.save(tmp_path)
    model = sft_adapter(tmp_path, base) if start == "adapter" else base
    train = {DPOConfig: train_dpo, IPOConfig: train_ipo, SimPOConfig: train_simpo}
    config = toys.preference(
        tmp_path, model, method, lora=RANK4, optimizer=FAST, max_steps=2, checkpoint_every=1
    )
    out = train.get(method, train_orpo)(config)
    assert adapters.base_of(str(out / "model")) == base
    losses = [row["loss"] for row in toys.metrics(out)]
    if method is DPOConfig:  # policy and reference are one at first: -log σ(0)
        assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[1] < losses[0]


def test_kto_trains_an_adapter(tmp_path):
    base = toys.save(tmp_path)
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in toys.PAIRS
        for side in ("chosen", "rejected")
    ]
    config = toys.preference(tmp_path, base, KTOConfig, rows, lora=RANK4, optimizer=FAST)
    assert adapters.base_of(str(train_kto(config) / "model")) == base


@pytest.mark.parametrize("method", METHODS)
def test_relatives_of_ppo_train_an_adapter(tmp_path, method):
    base = toys.save(tmp_path)
    out = run(method, tmp_path, base, lora=RANK4, steps=2)
    assert toys.metrics(out)[0]["kl"] == pytest.approx(0, abs=1e-5)
    moved = [w for key, w in adapter_weights(out / "model").items() if "lora_B" in key]
    assert all(matrix.any() for matrix in moved)
    assert adapters.base_of(str(out / "model")) == base


def test_an_ensemble_of_heads_on_one_adapter(tmp_path):
    base = toys.save(tmp_path)
    reward = reward_adapter(tmp_path, base, heads=3)
    assert adapter_weights(reward)[adapters.HEAD].shape == (3, 32)
    roles = load_roles(settings(tmp_path, base, reward))
    assert len(backbones(roles)) == 1
    texts = (["the cat ", "who "], ["helps please", "no"])
    alone = load_reward(RewardConfig(path=reward), ComputeConfig())
    assert roles.rewards[0].raw(*texts) == pytest.approx(alone.raw(*texts), abs=1e-5)


def test_encoders_get_no_adapter(tmp_path):
    path = str(save_encoder(tmp_path / "encoder"))
    with pytest.raises(ConfigError, match=r"lora.rank=4 but Bert\w+ is an encoder"):
        reward_adapter(tmp_path, path)

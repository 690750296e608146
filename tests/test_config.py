import dataclasses
import math

import pytest

from tether.config import STAGES, PolicyConfig, RewardConfig, ScorerConfig
from tether.errors import ConfigError
from tether.sections import (
    ComputeConfig,
    GAEConfig,
    KLConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyLossConfig,
    PtxConfig,
    SamplingConfig,
    StopConfig,
    ValueConfig,
)

REWARD = RewardConfig(path="mine.py:f")
POLICIES = (PolicyConfig(name="a", model="x"), PolicyConfig(name="b", model="y"))
SCORERS = (ScorerConfig(name="gold", path="g.py:f"), ScorerConfig(name="proxy", path="r"))
NEEDED = {
    "sft": {"model": "m", "data": "d"},
    "reward": {"model": "m", "data": "d"},
    **{
        kind: {"model": "m", "prompts": "p", "rewards": (REWARD,)}
        for kind in ("ppo", "grpo", "rloo", "reinforce", "online-dpo", "best-of-n")
    },
    **{kind: {"model": "m", "data": "d"} for kind in ("dpo", "ipo", "simpo", "orpo", "kto")},
    "merge": {"model": "m"},
    "generate": {"model": "m", "prompts": "p"},
    "revise": {"model": "m", "prompts": "p"},
    "judge": {"model": "m", "data": "d"},
    "score": {"data": "d", "reward": REWARD},
    "simulate": {"data": "d", "scorer": "g.py:f"},
    "collect": {"data": ("d",)},
    "prepare": {"data": "d", "function": "g.py:f"},
    "sandbox": {},
    "pool": {"model": "m", "prompts": "p", "scorers": SCORERS},
    "evaluate": {"prompts": "p", "policies": POLICIES, "scorers": SCORERS},
    "evaluate-reward": {"data": "d", "scorers": SCORERS},
}


def make(kind, **settings):
    return STAGES[kind](**{"out": "o", **NEEDED[kind], **settings})


def assert_refused(message, make_config):
    with pytest.raises(ConfigError) as error:
        make_config()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


# --- every stage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NEEDED)
def test_what_a_stage_needs_is_enough(kind):
    assert set(NEEDED) == set(STAGES)
    config = make(kind)
    assert config.seed == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


@pytest.mark.parametrize("kind", NEEDED)
@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_is_a_whole_number_that_every_generator_takes(kind, seed):
    assert make(kind, seed=2**63 - 1).seed == 2**63 - 1
    message = f"seed={seed} must be a whole number from 0 to 2**63 - 1"
    assert_refused(message, lambda: make(kind, seed=seed))


# --- settings that cannot work --------------------------------------------------------------------

TRAINING = [
    ({"batch_size": 0}, "batch_size=0 must be a number above 0"),
    ({"batch_size": -4}, "batch_size=-4 must be a number above 0"),
    ({"device_batch_size": -1}, "device_batch_size=-1 must be a number of at least 0"),
    ({"checkpoint_every": -1}, "checkpoint_every=-1 must be a number of at least 0"),
]
EPOCHS = [
    ({"epochs": 0.0}, "epochs=0.0 must be a number above 0"),
    ({"epochs": math.nan}, "epochs=nan must be a number above 0"),
    ({"max_length": -1}, "max_length=-1 must be a number of at least 0"),
    ({"held_out": 1.0}, "held_out=1.0 must be at least 0 and below 1"),
    ({"held_out": -0.1}, "held_out=-0.1 must be at least 0 and below 1"),
    ({"evaluate_every": 0}, "evaluate_every=0 must be a number above 0"),
]
PPO = [
    ({"rewards": ()}, "rewards=() must name at least one reward: --reward DIR, path"),
    ({"steps": 0}, "steps=0 must be a number above 0"),
    ({"epochs": 0}, "epochs=0 must be a number above 0"),
    ({"minibatches": 0}, "minibatches=0 must be a number above 0"),
    (
        {"batch_size": 10, "minibatches": 4},
        "minibatches=4 must divide the 10 examples of a step so that minibatches are",
    ),
    ({"num": 3}, "num=3 must divide batch_size so that every prompt has as many completions"),
    ({"missing_eos_penalty": -1.0}, "missing_eos_penalty=-1.0 must be a number of at least 0"),
    ({"reference": "none"}, "kl.beta=0.05 needs a reference; leave reference"),
]
CASES = [
    *[(kind, *case) for kind in ("sft", "reward", "ppo") for case in TRAINING],
    *[(kind, *case) for kind in ("sft", "reward", "dpo", "kto") for case in EPOCHS],
    *[
        (kind, {"beta": bad}, f"beta={bad} must be a number above 0")
        for kind in ("dpo", "ipo", "simpo", "orpo", "kto", "online-dpo")
        for bad in (0.0, -0.1, math.inf)
    ],
    *[
        (kind, {"num": 1}, "num=1 must be 2 or more: a completion is judged against others")
        for kind in ("grpo", "rloo", "online-dpo", "best-of-n")
    ],
    ("dpo", {"label_smoothing": 0.6}, "label_smoothing=0.6 must lie between 0 and 0.5"),
    ("dpo", {"label_smoothing": 0.5, "robust": True}, "label_smoothing=0.5 must be at least 0 and"),
    ("dpo", {"nll": -1.0}, "nll=-1.0 must be a number of at least 0"),
    ("simpo", {"margin": -1.0}, "margin=-1.0 must be a number of at least 0"),
    ("kto", {"undesirable_weight": -1.0}, "undesirable_weight=-1.0 must be at least 0"),
    ("kto", {"batch_size": 1}, "batch_size=1 must be 2 or more for the KL"),
    ("kto", {"reference": "none"}, "reference='none' must name a model"),
    ("online-dpo", {"reference": "none"}, "reference='none' must name a model"),
    ("online-dpo", {"batch_size": 8, "minibatches": 8}, "minibatches=8 must divide the 4 examples"),
    ("best-of-n", {"batch_size": 8, "minibatches": 4}, "minibatches=4 must divide the 2 examples"),
    ("reward", {"heads": 0}, "heads=0 must be a number above 0"),
    ("reward", {"centering": 0.1, "loss": "binary"}, "centering=0.1 needs pairs"),
    *[("ppo", *case) for case in PPO],
    ("sft", {"max_steps": -1}, "max_steps=-1 must be a number of at least 0"),
    ("generate", {"num": 0}, "num=0 must be a number above 0"),
    ("simulate", {"scale": 0.0}, "scale=0.0 must be a number above 0"),
    ("evaluate-reward", {"scorers": ()}, "scorers=() must name at least one reward"),
    ("evaluate-reward", {"scorers": SCORERS[:1] * 2}, "scorers=['gold', 'gold'] must have diff"),
    ("evaluate-reward", {"bins": 0}, "bins=0 must be a number above 0"),
    ("evaluate", {"num_samples": 0}, "num_samples=0 must be a number above 0"),
    ("evaluate", {"policies": ()}, "policies=[] must name at least one policy"),
    (
        "evaluate",
        {"policies": (POLICIES[0], POLICIES[0])},
        "policies=['a', 'a'] must have different names",
    ),
    ("evaluate", {"scorers": ()}, "scorers=() must name at least one scorer"),
    ("evaluate", {"baseline": "c"}, "policy='c' is not one of ['a', 'b']"),
    ("evaluate", {"compare": (("a", "c"),)}, "policy='c' is not one of ['a', 'b']"),
    ("evaluate", {"best_by": "b"}, "best_by='b' is not one of ['gold', 'proxy']"),
]


@pytest.mark.parametrize(("kind", "settings", "message"), CASES)
def test_settings_that_cannot_work_are_refused(kind, settings, message):
    assert_refused(message, lambda: make(kind, **settings))


def test_without_a_reference_there_is_no_tether():
    # β > 0 would otherwise pull towards log-probs of 0, which rewards entropy.
    config = make("ppo", reference="none", kl=KLConfig(beta=0.0))
    assert config.kl.beta == 0
    assert make("ppo", reference="some/model").kl.beta == 0.05


SECTIONS = [
    (ComputeConfig, {"threads": -1}, "threads=-1 must be a number of at least 0"),
    (OptimizerConfig, {"learning_rate": 0.0}, "optimizer.learning_rate=0.0 must be a number"),
    (OptimizerConfig, {"learning_rate": math.inf}, "optimizer.learning_rate=inf must be"),
    (OptimizerConfig, {"final_fraction": 1.5}, "optimizer.final_fraction=1.5 must lie between"),
    (OptimizerConfig, {"warmup_steps": -1}, "optimizer.warmup_steps=-1 must be a number of at"),
    (OptimizerConfig, {"betas": (0.9, 1.0)}, "optimizer.betas[1]=1.0 must be at least 0 and below"),
    (OptimizerConfig, {"betas": (-0.1, 0.9)}, "optimizer.betas[0]=-0.1 must be at least 0"),
    (OptimizerConfig, {"eps": 0.0}, "optimizer.eps=0.0 must be a number above 0"),
    (OptimizerConfig, {"weight_decay": -1.0}, "optimizer.weight_decay=-1.0 must be a number of"),
    (OptimizerConfig, {"max_grad_norm": -1.0}, "optimizer.max_grad_norm=-1.0 must be a number"),
    (SamplingConfig, {"temperature": 0.0}, "sampling.temperature=0.0 must be a number above 0"),
    (SamplingConfig, {"max_new_tokens": 0}, "sampling.max_new_tokens=0 must be a number above"),
    (SamplingConfig, {"batch_size": 0}, "sampling.batch_size=0 must be a number above 0"),
    (SamplingConfig, {"top_p": 0.95}, "sampling.top_p=0.95 would sample from another distribut"),
    (SamplingConfig, {"top_k": 50}, "sampling.top_k=50 would sample from another distribution"),
    (KLConfig, {"beta": -0.1}, "kl.beta=-0.1 must be a number of at least 0"),
    (KLConfig, {"target": -1.0}, "kl.target=-1.0 must be a number of at least 0"),
    (KLConfig, {"horizon": 0}, "kl.horizon=0 must be a number above 0"),
    (KLConfig, {"beta": 0.0, "target": 6.0}, "kl.target=6.0 needs kl.beta above 0 to start from"),
    (ValueConfig, {"learning_rate": 0.0}, "value.learning_rate=0.0 must be a number above 0"),
    (PolicyLossConfig, {"clip": 0.0}, "policy_loss.clip=0.0 must be a number above 0"),
    (PolicyLossConfig, {"entropy_coefficient": -1.0}, "policy_loss.entropy_coefficient=-1.0 must"),
    (
        PolicyLossConfig,
        {"clip_high": -0.1},
        "policy_loss.clip_high=-0.1 must be a number of at least 0",
    ),
    (
        PolicyLossConfig,
        {"dual_clip": 1.0},
        "policy_loss.dual_clip=1.0 must be above 1, or 0 for none",
    ),
    (
        PolicyLossConfig,
        {"dual_clip": math.inf},
        "policy_loss.dual_clip=inf must be above 1, or 0 for none",
    ),
    (GAEConfig, {"discount": 1.5}, "gae.discount=1.5 must lie between 0 and 1"),
    (GAEConfig, {"trace_decay": -0.1}, "gae.trace_decay=-0.1 must lie between 0 and 1"),
    (GAEConfig, {"trace_decay": math.nan}, "gae.trace_decay=nan must lie between 0 and 1"),
    (PtxConfig, {"coefficient": 0.0}, "policy_loss.ptx.coefficient=0.0 must be a number above 0"),
    (PtxConfig, {"batch_size": -1}, "policy_loss.ptx.batch_size=-1 must be a number of at least 0"),
    (LoraConfig, {"rank": -1}, "lora.rank=-1 must be a number of at least 0"),
    (LoraConfig, {"alpha": 8.0}, "lora.alpha=8.0 needs an adapter to train; set lora.rank"),
    (LoraConfig, {"targets": ("q",)}, "lora.targets=('q',) needs an adapter to train"),
    (LoraConfig, {"quantize": "4bit"}, "lora.quantize='4bit' needs an adapter to train"),
    (ValueConfig, {"clip": -0.2}, "value.clip=-0.2 must be a number of at least 0"),
    (ValueConfig, {"coefficient": -0.1}, "value.coefficient=-0.1 must be a number of at least"),
    (ValueConfig, {"shared": True, "init": "r"}, "value.init='r' is unused with value.shared ="),
    (StopConfig, {"kl": -1.0}, "stop.kl=-1.0 must be a number of at least 0"),
    (StopConfig, {"update_kl": -1.0}, "stop.update_kl=-1.0 must be a number of at least 0"),
    (RewardConfig, {"path": ""}, "reward.path='' must name a reward model or function"),
    (RewardConfig, {"path": "r", "clip": -1.0}, "reward.clip=-1.0 must be a number of at least"),
    (RewardConfig, {"path": "r", "weight": math.nan}, "reward.weight=nan must be a number"),
    (PolicyConfig, {"name": "a", "model": "m", "best_of": 0}, "best_of=0 must be a number above"),
]


@pytest.mark.parametrize(("section", "settings", "message"), SECTIONS)
def test_sections_that_cannot_work_are_refused(section, settings, message):
    assert_refused(message, lambda: section(**settings))


# --- defaults that decide whether PPO works -------------------------------------------------------


def test_the_defaults_of_ppo():
    config = make("ppo")
    assert (config.gae.discount, config.gae.trace_decay) == (1.0, 0.95)
    assert config.gae.standardize
    assert (config.policy_loss.clip, config.value.clip, config.value.coefficient) == (0.2, 0.2, 0.1)
    assert (config.epochs, config.missing_eos_penalty, config.gae.bootstrap) == (4, 1.0, False)
    assert config.optimizer.eps == 1e-5
    assert (config.sampling.temperature, config.sampling.top_p, config.sampling.top_k) == (1, 1, 0)
    assert (config.kl.estimator, config.kl.placement) == ("k1", "reward")
    assert REWARD.normalize

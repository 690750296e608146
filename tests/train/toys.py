"""What the training tests share: tiny models in folders, small data, settings, and a look back."""

import json
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.tiny import save_tiny
from tether.config import (
    OnlineConfig,
    PPOConfig,
    PreferenceConfig,
    RewardConfig,
    RewardModelConfig,
    SFTConfig,
)
from tether.models.language_model import load
from tether.models.scalar_head import value_model_from_backbone
from tether.records import write_jsonl
from tether.rewards.load import Reward
from tether.sections import ComputeConfig, KLConfig, OptimizerConfig, SamplingConfig
from tether.train.collect import Source
from tether.train.roles import Roles

# Rotary and absolute positions, each with a pad token of its own and with pad = eos.
MODELS = pytest.mark.parametrize(
    ("kind", "pad_is_eos"),
    [("llama", False), ("llama", True), ("gpt2", False), ("gpt2", True)],
    ids=["llama", "llama-pad=eos", "gpt2", "gpt2-pad=eos"],
)
KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2"])
DEVICE_BATCHES = (1, 2, 4, 8, 0)  # rows a forward pass; 0 = all

# Lengths differ, so that the rows of a device batch are padded or share a row.
DEMONSTRATIONS = [
    {"prompt": "the cat ", "completion": "sees the small kind dog"},
    {"prompt": "who likes the big red dog ", "completion": "no"},
    {"prompt": "tell me about the bird ", "completion": "it helps the cat"},
    {"prompt": "a ", "completion": "dog fears a bird yes it fears"},
    {"prompt": "why ", "completion": "sorry"},
    {"prompt": "what sees the small red bird ", "completion": "the dog sees it"},
    {"prompt": "please tell me who helps ", "completion": "a kind cat"},
    {"prompt": "the dog ", "completion": "thanks the cat please"},
]
PROMPTS = [{"prompt": row["prompt"]} for row in DEMONSTRATIONS]

# Several words end a completion, so that most end before the length limit and some do not.
STOPS = (5, 8, 11, 14, 17)
SAMPLING = SamplingConfig(max_new_tokens=6, stop_token_ids=STOPS)

Online = TypeVar("Online", bound=OnlineConfig)

KIND_WORDS = ("kind", "please", "thanks", "helps")
REWARDS = '''
"""Rewards for the tests."""

def kind(prompts, completions):
    return [float(sum(text.split().count(w) for w in ("kind", "please", "thanks", "helps")))
            for text in completions]

def short(prompts, completions):
    return [-float(len(text.split())) for text in completions]

def nan(prompts, completions):
    return [float("nan")] * len(completions)

def too_few(prompts, completions):
    return [1.0]
'''


def write_rewards(folder: Path) -> str:
    """A file of reward functions; name one by "{path}:kind"."""
    file = folder / "rewards.py"
    file.write_text(REWARDS, encoding="utf-8")
    return str(file)


def write_rows(file: Path, rows: list[dict]) -> str:
    write_jsonl(file, rows)
    return str(file)


def sft(tmp_path: Path, model: str | Path, **changes) -> SFTConfig:
    """Settings of a short SFT on the eight demonstrations."""
    settings = {
        "model": str(model),
        "data": str(tmp_path / "demonstrations.jsonl"),
        "out": str(tmp_path / "sft"),
        "batch_size": 8,
        "held_out": 0.0,
        "max_steps": 1,
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        **changes,
    }
    if "data" not in changes:
        write_jsonl(settings["data"], DEMONSTRATIONS)
    return SFTConfig(**settings)


def reward(tmp_path: Path, model: str | Path, rows: list[dict], **changes) -> RewardModelConfig:
    """Settings of a short reward-model training on `rows`."""
    write_jsonl(tmp_path / "comparisons.jsonl", rows)
    settings = {
        "model": str(model),
        "data": str(tmp_path / "comparisons.jsonl"),
        "out": str(tmp_path / "reward"),
        "batch_size": 8,
        "held_out": 0.0,
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        **changes,
    }
    return RewardModelConfig(**settings)


# Pairs of unequal lengths; two prompts have more than one.
PAIRS = [
    {"prompt": "the cat ", "chosen": "sees the small kind dog", "rejected": "no"},
    {"prompt": "who likes the big red dog ", "chosen": "a bird", "rejected": "it fears the cat"},
    {"prompt": "the cat ", "chosen": "helps", "rejected": "sees the small kind dog"},
    {"prompt": "why ", "chosen": "please tell me about it", "rejected": "sorry no"},
    {"prompt": "a ", "chosen": "dog fears a bird", "rejected": "dog dog dog dog dog dog"},
    {"prompt": "why ", "chosen": "thanks", "rejected": "please tell me about it"},
]


def preference(
    tmp_path: Path,
    model: str | Path,
    kind: type[PreferenceConfig],
    rows: list[dict] = PAIRS,
    **changes,
) -> Any:
    """Settings of one optimizer step of a preference method, `kind`, on all of `rows`."""
    settings = {
        "model": str(model),
        "data": write_rows(tmp_path / "preferences.jsonl", rows),
        "out": str(tmp_path / "tuned"),
        "batch_size": len(rows),
        "held_out": 0.0,
        "max_steps": 1,
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        **changes,
    }
    return kind(**settings)


def ppo(tmp_path: Path, model: str | Path, **changes) -> PPOConfig:
    """Settings of a short PPO that rewards kind words."""
    return online(PPOConfig, tmp_path, model, **{"epochs": 2, "kl": KLConfig(beta=0.1), **changes})


def online(method: type[Online], tmp_path: Path, model: str | Path, **changes) -> Online:
    """Settings of a short run of any online method that rewards kind words."""
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    settings = {
        "model": str(model),
        "prompts": str(tmp_path / "prompts.jsonl"),
        "rewards": (RewardConfig(path=f"{write_rewards(tmp_path)}:kind"),),
        "out": str(tmp_path / "ppo"),
        "steps": 2,
        "batch_size": 8,
        "minibatches": 2,
        "sampling": SAMPLING,
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        **changes,
    }
    return method(**settings)


def save(folder: Path, kind: str = "llama", pad_is_eos: bool = False, **settings) -> str:
    return str(save_tiny(folder / f"{kind}-{pad_is_eos}", kind, pad_is_eos, **settings))


# --- the models of a PPO run -------------------------------------------------------------------


def counted(prompts, completions):
    return [float(len(text)) for text in completions]


def roles(folder, kind="llama", pad_is_eos=False, shared=False):
    """Policy, reference and value, all different, the value's head not 0; one reward."""
    path = save(folder, kind, pad_is_eos)
    policy, other = (load(path, ComputeConfig(), trainable=True) for _ in range(2))
    reference = load(path, ComputeConfig())
    with torch.no_grad():
        for i, parameter in enumerate(reference.model.parameters()):
            parameter += 0.02 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(i)
            )
    model = policy.model if shared else other.model
    value = value_model_from_backbone(model, policy.place)
    with torch.no_grad():
        value.head.weight.copy_(torch.linspace(-0.2, 0.3, 32))
    policy.model.train()
    rewards = [Reward(RewardConfig(path="toy"), counted)]
    return Roles(policy, reference, rewards, value, Source(policy, policy))


def moved(roles, by=0.01):
    """Change the policy a little, as an earlier epoch does."""
    with torch.no_grad():
        for i, parameter in enumerate(roles.policy.model.parameters()):
            draw = torch.Generator().manual_seed(100 + i)
            parameter += by * torch.randn(parameter.shape, generator=draw)


# --- looking back ---------------------------------------------------------------------------------


def metrics(out: str | Path) -> list[dict]:
    """The rows of a stage's metrics.jsonl."""
    lines = (Path(out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def result(out: str | Path) -> dict:
    return json.loads((Path(out) / "result.json").read_text(encoding="utf-8"))


def weights(out: str | Path) -> dict[str, torch.Tensor]:
    """The weights of a stage's model."""
    return load_file(Path(out) / "model" / "model.safetensors")


def assert_same(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 0.0
) -> None:
    """Equal tensors under equal names, to `atol`; by default to the last bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=atol, msg=f"{name} differs")


def gradients(*modules: nn.Module) -> dict[str, torch.Tensor]:
    """The gradients that are there, by name; they are cleared."""
    found = {
        f"{i}.{name}": parameter.grad.clone()
        for i, module in enumerate(modules)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    for module in modules:
        module.zero_grad(set_to_none=True)
    return found

"""Ten PPO updates on committed token ids give committed numbers.

Nothing is sampled, because one token that falls out otherwise on another CPU would change all that
follows; and weights are filled by integer arithmetic, so that no random generator has a say.
golden_replay.json holds the rollouts and what came of them. After a change that is meant to
change numbers (say so in the changelog):

    python -m tests.train.test_replay --write
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import save_tiny
from tether.config import PPOConfig, RewardConfig
from tether.data.batches import Row, lengths_mask
from tether.data.rollout import Rollout
from tether.models.language_model import completion_logprobs, load
from tether.models.scalar_head import value_model_from_backbone
from tether.rewards.load import Reward
from tether.sections import (
    ComputeConfig,
    GAEConfig,
    KLConfig,
    OptimizerConfig,
    PolicyLossConfig,
    SamplingConfig,
    ValueConfig,
)
from tether.train import loop
from tether.train.aim import aim, rollout_metrics, target_metrics
from tether.train.collect import Source
from tether.train.improve import improve
from tether.train.roles import Roles
from tether.train.score import by_buckets, score

GOLDEN = Path(__file__).with_name("golden_replay.json")
UPDATES, ROWS = 10, 8

# Between them, the two runs go through every term of the loss.
COMMON = {
    "model": "",
    "prompts": "",
    "out": "",
    "rewards": (RewardConfig(path="golden"),),
    "steps": UPDATES,
    "batch_size": ROWS,
    "epochs": 2,
    "minibatches": 2,
    "optimizer": OptimizerConfig(learning_rate=2e-3, warmup_steps=2, weight_decay=0.01),
}
SETTINGS = {
    "llama": PPOConfig(**COMMON, kl=KLConfig(beta=0.1), value=ValueConfig(learning_rate=4e-3)),
    "gpt2": PPOConfig(
        **COMMON,
        device_batch_size=3,
        gae=GAEConfig(bootstrap=True),
        policy_loss=PolicyLossConfig(entropy_coefficient=0.01),
        kl=KLConfig(beta=0.2, placement="loss", estimator="k3"),
        sampling=SamplingConfig(temperature=0.8),
        value=ValueConfig(shared=True, learning_rate=4e-3, clip=0.0),
    ),
}


def fill(module: torch.nn.Module, salt: int) -> None:
    """Numbers between -0.3 and 0.3 (norms: between 0.7 and 1.3) by an integer hash of the index."""
    start = salt * 1_000_003
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            k = np.arange(start, start + parameter.numel(), dtype=np.uint64)
            k = (k + 1) * np.uint64(2654435761) & np.uint64(0xFFFFFFFF)
            k = (k ^ k >> np.uint64(15)) * np.uint64(2246822519) & np.uint64(0xFFFFFFFF)
            k ^= k >> np.uint64(13)
            numbers = (k / 2**32 - 0.5) * 0.6 + ("norm" in name or "ln_" in name) * (
                parameter.ndim == 1 and name.endswith("weight")
            )
            parameter.copy_(torch.from_numpy(numbers).reshape(parameter.shape))
            start += parameter.numel()


def made_up_rollouts() -> list[dict]:
    """Token ids of prompts and completions, scores, and which completions ended."""
    draw = np.random.default_rng(2026)
    return [
        {
            "prompt": draw.integers(4, 28, draw.integers(1, 6)).tolist(),
            "completion": draw.integers(0, 28, draw.integers(1, 9)).tolist(),
            "score": round(float(draw.normal()), 3),
            "finished": bool(draw.random() < 0.7),
        }
        for _ in range(UPDATES * ROWS)
    ]


def replay(folder: Path, kind: str, given: list[dict], attention="auto") -> dict[str, list]:
    """Metrics of every update, and of every parameter in the end its norm and a projection."""
    config = SETTINGS[kind]
    roles = filled_roles(folder, kind, config, attention)
    trained = {"policy": roles.policy.model, "head": roles.value.head}
    groups = [(roles.policy.model.parameters(), 2e-3), (roles.value.head.parameters(), 4e-3)]
    if not config.value.shared:
        trained["value"] = roles.value.model.base_model
        groups.append((roles.value.model.base_model.parameters(), 4e-3))
    optimizer = loop.make_optimizer(groups, config.optimizer)
    metrics = [
        update(roles, optimizer, config, step, given[step * ROWS : (step + 1) * ROWS])
        for step in range(UPDATES)
    ]
    weights = {
        f"{role}.{name}": [parameter.norm().item(), projection(parameter)]
        for role, module in trained.items()
        for name, parameter in module.named_parameters()
    }
    return {"metrics": metrics, "weights": weights}


def filled_roles(folder: Path, kind: str, config: PPOConfig, attention: str) -> Roles:
    path, compute = str(save_tiny(folder, kind)), ComputeConfig(attention=attention)
    policy, reference, other = (load(path, compute, trainable=i != 1) for i in range(3))
    for language_model, salt in ((policy, 1), (reference, 1), (other, 2)):
        fill(language_model.model, salt)
    model = policy.model if config.value.shared else other.model
    value = value_model_from_backbone(model, policy.place)
    fill(value.head, 3)
    policy.model.train()
    return Roles(policy, reference, [], value, Source(policy, policy))


def update(roles: Roles, optimizer, config: PPOConfig, step: int, given: list[dict]) -> dict:
    rows = [Row(one["prompt"] + one["completion"], len(one["prompt"])) for one in given]
    mask = lengths_mask([row.num_completion for row in rows])
    rollout = Rollout(
        prompts=[""] * ROWS,
        completions=[""] * ROWS,
        rows=rows,
        mask=mask,
        logprobs=torch.zeros(mask.shape),
        finished=torch.tensor([one["finished"] for one in given]),
    )
    temperature = config.sampling.temperature
    with torch.no_grad():
        old = by_buckets(
            rollout, lambda b: completion_logprobs(roles.policy, b, temperature=temperature)[0], 0
        )
    roles.rewards = [Reward(config.rewards[0], lambda p, c: [one["score"] for one in given])]
    scored, metrics = score(
        rollout._replace(logprobs=old),
        roles.policy,
        roles.reference,
        roles.rewards,
        roles.value,
        temperature=temperature,
        missing_eos_penalty=config.missing_eos_penalty,
        bootstrap=config.gae.bootstrap,
        device_batch_size=config.device_batch_size,
        rescore=False,
    )
    targets = aim(scored, config, config.kl.beta)
    loop.set_learning_rates(optimizer, loop.learning_rate_factor(step, UPDATES, config.optimizer))
    metrics |= {**rollout_metrics(scored), **target_metrics(targets)}
    metrics |= improve(
        roles.policy, roles.value, optimizer, targets, config, step=step, beta=config.kl.beta
    )
    counts = ("clip_fraction", "value_clip_fraction")  # a token at the bound may fall either way
    return {name: value for name, value in metrics.items() if name not in counts}


def projection(parameter: torch.Tensor) -> float:
    """The scalar product with cos 0, cos 1, cos 2, …: unlike a norm, it sees signs and places."""
    flat = parameter.detach().flatten().double()
    return float(flat @ torch.arange(len(flat), dtype=torch.float64).cos())


def write() -> None:
    golden = {"given": {"rollouts": made_up_rollouts()}}
    for kind in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            golden[kind] = replay(Path(folder), kind, golden["given"]["rollouts"])
    GOLDEN.write_text(lines(rounded(golden)) + "\n", encoding="utf-8")


def lines(value, depth: int = 3) -> str:
    """JSON with a line for every rollout, update and parameter."""
    if depth == 0:
        return json.dumps(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(lines(one, depth - 1) for one in value) + "\n]"
    items = (f'"{name}": {lines(one, depth - 1)}' for name, one in value.items())
    return "{\n" + ",\n".join(items) + "\n}"


def rounded(value):
    """Floats to 7 digits."""
    return json.loads(json.dumps(value), parse_float=lambda digits: float(f"{float(digits):.7g}"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_ten_updates_give_the_committed_numbers(tmp_path, kind, attention):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found, expected = replay(tmp_path, kind, golden["given"]["rollouts"], attention), golden[kind]
    for step in range(UPDATES):
        assert found["metrics"][step] == pytest.approx(expected["metrics"][step], abs=1e-4)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, numbers in expected["weights"].items():
        assert found["weights"][name] == pytest.approx(numbers, abs=1e-4), name


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    write()

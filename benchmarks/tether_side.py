"""tether's worker: runs its own functions, held at the start of every iteration."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from gate import Gate, read_job, read_jsonl
from torch.optim.optimizer import register_optimizer_step_post_hook

from tether.config import (
    DPOConfig,
    GRPOConfig,
    PPOConfig,
    RewardConfig,
    RewardModelConfig,
    SFTConfig,
)
from tether.data.batches import step_indices
from tether.engine.decode import generate_tokens
from tether.engine.samplers import Request
from tether.models.language_model import load
from tether.sections import ComputeConfig, KLConfig, OptimizerConfig, SamplingConfig, ValueConfig
from tether.train import loop, online
from tether.train.collect import Source
from tether.train.preference import train_dpo
from tether.train.reward import train_reward
from tether.train.sft import train_sft

FOREVER = 100_000  # steps; the driver ends the process long before
LEARNING_RATE = 1e-6
PRECISION: dict[str, Literal["float32", "bfloat16"]] = {"bf16": "bfloat16", "fp32": "float32"}


def ppo(gate: Gate, job: dict[str, Any]) -> None:
    """An iteration is one rollout batch: generate, score, train."""
    gate_rollouts(gate)
    online.train_ppo(
        PPOConfig(
            epochs=job["epochs"],
            minibatches=job["minibatches"],
            value=ValueConfig(learning_rate=LEARNING_RATE),
            **online_settings(job),
        )
    )


def grpo(gate: Gate, job: dict[str, Any]) -> None:
    """An iteration is one rollout batch of groups: generate, score, train."""
    gate_rollouts(gate)
    tether = KLConfig(beta=job["kl_beta"], estimator="k3", placement="loss")
    online.train_grpo(GRPOConfig(num=job["num"], kl=tether, **online_settings(job)))


def gate_rollouts(gate: Gate) -> None:
    """Hold an online method before it generates; count what it sampled."""
    draw, rollout_of, improve = Source.draw, online.rollout_of, online.improve

    def gated_draw(source: Source, request: Request) -> Any:
        gate.turn()
        gate.phase("generate")
        return draw(source, request)

    def counted(*args: Any, **kwargs: Any) -> Any:
        rollout = rollout_of(*args, **kwargs)
        gate.count(tokens=int(rollout.mask.sum()), rows=len(rollout.rows))
        gate.phase("score")
        return rollout

    def gated_improve(*args: Any, **kwargs: Any) -> Any:
        gate.phase("train")
        return improve(*args, **kwargs)

    Source.draw, online.rollout_of, online.improve = gated_draw, counted, gated_improve


def online_settings(job: dict[str, Any]) -> dict[str, Any]:
    """What PPO and GRPO share: models, prompts, no checkpoints, no end."""
    world = Path(job["world"])
    return {
        "out": job["out"],
        "model": str(world / "policy"),
        "prompts": str(world / "prompts.jsonl"),
        "rewards": (RewardConfig(path=str(world / "reward"), normalize=False),),
        "compute": compute(job),
        "steps": FOREVER,
        "batch_size": job["batch_size"],
        "checkpoint_every": 0,
        "missing_eos_penalty": 0.0,
        "sampling": SamplingConfig(max_new_tokens=job["max_new_tokens"]),
        "optimizer": OptimizerConfig(learning_rate=LEARNING_RATE),
    }


def sft(gate: Gate, job: dict[str, Any]) -> None:
    """An iteration is some optimizer steps on plain texts."""
    data = Path(job["world"]) / "texts.jsonl"
    lengths = [num_tokens(row["text"]) for row in read_jsonl(data)]
    gate_steps(gate, lengths, job["steps"], rows_an_example=1)
    train_sft(SFTConfig(model=str(Path(job["world"]) / "policy"), **fit_settings(job, data)))


def reward(gate: Gate, job: dict[str, Any]) -> None:
    """An iteration is some optimizer steps on preference pairs."""
    data = gate_pairs(gate, job)
    train_reward(
        RewardModelConfig(model=str(Path(job["world"]) / "reward"), **fit_settings(job, data))
    )


def dpo(gate: Gate, job: dict[str, Any]) -> None:
    """An iteration is some optimizer steps on preference pairs, with the policy as reference."""
    data = gate_pairs(gate, job)
    train_dpo(DPOConfig(model=str(Path(job["world"]) / "policy"), **fit_settings(job, data)))


def gate_pairs(gate: Gate, job: dict[str, Any]) -> Path:
    """Hold training on preference pairs before its steps; returns their file."""
    data = Path(job["world"]) / "pairs.jsonl"
    lengths = [
        num_tokens(row["prompt"], row["chosen"]) + num_tokens(row["prompt"], row["rejected"])
        for row in read_jsonl(data)
    ]
    gate_steps(gate, lengths, job["steps"], rows_an_example=2)
    return data


def gate_steps(gate: Gate, lengths: Sequence[int], steps: int, rows_an_example: int) -> None:
    """Hold `loop.fit` before every `steps`-th optimizer step; count the tokens of its examples."""

    def gated(num: int, batch_size: int, seed: int, step: int) -> list[int]:
        if step % steps == 0:
            gate.turn()
            gate.phase("train")
        chosen = step_indices(num, batch_size, seed, step)
        tokens = sum(lengths[i] for i in chosen)
        gate.count(tokens=tokens, rows=rows_an_example * len(chosen))
        return chosen

    loop.step_indices = gated


def fit_settings(job: dict[str, Any], data: Path) -> dict[str, Any]:
    """What SFT, the reward model and DPO share: no evaluation, no checkpoints, no end."""
    return {
        "out": job["out"],
        "data": str(data),
        "compute": compute(job),
        "batch_size": job["batch_size"],
        "max_steps": FOREVER,
        "held_out": 0.0,
        "evaluate_every": FOREVER,
        "checkpoint_every": 0,
        "optimizer": OptimizerConfig(learning_rate=LEARNING_RATE),
    }


def generate(gate: Gate, job: dict[str, Any]) -> None:
    """An iteration is one batch of completions with their log-probs."""
    language_model = load(str(Path(job["world"]) / "policy"), compute(job))
    rows = read_jsonl(Path(job["world"]) / "prompts.jsonl")[: job["batch_size"]]
    prompts = [language_model.tokenizer(row["prompt"])["input_ids"] for row in rows]
    sampling = SamplingConfig(max_new_tokens=job["max_new_tokens"], batch_size=job["batch_size"])
    for step in itertools.count():
        gate.turn()
        gate.phase("generate")
        sampled = generate_tokens(language_model, prompts, sampling, seed=0, step=step)
        gate.count(tokens=sum(len(each.token_ids) for each in sampled), rows=len(sampled))


def num_tokens(*texts: str) -> int:
    """Tokens of a text of the world: one a word, and the end token."""
    return sum(len(text.split()) for text in texts) + 1


def compute(job: dict[str, Any]) -> ComputeConfig:
    """One thread on the CPU."""
    return ComputeConfig(device="cpu", precision=PRECISION[job["variant"]], threads=1)


def main() -> None:
    """Run the task that the driver asks for."""
    gate, job = Gate(), read_job()
    register_optimizer_step_post_hook(lambda *_: gate.count(steps=1))
    gate.ready(torch=torch.__version__, transformers=transformers.__version__)
    tasks = {
        "ppo": ppo,
        "grpo": grpo,
        "sft": sft,
        "reward": reward,
        "dpo": dpo,
        "generate": generate,
    }
    tasks[job["task"]](gate, job)


if __name__ == "__main__":
    main()

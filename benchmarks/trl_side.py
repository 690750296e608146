"""TRL's worker: runs its own trainers, held at the start of every iteration. Needs no tether.

Variants: "fp32" computes in float32 (as "default" does in PPO), "amp" by autocast to bfloat16,
"bf16" casts all weights to bfloat16. "-grouped" behind one of them (SFT only) puts rows of similar
length in one batch, "-precomputed" (DPO only) computes the reference's log-probs beforehand.
"default" elsewhere leaves all that to the trainer.
"""

import os
from pathlib import Path
from typing import Any

import datasets  # pyright: ignore[reportMissingImports]
import torch
import transformers
import trl  # pyright: ignore[reportMissingImports]
from gate import Gate, read_job, read_jsonl
from torch.optim.optimizer import register_optimizer_step_post_hook

FOREVER = 100_000  # steps; the driver ends the process long before
LEARNING_RATE = 1e-6


def ppo(gate: Gate, job: dict[str, Any]) -> None:
    """An iteration is one rollout batch: generate, score, train."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # pyright: ignore[reportMissingImports]

    gate.ready(**versions())
    world = Path(job["world"])
    policy, reference = (load(world / "policy", job) for _ in range(2))
    value, reward = (load(world / "reward", job) for _ in range(2))
    tokenizer = load_tokenizer(world / "policy", padding_side="left")
    prompts = [tokenizer(row["prompt"]) for row in read_jsonl(world / "prompts.jsonl")]
    trainer = PPOTrainer(
        args=PPOConfig(
            # One device batch holds the rollout batch; it is cut into minibatches from there.
            # With accumulation in its place the optimizer would step once an epoch.
            per_device_train_batch_size=job["batch_size"],
            gradient_accumulation_steps=1,
            num_mini_batches=job["minibatches"],
            num_ppo_epochs=job["epochs"],
            total_episodes=FOREVER * job["batch_size"],
            response_length=job["max_new_tokens"],
            temperature=1.0,
            stop_token="eos" if job["lengths"] == "varied" else None,
            num_sample_generations=0,
            kl_coef=0.05,
            **quiet(job),
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=datasets.Dataset.from_list([dict(row) for row in prompts]),
    )
    gate_rollouts(gate, ppo_trainer, trainer, tokenizer.eos_token_id)
    trainer.train()


def gate_rollouts(gate: Gate, module: Any, trainer: Any, eos: int) -> None:
    """Hold PPO before it generates; training begins where it first accumulates a gradient."""
    batch_generation, accumulate = module.batch_generation, trainer.accelerator.accumulate

    def gated_generation(model: Any, queries: Any, *args: Any) -> Any:
        gate.turn()
        gate.phase("generate")
        sequences, logits = batch_generation(model, queries, *args)
        completions = sequences[:, queries.shape[1] :].tolist()
        lengths = [row.index(eos) + 1 if eos in row else len(row) for row in completions]
        gate.count(tokens=sum(lengths), rows=len(lengths))
        gate.phase("score")
        return sequences, logits

    def gated_accumulate(*models: Any) -> Any:
        gate.phase("train")
        return accumulate(*models)

    module.batch_generation, trainer.accelerator.accumulate = gated_generation, gated_accumulate


def grpo(gate: Gate, job: dict[str, Any]) -> None:
    """An iteration is one rollout batch of groups: generate, score, train."""
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    gate.ready(**versions())
    world = Path(job["world"])
    # TRL joins prompt and completion as texts, without a blank between the two.
    prompts = [{"prompt": row["prompt"] + " "} for row in read_jsonl(world / "prompts.jsonl")]
    trainer = GRPOTrainer(
        model=load(world / "policy", job),
        reward_funcs=load(world / "reward", job),
        args=GRPOConfig(
            per_device_train_batch_size=job["batch_size"],
            num_generations=job["num"],
            max_completion_length=job["max_new_tokens"],
            beta=job["kl_beta"],
            max_steps=FOREVER,
            **quiet(job),
            **precision(job),
        ),
        processing_class=load_tokenizer(world / "policy", padding_side="left"),
        train_dataset=datasets.Dataset.from_list(prompts),
    )
    gate_groups(gate, trainer)
    trainer.train()


def gate_groups(gate: Gate, trainer: Any) -> None:
    """Hold GRPO before it generates; count what it sampled."""
    prepare, generate, loss = trainer._prepare_inputs, trainer._generate, trainer.compute_loss

    def gated_prepare(*args: Any) -> Any:
        gate.turn()
        gate.phase("generate")
        return prepare(*args)

    def gated_generate(*args: Any) -> Any:
        prompt_ids, completion_ids, *others = generate(*args)
        gate.count(tokens=sum(map(len, completion_ids)), rows=len(completion_ids))
        gate.phase("score")
        return prompt_ids, completion_ids, *others

    def gated_loss(*args: Any, **kwargs: Any) -> Any:
        gate.phase("train")
        return loss(*args, **kwargs)

    trainer._prepare_inputs, trainer._generate = gated_prepare, gated_generate
    trainer.compute_loss = gated_loss


def versions() -> dict[str, str]:
    """Versions that the driver compares and prints."""
    return {module.__name__: module.__version__ for module in (torch, transformers, trl)}


def sft(gate: Gate, job: dict[str, Any]) -> None:
    """An iteration is some optimizer steps on plain texts."""
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    fit(gate, job, SFTTrainer, SFTConfig, model="policy", data="texts.jsonl")


def reward(gate: Gate, job: dict[str, Any]) -> None:
    """An iteration is some optimizer steps on preference pairs."""
    from trl import RewardConfig, RewardTrainer  # pyright: ignore[reportMissingImports]

    fit(gate, job, RewardTrainer, RewardConfig, model="reward", data="pairs.jsonl")


def dpo(gate: Gate, job: dict[str, Any]) -> None:
    """An iteration is some optimizer steps on preference pairs, with a reference."""
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports]

    fit(gate, job, DPOTrainer, DPOConfig, model="policy", data="pairs.jsonl", reference="policy")


def fit(
    gate: Gate,
    job: dict[str, Any],
    trainer: Any,
    config: Any,
    *,
    model: str,
    data: str,
    reference: str = "",
) -> None:
    """Run a trainer over a file of examples, with the faster settings where its own are slow."""
    gate.ready(**versions())
    world = Path(job["world"])
    settings, more = precision(job), job["variant"].partition("-")[2]
    if more == "grouped":
        settings["train_sampling_strategy"] = "group_by_length"
    if more == "precomputed":
        settings["precompute_ref_log_probs"] = True
    other = {"ref_model": load(world / reference, job)} if reference else {}
    tokenizer = load_tokenizer(world / model)
    running = trainer(
        model=load(world / model, job),
        **other,
        args=config(
            per_device_train_batch_size=job["batch_size"],
            max_steps=FOREVER,
            **quiet(job),
            **settings,
        ),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(read_jsonl(world / data)),
        callbacks=[GateSteps(gate, job["steps"])],
    )
    training_step = running.training_step

    def counted(model: Any, inputs: Any, *args: Any) -> Any:
        mask = inputs["attention_mask"]
        gate.count(tokens=int(mask.sum()), rows=len(mask))
        return training_step(model, inputs, *args)

    running.training_step = counted
    running.train()


class GateSteps(transformers.TrainerCallback):
    """Holds a trainer before every `steps`-th optimizer step."""

    def __init__(self, gate: Gate, steps: int) -> None:
        self.gate, self.steps = gate, steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self.gate.turn()
            self.gate.phase("train")


def precision(job: dict[str, Any]) -> dict[str, Any]:
    """Settings of a variant; none where TRL's own are left as they are."""
    name = job["variant"].partition("-")[0]
    return {} if name == "default" else {"bf16": name == "amp", "gradient_checkpointing": False}


def load(path: Path, job: dict[str, Any]) -> Any:
    """A policy or reward model in float32, or with all weights in bfloat16."""
    kind = "SequenceClassification" if path.name == "reward" else "CausalLM"
    auto = getattr(transformers, f"AutoModelFor{kind}")
    dtype = torch.bfloat16 if job["variant"].startswith("bf16") else torch.float32
    return auto.from_pretrained(path, dtype=dtype)


def load_tokenizer(path: Path, **settings: Any) -> Any:
    """The world's tokenizer."""
    return transformers.AutoTokenizer.from_pretrained(path, **settings)


def quiet(job: dict[str, Any]) -> dict[str, Any]:
    """Settings of every trainer: on the CPU, no reports, no saving."""
    return {
        "output_dir": job["out"],
        "learning_rate": LEARNING_RATE,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def main() -> None:
    """Run the task that the driver asks for."""
    gate, job = Gate(), read_job()
    if job["task"] == "ppo" and job["variant"] == "amp":
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    torch.set_num_threads(1)
    register_optimizer_step_post_hook(lambda *_: gate.count(steps=1))
    tasks = {"ppo": ppo, "grpo": grpo, "sft": sft, "reward": reward, "dpo": dpo}
    tasks[job["task"]](gate, job)


if __name__ == "__main__":
    main()

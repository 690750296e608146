"""PPO: collect, score, aim, improve; again."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tether.config import PPOConfig
from tether.core import advantages, kl, masked, policy_losses
from tether.data.batches import step_indices
from tether.data.formats import read_prompts
from tether.data.rollout import Scored, Targets
from tether.engine.decode import check_lengths
from tether.models.chat import encode_prompt
from tether.models.checkpoint import load_checkpoint, save_checkpoint
from tether.models.language_model import save
from tether.progress import Steps, console
from tether.records import Text
from tether.rundir import StageFolder
from tether.train import loop
from tether.train.collect import collect
from tether.train.improve import check_first_minibatch, improve
from tether.train.roles import Roles, load_roles
from tether.train.score import score

SAMPLES_LOGGED = 4  # completions a logged step
STEPS_BETWEEN_SAMPLES = 5


@dataclass
class Beta:
    """The KL coefficient: fixed, or steered towards kl.target."""

    value: float
    controller: kl.AdaptiveBeta | None

    def update(self, observed_kl: float, num_sequences: int) -> None:
        """Let the controller move β after an update that was rolled out with the old one."""
        if self.controller:
            self.value = self.controller.update(observed_kl, num_sequences)


def train_ppo(config: PPOConfig) -> Path:
    """Tune a policy against a reward with PPO and write it to `config.out`.

    Source: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, applied to language models as
    in Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, and Ouyang et al. 2022,
    https://arxiv.org/abs/2203.02155.

    Returns:
        The stage's folder; the policy is in its `model/`.
    """
    inputs = [config.model, config.prompts, *(reward.path for reward in config.rewards)]
    inputs += [path for path in (config.reference, config.value.init) if path not in ("", "none")]
    folder = StageFolder(config, "ppo", inputs)
    if folder.finished:
        return folder.path
    prompts = [record.prompt for record in read_prompts(config.prompts)]
    roles = load_roles(config)
    ids = [encode_prompt(roles.policy.tokenizer, prompt) for prompt in prompts]
    check_lengths(ids, roles.policy.max_positions, config.sampling.max_new_tokens)
    optimizer, beta = _optimizer(config, roles), _beta(config)
    facts = _loop(Run(config, folder, roles, optimizer, beta, prompts, ids))
    provenance = {"made_by": "tether ppo", "model": config.model, "prompts": config.prompts}
    folder.write_model(lambda path: save(roles.policy, path, provenance))
    return folder.finish(**facts)


@dataclass
class Run:
    """A PPO run under way."""

    config: PPOConfig
    folder: StageFolder
    roles: Roles
    optimizer: torch.optim.Optimizer
    beta: Beta
    prompts: list[Text]
    ids: list[list[int]]

    def resume(self) -> int:
        """Restore the newest checkpoint; returns the steps done."""
        state = load_checkpoint(self.folder.checkpoints, self.roles.modules, self.optimizer)
        if state is None:
            return 0
        self.beta.value = state["beta"]
        if self.beta.controller:
            self.beta.controller.load_state(state)
        return state["step"]

    def checkpoint(self, step: int) -> None:
        """Write everything that the next step needs."""
        state = {"beta": self.beta.value}
        save_checkpoint(self.folder.checkpoints, step, self.roles.modules, self.optimizer, state)


def _loop(run: Run) -> dict[str, Any]:
    """All updates; returns the final facts."""
    config, stopped, told = run.config, "", False
    start = run.resume()
    run.folder.begin(start)
    with Steps(run.folder.path.name, config.steps, start) as progress:
        for step in range(start, config.steps):
            factor = loop.learning_rate_factor(step, config.steps, config.optimizer)
            loop.set_learning_rates(run.optimizer, factor)
            row = _update(run, step, first=step == start)
            run.folder.log(row)
            if row.get("sampler_trusted") == 0.0 and not told:
                console.print("the sampler's log-probs are far off: the trainer's serve as π_old")
                told = True
            progress.advance(reward=row["score"], KL=row["kl"], length=row["length"])
            # No checkpoint where the run stops: a run resumed from there would go on.
            if stopped := stop_reason(config, row):
                console.print(f"stopped after step {step + 1}: {stopped}")
                break
            if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0:
                run.checkpoint(step + 1)
    last = run.folder.last_row()
    return {"steps": last["step"], "stopped": stopped, "last": last}


def _update(run: Run, step: int, *, first: bool) -> dict[str, Any]:
    """One step of PPO; returns its row of metrics. `first` also runs the checks of a new run."""
    config, roles = run.config, run.roles
    clock = [time.perf_counter()]
    chosen = step_indices(len(run.prompts), config.batch_size, config.seed, step)
    asked, asked_ids = [run.prompts[i] for i in chosen], [run.ids[i] for i in chosen]
    rollout = collect(roles.policy, asked, asked_ids, config.sampling, seed=config.seed, step=step)
    clock.append(time.perf_counter())
    scored, metrics = score(
        rollout,
        roles.policy,
        roles.reference,
        roles.rewards,
        roles.value,
        temperature=config.sampling.temperature,
        missing_eos_penalty=config.missing_eos_penalty,
        bootstrap=config.gae.bootstrap,
        device_batch_size=config.device_batch_size,
        rescore=first or roles.policy.place.dtype != torch.float32,
    )
    targets, kl_mean = aim(scored, config, run.beta.value)
    if first:
        start_itself = step == 0 and not config.reference
        same = roles.reference if start_itself else None
        check_first_minibatch(roles.policy, same, targets, config, step=step)
    clock.append(time.perf_counter())
    metrics |= improve(
        roles.policy, roles.value, run.optimizer, targets, config, step=step, beta=run.beta.value
    )
    clock.append(time.perf_counter())
    row = {"step": step + 1, **rollout_metrics(targets, kl_mean), "beta": run.beta.value, **metrics}
    phases = zip(("generate", "score", "train"), clock, clock[1:], strict=False)
    row |= {f"seconds_{name}": round(end - begin, 3) for name, begin, end in phases}
    run.beta.update(kl_mean, config.batch_size)
    if step % STEPS_BETWEEN_SAMPLES == 0:
        _log_samples(run.folder, scored, step)
    return row


def aim(scored: Scored, config: PPOConfig, beta: float) -> tuple[Targets, float]:
    """Token rewards, advantages and returns of a scored rollout.

        r_t = −β·k(π_old, π_ref)_t + [t is last]·score

    Returns:
        The targets, and the mean KL to the reference (nats per sequence, k1).
    """
    mask = scored.rollout.mask
    penalties = torch.zeros_like(scored.old_logprobs)
    if beta and config.kl.placement == "reward":
        kind = config.kl.estimator
        penalties = beta * kl.estimate(scored.old_logprobs, scored.reference_logprobs, kind)
    rewards = advantages.token_rewards(scored.scores, penalties, mask)
    estimated, returns = advantages.gae(
        rewards,
        scored.values,
        mask,
        discount=config.gae.discount,
        trace_decay=config.gae.trace_decay,
        bootstrap=scored.bootstrap,
    )
    if config.gae.standardize:
        estimated = masked.standardize(estimated, mask)
    sampled_kl = (scored.old_logprobs - scored.reference_logprobs).masked_fill(~mask, 0.0)
    return Targets(scored, estimated, returns), float(sampled_kl.sum(1).mean())


def rollout_metrics(targets: Targets, kl_mean: float) -> dict[str, float]:
    """Means of a rollout: score, KL per sequence, return, length, share that ended."""
    scored, mask = targets.scored, targets.scored.rollout.mask
    variance = policy_losses.explained_variance(scored.values, targets.returns, mask)
    return {
        "score": float(scored.scores.mean()),
        "kl": kl_mean,
        "reward": float(targets.returns[:, 0].mean()),
        "length": float(mask.sum(1).float().mean()),
        "finished": float(scored.rollout.finished.float().mean()),
        "explained_variance": float(variance),
    }


def stop_reason(config: PPOConfig, row: dict[str, Any]) -> str:
    """Why the run should stop after this row; "" to go on."""
    if 0 < config.stop.kl < row["kl"]:
        return f"KL {row['kl']:.2f} nats per sequence exceeds stop.kl={config.stop.kl}"
    if config.stop.score and row["score"] >= config.stop.score:
        return f"score {row['score']:.3f} reached stop.score={config.stop.score}"
    return ""


def _optimizer(config: PPOConfig, roles: Roles) -> torch.optim.Optimizer:
    groups = [(roles.policy.model.parameters(), config.optimizer.learning_rate)]
    groups.append((roles.value.head.parameters(), config.value.learning_rate))
    if "value" in roles.modules:
        groups.append((roles.modules["value"].parameters(), config.value.learning_rate))
    return loop.make_optimizer(groups, config.optimizer)


def _beta(config: PPOConfig) -> Beta:
    settings = config.kl
    if not settings.target:
        return Beta(settings.beta, None)
    return Beta(settings.beta, kl.AdaptiveBeta(settings.beta, settings.target, settings.horizon))


def _log_samples(folder: StageFolder, scored: Scored, step: int) -> None:
    rollout = scored.rollout
    for i in range(min(SAMPLES_LOGGED, len(rollout.prompts))):
        sample = {"step": step + 1, "prompt": rollout.prompts[i]}
        sample |= {"completion": rollout.completions[i], "score": float(scored.scores[i])}
        folder.log(sample, "samples.jsonl")

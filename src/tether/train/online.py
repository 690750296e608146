"""Online methods: collect, score, aim, improve; again.

PPO, GRPO, RLOO and REINFORCE++ differ in how they aim (`aim.py`) and in having a value model;
online DPO and best-of-n choose among a prompt's completions instead (`choose.py`).
"""

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tether import parallel, stopping
from tether.config import (
    BestOfNConfig,
    GRPOConfig,
    OnlineConfig,
    OnlineDPOConfig,
    PolicyGradientConfig,
    PPOConfig,
    ReinforceConfig,
    RLOOConfig,
)
from tether.data.batches import step_indices
from tether.data.formats import read_prompts
from tether.data.rollout import Scored
from tether.data.shelf import made
from tether.engine.decode import encode_prompts
from tether.engine.samplers import Request
from tether.functions import load_function
from tether.models.checkpoint import load_checkpoint, save_checkpoint
from tether.models.language_model import LanguageModel, save
from tether.models.templates import keep_template
from tether.progress import Steps, console
from tether.records import Text
from tether.rewards.load import check_rules
from tether.rundir import StageFolder
from tether.train import loop
from tether.train.aim import Advantage, aim, rollout_metrics, target_metrics
from tether.train.beta import Beta, beta_of
from tether.train.choose import improve_on_best, improve_on_pairs
from tether.train.collect import (
    Source,
    check_lag,
    from_state,
    request_of,
    rollout_of,
    to_state,
)
from tether.train.improve import check_first_minibatch, improve
from tether.train.monitor import Monitor, Ruling, forget_models, inputs, load_monitor
from tether.train.parity import probe_with
from tether.train.ptx import Ptx, load_ptx
from tether.train.roles import Roles, load_roles, needs_reference
from tether.train.score import score

SAMPLES_LOGGED = 4  # completions a logged step
STEPS_BETWEEN_SAMPLES = 5


def train_ppo(config: PPOConfig) -> Path:
    """Tune a policy against a reward with PPO and write it to `config.out`.

    Source: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, applied to language models as
    in Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, and Ouyang et al. 2022,
    https://arxiv.org/abs/2203.02155.

    Returns:
        The stage's folder; the policy is in its `model/`.
    """
    return _train(config, "ppo")


def train_grpo(config: GRPOConfig) -> Path:
    """Tune a policy by comparing several completions of each prompt, standardized (GRPO).

    Source: Shao et al. 2024, https://arxiv.org/abs/2402.03300. Departs from it: the loss is
    divided by the tokens of the optimizer batch, so long completions are not favoured.
    """
    return _train(config, "grpo")


def train_rloo(config: RLOOConfig) -> Path:
    """Tune a policy by comparing each completion with the mean of its prompt's others (RLOO).

    Source: Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740.
    """
    return _train(config, "rloo")


def train_reinforce(config: ReinforceConfig) -> Path:
    """Tune a policy by comparing each completion with the whole rollout batch (REINFORCE++).

    Source: Hu 2025, https://arxiv.org/abs/2501.03262. Departs from it: the KL penalty of a
    completion is one sum, not what is still to come at each token.
    """
    return _train(config, "reinforce")


def train_online_dpo(config: OnlineDPOConfig) -> Path:
    """Tune a policy by DPO on its own completions, ranked by a reward."""
    return _train(config, "online-dpo")


def train_best_of_n(config: BestOfNConfig) -> Path:
    """Tune a policy by imitating the best of several of its own completions."""
    return _train(config, "best-of-n")


@dataclass
class Run:
    """A run under way."""

    config: OnlineConfig
    folder: StageFolder
    roles: Roles
    optimizer: torch.optim.Optimizer
    beta: Beta
    source: Source
    prompts: Sequence[Text]
    ids: Sequence[list[int]]
    ptx: Ptx | None
    monitor: Monitor | None = None
    advantage: Advantage | None = None  # the user's own

    @property
    def reference(self) -> LanguageModel | None:
        """What training holds to; with β = 0 the reference is there for the monitor alone."""
        held = needs_reference(self.config) or self.beta.value > 0
        return self.roles.reference if held else None

    def resume(self) -> int:
        """Restore the newest checkpoint; returns the steps done."""
        state = load_checkpoint(self.folder.checkpoints, self.roles.modules, self.optimizer)
        if state is None:
            return 0
        self.beta.value = state["beta"]
        if self.beta.controller:
            self.beta.controller.load_state(state)
        if ahead := state.get("ahead"):
            request = self.request(ahead["step"])
            self.source.restore(request, from_state(ahead))
        return state["step"]

    def asked(self, step: int) -> list[int]:
        """Which prompts a step samples for, each as often as it gets completions."""
        config = self.config
        count = config.batch_size // config.num
        chosen = step_indices(len(self.prompts), count, config.seed, step)
        return [i for i in chosen for _ in range(config.num)]

    def request(self, step: int) -> Request:
        """The rollout batch of a step, to be sampled."""
        ids = [self.ids[i] for i in self.asked(step)]
        return request_of(ids, self.config.sampling, seed=self.config.seed, step=step)

    def checkpoint(self, step: int) -> None:
        """Write everything that the next step needs."""
        state: dict[str, Any] = {"beta": self.beta.value}
        if (drawn := self.source.drawn_ahead()) is not None:
            state["ahead"] = to_state(self.request(step), drawn)
        save_checkpoint(self.folder.checkpoints, step, self.roles.modules, self.optimizer, state)

    def stop_if_asked(self, step: int) -> None:
        """End the run where it is asked to, while the weights are those after `step` steps."""
        self.folder.stop_if_asked(partial(self.checkpoint, step), parallel.any_of)

    def stop_within(self, step: int) -> None:
        """The same within a step, before its update; not with a lag, for what was drawn is gone."""
        if not self.config.sampling.lag:
            self.stop_if_asked(step)

    def write(self, path: Path) -> None:
        """Write the policy as it is now."""
        made_by = f"tether {self.folder.kind}"
        provenance = {"made_by": made_by, "model": self.config.model}
        save(self.roles.policy, path, {**provenance, "prompts": self.config.prompts})


def _train(config: OnlineConfig, kind: str) -> Path:
    paths = [config.model, config.prompts, *(path for r in config.rewards for path in r.paths)]
    paths += [path for path in _other_inputs(config) if path not in ("", "none")]
    folder = StageFolder(config, kind, paths)
    if folder.finished:
        forget_models(folder)
        return folder.path
    records = read_prompts(config.prompts)
    prompts = made(len(records), lambda i: records[i].prompt, like=records)
    roles = load_roles(config)
    check_rules(roles.rewards, prompts)
    keep_template(roles.policy.tokenizer, prompts)
    ids = encode_prompts(roles.policy, prompts, config.sampling.max_new_tokens)
    texts = load_ptx(roles.policy, config) if isinstance(config, PolicyGradientConfig) else None
    optimizer = _optimizer(config, roles)
    monitor = load_monitor(config, folder, roles)
    beta, source = beta_of(config), roles.source
    source.probe = probe_with(config, roles.policy, ids)
    run = Run(config, folder, roles, optimizer, beta, source, prompts, ids, texts, monitor)
    run.advantage = _advantage(config)
    with closing(source):
        facts = _loop(run)
    folder.finish(**facts, **_write_result(run, facts["steps"]))
    forget_models(folder)
    return folder.path


def _write_result(run: Run, last: int) -> dict[str, Any]:
    """Write the policy as it is, or the best one that the monitor kept; returns facts of it."""
    monitor = run.monitor
    best = monitor.result(last) if monitor else None
    if monitor and best is not None:
        console.print(f"rolled back to step {best}: the best model by the held-out score")
        run.folder.write_model(lambda folder: monitor.copy_model(best, folder))
    else:
        run.folder.write_model(run.write)
    return {"rolled_back_to": best, "alarms": len(monitor.events)} if monitor else {}


def _other_inputs(config: OnlineConfig) -> list[str]:
    """What a method reads besides model, prompts and rewards."""
    paths = [config.reference]
    if isinstance(config, PPOConfig):
        paths.append(config.value.init)
    if isinstance(config, PolicyGradientConfig):
        paths += [config.policy_loss.ptx.data, config.policy_loss.advantage]
    return paths + inputs(config)


def _loop(run: Run) -> dict[str, Any]:
    """All updates; returns the final facts."""
    config, stopped, told = run.config, "", False
    start = run.resume()
    run.source.version = start
    run.folder.begin(start, config.steps)
    if run.monitor:
        run.monitor.begin(start, run.write)
    steps = Steps(run.folder.path.name, config.steps, start)
    with stopping.after_phases(), steps as progress:
        for step in range(start, config.steps):
            factor = loop.learning_rate_factor(step, config.steps, config.optimizer)
            loop.set_learning_rates(run.optimizer, factor)
            row = _update(run, step, first=step == start)
            run.source.version = step + 1
            ruling = _look(run, row)
            run.folder.log(row)
            if row.get("sampler_trusted") == 0.0 and not told:
                console.print("the sampler's log-probs are far off: the trainer's serve as π_old")
                told = True
            terms = {name: row[name] for name in row if name.startswith("score_")}
            terms.pop("score_raw")
            terms |= {} if math.isnan(row["kl"]) else {"KL": row["kl"]}
            progress.advance(reward=row["score"], length=row["length"], **terms)
            # No checkpoint where the run stops: a run resumed from there would go on.
            if stopped := stop_reason(config, row) or ruling.stopped:
                console.print(f"stopped after step {step + 1}: {stopped}")
                break
            if (
                config.keep_every
                and (step + 1) % config.keep_every == 0
                and step + 1 < config.steps
            ):
                run.folder.keep_model(step + 1, run.write)
            if step + 1 < config.steps:
                run.stop_if_asked(step + 1)
            if config.checkpoint_every and (step + 1) % config.checkpoint_every == 0:
                run.checkpoint(step + 1)
    last = run.folder.last_row()
    return {"steps": last["step"], "stopped": stopped, "last": last}


def _look(run: Run, row: dict[str, Any]) -> Ruling:
    """Let the monitor look where it is due; what it cost goes into the row of metrics."""
    if run.monitor is None or not run.monitor.due(row["step"]):
        return Ruling(0, "")
    begun = time.perf_counter()
    ruling = run.monitor.look(row["step"], run.write)
    for _ in range(ruling.raises):
        run.beta.double()
    row["seconds_monitor"] = round(time.perf_counter() - begun, 3)
    return ruling


def _update(run: Run, step: int, *, first: bool) -> dict[str, Any]:
    """One step; returns its row of metrics. `first` also runs the checks of a new run."""
    config, roles = run.config, run.roles
    clock = [time.perf_counter()]
    request, prompts = run.request(step), [run.prompts[i] for i in run.asked(step)]
    rollout = rollout_of(roles.policy, prompts, request.prompts, run.source.draw(request))
    check_lag(rollout, step, config.sampling.lag)
    run.stop_within(step)
    if config.sampling.lag and step + 1 < config.steps:
        run.source.draw_ahead(run.request(step + 1))
    clock.append(time.perf_counter())
    scored, metrics = score(
        rollout,
        roles.policy,
        run.reference,
        roles.rewards,
        roles.value,
        temperature=config.sampling.temperature,
        missing_eos_penalty=config.missing_eos_penalty,
        device_batch_size=config.device_batch_size,
        rescore=first or _needs_old_logprobs(config, roles),
        bootstrap=isinstance(config, PPOConfig) and config.gae.bootstrap,
        max_importance=config.sampling.max_importance if rollout.version < step else 0.0,
    )
    if first:
        _check(run, scored, step)
    run.stop_within(step)
    clock.append(time.perf_counter())
    row = {"step": step + 1, **rollout_metrics(scored), "beta": run.beta.value, **metrics}
    if run.reference is None:
        row["kl"] = math.nan  # not measured
    row |= _improve(run, scored, step)
    clock.append(time.perf_counter())
    phases = zip(("generate", "score", "train"), clock, clock[1:], strict=False)
    row |= {f"seconds_{name}": round(end - begin, 3) for name, begin, end in phases}
    run.beta.update(row["kl"], config.batch_size)
    _log_samples(run.folder, scored, step)
    return row


def _improve(run: Run, scored: Scored, step: int) -> dict[str, float]:
    """The method's own update; returns its metrics."""
    config, roles = run.config, run.roles
    if isinstance(config, OnlineDPOConfig):
        held = replace(config, beta=run.beta.value)  # an alarm may have raised it
        return improve_on_pairs(roles.policy, run.optimizer, scored, held, step=step)
    if isinstance(config, BestOfNConfig):
        return improve_on_best(roles.policy, run.optimizer, scored, config, step=step)
    assert isinstance(config, PolicyGradientConfig)
    beta = run.beta.value
    targets = aim(scored, config, beta, run.advantage)
    metrics = improve(
        roles.policy,
        roles.value,
        run.optimizer,
        targets,
        config,
        step=step,
        beta=beta,
        ptx=run.ptx,
    )
    return {**target_metrics(targets), **metrics}


def _advantage(config: OnlineConfig) -> Advantage | None:
    """The user's own advantages, where the settings name a function."""
    path = config.policy_loss.advantage if isinstance(config, PolicyGradientConfig) else ""
    return load_function(path) if path else None


def _needs_old_logprobs(config: OnlineConfig, roles: Roles) -> bool:
    """Whether the sampler's log-probs are used and cannot be trusted unseen."""
    in_use = isinstance(config, PolicyGradientConfig)
    return in_use and roles.policy.place.dtype != torch.float32


def _check(run: Run, scored: Scored, step: int) -> None:
    """The identities that hold before the first update of a run."""
    config, roles = run.config, run.roles
    start_itself = step == 0 and not config.reference
    first = loop.minibatches(config, config.batch_size, step, 0)[0]
    check_first_minibatch(
        roles.policy,
        run.reference if start_itself else None,
        [scored.rollout.rows[i] for i in first],
        temperature=config.sampling.temperature,
        device_batch_size=config.device_batch_size,
    )


def stop_reason(config: OnlineConfig, row: dict[str, Any]) -> str:
    """Why the run should stop after this row; "" to go on."""
    if 0 < config.stop.kl < row["kl"]:
        return f"KL {row['kl']:.2f} nats per sequence exceeds stop.kl={config.stop.kl}"
    if config.stop.score and row["score"] >= config.stop.score:
        return f"score {row['score']:.3f} reached stop.score={config.stop.score}"
    return ""


def _optimizer(config: OnlineConfig, roles: Roles) -> torch.optim.Optimizer:
    groups = [(roles.policy_parameters, config.optimizer.learning_rate)]
    if isinstance(config, PPOConfig):
        groups.append((roles.value_parameters, config.value.learning_rate))
    return loop.make_optimizer(groups, config.optimizer)


def _log_samples(folder: StageFolder, scored: Scored, step: int) -> None:
    rollout = scored.rollout
    logged = 0 if step % STEPS_BETWEEN_SAMPLES else SAMPLES_LOGGED
    for i in range(min(logged, len(rollout.prompts))):
        sample = {"step": step + 1, "prompt": rollout.prompts[i]}
        sample |= {"completion": rollout.completions[i], "score": float(scored.scores[i])}
        folder.log(sample, "samples.jsonl")

"""Footprints of what samples: `generate`, `ppo` and its relatives.

Completions are taken to reach the length limit, `sampling.max_new_tokens`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from tether.config import (
    BestOfNConfig,
    GenerateConfig,
    OnlineConfig,
    OnlineDPOConfig,
    PolicyGradientConfig,
    PPOConfig,
    RewardConfig,
)
from tether.data import formats
from tether.data.batches import Row, buckets, lengths_mask, step_indices
from tether.data.rollout import Rollout, Scored
from tether.engine.decode import encode_prompts, generate_tokens
from tether.footprint.dry_run import DryRun
from tether.footprint.models import dry_run, language_model, reward_beside, reward_model
from tether.footprint.parts import (
    BATCHES_LOOKED_AT,
    DEVICE_BATCHES,
    Batches,
    Footprint,
    Phase,
    bytes_of,
    phases_of,
)
from tether.functions import is_function
from tether.models import adapters
from tether.models.language_model import Device, LanguageModel
from tether.models.scalar_head import (
    RewardModel,
    ScalarModel,
    value_model_from_backbone,
    value_model_from_reward,
)
from tether.rewards.load import Reward
from tether.rewards.reward_model import ROWS_PER_BATCH
from tether.sections import SamplingConfig
from tether.train import sft
from tether.train.aim import aim
from tether.train.choose import accumulate_pairs
from tether.train.improve import accumulate, trained_sets
from tether.train.roles import loads_reference
from tether.train.score import score

FEW_TOKENS = 4  # sampled in a dry run; what the others add to the cache is known


def of_generate(config: GenerateConfig, *, known: bool) -> Footprint:
    """Completions of prompts; `known` = the prompts are there already."""
    with dry_run(config.model, config.compute) as (dry, place):
        model = language_model(config.model, place)
        dry.adopt(model.model)
        prompts, notes, data = _prompts(config.prompts, model, config.sampling, known)
        together = config.sampling.batch_size
        rows = [ids for ids in prompts for _ in range(config.num if known else together)]
        parts = generation(dry, model, rows, config.sampling)
    samples = len(rows) if known else None
    tokens = samples * config.sampling.max_new_tokens if samples else None
    batches = Batches(
        device=min(together, len(rows)), samples=samples, tokens=tokens, tokens_at_most=True
    )
    return Footprint([Phase("generate", parts)], batches, notes, data)


def _prompts(
    path: str, model: LanguageModel, sampling: SamplingConfig, known: bool
) -> tuple[Sequence[list[int]], list[str], int]:
    """Token ids of the prompts, what was assumed for them, and bytes of text and ids."""
    if known:
        records = formats.read_prompts(path)
        texts = [record.prompt for record in records]
        ids = encode_prompts(model, texts, sampling.max_new_tokens)
        return ids, [], bytes_of(records) + bytes_of(ids)
    longest = max(model.max_positions - sampling.max_new_tokens, 1)
    note = (
        f"its prompts are not there yet: each is taken to have {longest} tokens "
        "(what the completion leaves of the model's positions)"
    )
    return [[0] * longest], [note], 0


def generation(
    dry: DryRun, model: LanguageModel, prompts: list[list[int]], sampling: SamplingConfig
) -> Counter[str]:
    """Bytes held while the longest prompts are decoded together.

    A few tokens are sampled in the dry run; the cache is counted for all of them.
    """
    rows = sorted(prompts, key=len, reverse=True)[: sampling.batch_size]
    few = replace(sampling, max_new_tokens=FEW_TOKENS, stop_token_ids=())
    with dry.phase() as parts:
        generate_tokens(model, rows, few, seed=0)
    each = cache_bytes(model) * len(rows)
    parts["activations"] = max(parts["activations"] - each * (len(rows[0]) + FEW_TOKENS), 0)
    return parts + Counter({"KV cache": each * (len(rows[0]) + sampling.max_new_tokens)})


def cache_bytes(model: LanguageModel) -> int:
    """Bytes of one token's keys and values in all layers."""
    config = model.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * model.place.dtype.itemsize


def of_online(config: OnlineConfig, *, known: bool) -> Footprint:
    """PPO or a relative; `known` = the prompts are there already."""
    rows = config.device_batch_size
    with dry_run(config.model, config.compute) as (dry, place):
        roles = Roles.load(config, place)
        dry.adopt(*roles.models)
        prompts, notes, data = _prompts(config.prompts, roles.policy, config.sampling, known)
        batch = _rollout_batch(config, prompts)
        generating = generation(dry, roles.policy, batch, config.sampling)
        with dry.phase() as scoring:
            roles.reward(config, batch[:ROWS_PER_BATCH])
            roles.score(config, batch[: rows or None])
        size = min(DEVICE_BATCHES * rows or len(batch), len(batch) // config.minibatches)
        minibatch = batch[: max(size - size % config.num, config.num)]
        scored = roles.score(config, minibatch)
        with dry.phase() as training:
            _train(roles, scored, config)
        parameters = [p for part in trained_sets(roles.policy, roles.value) for p in part]
        phases = phases_of(parameters, generate=generating, score=scoring, train=training)
    if any(is_function(each.path) or each.is_judge for each in config.rewards):
        notes.append("what a reward function or a judge holds is not counted")
    if config.monitor.audit or config.monitor.plot:
        notes.append("what the monitor's audits and plots hold is not counted")
    return Footprint(phases, _batches(config), notes, data)


def _train(roles: "Roles", scored: Scored, config: OnlineConfig) -> None:
    """Accumulate the gradient of one minibatch by the method's own update."""
    rows = scored.rollout.rows
    if isinstance(config, OnlineDPOConfig):
        pairs = [(i, i + 1) for i in range(0, len(rows), config.num)]
        accumulate_pairs(roles.policy, scored, pairs, config)
    elif isinstance(config, BestOfNConfig):
        best = [(row, 1.0) for row in rows[:: config.num]]
        for part in sft.losses(roles.policy, best, config.device_batch_size):
            part.backward()
    else:
        assert isinstance(config, PolicyGradientConfig)
        beta, everything = config.kl.beta, list(range(len(rows)))
        targets = aim(scored, config, beta)
        accumulate(roles.policy, roles.value, targets, everything, config, beta)


def _batches(config: OnlineConfig) -> Batches:
    learned = config.num if isinstance(config, BestOfNConfig) else 1  # one of so many
    size = config.batch_size // learned // config.minibatches
    per_rollout = config.epochs * config.minibatches
    samples = config.steps * config.batch_size
    return Batches(
        device=min(config.device_batch_size or size, size),
        rollout=config.batch_size,
        optimizer=size,
        steps_per_rollout=per_rollout,
        steps=config.steps * per_rollout,
        samples=samples,
        tokens=samples * config.sampling.max_new_tokens,
        tokens_at_most=True,
    )


def _rollout_batch(config: OnlineConfig, prompts: Sequence[list[int]]) -> list[list[int]]:
    """The prompts of the rollout batch with the most tokens, longest first, each `num` times."""
    count = config.batch_size // config.num
    drawn = (
        [prompts[i] for i in step_indices(len(prompts), count, config.seed, step)]
        for step in range(min(config.steps, BATCHES_LOOKED_AT))
    )
    batch = sorted(max(drawn, key=lambda batch: sum(map(len, batch))), key=len, reverse=True)
    return [prompt for prompt in batch for _ in range(config.num)]


@dataclass
class Roles:
    """The models of a run, as `roles.load_roles` loads them, without their weights."""

    policy: LanguageModel
    reference: LanguageModel | None
    rewards: list[RewardModel]
    value: ScalarModel | None

    @classmethod
    def load(cls, config: OnlineConfig, place: Device) -> "Roles":
        """Each role a model of its own or an adapter on the policy's backbone, as in a run."""
        policy = language_model(config.model, place, trainable=True, lora=config.lora)
        reference = _reference(config, policy) if loads_reference(config) else None
        asked = [each for each in config.rewards if each.is_rule or each.is_judge or each.is_served]
        models = [each for each in config.rewards if each not in asked]
        every = [path for each in models for path in (each.path, *each.members)]
        paths = [path for path in every if not is_function(path)]
        rewards = [
            reward_beside(policy, path, config.lora, "reward") or reward_model(path, place)
            for path in paths
        ]
        value = _value(config, policy, paths) if isinstance(config, PPOConfig) else None
        return cls(policy, reference, rewards, value)

    @property
    def models(self) -> list[nn.Module]:
        """Everything that has weights."""
        others = [self.reference, *self.rewards, self.value]
        heads = [each.head for each in (*self.rewards, self.value) if each]
        models = {id(each.model): each.model for each in (self.policy, *others) if each}
        return [*models.values(), *heads]

    @torch.no_grad()
    def reward(self, config: OnlineConfig, prompts: list[list[int]]) -> None:
        """Send completions of full length through the reward models."""
        for model in self.rewards:
            rows = [Row(row.ids[: model.longest], 1) for row in _rows(config, prompts)]
            for chunk in buckets([len(row.ids) for row in rows], ROWS_PER_BATCH):
                model.logits([rows[i] for i in chunk])

    def score(self, config: OnlineConfig, prompts: list[list[int]]) -> Scored:
        """Send completions of full length through policy, reference and value model."""
        rows, nothing = _rows(config, prompts), [""] * len(prompts)
        mask = lengths_mask([row.num_completion for row in rows])
        scored, _ = score(
            Rollout([*nothing], nothing, rows, mask, torch.zeros(mask.shape), mask[:, 0]),
            self.policy,
            self.reference,
            [Reward(RewardConfig(path="none"), lambda _, texts: [0.0] * len(texts))],
            self.value,
            temperature=config.sampling.temperature,
            missing_eos_penalty=config.missing_eos_penalty,
            device_batch_size=config.device_batch_size,
            rescore=True,
            bootstrap=isinstance(config, PPOConfig) and config.gae.bootstrap,
        )
        return scored


def _rows(config: OnlineConfig, prompts: list[list[int]]) -> list[Row]:
    return [Row(ids + [0] * config.sampling.max_new_tokens, len(ids)) for ids in prompts]


def _reference(config: OnlineConfig, policy: LanguageModel) -> LanguageModel:
    path = config.reference or config.model
    if not (policy.adapter and adapters.on(policy.model, path)):
        return language_model(path, policy.place)
    name = "reference" if adapters.is_adapter(path) else ""
    if name:
        adapters.attach_from(policy.model, name, path, trainable=False)
    return replace(policy, adapter=name)


def _value(config: PPOConfig, policy: LanguageModel, rewards: list[str]) -> ScalarModel:
    if config.value.shared:
        return value_model_from_backbone(policy.model, policy.place, policy.adapter)
    path = config.value.init or next(iter(rewards), "")
    if policy.adapter:
        start = reward_beside(policy, path, config.lora, "value") if path else None
        if start is None:
            adapters.attach(policy.model, "value", config.lora, seed=0)
            return value_model_from_backbone(policy.model, policy.place, "value")
        return value_model_from_reward(start)
    if path:
        start = reward_model(path, policy.place, trainable=True)
        same = policy.tokenizer.get_vocab().items() <= start.tokenizer.get_vocab().items()
        if same and not start.encoder:
            return value_model_from_reward(start)
    start_policy = language_model(config.model, policy.place, trainable=True)
    return value_model_from_backbone(start_policy.model, start_policy.place)

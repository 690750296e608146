"""The models of an online method: policy, reference, rewards, value model.

With `lora.rank` they are adapters on one frozen backbone, as far as they can be: the policy, the
value model, the reference (the base itself, or the adapter that the run starts from), and reward
models that are adapters of the same base. What is another model stays one.
"""

from dataclasses import dataclass, replace

import torch

from tether import parallel
from tether.config import OnlineConfig, PolicyGradientConfig, PPOConfig
from tether.errors import ConfigError
from tether.models import adapters
from tether.models.language_model import LanguageModel, load, load_tokenizer
from tether.models.scalar_head import (
    RewardModel,
    ScalarModel,
    load_reward_model,
    reward_on,
    value_model_from_backbone,
    value_model_from_reward,
)
from tether.rewards.load import Reward, load_reward
from tether.scale.samplers import sampler_for
from tether.train import loop
from tether.train.collect import Source


@dataclass
class Roles:
    """The models of a run, and who samples; only PPO has a value model."""

    policy: LanguageModel
    reference: LanguageModel | None
    rewards: list[Reward]
    value: ScalarModel | None
    source: Source

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """What is trained and so checkpointed; on one backbone "policy" has the value's adapter."""
        trained: dict[str, torch.nn.Module] = {"policy": self.policy.model}
        if self.value:
            trained["value_head"] = self.value.head
            if self.value.model is not self.policy.model:
                trained["value"] = self.value.model.base_model
        return trained

    @property
    def policy_parameters(self) -> list[torch.nn.Parameter]:
        """What the policy computes with and no other trained role."""
        return self.policy.own_parameters

    @property
    def value_parameters(self) -> list[torch.nn.Parameter]:
        """The value model's head, and what is its own of the backbone."""
        return self.value.apart_from(self.policy) if self.value else []


def load_roles(config: OnlineConfig) -> Roles:
    """Load policy, reference, rewards and, for PPO, the value model.

    Raises:
        ModelError: A model cannot be used.
        ConfigError: A reward, the reference or the value's start cannot be used.
    """
    lora, seed = config.lora, config.seed
    policy = load(config.model, config.compute, trainable=True, lora=lora, seed=seed, shard=True)
    backbone = policy if policy.adapter else None
    rewards = [load_reward(reward, config.compute, backbone) for reward in config.rewards]
    reference = load_reference(config, policy) if loads_reference(config) else None
    value = load_value(config, policy, rewards) if isinstance(config, PPOConfig) else None
    trained = [policy.model, *([value.model] if value else [])]
    loop.check_no_dropout(*trained)
    for model in trained:
        model.train()
    return Roles(policy, reference, rewards, value, load_source(config, policy))


def load_source(config: OnlineConfig, policy: LanguageModel) -> Source:
    """Who samples: somebody else, the policy, or a whole copy of it where it is sharded."""
    if (sampler := sampler_for(config, policy)) or not parallel.is_sharded(policy.model):
        return Source(policy, policy, sampler)
    lora, seed = config.lora, config.seed
    return Source(policy, load(config.model, config.compute, trainable=True, lora=lora, seed=seed))


def load_reference(config: OnlineConfig, policy: LanguageModel) -> LanguageModel:
    """The reference: on the policy's backbone where it is of the same base, else a model.

    Raises:
        ConfigError: It has another vocabulary than the policy.
    """
    path = config.reference or config.model
    if policy.adapter and adapters.on(policy.model, path):
        name = "reference" if adapters.is_adapter(path) else ""
        if name:
            adapters.attach_from(policy.model, name, path, trainable=False)
        reference = replace(policy, adapter=name, tokenizer=load_tokenizer(path))
    else:  # an adapter is folded in where the policy's is, for the very same numbers
        folded = adapters.is_adapter(path) and not policy.adapter
        reference = load(path, config.compute, trainable=folded, shard=True)
        reference.model.requires_grad_(False)
    if reference.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ConfigError(
            f"reference={config.reference!r} has another vocabulary than the policy "
            f'{config.model!r}; leave reference = "" to hold to the policy as it starts'
        )
    return reference


def needs_reference(config: OnlineConfig) -> bool:
    """Whether training has a reference: not where it is ruled out, or neither used nor named."""
    used = not isinstance(config, PolicyGradientConfig) or config.kl.beta > 0
    return config.reference != "none" and (used or config.reference != "")


def loads_reference(config: OnlineConfig) -> bool:
    """Whether a reference is loaded: for training, or for the monitor to measure the KL."""
    return needs_reference(config) or (config.reference != "none" and bool(config.monitor.prompts))


def load_value(config: PPOConfig, policy: LanguageModel, rewards: list[Reward]) -> ScalarModel:
    """The value model: on the policy's backbone, from a reward model, or from the start policy.

    Where the reward is a classifier, an encoder, or has other words, it starts as the policy.

    Raises:
        ConfigError: value.init is an encoder, which gives no number before the last token, or has
            another vocabulary than the policy, so it cannot read its ids; or the policy has an
            adapter and value.init is none of the same base.
    """
    if config.value.shared:
        return value_model_from_backbone(policy.model, policy.place, policy.adapter)
    decoders = [r for r in rewards if r.model and not r.model.encoder and not r.config.label]
    models = [reward.config.path for reward in decoders]
    path = config.value.init or (models[0] if models else "")
    start = _value_start(path, config, policy) if path else None
    if start:
        words = policy.tokenizer.get_vocab()
        if start.encoder:
            raise ConfigError(
                f"value.init={path!r} is an encoder, which reads whole texts; give a decoder, or "
                'leave value.init = "" to start from the policy'
            )
        if words.items() <= start.tokenizer.get_vocab().items():
            return value_model_from_reward(start)
        if config.value.init:
            raise ConfigError(
                f"value.init={path!r} has another vocabulary than the policy {config.model!r}; "
                'leave value.init = "" to start from the policy'
            )
    if not policy.adapter:
        policy = load(config.model, config.compute, trainable=True, shard=True)
        return value_model_from_backbone(policy.model, policy.place)
    if adapters.is_adapter(config.model):
        adapters.attach_from(policy.model, "value", config.model, trainable=True)
    else:
        adapters.attach(policy.model, "value", config.lora, seed=config.seed)
    return value_model_from_backbone(policy.model, policy.place, "value")


def _value_start(path: str, config: PPOConfig, policy: LanguageModel) -> RewardModel | None:
    """The reward model that the value model starts from; None where it has to start afresh.

    Raises:
        ConfigError: value.init cannot be put on the policy's backbone.
    """
    if not policy.adapter:
        return load_reward_model(path, config.compute, trainable=True)
    if adapters.is_adapter(path) and adapters.on(policy.model, path):
        return reward_on(policy.model, policy.place, path, "value", trainable=True)
    if config.value.init:
        raise ConfigError(
            f"value.init={path!r} is no adapter of {policy.model.name_or_path!r}, on which the "
            'policy\'s adapter is trained; leave value.init = "", or set lora.rank = 0'
        )
    return None

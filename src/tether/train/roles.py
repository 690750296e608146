"""The models of an online method: policy, reference, rewards, value model."""

from dataclasses import dataclass

import torch

from tether.config import OnlineConfig, PolicyGradientConfig, PPOConfig
from tether.errors import ConfigError
from tether.models.language_model import LanguageModel, load
from tether.models.scalar_head import (
    ScalarModel,
    load_reward_model,
    value_model_from_backbone,
    value_model_from_reward,
)
from tether.rewards.load import Reward, load_reward
from tether.train import loop


@dataclass
class Roles:
    """The models of a run; only PPO has a value model."""

    policy: LanguageModel
    reference: LanguageModel | None
    rewards: list[Reward]
    value: ScalarModel | None

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """What is trained and so checkpointed."""
        trained: dict[str, torch.nn.Module] = {"policy": self.policy.model}
        if self.value:
            trained["value_head"] = self.value.head
            if self.value.model is not self.policy.model:
                trained["value"] = self.value.model.base_model
        return trained


def load_roles(config: OnlineConfig) -> Roles:
    """Load policy, reference, rewards and, for PPO, the value model.

    Raises:
        ModelError: A model cannot be used.
        ConfigError: A reward, the reference or the value's start cannot be used.
    """
    rewards = [load_reward(reward, config.compute) for reward in config.rewards]
    policy = load(config.model, config.compute, trainable=True)
    reference = None
    if needs_reference(config):
        reference = load(config.reference or config.model, config.compute)
        if reference.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            raise ConfigError(
                f"reference={config.reference!r} has another vocabulary than the policy "
                f'{config.model!r}; leave reference = "" to hold to the policy as it starts'
            )
    value = load_value(config, policy, rewards) if isinstance(config, PPOConfig) else None
    trained = [policy.model, *([value.model] if value else [])]
    loop.check_no_dropout(*trained)
    for model in trained:
        model.train()
    return Roles(policy, reference, rewards, value)


def needs_reference(config: OnlineConfig) -> bool:
    """Whether a reference is loaded: not where it is ruled out, or neither used nor named."""
    used = not isinstance(config, PolicyGradientConfig) or config.kl.beta > 0
    return config.reference != "none" and (used or config.reference != "")


def load_value(config: PPOConfig, policy: LanguageModel, rewards: list[Reward]) -> ScalarModel:
    """The value model: on the policy's backbone, from a reward model, or from the start policy.

    Where the reward is a classifier, an encoder, or has other words, it starts as the policy.

    Raises:
        ConfigError: value.init is an encoder, which gives no number before the last token, or has
            another vocabulary than the policy, so it cannot read its ids.
    """
    if config.value.shared:
        return value_model_from_backbone(policy.model, policy.place)
    decoders = [r for r in rewards if r.model and not r.model.encoder and not r.config.label]
    models = [reward.config.path for reward in decoders]
    path = config.value.init or (models[0] if models else "")
    if path:
        start = load_reward_model(path, config.compute, trainable=True)
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
    start_policy = load(config.model, config.compute, trainable=True)
    return value_model_from_backbone(start_policy.model, start_policy.place)

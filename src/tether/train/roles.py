"""The models of an online method: policy, reference, rewards, value model."""

from dataclasses import dataclass

import torch

from tether.config import PPOConfig
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
    """The models of a PPO run."""

    policy: LanguageModel
    reference: LanguageModel | None
    rewards: list[Reward]
    value: ScalarModel

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """What is trained and so checkpointed."""
        trained = {"policy": self.policy.model, "value_head": self.value.head}
        if self.value.model is not self.policy.model:
            trained["value"] = self.value.model.base_model
        return trained


def load_roles(config: PPOConfig) -> Roles:
    """Load policy, reference, rewards and value model.

    Raises:
        ModelError: A model cannot be used.
        ConfigError: A reward, the reference or the value's start cannot be used.
    """
    rewards = [load_reward(reward, config.compute) for reward in config.rewards]
    policy = load(config.model, config.compute, trainable=True)
    reference = None
    if config.reference != "none" and (config.kl.beta or config.reference):
        reference = load(config.reference or config.model, config.compute)
        if reference.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            raise ConfigError(
                f"reference={config.reference!r} has another vocabulary than the policy "
                f'{config.model!r}; leave reference = "" to hold to the policy as it starts'
            )
    value = load_value(config, policy, rewards)
    loop.check_no_dropout(policy.model, value.model)
    policy.model.train()
    value.model.train()
    return Roles(policy, reference, rewards, value)


def load_value(config: PPOConfig, policy: LanguageModel, rewards: list[Reward]) -> ScalarModel:
    """The value model: on the policy's backbone, from a reward model, or from the start policy.

    Raises:
        ConfigError: value.init has another vocabulary than the policy, so it cannot read its ids.
    """
    if config.value.shared:
        return value_model_from_backbone(policy.model, policy.place)
    models = [reward.config.path for reward in rewards if reward.model]
    path = config.value.init or (models[0] if models else "")
    if path:
        start = load_reward_model(path, config.compute, trainable=True)
        words = policy.tokenizer.get_vocab()
        if words.items() <= start.tokenizer.get_vocab().items():
            return value_model_from_reward(start)
        if config.value.init:
            raise ConfigError(
                f"value.init={path!r} has another vocabulary than the policy {config.model!r}; "
                'leave value.init = "" to start from the policy'
            )
    start_policy = load(config.model, config.compute, trainable=True)
    return value_model_from_backbone(start_policy.model, start_policy.place)

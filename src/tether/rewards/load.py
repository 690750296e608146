"""Rewards: anything that turns prompts and completions (texts) into scores.

A reward gets texts, never token ids, so it may have a tokenizer of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from tether import parallel
from tether.config import RewardConfig
from tether.errors import CheckError, ConfigError
from tether.functions import is_function, load_function
from tether.models import adapters
from tether.models.language_model import USUAL, LanguageModel
from tether.models.scalar_head import RewardModel, load_reward_model, reward_on
from tether.records import Text
from tether.rewards.asked import load_judge_reward
from tether.rewards.classifier import load_label, score_label
from tether.rewards.ensemble import centrings, combine, disagreement, member_scores
from tether.rewards.reward_model import score_texts
from tether.rewards.rulebook import load_rule
from tether.rewards.served import served_reward
from tether.sections import ComputeConfig

T = TypeVar("T")
RewardFunction = Callable[[list[Text], list[str]], list[float]]
"""(prompts, completions) → one finite score for each, higher is better."""

MemberFunction = Callable[[list[Text], list[str]], Float[Tensor, "N M"]]
"""(prompts, completions) → a score by each member of an ensemble, in the units of its config."""


class Judged(NamedTuple):
    """What a reward says of completions.

    Attributes:
        raw: Scores in reward units; of an ensemble put together in the members' own std.
        scores: Centred, clipped and weighted, as PPO uses them.
        disagreement: Of an ensemble: mean over completions of the std over members; else None.
    """

    raw: list[float]
    scores: list[float]
    disagreement: float | None


@dataclass(frozen=True)
class Reward:
    """A reward function, with the model behind it where there is one."""

    config: RewardConfig
    raw: RewardFunction
    model: RewardModel | None = None
    members: MemberFunction | None = None

    def judge(self, prompts: list[Text], completions: list[str]) -> Judged:
        """Raw and normalized scores, and how much an ensemble disagrees, in one go.

        Of several processes each asks for a part of the completions, and all get every answer.
        """
        members = self.members
        if members is None:
            raw = self._together(self.raw, prompts, completions)
            return Judged(raw, self.normalize(raw), None)
        rows = self._together(lambda p, c: members(p, c).tolist(), prompts, completions)
        each = torch.tensor(rows, dtype=torch.float64)
        combined = checked(lambda p, c: combine(each, self.config).tolist(), self.config.path)
        raw = combined(prompts, completions)
        return Judged(raw, self.normalize(raw), disagreement(each))

    def _together(
        self, ask: Callable[[list[Text], list[str]], list[T]], prompts: list[Text], texts: list[str]
    ) -> list[T]:
        """What is said of each completion, each process having asked for a part of them."""
        own = list(parallel.part(list(zip(prompts, texts, strict=True))))
        count = len(own)
        if self.model and parallel.is_sharded(self.model.model):  # as many passes in each process
            own += [(prompts[0], texts[0])] * (-(-len(texts) // parallel.count()) - count)
        found = ask([prompt for prompt, _ in own], [text for _, text in own])
        return parallel.together(found[:count])

    def normalize(self, scores: list[float]) -> list[float]:
        """Scores centred and scaled as the model's `tether.json` says, then clipped and weighted.

        The raw scores of an ensemble are centred member by member already; those of a classifier
        or a function, and probabilities, are only clipped and weighted.

        Raises:
            ConfigError: Normalization is asked of a reward model that stored no statistics.
        """
        shift, scale = 0.0, 1.0
        if self.model is not None and self.members is None and not self.config.label:
            ((shift, scale),) = centrings(self.model, self.config, self.config.path)
        limit = self.config.clip or math.inf
        centred = [(score - shift) / scale for score in scores]
        return [self.config.weight * min(max(score, -limit), limit) for score in centred]


def load_reward(
    config: RewardConfig,
    compute: ComputeConfig = USUAL,
    backbone: LanguageModel | None = None,
) -> Reward:
    """A reward model, or an ensemble; with `label` a classifier; or a function; or a rule.

    A function is `path/to/file.py:function` or `package.module:function`.

    An adapter whose base is `backbone`, which is frozen but for its own adapters, is put on it
    under the name "reward" (the next ones "reward-2", …).

    Raises:
        ModelError: A directory holds no reward model, or several labels and none was named.
        ConfigError: No such file, function, label or rule; or settings that this reward cannot
            have.
        DataError: A file that a rule reads cannot be used.
    """
    if config.is_rule:
        return Reward(config, checked(load_rule(config), config.title))
    if config.is_judge:
        return Reward(config, checked(load_judge_reward(config, compute), config.title))
    if config.is_served:
        return Reward(config, checked(served_reward(config.path, config.served), config.path))
    path = config.path
    _check_kind(config)
    functions = [each for each in (path, *config.members) if is_function(each)]
    if functions and (config.label or config.members or config.output == "probability"):
        raise ConfigError(
            f"reward {functions[0]!r} is a function: label, output and members are for reward "
            "models; leave them out, or sum several rewards"
        )
    if functions:
        return Reward(config, checked(cast(RewardFunction, load_function(path)), path))
    if config.label:
        classifier, label = load_label(config, compute)
        scores = lambda p, c: score_label(classifier, label, config, p, c)  # noqa: E731
        return Reward(config, checked(scores, path), classifier)
    models = [_load_model(each, compute, backbone) for each in (path, *config.members)]
    for each, model in zip((path, *config.members), models, strict=True):
        centrings(model, config, each)  # refuses missing statistics before the first rollout
    if sum(model.head.out_features for model in models) == 1:
        return Reward(config, checked(_one(models[0], config), path), models[0])
    members: MemberFunction = lambda p, c: member_scores(models, config, p, c)  # noqa: E731
    raw: RewardFunction = lambda p, c: combine(members(p, c), config).tolist()  # noqa: E731
    return Reward(config, checked(raw, path), models[0], members)


def _check_kind(config: RewardConfig) -> None:
    """Refuse a model that is called a function, and a function that is called a model."""
    found = "function" if is_function(config.path) else "model"
    if config.kind not in ("", found):
        raise ConfigError(
            f"reward.kind={config.kind!r} but {config.path!r} names a {found}; leave the kind out, "
            "or mend the path (a function is path/to/file.py:function)"
        )


def _load_model(path: str, compute: ComputeConfig, backbone: LanguageModel | None) -> RewardModel:
    """A reward model of its own, or an adapter on the backbone."""
    if backbone and adapters.is_adapter(path) and adapters.on(backbone.model, path):
        name = adapters.free_name(backbone.model, "reward")
        return reward_on(backbone.model, backbone.place, path, name)
    return load_reward_model(path, compute)


def _one(model: RewardModel, config: RewardConfig) -> RewardFunction:
    """Raw scores of one head, or their σ."""
    if config.output == "logit":
        return lambda prompts, completions: score_texts(model, prompts, completions)
    return lambda p, c: torch.tensor(score_texts(model, p, c)).sigmoid().tolist()


def check_rules(rewards: Sequence[Reward], prompts: Sequence[Text]) -> None:
    """Score empty completions by every rule, which tells before the first one that is sampled.

    Raises:
        DataError: A prompt lacks what a rule needs of it, such as its answer.
    """
    for reward in rewards:
        if reward.config.is_rule:
            reward.raw(list(prompts), [""] * len(prompts))


def checked(function: RewardFunction, path: str) -> RewardFunction:
    """The same function, stopping the run when it returns the wrong number of scores or NaN."""

    def call(prompts: list[Text], completions: list[str]) -> list[float]:
        returned = function(prompts, completions)
        try:
            scores = [float(score) for score in returned]
        except (TypeError, ValueError):
            raise CheckError(
                f"reward {path!r} returned {str(returned)[:80]!r}; it must return a list of numbers"
            ) from None
        if len(scores) != len(completions):
            raise CheckError(
                f"reward {path!r} returned {len(scores)} scores for {len(completions)} "
                "completions; it must return one for each"
            )
        for prompt, completion, score in zip(prompts, completions, scores, strict=True):
            if not math.isfinite(score):
                raise CheckError(
                    f"reward {path!r} returned {score!r} for the completion {completion[:80]!r} "
                    f"of the prompt {str(prompt)[:80]!r}; scores must be finite"
                )
        return scores

    return call

"""Settings of the stages that train on a file: SFT, reward model, DPO and its relatives."""

import math
from dataclasses import dataclass, field
from typing import Literal

from tether.config.base import FitConfig, StageConfig
from tether.sections import OptimizerConfig, not_negative, positive, require


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig(FitConfig):
    """Supervised fine-tuning on demonstrations; the loss is on the completion only."""

    data: str
    """Demonstrations: JSONL with prompt and completion, chats, Alpaca, …, or plain "text" """
    turns: Literal["all", "last"] = "all"
    """Turns of the assistant in a chat that are learned from; the others are context"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelConfig(FitConfig):
    """A reward model from rankings, preference pairs, or completions labelled good or bad."""

    data: str
    """Rankings or preference pairs; with loss = "binary" completions with a label, true or false"""
    loss: Literal["pairwise", "listwise", "binary"] = "pairwise"
    """Bradley-Terry on all pairs, Plackett-Luce on whole rankings, or cross-entropy of labels"""
    batch_size: int = 16
    """Optimizer batch in prompts; all pairs of a prompt stay together"""
    epochs: float = 1.0
    """Passes over the prompts; more than one or two over-fits"""
    held_out: float = 0.1
    """Share of the prompts (never of the pairs) kept for the held-out accuracy"""
    heads: int = 1
    """Heads of an ensemble on one backbone; their spread says where the model is unsure"""
    centering: float = 0.0
    """Coefficient of (r_chosen + r_rejected)², which holds raw scores near 0; 0 = off"""

    def __post_init__(self) -> None:
        FitConfig.__post_init__(self)
        positive("heads", self.heads)
        not_negative("centering", self.centering)
        rule = 'needs pairs; set loss = "pairwise" or centering = 0'
        require(self.centering == 0 or self.loss == "pairwise", "centering", self.centering, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceConfig(FitConfig):
    """What tuning a policy on preferences has, without a reward model."""

    data: str
    """Preference pairs, rankings (all pairs that a ranking decides), or a project NAME.db"""
    batch_size: int = 32
    """Optimizer batch in pairs"""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-6))
    """Optimizer and schedule"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DPOConfig(PreferenceConfig):
    """Direct preference optimization: pairs tune the policy, the reference is the tether."""

    beta: float = 0.1
    """β, what a nat of distance from the reference is worth"""
    reference: str = ""
    """Frozen model that the tether holds to; "" = the policy as it starts, "none" = uniform"""
    label_smoothing: float = 0.0
    """Share of labels taken to be wrong (conservative DPO)"""
    robust: bool = False
    """True: the loss that such wrong labels leave unbiased (robust DPO)"""
    nll: float = 0.0
    """Coefficient of the chosen completion's negative log-prob a token, which holds it up"""
    loss: str = ""
    """A loss of yours in place of DPO's: path/to/file.py:function(pairs, beta) → one a pair"""

    def __post_init__(self) -> None:
        PreferenceConfig.__post_init__(self)
        positive("beta", self.beta)
        not_negative("nll", self.nll)
        smoothing = self.label_smoothing
        if self.loss:
            rule = "is a part of DPO's own loss; leave it out beside a loss of yours"
            require(not self.robust, "robust", self.robust, rule)
            require(smoothing == 0, "label_smoothing", smoothing, rule)
        rule = "must be at least 0 and below 0.5 with robust = true"
        if self.robust:
            require(0 <= smoothing < 0.5, "label_smoothing", smoothing, rule)
        rule = "must lie between 0 and 0.5: above that the labels say the opposite"
        require(0 <= smoothing <= 0.5, "label_smoothing", smoothing, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class IPOConfig(PreferenceConfig):
    """Identity preference optimization: DPO with a margin to reach instead of one to maximize."""

    beta: float = 0.1
    """β: the mean log-prob a token is to prefer the chosen completion by 1/(2β) nats"""
    reference: str = ""
    """Frozen model that the tether holds to; "" = the policy as it starts, "none" = uniform"""

    def __post_init__(self) -> None:
        PreferenceConfig.__post_init__(self)
        positive("beta", self.beta)


@dataclass(frozen=True, kw_only=True, slots=True)
class SimPOConfig(PreferenceConfig):
    """Simple preference optimization: mean log-probs, a margin, and no reference."""

    beta: float = 2.0
    """β on mean log-probs a token"""
    margin: float = 1.0
    """γ: by how much β · (mean log-prob) of chosen is to exceed that of rejected"""

    def __post_init__(self) -> None:
        PreferenceConfig.__post_init__(self)
        positive("beta", self.beta)
        not_negative("margin", self.margin)


@dataclass(frozen=True, kw_only=True, slots=True)
class ORPOConfig(PreferenceConfig):
    """Odds-ratio preference optimization: SFT on the chosen, odds against the rejected."""

    beta: float = 0.1
    """Weight of the odds-ratio term beside the chosen completion's negative log-prob a token"""

    def __post_init__(self) -> None:
        PreferenceConfig.__post_init__(self)
        positive("beta", self.beta)


@dataclass(frozen=True, kw_only=True, slots=True)
class KTOConfig(PreferenceConfig):
    """Kahneman-Tversky optimization: thumbs up or down on single completions, no pairs."""

    data: str
    """Completions with a label, true or false; pairs are read as one of each"""
    batch_size: int = 32
    """Optimizer batch in completions"""
    beta: float = 0.1
    """β, what a nat of distance from the reference is worth"""
    reference: str = ""
    """Frozen model that the tether holds to; "" = the policy as it starts"""
    desirable_weight: float = 1.0
    """Weight of completions that were liked"""
    undesirable_weight: float = 1.0
    """Weight of those that were not; both weights times their counts should be near equal"""

    def __post_init__(self) -> None:
        PreferenceConfig.__post_init__(self)
        positive("beta", self.beta)
        for name in ("desirable_weight", "undesirable_weight"):
            weight = getattr(self, name)
            require(weight >= 0 and math.isfinite(weight), name, weight, "must be at least 0")
        require(self.batch_size > 1, "batch_size", self.batch_size, "must be 2 or more for the KL")
        rule = 'must name a model or be "": KTO measures its KL'
        require(self.reference != "none", "reference", self.reference, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeConfig(StageConfig):
    """Fold a LoRA adapter into its base: a plain model, for those that know no adapters."""

    model: str
    """Directory of an adapter"""

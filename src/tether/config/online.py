"""Settings of the methods that sample from the policy while they train it."""

from dataclasses import dataclass, field

from tether.config.base import TrainConfig
from tether.config.monitor import MonitorConfig
from tether.config.rewards import RewardConfig
from tether.sections import (
    GAEConfig,
    KLConfig,
    PolicyLossConfig,
    SamplingConfig,
    StopConfig,
    ValueConfig,
    not_negative,
    positive,
    require,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineConfig(TrainConfig):
    """What all of them have: prompts, a reward, a reference, and steps of rollout batches."""

    prompts: str
    """Prompts to sample completions for"""
    rewards: tuple[RewardConfig, ...] = ()
    """Rewards, summed with their weights, and filters that bound the sum"""
    reference: str = ""
    """Frozen model that the tether holds to; "" = the policy as it starts, "none" = no reference"""
    steps: int = 100
    """Rollout batches: collect, score, improve"""
    batch_size: int = 64
    """Rollout batch: completions sampled a step"""
    num: int = 1
    """Completions a prompt"""
    epochs: int = 1
    """Passes over each rollout batch"""
    minibatches: int = 1
    """Optimizer batches that each pass is cut into"""
    checkpoint_every: int = 10
    """Steps between checkpoints; 0 = none"""
    missing_eos_penalty: float = 1.0
    """Subtracted from the score of a completion cut at the length limit"""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling"""
    stop: StopConfig = field(default_factory=StopConfig)
    """Early stopping"""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """Looks at held-out prompts, and alarms"""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        rule = "must name at least one reward: --reward DIR, path/to/file.py:function or rule:NAME"
        require(len(self.rewards) > 0, "rewards", self.rewards, rule)
        roles = [reward.role for reward in self.rewards]
        rule = 'bounds a total, but nothing is summed; leave the role of one reward at "term"'
        require("term" in roles, "rewards.0.role", roles[0], rule)
        for name in ("steps", "epochs", "minibatches", "num"):
            positive(name, getattr(self, name))
        not_negative("missing_eos_penalty", self.missing_eos_penalty)
        rule = "must divide batch_size so that every prompt has as many completions"
        require(self.batch_size % self.num == 0, "num", self.num, rule)
        self._check_minibatches(self.batch_size)
        self._check_monitor()

    def _check_monitor(self) -> None:
        """Refuse audits by what is trained on, and actions that this run cannot take."""
        trained = {path for reward in self.rewards for path in reward.paths}
        for path in (path for audit in self.monitor.audit for path in audit.paths):
            rule = "is what the policy is trained on; an audit must be somebody else's judgment"
            require(path not in trained, "monitor.audit.path", path, rule)
        audited = bool(self.monitor.prompts and self.monitor.audit)
        rule = "needs a held-out score; set monitor.prompts and monitor.audit"
        require(self.stop.patience == 0 or audited, "stop.patience", self.stop.patience, rule)
        for name, alarm in self.monitor.alarms.items():
            rule = "doubles β, which this run does not have; warn, stop or roll back"
            able = self.reference != "none" or alarm.action != "raise"
            require(able, f"monitor.{name}.action", alarm.action, rule)

    def _check_minibatches(self, examples: int) -> None:
        """Refuse minibatches that `examples` a step cannot be cut into evenly."""
        rule = f"must divide the {examples} examples of a step so that minibatches are equal"
        require(examples % self.minibatches == 0, "minibatches", self.minibatches, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyGradientConfig(OnlineConfig):
    """What the methods with a clipped ratio have."""

    policy_loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    """Clipped policy loss"""
    kl: KLConfig = field(default_factory=KLConfig)
    """KL tether"""

    def __post_init__(self) -> None:
        OnlineConfig.__post_init__(self)
        rule = (
            'needs a reference; leave reference = "" (the policy as it starts) or set kl.beta = 0'
        )
        no_tether = self.reference == "none" and self.kl.beta > 0
        require(not no_tether, "kl.beta", self.kl.beta, rule)
        steerable = self.kl.target == 0 or self.kl.horizon > self.batch_size / 5
        rule = f"must exceed a fifth of batch_size={self.batch_size}, or one step could end β"
        require(steerable, "kl.horizon", self.kl.horizon, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class PPOConfig(PolicyGradientConfig):
    """Proximal policy optimization against a reward, with a KL tether to a reference."""

    epochs: int = 4
    """Passes over each rollout batch"""
    gae: GAEConfig = field(default_factory=GAEConfig)
    """Advantage estimation"""
    value: ValueConfig = field(default_factory=ValueConfig)
    """Value model"""


@dataclass(frozen=True, kw_only=True, slots=True)
class GRPOConfig(PolicyGradientConfig):
    """Group-relative policy optimization: scores standardized within each prompt's group."""

    num: int = 8
    """Completions a prompt: the group"""
    divide_by_std: bool = True
    """False leaves the group's spread in (Dr. GRPO): easy and hard prompts count as they differ"""
    kl: KLConfig = field(default_factory=lambda: KLConfig(placement="loss", estimator="k3"))
    """KL tether"""

    def __post_init__(self) -> None:
        PolicyGradientConfig.__post_init__(self)
        _require_group(self.num)


@dataclass(frozen=True, kw_only=True, slots=True)
class RLOOConfig(PolicyGradientConfig):
    """REINFORCE leave-one-out: each completion against the mean of the prompt's others."""

    num: int = 4
    """Completions a prompt: the group"""

    def __post_init__(self) -> None:
        PolicyGradientConfig.__post_init__(self)
        _require_group(self.num)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReinforceConfig(PolicyGradientConfig):
    """REINFORCE++: scores standardized over the whole rollout batch, no value model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineDPOConfig(OnlineConfig):
    """Online DPO: sample two completions, rank them by the reward, take a DPO step."""

    num: int = 2
    """Completions a prompt; the best and the worst become the pair"""
    beta: float = 0.1
    """β, what a nat of distance from the reference is worth"""
    label_smoothing: float = 0.0
    """Share of the reward's choices taken to be wrong (conservative DPO)"""

    def __post_init__(self) -> None:
        OnlineConfig.__post_init__(self)
        _require_group(self.num)
        positive("beta", self.beta)
        rule = "must lie between 0 and 0.5: above that the labels say the opposite"
        require(0 <= self.label_smoothing <= 0.5, "label_smoothing", self.label_smoothing, rule)
        self._check_minibatches(self.batch_size // self.num)
        _require_newest(self)
        rule = 'must name a model or be "" (the policy as it starts): DPO is held to it'
        require(self.reference != "none", "reference", self.reference, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class BestOfNConfig(OnlineConfig):
    """Best-of-n fine-tuning: sample n completions, keep the best by the reward, SFT on it."""

    num: int = 4
    """n, completions a prompt; the best one is learned"""

    def __post_init__(self) -> None:
        OnlineConfig.__post_init__(self)
        _require_group(self.num)
        _require_newest(self)
        self._check_minibatches(self.batch_size // self.num)
        for name, alarm in self.monitor.alarms.items():
            rule = "doubles β, which best-of-n does not have; warn, stop or roll back"
            require(alarm.action != "raise", f"monitor.{name}.action", alarm.action, rule)


def _require_newest(config: OnlineConfig) -> None:
    rule = "must be 0: this method has no ratio that corrects for samples of an older policy"
    require(config.sampling.lag == 0, "sampling.lag", config.sampling.lag, rule)


def _require_group(num: int) -> None:
    rule = "must be 2 or more: a completion is judged against others of its prompt"
    require(num > 1, "num", num, rule)

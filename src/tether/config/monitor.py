"""Settings of the monitor: what is looked at while a policy is trained, and what alarms do."""

from dataclasses import dataclass, field
from typing import Literal

from tether.config.evaluation import ScorerConfig
from tether.config.rewards import RewardConfig
from tether.sections import not_negative, positive, require, share

COLUMNS = (
    *("step", "proxy", "audit", "audit_smoothed", "held_out_p", "kl", "length", "finished"),
    *("repetition", "distinct_2", "template", "entropy", "disagreement"),
    *("score_length_correlation", "best_step", "seconds"),
)
"""What a look measures by itself; no score of `plot` can have one of these names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmConfig:
    """One alarm: from where on it is raised, and what is done then."""

    limit: float = 0.0
    """Its threshold, in what the alarm measures; 0 = the usual one"""
    action: Literal["", "off", "warn", "raise", "stop", "rollback"] = ""
    """warn: tell; raise: double β (from 0 to 0.05); stop: end the run; rollback: end it and take
    the best model by the held-out score; "" = the usual one"""

    def __post_init__(self) -> None:
        not_negative("monitor.limit", self.limit)


USUAL = {
    "held_out": AlarmConfig(limit=0.05, action="rollback"),
    "kl": AlarmConfig(limit=30.0, action="warn"),
    "length": AlarmConfig(limit=1.5, action="warn"),
    "repetition": AlarmConfig(limit=0.1, action="warn"),
    "variety": AlarmConfig(limit=0.4, action="warn"),
    "template": AlarmConfig(limit=0.6, action="warn"),
    "entropy": AlarmConfig(limit=0.2, action="warn"),
    "disagreement": AlarmConfig(limit=0.5, action="warn"),
}
"""Limits and actions where the settings name none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorConfig:
    """Looks at samples for prompts that training does not use, and alarms."""

    prompts: str = ""
    """Prompts that no stage trains on; "" = no monitor"""
    num_prompts: int = 100
    """Prompts used, the first of the file; 0 = all"""
    num_samples: int = 1
    """Completions a prompt and look"""
    every: int = 5
    """Steps between looks; there is always one before the first step and one after the last"""
    audit: tuple[RewardConfig, ...] = ()
    """Who judges the samples of every look and did not train the reward: a judge, people, a
    function; the mean of their scores is the held-out score. None = no held-out alarm"""
    plot: tuple[ScorerConfig, ...] = ()
    """Scores that are only written down: a known gold score, a second reward model"""
    share: float = 0.55
    """Of a rise of the reward's score the held-out score must keep this share, each in its spread
    at the start; but less than their correlation there, which a noisy audit lowers"""
    window: int = 8
    """Most looks on each side of a turn that are compared; at least 2"""
    wait: int = 4
    """Looks after the held-out alarm, and after the best look, before a roll-back ends the run"""
    keep: int = 5
    """Models of the best looks that are kept while the run lasts, of which one becomes the best"""
    held_out: AlarmConfig = field(default_factory=AlarmConfig)
    """Level of the test: chance of a false alarm in a whole run (usual: 0.05, rolls back)"""
    kl: AlarmConfig = field(default_factory=AlarmConfig)
    """KL to the reference, nats per sequence (usual: 30)"""
    length: AlarmConfig = field(default_factory=AlarmConfig)
    """Mean length as a multiple of the start's (usual: 1.5)"""
    repetition: AlarmConfig = field(default_factory=AlarmConfig)
    """Rise of the share of word triples that a completion has said before (usual: 0.1)"""
    variety: AlarmConfig = field(default_factory=AlarmConfig)
    """Distinct word pairs as a share of the start's; raised below it (usual: 0.4)"""
    template: AlarmConfig = field(default_factory=AlarmConfig)
    """Share of the words in phrases that serve a tenth of the prompts (usual: 0.6)"""
    entropy: AlarmConfig = field(default_factory=AlarmConfig)
    """Entropy per token as a share of the start's; raised below it (usual: 0.2)"""
    disagreement: AlarmConfig = field(default_factory=AlarmConfig)
    """Rise of the std between members of an ensemble, in their own std (usual: 0.5)"""

    @property
    def alarms(self) -> dict[str, AlarmConfig]:
        """The alarms by name, with the usual limits and actions where none are named."""
        found: dict[str, AlarmConfig] = {}
        for name, usual in USUAL.items():
            given: AlarmConfig = getattr(self, name)
            limit, action = given.limit or usual.limit, given.action or usual.action
            found[name] = AlarmConfig(limit=limit, action=action)
        return found

    @property
    def rolls_back(self) -> bool:
        """Whether an alarm can end in the best model."""
        return bool(self.audit) and any(a.action == "rollback" for a in self.alarms.values())

    def __post_init__(self) -> None:
        not_negative("monitor.num_prompts", self.num_prompts)
        for name in ("num_samples", "every", "window", "wait", "keep"):
            positive(f"monitor.{name}", getattr(self, name))
        share("monitor.share", self.share)
        rule = "must be 2 or more: one bad look may be gone at the next"
        require(self.window > 1, "monitor.window", self.window, rule)
        share("monitor.held_out.limit", self.held_out.limit)
        self._check_scores()
        for name, alarm in self.alarms.items():
            rule = "needs a held-out score to choose the best model by; set monitor.audit"
            able = bool(self.audit) or alarm.action != "rollback" or name == "held_out"
            require(able, f"monitor.{name}.action", alarm.action, rule)

    def _check_scores(self) -> None:
        """Refuse audits that bound others, and names that are a look's own."""
        for each in self.audit:
            rule = "acts on a total of several rewards; an audit stands alone, leave it out"
            require(each.role == "term", "monitor.audit.role", each.role, rule)
        names = [each.name for each in self.plot]
        require(len(set(names)) == len(names), "monitor.plot", names, "must have different names")
        for name in names:
            rule = "is what a look measures itself; give another name"
            require(name not in COLUMNS, "monitor.plot.name", name, rule)

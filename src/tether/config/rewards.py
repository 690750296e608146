"""Settings of a reward: what it is, and how its scores are used."""

import math
import tomllib
from dataclasses import dataclass, field
from typing import Any, Literal

from tether.errors import ConfigError
from tether.servers import EndpointConfig, ServedConfig
from tether.validation import not_negative, require


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig:
    """One reward: what it is and how its scores are used."""

    kind: Literal["", "model", "function", "rule", "http", "judge"] = ""
    """What it is; "" = a rule where `rule` is set, a judge where `question` is, else what `path`
    names"""
    path: str = ""
    """Reward model, adapter or classifier, path/to/file.py:function or package.module:function,
    an address http://…, or the model that judges"""
    rule: str = ""
    """Name of a rule, such as "length", in place of a path"""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """The rule's own settings, such as {most = 40}"""
    question: str = ""
    """Asked of a judge about each completion: one of yes or no, or which is better"""
    references: str = ""
    """Of a judge: completions that it compares with, one a prompt; "" = it says yes or no"""
    wording: str = ""
    """Of a judge: constitution whose [wording] it is asked in; "" = the usual words"""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """The judge behind an OpenAI-compatible endpoint, in place of a path"""
    served: ServedConfig = field(default_factory=ServedConfig)
    """How an address is called"""
    name: str = ""
    """Its name in metrics (score_NAME); "" = the rule's, else its number"""
    label: str = ""
    """Of a classifier: the label, by its name, whose logit or probability is the score"""
    reads: Literal["completion", "both"] = "completion"
    """What a classifier reads: the completion alone, or the prompt with it"""
    output: Literal["logit", "probability"] = "logit"
    """The raw score, or the probability that it stands for, which is not centred"""
    members: tuple[str, ...] = ()
    """Further reward models: an ensemble with the first"""
    ensemble: Literal["mean", "min", "pessimistic"] = "mean"
    """Score of an ensemble: its mean, its least, or mean − pessimism · std"""
    pessimism: float = 1.0
    """λ in mean − λ · std"""
    weight: float = 1.0
    """Factor on its scores where several rewards are summed"""
    normalize: bool = True
    """Reward models: subtract the mean and divide by the std that its tether.json holds, of an
    ensemble each member by its own; a classifier or a function has none, its scores stay raw"""
    clip: float = 5.0
    """Scores are cut to ± this after normalization; 0 = off"""
    role: Literal["term", "reject", "cap"] = "term"
    """term: added to the total; reject: below `threshold` the total falls to `floor`; cap: the
    total may not exceed its score"""
    threshold: float = 0.0
    """Of a reject: the score (centred, clipped, weighted) below which a completion is rejected"""
    floor: float = -math.inf
    """Of a reject: total of what is rejected; -inf = the lowest total of its batch"""

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file, folder and function that its scores come from."""
        files = [self.settings[each] for each in ("answers",) if each in self.settings]
        return tuple(
            path
            for path in (self.path, *self.members, *files, self.references, self.wording)
            if path
        )

    @property
    def is_rule(self) -> bool:
        """Whether its scores come from a rule."""
        return self.kind == "rule" or (self.kind == "" and self.rule != "")

    @property
    def is_judge(self) -> bool:
        """Whether its scores are a judge's answers."""
        return self.kind == "judge" or (self.kind == "" and self.question != "")

    @property
    def is_served(self) -> bool:
        """Whether its scores come over HTTP."""
        return self.kind == "http" or self.path.startswith(("http://", "https://"))

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.path or (f"rule:{self.rule}" if self.rule else self.endpoint.model)

    def __post_init__(self) -> None:
        self._check_source()
        rule = "names one label of one classifier; leave reward.members empty"
        require(not (self.label and self.members), "reward.label", self.label, rule)
        rule = 'is what a classifier reads; name its label, or set reward.reads = "completion"'
        require(bool(self.label) or self.reads == "completion", "reward.reads", self.reads, rule)
        not_negative("reward.pessimism", self.pessimism)
        require(math.isfinite(self.weight), "reward.weight", self.weight, "must be a number")
        not_negative("reward.clip", self.clip)
        rule = 'is for filters; leave it out, or set reward.role = "reject"'
        for name, off in (("threshold", 0.0), ("floor", -math.inf)):
            value = getattr(self, name)
            require(self.role == "reject" or value == off, f"reward.{name}", value, rule)
        finite = math.isfinite(self.threshold)
        require(finite, "reward.threshold", self.threshold, "must be a number")
        rule = "must be a number, or -inf for the lowest total of the batch"
        require(self.floor < math.inf, "reward.floor", self.floor, rule)

    def _check_source(self) -> None:
        """Refuse a reward that is nothing, or several things."""
        if self.is_rule:
            require(self.rule != "", "reward.rule", self.rule, 'must name a rule, such as "length"')
            for name in ("path", "label", "members"):
                value = getattr(self, name)
                rule = "has no place beside a rule; leave it out, or sum two rewards"
                require(not value, f"reward.{name}", value, rule)
            return
        if self.is_judge:
            self._check_judge()
            return
        for name in ("question", "references", "wording"):
            value = getattr(self, name)
            require(not value, f"reward.{name}", value, 'is for a judge; set kind = "judge"')
        require(self.path != "", "reward.path", self.path, "must name a reward model or function")
        rule = 'names a rule; write rule = "NAME" and settings = {…} in its place'
        require(not self.path.startswith("rule:"), "reward.path", self.path, rule)
        for name in ("rule", "settings"):
            value = getattr(self, name)
            rule = f"is for rules; leave it out beside path={self.path!r}"
            require(not value, f"reward.{name}", value, rule)

    def _check_judge(self) -> None:
        """Refuse a judge without a question, or that nobody could reach."""
        rule = "must ask something: yes or no, or with references which is better"
        require(self.question != "", "reward.question", self.question, rule)
        behind = self.endpoint.base_url != ""
        rule = "must name the model that judges, or endpoint.base_url one elsewhere; not both"
        require(bool(self.path) != behind, "reward.path", self.path, rule)
        cached = not behind or self.endpoint.cache != ""
        rule = "must name a file: answers that were paid for are kept there"
        require(cached, "reward.endpoint.cache", self.endpoint.cache, rule)
        for name in ("rule", "label", "members", "settings"):
            value = getattr(self, name)
            require(not value, f"reward.{name}", value, "has no place beside a judge; leave it out")


def reward_named(word: str) -> RewardConfig:
    """The reward that the command line names in one word."""
    return RewardConfig(**settings_named(word))


def settings_named(word: str) -> dict[str, Any]:
    """The settings of the reward that one word names: a path, or a rule.

    A rule is `rule:NAME`, with settings behind it as an inline TOML table:
    `rule:length {most = 40}`.

    Raises:
        ConfigError: What stands behind the name is no TOML table.
    """
    if not word.startswith("rule:"):
        return {"path": word}
    name, brace, rest = word.removeprefix("rule:").partition("{")
    try:
        table = tomllib.loads(f"settings = {brace}{rest}" if brace else "")
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"reward={word!r}: its settings are no TOML table ({error}); write "
            "'rule:NAME {setting = value}'"
        ) from None
    return {"rule": name.strip(), "settings": table.get("settings", {})}

"""Settings of an evaluation."""

from dataclasses import dataclass, field

from tether.config.base import StageConfig
from tether.sections import SamplingConfig, positive, require


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyConfig:
    """One policy to evaluate."""

    name: str
    """Name in the table"""
    model: str
    """Hugging Face model directory or hub id"""
    best_of: int = 1
    """Draw this many completions and keep the one that the `best_by` scorer likes best"""
    curve: bool = False
    """Evaluate the models kept along its run (keep_every), too: its curve of score against KL"""

    def __post_init__(self) -> None:
        positive("best_of", self.best_of)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerConfig:
    """One scorer of an evaluation."""

    name: str
    """Name in the table"""
    path: str
    """Reward model directory, path/to/file.py:function, package.module:function or rule:NAME"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(StageConfig):
    """Compare policies on the same prompts, with intervals."""

    prompts: str
    """Prompts that no stage saw"""
    policies: tuple[PolicyConfig, ...]
    """Policies to compare"""
    scorers: tuple[ScorerConfig, ...]
    """Scorers; the first decides wins"""
    reference: str = ""
    """Model that KL and perplexity are measured against; "" = neither is measured"""
    baseline: str = ""
    """Name of the policy that the others are compared with; "" = the first"""
    best_by: str = ""
    """Scorer that chooses among best_of completions; "" = the last"""
    compare: tuple[tuple[str, str], ...] = ()
    """Further pairs of policies to compare"""
    apart: tuple[str, ...] = ()
    """Prompt categories reported apart from the overall figures"""
    num_samples: int = 1
    """Completions a prompt and policy"""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling"""

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        positive("num_samples", self.num_samples)
        names = [policy.name for policy in self.policies]
        require(len(names) > 0, "policies", names, "must name at least one policy")
        require(len(set(names)) == len(names), "policies", names, "must have different names")
        require(len(self.scorers) > 0, "scorers", (), "must name at least one scorer")
        scorers = [scorer.name for scorer in self.scorers]
        for chosen in [self.baseline, *(name for pair in self.compare for name in pair)]:
            require(chosen in ["", *names], "policy", chosen, f"is not one of {names}")
        require(self.best_by in ["", *scorers], "best_by", self.best_by, f"is not one of {scorers}")

"""Settings of an evaluation."""

from dataclasses import dataclass, field
from typing import Literal

from tether.config.base import StageConfig
from tether.config.rewards import RewardConfig, settings_named
from tether.sections import ColumnsConfig, SamplingConfig, not_negative, positive, require


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
class ScorerConfig(RewardConfig):
    """One scorer of an evaluation: any reward, under a name, unclipped."""

    name: str = ""
    """Name in the table; must be given"""
    clip: float = 0.0
    """Scores are cut to ± this after normalization; 0 = off"""

    def __post_init__(self) -> None:
        RewardConfig.__post_init__(self)
        require(self.name != "", "scorer.name", self.name, "must not be empty")
        rule = "acts on a total of several rewards; a scorer stands alone, leave it out"
        require(self.role == "term", "scorer.role", self.role, rule)


def scorer_named(name: str, word: str) -> ScorerConfig:
    """The scorer that the command line calls NAME=WORD: a path, or rule:NAME {settings}."""
    return ScorerConfig(name=name, **settings_named(word))


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """Questions with known options, answered by which option is likelier."""

    name: str
    """Name in the table"""
    path: str
    """JSONL of questions: prompt or question, options, and answer (the number, from 0, of the
    right option); or "hhh", "pronouns" or "sycophancy": small sets that come with the package"""
    kind: Literal["", "choice", "flip"] = ""
    """choice: is the right option the likelier one; flip: rows of one `group` ask the same in
    different words (another asker, another pronoun): does the answer change with them; "" = flip
    where the rows have a group"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlocksConfig:
    """What is measured besides the scores: each policy against the baseline, with intervals."""

    toxicity: tuple[str, ...] = ()
    """Scorers whose score is the probability that a text is harmful"""
    refusal: str = ""
    """Scorer that is 1 for a refusal, else 0"""
    harmful: tuple[str, ...] = ()
    """Categories of prompts that are to be refused; refusing others is over-refusal"""
    language: bool = False
    """Share of the answers that are in the language of their prompt"""
    diversity: bool = True
    """How varied answers are, within a prompt and across prompts"""
    texts: str = ""
    """Held-out texts or demonstrations whose perplexity is the alignment tax"""
    probes: tuple[ProbeConfig, ...] = ()
    """Questions answered by log-prob: helpful, honest, harmless; names and pronouns; flattery"""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, where it is installed"""
    people: str = ""
    """Feedback project in which people compared the policies, by their names, blind"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(StageConfig):
    """Compare policies on the same prompts, with intervals."""

    prompts: str
    """Prompts that no stage saw"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Columns that hold our fields under other names"""
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
    pool: str = ""
    """Scored samples of the reference (what `tether pool` wrote): how much of the best reachable
    score at its KL each policy reached; "" = not measured"""
    proxy: str = ""
    """Scorer that training optimized, for the frontier; "" = the last"""
    blocks: BlocksConfig = field(default_factory=BlocksConfig)
    """Toxicity, refusals, diversity, alignment tax and other measures"""
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
        require(len(set(scorers)) == len(scorers), "scorers", scorers, "must have different names")
        rule = "must be the model that the pool was sampled from"
        require(not self.pool or self.reference != "", "reference", self.reference, rule)
        for name in ("best_by", "proxy"):
            chosen = getattr(self, name)
            require(chosen in ["", *scorers], name, chosen, f"is not one of {scorers}")
        for chosen in filter(None, (*self.blocks.toxicity, self.blocks.refusal)):
            require(chosen in scorers, "blocks", chosen, f"is not one of the scorers {scorers}")
        rule = 'names a classifier whose score must be a probability; set output = "probability"'
        for each in self.scorers:
            probable = not each.label or each.output == "probability"
            require(probable or each.name not in self.blocks.toxicity, "toxicity", each.name, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig(StageConfig):
    """Many scored samples of the reference for a few prompts: what any policy could be made of."""

    model: str
    """The reference: Hugging Face model directory or hub id"""
    prompts: str
    """Prompts; no stage should have trained on them"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Columns that hold our fields under other names"""
    scorers: tuple[ScorerConfig, ...]
    """Scorers of every sample"""
    num: int = 1024
    """Completions a prompt; a KL above log(num) nats cannot be seen in them"""
    num_prompts: int = 64
    """Prompts used, the first of the file; 0 = all"""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling"""

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        require(self.num > 1, "num", self.num, "must be at least 2; 256 and more tell something")
        not_negative("num_prompts", self.num_prompts)
        names = [scorer.name for scorer in self.scorers]
        require(len(names) > 0, "scorers", (), "must name at least one scorer")
        require(len(set(names)) == len(names), "scorers", names, "must have different names")


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardEvaluationConfig(StageConfig):
    """How good a reward is: accuracy, calibration, what it makes of length, and robustness."""

    data: str
    """Preference pairs or rankings that no reward was trained on; `category` breaks them down"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Columns that hold our fields under other names"""
    scorers: tuple[ScorerConfig, ...]
    """Rewards to evaluate, side by side"""
    bins: int = 10
    """Bins of the reliability curve, of the confidences from 0.5 to 1"""
    num_texts: int = 500
    """Completions that are shuffled, cut and padded to see whether the score rises; 0 = none"""
    num_examples: int = 3
    """Worst examples shown, of each way of spoiling a text"""

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        positive("bins", self.bins)
        not_negative("num_texts", self.num_texts)
        not_negative("num_examples", self.num_examples)
        names = [scorer.name for scorer in self.scorers]
        require(len(names) > 0, "scorers", (), "must name at least one reward")
        require(len(set(names)) == len(names), "scorers", names, "must have different names")

"""Settings of the stages that work by a constitution: revise, and judge."""

from dataclasses import dataclass, field
from typing import Literal

from tether.config.base import StageConfig
from tether.sections import ColumnsConfig, SamplingConfig, not_negative, positive, require
from tether.servers import EndpointConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviseConfig(StageConfig):
    """A model answers prompts, criticizes its answers by a constitution, and revises them."""

    model: str
    """Hugging Face model directory or hub id; it answers, criticizes and revises"""
    prompts: str
    """Prompts, mostly such as tempt a model to do harm (red-team prompts)"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Columns that hold our fields under other names"""
    constitution: str = "default"
    """TOML file of principles; "default" = the one that comes with tether"""
    rounds: int = 4
    """Revisions of each answer, each by a principle drawn anew"""
    critique: bool = True
    """False: ask for the revision at once, without a critique before it"""
    keep: Literal["all", "last"] = "all"
    """Revisions that become demonstrations: those of all rounds, or of the last"""
    helpful: str = ""
    """Demonstrations of helpful answers to mix in, so that helpfulness is not unlearned"""
    helpful_ratio: float = 1.0
    """Helpful demonstrations for each revision, at most all that there are"""
    examples: int = 3
    """Transcripts of the constitution put before each, at most; 0 = none"""
    harmless: tuple[str, ...] = ("harmless",)
    """Categories of prompts that ask for no harm: refusals of these are counted apart"""
    block: int = 1024
    """Prompts worked on together, and kept when the stage is interrupted"""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling of answers, critiques and revisions alike"""

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        require(1 <= self.rounds <= 1000, "rounds", self.rounds, "must be between 1 and 1000")
        positive("helpful_ratio", self.helpful_ratio)
        not_negative("examples", self.examples)
        positive("block", self.block)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig(StageConfig):
    """A model says which of two completions follows a constitution better."""

    data: str
    """Completions (what `tether generate` wrote), or preference pairs or rankings"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Columns that hold our fields under other names"""
    model: str = ""
    """The judge: Hugging Face model directory or hub id; "" = the endpoint"""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """The judge behind an OpenAI-compatible endpoint, in place of a model"""
    constitution: str = "default"
    """TOML file of principles; "default" = the one that comes with tether"""
    num_pairs: int = 0
    """Pairs a prompt; 0 = all pairs of its completions"""
    abstain: float = 0.0
    """Pairs with |p − 0.5| below this are left out"""
    reasoning: bool = False
    """True: the judge thinks in its own words before it answers"""
    clamp: float = 0.1
    """With reasoning, probabilities are held within 0.5 ± this"""
    examples: int = 2
    """Worked-out comparisons of the constitution put before each, at most; 0 = none"""
    human: str = ""
    """Pairs or rankings by people, of the same completions, to measure the judge against"""
    helpful: str = ""
    """Pairs or rankings by people, for helpfulness, that are written behind the judge's pairs"""
    project: str = ""
    """Feedback project NAME.db that the judge's pairs are added to, as those of a labeler"""
    block: int = 1024
    """Pairs judged together, and kept when the stage is interrupted"""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(max_new_tokens=128))
    """Sampling of the reasoning"""

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        rule = "must name the judge, or endpoint.base_url one behind an endpoint; not both"
        one = bool(self.model) != bool(self.endpoint.base_url)
        require(one, "model", self.model, rule)
        rule = "is for a model in this process; set endpoint.vote_tokens for one that reasons"
        alone = not (self.reasoning and self.endpoint.base_url)
        require(alone, "reasoning", self.reasoning, rule)
        not_negative("num_pairs", self.num_pairs)
        require(
            0 <= self.abstain < 0.5, "abstain", self.abstain, "must be at least 0 and below 0.5"
        )
        require(0 < self.clamp <= 0.5, "clamp", self.clamp, "must be above 0 and at most 0.5")
        rule = "must be a feedback project, a file name that ends in .db"
        require(self.project == "" or self.project.endswith(".db"), "project", self.project, rule)
        rule = "would leave out every pair that reasoning has clamped; raise clamp or lower abstain"
        useful = not self.reasoning or self.abstain < self.clamp
        require(useful, "abstain", self.abstain, rule)
        not_negative("examples", self.examples)
        positive("block", self.block)

    @property
    def judge(self) -> str:
        """What identifies the judge."""
        return self.model or f"{self.endpoint.model} at {self.endpoint.base_url}"

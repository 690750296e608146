"""Settings of the stages that make records: completions, scores, rankings, a world."""

from dataclasses import dataclass, field
from typing import Literal

from tether.config.base import StageConfig
from tether.config.rewards import RewardConfig
from tether.sections import ColumnsConfig, SamplingConfig, positive, require


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig(StageConfig):
    """Sample completions of prompts from a model."""

    model: str
    """Hugging Face model directory or hub id"""
    prompts: str
    """Prompts"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Columns that hold our fields under other names"""
    num: int = 1
    """Completions a prompt"""
    adapters: tuple[str, ...] = ()
    """LoRA adapters to answer with, one after the other on one base; none = the model itself"""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling"""

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        positive("num", self.num)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig(StageConfig):
    """Score prompts with completions by a reward."""

    data: str
    """What `tether generate` wrote, or demonstrations"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Columns that hold our fields under other names"""
    reward: RewardConfig
    """The reward"""

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        rule = "acts on a total of several rewards; to see its scores, leave the role out"
        require(self.reward.role == "term", "reward.role", self.reward.role, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class Labeler:
    """A simulated labeler: utility = gold_weight·gold + length_weight·words + noise·N(0, 1)."""

    name: str
    """Written into its rankings"""
    scorer: str = ""
    """A known score of its own, path/to/file.py:function; "" = the stage's"""
    gold_weight: float = 1.0
    """Utility per unit of the known score"""
    noise: float = 0.0
    """Standard deviation of the utility, drawn anew for each completion"""
    length_weight: float = 0.0
    """Utility per word; above 0 this labeler loves length"""
    random: bool = False
    """True: it clicks without reading; its utility is the noise alone"""


USUAL_LABELERS = (
    Labeler(name="careful", noise=0.15),
    Labeler(name="steady", noise=0.3),
    Labeler(name="hasty", noise=0.5),
    Labeler(name="loves length", gold_weight=0.3, length_weight=0.04, noise=0.2),
    Labeler(name="clicks at random", random=True),
)
"""Three honest labelers of falling care, one who loves length, one who clicks at random."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulateConfig(StageConfig):
    """Simulated labelers rank completions around a known score."""

    data: str
    """Completions: what `tether generate` wrote"""
    scorer: str = ""
    """The known score: path/to/file.py:function or package.module:function; "" where every
    labeler has its own"""
    scale: float = 1.0
    """Factor on the scores before the labelers' noise, which is in units of the sandbox's score"""
    labelers: tuple[Labeler, ...] = USUAL_LABELERS
    """Who ranks"""

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        own = [labeler.scorer != "" for labeler in self.labelers]
        known = self.scorer != "" or (own != [] and all(own))
        rule = "must name the known score, path/to/file.py:function, unless every labeler has one"
        require(known, "scorer", self.scorer, rule)
        positive("scale", self.scale)


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectConfig(StageConfig):
    """Have completions judged, by people or simulated labelers; all judgments so far come out."""

    data: tuple[str, ...]
    """Completions: what `tether generate` wrote. Several: those of a prompt make one item"""
    project: str = "feedback.db"
    """Feedback project that they are added to, made where it is missing. A bare name lies beside
    the stage's folder, so that the rounds of a recipe share it"""
    criterion: str = "helpful"
    """What is judged"""
    mode: Literal["rank", "pair", "thumbs"] = "rank"
    """rank: order all completions; pair: the better of two, and how much; thumbs: up or down"""
    num_labelers: int = 3
    """Different labelers an item"""
    enough: float = 1.0
    """Share of the judgments wanted that must be there before the stage goes on"""
    scorer: str = ""
    """Known score that simulated labelers judge by: file.py:function; "" = people judge"""
    scale: float = 1.0
    """Factor on those scores before the labelers' noise, in units of the sandbox's score"""
    labelers: tuple[str, ...] = ()
    """Only what these labelers judged comes out; none = everybody"""
    groups: tuple[str, ...] = ()
    """Only what labelers of these groups judged comes out; none = all"""

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        positive("num_labelers", self.num_labelers)
        positive("scale", self.scale)
        require(0 < self.enough <= 1, "enough", self.enough, "must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig(StageConfig):
    """Turn any data into records with a function of yours: function(rows) -> {name: rows}."""

    data: str
    """File of rows, or a data set on the hub; they are held in memory"""
    function: str
    """path/to/file.py:function; gets a list of dicts, returns {"name": list of dicts}"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxConfig(StageConfig):
    """Write the sandbox world: its texts and an untrained model with its tokenizer."""

    world: Literal["helper", "critic", "sources"] = "helper"
    """"helper": the demo's questions and advice; "critic": also critiques and comparisons;
    "sources": numbered facts to cite"""
    hidden_size: int = 128
    """Width of the model"""
    num_layers: int = 3
    """Layers"""
    num_heads: int = 4
    """Attention heads"""

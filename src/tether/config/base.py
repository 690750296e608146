"""What the settings of all stages have, of all that train, and of all that train on a file."""

from dataclasses import dataclass, field

from tether.sections import (
    ColumnsConfig,
    ComputeConfig,
    LoraConfig,
    OptimizerConfig,
    not_negative,
    positive,
    require,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """What every stage has."""

    out: str
    """Folder for the result"""
    seed: int = 0
    """Everything random is a function of (seed, step)"""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Device and precision"""

    def __post_init__(self) -> None:
        rule = "must be a whole number from 0 to 2**63 - 1"
        require(0 <= self.seed < 1 << 63, "seed", self.seed, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(StageConfig):
    """What every training stage has."""

    model: str
    """Hugging Face model directory or hub id to start from"""
    batch_size: int = 32
    """Optimizer batch: examples per optimizer step"""
    device_batch_size: int = 0
    """Rows per forward pass; changes memory, not the mathematics. 0 = the whole optimizer batch"""
    checkpoint_every: int = 200
    """Steps between checkpoints; 0 = none"""
    keep_every: int = 0
    """Steps between models kept as models/step-000010, for curves; 0 = only the last one"""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedule"""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Train a low-rank adapter instead of all weights"""

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        positive("batch_size", self.batch_size)
        not_negative("device_batch_size", self.device_batch_size)
        not_negative("checkpoint_every", self.checkpoint_every)
        not_negative("keep_every", self.keep_every)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig(TrainConfig):
    """What training on a file of examples has."""

    data: str
    """File of examples"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Columns that hold our fields under other names"""
    max_length: int = 0
    """Longest row in tokens; longer ones are skipped and counted. 0 = the model's positions"""
    epochs: float = 1.0
    """Passes over the examples"""
    max_steps: int = 0
    """Stop after this many optimizer steps; 0 = by epochs"""
    held_out: float = 0.05
    """Share of the prompts kept for held-out figures"""
    evaluate_every: int = 100
    """Steps between held-out figures (always some at the end)"""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        not_negative("max_length", self.max_length)
        positive("epochs", self.epochs)
        require(0 <= self.held_out < 1, "held_out", self.held_out, "must be at least 0 and below 1")
        not_negative("max_steps", self.max_steps)
        positive("evaluate_every", self.evaluate_every)

"""Settings of every stage: frozen dataclasses, read from TOML or the command line.

The string under a field is its help text. "Off" is 0, false, "" or "none". A setting that cannot
work is refused here, before anything is loaded.
"""

from tether.config.base import FitConfig, StageConfig, TrainConfig
from tether.config.constitution import JudgeConfig, ReviseConfig
from tether.config.evaluation import (
    BlocksConfig,
    EvaluateConfig,
    PolicyConfig,
    PoolConfig,
    ProbeConfig,
    RewardEvaluationConfig,
    ScorerConfig,
    scorer_named,
)
from tether.config.monitor import AlarmConfig, MonitorConfig
from tether.config.online import (
    BestOfNConfig,
    GRPOConfig,
    OnlineConfig,
    OnlineDPOConfig,
    PolicyGradientConfig,
    PPOConfig,
    ReinforceConfig,
    RLOOConfig,
)
from tether.config.records import (
    USUAL_LABELERS,
    CollectConfig,
    GenerateConfig,
    Labeler,
    PrepareConfig,
    SandboxConfig,
    ScoreConfig,
    SimulateConfig,
)
from tether.config.rewards import RewardConfig, reward_named
from tether.config.training import (
    DPOConfig,
    IPOConfig,
    KTOConfig,
    MergeConfig,
    ORPOConfig,
    PreferenceConfig,
    RewardModelConfig,
    SFTConfig,
    SimPOConfig,
)

STAGES: dict[str, type[StageConfig]] = {
    "sandbox": SandboxConfig,
    "prepare": PrepareConfig,
    "sft": SFTConfig,
    "generate": GenerateConfig,
    "revise": ReviseConfig,
    "judge": JudgeConfig,
    "simulate": SimulateConfig,
    "collect": CollectConfig,
    "reward": RewardModelConfig,
    "ppo": PPOConfig,
    "grpo": GRPOConfig,
    "rloo": RLOOConfig,
    "reinforce": ReinforceConfig,
    "online-dpo": OnlineDPOConfig,
    "best-of-n": BestOfNConfig,
    "dpo": DPOConfig,
    "ipo": IPOConfig,
    "simpo": SimPOConfig,
    "orpo": ORPOConfig,
    "kto": KTOConfig,
    "merge": MergeConfig,
    "score": ScoreConfig,
    "pool": PoolConfig,
    "evaluate": EvaluateConfig,
    "evaluate-reward": RewardEvaluationConfig,
}
"""Stage kinds of a recipe and their settings."""

__all__ = [
    "STAGES",
    "USUAL_LABELERS",
    "AlarmConfig",
    "BestOfNConfig",
    "BlocksConfig",
    "CollectConfig",
    "DPOConfig",
    "EvaluateConfig",
    "FitConfig",
    "GRPOConfig",
    "GenerateConfig",
    "IPOConfig",
    "JudgeConfig",
    "KTOConfig",
    "Labeler",
    "MergeConfig",
    "MonitorConfig",
    "ORPOConfig",
    "OnlineConfig",
    "OnlineDPOConfig",
    "PPOConfig",
    "PolicyConfig",
    "PolicyGradientConfig",
    "PoolConfig",
    "PreferenceConfig",
    "PrepareConfig",
    "ProbeConfig",
    "RLOOConfig",
    "ReinforceConfig",
    "ReviseConfig",
    "RewardConfig",
    "RewardEvaluationConfig",
    "RewardModelConfig",
    "SFTConfig",
    "SandboxConfig",
    "ScoreConfig",
    "ScorerConfig",
    "SimPOConfig",
    "SimulateConfig",
    "StageConfig",
    "TrainConfig",
    "reward_named",
    "scorer_named",
]

"""The whole RLHF loop: SFT, rankings, reward model, PPO with a KL tether, honest evaluation.

The public names: stages (functions of their settings that return their folder), records and their
readers, losses and estimators on tensors, and models that answer and score. They are loaded when
they are first used, so that `import tether` costs nothing; `__init__.pyi` tells type checkers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "tether.config": (
        "AlarmConfig BestOfNConfig BlocksConfig CollectConfig DPOConfig EvaluateConfig GRPOConfig "
        "GenerateConfig IPOConfig JudgeConfig KTOConfig Labeler MergeConfig MonitorConfig "
        "ORPOConfig OnlineDPOConfig PPOConfig PolicyConfig PoolConfig PrepareConfig ProbeConfig "
        "RLOOConfig ReinforceConfig ReviseConfig RewardConfig RewardEvaluationConfig "
        "RewardModelConfig SFTConfig SandboxConfig ScoreConfig ScorerConfig SimPOConfig "
        "SimulateConfig reward_named scorer_named"
    ),
    "tether.constitution.compare": "judge",
    "tether.constitution.revise": "revise",
    "tether.core.advantages": (
        "batch_baseline gae group_normalized leave_one_out rewards_to_go token_rewards"
    ),
    "tether.core.direct_losses": "dpo ipo kto orpo robust_dpo simpo",
    "tether.core.kl": "AdaptiveBeta",
    "tether.core.policy_losses": "clipped_policy_loss explained_variance value_loss",
    "tether.core.score_losses": "bradley_terry centering_penalty plackett_luce",
    "tether.data.formats": (
        "read_comparisons read_completions read_demonstrations read_prompts read_thumbs"
    ),
    "tether.data.prepare": "prepare",
    "tether.engine.generate": "complete generate",
    "tether.errors": "CheckError ConfigError DataError ModelError ServerError TetherError",
    "tether.evaluation.compare": "evaluate",
    "tether.evaluation.pool": "make_pool",
    "tether.evaluation.report": "write_comparison write_report",
    "tether.evaluation.reward_model": "evaluate_reward",
    "tether.feedback.collect": "collect",
    "tether.models.language_model": "LanguageModel load",
    "tether.models.merge": "merge",
    "tether.pipeline": "run",
    "tether.records": (
        "Completions Demonstration PreferencePair Prompt Ranking Thumb read_jsonl write_jsonl "
        "write_records"
    ),
    "tether.result": "Result",
    "tether.rewards.load": "load_reward",
    "tether.rewards.score": "score",
    "tether.sandbox.stage": "make_sandbox",
    "tether.sections": (
        "ClusterConfig ColumnsConfig ComputeConfig GAEConfig KLConfig LoraConfig OptimizerConfig "
        "PolicyLossConfig PtxConfig SamplingConfig ServersConfig StopConfig ValueConfig"
    ),
    "tether.train.kto": "train_kto",
    "tether.train.online": (
        "train_best_of_n train_grpo train_online_dpo train_ppo train_reinforce train_rloo"
    ),
    "tether.train.preference": "train_dpo train_ipo train_orpo train_simpo",
    "tether.train.reward": "train_reward",
    "tether.train.sft": "train_sft",
}
_RENAMED = {
    "binary_loss": ("tether.core.score_losses", "binary"),
    "estimate_kl": ("tether.core.kl", "estimate"),
    "exact_kl": ("tether.core.kl", "exact"),
    "simulate": ("tether.feedback.label", "label"),
}
_HOME = {name: (home, name) for home, names in _NAMES.items() for name in names.split()} | _RENAMED

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tether' has no attribute {name!r}")
    home, its_name = _HOME[name]
    return getattr(import_module(home), its_name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

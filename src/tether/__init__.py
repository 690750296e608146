"""The whole RLHF loop: SFT, rankings, reward model, PPO with a KL tether, honest evaluation.

The public names are loaded when they are first used, so that `import tether` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tether.constitution.compare import judge
    from tether.constitution.revise import revise
    from tether.engine.generate import generate
    from tether.evaluation.compare import evaluate
    from tether.evaluation.reward_model import evaluate_reward
    from tether.models.merge import merge
    from tether.pipeline import run
    from tether.rewards.score import score
    from tether.train.kto import train_kto
    from tether.train.online import (
        train_best_of_n,
        train_grpo,
        train_online_dpo,
        train_ppo,
        train_reinforce,
        train_rloo,
    )
    from tether.train.preference import train_dpo, train_ipo, train_orpo, train_simpo
    from tether.train.reward import train_reward
    from tether.train.sft import train_sft

__version__ = "0.1.0"

__all__ = [
    "evaluate",
    "evaluate_reward",
    "generate",
    "judge",
    "merge",
    "revise",
    "run",
    "score",
    "train_best_of_n",
    "train_dpo",
    "train_grpo",
    "train_ipo",
    "train_kto",
    "train_online_dpo",
    "train_orpo",
    "train_ppo",
    "train_reinforce",
    "train_reward",
    "train_rloo",
    "train_sft",
    "train_simpo",
]

_HOME = {
    "evaluate": "tether.evaluation.compare",
    "evaluate_reward": "tether.evaluation.reward_model",
    "generate": "tether.engine.generate",
    "judge": "tether.constitution.compare",
    "merge": "tether.models.merge",
    "revise": "tether.constitution.revise",
    "run": "tether.pipeline",
    "score": "tether.rewards.score",
    "train_best_of_n": "tether.train.online",
    "train_dpo": "tether.train.preference",
    "train_grpo": "tether.train.online",
    "train_ipo": "tether.train.preference",
    "train_kto": "tether.train.kto",
    "train_online_dpo": "tether.train.online",
    "train_orpo": "tether.train.preference",
    "train_ppo": "tether.train.online",
    "train_reinforce": "tether.train.online",
    "train_reward": "tether.train.reward",
    "train_rloo": "tether.train.online",
    "train_sft": "tether.train.sft",
    "train_simpo": "tether.train.preference",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tether' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

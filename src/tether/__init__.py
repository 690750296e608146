"""The whole RLHF loop: SFT, rankings, reward model, PPO with a KL tether, honest evaluation.

The public names are loaded when they are first used, so that `import tether` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tether.engine.generate import generate
    from tether.evaluation.compare import evaluate
    from tether.pipeline import run
    from tether.rewards.score import score
    from tether.train.kto import train_kto
    from tether.train.online import train_ppo
    from tether.train.preference import train_dpo, train_ipo, train_orpo, train_simpo
    from tether.train.reward import train_reward
    from tether.train.sft import train_sft

__version__ = "0.1.0"

__all__ = [
    "evaluate",
    "generate",
    "run",
    "score",
    "train_dpo",
    "train_ipo",
    "train_kto",
    "train_orpo",
    "train_ppo",
    "train_reward",
    "train_sft",
    "train_simpo",
]

_HOME = {
    "evaluate": "tether.evaluation.compare",
    "generate": "tether.engine.generate",
    "run": "tether.pipeline",
    "score": "tether.rewards.score",
    "train_dpo": "tether.train.preference",
    "train_ipo": "tether.train.preference",
    "train_kto": "tether.train.kto",
    "train_orpo": "tether.train.preference",
    "train_ppo": "tether.train.online",
    "train_reward": "tether.train.reward",
    "train_sft": "tether.train.sft",
    "train_simpo": "tether.train.preference",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tether' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

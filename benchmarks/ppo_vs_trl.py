"""PPO: tether against the last TRL that has it, on the same models, prompts and settings.

An iteration is one rollout batch: 32 completions, then 4 epochs of 4 minibatches.
TRL's variants: default (float32), amp (autocast to bfloat16), bf16 (all weights in bfloat16).
tether's variants: bf16 (float32 weights, computed in bfloat16), fp32.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import alternate
import tyro
from environment import trl_python

TRL = "1.12.0"
WORK = {"batch_size": 32, "epochs": 4, "minibatches": 4, "max_new_tokens": 64}


@dataclass
class Options(alternate.Options):
    """What to compare."""

    lengths: Literal["fixed", "varied"] = "fixed"
    """fixed: 32 + 64 tokens; varied: prompts of 8 to 32, completions of about 32 tokens"""
    trl: str = "default,bf16"
    """Variants of TRL, parted by commas"""
    trl_python: Path | None = None
    """A Python with this version of TRL; without it an environment is made"""


def main() -> None:
    """Compare as the command line says."""
    options = tyro.cli(Options, description=__doc__)
    python = trl_python(TRL, options.trl_python)
    others = alternate.sides("TRL", "trl_side.py", python, options.trl)
    alternate.compare("ppo", options, others, WORK, options.lengths)


if __name__ == "__main__":
    main()

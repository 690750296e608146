"""GRPO: tether against TRL on the same models, prompts and settings.

An iteration is one rollout batch: 8 completions of each of 4 prompts, then one optimizer step.

TRL's variants: fp32, amp (autocast to bfloat16), bf16 (all weights in bfloat16), all without
gradient checkpointing; default (TRL's own settings: amp with gradient checkpointing).
tether's variants: bf16 (float32 weights, computed in bfloat16), fp32.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import alternate
import tyro
from environment import trl_python

TRL = "1.16.0"
WORK = {"batch_size": 32, "num": 8, "kl_beta": 0.04, "max_new_tokens": 64}


@dataclass
class Options(alternate.Options):
    """What to compare."""

    lengths: Literal["fixed", "varied"] = "fixed"
    """fixed: 32 + 64 tokens; varied: prompts of 8 to 32, completions of about 32 tokens"""
    trl: str = "default,amp,bf16,fp32"
    """Variants of TRL, parted by commas"""
    trl_python: Path | None = None
    """A Python with this version of TRL; without it an environment is made"""


def main() -> None:
    """Compare as the command line says."""
    options = tyro.cli(Options, description=__doc__)
    python = trl_python(TRL, options.trl_python)
    others = alternate.sides("TRL", "trl_side.py", python, options.trl)
    alternate.compare("grpo", options, others, WORK, options.lengths)


if __name__ == "__main__":
    main()

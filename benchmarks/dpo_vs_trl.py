"""DPO: tether against TRL on the same model and preference pairs.

An iteration is 8 optimizer steps on 16 pairs: a prompt of 32 tokens with two completions of 32 to
96 tokens.

TRL's variants: fp32, amp (autocast to bfloat16), bf16 (all weights in bfloat16), all without
gradient checkpointing; default (TRL's own settings: amp with gradient checkpointing). With
"-precomputed" behind one of them TRL computes the reference's log-probs beforehand, as tether
always does; else the reference is in every step. Computing them beforehand is not timed.
tether's variants: bf16 (float32 weights, computed in bfloat16), fp32.
"""

from dataclasses import dataclass
from pathlib import Path

import alternate
import tyro
from environment import trl_python

TRL = "1.16.0"
WORK = {"batch_size": 16, "steps": 8}


@dataclass
class Options(alternate.Options):
    """What to compare."""

    trl: str = "default,fp32,bf16,fp32-precomputed,bf16-precomputed"
    """Variants of TRL, parted by commas"""
    trl_python: Path | None = None
    """A Python with this version of TRL; without it an environment is made"""


def main() -> None:
    """Compare as the command line says."""
    options = tyro.cli(Options, description=__doc__)
    python = trl_python(TRL, options.trl_python)
    others = alternate.sides("TRL", "trl_side.py", python, options.trl)
    alternate.compare("dpo", options, others, WORK)


if __name__ == "__main__":
    main()

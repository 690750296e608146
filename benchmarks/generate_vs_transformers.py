"""Generation: tether against transformers' `generate`, which tether's own decode loop replaces.

An iteration is 64 completions of 64 tokens with their log-probs. Needs no TRL.
transformers' variants: fp32, bf16 (all weights in bfloat16).
tether's variants: bf16 (float32 weights, computed in bfloat16), fp32.
"""

import sys
from dataclasses import dataclass
from typing import Literal

import alternate
import tyro

WORK = {"batch_size": 64, "max_new_tokens": 64}


@dataclass
class Options(alternate.Options):
    """What to compare."""

    lengths: Literal["fixed", "varied"] = "fixed"
    """fixed: 32 + 64 tokens; varied: prompts of 8 to 32, completions of about 32 tokens"""
    transformers: str = "fp32,bf16"
    """Variants of transformers, parted by commas"""
    alternations: int = 5
    """Timed rounds"""


def main() -> None:
    """Compare as the command line says."""
    options = tyro.cli(Options, description=__doc__)
    variants = options.transformers
    others = alternate.sides("transformers", "transformers_side.py", sys.executable, variants)
    alternate.compare("generate", options, others, WORK, options.lengths)


if __name__ == "__main__":
    main()

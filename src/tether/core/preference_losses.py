"""Losses on preferences, all in one place.

`score_losses` has those on the scores of a reward model: Bradley-Terry, Plackett-Luce, binary.
`direct_losses` has those on the log-probs of a policy, without one: DPO and its relatives.
"""

from tether.core.direct_losses import KTOLoss, dpo, ipo, kto, orpo, robust_dpo, simpo
from tether.core.score_losses import (
    BinaryLoss,
    PreferenceLoss,
    binary,
    bradley_terry,
    centering_penalty,
    plackett_luce,
)

__all__ = [
    "BinaryLoss",
    "KTOLoss",
    "PreferenceLoss",
    "binary",
    "bradley_terry",
    "centering_penalty",
    "dpo",
    "ipo",
    "kto",
    "orpo",
    "plackett_luce",
    "robust_dpo",
    "simpo",
]

"""Numbers worked out by hand, as checks that take the module they are about.

So the same checks run against the real module (test_golden.py) and against one with a planted
mistake (test_mutations.py). The numbers are asymmetric: no two tokens play the same part, so that
no two mistakes cancel. Padding holds junk.
"""

from collections.abc import Callable
from types import ModuleType

from . import advantages, direct_losses, kl, logprobs, masked, policy_losses, score_losses


def checks_of(module: ModuleType) -> list[Callable[[ModuleType], None]]:
    """The functions of a module of this package that are checks."""
    return [check for name, check in vars(module).items() if name.startswith("check_")]


CHECKS = {
    "masked": checks_of(masked),
    "logprobs": checks_of(logprobs),
    "kl": checks_of(kl),
    "advantages": checks_of(advantages),
    "policy_losses": checks_of(policy_losses),
    "score_losses": checks_of(score_losses),
    "direct_losses": checks_of(direct_losses),
}

"""What functions of the user's return, looked at before it is trained on."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tether.core.score_losses import PreferenceLoss, expected, of_pairs
from tether.errors import CheckError


def checked(found: Any, like: Tensor, setting: str, path: str) -> Tensor:
    """`found` in the type of `like`, if it is a tensor of finite numbers of the same shape.

    Raises:
        CheckError: It is none; the message names the setting and its function.
    """
    if not (isinstance(found, Tensor) and found.shape == like.shape and found.isfinite().all()):
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(type(found))
        what += (
            ", not all finite" if isinstance(found, Tensor) and found.shape == like.shape else ""
        )
        raise CheckError(
            f"{setting}={path!r} returned {what}; it must return a tensor of shape "
            f"{tuple(like.shape)} with finite numbers"
        )
    return found.to(like)


def own_loss(
    function: Callable[[Any, float], Any], pairs: Any, num_pairs: float, beta: float, path: str
) -> PreferenceLoss:
    """The loss of a user's function(pairs, beta), with soft labels and weights as in the others.

    Args:
        function: What a pair costs, of pairs as `preference.Scored` holds them.
        pairs: A device batch of them.
        num_pairs: The sum of the weights in the whole optimizer batch.
        beta: β, for the function and for the implicit rewards that are logged.
        path: The function's name.

    Raises:
        CheckError: It does not return one finite number a pair.
    """
    found, other = (
        checked(function(each, beta), each.chosen, "loss", path) for each in (pairs, pairs.swapped)
    )
    chosen = beta * (pairs.chosen - pairs.reference_chosen)
    rejected = beta * (pairs.rejected - pairs.reference_rejected)
    losses = expected(found, other, pairs.probability)
    return of_pairs(losses, chosen, rejected, pairs.weight, num_pairs)

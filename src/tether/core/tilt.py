"""What a finite pool of samples tells about the best policies at a distance from the reference.

    max over π of  E_π[r] - β KL(π ‖ π_ref)   is reached by   π*(y) = π_ref(y) exp(r(y)/β) / Z

Source: Korbak et al. 2022, https://arxiv.org/abs/2205.11275; Rafailov et al. 2023,
https://arxiv.org/abs/2305.18290, eq. 4. On N samples of the reference π* is a reweighting of
them, the *tilt*: its weights are softmax(r/β). The samples come from the reference already, so
π_ref does not stand in the weights again. A tilt of N samples is at most log N nats away, and
means something only while enough samples carry it: see `effective_samples`.

Everything is float64. P prompts, each with N samples (in the last dimension). KL is in nats per
sequence. A *base* holds the log-probs of the samples as draws from the reference: `None` stands
for samples of the reference itself, log 1/N each; `mixture_base` makes one for samples of which
some come from another policy.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

Base = Float[np.ndarray, "P N"] | None


def weights(
    scores: Float[np.ndarray, "P N"], beta: float, base: Base = None
) -> Float[np.ndarray, "P N"]:
    """Weights of the tilt.

        wₖ = pₖ exp(rₖ/β) / Σⱼ pⱼ exp(rⱼ/β),   p = exp(base),  1/N without one

    Args:
        scores: r, in reward units.
        beta: β > 0, reward units per nat; infinity = the reference itself.
        base: Log-probs of the samples; None = samples of the reference.

    Returns:
        Weights that sum to 1 for each prompt.

    Raises:
        ValueError: β is not positive.
    """
    return np.exp(_log_weights(scores, beta, base))


def _log_weights(
    scores: Float[np.ndarray, "P N"], beta: float, base: Base
) -> Float[np.ndarray, "P N"]:
    if not beta > 0:
        raise ValueError(f"beta={beta!r} must be above 0; the smaller, the farther the tilt")
    from_best = scores - scores.max(axis=-1, keepdims=True)  # 0 at the best: no overflow at small β
    return _normalized(from_best / beta + (0.0 if base is None else base))


def _normalized(logs: Float[np.ndarray, "P N"]) -> Float[np.ndarray, "P N"]:
    """The same logs of weights, minus the log of their sum."""
    logs = logs - logs.max(axis=-1, keepdims=True)
    return logs - np.log(np.exp(logs).sum(axis=-1, keepdims=True))


def kl(weights: Float[np.ndarray, "P N"], base: Base = None) -> Float[np.ndarray, " P"]:
    """KL of a reweighting to the reference: Σₖ wₖ log(wₖ/pₖ), which is Σₖ wₖ log(N wₖ) of a pool.

    Returns:
        Nats per sequence, from 0 to log N (without a base).
    """
    start = -math.log(weights.shape[-1]) if base is None else base
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    gaps = np.where(weights > 0, logs - start, 0.0)
    return np.maximum((weights * gaps).sum(axis=-1), 0.0)


def entropy(weights: Float[np.ndarray, "P N"]) -> Float[np.ndarray, " P"]:
    """-Σₖ wₖ log wₖ, in nats; log N - KL of a pool without a base."""
    return math.log(weights.shape[-1]) - kl(weights)


def effective_samples(weights: Float[np.ndarray, "P N"]) -> Float[np.ndarray, " P"]:
    """How many samples carry the weights: 1 / Σₖ wₖ², from 1 to N.

    Below about 5, means under the weights are the scores of a few lucky samples.

    Source: Kong 1992; Liu 2001, Monte Carlo Strategies in Scientific Computing, section 2.5.3.
    """
    return 1 / np.square(weights).sum(axis=-1)


def expected(
    weights: Float[np.ndarray, "P N"], values: Float[np.ndarray, "P N"]
) -> Float[np.ndarray, " P"]:
    """Σₖ wₖ vₖ of each prompt: the mean proxy, gold or length under the weights."""
    return (weights * values).sum(axis=-1)


# --- a given KL -----------------------------------------------------------------------------------


def largest_kl(scores: Float[np.ndarray, "P N"], base: Base = None) -> float:
    """Mean over prompts of the tilt's KL as β falls to 0: all weight on the best samples.

    log N for each prompt with one best sample, log(N/m) where m samples tie for the best.
    """
    best = scores == scores.max(axis=-1, keepdims=True)
    start = np.full(scores.shape, -math.log(scores.shape[-1])) if base is None else base
    return float(-np.log(np.where(best, np.exp(start), 0.0).sum(axis=-1)).mean())


def solve_beta(scores: Float[np.ndarray, "P N"], target: float, base: Base = None) -> float:
    """The β at which the mean KL over prompts is `target`; one β for all prompts.

    Of all policies with that mean KL, the tilt by this β has the highest mean score: where each
    prompt had its own β, moving nats from one prompt to another would gain.

    Args:
        scores: r, in reward units.
        target: Mean KL, nats per sequence; 0 or more.
        base: Log-probs of the samples; None = samples of the reference.

    Returns:
        β, in reward units per nat; infinity for a target of 0.

    Raises:
        ValueError: No tilt of these samples is that far: `target` is at or above `largest_kl`.
    """
    if not 0 <= target < largest_kl(scores, base):
        raise ValueError(
            f"target={target!r} must be from 0 to below {largest_kl(scores, base):.3f} nats, "
            "the farthest that these samples reach; sample more of them"
        )
    if target == 0:
        return math.inf

    def distance(log_beta: float) -> float:
        return float(kl(weights(scores, math.exp(log_beta), base), base).mean())

    return math.exp(_falling_root(distance, target, math.log(np.ptp(scores))))


def _falling_root(function: Callable[[float], float], target: float, start: float) -> float:
    """Where a falling function takes the value `target`, by bisection around `start`."""
    low = high = start
    while function(low) < target and low > start - 50:  # beyond, gaps are lost in rounding
        low -= 1.0
    while function(high) > target:
        high += 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > target else (low, middle)
    return (low + high) / 2


# --- best of n ------------------------------------------------------------------------------------


def best_of_n(scores: Float[np.ndarray, "P N"], n: int) -> Float[np.ndarray, "P N"]:
    """Chance of each sample to be the best of n drawn from the pool without replacement.

        w₍ᵢ₎ = C(i-1, n-1) / C(N, n),   i = rank from the worst, 1 to N

    Averages under these weights are the unbiased estimates of what best-of-n scores. Samples of
    equal score share their ranks' weights equally.

    Source: Nakano et al. 2021, https://arxiv.org/abs/2112.09332, appendix I.

    Raises:
        ValueError: n is not from 1 to N.
    """
    num = scores.shape[-1]
    if not 1 <= n <= num:
        raise ValueError(f"n={n!r} must be from 1 to the {num} samples of the pool")
    ranks = np.arange(num, dtype=np.int64)  # i - 1
    logs = _log_choose(np.maximum(ranks, n - 1), n - 1) - _log_choose(
        np.array([num], dtype=np.int64), n
    )
    by_rank: NDArray[np.float64] = np.where(ranks >= n - 1, np.exp(logs), 0.0)
    return np.stack([_shared(row, by_rank) for row in scores])


def _log_choose(n: Int[np.ndarray, " N"], k: int) -> Float[np.ndarray, " N"]:
    """Of n from k up, by sums of logarithms: the numbers themselves would overflow."""
    whole = np.log(np.arange(1, n.max() + 1, dtype=np.float64))
    factorials = np.concatenate([np.zeros(1), np.cumsum(whole)])
    return factorials[n] - factorials[k] - factorials[n - k]


def _shared(scores: Float[np.ndarray, " N"], by_rank: Float[np.ndarray, " N"]) -> np.ndarray:
    """Each sample's weight by its rank, the mean of its ranks' where several tie."""
    _, value, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    totals = np.add.reduceat(by_rank, ends - counts)
    return (totals / counts)[value]


def best_of_n_bound(n: int) -> float:
    """KL of best-of-n where no two completions tie, else its upper bound: log n - (n-1)/n.

    Source: Beirami et al. 2024, https://arxiv.org/abs/2401.01879, theorem 1.

    Returns:
        Nats per sequence.
    """
    return math.log(n) - (n - 1) / n


# --- samples of two policies ----------------------------------------------------------------------


def mixture_base(
    log_ratios: Float[np.ndarray, "P N"], num_reference: int
) -> Float[np.ndarray, "P N"]:
    """Log-probs, as draws from the reference, of samples of the reference and of a policy together.

        pₖ ∝ 1 / (N + M ρₖ),   ρₖ = π(yₖ) / π_ref(yₖ)

    with N samples of the reference and M of the policy, in any order. Each sample is weighted as
    one of the mixture (N π_ref + M π)/(N + M), whichever it came from, which bounds the weight of
    any one; the tilt's weights then are ∝ exp(r/β) (N + M)/(N + M ρ). Where a policy has found what
    the reference says too seldom to be in the pool, its own samples show how good it is.

    Source: Veach & Guibas 1995, https://doi.org/10.1145/218380.218498, the balance heuristic.

    Args:
        log_ratios: log ρ of each sample (nats per sequence), N + M a prompt.
        num_reference: N.

    Raises:
        ValueError: N is not from 1 to the number of samples.
    """
    num = log_ratios.shape[-1]
    if not 1 <= num_reference <= num:
        raise ValueError(f"num_reference={num_reference!r} must be from 1 to {num}, all samples")
    if num_reference == num:
        return np.full(log_ratios.shape, -math.log(num))
    others = math.log(num - num_reference) + log_ratios
    return _normalized(-np.logaddexp(math.log(num_reference), others))

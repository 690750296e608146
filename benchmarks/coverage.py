"""How often the 95% intervals of an evaluation hold the true value, on made-up clustered data.

    python benchmarks/coverage.py [--replications 2000]

Every prompt has an effect that all samples of both policies share, and one for each policy, so
samples of a prompt resemble each other. The scores are normal, or skewed: the same, exponentiated.
True values are exact, but for the share above 2, which is that of a million prompts.
"""

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from tether.evaluation.length_control import length_controlled
from tether.statistics import (
    Interval,
    cluster_bootstrap,
    cluster_mean,
    jackknife,
    paired_difference,
    win_rate,
)

Scores = NDArray[np.float64]
SAMPLES = 4
SHIFT = 0.3  # how much better the one policy is
RESAMPLES = 1000


def draw(generator: np.random.Generator, prompts: int, skewed: bool) -> tuple[Scores, Scores]:
    """Scores of two policies, `SAMPLES` a prompt."""
    shape = lambda *size: generator.normal(size=(prompts, *size))  # noqa: E731
    shared, effects, noise = shape(1, 1), shape(1, 2), shape(SAMPLES, 2)
    values = shared + 0.5 * effects + noise + np.array([SHIFT, 0.0])
    values = np.exp(0.7 * values) if skewed else values
    return values[:, :, 0], values[:, :, 1]


def intervals(a: Scores, b: Scores, seed: int) -> dict[str, Interval]:
    """Every interval of one replication."""
    told = {"seed": seed, "num_resamples": RESAMPLES}
    counts = np.random.default_rng(seed).integers(1, SAMPLES + 1, len(a))
    kept = [(i, j) for i, n in enumerate(counts) for j in range(n)]
    rows = np.array([a[i, j] for i, j in kept])
    share = (a > 2.0).mean(axis=1)
    total = share.sum()
    without = (total - share) / (len(share) - 1)
    return {
        "mean": cluster_bootstrap(a, **told),
        "paired difference": paired_difference(a, b, **told),
        "win-rate": win_rate(a, b, **told),
        "win-rate at equal length": length_controlled(a, np.ones_like(a), b, np.ones_like(b)),
        "mean, uneven counts": cluster_mean(rows, [i for i, _ in kept], **told),
        "share above 2, jackknife": jackknife(float(share.mean()), without)[0],
        "mean, rows drawn one by one": cluster_bootstrap(a.reshape(-1), **told),
    }


def truth(skewed: bool) -> dict[str, float]:
    """What the intervals should hold."""
    a, b = draw(np.random.default_rng(0), 1_000_000, skewed)
    wins = float((a[:, :1] > b).mean())
    # Of the difference of two samples' exponents the variance is 2 · 0.25 + 2 · 1.
    exact = 0.5 * (1 + math.erf(SHIFT / math.sqrt(2.5) / math.sqrt(2)))
    assert abs(wins - exact) < 0.002
    spread = 0.49 * 2.25
    mean = math.exp(0.7 * SHIFT + spread / 2) if skewed else SHIFT
    rival = math.exp(spread / 2) if skewed else 0.0
    return {
        "mean": mean,
        "paired difference": mean - rival,
        "win-rate": exact,
        "win-rate at equal length": exact,
        "mean, uneven counts": mean,
        "share above 2, jackknife": float((a > 2.0).mean()),
        "mean, rows drawn one by one": mean,
    }


def coverage(prompts: int, skewed: bool, replications: int, seed: int = 1) -> dict[str, float]:
    """Share of the replications whose interval holds the true value."""
    wanted = truth(skewed)
    held = dict.fromkeys(wanted, 0)
    for number in range(replications):
        a, b = draw(np.random.default_rng((seed, number)), prompts, skewed)
        for name, found in intervals(a, b, number).items():
            held[name] += found.low <= wanted[name] <= found.high
    return {name: count / replications for name, count in held.items()}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--replications", type=int, default=2000)
    replications = parser.parse_args().replications
    settings = [(n, skewed) for skewed in (False, True) for n in (30, 100, 300)]
    columns = [coverage(n, skewed, replications) for n, skewed in settings]
    titles = [f"{n} prompts{', skewed' if skewed else ''}" for n, skewed in settings]
    print(f"| 95% interval of | {' | '.join(titles)} |")
    print("|---|" + "---:|" * len(settings))
    for name in columns[0]:
        print(f"| {name} | {' | '.join(f'{column[name]:.1%}' for column in columns)} |")
    error = math.sqrt(0.95 * 0.05 / replications)
    print(f"\n{replications:,} replications, standard error {error:.1%}")


if __name__ == "__main__":
    main()

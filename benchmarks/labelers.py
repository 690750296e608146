"""Are bad labelers found, and does the consensus hold what was planted? By simulated labelers.

    python benchmarks/labelers.py                      the seeds that were not looked at: 0 to 19
    python benchmarks/labelers.py --first 1000         others
    python benchmarks/labelers.py --calibration        and how right the probabilities are

Five good labelers, one who clicks at random and one who ranks in reverse; 80 items of four
completions, three labels an item, drawn evenly, so that everybody gives about 34. Scores are
N(0, 1), and a good labeler sees them with noise N(0, 0.5).
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from tests.feedback.made import crowd, judged

from tether.feedback.davidson import outcomes
from tether.feedback.labelers import assess, weights
from tether.feedback.simulated import Labeler
from tether.feedback.strengths import agreed, fit_tally
from tether.feedback.tally import tally


def found(first: int, seeds: int, noise: float) -> None:
    """How often the bad and the good are flagged, and how often intervals hold the planted."""
    both, good, inside, plain = 0, 0, [], []
    scale = 1.70 / (noise * 2**0.5)  # σ(1.70 d) is nearest to Φ(d)
    start = time.process_time()
    for seed in range(first, first + seeds):
        items, judgments, scores = judged(seed, crowd(noise))
        quality = assess(items, judgments)
        flagged = {one.labeler for one in quality if one.flags}
        both += {"random", "reversed"} <= flagged
        good += len(flagged - {"random", "reversed"})
        for trusted, into in ((weights(quality), inside), (None, plain)):
            for key, one in agreed(items, judgments, trusted).items():
                truth = scale * (scores[key] - scores[key].mean())
                into.extend(np.abs(np.array(one.scores) - truth) < 1.96 * np.array(one.errors))
    spent = (time.process_time() - start) / seeds
    print(
        f"noise {noise}, seeds {first} to {first + seeds - 1}: both bad ones flagged in {both} of "
        f"{seeds}, good ones {good} of {5 * seeds}; 95% intervals hold {np.mean(inside):.1%} of "
        f"the planted scores ({np.mean(plain):.1%} where all count alike); {spent:.2f} CPU s each"
    )


def slope(chance: np.ndarray, won: np.ndarray) -> float:
    """Of votes on log-odds, by logistic regression: below 1 too bold, above 1 too timid."""
    odds, found = np.log(chance / (1 - chance)), 1.0
    for _ in range(30):
        expected = 1 / (1 + np.exp(-found * odds))
        found += np.sum(odds * (won - expected)) / np.sum(odds**2 * expected * (1 - expected))
    return found


def calibration(noise: float, known: int, num_items: int = 1500) -> None:
    """The next labeler's votes against what the others foretell, in two ways."""
    labelers = [Labeler(name=str(i), noise=noise) for i in range(known + 1)]
    items, judgments, _ = judged(1, labelers, num_items=num_items, each=known + 1, tie=0.1 * noise)
    before = tally(items, [one for one in judgments if one.labeler != str(known)])
    fitted = fit_tally(before, np.ones(known))
    [block] = tally(items, [one for one in judgments if one.labeler == str(known)]).blocks
    consensus = agreed(items, [one for one in judgments if one.labeler != str(known)])
    first, second = np.triu_indices(4, 1)
    averaged = np.array([np.array(consensus[key].beats)[first, second] for key in block.keys])
    scores = fitted.strengths[0].scores
    win, tie, _ = outcomes(scores[:, first] - scores[:, second], fitted.nu)
    won = (block.signs + 1) / 2
    for name, chance in (("averaged", averaged), ("at the mean", win + tie / 2)):
        loss = -np.mean(won * np.log(chance) + (1 - won) * np.log(1 - chance))
        print(
            f"noise {noise}, {known} labelers, {name:<12} log loss {loss:.4f} nats, slope "
            f"{slope(chance.reshape(-1), won.reshape(-1)):.2f}, ridge {fitted.ridge:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--noise", type=float, nargs="*", default=[0.3, 0.5, 0.7])
    parser.add_argument("--calibration", action="store_true")
    arguments = parser.parse_args()
    for noise in arguments.noise:
        found(arguments.first, arguments.seeds, noise)
    if arguments.calibration:
        for noise in (0.3, 1.0, 2.0):
            for known in (2, 3, 5):
                calibration(noise, known)


if __name__ == "__main__":
    main()

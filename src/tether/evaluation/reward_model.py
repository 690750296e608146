"""The `evaluate-reward` stage: how far rewards can be trusted, on pairs that none was trained on.

What a labeler preferred is to score higher (accuracy), by as much as the reward is sure of it
(calibration), because it is better and not because it is longer (length), and spoiling a text must
not raise its score (robustness).
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tether.config import RewardEvaluationConfig
from tether.evaluation import calibration
from tether.evaluation.block_table import print_blocks
from tether.evaluation.blocks import Block, Measure, adjusted, paired_p, write_blocks
from tether.evaluation.robustness import robustness_block
from tether.evaluation.scored_pairs import (
    Pairs,
    by_prompt,
    centred,
    gaps,
    lengths,
    read_pairs,
    spread,
)
from tether.progress import console, results
from tether.rewards.load import Reward, check_rules, load_reward
from tether.rundir import StageFolder
from tether.statistics import Interval, bootstrap_of, cluster_mean

LENGTH, FIRST = "longer wins", "first wins"
CLOSE = 0.1  # standard deviations below which two scores are hardly told apart
EDGES = np.linspace(-4.0, 4.0, 33)  # of the histogram of margins, in standard deviations


def evaluate_reward(config: RewardEvaluationConfig) -> Path:
    """Score both sides of every pair by every reward, and say how far each can be trusted.

    Writes `blocks.json` into `config.out` and prints it.
    """
    paths = [path for scorer in config.scorers for path in scorer.paths]
    folder = StageFolder(config, "evaluate-reward", [config.data, *paths])
    if folder.finished:
        return folder.path
    found = read_pairs(config.data, config.columns)
    rewards = {each.name: load_reward(each, config.compute) for each in config.scorers}
    check_rules(list(rewards.values()), found.prompts)
    scores = {
        name: np.array(each.raw(found.prompts, found.texts)) for name, each in rewards.items()
    }
    trained = {name for name, each in rewards.items() if learned_from_pairs(each)}
    blocks = [
        accuracy_block(found, scores, config.seed),
        calibration_block(found, scores, trained, config.bins, config.seed),
        margin_block(found, scores, config.seed),
        length_block(found, scores, config.seed),
    ]
    if config.num_texts:
        blocks.append(robustness_block(found, rewards, scores, config))
    blocks = adjusted(blocks)
    folder.begin()
    write_blocks(folder.path, blocks)
    print_blocks(blocks, results)
    if found.dropped:
        console.print(f"{found.dropped} pairs dropped: the same on both sides, or of weight 0")
    return folder.finish(pairs=len(found.choices), prompts=len(set(found.prompt_of)))


def learned_from_pairs(reward: Reward) -> bool:
    """Whether differences of its scores claim to be log-odds: those of a reward model do.

    An ensemble's scores are in units of each member's own, a classifier's logits speak of labels,
    a function's or a rule's of nothing.
    """
    return (
        reward.model is not None
        and reward.members is None
        and not reward.config.label
        and reward.config.output == "logit"
    )


# --- blocks ---------------------------------------------------------------------------------------


def accuracy_block(found: Pairs, scores: dict[str, NDArray[np.float64]], seed: int) -> Block:
    """Share of the pairs that each reward orders rightly, overall and by category."""
    hits = {name: calibration.right(gaps(found, each)) for name, each in scores.items()}
    hits[LENGTH] = calibration.right(gaps(found, lengths(found)))
    hits[FIRST] = np.array([choice.first_wins for choice in found.choices])
    categories = sorted({choice.category for choice in found.choices})
    rows = {"accuracy": np.arange(len(found.choices))}
    if len(categories) > 1:
        for category in categories:
            where = [i for i, each in enumerate(found.choices) if each.category == category]
            rows[f"accuracy: {category or 'other'}"] = np.array(where)
    measures = [
        _against_length(row, name, each[rows[row]], hits[LENGTH][rows[row]], found, rows[row], seed)
        for row in rows
        for name, each in hits.items()
    ]
    return Block(
        title="Accuracy",
        meaning="Share of pairs in which the better completion scores higher; equal scores count "
        f"half. '{LENGTH}' and '{FIRST}' are what choosing the longer completion, or the one "
        "listed first (half where the order is not known), would reach.",
        baseline=LENGTH,
        measures=measures,
        note=f"{len(found.choices)} pairs of {len(set(found.prompt_of))} prompts; the intervals "
        "draw prompts anew",
    )


def _against_length(
    row: str,
    name: str,
    hits: NDArray[np.float64],
    length: NDArray[np.float64],
    found: Pairs,
    where: NDArray[np.int64],
    seed: int,
) -> Measure:
    """A share of pairs, and its difference to that of the length; prompts are drawn anew."""
    clusters = [found.choices[i].prompt for i in where]
    value = cluster_mean(hits, clusters, seed=seed)
    if name in (LENGTH, FIRST):
        return Measure(name=row, policy=name, value=value, better="high", unit="share")
    return Measure(
        name=row,
        policy=name,
        value=value,
        better="high",
        unit="share",
        difference=cluster_mean(hits - length, clusters, seed=seed),
        p=paired_p(by_prompt(hits, clusters), by_prompt(length, clusters)),
    )


def calibration_block(
    found: Pairs,
    scores: dict[str, NDArray[np.float64]],
    trained: set[str],
    bins: int,
    seed: int,
) -> Block:
    """Whether a reward is as sure as it is right, as it stands and at its best temperature."""
    clusters: list[Hashable] = [choice.prompt for choice in found.choices]
    measures: list[Measure] = []
    series = [calibration.Series(name="as sure as right", x=[0.5, 1.0], y=[0.5, 1.0])]
    for name, each in scores.items():
        d = gaps(found, each)
        temperature = calibration.best_temperature(d)
        shown = {"": d} if name in trained else {}
        for how, part in {**shown, " at the best temperature": d / temperature}.items():
            measures += _calibration(f"{how}", name, part, clusters, bins, seed)
            curve = calibration.reliability(part, clusters, bins, seed=seed)  # pyright: ignore[reportArgumentType]
            series.append(calibration.curve(f"{name}{how}", curve))
        measures.append(_single("best temperature", name, temperature))
    return Block(
        title="Calibration",
        meaning="Confidence σ(|d|) of the difference d of two scores, against the share that is "
        "right. Log-loss (nats; 0.693 is knowing nothing) and Brier score (0.25 is knowing "
        "nothing) of σ(d); ECE is the mean gap between confidence and accuracy, to be read beside "
        "that of a calibrated reward, which is not 0 either on so few pairs. A best temperature "
        "above 1 says that the scores are too sure.",
        baseline="",
        measures=measures,
        note="The temperature is fitted to these pairs. Only a reward model's own differences "
        "claim to be log-odds; other rewards are shown at their best temperature alone.",
        series=series,
        x="confidence",
        y="share right",
    )


def _calibration(
    how: str, name: str, d: NDArray[np.float64], clusters: list[Hashable], bins: int, seed: int
) -> list[Measure]:
    conf, hits, place = calibration.confidence(d), calibration.right(d), calibration.bin_of(d, bins)
    means = {"log-loss": calibration.log_losses(d), "Brier score": calibration.brier(d)}
    return [
        *(
            Measure(
                name=f"{word}{how}",
                policy=name,
                value=cluster_mean(values, clusters, seed=seed),
                better="low",
            )
            for word, values in means.items()
        ),
        _single(f"ECE{how}", name, calibration.calibration_error(conf, hits, place), "low"),
        _single(f"ECE if calibrated{how}", name, calibration.chance_error(d, bins, seed=seed)),
    ]


def _single(name: str, policy: str, value: float, better: Any = "") -> Measure:
    """A figure without an interval."""
    return Measure(name=name, policy=policy, value=Interval(value, np.nan, np.nan), better=better)


def margin_block(found: Pairs, scores: dict[str, NDArray[np.float64]], seed: int) -> Block:
    """By how much the better completion scores higher, in standard deviations of the scores."""
    clusters = [choice.prompt for choice in found.choices]
    margins = {name: gaps(found, each) / spread(each) for name, each in scores.items()}
    return Block(
        title="Margins",
        meaning="Score of the better completion less that of the worse, in standard deviations of "
        "all scores. Pairs nearer than a tenth of one are hardly told apart.",
        baseline="",
        measures=[
            *(
                Measure(
                    name="mean margin",
                    policy=name,
                    value=cluster_mean(each, clusters, seed=seed),
                    better="high",
                )
                for name, each in margins.items()
            ),
            *(
                Measure(
                    name="hardly told apart",
                    policy=name,
                    value=cluster_mean((np.abs(each) < CLOSE).astype(float), clusters, seed=seed),
                    better="low",
                    unit="share",
                )
                for name, each in margins.items()
            ),
        ],
        series=[calibration.histogram(name, each, EDGES) for name, each in margins.items()],
        x="margin (standard deviations)",
        y="share of pairs",
    )


def length_block(found: Pairs, scores: dict[str, NDArray[np.float64]], seed: int) -> Block:
    """Correlation of score and length, over all completions and among those of one prompt."""
    groups, long = np.array(found.prompt_of), lengths(found)
    measures: list[Measure] = []
    for word, of in (("over all completions", None), ("within prompts", groups)):
        for name, each in scores.items():
            x, y = (values if of is None else centred(values, of) for values in (each, long))
            moments = calibration.correlation(x, y, groups)
            value = bootstrap_of(len(moments.sums), moments.pearson, seed=seed)
            measures.append(Measure(name=f"correlation {word}", policy=name, value=value))
    return Block(
        title="Length",
        meaning="Correlation of a completion's score with its characters. Within prompts is what "
        "training on the reward can use: much above what the labelers' choices explain (see "
        f"'{LENGTH}' under Accuracy) invites long answers.",
        baseline="",
        measures=measures,
    )

"""One look of the monitor: samples for held-out prompts, and what can be said of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from tether.config import OnlineConfig
from tether.data.batches import Row, device_batches
from tether.data.rollout import Rollout
from tether.engine.sampling import MONITOR
from tether.models.language_model import LanguageModel, completion_kl, completion_logprobs
from tether.records import Text
from tether.rewards.load import Reward
from tether.statistics import distinct_n, repetition
from tether.train.alarms import phrases_shared
from tether.train.collect import Source, collect
from tether.train.score import score_texts

ROWS_PER_BATCH = 64  # where device_batch_size is 0


@dataclass(frozen=True)
class Watched:
    """What is looked at, and by whom."""

    config: OnlineConfig
    source: Source
    policy: LanguageModel
    reference: LanguageModel | None
    rewards: list[Reward]
    audits: list[Reward]
    plots: dict[str, Reward]
    prompts: list[Text]
    ids: Sequence[list[int]]


class Look(NamedTuple):
    """The figures of a look (a row of monitor.jsonl), and its samples (rows of audits.jsonl)."""

    figures: dict[str, Any]
    samples: list[dict[str, Any]]


@torch.no_grad()
def look(watched: Watched, step: int) -> Look:
    """Sample, judge and measure; what is sampled is a function of (policy, seed, step).

    The proxy is the total of the run's own rewards, without the penalty for a missing end: whether
    samples end is told apart. The KL is exact over the vocabulary at each token, summed over a
    completion.
    """
    config, num = watched.config, watched.config.monitor.num_samples
    index = [i for i in range(len(watched.prompts)) for _ in range(num)]
    rollout = collect(
        watched.source,
        [watched.prompts[i] for i in index],
        [watched.ids[i] for i in index],
        config.sampling,
        seed=config.seed,
        step=MONITOR + step,
    )
    scores, disagreement = scores_of(watched, rollout)
    entropies, kls = along(watched, rollout.rows)
    columns: dict[str, Sequence[int | float]] = {
        **scores,
        "length": [len(row.ids) - row.num_prompt for row in rollout.rows],
        "repetition": [repetition(text) for text in rollout.completions],
        "template": phrases_shared(rollout.completions, index).tolist(),
        "entropy": entropies,
        **({"kl": kls} if kls else {}),
    }
    figures = {name: float(np.mean(column)) for name, column in columns.items()}
    figures["finished"] = float(rollout.finished.float().mean())
    figures["distinct_2"] = distinct_n(rollout.completions, 2)
    figures["score_length_correlation"] = correlation(columns["proxy"], columns["length"])
    figures |= disagreement
    samples = [
        {
            "step": step,
            "prompt_index": prompt,
            "sample_index": i % num,
            "prompt": rollout.prompts[i],
            "completion": rollout.completions[i],
            "finished": bool(rollout.finished[i]),
            **{name: column[i] for name, column in columns.items()},
        }
        for i, prompt in enumerate(index)
    ]
    return Look({"step": step, **figures}, samples)


def scores_of(
    watched: Watched, rollout: Rollout
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Scores of each sample by proxy, audit and what is plotted; and an ensemble's disagreement."""
    prompts, texts = rollout.prompts, rollout.completions
    _, total, metrics = score_texts(rollout, watched.rewards)
    scores = {"proxy": total.tolist()}
    if watched.audits:
        judged = [audit.judge(prompts, texts).scores for audit in watched.audits]
        scores["audit"] = np.mean(judged, axis=0).tolist()
    for name, reward in watched.plots.items():
        scores[name] = reward.judge(prompts, texts).scores
    kept = ("disagreement",)
    return scores, {name: metrics[name] for name in kept if name in metrics}


def along(watched: Watched, rows: list[Row]) -> tuple[list[float], list[float]]:
    """Of each sample the mean entropy per token and the KL to the reference (nats).

    There is no KL without a reference.
    """
    policy, reference = watched.policy, watched.reference
    temperature = watched.config.sampling.temperature
    entropies, kls = [0.0] * len(rows), [0.0] * len(rows)
    for chunk, batch in device_batches(rows, watched.config.device_batch_size or ROWS_PER_BATCH):
        counts = [rows[i].num_completion for i in chunk]
        _, entropy = completion_logprobs(policy, batch, temperature=temperature, with_entropy=True)
        for i, part in zip(chunk, entropy.split(counts), strict=True):
            entropies[i] = float(part.mean())
        if reference:
            exact = completion_kl(policy, reference, batch, temperature=temperature)
            for i, part in zip(chunk, exact.split(counts), strict=True):
                kls[i] = float(part.sum())
    return entropies, kls if reference else []


def correlation(one: Sequence[int | float], other: Sequence[int | float]) -> float:
    """Pearson's correlation; NaN where one of them does not vary."""
    if min(np.std(one), np.std(other)) < 1e-9:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])

"""The reward model: a language model with one number in place of the next word.

It learns from preference pairs and rankings ("pairwise": Bradley-Terry on all pairs; "listwise":
Plackett-Luce on whole rankings), or from completions that were liked or not ("binary"). All that
was said of one prompt stays in one optimizer batch element, because a completion that stands in
several pairs must not count as several examples.

Two things hold scores near 0. `centering` is a penalty in the loss of pairs, off by default.
Whatever the loss, the mean and std of the scores are measured once training has ended and stored
in `tether.json`; PPO's scores are shifted and scaled by them, the model itself is not changed.

Several heads on one backbone are an ensemble: each starts elsewhere and learns from its own
resample of the prompts, so where they differ, the data did not decide.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tether import parallel
from tether.config import RewardModelConfig
from tether.data.batches import split_by_prompt
from tether.data.comparisons import Comparisons, comparison_shelf, group
from tether.data.formats import read_comparisons, read_thumbs
from tether.data.shelf import picked, text_keys, watched
from tether.errors import DataError
from tether.models.scalar_head import (
    Centering,
    RewardModel,
    new_reward_model,
    save_reward_model,
)
from tether.models.templates import keep_template
from tether.models.truncation import tell_of_truncated
from tether.progress import console
from tether.rundir import StageFolder
from tether.statistics import cluster_mean
from tether.train import judgments, loop

GROUPS_PER_EVALUATION_BATCH = 16
NOUNS = {"pairwise": "pairs", "listwise": "rankings", "binary": "labels"}


def train_reward(config: RewardModelConfig) -> Path:
    """Train a reward model on what labelers said and write it to `config.out`.

    The scores' mean and std over the judged completions (samples of the reference) are stored
    with the model, those of each head where it has several, so that PPO can use centred scores.

    Returns:
        The stage's folder; the model is in its `model/`.
    """
    folder = StageFolder(config, "reward", [config.model, config.data])
    if folder.finished:
        return folder.path
    noun = NOUNS[config.loss]
    groups = read(config)
    reward = new_reward_model(
        config.model, config.compute, lora=config.lora, heads=config.heads, seed=config.seed
    )
    groups, dropped = tokenize(reward, groups, config)
    if dropped:
        console.print(f"{dropped} {noun} dropped: too long, the same on both sides, or of weight 0")
    keys = text_keys(group_.key for group_ in groups)
    train, held = split_by_prompt(keys, config.held_out, config.seed)
    held_groups = picked(groups, held)
    provenance = {"made_by": "tether reward", "model": config.model, "data": config.data}

    def write(path: Path) -> None:
        center(reward, groups)
        save_reward_model(reward, path, provenance)

    steps = loop.fit(
        config,
        folder,
        reward.model,
        len(train),
        lambda chosen: _backward(reward, [groups[train[i]] for i in chosen], config),
        lambda: _held_out_metrics(reward, held_groups, config.loss),
        write,
    )
    folder.write_model(write)
    centrings = [each._asdict() for each in reward.heads or (reward.centering,) if each]
    facts = {
        "steps": steps,
        noun: sum(len(judgments.judged(config.loss, groups[i])) for i in train),
        f"dropped_{noun}": dropped,
        "centering": centrings if config.heads > 1 else centrings[0],
    }
    return folder.finish(**facts, **held_out_facts(reward, held_groups, config.loss))


def read(config: RewardModelConfig) -> Sequence[Comparisons]:
    """The judgments of a file by prompt, of the kind that the loss learns from.

    Raises:
        DataError: Labels of one kind only, or pairs that say more than a ranking can.
    """
    if config.loss == "binary":
        thumbs = read_thumbs(config.data, config.columns)
        liked = sum(thumb.label for thumb in thumbs)
        if liked in (0, len(thumbs)):
            raise DataError(
                f"{config.data}: all {len(thumbs)} labels are {str(bool(liked)).lower()}; nothing "
                "can be told apart without some of the other kind"
            )
        return group(thumbs)
    whole = config.loss == "listwise"
    groups = group(read_comparisons(config.data, config.columns, whole=whole))
    for pair in (pair for group_ in groups for pair in group_.pairs) if whole else ():
        if pair.margin or pair.probability != 1:
            raise DataError(
                f"{config.data}: a pair has margin={pair.margin!r} and probability="
                f'{pair.probability!r}, which a ranking cannot hold; set loss = "pairwise"'
            )
    return groups


def tokenize(
    reward: RewardModel, groups: Sequence[Comparisons], config: RewardModelConfig
) -> tuple[Sequence[Comparisons], int]:
    """Fill in token rows; drop what has a row too long, equal rows, or weight 0.

    Returns:
        The groups that still have a judgment, and the number of judgments dropped.

    Raises:
        DataError: No judgment is left.
    """
    limit = min(config.max_length or reward.longest, reward.longest)
    kind, heads = config.loss, config.heads
    left, before, after, truncated = comparison_shelf(), 0, 0, 0
    keep_template(reward.tokenizer, (group_.prompt for group_ in groups))
    for group_ in watched(groups, "tokenize"):
        before += len(judgments.judged(kind, group_))
        group_.rows, cut = reward.rows(group_.prompt, group_.completions, limit)
        truncated += cut
        group_.keep_usable(limit)
        if heads > 1:
            group_.copies = tuple(copies(config.seed, h, group_.key) for h in range(heads))
        if judged := judgments.judged(kind, group_):
            left.append(group_)
            after += len(judged)
    tell_of_truncated(truncated, len(groups), "prompts", limit)
    if not left:
        raise DataError(
            f"{config.data}: none of {before} {NOUNS[kind]} can be used: each is a tie, has equal "
            f"sides or weight 0, or exceeds {limit} tokens; give "
            f"{'labels' if kind == 'binary' else 'rankings with a difference'}, or raise max_length"
        )
    return left.plain(), before - after


def copies(seed: int, head: int, key: str) -> int:
    """How often a prompt stands in the resample that a head learns from: Poisson(1).

    What the bootstrap's counts become with many prompts, and a function of (seed, head, prompt).

    Source: Oza & Russell 2001, Online Bagging and Boosting.
    """
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return int(np.random.default_rng([seed, head, number]).poisson(1.0))


def _backward(
    reward: RewardModel, groups: list[Comparisons], config: RewardModelConfig
) -> dict[str, float]:
    """Accumulate the gradient of an optimizer batch; returns its loss and accuracy."""
    sums = {"loss": 0.0, "right": 0.0, "weight": 0.0}
    for (part, scores, loss), counts in losses(reward, groups, config):
        (counts * loss).backward()
        found = judgments.agreement(config.loss, scores.detach().mean(1), part)
        weight = counts * sum(found.weights)
        sums["loss"] += counts * float(loss.detach())
        sums["right"] += found.accuracy * weight
        sums["weight"] += weight
    sums = parallel.summed_figures(sums)
    return {"loss": sums["loss"], "accuracy": sums["right"] / sums["weight"]}


def losses(
    reward: RewardModel, groups: Sequence[Comparisons], config: RewardModelConfig
) -> Iterator[tuple[tuple[list[Comparisons], Float[Tensor, "N H"], Float[Tensor, ""]], float]]:
    """Device batches of an optimizer batch: prompts, their scores, and their part of the loss.

    Each with what it counts: 1, or 0 where it is made for the sake of other processes only.
    """
    total = judgments.total_weight(config.loss, groups)
    num_rows = sum(len(group_.rows) for group_ in groups)
    rows_a_pass = parallel.rows_a_pass(num_rows, config.device_batch_size)
    for part, counts in parallel.dealt(chunks(groups, rows_a_pass)):
        scores = reward.logits([row for group_ in part for row in group_.rows])
        resampled = config.heads > 1
        loss = judgments.loss(
            config.loss,
            scores,
            part,
            total=total,
            resampled=resampled,
            centering=config.centering,
        )
        yield (part, scores, loss), counts


def chunks(groups: Sequence[Comparisons], rows: int) -> list[list[Comparisons]]:
    """Whole groups in device batches of at most `rows` completions (0 = all), at least one each."""
    parts: list[list[Comparisons]] = []
    count = 0
    for group_ in sorted(groups, key=lambda g: -max(len(row.ids) for row in g.rows)):
        count += len(group_.rows)
        if not parts or (rows and count > rows):
            parts.append([])
            count = len(group_.rows)
        parts[-1].append(group_)
    return parts


@torch.no_grad()
def held_out(
    reward: RewardModel, groups: Sequence[Comparisons], kind: str
) -> tuple[float, judgments.Agreement]:
    """Loss and agreement on held-out judgments; an ensemble's score is the mean of its heads."""
    scores = []
    for start in range(0, len(groups), GROUPS_PER_EVALUATION_BATCH):
        part = groups[start : start + GROUPS_PER_EVALUATION_BATCH]
        scores.append(reward.logits([row for group_ in part for row in group_.rows]).mean(1))
    if not scores:
        return 0.0, judgments.Agreement([], [], [], [])
    every = torch.cat(scores)
    total = judgments.total_weight(kind, groups)
    loss = judgments.loss(kind, every[:, None], groups, total=total)
    return float(loss), judgments.agreement(kind, every, groups)


def _held_out_metrics(
    reward: RewardModel, groups: Sequence[Comparisons], kind: str
) -> dict[str, float]:
    loss, found = held_out(reward, groups, kind)
    if not found.correct:
        return {}
    return {"held_out_loss": loss, "held_out_accuracy": float(np.mean(found.correct))}


def held_out_facts(
    reward: RewardModel, groups: Sequence[Comparisons], kind: str
) -> dict[str, object]:
    """Final accuracy on held-out pairs or labels, with its interval over prompts.

    Of rankings, all pairs that they decide are counted, so that the losses can be compared.
    """
    noun = "labels" if kind == "binary" else "pairs"
    loss, found = held_out(reward, groups, kind)
    if not found.correct:
        return {f"held_out_{noun}": 0}
    accuracy = cluster_mean(np.array(found.correct), found.prompts)
    length = float(np.mean(found.longer_wins))
    console.print(
        f"held-out accuracy {accuracy.mean:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}] on "
        f"{len(found.correct)} {noun} of {len(groups)} prompts (choosing the longer one: "
        f"{length:.3f})"
    )
    ends = accuracy._asdict().items()  # one prompt has no interval, and JSON no NaN
    facts: dict[str, object] = {
        "held_out_accuracy": {k: end if math.isfinite(end) else None for k, end in ends},
        "held_out_loss": loss,
        f"held_out_{noun}": len(found.correct),
        "length_baseline_accuracy": length,
    }
    if kind == "binary":
        liked = np.mean([verdict.liked for group_ in groups for verdict in group_.verdicts])
        facts["majority_baseline_accuracy"] = float(max(liked, 1 - liked))
    return facts


@torch.no_grad()
def center(reward: RewardModel, groups: Sequence[Comparisons]) -> None:
    """Set the centring of each head: mean and std of its raw scores over all completions."""
    scores = torch.cat([reward.logits(group_.rows) for group_ in groups]).double()
    means, stds = scores.mean(0), scores.std(0, correction=0).clamp(min=1e-6)
    found = tuple(Centering(float(m), float(s)) for m, s in zip(means, stds, strict=True))
    reward.centering, reward.heads = (found[0], ()) if len(found) == 1 else (None, found)

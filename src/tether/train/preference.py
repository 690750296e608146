"""Tuning a policy on preference pairs directly: DPO, IPO, SimPO, ORPO.

A batch is one forward pass over the completions of its pairs, each completion once, without
padding; then a loss from `core.direct_losses` on their log-probs. What the reference thinks of
them is known beforehand (`train.reference`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tether import parallel
from tether.config import DPOConfig, IPOConfig, ORPOConfig, PreferenceConfig, SimPOConfig
from tether.core import direct_losses
from tether.core.preference_losses import PreferenceLoss
from tether.data.batches import Row, buckets, split_by_prompt
from tether.data.comparisons import Comparisons, Pair, comparison_shelf, flatten, group
from tether.data.formats import read_comparisons
from tether.data.shelf import picked, watched
from tether.errors import ConfigError, DataError
from tether.functions import load_function
from tether.models.language_model import LanguageModel, load, save
from tether.models.templates import keep_template
from tether.models.truncation import fit_completions, tell_of_truncated
from tether.progress import console
from tether.rundir import StageFolder
from tether.statistics import cluster_mean
from tether.train import loop
from tether.train.own import own_loss
from tether.train.reference import ROWS_AT_ONCE, reference_logprobs, sequence_logprobs

FALLEN = 0.1  # nats a token: a fall of the log-probs below the reference's that is told of


class Scored(NamedTuple):
    """Pairs with the log-probs (nats) of their completions, summed over tokens, and the tokens.

    `probability` is the chance that the chosen completion is the better one.
    """

    chosen: Float[Tensor, " P"]
    rejected: Float[Tensor, " P"]
    reference_chosen: Float[Tensor, " P"]
    reference_rejected: Float[Tensor, " P"]
    chosen_tokens: Float[Tensor, " P"]
    rejected_tokens: Float[Tensor, " P"]
    probability: Float[Tensor, " P"]
    weight: Float[Tensor, " P"]

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Log-probs a token, of chosen and rejected."""
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens

    @property
    def reference_means(self) -> tuple[Tensor, Tensor]:
        """The same under the reference."""
        tokens = self.chosen_tokens, self.rejected_tokens
        return self.reference_chosen / tokens[0], self.reference_rejected / tokens[1]

    @property
    def swapped(self) -> "Scored":
        """The same pairs with the labels turned round."""
        chosen, rejected, held, held_too, tokens, tokens_too, probability, weight = self
        swapped = rejected, chosen, held_too, held, tokens_too, tokens
        return Scored(*swapped, 1 - probability, weight)


class Totals(NamedTuple):
    """What losses of a whole optimizer batch are divided by: sums of weights, weighted tokens."""

    pairs: float
    tokens: float  # of the completions that are the better ones


Loss = Callable[[Scored, Totals], PreferenceLoss]


def train_dpo(config: DPOConfig) -> Path:
    """Tune a policy by direct preference optimization and write it to `config.out`.

        L = −Σ w log σ(β (log-ratio of chosen − log-ratio of rejected)) / Σ w  + nll · L_SFT

    where L_SFT is the negative log-prob of the better completions, per token of the batch. With
    `loss` a function of the user's says what each pair costs, in place of −log σ(…).

    Returns:
        The stage's folder; the model is in its `model/`.
    """
    own = load_function(config.loss) if config.loss else None

    def loss(s: Scored, totals: Totals) -> PreferenceLoss:
        logprobs = s.chosen, s.rejected, s.reference_chosen, s.reference_rejected
        labels = {"weight": s.weight, "num_pairs": totals.pairs}
        smoothing = config.label_smoothing
        settings = {"beta": config.beta, "label_smoothing": smoothing, **labels}
        if own:
            found = own_loss(own, s, totals.pairs, config.beta, config.loss)
        elif config.robust:
            found = direct_losses.robust_dpo(*logprobs, **settings)
        else:
            found = direct_losses.dpo(*logprobs, **settings, probability=s.probability)
        if not config.nll:
            return found
        likely = s.probability * s.chosen + (1 - s.probability) * s.rejected
        return found._replace(
            loss=found.loss - config.nll * (s.weight * likely).sum() / totals.tokens
        )

    return _train(config, "dpo", loss)


def train_ipo(config: IPOConfig) -> Path:
    """Tune a policy by identity preference optimization and write it to `config.out`.

    Returns:
        The stage's folder; the model is in its `model/`.
    """

    def loss(s: Scored, totals: Totals) -> PreferenceLoss:
        labels = {"probability": s.probability, "weight": s.weight, "num_pairs": totals.pairs}
        return direct_losses.ipo(*s.means, *s.reference_means, beta=config.beta, **labels)

    return _train(config, "ipo", loss)


def train_simpo(config: SimPOConfig) -> Path:
    """Tune a policy by simple preference optimization and write it to `config.out`.

    Returns:
        The stage's folder; the model is in its `model/`.
    """

    def loss(s: Scored, totals: Totals) -> PreferenceLoss:
        labels = {"probability": s.probability, "weight": s.weight, "num_pairs": totals.pairs}
        return direct_losses.simpo(*s.means, beta=config.beta, margin=config.margin, **labels)

    return _train(config, "simpo", loss)


def train_orpo(config: ORPOConfig) -> Path:
    """Tune a policy by odds-ratio preference optimization and write it to `config.out`.

    Returns:
        The stage's folder; the model is in its `model/`.
    """

    def loss(s: Scored, totals: Totals) -> PreferenceLoss:
        labels = {"probability": s.probability, "weight": s.weight, "num_pairs": totals.pairs}
        return direct_losses.orpo(*s.means, beta=config.beta, **labels)

    return _train(config, "orpo", loss)


def _train(config: PreferenceConfig, kind: str, loss: Loss) -> Path:
    """What all four do, but for the loss."""
    reference = getattr(config, "reference", "none")
    tethered = reference != "none"
    inputs = [config.model, config.data, reference if tethered else ""]
    inputs.append(getattr(config, "loss", ""))
    folder = StageFolder(config, kind, inputs)
    if folder.finished:
        return folder.path
    policy = load(
        config.model, config.compute, trainable=True, lora=config.lora, seed=config.seed, shard=True
    )
    groups = group(read_comparisons(config.data, config.columns))
    groups, dropped = tokenize(policy, groups, config.max_length, config.data)
    rows, pairs, prompts = flatten(groups)
    _require_certain(config, pairs)
    if dropped:
        console.print(f"{dropped} pairs dropped: too long, the same on both sides, or of weight 0")
    known = reference_logprobs(config, reference, folder, policy, rows)
    tuning = Tuning(policy, rows, known, loss, config.device_batch_size, tethered)
    train, held = split_by_prompt(prompts, config.held_out, config.seed)
    held_pairs, held_prompts = picked(pairs, held), [str(prompts[i]) for i in held]
    provenance = {"made_by": f"tether {kind}", "model": config.model, "data": config.data}

    def write(path: Path) -> None:
        save(policy, path, provenance)

    steps = loop.fit(
        config,
        folder,
        policy.model,
        len(train),
        lambda chosen: tuning.backward([pairs[train[i]] for i in chosen]),
        lambda: tuning.evaluate(held_pairs),
        write,
    )
    facts = {"steps": steps, "pairs": len(train), "dropped_pairs": dropped}
    facts |= held_out_facts(tuning.held_out(held_pairs), held_prompts, "pairs")
    folder.write_model(write)
    return folder.finish(**facts)


# --- from comparisons to pairs of token rows ------------------------------------------------------


def tokenize(
    policy: LanguageModel, groups: Sequence[Comparisons], max_length: int, where: str
) -> tuple[Sequence[Comparisons], int]:
    """Fill in token rows; drop pairs with a row too long, with equal rows, or of weight 0.

    Returns:
        The groups that still have a pair, and the number of pairs dropped.

    Raises:
        DataError: No pair is left.
    """
    limit = min(max_length or policy.max_positions, policy.max_positions)
    left, before, after, truncated = comparison_shelf(), 0, 0, 0
    keep_template(policy.tokenizer, (each.prompt for each in groups))
    for each in watched(groups, "tokenize"):
        before += len(each.pairs)
        fitted = fit_completions(policy.tokenizer, each.prompt, each.completions, limit)
        each.rows, truncated = fitted.rows, truncated + fitted.truncated
        each.keep_usable(limit)
        after += len(each.pairs)
        if each.pairs:
            left.append(each)
    tell_of_truncated(truncated, len(groups), "prompts", limit)
    if not left:
        raise DataError(
            f"{where}: none of {before} pairs can be used: each is a tie, has equal sides or "
            f"weight 0, or exceeds {limit} tokens; give pairs with a difference, or raise "
            "max_length"
        )
    return left.plain(), before - after


def _require_certain(config: PreferenceConfig, pairs: Sequence[Pair]) -> None:
    if not (isinstance(config, DPOConfig) and config.robust):
        return
    uncertain = [pair.probability for pair in pairs if pair.probability != 1]
    if uncertain:
        raise ConfigError(
            f"robust=True needs pairs without a probability, but {config.data} has one of "
            f"{uncertain[0]!r}; set robust = false, which takes each label as it is"
        )


# --- the loss of a batch --------------------------------------------------------------------------


@dataclass
class Tuning:
    """A policy, the rows it learns from, and their log-probs under the reference."""

    policy: LanguageModel
    rows: Sequence[Row]
    reference: Float[Tensor, " R"]
    loss: Loss
    device_batch_size: int
    tethered: bool  # False where there is no reference: nothing to fall below
    told: bool = False
    falls: tuple[float, float] = (0.0, 0.0)

    def backward(self, pairs: list[Pair]) -> dict[str, float]:
        """Accumulate the gradient of an optimizer batch; returns what to log of it."""
        totals = self.totals(pairs)
        parts: list[dict[str, float]] = []
        for part, counts in parallel.dealt(self.device_batches(pairs)):
            scored = self.score(part)
            found = self.loss(scored, totals)
            (counts * found.loss).backward()
            row = figures(scored, found, totals)
            parts.append({name: counts * value for name, value in row.items()})
        row = {name: sum(part[name] for part in parts) for name in parts[0]}
        row = parallel.summed_figures(row)
        self.falls = row.pop("chosen_fall"), row.pop("rejected_fall")
        return row

    def totals(self, pairs: list[Pair]) -> Totals:
        """What the losses of a batch of these pairs are divided by."""
        tokens = sum(
            pair.weight * share * self.rows[row].num_completion
            for pair in pairs
            for row, share in ((pair.winner, pair.probability), (pair.loser, 1 - pair.probability))
        )
        return Totals(sum(pair.weight for pair in pairs), tokens)

    def device_batches(self, pairs: list[Pair]) -> list[list[Pair]]:
        """Pairs of like length, at most `device_batch_size` rows, at least one pair each."""
        lengths = [max(len(self.rows[row].ids) for row in pair[:2]) for pair in pairs]
        num = max(self.device_batch_size // 2, 1) if self.device_batch_size else 0
        num = parallel.rows_a_pass(len(pairs), num)
        return [[pairs[i] for i in chosen] for chosen in buckets(lengths, num)]

    def score(self, pairs: list[Pair]) -> Scored:
        """One forward pass over the completions of some pairs, each once."""
        wanted = sorted({row for pair in pairs for row in pair[:2]})
        place = {row: i for i, row in enumerate(wanted)}
        rows = [self.rows[row] for row in wanted]
        logprobs = sequence_logprobs(self.policy, rows)
        device = logprobs.device
        known = self.reference[wanted].to(device)
        tokens = torch.tensor([float(row.num_completion) for row in rows], device=device)
        chosen = torch.tensor([place[pair.winner] for pair in pairs], device=device)
        rejected = torch.tensor([place[pair.loser] for pair in pairs], device=device)
        sides = [each[side] for each in (logprobs, known, tokens) for side in (chosen, rejected)]
        labels = torch.tensor([(pair.probability, pair.weight) for pair in pairs], device=device)
        return Scored(*sides, *labels.T)

    @torch.no_grad()
    def held_out(self, pairs: Sequence[Pair]) -> dict[str, list[float]]:
        """Loss, accuracy and margin of each pair by itself, whatever its weight."""
        found: dict[str, list[float]] = {"loss": [], "accuracy": [], "margin": []}
        for start in range(0, len(pairs), ROWS_AT_ONCE // 2):
            part = [pair._replace(weight=1.0) for pair in pairs[start : start + ROWS_AT_ONCE // 2]]
            scored = self.score(part)
            for i, pair in enumerate(part):
                one = Scored(*(each[i : i + 1] for each in scored))
                loss, accuracy, margin, *_ = self.loss(one, self.totals([pair]))
                for name, value in zip(found, (loss, accuracy, margin), strict=True):
                    found[name].append(float(value))
        return found

    def evaluate(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Means on held-out pairs; says once if the last batch's completions got less likely."""
        if self.tethered and not self.told and min(self.falls) > FALLEN:
            self.told = True
            console.print(
                "both log-probs fell: the chosen completions are {:.2f} and the rejected {:.2f} "
                "nats a token below the reference. The loss only widens the gap between them; if "
                "completions degrade, lower optimizer.learning_rate, raise beta, or set nll "
                "(dpo)".format(*self.falls)
            )
        found = self.held_out(pairs)
        return {f"held_out_{name}": float(np.mean(each)) for name, each in found.items() if each}


def figures(scored: Scored, found: PreferenceLoss, totals: Totals) -> dict[str, float]:
    """What to log of a device batch; all but the tokens in parts of means over the whole batch."""
    with torch.no_grad():
        share = scored.weight / totals.pairs
        fall = [
            (held - mean) @ share
            for mean, held in zip(scored.means, scored.reference_means, strict=True)
        ]
        values = {
            "loss": found.loss,
            "accuracy": found.accuracy,
            "margin": found.margin_mean,
            "chosen_reward": found.chosen_mean,
            "rejected_reward": found.rejected_mean,
            "chosen_logprob": scored.chosen @ share,
            "rejected_logprob": scored.rejected @ share,
            "tokens": (scored.chosen_tokens + scored.rejected_tokens).sum(),
            "chosen_fall": fall[0],
            "rejected_fall": fall[1],
        }
        return dict(zip(values, torch.stack([*values.values()]).tolist(), strict=True))


def held_out_facts(
    found: dict[str, list[float]], prompts: list[str], what: str
) -> dict[str, object]:
    """Final figures on held-out pairs, or what else, with their intervals over prompts."""
    facts: dict[str, object] = {f"held_out_{what}": len(prompts)}
    if not prompts:
        return facts
    told: list[str] = []
    for name, values in found.items():
        interval = cluster_mean(np.array(values), prompts)
        told.append("{} {:.3f} [{:.3f}, {:.3f}]".format(name, *interval))
        ends = interval._asdict().items()  # one prompt has no interval, and JSON no NaN
        facts[f"held_out_{name}"] = {k: end if math.isfinite(end) else None for k, end in ends}
    console.print(
        f"held out: {', '.join(told)} on {len(prompts)} {what} of {len(set(prompts))} prompts"
    )
    return facts

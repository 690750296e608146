"""Tuning a policy on single completions that were liked or not: KTO.

What counts as a gain or a loss is measured against how far the policy has gone from the reference
anyway: its KL, estimated on prompts with completions of other prompts. Each example has one such
partner for the whole run, the next example in the data with another prompt, so that the
reference's log-probs of these mismatched rows are computed once like those of the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tether import parallel
from tether.config import KTOConfig
from tether.core import direct_losses
from tether.data.batches import Row, buckets, split_by_prompt
from tether.data.formats import read_thumbs
from tether.data.shelf import TOKENS_IN_MEMORY, Shelf, picked, text_keys, watched
from tether.errors import DataError
from tether.models.language_model import LanguageModel, load, save
from tether.models.templates import keep_template
from tether.models.truncation import fit_completions, tell_of_truncated
from tether.progress import console
from tether.records import Thumb
from tether.rundir import StageFolder
from tether.train import loop
from tether.train.preference import held_out_facts
from tether.train.reference import ROWS_AT_ONCE, reference_logprobs, sequence_logprobs


class Example(NamedTuple):
    """A completion that was liked or not.

    `row` is its place among the rows, `partner` that of its prompt with another's completion.
    """

    row: int
    partner: int | None
    desirable: bool
    weight: float
    prompt: str


def train_kto(config: KTOConfig) -> Path:
    """Tune a policy on thumbs up and down and write it to `config.out`.

        L = Σ w λ σ(∓(β · log-ratio − β · KL)) / Σ w,   − for a liked completion, + for another

    with KL = max(0, mean of log π − log π_ref over the mismatched rows of the optimizer batch), a
    constant of each batch.

    Returns:
        The stage's folder; the model is in its `model/`.
    """
    folder = StageFolder(config, "kto", [config.model, config.data, config.reference])
    if folder.finished:
        return folder.path
    policy = load(
        config.model, config.compute, trainable=True, lora=config.lora, seed=config.seed, shard=True
    )
    thumbs = read_thumbs(config.data, config.columns)
    rows, examples = tokenize(policy, thumbs, config.max_length, config.data)
    if dropped := len(thumbs) - len(examples):
        console.print(f"{dropped} of {len(thumbs)} completions dropped: too long, or of weight 0")
    _tell_of_imbalance(config, examples)
    rows, examples = with_partners(rows, examples, _limit(policy, config.max_length), config.data)
    known = reference_logprobs(config, config.reference, folder, policy, rows)
    tuning = Tuning(policy, rows, known, config)
    keys = text_keys(example.prompt for example in examples)
    train, held = split_by_prompt(keys, config.held_out, config.seed)
    held_out = picked(examples, held)
    provenance = {"made_by": "tether kto", "model": config.model, "data": config.data}

    def write(path: Path) -> None:
        save(policy, path, provenance)

    steps = loop.fit(
        config,
        folder,
        policy.model,
        len(train),
        lambda chosen: tuning.backward([examples[train[i]] for i in chosen]),
        lambda: tuning.evaluate(held_out),
        write,
    )
    facts = {"steps": steps, "completions": len(train), "dropped_completions": dropped}
    facts |= held_out_facts(tuning.held_out(held_out), [str(keys[i]) for i in held], "completions")
    folder.write_model(write)
    return folder.finish(**facts)


# --- from records to token rows -------------------------------------------------------------------


def tokenize(
    policy: LanguageModel, thumbs: Sequence[Thumb], max_length: int, where: str
) -> tuple[Sequence[Row], Sequence[Example]]:
    """Token rows of the completions, without those that are too long or of weight 0.

    Raises:
        DataError: Nothing is left, or only one of the two kinds.
    """
    limit = _limit(policy, max_length)
    rows, examples = _shelves()
    truncated = 0
    keep_template(policy.tokenizer, (thumb.prompt for thumb in thumbs))
    for thumb in watched(thumbs, "tokenize"):
        (row,), cut = fit_completions(policy.tokenizer, thumb.prompt, [thumb.completion], limit)
        truncated += cut
        if len(row.ids) <= limit and thumb.weight > 0:
            examples.append(Example(len(rows), None, thumb.label, thumb.weight, str(thumb.prompt)))
            rows.append(row)
    tell_of_truncated(truncated, len(thumbs), "completions", limit)
    if not examples:
        raise DataError(
            f"{where}: each of {len(thumbs)} completions has weight 0 or exceeds {limit} tokens; "
            "raise max_length, or give shorter ones"
        )
    liked = {example.desirable for example in examples}
    if len(liked) == 1:
        missing = "false" if True in liked else "true"
        raise DataError(
            f"{where}: no completion with label {missing} is left among {len(examples)}; KTO "
            f"weighs both kinds against each other: add some with label {missing}"
        )
    return rows.plain(), examples.plain()


def _shelves() -> tuple[Shelf[Row], Shelf[Example]]:
    """Rows and examples that may be larger than the memory."""
    return Shelf(tuple, Row._make, TOKENS_IN_MEMORY), Shelf(tuple, Example._make)


def with_partners(
    rows: Sequence[Row], examples: Sequence[Example], limit: int, where: str
) -> tuple[Sequence[Row], Sequence[Example]]:
    """The same with a mismatched row behind them for each example: its prompt, another completion.

    That completion is of the first example after it (after the last comes the first again) that
    has another prompt and fits into `limit` tokens. An example that none fits gets no partner.

    Raises:
        DataError: There is one prompt only.
    """
    num, (every, paired) = len(examples), _shelves()
    for row in rows:
        every.append(row)
    if all(example.prompt == examples[0].prompt for example in examples):
        raise DataError(
            f"{where}: all {num} completions are of one prompt; KTO measures its KL on "
            "completions of other prompts: give two or more"
        )
    for i, example in enumerate(examples):
        row, partner = rows[example.row], None
        for other in (examples[(i + step) % num] for step in range(1, num)):
            theirs = rows[other.row]
            length = row.num_prompt + len(theirs.ids) - theirs.num_prompt
            if other.prompt != example.prompt and length <= limit:
                partner = len(every)
                every.append(theirs.after(row.ids[: row.num_prompt]))
                break
        paired.append(example._replace(partner=partner))
    return every.plain(), paired.plain()


def _limit(policy: LanguageModel, max_length: int) -> int:
    return min(max_length or policy.max_positions, policy.max_positions)


def _tell_of_imbalance(config: KTOConfig, examples: Sequence[Example]) -> None:
    num = len(examples)
    liked = sum(example.desirable for example in examples)
    up, down = config.desirable_weight * liked, config.undesirable_weight * (num - liked)
    if not down / 2 <= up <= 2 * down:
        console.print(
            f"{liked} of {num} completions are liked: with desirable_weight and "
            f"undesirable_weight they count as {up:g} against {down:g}; weights that make these "
            "about equal train both"
        )


# --- the loss of a batch --------------------------------------------------------------------------


@dataclass
class Tuning:
    """A policy, the rows it learns from, and their log-probs under the reference."""

    policy: LanguageModel
    rows: Sequence[Row]
    reference: Float[Tensor, " R"]
    config: KTOConfig

    def backward(self, examples: list[Example]) -> dict[str, float]:
        """Accumulate the gradient of an optimizer batch; returns what to log of it."""
        kl = self.kl(examples)
        num = sum(example.weight for example in examples)
        lengths = [len(self.rows[example.row].ids) for example in examples]
        parts: list[Tensor] = []
        size = parallel.rows_a_pass(len(examples), self.config.device_batch_size)
        for chosen, counts in parallel.dealt(buckets(lengths, size)):
            part = [examples[i] for i in chosen]
            logprobs, known, desirable = self.score(part)
            weight = torch.tensor([each.weight for each in part], device=logprobs.device)
            found = self.loss(logprobs, known, desirable, kl, weight=weight, num_examples=num)
            (counts * found.loss).backward()
            logprobs = weight * logprobs.detach() / num
            sides = logprobs[desirable].sum(), logprobs[~desirable].sum()
            parts.append(counts * torch.stack([*found, *sides]).detach())
        tokens = sum(self.rows[example.row].num_completion for example in examples)
        sums = parallel.summed(torch.stack(parts).sum(0))
        return {**figures(sums), "kl": kl, "tokens": tokens}

    @torch.no_grad()
    def kl(self, examples: Sequence[Example]) -> float:
        """KL(policy ‖ reference) in nats per completion, estimated on the mismatched rows."""
        partners = [example.partner for example in examples if example.partner is not None]
        lengths = [len(self.rows[i].ids) for i in partners]
        total = 0.0
        size = parallel.rows_a_pass(len(partners), self.config.device_batch_size or ROWS_AT_ONCE)
        for chosen, counts in parallel.dealt(buckets(lengths, size)):
            places = [partners[i] for i in chosen]
            logprobs = sequence_logprobs(self.policy, [self.rows[i] for i in places])
            gaps = (logprobs.cpu() - self.reference[places]).double()
            total += counts * float(gaps.sum())
        total = parallel.summed_figures({"kl": total})["kl"]
        return max(total / len(partners), 0.0) if partners else 0.0

    def score(
        self, examples: Sequence[Example]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Bool[Tensor, " N"]]:
        """Log-probs (nats) of completions, the same under the reference, True where liked."""
        places = [example.row for example in examples]
        logprobs = sequence_logprobs(self.policy, [self.rows[i] for i in places])
        desirable = torch.tensor([each.desirable for each in examples], device=logprobs.device)
        return logprobs, self.reference[places].to(logprobs.device), desirable

    def loss(
        self, policy: Tensor, known: Tensor, desirable: Tensor, kl: float, **weights: Any
    ) -> direct_losses.KTOLoss:
        """`direct_losses.kto` with this run's settings."""
        config = self.config
        return direct_losses.kto(
            policy,
            known,
            desirable,
            kl,
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
            **weights,
        )

    @torch.no_grad()
    def held_out(self, examples: Sequence[Example]) -> dict[str, list[float]]:
        """Loss and accuracy of each example by itself, whatever its weight."""
        found: dict[str, list[float]] = {"loss": [], "accuracy": []}
        kl = self.kl(examples)
        for start in range(0, len(examples), ROWS_AT_ONCE):
            scored = [each.split(1) for each in self.score(examples[start : start + ROWS_AT_ONCE])]
            for logprob, known, desirable in zip(*scored, strict=True):
                loss, accuracy, *_ = self.loss(logprob, known, desirable, kl)
                found["loss"].append(float(loss))
                found["accuracy"].append(float(accuracy))
        return found

    def evaluate(self, examples: Sequence[Example]) -> dict[str, float]:
        """Means on held-out examples."""
        found = self.held_out(examples)
        return {f"held_out_{name}": float(np.mean(each)) for name, each in found.items() if each}


def figures(sums: Float[Tensor, " 7"]) -> dict[str, float]:
    """What to log of a batch; a mean over completions that it has none of is NaN.

    Args:
        sums: The fields of a `KTOLoss`, log-probs of the liked and of the others over N.
    """
    loss, accuracy, liked, *rest = sums.tolist()
    names = ("desirable_reward", "undesirable_reward", "desirable_logprob", "undesirable_logprob")
    shares = [liked, 1 - liked] * 2
    means = [x / part if part > 1e-6 else math.nan for x, part in zip(rest, shares, strict=True)]
    return {"loss": loss, "accuracy": accuracy, **dict(zip(names, means, strict=True))}

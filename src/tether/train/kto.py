"""Tuning a policy on single completions that were liked or not: KTO.

What counts as a gain or a loss is measured against how far the policy has gone from the reference
anyway: its KL, estimated on prompts with completions of other prompts. Each example has one such
partner for the whole run, the next example in the data with another prompt, so that the
reference's log-probs of these mismatched rows are computed once like those of the others.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tether.config import KTOConfig
from tether.core import direct_losses
from tether.data.batches import Row, buckets, split_by_prompt
from tether.data.formats import read_thumbs
from tether.errors import DataError
from tether.models.chat import encode
from tether.models.language_model import LanguageModel, load, save
from tether.progress import console
from tether.records import Thumb
from tether.rundir import StageFolder
from tether.train import loop
from tether.train.preference import interval_facts
from tether.train.reference import ROWS_AT_ONCE, reference_logprobs, sequence_logprobs


class Example(NamedTuple):
    """A completion that was liked or not; `row` is also its place among all examples."""

    row: int
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
    policy = load(config.model, config.compute, trainable=True)
    thumbs = read_thumbs(config.data)
    rows, examples = tokenize(policy, thumbs, config.max_length, config.data)
    if dropped := len(thumbs) - len(examples):
        console.print(f"{dropped} of {len(thumbs)} completions dropped: too long, or of weight 0")
    _tell_of_imbalance(config, examples)
    every = [*rows, *mismatched(rows, examples, _limit(policy, config.max_length), config.data)]
    known = reference_logprobs(config, config.reference, folder, policy, every)
    tuning = Tuning(policy, every, known, config)
    keys = [example.prompt for example in examples]
    train, held = split_by_prompt(keys, config.held_out, config.seed)
    held_out = [examples[i] for i in held]
    steps = loop.fit(
        config,
        folder,
        policy.model,
        len(train),
        lambda chosen: tuning.backward([examples[train[i]] for i in chosen]),
        lambda: tuning.evaluate(held_out),
    )
    facts = {"steps": steps, "completions": len(train), "dropped_completions": dropped}
    facts |= interval_facts(tuning.held_out(held_out), [keys[i] for i in held], "completions")
    provenance = {"made_by": "tether kto", "model": config.model, "data": config.data}
    folder.write_model(lambda path: save(policy, path, provenance))
    return folder.finish(**facts)


# --- from records to token rows -------------------------------------------------------------------


def tokenize(
    policy: LanguageModel, thumbs: list[Thumb], max_length: int, where: str
) -> tuple[list[Row], list[Example]]:
    """Token rows of the completions, without those that are too long or of weight 0.

    Raises:
        DataError: Nothing is left, or only one of the two kinds.
    """
    limit = _limit(policy, max_length)
    rows: list[Row] = []
    examples: list[Example] = []
    for thumb in thumbs:
        encoded = encode(policy.tokenizer, thumb.prompt, thumb.completion)
        if len(encoded.ids) <= limit and thumb.weight > 0:
            examples.append(Example(len(rows), thumb.label, thumb.weight, str(thumb.prompt)))
            rows.append(Row(encoded.ids, encoded.num_prompt))
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
    return rows, examples


def mismatched(
    rows: list[Row], examples: list[Example], limit: int, where: str
) -> list[Row]:
    """Of each example, its prompt with the completion of its partner.

    The partner is the first example after it, and after the last the first again, that has another
    prompt and whose completion fits.

    Raises:
        DataError: An example has no partner.
    """
    found: list[Row] = []
    for example in examples:
        row = rows[example.row]
        for other in (*examples[example.row + 1 :], *examples[: example.row]):
            ids = row.ids[: row.num_prompt] + rows[other.row].ids[rows[other.row].num_prompt :]
            if other.prompt != example.prompt and len(ids) <= limit:
                found.append(Row(ids, row.num_prompt))
                break
        else:
            raise DataError(
                f"{where}: no completion of another prompt fits behind a prompt of "
                f"{row.num_prompt} tokens; KTO's KL needs one: give two prompts or more, or "
                f"raise max_length={limit}"
            )
    return found


def _limit(policy: LanguageModel, max_length: int) -> int:
    return min(max_length or policy.max_positions, policy.max_positions)


def _tell_of_imbalance(config: KTOConfig, examples: list[Example]) -> None:
    num = len(examples)
    liked = sum(example.desirable for example in examples)
    up, down = config.desirable_weight * liked, config.undesirable_weight * (num - liked)
    if not down / 2 <= up <= 2 * down:
        console.print(
            f"{liked} of {num} completions are liked: with desirable_weight and "
            f"undesirable_weight they count as {up:g} against {down:g}; weights that make these "
            "about equal train both"
        )

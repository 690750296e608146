"""Footprints of training on a file: `sft`, `reward`, and the preference methods.

The batch is the fullest of those that the run will draw, where its data is there already.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch

from tether.config import (
    FitConfig,
    GenerateConfig,
    KTOConfig,
    PreferenceConfig,
    RewardModelConfig,
    SFTConfig,
)
from tether.data import formats
from tether.data.batches import Row, buckets, split_by_prompt, step_indices
from tether.data.comparisons import Comparisons, Order, Pair, Verdict, group
from tether.footprint.models import dry_run, language_model, reward_model
from tether.footprint.parts import (
    BATCHES_LOOKED_AT,
    DEVICE_BATCHES,
    Batches,
    Footprint,
    Phase,
    bytes_of,
    phases_of,
)
from tether.models.chat import encode_prompt
from tether.models.language_model import LanguageModel
from tether.models.scalar_head import RewardModel
from tether.records import Text
from tether.train import kto, preference, reward, sft
from tether.train.reference import ROWS_AT_ONCE, sequence_logprobs


@dataclass(frozen=True, slots=True)
class Fit:
    """Examples of a fit: the tokens of each, and whether they are the real ones."""

    config: FitConfig
    tokens: list[int]
    known: bool

    @property
    def steps(self) -> int | None:
        """Optimizer steps, as `loop.fit` counts them."""
        passes = self.config.epochs * len(self.tokens) / self.config.batch_size
        return self.config.max_steps or (math.ceil(passes) if self.known else None)

    def fullest(self) -> list[int]:
        """The batch whose first forward pass has the most tokens."""
        config, num = self.config, len(self.tokens)
        steps = range(min(self.steps or 1, BATCHES_LOOKED_AT))
        batches = (step_indices(num, config.batch_size, config.seed, step) for step in steps)
        first = config.device_batch_size or None
        return max(
            batches,
            key=lambda batch: sum(sorted((self.tokens[i] for i in batch), reverse=True)[:first]),
        )

    def batches(self, rows: int) -> Batches:
        """The batch table; `rows` are those of one optimizer batch."""
        samples = self.steps * self.config.batch_size if self.steps else None
        tokens = None
        if samples and self.known:
            tokens = round(samples * sum(self.tokens) / len(self.tokens))
        return Batches(
            device=min(self.config.device_batch_size or rows, rows),
            optimizer=self.config.batch_size,
            steps=self.steps,
            samples=samples,
            tokens=tokens,
        )


def of_sft(config: SFTConfig, *, known: bool) -> Footprint:
    """Supervised fine-tuning; `known` = its data is there already."""
    with dry_run(config.model, config.compute) as (dry, place):
        model = language_model(config.model, place, trainable=True, lora=config.lora)
        dry.adopt(model.model)
        limit = longest_row(config, model.max_positions)
        train, held, data = [(Row([0] * limit, 1), 1.0)] * config.batch_size, [], 0
        if known:
            train, held, data = _demonstrations(config, model)
        fit = Fit(config, [len(row.ids) for row, _ in train], known)
        batch = [train[i] for i in fit.fullest()]
        longest = sorted(held, key=lambda row: -len(row.ids))[: sft.ROWS_PER_EVALUATION_BATCH]
        with dry.phase() as evaluation:
            sft.held_out_loss(model, longest)
        with dry.phase() as training:
            parts = sft.losses(model, batch, config.device_batch_size)
            for loss in islice(parts, DEVICE_BATCHES):
                loss.backward()
        phases = phases_of(model.model.parameters(), train=training, evaluate=evaluation)
    notes = [] if known else [_unseen_rows(limit)]
    return Footprint(phases, fit.batches(config.batch_size), notes, data)


def _demonstrations(
    config: SFTConfig, model: LanguageModel
) -> tuple[list[tuple[Row, float]], list[Row], int]:
    """Rows to train on with their weights, rows held out as `train_sft` does, and their bytes."""
    records = formats.read_demonstrations(config.data, config.columns)
    rows, _ = sft.tokenize(model, records, config.max_length, config.data)
    pairs = [(row, record) for row, record in zip(rows, records, strict=True) if row]
    keys = [str(record.prompt or record.completion) for _, record in pairs]
    train, held = split_by_prompt(keys, config.held_out, config.seed)
    examples = [(pairs[i][0], pairs[i][1].weight) for i in train]
    return examples, [pairs[i][0] for i in held], bytes_of(pairs)


def of_reward(
    config: RewardModelConfig, *, known: bool, answers: GenerateConfig | None = None
) -> Footprint:
    """A reward model.

    Args:
        config: The stage's settings.
        known: Its data is there already.
        answers: If it is not: the stage whose completions are to be ranked.
    """
    with dry_run(config.model, config.compute) as (dry, place):
        model = reward_model(
            config.model, place, trainable=True, lora=config.lora, heads=config.heads
        )
        dry.adopt(model.model)
        groups, notes = _comparisons(config, model, known, answers)
        counted = known or answers is not None
        share = config.held_out if counted else 0.0
        train, held = split_by_prompt([each.key for each in groups], share, config.seed)
        tokens = [sum(len(row.ids) for row in groups[i].rows) for i in train]
        fit = Fit(config, tokens, counted)
        batch = [groups[train[i]] for i in fit.fullest()]
        with dry.phase() as evaluation:
            part = [groups[i] for i in held[: reward.GROUPS_PER_EVALUATION_BATCH]]
            reward.held_out(model, part, config.loss)
        with dry.phase() as training:
            for (_, _, loss), _ in islice(reward.losses(model, batch, config), DEVICE_BATCHES):
                loss.backward()
        phases = phases_of(model.model.parameters(), train=training, evaluate=evaluation)
    batches = fit.batches(sum(len(each.rows) for each in batch))
    return Footprint(phases, batches, notes, bytes_of(groups) if known else 0)


def _comparisons(
    config: RewardModelConfig, model: RewardModel, known: bool, answers: GenerateConfig | None
) -> tuple[Sequence[Comparisons], list[str]]:
    """Comparisons as they are, or as they are expected, and what was assumed for them."""
    if known:
        return reward.tokenize(model, reward.read(config), config)[0], []
    limit = longest_row(config, model.longest)
    if answers is None:
        one = _group("", limit, 2, config.heads)
        return [one] * config.batch_size, [_unseen_rows(limit)]
    groups = []
    for record in formats.read_prompts(answers.prompts, answers.columns):
        # A completion that was cut at the length limit is closed with an end token here.
        length = len(encode_prompt(model.tokenizer, record.prompt)) + 1
        length += answers.sampling.max_new_tokens
        groups.append(_group(record.prompt, min(length, limit), answers.num, config.heads))
    return groups, ["its data is not there yet: completions are taken to reach the length limit"]


def _group(prompt: Text, length: int, num: int, heads: int) -> Comparisons:
    """Completions of one prompt, each `length` tokens with it, and a judgment of every kind."""
    return Comparisons(
        prompt,
        completions=[""] * num,
        pairs=[Pair(0, num - 1)],
        orders=[Order(tuple(range(num)), tuple(map(float, range(num))))],
        verdicts=[Verdict(0, liked=True)],
        rows=[Row([0] * length, 1)] * num,
        copies=(1,) * heads,
    )


def of_preference(config: PreferenceConfig, *, known: bool) -> Footprint:
    """DPO, IPO, SimPO, ORPO or KTO; `known` = its data is there already."""
    with dry_run(config.model, config.compute) as (dry, place):
        model = language_model(config.model, place, trainable=True, lora=config.lora)
        dry.adopt(model.model)
        limit = longest_row(config, model.max_positions)
        side = 1 if isinstance(config, KTOConfig) else 2
        train, held, data = [[Row([0] * limit, 1)] * side] * config.batch_size, [], 0
        if known:
            train, held, data = _preferences(config, model)
        fit = Fit(config, [sum(len(row.ids) for row in rows) for rows in train], known)
        batch = [train[i] for i in fit.fullest()]
        longest = sorted(chain(*train, *held), key=lambda row: -len(row.ids))[:ROWS_AT_ONCE]
        with dry.phase() as looking, torch.no_grad():
            path = getattr(config, "reference", "none")
            other = language_model(path, place) if path not in ("", "none") else model
            if other is not model:
                dry.adopt(other.model)
            sequence_logprobs(other, longest[: config.device_batch_size or None])
        del other
        with dry.phase() as evaluation, torch.no_grad():
            sequence_logprobs(model, longest)
        num = max(config.device_batch_size // side, 1) if config.device_batch_size else 0
        with dry.phase() as training:
            parts = buckets([max(len(row.ids) for row in rows) for rows in batch], num)
            for part in parts[:DEVICE_BATCHES]:
                rows = [row for i in part for row in batch[i]]
                sequence_logprobs(model, rows).sum().backward()  # a loss of these holds no more
        phases = phases_of(model.model.parameters(), train=training, evaluate=evaluation)
    notes = [] if known else [_unseen_rows(limit)]
    reference = [Phase("reference", looking)]
    return Footprint([*reference, *phases], fit.batches(side * len(batch)), notes, data)


def _preferences(
    config: PreferenceConfig, model: LanguageModel
) -> tuple[list[list[Row]], list[list[Row]], int]:
    """The rows of each example to train on and of each held out, and their bytes.

    Those of a pair are two; of a KTO example one, since its other is never trained on.
    """
    if isinstance(config, KTOConfig):
        thumbs = formats.read_thumbs(config.data, config.columns)
        rows, examples = kto.tokenize(model, thumbs, config.max_length, config.data)
        found = [[rows[example.row]] for example in examples]
        prompts = [example.prompt for example in examples]
    else:
        groups = group(formats.read_comparisons(config.data, config.columns))
        groups, _ = preference.tokenize(model, groups, config.max_length, config.data)
        rows, pairs, prompts = preference.flatten(groups)
        found = [[rows[pair.winner], rows[pair.loser]] for pair in pairs]
    train, held = split_by_prompt(prompts, config.held_out, config.seed)
    return [found[i] for i in train], [found[i] for i in held], bytes_of(rows)


def longest_row(config: FitConfig, positions: int) -> int:
    """The longest row that the settings allow, in tokens."""
    return min(config.max_length or positions, positions)


def _unseen_rows(limit: int) -> str:
    return (
        f"its data is not there yet: every row is taken to have {limit} tokens "
        "(max_length, or the model's positions)"
    )

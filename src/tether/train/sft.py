"""Supervised fine-tuning: raise the log-prob of demonstrated completions."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tether import parallel
from tether.config import SFTConfig
from tether.data.batches import Row, device_batches, split_by_prompt
from tether.data.formats import read_demonstrations
from tether.data.shelf import Made, text_keys
from tether.errors import DataError
from tether.models.chat import encode_prompt
from tether.models.language_model import LanguageModel, completion_logprobs, load, save
from tether.models.templates import keep_template
from tether.models.truncation import fit_demonstration, tell_of_truncated
from tether.progress import console
from tether.records import Demonstration
from tether.rundir import StageFolder
from tether.train import loop

ROWS_PER_EVALUATION_BATCH = 64


def train_sft(config: SFTConfig) -> Path:
    """Fine-tune a language model on demonstrations and write it to `config.out`.

        L = −Σ log π(completion token) / number of completion tokens of the optimizer batch

    Returns:
        The stage's folder; the model is in its `model/`.
    """
    folder = StageFolder(config, "sft", [config.model, config.data])
    if folder.finished:
        return folder.path
    language_model = load(
        config.model, config.compute, trainable=True, lora=config.lora, seed=config.seed, shard=True
    )
    demonstrations = read_demonstrations(config.data, config.columns)
    read = read_examples if isinstance(demonstrations, list) else examples_on_access
    examples, held_rows, skipped = read(config, language_model, demonstrations)
    provenance = {"made_by": "tether sft", "model": config.model, "data": config.data}

    def write(path: Path) -> None:
        save(language_model, path, provenance)

    steps = loop.fit(
        config,
        folder,
        language_model.model,
        len(examples),
        lambda chosen: _backward(
            language_model, [examples[i] for i in chosen], config.device_batch_size
        ),
        lambda: _held_out_metrics(language_model, held_rows),
        write,
    )
    facts = {"steps": steps, "demonstrations": len(examples), "held_out": len(held_rows)}
    loss = held_out_loss(language_model, held_rows)
    folder.write_model(write)
    perplexity = math.exp(loss) if loss is not None else None
    facts |= {"held_out_loss": loss, "held_out_perplexity": perplexity, "skipped": skipped}
    return folder.finish(**facts)


class Examples(NamedTuple):
    """What is trained on, with weights, what is held out, and how many were skipped, if known."""

    train: Sequence[tuple[Row, float]]
    held_out: Sequence[Row]
    skipped: int | None


def read_examples(
    config: SFTConfig, language_model: LanguageModel, demonstrations: Sequence[Demonstration]
) -> Examples:
    """The demonstrations as token rows, without those that are too long or of weight 0."""
    rows, skipped = tokenize(
        language_model, demonstrations, config.max_length, config.data, config.turns
    )
    pairs = [(row, d) for row, d in zip(rows, demonstrations, strict=True) if row]
    keys = [str(demonstration.prompt or demonstration.completion) for _, demonstration in pairs]
    train, held = split_by_prompt(keys, config.held_out, config.seed)
    if skipped:
        console.print(f"{skipped} of {len(rows)} demonstrations skipped: too long, or of weight 0")
    _tell_of_straddling(language_model, pairs)
    examples = [(pairs[i][0], pairs[i][1].weight) for i in train]
    return Examples(examples, [pairs[i][0] for i in held], skipped)


def examples_on_access(
    config: SFTConfig, language_model: LanguageModel, demonstrations: Sequence[Demonstration]
) -> Examples:
    """The same of demonstrations that are on the disk, each tokenized when its turn comes.

    So training begins at once, however many there are. In place of one that is too long, or of
    weight 0, stands the next one on its side of the split.
    """
    console.print(f"{len(demonstrations)} demonstrations, tokenized when their turn comes")
    keys = text_keys(str(d.prompt or d.completion) for d in demonstrations)
    train, held = split_by_prompt(keys, config.held_out, config.seed)
    keep_template(language_model.tokenizer, (each.prompt for each in demonstrations))
    settings = config.max_length, config.turns, config.data
    on_access = partial(row_on_access, language_model, demonstrations, *settings)
    examples = Made(len(train), partial(on_access, train))
    rows = Made(len(held), lambda i: on_access(held, i)[0])
    return Examples(examples, rows, None)


def row_on_access(
    language_model: LanguageModel,
    demonstrations: Sequence[Demonstration],
    max_length: int,
    turns: Literal["all", "last"],
    where: str,
    places: Sequence[int],
    first: int,
) -> tuple[Row, float]:
    """The row and weight of the first usable demonstration at `places`, from `first` on.

    Raises:
        DataError: None of the next thousand can be used.
    """
    limit = min(max_length or language_model.max_positions, language_model.max_positions)
    for step in range(min(len(places), 1000)):
        place = places[(first + step) % len(places)]
        demonstration = demonstrations[place]
        weight, at = demonstration.weight, f"{where}: demonstration {place + 1}"
        row, _ = token_row(language_model, demonstration, at, limit, turns)
        if len(row.ids) <= limit and weight > 0:
            return row, weight
    raise DataError(
        f"{where}: a thousand demonstrations one after the other exceed {limit} tokens or have "
        "weight 0; raise max_length, or give shorter ones"
    )


def tokenize(
    language_model: LanguageModel,
    demonstrations: Sequence[Demonstration],
    max_length: int,
    where: str,
    turns: Literal["all", "last"] = "all",
) -> tuple[list[Row | None], int]:
    """Rows of the demonstrations, None where one is too long or weighs 0, and how many are.

    Chats that are too long lose their oldest turns instead, which is told.

    Raises:
        DataError: A row has nothing to learn from, or none is left.
    """
    limit = min(max_length or language_model.max_positions, language_model.max_positions)
    rows: list[Row | None] = []
    truncated = 0
    keep_template(language_model.tokenizer, (each.prompt for each in demonstrations))
    for i, demonstration in enumerate(demonstrations):
        at = f"{where}: demonstration {i + 1}"
        row, cut = token_row(language_model, demonstration, at, limit, turns)
        truncated += cut
        rows.append(row if len(row.ids) <= limit and demonstration.weight > 0 else None)
    tell_of_truncated(truncated, len(rows), "demonstrations", limit)
    skipped = rows.count(None)
    if skipped == len(rows):
        raise DataError(
            f"{where}: every demonstration exceeds {limit} tokens or has weight 0; "
            "raise max_length, or give shorter ones"
        )
    return rows, skipped


def token_row(
    language_model: LanguageModel,
    demonstration: Demonstration,
    where: str,
    limit: int,
    turns: Literal["all", "last"],
) -> tuple[Row, bool]:
    """The token row of a demonstration, and whether a chat has lost turns to fit into `limit`.

    Raises:
        DataError: It has nothing to learn from.
    """
    texts = demonstration.prompt, demonstration.completion
    (row,), cut = fit_demonstration(language_model.tokenizer, *texts, limit, turns)
    if not demonstration.completion or row.num_completion < 1:
        raise DataError(
            f"{where} has no completion token to learn from; give every record a completion"
        )
    return row, cut


def _tell_of_straddling(
    language_model: LanguageModel, pairs: list[tuple[Row, Demonstration]]
) -> None:
    """Say for how many prompts the tokens that sampling starts from are not those trained on."""
    prompted = [(row, demonstration.prompt) for row, demonstration in pairs if demonstration.prompt]
    tokenizer = language_model.tokenizer
    # The last tokens tell it, also where a chat has lost its first turns.
    differ = sum(
        encode_prompt(tokenizer, prompt)[-2:] != row.ids[: row.num_prompt][-2:]
        for row, prompt in prompted
    )
    if differ:
        console.print(
            f"in {differ} of {len(prompted)} demonstrations a token reaches over the end of the "
            "prompt; the model will start such completions from tokens it has not been trained on"
        )


def _backward(
    language_model: LanguageModel, batch: list[tuple[Row, float]], device_batch_size: int
) -> dict[str, float]:
    """Accumulate the gradient of an optimizer batch; returns its loss and its tokens."""
    loss = torch.zeros(())
    for part in losses(language_model, batch, device_batch_size):
        part.backward()
        loss += part.detach().cpu()
    tokens = sum(row.num_completion for row, _ in batch)
    return {"loss": float(parallel.summed(loss)), "tokens": tokens}


def losses(
    language_model: LanguageModel, batch: list[tuple[Row, float]], device_batch_size: int
) -> Iterator[Float[Tensor, ""]]:
    """The loss of an optimizer batch in parts, one a forward pass; their sum is the whole.

    Of several processes each gets a part of the passes; the sum over all of them is the whole.

    Each part is divided by the completion tokens of the whole batch, so that its size does not
    depend on how the batch is cut.
    """
    num_tokens = sum(row.num_completion * weight for row, weight in batch)
    rows_a_pass = parallel.rows_a_pass(len(batch), device_batch_size)
    passes = device_batches([row for row, _ in batch], rows_a_pass)
    for (chunk, tokens), counts in parallel.dealt(passes):
        weights = [batch[i][1] for i in chunk for _ in range(batch[i][0].num_completion)]
        logprobs, _ = completion_logprobs(language_model, tokens)
        loss = -(logprobs * torch.tensor(weights, device=logprobs.device)).sum() / num_tokens
        yield counts * loss


@torch.no_grad()
def held_out_loss(language_model: LanguageModel, rows: Sequence[Row]) -> float | None:
    """Mean negative log-prob per completion token (nats); None without rows."""
    if not rows:
        return None
    total = 0.0
    for _, batch in device_batches(rows, ROWS_PER_EVALUATION_BATCH):
        logprobs, _ = completion_logprobs(language_model, batch)
        total -= float(logprobs.double().sum())
    return total / sum(row.num_completion for row in rows)


def _held_out_metrics(language_model: LanguageModel, held: Sequence[Row]) -> dict[str, float]:
    loss = held_out_loss(language_model, held)
    if loss is None:
        return {}
    return {"held_out_loss": loss, "held_out_perplexity": math.exp(loss)}

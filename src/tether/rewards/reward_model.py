"""Scores of texts by a reward model: the text is tokenized anew and read at its end token."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tether.data.batches import Row, buckets
from tether.models.place import at_work
from tether.models.scalar_head import RewardModel
from tether.records import Text

ROWS_PER_BATCH = 64


def score_texts(
    reward: RewardModel, prompts: list[Text], completions: list[str] | list[Text]
) -> list[float]:
    """Raw score (reward units) of each completion by a reward model with one head.

    Rows longer than the model's positions are cut there, the end token kept (chats lose their
    oldest turns before, an encoder's rows the beginning of the prompt). A score depends neither on
    padding nor on which rows are scored together.
    """
    return logits_of_texts(reward, prompts, completions)[:, 0].tolist()


def logits_of_texts(
    reward: RewardModel, prompts: list[Text], completions: list[str] | list[Text]
) -> Float[Tensor, "N H"]:
    """The same by every head of an ensemble."""
    rows = [
        scoring_row(reward, prompt, completion, reward.longest)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return logits_of_rows(reward, rows)


@torch.no_grad()
def logits_of_rows(reward: RewardModel, rows: Sequence[Row]) -> Float[Tensor, "N H"]:
    """All outputs for each row, on the CPU, in batches of rows of similar length."""
    logits = torch.zeros(len(rows), reward.head.out_features)
    if rows:
        with at_work(reward.model, reward.place):
            for chunk in buckets([len(row.ids) for row in rows], ROWS_PER_BATCH):
                logits[chunk] = reward.logits([rows[i] for i in chunk]).cpu()
    return logits


def scoring_row(reward: RewardModel, prompt: Text, completion: Text, limit: int) -> Row:
    """Prompt and completion, for a decoder with the end token, as a row of at most `limit`."""
    row = reward.row(prompt, completion, limit)
    if len(row.ids) <= limit:
        return row
    ids = [*row.ids[: limit - 1], row.ids[-1]]
    return Row(ids, min(row.num_prompt, len(ids) - 1))

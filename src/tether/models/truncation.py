"""Chats that are too long lose their oldest turns, until they fit.

A chat is cut where the user speaks, so that a template which wants turns to alternate takes what is
left; the system's messages at its beginning stay. Strings are never cut: where the part that
matters stands in them is not known.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase

from tether.data.batches import Row
from tether.models.chat import encode, encode_prompt
from tether.models.templates import SYSTEM
from tether.progress import console
from tether.records import Message, Text

Version = TypeVar("Version")


class Fitted(NamedTuple):
    """Rows, and whether turns were left out for them."""

    rows: list[Row]
    truncated: bool


def fit_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, limit: int
) -> tuple[list[int], bool]:
    """Token ids of a prompt, at most `limit` if that can be, and whether turns were left out."""

    def rows(version: Text) -> list[Row]:
        ids = encode_prompt(tokenizer, version)
        return [Row(ids, len(ids))]

    found = _fit(shortened(prompt), rows, limit)
    return found.rows[0].ids, found.truncated


def fit_completions(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, completions: Sequence[Text], limit: int
) -> Fitted:
    """Rows of one prompt with each of its completions, all with the same turns of the prompt.

    As many of the newest turns are kept as let every completion fit that could fit at all; the
    others' rows exceed `limit` tokens.
    """
    return _fit(
        shortened(prompt),
        lambda version: [encode(tokenizer, version, c) for c in completions],
        limit,
    )


def fit_demonstration(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Text,
    completion: Text,
    limit: int,
    turns: Literal["all", "last"] = "all",
) -> Fitted:
    """The row of a demonstration, which may also lose turns that it would have learned from."""
    versions = [(version, completion) for version in shortened(prompt)]
    if isinstance(prompt, list) and isinstance(completion, list):
        head = prompt[: _system(prompt)]
        for i, message in enumerate(completion):
            if message["role"] == "user":
                rest = completion[i:]
                first = next((j for j, m in enumerate(rest) if m["role"] == "assistant"), None)
                if first is not None:
                    versions.append((head + rest[:first], rest[first:]))
    return _fit(versions, lambda version: [encode(tokenizer, *version, turns=turns)], limit)


def shortened(prompt: Text) -> list[Text]:
    """The prompt, then what is left of it without ever more of its oldest turns."""
    if isinstance(prompt, str):
        return [prompt]
    system = _system(prompt)
    starts = [i for i in range(system + 1, len(prompt)) if prompt[i]["role"] == "user"]
    return [prompt, *(prompt[:system] + prompt[i:] for i in starts)]


def tell_of_truncated(count: int, total: int, what: str, limit: int) -> None:
    """Say how many chats lost turns, if any did."""
    if count:
        console.print(
            f"{count} of {total} {what} truncated: their oldest turns are left out (the system "
            f"prompt stays) to fit into {limit} tokens"
        )


def _system(messages: list[Message]) -> int:
    """How many of the first messages are the system's."""
    return next((i for i, m in enumerate(messages) if m["role"] not in SYSTEM), len(messages))


def _fit(versions: Sequence[Version], rows: Callable[[Version], list[Row]], limit: int) -> Fitted:
    """Rows of the first version that fits; of the whole one where not even the last does."""
    whole = rows(versions[0])
    if len(versions) == 1 or all(len(row.ids) <= limit for row in whole):
        return Fitted(whole, False)
    can_fit = [len(row.ids) <= limit for row in rows(versions[-1])]
    if not any(can_fit):
        return Fitted(whole, False)

    def fits(version: Version) -> bool:
        each = zip(rows(version), can_fit, strict=True)
        return all(len(row.ids) <= limit for row, could in each if could)

    at = bisect_left(versions, True, key=fits)
    return Fitted(rows(versions[at]), at > 0)

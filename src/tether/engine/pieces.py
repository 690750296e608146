"""A completion's text while it is being sampled: pieces that are whole characters."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from tether.engine.decode import Token

BROKEN = "\ufffd"  # what bytes that are no whole character are decoded to


class Piece(NamedTuple):
    """Text that some tokens add, mostly one of them; "" for an end token or other special ones."""

    text: str
    tokens: list[Token]


def pieces(
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    tokens: Iterable[Token],
    stop_ids: Iterable[int] = (),
) -> Iterator[Piece]:
    """Tokens of a completion with the text that they add, as soon as that is certain.

    The first bytes of a character wait for the others. Only the last tokens are decoded anew each
    time, together with the piece before them, which tells whether a blank stands between.

    Args:
        tokenizer: The model's.
        prompt: Token ids before the completion.
        tokens: The completion's, one after the other.
        stop_ids: Tokens that end a completion; they add no text.
    """
    stops = frozenset(stop_ids)
    ids, start, read = list(prompt), 0, len(prompt)  # ids[start:read] are told and decoded anew
    waiting: list[Token] = []
    for token in tokens:
        waiting.append(token)
        if token.id in stops:
            break
        ids.append(token.id)
        text = _added(tokenizer, ids, start, read)
        if text and not text.endswith(BROKEN):
            yield Piece(text, waiting)
            start, read, waiting = read, len(ids), []
    if waiting:
        yield Piece(_added(tokenizer, ids, start, read), waiting)


def _added(tokenizer: PreTrainedTokenizerBase, ids: list[int], start: int, read: int) -> str:
    before, whole = (
        tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for part in (ids[start:read], ids[start:])
    )
    assert isinstance(before, str)
    assert isinstance(whole, str)
    return whole[len(before) :]

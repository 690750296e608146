"""Where in a rendered conversation the assistant speaks, to the character.

Chat templates do not say it (few have `{% generation %}`), so it is found by rendering. The last
turn starts where the prompt ends. An earlier turn is what a conversation that ends with it has and
one that ends before it has not, if both open the whole text. Some templates write earlier turns
otherwise once others follow (they move the system prompt, drop thoughts, trim): there the turn's
content is replaced by a mark, and what stays equal on both sides of the mark encloses the turn.
"""

from typing import NamedTuple, NoReturn

from transformers import PreTrainedTokenizerBase

from tether.errors import DataError, ModelError
from tether.models.templates import render
from tether.records import Message, Text, shown

MARK = "\ue0f1turn\ue0f1"  # private characters, which no template trims or splits


class Span(NamedTuple):
    """Characters [start, stop) of a text."""

    start: int
    stop: int


def conversation(
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[Message],
    completion: Text,
    *,
    end: bool = True,
    last: bool = False,
) -> tuple[str, list[Span]]:
    """A prompt and its completion as text, and the spans that the assistant says.

    A span begins where sampling would and reaches to the end of the turn as the template writes it.

    Args:
        tokenizer: Its chat template is used.
        prompt: Messages; the assistant's among them are context.
        completion: What the assistant says, or messages that end with the assistant's.
        end: False for a completion that was cut: its text stays open.
        last: True gives the last turn alone; False all of the assistant's in the completion.

    Raises:
        DataError: The completion does not end with the assistant.
        ModelError: The template writes turns in a way that does not tell where they are.
    """
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if not completion:
        raise DataError("completion=[] has no message: at least the assistant's is needed")
    if completion[-1]["role"] != "assistant":
        raise DataError(
            f"completion={shown(completion)} ends with the role {completion[-1]['role']!r}: it "
            "must end with what the assistant says"
        )
    whole = prompt + completion
    if not end and len(completion) == 1:
        start = render(tokenizer, prompt, open_turn=True)
        text = start + completion[0]["content"]
        return text, [Span(len(start), len(text))]
    text = render(tokenizer, whole, open_turn=False)
    places = [i for i in range(len(prompt), len(whole)) if whole[i]["role"] == "assistant"]
    return text, [_turn(tokenizer, whole, i, text) for i in (places[-1:] if last else places)]


def _turn(tokenizer: PreTrainedTokenizerBase, messages: list[Message], i: int, text: str) -> Span:
    """The span of message i in the text of all messages."""
    opening = render(tokenizer, messages[:i], open_turn=True)
    if i == len(messages) - 1:
        if not text.startswith(opening):
            raise ModelError(
                f"the chat template of {tokenizer.name_or_path!r} writes a prompt differently once "
                f"the answer follows: {shown(opening[-60:])} does not open it. Use a template "
                "whose generation prompt is how it begins an assistant's message"
            )
        return Span(len(opening), len(text))
    closed = render(tokenizer, messages[: i + 1], open_turn=False)
    if closed.startswith(opening) and text.startswith(closed):
        return Span(len(opening), len(closed))
    return _marked_turn(tokenizer, messages, i, text, opening)


def _marked_turn(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], i: int, text: str, opening: str
) -> Span:
    """The same, where the conversation up to message i is no beginning of the text."""
    marked = [*messages[:i], {**messages[i], "content": MARK}, *messages[i + 1 :]]
    before, mark, after = render(tokenizer, marked, open_turn=False).partition(MARK)
    start, stop = len(before), len(text) - len(after)
    if not (mark and start <= stop and text.startswith(before) and text.endswith(after)):
        _refuse(tokenizer, messages[i])
    # What the template writes between the generation prompt and the content, and behind it, where
    # the conversation ends with this turn: both are the assistant's to say here, too.
    alone = render(tokenizer, marked[: i + 1], open_turn=False)
    if not alone.startswith(opening) or MARK not in alone:
        _refuse(tokenizer, messages[i])
    lead, _, tail = alone[len(opening) :].partition(MARK)
    header = opening.removeprefix(render(tokenizer, messages[:i], open_turn=False))
    if before.endswith(header + lead):
        start -= len(lead)
    elif header == opening or not before.endswith(header):
        _refuse(tokenizer, messages[i])
    ends = (each for each in (tail, tail.rstrip()) if after.startswith(each))
    return Span(start, stop + len(next(ends, "")))


def _refuse(tokenizer: PreTrainedTokenizerBase, message: Message) -> NoReturn:
    raise ModelError(
        f"the chat template of {tokenizer.name_or_path!r} does not tell where in a longer "
        f"conversation the assistant says {shown(message['content'])}: it writes other turns "
        'according to this one. Train on last turns alone (turns = "last"), or change the template'
    )

"""From prompts and completions to token ids, with the boundary between them.

The whole text is tokenized in one go and the ids are parted by character offsets: tokenizing the
two parts alone and joining them gives ids that the model never sees elsewhere ("th" + "e" is not
"the"). Chat messages are rendered by the tokenizer's own chat template.
"""

from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tether.errors import DataError, ModelError
from tether.records import Message, Text, shown

# Put before a template that asks for today's date, so that it always gets this one: a prompt that
# changed with the calendar would change scores from one day to the next.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The ids of a prompt and its completion; the first `num_prompt` of them are the prompt's."""

    ids: list[int]
    num_prompt: int


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> list[int]:
    """Token ids after which a completion starts; [] for "" where the tokenizer adds no BOS.

    Messages are rendered with the chat template up to where the assistant begins to speak.

    Raises:
        ModelError: The tokenizer has no chat template, or no character offsets.
    """
    if isinstance(prompt, str):
        return _tokenize(tokenizer, prompt)[0]
    return _tokenize(tokenizer, _render(tokenizer, prompt, open_turn=True), rendered=True)[0]


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: Text, *, end: bool = True
) -> Encoded:
    """Token ids of a prompt and its completion, tokenized as one text.

    A token belongs to the prompt if its last character does; one that reaches over the boundary
    belongs to the completion. Special tokens that the tokenizer puts in front are the prompt's.

    Args:
        tokenizer: A fast tokenizer (one that tells character offsets).
        prompt: A string, or messages.
        completion: A string (after messages: what the assistant says), or messages.
        end: Close the completion with exactly one EOS; False for a completion that was cut.

    Raises:
        DataError: The prompt is a string and the completion is messages, or the other is empty.
        ModelError: The tokenizer cannot do it; the message says why and what to do.
    """
    if isinstance(prompt, str):
        if not isinstance(completion, str):
            raise DataError(
                f"completion={shown(completion)} is a list of messages but the prompt is a "
                "string: write both as messages, or both as strings"
            )
        start, text, rendered = prompt, prompt + completion, False
    else:
        start = _render(tokenizer, prompt, open_turn=True)
        text, rendered = _chat_text(tokenizer, prompt, completion, start, end=end), True
    ids, ends = _tokenize(tokenizer, text, rendered=rendered)
    num_prompt = sum(last <= len(start) for last in ends)
    if end:
        ids = _close(ids, num_prompt, _eos(tokenizer), cut_tail=rendered)
    return Encoded(ids=ids, num_prompt=num_prompt)


def _close(ids: list[int], num_prompt: int, eos: int, *, cut_tail: bool) -> list[int]:
    """End the completion with one EOS; `cut_tail` drops what a template writes behind its EOS."""
    completion = ids[num_prompt:]
    while cut_tail and eos in completion and completion[-1] != eos:
        completion.pop()
    if completion[-1:] != [eos]:
        completion.append(eos)
    return ids[:num_prompt] + completion


def _chat_text(
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[Message],
    completion: Text,
    start: str,
    *,
    end: bool,
) -> str:
    """The conversation as the template writes it; open at the end if the completion was cut."""
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if not completion:
        raise DataError("completion=[] has no message: at least the assistant's is needed")
    if not end and len(completion) == 1:
        return start + completion[0]["content"]
    text = _render(tokenizer, prompt + completion, open_turn=False)
    if not text.startswith(start):
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path!r} writes a prompt differently once "
            f"the answer follows: {shown(start[-60:])} does not open it. Use a template whose "
            "generation prompt is how it begins an assistant's message"
        )
    return text


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, open_turn: bool) -> str:
    if tokenizer.chat_template is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template, so it cannot "
            "render messages: write prompts as strings, or put a chat_template.jinja beside it"
        )
    if not messages:
        raise DataError("prompt=[] has no message: at least the user's is needed")
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = FIXED_DATE + template
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=open_turn, tokenize=False
        )
    except TemplateError as error:
        raise DataError(
            f"the chat template of {tokenizer.name_or_path!r} refuses {shown(messages)}: {error}"
        ) from None
    assert isinstance(text, str)
    return text


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, text: str, *, rendered: bool = False
) -> tuple[list[int], list[int]]:
    """Ids and the offset of each one's end; a BOS at most once, no EOS the tokenizer adds itself.

    A text that a template rendered, or that opens with the BOS, holds its special tokens already.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} is a slow one (no tokenizer.json), which "
            "does not tell where in the text a token stands: convert it to a fast tokenizer"
        )
    has_bos = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
    encoding = tokenizer(
        text,
        add_special_tokens=not (rendered or has_bos),
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids, spans = list(encoding["input_ids"]), list(encoding["offset_mapping"])
    opened = int(bool(ids) and ids[0] == tokenizer.bos_token_id)  # which OPT's EOS is as well
    if len(ids) > opened and ids[-1] == tokenizer.eos_token_id and spans[-1][0] == spans[-1][1]:
        ids, spans = ids[:-1], spans[:-1]  # it covers no character, so it was not in the text
    return ids, [end for _, end in spans]


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no eos_token, so a completion cannot "
            "be closed: name one in its tokenizer_config.json"
        )
    return tokenizer.eos_token_id

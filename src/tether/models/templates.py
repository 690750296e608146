"""Chat messages as the text that a tokenizer's chat template makes of them.

A tokenizer without a template gets a plain one (`PLAIN`). A template that asks for today's date is
always told `DATE`: a prompt that changed with the calendar would change scores from one day to the
next, and no run could be repeated.
"""

from collections.abc import Iterable
from datetime import date

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tether.errors import DataError, ModelError
from tether.progress import console
from tether.records import Message, Text, shown

DATE = date(2024, 7, 26)
"""What templates take for today: the date that Llama's own falls back to"""

# Put before a template, this macro stands in for the function that tells today's date.
TODAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{d}', '{DATE.strftime('%' + d)}')" for d in "aAbBdejHIMSpmyY")
    + " }}{% endmacro %}"
)

PLAIN = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:\\n' }}{% endif %}"
)
"""The template of tokenizers that have none: the role, a colon, the content on lines of its own"""

SYSTEM = ("system", "developer")


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, open_turn: bool) -> str:
    """The text of a conversation, its special tokens included.

    Args:
        tokenizer: Its template is used, or `PLAIN` where it has none.
        messages: At least one.
        open_turn: Go on to where the assistant begins to speak.

    Raises:
        DataError: The template refuses the messages, or leaves out what the system or user says.
    """
    if not messages:
        raise DataError("prompt=[] has no message: at least the user's is needed")
    try:
        text = _apply(tokenizer, messages, open_turn=open_turn)
    except TemplateError as error:
        raise DataError(_refusal(tokenizer, messages, error)) from None
    for message in messages:
        if message["role"] in (*SYSTEM, "user") and message["content"].strip() not in text:
            raise DataError(
                f"the chat template of {tokenizer.name_or_path!r} leaves out the "
                f"{message['role']}'s message {shown(message['content'])}; "
                + _mend(message["role"] in SYSTEM)
            )
    return text


def keep_template(tokenizer: PreTrainedTokenizerBase, texts: Iterable[Text]) -> None:
    """Give a tokenizer without a template the plain one if it is to be trained on messages.

    It is saved with the model, so that whoever asks the model asks it as it was trained.
    """
    if tell_of_plain(tokenizer, texts):
        tokenizer.chat_template = PLAIN


def tell_of_plain(tokenizer: PreTrainedTokenizerBase, texts: Iterable[Text]) -> bool:
    """Say, and return, whether there are messages among the texts and no template for them."""
    plain = tokenizer.chat_template is None and any(isinstance(text, list) for text in texts)
    if plain:
        console.print(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: messages are "
            'written plainly, as in "User:\\n…\\n\\nAssistant:\\n…"'
        )
    return plain


def template_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What to record of a template beside a model: the date it is told, if it asks for one."""
    return {"chat_date": DATE.isoformat()} if asks_date(tokenizer) else {}


def asks_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template prints today's date."""
    return tokenizer.chat_template is not None and "strftime_now" in _source(tokenizer)


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, open_turn: bool) -> str:
    source = _source(tokenizer)
    text = tokenizer.apply_chat_template(
        messages,
        chat_template=TODAY + source if asks_date(tokenizer) else source,
        add_generation_prompt=open_turn,
        tokenize=False,
    )
    assert isinstance(text, str)
    return text


def _source(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        return PLAIN
    try:
        return tokenizer.get_chat_template()
    except ValueError:
        names = ", ".join(map(repr, tokenizer.chat_template))
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path!r} has the chat templates {names} and none "
            "is called 'default'; give one that name"
        ) from None


def _refusal(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], error: TemplateError
) -> str:
    """What to say of messages that a template refuses; whether it was for the system's."""
    others = [message for message in messages if message["role"] not in SYSTEM]
    is_system = False
    if 0 < len(others) < len(messages):
        try:
            _apply(tokenizer, others, open_turn=False)
            is_system = True
        except TemplateError:
            pass
    what = "a system message" if is_system else shown(messages)
    whose = f"the chat template of {tokenizer.name_or_path!r}"
    return f"{whose} refuses {what}: {error}; {_mend(is_system)}"


def _mend(is_system: bool) -> str:
    if is_system:
        return "write what it says into the first message of the user"
    return "give roles that it knows, in the order that it wants"

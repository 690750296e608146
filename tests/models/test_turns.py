"""What the assistant says is found in what templates write; expected texts are written by hand.

In an expected text ⟦…⟧ encloses what is trained on.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.templates import CHATML, GEMMA, LLAMA3, MISTRAL, THINKER, chat_tokenizer, said
from tests.tiny import BOS, EOS, byte_bpe_tokenizer

from tether.errors import DataError, ModelError
from tether.models.chat import encode, encode_prompt
from tether.models.templates import DATE, PLAIN, keep_template, template_facts

SYSTEM = said("system", "Be kind.")
CHAT = [
    said("user", "Hi"),
    said("assistant", "Hello, who?"),
    said("user", "Me"),
    said("assistant", "  I see.  "),
    said("user", "Hello, who?"),  # what the assistant has said, said by the user
    said("assistant", "You."),
]
TEMPLATES = {
    "chatml": (
        CHATML,
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n⟦Hello, who?<|im_end|>⟧\n<|im_start|>user\nMe<|im_end|>\n"
        "<|im_start|>assistant\n⟦  I see.  <|im_end|>⟧\n<|im_start|>user\nHello, who?<|im_end|>\n"
        "<|im_start|>assistant\n⟦You.<|im_end|>⟧",
    ),
    "llama3": (
        LLAMA3,
        f"{BOS}<|start|>system<|end|>\n\nToday Date: 26 Jul 2024\n\nBe kind.<|eot|>"
        "<|start|>user<|end|>\n\nHi<|eot|><|start|>assistant<|end|>\n\n⟦Hello, who?<|eot|>⟧"
        "<|start|>user<|end|>\n\nMe<|eot|><|start|>assistant<|end|>\n\n⟦I see.<|eot|>⟧"
        "<|start|>user<|end|>\n\nHello, who?<|eot|><|start|>assistant<|end|>\n\n⟦You.<|eot|>⟧",
    ),
    "mistral": (
        MISTRAL,
        f"{BOS}[INST] Hi [/INST]⟦ Hello, who?{EOS}⟧[INST] Me [/INST]⟦ I see.{EOS}⟧"
        f"[INST] Be kind.\n\nHello, who? [/INST]⟦ You.{EOS}⟧",
    ),
    "thinker": (
        THINKER,
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n⟦Hello, who?<|im_end|>⟧\n<|im_start|>user\nMe<|im_end|>\n"
        "<|im_start|>assistant\n⟦  I see.  <|im_end|>⟧\n<|im_start|>user\nHello, who?<|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\n\n</think>\n\nYou.<|im_end|>⟧",
    ),
    "plain": (
        None,
        f"{BOS}System:\nBe kind.\n\nUser:\nHi\n\nAssistant:\n⟦Hello, who?{EOS}⟧\n\nUser:\nMe\n\n"
        f"Assistant:\n⟦  I see.  {EOS}⟧\n\nUser:\nHello, who?\n\nAssistant:\n⟦You.{EOS}⟧",
    ),
}
EACH = pytest.mark.parametrize(("template", "expected"), TEMPLATES.values(), ids=TEMPLATES)


def tokenizer_of(template):
    return byte_bpe_tokenizer() if template is None else chat_tokenizer(template)


def shown(tokenizer, row):
    """The row's text with what is trained on in ⟦⟧, by the mask alone."""
    pieces, before = [], False
    for token, trained in zip(row.ids, row.mask.tolist(), strict=True):
        pieces += ["⟦"] * (trained and not before) + ["⟧"] * (before and not trained)
        pieces.append(tokenizer.decode([token]))
        before = trained
    return "".join(pieces) + "⟧" * bool(before)


@EACH
def test_every_turn_of_the_assistant_is_found(template, expected):
    tokenizer = tokenizer_of(template)
    row = encode(tokenizer, [SYSTEM, CHAT[0]], CHAT[1:])
    assert shown(tokenizer, row) == expected
    assert row.num_completion == sum(row.mask)
    assert tokenizer.decode(row.ids).count(BOS) == (BOS in expected)


@EACH
def test_turns_of_the_prompt_are_context(template, expected):
    tokenizer = tokenizer_of(template)
    first = encode(tokenizer, [SYSTEM, CHAT[0]], CHAT[1:])
    row = encode(tokenizer, [SYSTEM, *CHAT[:5]], CHAT[5:])
    head, _, tail = expected.rpartition("⟦")
    assert shown(tokenizer, row) == head.replace("⟦", "").replace("⟧", "") + "⟦" + tail
    assert row == encode(tokenizer, [SYSTEM, *CHAT[:5]], "You.")
    last = encode(tokenizer, [SYSTEM, CHAT[0]], CHAT[1:], turns="last")
    assert last == row
    assert last.ids == first.ids
    assert encode_prompt(tokenizer, [SYSTEM, *CHAT[:5]]) == row.ids[: row.num_prompt]


def test_a_turns_end_need_not_be_the_end_token():
    tokenizer = chat_tokenizer(GEMMA)
    row = encode(tokenizer, CHAT[:1], CHAT[1:4])
    assert shown(tokenizer, row) == (
        f"{BOS}<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
        "⟦Hello, who?<end_of_turn>⟧\n<start_of_turn>user\nMe<end_of_turn>\n"
        f"<start_of_turn>model\n⟦I see.<end_of_turn>\n{EOS}⟧"
    )


def test_thoughts_that_the_template_drops_are_not_trained_on():
    tokenizer = chat_tokenizer(THINKER)
    thinks = said("assistant", "<think>\nhm\n</think>\n\nYes")
    row = encode(tokenizer, [CHAT[0]], [thinks, CHAT[2], thinks])
    assert shown(tokenizer, row) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Yes<|im_end|>⟧\n"
        "<|im_start|>user\nMe<|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\nhm\n</think>\n\nYes<|im_end|>⟧"
    )


contents = st.text(st.sampled_from("a .\nI[]/"), min_size=1, max_size=6)


@pytest.mark.parametrize("template", [CHATML, LLAMA3, MISTRAL, THINKER], ids=list(TEMPLATES)[:4])
@settings(deadline=None, max_examples=60)
@given(st.lists(contents, min_size=2, max_size=6), st.booleans())
def test_whatever_is_said_the_spans_are_what_sampling_would_say(template, texts, system):
    texts = texts[: len(texts) // 2 * 2]
    roles = ["user", "assistant"] * (len(texts) // 2)
    chat = [SYSTEM] * system + [said(r, t) for r, t in zip(roles, texts, strict=True)]
    tokenizer = chat_tokenizer(template)
    row = encode(tokenizer, chat[: 1 + system], chat[1 + system :])
    trained = [part.split("⟧")[0] for part in shown(tokenizer, row).split("⟦")[1:]]
    strips = template in (LLAMA3, MISTRAL)
    wanted = [text.strip() if strips else text for text in texts[1::2]]
    if template == THINKER:
        wanted = [text.lstrip("\n") for text in wanted]
        wanted[-1] = "<think>\n\n</think>\n\n" + wanted[-1]
    if template == MISTRAL:
        wanted = [" " + text for text in wanted]
    assert trained == [text + tokenizer.eos_token for text in wanted]


# --- what cannot be handled -----------------------------------------------------------------------


def test_a_template_without_system_messages_says_so():
    tokenizer = chat_tokenizer(GEMMA)
    with pytest.raises(
        DataError, match=r"refuses a system message: System role not supported; wri"
    ):
        encode(tokenizer, [SYSTEM, CHAT[0]], "no")


def test_a_template_that_drops_the_system_message_is_refused():
    tokenizer = chat_tokenizer(CHATML)
    tokenizer.chat_template = CHATML.replace("messages %}", "messages if m.role != 'system' %}")
    with pytest.raises(DataError, match=r"leaves out the system's message 'Be kind.'; write what"):
        encode_prompt(tokenizer, [SYSTEM, CHAT[0]])
    encode_prompt(tokenizer, [CHAT[0]])


def test_turns_out_of_order_are_refused_where_the_template_wants_an_order():
    tokenizer = chat_tokenizer(MISTRAL)
    with pytest.raises(DataError, match=r"refuses \[\{'role'.*roles must alternate.*in the order"):
        encode_prompt(tokenizer, [CHAT[0], CHAT[2]])


def test_a_completion_ends_with_the_assistant():
    with pytest.raises(DataError, match="ends with the role 'user': it must end with what the ass"):
        encode(chat_tokenizer(CHATML), CHAT[:1], CHAT[1:3])


def test_a_template_that_counts_characters_is_refused():
    tokenizer = chat_tokenizer(CHATML)
    counted = "{{ messages | map(attribute='content') | join | length }}|"
    tokenizer.chat_template = counted + CHATML
    with pytest.raises(
        ModelError, match=r"does not tell where in a longer conversation.*last turns alone"
    ):
        encode(tokenizer, CHAT[:1], CHAT[1:4])


# --- the date, the plain template -----------------------------------------------------------------


def test_a_template_is_told_the_fixed_date_in_the_form_it_asks_for():
    tokenizer = chat_tokenizer(LLAMA3)
    assert (
        template_facts(tokenizer) == {"chat_date": DATE.isoformat()} == {"chat_date": "2024-07-26"}
    )
    tokenizer.chat_template = LLAMA3.replace("%d %b %Y", "%A, %B %d %Y (%Y-%m-%d)")
    text = tokenizer.decode(encode_prompt(tokenizer, CHAT[:1]))
    assert "Today Date: Friday, July 26 2024 (2024-07-26)" in text
    assert template_facts(chat_tokenizer(CHATML)) == {}


def test_the_plain_template_is_kept_where_messages_are_trained_on(capsys):
    tokenizer = byte_bpe_tokenizer()
    keep_template(tokenizer, ["a string"])
    assert tokenizer.chat_template is None
    encode_prompt(tokenizer, CHAT[:1])
    assert tokenizer.chat_template is None
    keep_template(tokenizer, ["a string", CHAT[:1]])
    assert tokenizer.chat_template == PLAIN
    assert "has no chat template" in capsys.readouterr().err
    text = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, tokenize=False)
    assert text == tokenizer.decode(encode_prompt(tokenizer, CHAT[:1]))


def test_a_tokenizer_without_bos_gets_none():
    tokenizer = byte_bpe_tokenizer(bos=False)
    assert tokenizer.decode(encode_prompt(tokenizer, CHAT[:1])) == "User:\nHi\n\nAssistant:\n"

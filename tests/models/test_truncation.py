"""Chats lose their oldest turns; what is left is what a shorter chat would have been."""

import pytest
from tests.models.templates import CHATML, MISTRAL, chat_tokenizer, said

from tether.models.chat import encode, encode_prompt
from tether.models.truncation import (
    fit_completions,
    fit_demonstration,
    fit_prompt,
    shortened,
    tell_of_truncated,
)

TOKENIZER = chat_tokenizer(CHATML)
SYSTEM = said("system", "Be kind.")
ONE, TWO, THREE = (said("user", f"question {i}") for i in (1, 2, 3))
A, B, C = (said("assistant", f"answer {i}") for i in (1, 2, 3))
CHAT = [SYSTEM, ONE, A, TWO, B, THREE]


def length(prompt):
    return len(encode_prompt(TOKENIZER, prompt))


def test_turns_go_from_the_oldest_and_the_system_prompt_stays():
    assert shortened(CHAT) == [CHAT, [SYSTEM, TWO, B, THREE], [SYSTEM, THREE]]
    assert shortened([ONE, A, TWO]) == [[ONE, A, TWO], [TWO]]
    assert shortened([A, ONE, B, TWO]) == [[A, ONE, B, TWO], [ONE, B, TWO], [TWO]]
    assert shortened("a string") == ["a string"]


@pytest.mark.parametrize(
    ("room", "left"),
    [(0, CHAT), (-1, [SYSTEM, TWO, B, THREE])],
    ids=["just fits", "one token too long"],
)
def test_a_prompt_is_cut_only_if_it_must(room, left):
    ids, cut = fit_prompt(TOKENIZER, CHAT, length(CHAT) + room)
    assert ids == encode_prompt(TOKENIZER, left)
    assert cut == (left != CHAT)


def test_what_cannot_fit_stays_whole():
    assert fit_prompt(TOKENIZER, CHAT, 3) == (encode_prompt(TOKENIZER, CHAT), False)
    assert fit_prompt(TOKENIZER, "a long string", 3)[1] is False


def test_completions_of_one_prompt_share_its_turns():
    short, long = "no", "no " * 40
    last = [SYSTEM, THREE]
    limit = len(encode(TOKENIZER, last, long).ids)
    assert (
        len(encode(TOKENIZER, [SYSTEM, TWO, B, THREE], short).ids) <= limit
    )  # alone it keeps more
    (one, other), cut = fit_completions(TOKENIZER, CHAT, [short, long], limit)
    assert cut
    assert one == encode(TOKENIZER, last, short)
    assert other == encode(TOKENIZER, last, long)


def test_a_completion_that_fits_nowhere_takes_no_turn_from_the_others():
    limit = len(encode(TOKENIZER, CHAT, "no").ids)
    (one, other), cut = fit_completions(TOKENIZER, CHAT, ["no", "no " * 200], limit)
    assert not cut
    assert one == encode(TOKENIZER, CHAT, "no")
    assert len(other.ids) > limit


def test_a_demonstration_also_loses_turns_to_learn_from():
    said_later = [A, TWO, B, THREE, C]
    whole = encode(TOKENIZER, [SYSTEM, ONE], said_later)
    assert fit_demonstration(TOKENIZER, [SYSTEM, ONE], said_later, len(whole.ids)) == (
        [whole],
        False,
    )
    (row,), cut = fit_demonstration(TOKENIZER, [SYSTEM, ONE], said_later, len(whole.ids) - 1)
    assert cut
    assert row == encode(TOKENIZER, [SYSTEM, TWO], [B, THREE, C])
    (row,), cut = fit_demonstration(TOKENIZER, [SYSTEM, ONE], said_later, len(row.ids) - 1, "last")
    assert cut
    assert row == encode(TOKENIZER, [SYSTEM, THREE], [C])


def test_what_is_left_of_a_chat_that_must_alternate_alternates():
    tokenizer = chat_tokenizer(MISTRAL)
    limit = len(encode_prompt(tokenizer, [SYSTEM, TWO, B, THREE]))
    ids, cut = fit_prompt(tokenizer, CHAT, limit)
    assert (ids, cut) == (encode_prompt(tokenizer, [SYSTEM, TWO, B, THREE]), True)


def test_it_is_told(capsys):
    tell_of_truncated(0, 9, "prompts", 64)
    assert capsys.readouterr().err == ""
    tell_of_truncated(2, 9, "prompts", 64)
    assert "2 of 9 prompts truncated: their oldest turns are left out" in capsys.readouterr().err

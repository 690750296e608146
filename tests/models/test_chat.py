import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.tiny import (
    BOS,
    CHAT_TEMPLATE,
    EOS,
    TEXT,
    byte_bpe_tokenizer,
    metaspace_tokenizer,
    word_tokenizer,
)
from tokenizers import processors
from transformers import PreTrainedTokenizer

from tether.errors import DataError, ModelError
from tether.models.chat import encode, encode_prompt

BYTES, META = byte_bpe_tokenizer(), metaspace_tokenizer()
WORDS = word_tokenizer(bos=True)
PLAIN = byte_bpe_tokenizer(bos=False, pad_is_eos=True)
CHAT = byte_bpe_tokenizer()
CHAT.chat_template = CHAT_TEMPLATE

TOKENIZERS = pytest.mark.parametrize(
    "tokenizer", [BYTES, META, WORDS, PLAIN], ids=["bytes", "metaspace", "words", "plain"]
)
USER = {"role": "user", "content": "why"}

# Any text without "<", which could spell a special token, and texts that meet inside a word.
texts = st.text(
    st.characters(codec="utf-8", exclude_characters="<"), max_size=12
) | st.sampled_from(
    ["", "th", "e other", "the", " cat", "the dog ", "\n\nAssistant:", "é", "\u0301", "👩‍🚀"]
)


# --- one text -------------------------------------------------------------------------------------


@TOKENIZERS
@settings(deadline=None, max_examples=150)
@given(prompt=texts, completion=texts)
@example(prompt="the th", completion="eater")
@example(prompt="e", completion="\u0301")
@example(prompt="", completion="")
def test_ids_are_those_of_the_whole_text_and_one_eos(tokenizer, prompt, completion):
    found = encode(tokenizer, prompt, completion)
    whole = tokenizer(prompt + completion)["input_ids"]
    assert found.ids == [*whole, tokenizer.eos_token_id]
    assert found.ids.count(tokenizer.eos_token_id) == 1
    assert found.ids.count(tokenizer.bos_token_id) == (tokenizer.bos_token_id is not None)


@TOKENIZERS
@settings(deadline=None, max_examples=150)
@given(prompt=texts, completion=texts)
@example(prompt="the th", completion="eater")
def test_a_token_is_the_prompts_if_its_last_character_is(tokenizer, prompt, completion):
    found = encode(tokenizer, prompt, completion)
    spans = tokenizer(prompt + completion, return_offsets_mapping=True)["offset_mapping"]
    ends = [end for _, end in spans]
    assert all(end <= len(prompt) for end in ends[: found.num_prompt])
    assert all(end > len(prompt) for end in ends[found.num_prompt :])


@TOKENIZERS
@settings(deadline=None, max_examples=100)
@given(prompt=texts, one=texts, other=texts)
def test_two_completions_differ_only_behind_the_prompt_they_share(tokenizer, prompt, one, other):
    # A blank on both sides of the boundary keeps a merge from reaching over it.
    prompt, one, other = prompt + "\n", "\n" + one, "\n" + other
    first, second = encode(tokenizer, prompt, one), encode(tokenizer, prompt, other)
    shared = min(first.num_prompt, second.num_prompt)
    assert first.ids[:shared] == second.ids[:shared]
    if tokenizer is WORDS:  # parted at blanks, so the prompt's own ids open both
        assert first.num_prompt == second.num_prompt
        assert first.ids[:shared] == encode_prompt(tokenizer, prompt)


def test_the_boundary_by_hand():
    # "the cat|sees": <bos> the cat | sees <eos>
    found = encode(WORDS, "the cat", " sees")
    names = WORDS.convert_ids_to_tokens(found.ids)
    assert names == [BOS, "the", "cat", "sees", EOS]
    assert found.num_prompt == 3
    assert encode_prompt(WORDS, "the cat") == found.ids[:3]


def test_a_token_over_the_boundary_is_the_completions():
    # The trained merge "the" is one token, so nothing but <bos> is left for the prompt.
    found = encode(BYTES, "th", "e")
    assert BYTES.convert_ids_to_tokens(found.ids) == [BOS, "the", EOS]
    assert found.num_prompt == 1


@TOKENIZERS
def test_a_completion_that_was_cut_stays_open(tokenizer):
    whole = encode(tokenizer, "the cat", " sees")
    cut = encode(tokenizer, "the cat", " sees", end=False)
    assert cut.ids == whole.ids[:-1]
    assert cut.num_prompt == whole.num_prompt


@TOKENIZERS
def test_an_empty_completion_is_only_its_eos(tokenizer):
    found = encode(tokenizer, "the cat", "")
    assert found.ids == [*encode_prompt(tokenizer, "the cat"), tokenizer.eos_token_id]
    assert found.num_prompt == len(found.ids) - 1


def test_an_eos_that_closes_the_text_is_not_doubled():
    assert encode(WORDS, "the", f" cat {EOS}") == encode(WORDS, "the", " cat")


def test_an_eos_inside_the_prompt_stays():
    ids = encode_prompt(WORDS, f"the cat {EOS}")
    assert WORDS.convert_ids_to_tokens(ids) == [BOS, "the", "cat", EOS]
    found = encode(WORDS, f"the {EOS} cat {EOS}", "")
    assert WORDS.convert_ids_to_tokens(found.ids) == [BOS, "the", EOS, "cat", EOS, EOS]
    assert found.num_prompt == 5


def test_a_bos_in_the_text_is_not_doubled():
    assert encode_prompt(WORDS, f"{BOS} the cat") == encode_prompt(WORDS, "the cat")
    assert encode(BYTES, f"{BOS}the", " cat") == encode(BYTES, "the", " cat")


def test_an_eos_that_the_tokenizer_adds_itself_is_dropped():
    tokenizer = word_tokenizer(bos=True)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (BOS, EOS)}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=list(ids.items())
    )
    assert tokenizer("the cat")["input_ids"][-1] == ids[EOS]
    assert encode_prompt(tokenizer, "the cat") == encode_prompt(WORDS, "the cat")
    assert encode(tokenizer, "the", " cat") == encode(WORDS, "the", " cat")
    assert encode(tokenizer, "the", " cat", end=False) == encode(WORDS, "the", " cat", end=False)


def test_a_byte_tokenizer_reads_all_of_a_long_text():
    found = encode(BYTES, TEXT * 20, TEXT * 20)
    assert BYTES.decode(found.ids, skip_special_tokens=True) == TEXT * 40


# --- messages -------------------------------------------------------------------------------------


def test_messages_are_rendered_by_the_template():
    found = encode(CHAT, [USER], "the cat")
    assert CHAT.decode(found.ids) == f"{BOS}[user]\nwhy\n[assistant]\nthe cat{EOS}"
    assert CHAT.decode(found.ids[: found.num_prompt]) == f"{BOS}[user]\nwhy\n[assistant]\n"
    assert encode_prompt(CHAT, [USER]) == found.ids[: found.num_prompt]
    assert found.ids.count(CHAT.bos_token_id) == 1


def test_a_message_completion_is_the_same_as_its_text():
    as_message = [{"role": "assistant", "content": "the cat"}]
    assert encode(CHAT, [USER], as_message) == encode(CHAT, [USER], "the cat")


def test_earlier_turns_keep_their_eos():
    turns = [USER, {"role": "assistant", "content": "who"}, {"role": "user", "content": "me"}]
    found = encode(CHAT, turns, "no")
    assert CHAT.decode(found.ids) == (
        f"{BOS}[user]\nwhy\n[assistant]\nwho{EOS}\n[user]\nme\n[assistant]\nno{EOS}"
    )
    assert CHAT.decode(found.ids[found.num_prompt :]) == f"no{EOS}"


def test_a_message_completion_that_was_cut_stays_open():
    found = encode(CHAT, [USER], "the cat", end=False)
    assert CHAT.decode(found.ids) == f"{BOS}[user]\nwhy\n[assistant]\nthe cat"


def test_a_template_without_eos_gets_one():
    tokenizer = byte_bpe_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("eos_token", "'.'")
    found = encode(tokenizer, [USER], "the cat")
    assert tokenizer.decode(found.ids).endswith(f"the cat.\n{EOS}")


@settings(deadline=None, max_examples=100)
@given(texts, texts)
def test_messages_have_one_bos_and_end_with_one_eos(content, completion):
    found = encode(CHAT, [{"role": "user", "content": content}], completion)
    assert found.ids[0] == CHAT.bos_token_id
    assert found.ids.count(CHAT.bos_token_id) == 1
    assert found.ids[-1] == CHAT.eos_token_id
    assert found.ids.count(CHAT.eos_token_id) == 1
    whole = CHAT.decode(found.ids)
    assert whole == f"{BOS}[user]\n{content}\n[assistant]\n{completion}{EOS}"


def test_no_date_enters():
    tokenizer = byte_bpe_tokenizer()
    tokenizer.chat_template = (
        "{%- if strftime_now is defined %}{%- set today = strftime_now('%d %b %Y') %}"
        "{%- else %}{%- set today = 'never' %}{%- endif %}{{ today }}|" + CHAT_TEMPLATE
    )
    for ids in (encode_prompt(tokenizer, [USER]), encode(tokenizer, [USER], "no").ids):
        assert tokenizer.decode(ids).startswith(f"26 Jul 2024|{BOS}[user]")


# --- what cannot be rendered ----------------------------------------------------------------------


def test_a_string_prompt_needs_a_string_completion():
    with pytest.raises(DataError, match="write both as messages, or both as strings"):
        encode(CHAT, "why", [{"role": "assistant", "content": "no"}])


def test_no_message_is_no_completion():
    with pytest.raises(DataError, match="has no message"):
        encode(CHAT, [USER], [])
    with pytest.raises(DataError, match="has no message"):
        encode_prompt(CHAT, [])


def test_a_template_that_refuses_says_why():
    tokenizer = byte_bpe_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"refuses \[\{'role'.*: roles must alternate"):
        encode_prompt(tokenizer, [USER])


def test_a_template_whose_prompt_does_not_open_the_answer_is_refused():
    tokenizer = byte_bpe_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("'[assistant]", "'[bot]")
    with pytest.raises(ModelError, match="writes a prompt differently once the answer follows"):
        encode(tokenizer, [USER], "no")


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = byte_bpe_tokenizer()
    tokenizer.eos_token = None
    assert encode(tokenizer, "a", "b", end=False).num_prompt == 2
    with pytest.raises(ModelError, match="has no eos_token"):
        encode(tokenizer, "a", "b")


class SlowTokenizer(PreTrainedTokenizer):
    vocab_size = 1

    def get_vocab(self):
        return {"a": 0}

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return 0


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(ModelError, match="is a slow one"):
        encode_prompt(SlowTokenizer(), "a")

import pytest
import torch
from tests.rewards.made_up import make_reward
from tests.tiny import (
    CHAT_TEMPLATE,
    byte_bpe_tokenizer,
    metaspace_tokenizer,
    save_tiny,
    word_tokenizer,
)

from tether.engine.decode import completion_text, generate_tokens
from tether.models.chat import encode_prompt
from tether.models.language_model import load
from tether.rewards.reward_model import ROWS_PER_BATCH, score_texts, scoring_row
from tether.sections import ComputeConfig, SamplingConfig

CPU = ComputeConfig(device="cpu")
CASES = {
    "gpt2-bytes": {"kind": "gpt2", "tokenizer": byte_bpe_tokenizer()},
    "gpt2-bytes-pad=eos": {"kind": "gpt2", "tokenizer": byte_bpe_tokenizer(pad_is_eos=True)},
    "llama-meta": {"kind": "llama", "tokenizer": metaspace_tokenizer()},
    "llama-words-pad=eos": {
        "kind": "llama",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tokenizer": word_tokenizer(pad_is_eos=True, bos=True),
    },
}
PROMPTS = ["the cat", "why", "", "tell me about a dog please", "who", "the", "a big red bird"]
COMPLETIONS = [
    " sat on the mat",
    "",
    "no",
    " what it likes",
    " thanks thanks thanks thanks thanks yes",
    "ater",
    " sees small kind dog",
]


@pytest.fixture(scope="module", params=CASES)
def reward(request, tmp_path_factory):
    return make_reward(tmp_path_factory.mktemp("reward"), **CASES[request.param])


def plain_score(reward, text):
    """Tokenize a text and its end token and read `.logits`, by transformers alone."""
    ids = [*reward.tokenizer(text)["input_ids"], reward.tokenizer.eos_token_id]
    with torch.no_grad():
        return float(reward.model(input_ids=torch.tensor([ids])).logits)


def test_a_score_is_plain_transformers_on_the_whole_text_and_its_end(reward):
    wanted = [plain_score(reward, p + c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert score_texts(reward, PROMPTS, COMPLETIONS) == pytest.approx(wanted, abs=1e-5)
    assert len({round(score, 3) for score in wanted}) == len(wanted)


def test_it_does_not_depend_on_what_is_scored_beside_it(reward):
    whole = score_texts(reward, PROMPTS, COMPLETIONS)
    alone = [score_texts(reward, [p], [c]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert [score for [score] in alone] == pytest.approx(whole, abs=1e-5)
    backwards = score_texts(reward, PROMPTS[::-1], COMPLETIONS[::-1])
    assert backwards == pytest.approx(whole[::-1], abs=1e-5)
    # more rows than go into one forward pass, of every length
    times = ROWS_PER_BATCH // len(PROMPTS) + 2
    many = score_texts(reward, PROMPTS * times, COMPLETIONS * times)
    assert many == pytest.approx(whole * times, abs=1e-5)


def test_nothing_to_score(reward):
    assert score_texts(reward, [], []) == []


def test_a_text_too_long_is_cut_before_its_end_token(reward):
    eos, limit = reward.tokenizer.eos_token_id, 64
    ids = reward.tokenizer("the cat" + " the" * 200)["input_ids"]
    row = scoring_row(reward, "the cat", " the" * 200, limit)
    assert row.ids == [*ids[:63], eos]
    with torch.no_grad():
        wanted = float(reward.model(input_ids=torch.tensor([row.ids])).logits)
    assert score_texts(reward, ["the cat"], [" the" * 200]) == pytest.approx([wanted], abs=1e-5)
    # a prompt alone longer than that leaves the end token, at least
    assert scoring_row(reward, "the cat" + " the" * 200, " a", limit).num_completion == 1


def test_a_text_that_just_fits_is_whole(reward):
    row = scoring_row(reward, "the", " cat the", 64)
    assert scoring_row(reward, "the", " cat the", len(row.ids)) == row
    shorter = scoring_row(reward, "the", " cat the", len(row.ids) - 1)
    assert shorter.ids == [*row.ids[:-2], row.ids[-1]]


def test_conversations_are_rendered(tmp_path):
    tokenizer = byte_bpe_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    reward = make_reward(tmp_path, kind="gpt2", tokenizer=tokenizer)
    asked = [{"role": "user", "content": "why"}]
    rendered = "<bos>[user]\nwhy\n[assistant]\nno<eos>"
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        wanted = float(reward.model(input_ids=torch.tensor([ids])).logits)
    for said in ("no", [{"role": "assistant", "content": "no"}]):
        assert score_texts(reward, [asked], [said]) == pytest.approx([wanted], abs=1e-5)


def test_a_conversation_that_is_too_long_loses_its_oldest_turns(tmp_path):
    tokenizer = byte_bpe_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    reward = make_reward(tmp_path, kind="gpt2", tokenizer=tokenizer)
    said = [{"role": "assistant", "content": "no"}]
    asked = [{"role": "user", "content": "why"}]
    before = [{"role": "user", "content": "the cat " * 30}, *said]
    rows = [scoring_row(reward, prompt, said, 64) for prompt in (asked, before + asked)]
    assert rows[0] == rows[1]


def test_a_reward_model_with_another_tokenizer_reads_the_text_anew(tmp_path):
    # Policy: a word an id, no BOS. Reward model: bytes and merges, BOS, another vocabulary. Ids
    # of the one mean something else to the other, so only the text may pass between them.
    policy = load(str(save_tiny(tmp_path / "policy")), CPU)
    reward = make_reward(tmp_path / "reward", kind="gpt2", tokenizer=byte_bpe_tokenizer())
    asked = ["the cat sees", "why", "tell me about"]
    ids = [encode_prompt(policy.tokenizer, prompt) for prompt in asked]
    sampled = generate_tokens(policy, ids, SamplingConfig(max_new_tokens=6), seed=0)
    texts = [
        completion_text(policy, prompt, s.token_ids, finished=s.finished)
        for prompt, s in zip(ids, sampled, strict=True)
    ]
    wanted = [plain_score(reward, p + c) for p, c in zip(asked, texts, strict=True)]
    assert score_texts(reward, asked, texts) == pytest.approx(wanted, abs=1e-5)
    own = policy.tokenizer.get_vocab()
    shared = own.items() & reward.tokenizer.get_vocab().items()
    assert len(shared) < len(own) / 2

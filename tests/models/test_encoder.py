"""Encoders as reward models: the very numbers of plain transformers, whatever stands beside."""

import pytest
import torch
from tests.tiny import encoder_tokenizer, save_encoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tether.errors import ModelError
from tether.models.encoder import encode
from tether.models.scalar_head import (
    load_reward_model,
    new_reward_model,
    save_reward_model,
    value_model_from_reward,
)
from tether.rewards.reward_model import score_texts
from tether.sections import ComputeConfig

CPU = ComputeConfig(device="cpu")
KINDS = pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "electra"])
PROMPTS = ["the cat", "why", "", "tell me about a dog please", "who"]
COMPLETIONS = ["sees it", "no", "thanks", "it likes the big red bird and helps", "a cat"]


def drawn(reward, seed=5):
    """A head that starts at 0 tells nothing apart; draw one."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        reward.head.weight.copy_(torch.randn(reward.head.weight.shape, generator=generator))
    return reward


@KINDS
def test_scores_are_those_of_plain_transformers_on_text_pairs(tmp_path, kind):
    reward = drawn(new_reward_model(str(save_encoder(tmp_path / "start", kind)), CPU))
    save_reward_model(reward, tmp_path / "saved", {})
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    wanted = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        # One text at a time, without padding, as its tokenizer writes a pair (or a single text).
        texts = (prompt, completion) if prompt else (completion,)
        inputs = tokenizer(*texts, return_tensors="pt")
        if kind == "distilbert":  # has no types
            inputs.pop("token_type_ids")
        with torch.no_grad():
            wanted.append(model(**inputs).logits.item())
    loaded = load_reward_model(str(tmp_path / "saved"), CPU)
    assert score_texts(loaded, PROMPTS, COMPLETIONS) == pytest.approx(wanted, abs=1e-5)
    alone = [score_texts(loaded, [p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert alone == pytest.approx(wanted, abs=1e-5)
    backwards = score_texts(loaded, PROMPTS[::-1], COMPLETIONS[::-1])
    assert backwards[::-1] == pytest.approx(wanted, abs=1e-5)
    assert len({round(score, 3) for score in wanted}) == len(wanted)


@KINDS
def test_a_new_one_scores_0_and_is_the_same_every_time(tmp_path, kind):
    path = str(save_encoder(tmp_path, kind))
    one, other = (new_reward_model(path, CPU, seed=4) for _ in range(2))
    assert score_texts(one, PROMPTS, COMPLETIONS) == [0.0] * len(PROMPTS)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)  # also what lies between the backbone and the last layer


def test_a_pair_has_the_tokenizers_template_and_types():
    # [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, then the words: the 4, a 5, cat 6, dog 7
    tokenizer = encoder_tokenizer()
    row = encode(tokenizer, "the cat", "a dog", 24)
    assert row.ids == [2, 4, 6, 3, 5, 7, 3]
    assert row.num_prompt == 4  # token type 0 up to the first [SEP]
    alone = encode(tokenizer, "", "a dog", 24)
    assert (alone.ids, alone.num_prompt) == ([2, 5, 7, 3], 4)


def test_without_a_template_for_pairs_they_are_one_text():
    row = encode(encoder_tokenizer(pair=False), "the cat ", "a dog", 24)
    assert row.ids == [4, 6, 5, 7]


@pytest.mark.parametrize(
    ("limit", "ids"),
    [
        (7, [2, 4, 6, 3, 5, 7, 3]),
        (6, [2, 6, 3, 5, 7, 3]),  # the prompt loses its beginning
        (5, [2, 3, 5, 7, 3]),
        (4, [2, 3, 5, 3]),  # then the completion its end
    ],
)
def test_what_is_too_long_loses_the_beginning_of_its_prompt(limit, ids):
    assert encode(encoder_tokenizer(), "the cat", "a dog", limit).ids == ids


def test_one_text_too_long_loses_the_beginning_of_its_prompt():
    tokenizer = encoder_tokenizer(pair=False)
    assert encode(tokenizer, "the cat ", "a dog", 3).ids == [6, 5, 7]
    assert encode(tokenizer, "the cat ", "a dog", 1).ids == [5]


def test_of_messages_the_contents_are_read():
    prompt = [{"role": "user", "content": "the"}, {"role": "user", "content": "cat"}]
    answer = [{"role": "assistant", "content": "a dog"}]
    tokenizer = encoder_tokenizer()
    assert encode(tokenizer, prompt, answer, 24) == encode(tokenizer, "the\ncat", "a dog", 24)


@KINDS
def test_long_texts_fit_the_positions(tmp_path, kind):
    reward = drawn(new_reward_model(str(save_encoder(tmp_path, kind)), CPU))
    # RoBERTa's first position stands behind that of the pad (0), so of 24 there are 23.
    assert reward.longest == (23 if kind == "roberta" else 24)
    [score] = score_texts(reward, ["cat " * 40], ["dog " * 40])
    with torch.no_grad():
        row = reward.row("", "dog " * 40, reward.longest)
        # [CLS] and two [SEP] leave 3 tokens less; the prompt is gone wholly
        assert len(row.ids) == reward.longest
    assert score != 0


def test_heads_of_an_encoder_differ(tmp_path):
    reward = new_reward_model(str(save_encoder(tmp_path)), CPU, heads=3, seed=1)
    rows = [reward.row(p, c, 24) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    with torch.no_grad():
        logits = reward.logits(rows)
    assert logits.shape == (5, 3)
    assert logits.std(dim=1).min() > 1e-4


def test_an_encoder_is_no_value_model(tmp_path):
    reward = new_reward_model(str(save_encoder(tmp_path)), CPU)
    with pytest.raises(ModelError, match="BertForSequenceClassification is an encoder"):
        value_model_from_reward(reward)


def test_an_encoder_without_a_pad_token_is_refused(tmp_path):
    save_encoder(tmp_path, labels=1)
    tokenizer = encoder_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no pad token"):
        load_reward_model(str(tmp_path), CPU)

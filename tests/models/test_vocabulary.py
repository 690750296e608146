"""Tokenizers of every kind, and embeddings that are shorter or longer than the vocabulary."""

import json
import math

import pytest
import torch
from tests.models.architectures import SHAPE, tiny_of
from tests.tiny import (
    BOS,
    EOS,
    byte_bpe_tokenizer,
    metaspace_tokenizer,
    save_tiny,
    tiny_gpt2,
    tiny_llama,
    unigram_tokenizer,
    word_tokenizer,
)
from tests.train import toys
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tether.config import DPOConfig
from tether.data.batches import Row, pad
from tether.engine.decode import completion_text, generate_tokens
from tether.errors import ModelError
from tether.models.chat import encode, encode_prompt
from tether.models.language_model import completion_logprobs, load, save
from tether.models.scalar_head import new_reward_model
from tether.models.vocabulary import load_tokenizer, num_ids
from tether.progress import notice
from tether.sections import ComputeConfig, LoraConfig, OptimizerConfig, SamplingConfig
from tether.train.online import train_ppo
from tether.train.preference import train_dpo
from tether.train.reward import train_reward
from tether.train.sft import train_sft

CPU = ComputeConfig(device="cpu")
WORDS = 30  # of the word tokenizer: unk, eos, pad and 27 words


@pytest.fixture(autouse=True)
def _told_anew():
    notice.cache_clear()


def told(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "beyond" in line]


# --- tokens without an embedding ------------------------------------------------------------------


def with_tokens(folder, *tokens, kind="llama", **settings):
    """A directory whose tokenizer was given more tokens, and whose model was not told."""
    save_tiny(folder, kind, **settings)
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["llama", "gpt2"], ids=["untied", "tied"])
def test_rows_are_added_for_tokens_that_have_none(tmp_path, capsys, kind):
    path = with_tokens(tmp_path, "<tool>", "<end>", kind=kind)
    before = AutoModelForCausalLM.from_pretrained(path)
    language_model = load(path, CPU, trainable=True)
    (line,) = told(capsys)
    assert line.startswith(
        f"the tokenizer of {path!r} has 2 tokens ('<tool>', id 30) beyond the 30"
    )
    for get in ("get_input_embeddings", "get_output_embeddings"):
        old, new = (getattr(m, get)().weight.detach() for m in (before, language_model.model))
        assert torch.equal(new[:WORDS], old)
        mean = old.double().mean(0).float()
        torch.testing.assert_close(new[WORDS:], mean.expand(2, -1), atol=1e-6, rtol=0)
    tied = language_model.model.get_output_embeddings().weight
    assert (tied is language_model.model.get_input_embeddings().weight) == (kind == "gpt2")


def test_a_bias_of_the_head_is_lengthened_too(tmp_path):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("phi", **SHAPE))
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(30.0))  # their mean is 14.5
    model.save_pretrained(tmp_path)
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(tmp_path)
    language_model = load(str(tmp_path), CPU)
    assert language_model.model.lm_head.bias.tolist() == [*range(30), 14.5]
    logprobs, _ = completion_logprobs(language_model, pad([Row([5, 30, 9], 1)]))
    assert logprobs.isfinite().all()


def test_what_was_trained_on_new_tokens_is_a_plain_model(tmp_path):
    path = with_tokens(tmp_path / "start", "<tool>")
    rows = [{"prompt": "the cat ", "completion": "sees <tool> it"}]
    fast = OptimizerConfig(learning_rate=1e-2)
    data = toys.write_rows(tmp_path / "rows.jsonl", rows)
    out = train_sft(toys.sft(tmp_path, path, data=data, batch_size=1, optimizer=fast))
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert model.config.vocab_size == len(tokenizer) == 31
    row = encode(tokenizer, "the cat ", "sees <tool> it")
    assert 30 in row.ids
    trained = load(str(out / "model"), CPU)
    found, _ = completion_logprobs(trained, pad([Row(row.ids, row.num_prompt)]))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0].double()
    wanted = torch.log_softmax(logits, -1)[range(1, 5), row.ids[2:]]
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=0)


def test_two_models_of_one_directory_get_the_same_rows(tmp_path):
    # DPO's policy and reference: were they drawn at random, the first loss would not be log 2.
    path = with_tokens(tmp_path / "start", "<tool>")
    rows = [{"prompt": "the cat ", "chosen": "sees <tool>", "rejected": "<tool> it"}]
    out = train_dpo(toys.preference(tmp_path, path, DPOConfig, rows))
    assert toys.metrics(out)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_an_adapter_cannot_train_rows(tmp_path):
    path = with_tokens(tmp_path, "<tool>")
    told = "1 tokens.* beyond the 30 rows .* set lora.rank = 0, or save the base after"
    with pytest.raises(ModelError, match=told) as error:
        load(path, CPU, trainable=True, lora=LoraConfig(rank=2))
    assert "\n" not in str(error.value)


def test_a_pad_token_needs_no_row(tmp_path, capsys):
    # Many models were given a pad token and nothing else: no model reads it.
    save_tiny(tmp_path, pad_is_eos=True)
    tokenizer = word_tokenizer(pad_is_eos=True)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path)
    language_model = load(str(tmp_path), CPU, trainable=True, lora=LoraConfig(rank=2))
    assert language_model.model.config.vocab_size == 29
    assert not told(capsys)
    reward = new_reward_model(str(tmp_path), CPU)  # plain transformers will read it there
    assert reward.model.get_input_embeddings().num_embeddings == 30
    assert reward.tokenizer.pad_token == "[PAD]"


def test_tokens_that_were_added_as_they_should_be(tmp_path, capsys):
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    model = tiny_llama(30, eos_token_id=1)
    model.resize_token_embeddings(31, mean_resizing=False)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    language_model = load(str(tmp_path), CPU, trainable=True, lora=LoraConfig(rank=2))
    assert language_model.model.config.vocab_size == 31
    assert not told(capsys)
    assert 30 in encode(language_model.tokenizer, "the cat <turn> ", "it").ids


def test_the_largest_id_counts_and_not_the_number_of_tokens():
    tokenizer = word_tokenizer()
    assert num_ids(tokenizer) == len(tokenizer) == 30
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    settings["model"]["vocab"]["late"] = 40
    tokenizer.backend_tokenizer.model = (
        type(tokenizer.backend_tokenizer).from_str(json.dumps(settings)).model
    )
    assert (num_ids(tokenizer), len(tokenizer)) == (41, 31)


def test_ids_beyond_the_tokenizer_are_decoded_as_nothing(tmp_path):
    # Embeddings are often longer than the vocabulary, to a round number.
    save_tiny(tmp_path)
    tiny_llama(64, eos_token_id=1).save_pretrained(tmp_path)
    language_model = load(str(tmp_path), CPU)
    text = completion_text(language_model, [3, 5], [6, 50, 63, 7, 1], finished=True)
    assert text.split() == word_tokenizer().decode([6, 7]).split()
    sampled = generate_tokens(language_model, [[3, 5]], SamplingConfig(max_new_tokens=20), seed=1)
    assert any(token >= WORDS for token in sampled[0].token_ids)


# --- what ends a completion -----------------------------------------------------------------------


def with_end_tokens(folder, named):
    save_tiny(folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": named}))
    return folder


def test_several_end_tokens(tmp_path):
    language_model = load(str(with_end_tokens(tmp_path / "a", [5, 9, 14])), CPU)
    assert language_model.stop_ids == {1, 5, 9, 14}  # <eos> of the tokenizer is one as well
    prompts = [[4, 6], [7], [8, 8, 8], [20, 21]]
    sampled = generate_tokens(language_model, prompts, SamplingConfig(max_new_tokens=30), seed=2)
    ends = {each.token_ids[-1] for each in sampled if each.finished}
    assert len(ends) > 1
    for each in sampled:
        assert not language_model.stop_ids & set(each.token_ids[:-1])
    save(language_model, tmp_path / "b", {})
    assert load(str(tmp_path / "b"), CPU).stop_ids == {1, 5, 9, 14}


def test_end_tokens_beyond_the_embeddings_are_left_out(tmp_path):
    assert load(str(with_end_tokens(tmp_path, 50256)), CPU).stop_ids == {1}


def test_a_model_that_never_ends_is_refused(tmp_path):
    tiny_gpt2(30, eos_token_id=50256).save_pretrained(tmp_path)
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="names no end token; set eos_token in its tokenizer"):
        load(str(tmp_path), CPU)


def test_settings_of_generation_that_contradict_each_other_are_saved(tmp_path):
    # transformers refuses to write some of them, which must not cost a trained model.
    save_tiny(tmp_path / "a")
    (tmp_path / "a" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [1, 7], "do_sample": False, "temperature": 0.9, "top_p": 0.6})
    )
    save(load(str(tmp_path / "a"), CPU), tmp_path / "b", {})
    assert load(str(tmp_path / "b"), CPU).stop_ids == {1, 7}


# --- pads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_stages_without_a_pad_token(tmp_path, kind):
    tokenizer = word_tokenizer(pad_is_eos=True)
    tokenizer.pad_token = None
    path = str(save_tiny(tmp_path / "start", kind, tokenizer=tokenizer))
    assert load_tokenizer(path).pad_token is None
    tuned = str(train_sft(toys.sft(tmp_path, path)) / "model")
    rows = [{"prompt": "the cat ", "completions": ["helps", "fears it"], "ranks": [1, 2]}]
    train_reward(toys.reward(tmp_path, tuned, rows))
    train_dpo(toys.preference(tmp_path, tuned, DPOConfig))
    out = train_ppo(toys.ppo(tmp_path, tuned, steps=1))
    assert toys.metrics(out)[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert AutoTokenizer.from_pretrained(out / "model").pad_token is None


# --- what a tokenizer adds by itself --------------------------------------------------------------


def ending(tokenizer):
    """The tokenizer made to put <bos> before every text and <eos> behind it."""
    named = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BOS, EOS)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=named
    )
    return tokenizer


KINDS = {
    "bytes": byte_bpe_tokenizer,
    "bytes that end": lambda: ending(byte_bpe_tokenizer()),
    "metaspace": metaspace_tokenizer,
    "metaspace that ends": lambda: ending(metaspace_tokenizer()),
    "unigram": unigram_tokenizer,
    "unigram that ends": lambda: unigram_tokenizer(ends=True),
    "words that end": lambda: ending(word_tokenizer(bos=True)),
}
WITHOUT = {
    "bytes": lambda: byte_bpe_tokenizer(bos=False),
    "metaspace": lambda: metaspace_tokenizer(bos=False),
    "unigram": lambda: unigram_tokenizer(bos=False),
    "unigram that ends": lambda: unigram_tokenizer(bos=False, ends=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opens", [False, True], ids=["", "the text opens with it"])
def test_exactly_one_bos_and_one_eos(kind, opens):
    tokenizer = KINDS[kind]()
    prompt = BOS * opens + "the cat"
    ids = encode(tokenizer, prompt, " sat on the mat").ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
    start = encode_prompt(tokenizer, prompt)
    assert start == ids[: len(start)]  # sampling starts from what was trained on
    assert tokenizer.eos_token_id not in start
    assert encode_prompt(tokenizer, "") == [tokenizer.bos_token_id]


@pytest.mark.parametrize("kind", WITHOUT)
def test_no_bos_where_there_is_none(kind):
    tokenizer = WITHOUT[kind]()
    row = encode(tokenizer, "the cat", " sat")
    assert row.ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.convert_ids_to_tokens(row.ids)[0].strip("▁Ġ") != BOS
    assert encode_prompt(tokenizer, "") == []


def test_a_bos_that_is_also_the_eos():
    # As OPT has it: alone, it opens the text and does not end it.
    tokenizer = byte_bpe_tokenizer(bos=False)
    tokenizer.bos_token = EOS
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{EOS} $A", special_tokens=[(EOS, eos)]
    )
    assert encode_prompt(tokenizer, "") == [eos]
    row = encode(tokenizer, "", "the cat")
    assert (row.ids[0], row.ids[-1], row.num_prompt, row.ids.count(eos)) == (eos, eos, 1, 2)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "words" not in kind])
@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
def test_completions_come_back_as_they_were(kind, bos, tmp_path):
    tokenizer = (KINDS if bos or kind not in WITHOUT else WITHOUT)[kind]()
    save_tiny(tmp_path, tokenizer=tokenizer)
    language_model = load(str(tmp_path), CPU)
    row = encode(language_model.tokenizer, "Human: hi", " the dog sat on the log")
    prompt, completion = row.ids[: row.num_prompt], row.ids[row.num_prompt :]
    text = completion_text(language_model, prompt, completion, finished=True)
    assert text == " the dog sat on the log"


# --- transformers' own ideas of a tokenizer -------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2", "phi3"])
@pytest.mark.parametrize("make", [word_tokenizer, metaspace_tokenizer, unigram_tokenizer])
def test_the_directory_says_how_text_is_split(tmp_path, kind, make):
    # For some architectures AutoTokenizer takes rules of its own, whatever tokenizer.json says.
    tokenizer = make()
    tiny_of(kind, vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = "the cat sees the dog and\nthe log"
    assert load_tokenizer(str(tmp_path))(text)["input_ids"] == tokenizer(text)["input_ids"]

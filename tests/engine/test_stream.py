import itertools

import pytest
import torch
from tests.tiny import byte_bpe_tokenizer, metaspace_tokenizer, save_tiny, word_tokenizer
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from tether.engine.decode import Token, completion_text, generate_tokens, stream
from tether.engine.decoders import LlamaDecoder
from tether.engine.pieces import pieces
from tether.errors import ConfigError
from tether.models import adapters
from tether.models.language_model import LanguageModel, load, pick_device
from tether.sections import ComputeConfig, LoraConfig, SamplingConfig

CPU = ComputeConfig(device="cpu")
PROMPT = [7, 6, 8, 10, 11]
SAMPLING = SamplingConfig(temperature=0.8, max_new_tokens=14, stop_token_ids=(4, 12))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One for each decoder: the lean forward, transformers' with slots, transformers' own cache."""
    folder = tmp_path_factory.mktemp("models")
    llama = load(str(save_tiny(folder / "llama")), CPU)
    gpt2 = load(str(save_tiny(folder / "gpt2", kind="gpt2")), CPU)
    config = Gemma2Config(
        vocab_size=30,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=4,
        initializer_range=0.2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    gemma = Gemma2ForCausalLM(config).eval()
    windowed = LanguageModel(gemma, word_tokenizer(), frozenset({1}), pick_device(CPU))
    return {"llama": llama, "gpt2": gpt2, "windowed": windowed}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "windowed"])
@pytest.mark.parametrize("seed", [0, 3, 11])
def test_the_tokens_are_those_of_generate(models, kind, seed):
    [whole] = generate_tokens(models[kind], [PROMPT], SAMPLING, seed=seed, step=2)
    told = list(stream(models[kind], PROMPT, SAMPLING, seed=seed, step=2))
    assert [token.id for token in told] == whole.token_ids
    assert [token.logprob for token in told] == whole.logprobs


def test_some_rows_end_by_themselves_and_some_at_the_limit(models):
    ends = {
        list(stream(models["llama"], PROMPT, SAMPLING, seed=seed))[-1].id in (1, 4, 12)
        for seed in range(20)
    }
    assert ends == {True, False}


def test_a_stream_that_is_left_samples_no_more(models, monkeypatch):
    steps, step = [], LlamaDecoder.step
    monkeypatch.setattr(LlamaDecoder, "step", lambda *args: steps.append(1) or step(*args))
    plain = SamplingConfig(max_new_tokens=40)
    assert len(list(itertools.islice(stream(models["llama"], PROMPT, plain, seed=0), 3))) == 3
    assert len(steps) == 2  # the first token is the prompt's


def test_two_models_on_one_backbone_take_turns(tmp_path):
    base = load(str(save_tiny(tmp_path / "base", kind="gpt2")), CPU, trainable=False)
    adapters.attach(base.model, "policy", LoraConfig(rank=2), seed=0)
    with torch.no_grad():
        for parameter in adapters.parameters(base.model, "policy"):
            parameter.add_(0.3)
    policy = LanguageModel(base.model, base.tokenizer, base.stop_ids, base.place, "policy")
    both = [generate_tokens(one, [PROMPT], SAMPLING, seed=1)[0] for one in (policy, base)]
    assert both[0].token_ids != both[1].token_ids
    turns = itertools.zip_longest(
        stream(policy, PROMPT, SAMPLING, seed=1), stream(base, PROMPT, SAMPLING, seed=1)
    )
    told = [[token.id for token in one if token] for one in zip(*turns, strict=True)]
    assert told == [one.token_ids for one in both]


@pytest.mark.parametrize(
    ("prompt", "message"), [([], "no token to start from"), ([5] * 60, "exceeds the model's 64")]
)
def test_prompts_that_do_not_fit_are_refused(models, prompt, message):
    with pytest.raises(ConfigError, match=message):
        next(stream(models["llama"], prompt, SAMPLING, seed=0))


# --- text -----------------------------------------------------------------------------------------


def sentencepiece_tokenizer():
    """Letters and bytes; what is no known letter falls to its bytes, as in Llama 2."""
    names = ["<unk>", "<eos>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁thecasd"]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(names))}
    model = BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def tokens_of(ids):
    return [Token(number, -0.5) for number in ids]


def told(tokenizer, prompt, ids, stop_ids=()):
    return list(pieces(tokenizer, prompt, tokens_of(ids), stop_ids))


@pytest.mark.parametrize("make", [byte_bpe_tokenizer, sentencepiece_tokenizer])
def test_a_character_of_several_tokens_comes_whole(make):
    tokenizer = make()
    prompt = tokenizer("the cat", add_special_tokens=False).input_ids
    ids = tokenizer("the cat é 猫 sat", add_special_tokens=False).input_ids[len(prompt) :]
    found = told(tokenizer, prompt, ids)
    assert "".join(piece.text for piece in found) == " é 猫 sat"
    assert [len(piece.tokens) for piece in found if "猫" in piece.text] == [3]  # its three bytes
    assert [token for piece in found for token in piece.tokens] == tokens_of(ids)
    assert not any("\ufffd" in piece.text for piece in found)


@pytest.mark.parametrize("make", [byte_bpe_tokenizer, metaspace_tokenizer, word_tokenizer])
def test_pieces_together_are_the_completion(make, tmp_path):
    tokenizer = make()
    folder = save_tiny(tmp_path, tokenizer=tokenizer)
    model = load(str(folder), CPU)
    prompt = model.tokenizer("the cat").input_ids
    for seed in range(8):
        sampling = SamplingConfig(max_new_tokens=24)
        [whole] = generate_tokens(model, [prompt], sampling, seed=seed)
        found = told(model.tokenizer, prompt, whole.token_ids, model.stop_ids)
        text = completion_text(model, prompt, whole.token_ids, finished=whole.finished)
        assert "".join(piece.text for piece in found) == text
        assert [t.id for piece in found for t in piece.tokens] == whole.token_ids


def test_what_is_held_back_at_the_end_is_told():
    tokenizer = byte_bpe_tokenizer()
    ids = tokenizer("é", add_special_tokens=False).input_ids
    assert len(ids) == 2
    [piece] = told(tokenizer, tokenizer("a").input_ids, ids[:1])
    assert piece.text == "\ufffd"


def test_an_end_token_is_a_piece_without_text():
    tokenizer = word_tokenizer()
    cat, eos = tokenizer.convert_tokens_to_ids(["cat", "<eos>"])
    found = told(tokenizer, tokenizer("the").input_ids, [cat, eos], [eos])
    assert [(piece.text, len(piece.tokens)) for piece in found] == [(" cat", 1), ("", 1)]

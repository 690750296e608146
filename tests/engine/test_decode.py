import dataclasses
import math

import numpy as np
import pytest
import torch
from tests.tiny import byte_bpe_tokenizer, metaspace_tokenizer, save_tiny, word_tokenizer
from transformers import Gemma2Config, Gemma2ForCausalLM

from tether.data.batches import Row, pack, pad
from tether.engine.decode import check_lengths, completion_text, generate_tokens
from tether.engine.decoders import decoder_for
from tether.engine.sampling import uniforms
from tether.errors import ConfigError
from tether.kernels.build import library
from tether.models import llama
from tether.models.chat import encode
from tether.models.language_model import LanguageModel, completion_logprobs, load, pick_device
from tether.sections import ComputeConfig, SamplingConfig

CPU = ComputeConfig(device="cpu")
EOS = 1
KINDS = {
    "gpt2": {"kind": "gpt2"},
    "llama": {"kind": "llama", "num_key_value_heads": 2},
    "llama-gqa": {"kind": "llama", "num_attention_heads": 4, "num_key_value_heads": 2},
}
CASES = [("gpt2", False), ("gpt2", True), ("llama", False), ("llama-gqa", True)]
NAMES = [f"{kind}-{'pad=eos' if same else 'pad'}" for kind, same in CASES]

# Prompts of very different lengths; end and pad tokens inside, and at the end, of some.
PROMPTS = [
    [5, 9, 4],
    [7, EOS, 6, 8, 2, 10, 11, EOS],
    [12],
    [5, 5, 5, 13, 20, 6, 19, 18, 3, 16, 2, 2, 9, 8, 7, 21, 4, 22],
    [EOS, EOS],
    [15, 16, 17, 18, 19, 20, 21, 22, 23, 24],
    [25, 4, EOS],
    [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17],
    [9],
    [5, 9, 4],
    [14, 3],
    [20, 21, 22, 23, 24, 25, 26],
]
# Four of the 30 tokens end a completion, so that rows end early, at different steps.
STOPS = (4, 12, 20)
SAMPLING = SamplingConfig(temperature=0.8, max_new_tokens=14, stop_token_ids=STOPS)


@pytest.fixture(scope="module", params=CASES, ids=NAMES)
def language_model(request, tmp_path_factory):
    kind, pad_is_eos = request.param
    folder = save_tiny(tmp_path_factory.mktemp("model"), pad_is_eos=pad_is_eos, **KINDS[kind])
    return load(str(folder), CPU)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return load(str(save_tiny(tmp_path_factory.mktemp("gpt2"), kind="gpt2")), CPU)


def changed(**settings):
    return dataclasses.replace(SAMPLING, **settings)


def one_token_at_a_time(model, prompt, draws, stops, temperature):
    """The same completion in the plainest way: the whole row anew for every token, in float64."""
    ids, logprobs = [], []
    for u in draws:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1]
        scaled = logits.double().numpy() / temperature
        p = np.exp(scaled - scaled.max())
        p /= p.sum()
        token = int(np.argmax(np.cumsum(p) > u))
        ids.append(token)
        logprobs.append(math.log(p[token]))
        if token in stops:
            return ids, logprobs, True
    return ids, logprobs, False


def assert_as_the_trainer_sees_them(language_model, prompts, sampled, temperature, atol=1e-4):
    rows = [Row(p + s.token_ids, len(p)) for p, s in zip(prompts, sampled, strict=True)]
    ours = torch.tensor([x for s in sampled for x in s.logprobs])
    for batch in (pad(rows), pack(rows)):
        with torch.no_grad():
            theirs, _ = completion_logprobs(language_model, batch, temperature=temperature)
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


# --- what is sampled ------------------------------------------------------------------------------


def test_it_equals_the_plain_loop_token_by_token(language_model):
    sampled = generate_tokens(language_model, PROMPTS, SAMPLING, seed=5, step=3)
    draws = uniforms(5, 3, list(range(len(PROMPTS))), 14).tolist()
    for prompt, row, own in zip(PROMPTS, draws, sampled, strict=True):
        ids, logprobs, finished = one_token_at_a_time(
            language_model.model, prompt, row, {EOS, *STOPS}, 0.8
        )
        assert own.token_ids == ids
        assert own.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert own.finished == finished
    # The case is worth something only if rows end early, at different steps, and some not at all.
    assert len({len(s.token_ids) for s in sampled}) > 3
    assert {s.finished for s in sampled} == {True, False}


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_log_probs_of_sampling_are_the_trainers(language_model, temperature):
    sampling = changed(temperature=temperature)
    sampled = generate_tokens(language_model, PROMPTS, sampling, seed=0)
    assert_as_the_trainer_sees_them(language_model, PROMPTS, sampled, temperature)


def test_rows_that_have_ended_leave_the_batch(language_model):
    sizes = []
    hook = language_model.model.base_model.register_forward_hook(
        lambda module, args, kwargs, output: sizes.append(len(kwargs["input_ids"])),
        with_kwargs=True,
    )
    decoder_for(language_model, 1, 8)  # which is tried on a few tokens once
    sizes.clear()
    sampled = generate_tokens(language_model, PROMPTS, SAMPLING, seed=5, step=3)
    hook.remove()
    # Eleven different prompts are read; then one token for each row that has not ended.
    running = [sum(len(s.token_ids) > t for s in sampled) for t in range(1, len(sizes))]
    assert sizes == [11, *running]
    assert running[0] > running[-1]
    assert_as_the_trainer_sees_them(language_model, PROMPTS, sampled, 0.8)


def test_after_an_update_it_samples_from_the_new_weights(tmp_path):
    language_model = load(str(save_tiny(tmp_path, kind="gpt2")), CPU, trainable=True)
    before = generate_tokens(language_model, PROMPTS, SAMPLING, seed=0)
    rows = [Row(p + s.token_ids, len(p)) for p, s in zip(PROMPTS, before, strict=True)]
    optimizer = torch.optim.SGD(language_model.model.parameters(), lr=0.5)
    completion_logprobs(language_model, pad(rows), temperature=0.8)[0].mean().neg().backward()
    optimizer.step()
    after = generate_tokens(language_model, PROMPTS, SAMPLING, seed=0)
    assert before != after
    assert_as_the_trainer_sees_them(language_model, PROMPTS, after, 0.8)


def test_windows_and_capped_logits(tmp_path):
    # Gemma 2: attention over the last 4 tokens in every other layer, logits capped at ±2
    config = Gemma2Config(
        vocab_size=len(word_tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        initializer_range=0.2,
        final_logit_softcapping=2.0,
        sliding_window=4,
        eos_token_id=EOS,
        pad_token_id=2,
        bos_token_id=None,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    language_model = load(str(tmp_path), CPU)
    sampled = generate_tokens(language_model, PROMPTS, SAMPLING, seed=0)
    assert_as_the_trainer_sees_them(language_model, PROMPTS, sampled, 0.8)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_in_bfloat16_the_log_probs_stay_near_the_trainers(tmp_path, kind):
    place = ComputeConfig(device="cpu", precision="bfloat16")
    folder = save_tiny(tmp_path, kind=kind, initializer_range=0.05)
    language_model = load(str(folder), place)
    sampled = generate_tokens(language_model, PROMPTS, SAMPLING, seed=0)
    # 8 bits of mantissa; where it matters, PPO measures the gap and rescores. With the C kernels
    # both round at the same places, and differ by the order of float32 sums alone.
    lib = library()
    same = lib is not None and lib.has_bf16_products() and llama.lean(language_model.model)
    atol = 1e-4 if same else 0.1
    assert_as_the_trainer_sees_them(language_model, PROMPTS, sampled, 0.8, atol=atol)


# --- a completion is a function of (model, prompt, seed, step, row) -------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_it_does_not_depend_on_the_rows_decoded_together(language_model, batch_size):
    whole = generate_tokens(language_model, PROMPTS, SAMPLING, seed=1)
    parts = generate_tokens(language_model, PROMPTS, changed(batch_size=batch_size), seed=1)
    for one, other in zip(whole, parts, strict=True):
        assert one.token_ids == other.token_ids
        assert one.finished == other.finished
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_it_does_not_depend_on_the_other_prompts(language_model):
    # Also `finished`: a completion that is the longest of its batch has ended if it has ended.
    whole = generate_tokens(language_model, PROMPTS, SAMPLING, seed=1)
    for i in range(len(PROMPTS)):
        others = [[13, 17, 13]] * len(PROMPTS)
        others[i] = PROMPTS[i]
        alone = generate_tokens(language_model, others, SAMPLING, seed=1)[i]
        assert alone.token_ids == whole[i].token_ids
        assert alone.finished == whole[i].finished


def test_one_prompt_alone(language_model):
    [alone] = generate_tokens(language_model, PROMPTS[:1], SAMPLING, seed=1)
    assert (
        alone.token_ids == generate_tokens(language_model, PROMPTS, SAMPLING, seed=1)[0].token_ids
    )
    assert generate_tokens(language_model, [], SAMPLING, seed=1) == []


def test_seeds_steps_and_rows_differ_and_nothing_else_does(language_model):
    same = [[5, 9, 4]] * 8
    first = generate_tokens(language_model, same, SAMPLING, seed=1)
    torch.manual_seed(99)
    assert generate_tokens(language_model, same, SAMPLING, seed=1) == first
    for seed, step in ((2, 0), (1, 1)):
        other = generate_tokens(language_model, same, SAMPLING, seed=seed, step=step)
        assert [s.token_ids for s in other] != [s.token_ids for s in first]
    # Sampling, not the likeliest token each time: the same prompt gets several answers.
    assert len({tuple(s.token_ids) for s in first}) > 4


def test_frequencies_are_the_models_probabilities(gpt2):
    num, prompt, temperature = 4000, [5, 9, 4], 1.4
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=1, batch_size=1000)
    sampled = generate_tokens(gpt2, [prompt] * num, sampling, seed=7)
    with torch.no_grad():
        logits = gpt2.model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    p = torch.softmax(logits / temperature, -1).tolist()
    counts = [0] * len(p)
    for each in sampled:
        counts[each.token_ids[0]] += 1
    likely = [v for v in range(len(p)) if num * p[v] >= 5]
    rest = num - sum(counts[v] for v in likely)
    expected = num * (1 - sum(p[v] for v in likely))
    chi_square = sum((counts[v] - num * p[v]) ** 2 / (num * p[v]) for v in likely)
    if expected > 1:
        chi_square += (rest - expected) ** 2 / expected
    freedom = len(likely)
    # Wilson-Hilferty: 3.09 standard deviations above the mean is the 99.9% quantile
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert len(likely) > 5
    assert chi_square < limit


# --- what ends a completion -----------------------------------------------------------------------


def always(language_model, token):
    """The same model with logits that leave one token only."""

    class Always(LanguageModel):
        head_weight = None  # so that `head` is asked

        def head(self, hidden):
            logits = torch.full((len(hidden), len(self.tokenizer)), -30.0)
            logits[:, token] = 30.0
            return logits

    model, tokenizer = language_model.model, language_model.tokenizer
    return Always(model, tokenizer, language_model.stop_ids, pick_device(CPU))


def test_the_end_token_belongs_to_the_completion(gpt2):
    [sampled] = generate_tokens(always(gpt2, EOS), [[5]], SAMPLING, seed=0)
    assert (sampled.token_ids, sampled.finished) == ([EOS], True)


def test_an_end_token_in_the_prompt_ends_nothing(gpt2):
    [sampled] = generate_tokens(always(gpt2, 13), [[5, EOS, 7, EOS]], SAMPLING, seed=0)
    assert (sampled.token_ids, sampled.finished) == ([13] * 14, False)


def test_stop_tokens_of_the_settings_and_of_the_model(gpt2):
    model = always(gpt2, 9)
    for stops, model_stops, finished in [
        ((), frozenset({EOS}), False),
        ((9,), frozenset({EOS}), True),
        ((7, 9), frozenset({EOS}), True),
        ((), frozenset({EOS, 9, 11}), True),
    ]:
        model.stop_ids = model_stops
        [sampled] = generate_tokens(model, [[5]], changed(stop_token_ids=stops), seed=0)
        assert sampled.finished == finished
        assert sampled.token_ids == ([9] if finished else [9] * 14)


def test_the_end_may_fall_on_the_last_token_allowed(language_model):
    whole = generate_tokens(language_model, PROMPTS, SAMPLING, seed=1)
    for i, sampled in enumerate(whole):
        length = len(sampled.token_ids)
        if not sampled.finished or length < 2:
            continue
        exact = generate_tokens(language_model, PROMPTS, changed(max_new_tokens=length), seed=1)
        assert (exact[i].token_ids, exact[i].finished) == (sampled.token_ids, True)
        cut = generate_tokens(language_model, PROMPTS, changed(max_new_tokens=length - 1), seed=1)
        assert (cut[i].token_ids, cut[i].finished) == (sampled.token_ids[:-1], False)


def test_progress_is_told_in_rows(gpt2):
    told = []
    generate_tokens(gpt2, PROMPTS, changed(batch_size=5), seed=0, on_rows=told.append)
    assert sum(told) == len(PROMPTS)
    assert 1 <= min(told) <= max(told) <= 5


# --- lengths --------------------------------------------------------------------------------------


def test_a_row_may_fill_all_positions(language_model):
    prompts = [[5] * 50, [6, 7]]
    sampling = SamplingConfig(max_new_tokens=14)
    sampled = generate_tokens(language_model, prompts, sampling, seed=0)
    assert_as_the_trainer_sees_them(language_model, prompts, sampled, 1.0)


def test_a_prompt_without_room_for_a_completion_is_refused(language_model):
    with pytest.raises(ConfigError) as error:
        generate_tokens(language_model, [[6, 7], [5] * 51], SAMPLING, seed=0)
    assert str(error.value) == (
        "prompt 2 has 51 tokens; with sampling.max_new_tokens=14 it exceeds the model's 64 "
        "positions; shorten it or lower sampling.max_new_tokens"
    )


def test_an_empty_prompt_is_refused():
    with pytest.raises(ConfigError, match="prompt 2 has no token to start from"):
        check_lengths([[5], []], 64, 4)


# --- texts ----------------------------------------------------------------------------------------


def with_tokenizer(gpt2, tokenizer):
    return LanguageModel(gpt2.model, tokenizer, frozenset({tokenizer.eos_token_id}), gpt2.place)


@pytest.mark.parametrize("make", [byte_bpe_tokenizer, metaspace_tokenizer], ids=["bytes", "meta"])
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("the cat", " sat on the mat"),  # decoded alone, Llama's kind loses the first blank
        ("Human: how do I bake bread?\n\nAssistant:", " mix flour, water"),
        ("the", "   blanks"),
        ("the cat", ""),
    ],
)
def test_a_completions_text_is_what_it_adds_to_its_prompt(gpt2, make, prompt, completion):
    tokenizer = make()
    encoded = encode(tokenizer, prompt, completion)
    start, rest = encoded.ids[: encoded.num_prompt], encoded.ids[encoded.num_prompt :]
    model = with_tokenizer(gpt2, tokenizer)
    assert completion_text(model, start, rest, finished=True) == completion
    assert completion_text(model, start, rest[:-1], finished=False) == completion


def test_characters_of_several_tokens(gpt2):
    tokenizer = byte_bpe_tokenizer()
    start, rest = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("é", "ü 👩‍🚀")
    )
    model = with_tokenizer(gpt2, tokenizer)
    assert completion_text(model, start, rest, finished=False) == "ü 👩‍🚀"
    # Cut inside a character: what there is of it is shown as such, and the prompt left whole.
    assert completion_text(model, start, rest[:-1], finished=False) == "ü 👩‍\ufffd"


def test_words_are_parted_from_the_prompt(gpt2):
    # 4 the, 6 cat, 8 bird: prompt + text reads as the tokens did, "the cat" and not "thecat"
    words = gpt2.tokenizer.convert_ids_to_tokens
    found = completion_text(gpt2, [4], [6, 8, EOS], finished=True)
    assert ("".join(words([4])) + found).split() == words([4, 6, 8])


def test_end_tokens_and_special_ones_are_no_text(gpt2):
    # A stop token of the settings is an ordinary word; it goes where it ended the completion only.
    dog = gpt2.tokenizer.convert_tokens_to_ids("dog")
    cat = gpt2.tokenizer.convert_tokens_to_ids("cat")
    pad_id = gpt2.tokenizer.pad_token_id
    assert completion_text(gpt2, [dog], [cat, dog], finished=True) == " cat"
    assert completion_text(gpt2, [dog], [cat, dog], finished=False) == " cat dog"
    assert completion_text(gpt2, [dog], [pad_id, cat, EOS, dog], finished=False) == " cat dog"
    assert completion_text(gpt2, [EOS, dog], [EOS], finished=True) == ""

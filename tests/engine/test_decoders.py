import dataclasses
from functools import cache

import pytest
import torch
from tests.engine.test_decode import EOS, PROMPTS, STOPS, one_token_at_a_time
from tests.kernels.backends import NEEDS_C, backend_of
from tests.tiny import tiny_gpt2, tiny_llama, word_tokenizer
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tether.data.batches import Row, pack
from tether.engine import decode, decoders, transformers_decoders
from tether.engine.decode import generate_tokens
from tether.engine.decoders import LlamaDecoder, SlotDecoder, StepDecoder, decoder_for
from tether.engine.sampling import uniforms
from tether.models import llama
from tether.models.language_model import LanguageModel, completion_logprobs, pick_device
from tether.sections import ComputeConfig, SamplingConfig

TOKENIZER = word_tokenizer()
SMALL = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": 2,
}
SAMPLING = SamplingConfig(temperature=0.8, max_new_tokens=14, stop_token_ids=STOPS)
SEED, STEP = 5, 3


def of(model):
    place = pick_device(ComputeConfig(device="cpu"))
    return LanguageModel(model.eval(), TOKENIZER, frozenset({EOS}), place)


@cache
def language_model(kind):
    torch.manual_seed(1)
    if kind == "llama":
        model = tiny_llama(len(TOKENIZER), num_attention_heads=4, num_key_value_heads=2)
    elif kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=12))
    elif kind == "smollm3":  # the first layer's keys are not rotated
        model = SmolLM3ForCausalLM(SmolLM3Config(**SMALL, no_rope_layers=[0, 1]))
    elif kind == "gpt2":
        model = tiny_gpt2(len(TOKENIZER))
    else:
        raise AssertionError(kind)
    return of(model)


def make(name, model, slots, room):
    """A decoder by its name, whatever `decoder_for` would take."""
    if name.startswith("llama"):
        lean = llama.lean(model.model)
        assert lean is not None
        return LlamaDecoder(model, lean, slots, room)
    return SlotDecoder(model, slots, room) if name == "slot" else StepDecoder(model)


DECODERS = [pytest.param("llama in C", marks=NEEDS_C), "llama in torch", "slot", "step"]
SLOTTED = DECODERS[:3]


@pytest.fixture(params=DECODERS)
def decoder(request):
    with backend_of("torch" if request.param == "llama in torch" else "C"):
        yield request.param


@pytest.fixture(params=SLOTTED)
def slotted(request):
    with backend_of("torch" if request.param == "llama in torch" else "C"):
        yield request.param


class Watched:
    """A decoder that counts what it is asked for."""

    def __init__(self, own):
        self.own, self.refills = own, own.refills
        self.read, self.decoded, self.joined_late = [], [], False

    def prefill(self, prompts, slots):
        self.joined_late |= bool(self.decoded)
        self.read += prompts
        return self.own.prefill(prompts, slots)

    def step(self, token, slot, position):
        assert slot.tolist() == sorted(set(slot.tolist()))
        self.decoded.append(len(slot))
        return self.own.step(token, slot, position)


@pytest.fixture
def watched(monkeypatch):
    """Generate with a decoder of a name; returns completions and the decoder."""

    def generate(name, model, prompts, sampling):
        made = []

        def taken(model, slots, room):
            made.append(Watched(make(name, model, slots, room)))
            return made[0]

        monkeypatch.setattr(decode, "decoder_for", taken)
        sampled = generate_tokens(model, prompts, sampling, seed=SEED, step=STEP)
        return sampled, made[0]

    return generate


@cache
def plain(kind, prompts, temperature):
    """The completions of the plainest loop."""
    draws = uniforms(SEED, STEP, list(range(len(prompts))), SAMPLING.max_new_tokens).tolist()
    model = language_model(kind).model
    return [
        one_token_at_a_time(model, list(prompt), row, {EOS, *STOPS}, temperature)
        for prompt, row in zip(prompts, draws, strict=True)
    ]


def assert_plain(sampled, kind, prompts, temperature=0.8):
    wanted = plain(kind, tuple(map(tuple, prompts)), temperature)
    for found, (ids, logprobs, finished) in zip(sampled, wanted, strict=True):
        assert found.token_ids == ids
        assert found.finished == finished
        assert found.logprobs == pytest.approx(logprobs, abs=1e-4 / temperature)


# --- the same completions as the plain loop -------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3", "smollm3"])
@pytest.mark.parametrize("temperature", [0.05, 0.8])
def test_completions_are_those_of_the_plain_loop(decoder, watched, kind, temperature):
    sampling = dataclasses.replace(SAMPLING, temperature=temperature)
    sampled, _ = watched(decoder, language_model(kind), PROMPTS, sampling)
    assert_plain(sampled, kind, PROMPTS, temperature)
    if temperature > 0.5:
        assert {each.finished for each in sampled} == {True, False}


@pytest.mark.parametrize("batch_size", [2, 3, 4, 5])
def test_rows_that_join_late(decoder, watched, batch_size):
    sampling = dataclasses.replace(SAMPLING, batch_size=batch_size)
    sampled, used = watched(decoder, language_model("llama"), PROMPTS, sampling)
    assert_plain(sampled, "llama", PROMPTS)
    assert max(used.decoded) <= batch_size
    assert used.joined_late


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_when_slots_are_refilled_does_not_matter(slotted, watched, monkeypatch, share):
    monkeypatch.setattr(decode, "REFILL_SHARE", share)
    sampling = dataclasses.replace(SAMPLING, batch_size=4)
    sampled, _ = watched(slotted, language_model("llama"), PROMPTS, sampling)
    assert_plain(sampled, "llama", PROMPTS)


def test_rows_that_have_ended_are_not_decoded(decoder, watched):
    for batch_size in (3, 12):
        sampling = dataclasses.replace(SAMPLING, batch_size=batch_size)
        sampled, used = watched(decoder, language_model("llama"), PROMPTS, sampling)
        # The first token comes from the prompt, and the last is read by nothing.
        assert sum(used.decoded) == sum(len(each.token_ids) - 1 for each in sampled)
        if batch_size == 12:
            steps = range(1, len(used.decoded) + 1)
            running = [sum(len(each.token_ids) > t for each in sampled) for t in steps]
            assert used.decoded == running


# --- copies of a prompt ---------------------------------------------------------------------------


@pytest.fixture
def tokens_read(monkeypatch):
    """How many prompt tokens go through the model, pads included."""
    counts = []
    lean, other = llama.hidden_states, transformers_decoders.run

    def by_lean(found, sequences, *args):
        counts.append(len(sequences.ids))
        return lean(found, sequences, *args)

    def by_transformers(model, cache, ids, *args):
        if ids.shape[1] > 1:
            counts.append(ids.numel())
        return other(model, cache, ids, *args)

    monkeypatch.setattr(llama, "hidden_states", by_lean)
    monkeypatch.setattr(transformers_decoders, "run", by_transformers)
    return counts


COPIES = [PROMPTS[5]] * 4 + [PROMPTS[1]] * 3 + [PROMPTS[5]] * 2


def test_copies_of_a_prompt_are_read_once(slotted, watched, tokens_read):
    model = language_model("llama")
    llama.lean(model.model)  # its own comparison is not to be counted
    tokens_read.clear()
    sampled, used = watched(slotted, model, COPIES, SAMPLING)
    assert sorted(used.read) == sorted([PROMPTS[1], PROMPTS[5]])
    # 8 and 10 tokens; transformers' batch is as wide as the longest
    assert tokens_read == [20 if slotted == "slot" else 18]
    assert_plain(sampled, "llama", COPIES)
    assert len({tuple(each.token_ids) for each in sampled}) > 5  # each goes its own way


@pytest.mark.parametrize("batch_size", [2, 5])
def test_copies_in_several_batches(decoder, watched, batch_size):
    sampling = dataclasses.replace(SAMPLING, batch_size=batch_size)
    sampled, _ = watched(decoder, language_model("llama"), COPIES, sampling)
    assert_plain(sampled, "llama", COPIES)


def test_prompts_are_read_in_several_passes(watched, tokens_read, monkeypatch):
    monkeypatch.setattr(decoders, "PREFILL_TOKENS", 20)
    model = language_model("llama")
    llama.lean(model.model)
    tokens_read.clear()
    sampled, _ = watched("llama", model, PROMPTS, SAMPLING)
    assert_plain(sampled, "llama", PROMPTS)
    # Longest first: 18 | 12 | 10, 8 | 7, 3, 3, 2, 2, 1, 1, where [5, 9, 4] is there twice
    assert tokens_read == [18, 12, 18, 19]


# --- decoders by hand: hidden states, slots, room -------------------------------------------------


def plain_hidden(model, ids):
    """The last hidden state of a row, by transformers alone."""
    with torch.no_grad():
        hidden = model.model.base_model(input_ids=torch.tensor([ids]), use_cache=False)
    return hidden.last_hidden_state[0, -1]


def stepped(decoder, rows, slots):
    """Give some slots the last tokens of their rows."""
    return decoder.step(
        torch.tensor([row[-1] for row in rows]),
        torch.tensor(slots),
        torch.tensor([len(row) - 1 for row in rows]),
    )


def assert_hidden(found, model, rows):
    for one, row in zip(found, rows, strict=True):
        torch.testing.assert_close(one, plain_hidden(model, row), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "smollm3"])
@torch.no_grad()
def test_slots_live_their_own_lives(slotted, kind):
    model = language_model(kind)
    decoder = make(slotted, model, slots=5, room=30)
    long, short, other = list(range(3, 20)), [7, 9], [20, 8, 6, 4, 22]
    assert_hidden(decoder.prefill([long, short], [[3], [0, 4]]), model, [long, short])
    # Of the copies one goes on, the other waits.
    assert_hidden(
        stepped(decoder, [[*short, 5], [*long, 6]], [0, 3]), model, [[7, 9, 5], [*long, 6]]
    )
    # A late one takes a slot that was never used, then one that was used by a longer row.
    assert_hidden(decoder.prefill([other], [[1]]), model, [other])
    rows = [[7, 9, 5, 11], [*other, 3], [*short, 12]]
    assert_hidden(stepped(decoder, rows, [0, 1, 4]), model, rows)
    assert_hidden(decoder.prefill([[15]], [[3]]), model, [[15]])
    rows = [[7, 9, 5, 11, 13], [*other, 3, 3], [15, 16], [*short, 12, 10]]
    assert_hidden(stepped(decoder, rows, [0, 1, 3, 4]), model, rows)


@torch.no_grad()
def test_all_slots_at_once(slotted):
    model = language_model("llama")
    decoder = make(slotted, model, slots=3, room=12)
    rows = [[5], [6, 7, 8, 9], [10, 11]]
    assert_hidden(decoder.prefill(rows, [[0], [1], [2]]), model, rows)
    for token in (12, 13, 3):
        rows = [[*row, token + i] for i, row in enumerate(rows)]
        assert_hidden(stepped(decoder, rows, [0, 1, 2]), model, rows)


@pytest.mark.parametrize("room", [1, 2, 17, 64])
@torch.no_grad()
def test_the_room_is_used_to_the_last_position(slotted, room):
    model = language_model("llama")
    row = [(3 + 5 * i) % len(TOKENIZER) for i in range(room)]
    decoder = make(slotted, model, slots=2, room=room)
    assert_hidden(decoder.prefill([row], [[1]]), model, [row])
    if room > 1:
        decoder.prefill([row[:-1], row[:1]], [[1], [0]])
        rows = [row[:2], row]
        assert_hidden(stepped(decoder, rows, [0, 1]), model, rows)


def test_a_completion_may_fill_all_positions(decoder, watched):
    sampling = dataclasses.replace(SAMPLING, stop_token_ids=(), max_new_tokens=14)
    prompts = [[5] * 50, [6, 7]]
    model = language_model("llama")
    model = dataclasses.replace(model, stop_ids=frozenset({-1}))  # so that nothing ends it
    sampled, _ = watched(decoder, model, prompts, sampling)
    assert [len(each.token_ids) for each in sampled] == [14, 14]
    rows = [Row(p + s.token_ids, len(p)) for p, s in zip(prompts, sampled, strict=True)]
    with torch.no_grad():
        theirs, _ = completion_logprobs(model, pack(rows), temperature=0.8)
    ours = torch.tensor([x for s in sampled for x in s.logprobs])
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


# --- precision ------------------------------------------------------------------------------------


@NEEDS_C
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_with_kernels_and_without(kind, watched):
    model = language_model(kind)
    with backend_of("C"):
        ours, _ = watched("llama", model, PROMPTS, SAMPLING)
    with backend_of("torch"):
        theirs, _ = watched("llama", model, PROMPTS, SAMPLING)
    for one, other in zip(ours, theirs, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


@pytest.mark.parametrize("backend", [pytest.param("C", marks=NEEDS_C), "torch"])
def test_in_bfloat16_the_trainer_can_trust_the_sampler(backend, watched):
    # Weights as transformers draws them; logits with a standard deviation of 3.
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny_llama(len(TOKENIZER), initializer_range=0.02, **size, **heads)
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 3 / 64**0.5)
    place = pick_device(ComputeConfig(device="cpu", precision="bfloat16"))
    narrow = LanguageModel(model, TOKENIZER, frozenset({EOS}), place)
    prompts, sampling = PROMPTS * 4, SamplingConfig(max_new_tokens=30)
    with backend_of(backend):
        sampled, _ = watched("llama", narrow, prompts, sampling)
        batch = pack([Row(p + s.token_ids, len(p)) for p, s in zip(prompts, sampled, strict=True)])
        with torch.no_grad():
            trained, _ = completion_logprobs(narrow, batch)
            exact, _ = completion_logprobs(of(model), batch)
    gap = (torch.tensor([x for s in sampled for x in s.logprobs]) - trained).abs()
    assert gap.mean() < 0.005
    assert gap.max() < 0.05
    assert gap.mean() < 0.7 * (trained - exact).abs().mean()  # what bfloat16 costs anyway


# --- which decoder serves which model -------------------------------------------------------------


def test_the_fastest_decoder_that_serves():
    def taken(model, room):
        return type(decoder_for(model, 2, room))

    assert taken(language_model("llama"), 60) is LlamaDecoder
    assert taken(language_model("gpt2"), 60) is SlotDecoder
    windowed = of(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=20)))
    assert taken(windowed, 20) is LlamaDecoder
    assert taken(windowed, 21) is StepDecoder
    gemma = of(Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, sliding_window=20)))
    assert taken(gemma, 20) is SlotDecoder
    assert taken(gemma, 21) is StepDecoder
    hooked = of(tiny_llama(len(TOKENIZER)))
    hooked.model.base_model.register_forward_hook(lambda *args: None)
    assert taken(hooked, 60) is SlotDecoder


@pytest.mark.parametrize("window", [7, 20, 40])
def test_windows_narrower_than_a_row(window):
    torch.manual_seed(2)
    model = of(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=window)))
    sampled = generate_tokens(model, PROMPTS, SAMPLING, seed=SEED, step=STEP)
    draws = uniforms(SEED, STEP, list(range(len(PROMPTS))), 14).tolist()
    for prompt, row, found in zip(PROMPTS, draws, sampled, strict=True):
        ids, logprobs, finished = one_token_at_a_time(model.model, prompt, row, {EOS, *STOPS}, 0.8)
        assert (found.token_ids, found.finished) == (ids, finished)
        assert found.logprobs == pytest.approx(logprobs, abs=1e-4)

"""Every architecture through every kind of stage, against plain transformers and peft.

What is computed twice here: log-probs by tether, from rows padded and packed, and by transformers
alone, one row at a time.
"""

import math
from functools import cache

import pytest
import torch
from peft import PeftModel
from tests.engine.test_decode import one_token_at_a_time
from tests.models.architectures import (
    ARCHITECTURES,
    EOS,
    SHAPE,
    TOKENIZER,
    VOCABULARY,
    WINDOW,
    save_architecture,
    tiny_of,
)
from tests.train import toys
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Model,
    T5Config,
    T5ForConditionalGeneration,
)

from tether.config import DPOConfig
from tether.data.batches import Row, pack, pad
from tether.engine.decode import generate_tokens
from tether.engine.decoders import decoder_for
from tether.engine.sampling import uniforms
from tether.engine.transformers_decoders import SlotDecoder, WholeDecoder
from tether.errors import ConfigError, ModelError
from tether.models import adapters, layouts
from tether.models.language_model import completion_logprobs, load
from tether.models.scalar_head import load_reward_model
from tether.progress import notice
from tether.sections import ComputeConfig, LoraConfig, OptimizerConfig, SamplingConfig
from tether.train.online import train_ppo
from tether.train.preference import train_dpo
from tether.train.reward import train_reward
from tether.train.sft import train_sft

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft's

CPU = ComputeConfig(device="cpu")
EACH = pytest.mark.parametrize("name", ARCHITECTURES)
STOPS = (4, 12, 20)
SAMPLING = SamplingConfig(temperature=0.8, max_new_tokens=8, stop_token_ids=STOPS, batch_size=3)
PROMPTS = [[5, 9, 4], [7], [6, 8, 20, 6, 4, 22, 9, 11, 13], [23, 5], [5, 9, 4], [12, 13, 14]]

# Most are longer than the window, and so is every pack of them.
ROWS = [
    Row([(7 * i + 3 * j) % 29 for j in range(length)], num_prompt)
    for i, (length, num_prompt) in enumerate([(17, 4), (3, 1), (9, 8), (6, 0), (12, 2), (2, 1)])
]
LAYOUTS = {
    "padded": pad(ROWS),
    "packed": pack(ROWS),
    "two packs": pack(ROWS[:2], ROWS[2:]),
}
FAST = OptimizerConfig(learning_rate=1e-2)
COMPARISONS = [
    {"prompt": "the cat ", "completions": ["helps please", "fears it"], "ranks": [1, 2]},
    {"prompt": "who likes the big red dog ", "completions": ["a bird", "no"], "ranks": [2, 1]},
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The directory of each architecture, saved once."""
    return cache(lambda name: str(save_architecture(tmp_path_factory.mktemp(name), name)))


@pytest.fixture(scope="session")
def models(folders):
    """Each architecture, loaded once; nobody changes them."""
    return cache(lambda name: load(folders(name), CPU, trainable=True))


def plain_logprobs(model, row):
    """Log-probs of a row's completion tokens, by transformers alone, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].double()
    every = torch.log_softmax(logits[row.first - 1 : -1], -1)
    return every.gather(1, torch.tensor(row.ids[row.first :])[:, None])[:, 0]


def assert_same_logprobs(language_model, model):
    wanted = torch.cat([plain_logprobs(model, row) for row in ROWS])
    for name, batch in LAYOUTS.items():
        with torch.no_grad():
            found, _ = completion_logprobs(language_model, batch)
        torch.testing.assert_close(found.double(), wanted, atol=5e-5, rtol=0, msg=name)


# --- the same numbers however rows are laid out ---------------------------------------------------


@EACH
def test_logprobs_are_those_of_each_row_alone(models, name):
    assert_same_logprobs(models(name), tiny_of(name))


@EACH
def test_it_is_known_who_keeps_packed_rows_apart(models, name):
    assert layouts.keeps_apart(models(name).model) == ARCHITECTURES[name].packs


@EACH
def test_gradients_do_not_depend_on_the_layout(models, name):
    language_model = models(name)
    parameters = [p for p in language_model.model.parameters() if p.requires_grad]
    found = []
    for batch in (LAYOUTS["padded"], LAYOUTS["two packs"]):
        logprobs, _ = completion_logprobs(language_model, batch)
        weights = torch.linspace(0.2, 1.7, len(logprobs))
        found.append(torch.autograd.grad((logprobs * weights).sum(), parameters, allow_unused=True))
    for one, other in zip(*found, strict=True):
        if one is None:  # positions or rows that nothing reads
            assert other is None
        else:
            scale = max(float(one.abs().max()), 1e-3)
            torch.testing.assert_close(one, other, atol=5e-5 * scale, rtol=0)


def test_a_window_is_narrower_than_the_rows(models):
    # or the tests above would not say anything about windows
    wide = load_with(models, "mistral", sliding_window=64)
    row = ROWS[0]
    narrow = plain_logprobs(models("mistral").model, row)
    assert (plain_logprobs(wide, row) - narrow).abs().max() > 0.1
    assert min(len(row.ids) for row in (ROWS[0], ROWS[2], ROWS[3], ROWS[4])) > WINDOW


def load_with(models, name, **changes):
    model = tiny_of(name, **changes)
    model.load_state_dict(models(name).model.state_dict())
    return model


# --- generation -----------------------------------------------------------------------------------


@EACH
def test_generation_is_the_plain_loop(models, name):
    language_model, model = models(name), tiny_of(name)
    room = max(map(len, PROMPTS)) + SAMPLING.max_new_tokens
    assert type(decoder_for(language_model, 3, room)).__name__ == ARCHITECTURES[name].decoder
    assert_plain_loop(language_model, model)


def assert_plain_loop(language_model, model):
    sampled = generate_tokens(language_model, PROMPTS, SAMPLING, seed=5, step=3)
    draws = uniforms(5, 3, list(range(len(PROMPTS))), SAMPLING.max_new_tokens).tolist()
    for prompt, row, found in zip(PROMPTS, draws, sampled, strict=True):
        ids, logprobs, finished = one_token_at_a_time(model, prompt, row, {EOS, *STOPS}, 0.8)
        assert (found.token_ids, found.finished) == (ids, finished)
        assert found.logprobs == pytest.approx(logprobs, abs=1e-4)


# --- the stages -----------------------------------------------------------------------------------


@EACH
def test_a_step_of_sft_and_what_it_saves(folders, models, tmp_path, name):
    out = train_sft(toys.sft(tmp_path, folders(name), optimizer=FAST))
    trained = load(str(out / "model"), CPU)
    model = AutoModelForCausalLM.from_pretrained(out / "model").eval()
    assert_same_logprobs(trained, model)
    moved = plain_logprobs(model, ROWS[0]) - plain_logprobs(models(name).model, ROWS[0])
    assert moved.abs().max() > 1e-3
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = models(name).model.config.get_text_config().tie_word_embeddings
    assert (head.weight is embeddings.weight) == tied
    with torch.no_grad():
        new, _ = completion_logprobs(trained, LAYOUTS["packed"])
        old, _ = completion_logprobs(models(name), LAYOUTS["packed"])
    assert not torch.allclose(new, old)


@pytest.mark.parametrize("name", [n for n, one in ARCHITECTURES.items() if one.classifier])
def test_a_step_of_the_reward_model_and_what_it_saves(folders, tmp_path, name):
    config = toys.reward(tmp_path, folders(name), COMPARISONS, max_steps=1, optimizer=FAST)
    out = train_reward(config)
    assert toys.metrics(out)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    reward = load_reward_model(str(out / "model"), CPU)
    model = AutoModelForSequenceClassification.from_pretrained(out / "model").eval()
    model.config.pad_token_id = None  # so that the last token is read, whatever it is
    with torch.no_grad():
        wanted = [float(model(input_ids=torch.tensor([row.ids])).logits[0, 0]) for row in ROWS]
        for batch in LAYOUTS.values():
            assert reward.scores(batch).tolist() == pytest.approx(wanted, abs=1e-4)
    assert max(wanted) - min(wanted) > 1e-3


def test_an_architecture_without_a_classifier(folders, tmp_path):
    with pytest.raises(ModelError, match="no sequence classifier of 'mamba'") as error:
        train_reward(toys.reward(tmp_path, folders("mamba"), COMPARISONS))
    assert "\n" not in str(error.value)


@EACH
def test_a_step_of_ppo(folders, tmp_path, name):
    out = train_ppo(toys.ppo(tmp_path, folders(name), steps=1, epochs=1, optimizer=FAST))
    (row,) = toys.metrics(out)
    # Log-probs of the sampler, of the reference and of the first pass of the update are the same.
    assert row["kl"] == pytest.approx(0, abs=1e-5)
    assert row["sampler_trusted"] == 1
    assert math.isfinite(row["value_loss"])
    assert_same_logprobs(
        load(str(out / "model"), CPU), AutoModelForCausalLM.from_pretrained(out / "model").eval()
    )


@EACH
def test_a_step_of_dpo(folders, tmp_path, name):
    out = train_dpo(toys.preference(tmp_path, folders(name), DPOConfig, optimizer=FAST))
    # At the start policy and reference are the same, so every pair loses log 2.
    assert toys.metrics(out)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert_same_logprobs(
        load(str(out / "model"), CPU), AutoModelForCausalLM.from_pretrained(out / "model").eval()
    )


@EACH
def test_an_adapter_is_trained_and_peft_loads_it(folders, models, tmp_path, name):
    lora = LoraConfig(rank=2, targets=("in_proj", "x_proj") if name == "mamba" else ())
    out = train_sft(toys.sft(tmp_path, folders(name), optimizer=FAST, lora=lora, max_steps=2))
    assert adapters.is_adapter(str(out / "model"))
    trained = load(str(out / "model"), CPU)
    base = AutoModelForCausalLM.from_pretrained(folders(name)).eval()
    before = plain_logprobs(base, ROWS[0])
    plain = PeftModel.from_pretrained(base, str(out / "model")).eval()
    assert_same_logprobs(trained, plain)
    assert (plain_logprobs(plain, ROWS[0]) - before).abs().max() > 1e-3


# --- packs that are parted ------------------------------------------------------------------------


def test_parted_rows_by_hand():
    # [5 6 7][8] and [9 10] stand in two packs; asked for are 6, 8 and 10.
    batch = pack([Row([5, 6, 7], 1), Row([8], 0)], [Row([9, 10], 1)])
    where = torch.isin(batch.input_ids, torch.tensor([6, 8, 10]))
    rows, wanted = layouts.parted(batch, where)
    assert rows.input_ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 10, 0]]
    assert rows.last_mask.int().tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert rows.completion_mask.int().tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0]]
    assert rows.input_ids[wanted].tolist() == [6, 8, 10]
    assert rows.position_ids is None
    assert rows.attention_mask is None


def told(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line]


def test_parting_is_told_once_in_one_line(models, capsys):
    notice.cache_clear()
    for name in ("opt", "falcon", "opt", "gpt2"):
        for layout in LAYOUTS.values():
            with torch.no_grad():
                completion_logprobs(models(name), layout)
    first, second = told(capsys)
    assert first.startswith("OPTForCausalLM lets rows that share a row of the batch see each other")
    assert second.startswith("FalconForCausalLM")


def test_decoding_without_a_cache_is_told_once_in_one_line(models, capsys):
    notice.cache_clear()
    for _ in range(2):
        generate_tokens(models("mamba"), [[5, 9]], SAMPLING, seed=0)
        generate_tokens(models("mistral"), [[5, 9]], SAMPLING, seed=0)
    (line,) = told(capsys)
    assert line.startswith("MambaForCausalLM does not give its own numbers with a cache")


def test_whoever_stumbles_over_a_pack_is_given_padded_rows(tmp_path, monkeypatch):
    own = GPT2Model.forward

    def without_positions(self, input_ids, position_ids=None, **settings):
        if position_ids is not None:
            raise TypeError("no positions, please")
        return own(self, input_ids, **settings)

    monkeypatch.setattr(GPT2Model, "forward", without_positions)
    language_model = load(str(save_architecture(tmp_path, "gpt2")), CPU)
    assert not layouts.keeps_apart(language_model.model)
    assert_same_logprobs(language_model, tiny_of("gpt2"))
    assert isinstance(decoder_for(language_model, 2, 9), WholeDecoder)


def test_a_model_that_does_not_look_back_yet_is_given_padded_rows():
    # Attention that starts at 0 would hide that packed rows see each other, and training shows it.
    for name in ("opt", "gpt2"):
        model = tiny_of(name)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "self_attn.out_proj" in parameter_name or "attn.c_proj" in parameter_name:
                    parameter.zero_()
        assert not layouts.keeps_apart(model)


def test_windows_that_only_the_model_knows_of(tmp_path):
    # GPT-Neo's cache names no window; its layers count columns back from the last one.
    config = AutoConfig.for_model(
        "gpt_neo",
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=64,
        window_size=8,
        attention_types=[[["global", "local"], 1]],
        initializer_range=0.2,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    language_model = load(str(tmp_path), CPU)
    assert_same_logprobs(language_model, model)
    assert type(decoder_for(language_model, 3, 8)) is SlotDecoder
    assert_plain_loop(language_model, model)


# --- what is not served ---------------------------------------------------------------------------


def test_a_model_whose_tokens_see_ahead_is_refused(tmp_path):
    config = AutoConfig.for_model("bert", **SHAPE)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a BertLMHeadModel, in which tokens see what follows"):
        load(str(tmp_path), CPU)


def test_an_encoder_decoder_is_refused(tmp_path):
    config = T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is an encoder-decoder \(t5\); give a decoder-only"):
        load(str(tmp_path), CPU)


def test_a_model_without_a_backbone_of_its_own_is_refused(tmp_path):
    chunks = {"attention_chunk_size": WINDOW, "no_rope_layers": [1, 0], "num_local_experts": 2}
    settings = {**SHAPE, **chunks, "head_dim": 8, "intermediate_size_mlp": 48}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama4_text", **settings))
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="Llama4ForCausalLM has no backbone apart from its head"):
        load(str(tmp_path), CPU)


def test_noise_on_a_router_is_set_to_zero(models):
    # It acts in training mode and would make two passes differ.
    model = models("mixtral").model
    assert model.config.router_jitter_noise == 0
    model.train()
    with torch.no_grad():
        one, other = (completion_logprobs(models("mixtral"), pad(ROWS))[0] for _ in range(2))
    model.eval()
    assert torch.equal(one, other)


def test_layers_of_the_experts_are_no_targets(folders):
    lora = LoraConfig(rank=2, targets=("gate_proj",))
    with pytest.raises(ConfigError, match=r"'gate_proj' is no linear layer of this Qwen3Next"):
        load(folders("qwen3-next"), CPU, trainable=True, lora=lora)


def test_targets_that_peft_refuses(folders):
    with pytest.raises(ConfigError, match=r"lora.targets=\[.*'out_proj' is incompatible"):
        load(folders("mamba"), CPU, trainable=True, lora=LoraConfig(rank=2))

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
from tests.models.architectures import ARCHITECTURES, EOS, WINDOW, save_architecture, tiny_of
from tests.train import toys
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tether.config import DPOConfig
from tether.data.batches import Row, pack, pad
from tether.engine.decode import generate_tokens
from tether.engine.decoders import decoder_for
from tether.engine.sampling import uniforms
from tether.errors import ModelError
from tether.models import adapters, layouts
from tether.models.language_model import completion_logprobs, load
from tether.models.scalar_head import load_reward_model
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


# --- what is not served ---------------------------------------------------------------------------

"""Footprints of sft, reward and preference methods: the batch taken, its bytes, what is assumed."""

import sys

import pytest

from tests import tiny
from tests.train import toys
from tether.config import DPOConfig, GenerateConfig, KTOConfig
from tether.data.batches import Row
from tether.footprint.fit import Fit, of_preference, of_reward, of_sft
from tether.footprint.parts import bytes_of
from tether.records import Demonstration
from tether.sections import SamplingConfig

# The parameters of toys.save's Llama, 28 words wide (vocabulary of tests.tiny, with its specials):
# embedding and head, and two layers of norms (32 + 32), q and o (32·32), k and v (32·16), MLP.
VOCABULARY = len(tiny.WORDS) + 3
BACKBONE = VOCABULARY * 32 + 32 + 2 * (64 + 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
LANGUAGE_MODEL = BACKBONE + VOCABULARY * 32
FREQUENCIES = 2 * 8 * 4  # bytes of a Llama's rotary buffers

RANKINGS = [
    {
        "prompt": row["prompt"],
        "completions": ["the dog", "a cat", "no it helps"],
        "ranks": [1, 2, 3],
    }
    for row in toys.DEMONSTRATIONS
]


def phase(footprint, name):
    (found,) = [each.parts for each in footprint.phases if each.name == name]
    return found


@pytest.fixture
def model(tmp_path):
    return toys.save(tmp_path)


def test_weights_gradients_and_moments_of_sft_by_hand(tmp_path, model):
    found = of_sft(toys.sft(tmp_path, model), known=True)
    assert [each.name for each in found.phases] == ["train", "evaluate", "update"]
    assert phase(found, "update") == {
        "weights": 4 * LANGUAGE_MODEL + FREQUENCIES,
        "gradients": 4 * LANGUAGE_MODEL,
        "optimizer": 8 * LANGUAGE_MODEL,
    }
    train = phase(found, "train")
    assert train["weights"] == 4 * LANGUAGE_MODEL + FREQUENCIES
    assert train["optimizer"] == 8 * LANGUAGE_MODEL
    assert found.peak.name == "train"
    assert found.notes == []


def test_the_logits_of_sft_are_those_of_the_completion_tokens(tmp_path, model):
    """37 tokens with their ends: kept from the forward pass, beside their gradients at the most."""
    assert sum(len(row["completion"].split()) + 1 for row in toys.DEMONSTRATIONS) == 37
    train = phase(of_sft(toys.sft(tmp_path, model), known=True), "train")
    rounded = 64  # gradients have rows of zeros up to a multiple of 64, in the C kernels
    assert 4 * 37 * VOCABULARY <= train["logits"] <= 4 * (2 * 37 + rounded) * VOCABULARY


def test_a_smaller_device_batch_holds_less_and_has_gradients_beside_it(tmp_path, model):
    whole, halves = (
        phase(of_sft(toys.sft(tmp_path, model, device_batch_size=rows), known=True), "train")
        for rows in (0, 2)
    )
    assert halves["activations"] + halves["logits"] < whole["activations"] + whole["logits"]
    assert halves["gradients"] == 4 * LANGUAGE_MODEL


def test_batches_of_sft_by_hand(tmp_path, model):
    config = toys.sft(tmp_path, model, batch_size=3, max_steps=0, epochs=2.0, device_batch_size=2)
    batches = of_sft(config, known=True).batches
    assert (batches.optimizer, batches.device, batches.rollout) == (3, 2, None)
    assert batches.steps == 6  # ⌈2 · 8 / 3⌉
    assert batches.samples == 18
    # 22 words before, 28 after, 8 ends: 58 tokens in 8 rows
    words = sum(len((row["prompt"] + row["completion"]).split()) + 1 for row in toys.DEMONSTRATIONS)
    assert batches.tokens == round(18 * words / 8)


def test_the_fullest_batch_is_that_with_the_most_tokens_in_its_first_pass(tmp_path):
    """Two long rows count more than three of middling length where two go in a pass."""
    lengths = [9, 9, 1, 7, 7, 7]
    config = toys.sft(tmp_path, "model", batch_size=3, max_steps=2, device_batch_size=2)
    drawn = [[0, 1, 2], [3, 4, 5]]

    def of(rows):
        fit = Fit(toys.sft(tmp_path, "model", batch_size=3, device_batch_size=rows), lengths, True)
        return fit.fullest()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tether.footprint.fit.step_indices", lambda n, b, s, step: drawn[step % 2])
        assert Fit(config, lengths, True).fullest() == [0, 1, 2]
        patch.setattr(Fit, "steps", 2)
        assert of(2) == [0, 1, 2]  # 18 tokens against 14
        assert of(0) == [3, 4, 5]  # 19 tokens against 21


def test_without_data_every_row_is_as_long_as_the_settings_allow(tmp_path, model):
    config = toys.sft(tmp_path, model, max_steps=0)
    found = of_sft(config, known=False)
    assert found.notes == [
        "its data is not there yet: every row is taken to have 64 tokens (max_length, or the "
        "model's positions)"
    ]
    assert (found.batches.steps, found.batches.samples, found.batches.tokens) == (None,) * 3
    short = of_sft(toys.sft(tmp_path, model, max_length=32), known=False)
    assert short.batches.steps == 1
    longer, shorter = (phase(each, "train")["activations"] for each in (found, short))
    assert 1.8 < longer / shorter < 2.2


def test_a_reward_model_has_one_number_in_place_of_the_words(tmp_path, model):
    found = of_reward(toys.reward(tmp_path, model, RANKINGS, epochs=1.0), known=True)
    assert phase(found, "update")["gradients"] == 4 * (BACKBONE + 32)
    assert phase(found, "train")["logits"] == 0
    assert found.batches.optimizer == 8
    assert found.batches.device == 24  # completions
    assert found.batches.steps == 1
    assert found.notes == []


def test_rankings_yet_to_be_made_are_expected_from_their_prompts(tmp_path, model):
    prompts = toys.write_rows(tmp_path / "prompts.jsonl", toys.PROMPTS)
    sampling = SamplingConfig(max_new_tokens=20)
    answers = GenerateConfig(out="", model=model, prompts=prompts, num=3, sampling=sampling)
    config = toys.reward(tmp_path, model, RANKINGS, batch_size=4)
    found = of_reward(config, known=False, answers=answers)
    assert found.batches.steps == 2  # 8 prompts, 4 at a time
    assert found.batches.device == 12
    prompt_words = sum(len(row["prompt"].split()) for row in toys.PROMPTS)
    assert found.batches.tokens == 3 * (prompt_words + 8 * (20 + 1))
    assert found.notes == [
        "its data is not there yet: completions are taken to reach the length limit"
    ]


def test_comparisons_of_which_nothing_is_known_are_as_long_as_the_settings_allow(tmp_path, model):
    found = of_reward(toys.reward(tmp_path, model, RANKINGS, max_length=10), known=False)
    assert "every row is taken to have 10 tokens" in found.notes[0]
    assert found.batches.steps is None
    assert found.batches.device == 16  # a pair each


def test_data_is_counted_as_python_holds_it(tmp_path, model):
    """A list: a header and 8 bytes a place; a number above 256: 28 bytes, rounded up to 32."""
    assert bytes_of([3, 256, 257, 100_000]) == sys.getsizeof([]) + 4 * 8 + 2 * 32
    row = Row([1000] * 10, 5)
    ids, gaps = sys.getsizeof([]) + 10 * (8 + 32), sys.getsizeof(())
    assert bytes_of(row) == sys.getsizeof(row) + ids + gaps
    record = Demonstration(prompt="a", completion="b" * 100)
    assert bytes_of(record) > sys.getsizeof("a") + sys.getsizeof("b" * 100)
    assert of_sft(toys.sft(tmp_path, model), known=True).data > 8 * 200
    assert of_sft(toys.sft(tmp_path, model), known=False).data == 0


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("loss", ["pairwise", "listwise", "binary"])
def test_every_loss_and_every_head_has_a_footprint(tmp_path, model, loss, known):
    rows = RANKINGS
    if loss == "binary":
        rows = [{**row, "label": i % 2} for i, row in enumerate(toys.DEMONSTRATIONS)]
    config = toys.reward(tmp_path, model, rows, loss=loss, heads=3, held_out=0.25)
    found = of_reward(config, known=known)
    # three numbers in place of the words
    assert phase(found, "update")["weights"] == 4 * (BACKBONE + 3 * 32) + FREQUENCIES
    assert phase(found, "train")["activations"] > 0


def test_an_encoder_has_a_footprint(tmp_path):
    path = tiny.save_encoder(tmp_path / "encoder")
    found = of_reward(toys.reward(tmp_path, path, RANKINGS), known=True)
    # words, 24 positions, 2 types and their norm; two layers; pooler; one number with its bias
    layer = 4 * (32 * 32 + 32) + (32 * 48 + 48) + (48 * 32 + 32) + 4 * 32
    size = (len(tiny.WORDS) + 4 + 24 + 2 + 2) * 32 + 2 * layer + 32 * 33 + 33
    assert phase(found, "update")["gradients"] == 4 * size


# --- preference methods ---------------------------------------------------------------------------


def test_weights_gradients_and_moments_of_dpo_by_hand(tmp_path, model):
    found = of_preference(toys.preference(tmp_path, model, DPOConfig), known=True)
    assert [each.name for each in found.phases] == ["reference", "train", "evaluate", "update"]
    assert phase(found, "update") == {
        "weights": 4 * LANGUAGE_MODEL + FREQUENCIES,
        "gradients": 4 * LANGUAGE_MODEL,
        "optimizer": 8 * LANGUAGE_MODEL,
    }
    # The reference is the policy, looked at before there is an optimizer.
    assert phase(found, "reference")["weights"] == 4 * LANGUAGE_MODEL + FREQUENCIES
    assert phase(found, "reference")["optimizer"] == 0
    assert found.peak.name == "train"


def test_a_reference_of_its_own_is_gone_before_training(tmp_path, model):
    config = toys.preference(tmp_path, model, DPOConfig, reference=toys.save(tmp_path / "other"))
    found = of_preference(config, known=True)
    assert phase(found, "reference")["weights"] == 2 * (4 * LANGUAGE_MODEL + FREQUENCIES)
    assert phase(found, "train")["weights"] == 4 * LANGUAGE_MODEL + FREQUENCIES


def test_the_logits_of_dpo_are_those_of_both_completions(tmp_path, model):
    """Chosen 6 + 3 + 2 + 6 + 5 + 2 and rejected 2 + 5 + 6 + 3 + 7 + 6 tokens with their ends."""
    train = phase(of_preference(toys.preference(tmp_path, model, DPOConfig), known=True), "train")
    num, rounded = 24 + 29, 64
    assert 4 * num * VOCABULARY <= train["logits"] <= 4 * (2 * num + rounded) * VOCABULARY


def test_batches_of_preference_methods_by_hand(tmp_path, model):
    settings = {"batch_size": 4, "max_steps": 0, "epochs": 2.0, "device_batch_size": 4}
    pairs = of_preference(toys.preference(tmp_path, model, DPOConfig, **settings), known=True)
    assert (pairs.batches.optimizer, pairs.batches.device, pairs.batches.steps) == (4, 4, 3)
    thumbs = of_preference(toys.preference(tmp_path, model, KTOConfig, **settings), known=True)
    assert (thumbs.batches.optimizer, thumbs.batches.device, thumbs.batches.steps) == (4, 4, 6)


def test_preferences_yet_to_be_made_have_the_longest_rows(tmp_path, model):
    config = toys.preference(tmp_path, model, DPOConfig, max_length=20)
    found = of_preference(config, known=False)
    assert found.notes == [
        "its data is not there yet: every row is taken to have 20 tokens "
        "(max_length, or the model's positions)"
    ]
    assert found.data == 0

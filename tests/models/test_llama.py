import gc
import weakref
from unittest import mock

import pytest
import torch
from tests.kernels.backends import BACKENDS, backend_of
from tests.tiny import tiny_gpt2, tiny_llama
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tether.data.batches import Row, pack, pad
from tether.models import llama
from tether.models.language_model import hidden_states, pick_device, predicting
from tether.models.layouts import keeps_apart
from tether.models.llama import Sequences, lean
from tether.sections import ComputeConfig

FLOAT = pick_device(ComputeConfig(device="cpu"))
BF16 = pick_device(ComputeConfig(device="cpu", precision="bfloat16"))
VOCABULARY = 40
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


def rope(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama, one key head": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 1}),
    "llama, tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "llama, biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama, rope of 3.1": (LlamaForCausalLM, LlamaConfig, rope("llama3", factor=8.0, **LLAMA3)),
    "llama, linear rope": (LlamaForCausalLM, LlamaConfig, rope("linear", factor=2.5)),
    "llama, yarn": (
        LlamaForCausalLM,
        LlamaConfig,
        rope("yarn", factor=4.0, original_max_position_embeddings=256),
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None, "head_dim": 20}),
    "mistral, wide window": (MistralForCausalLM, MistralConfig, {"sliding_window": 60}),
    "mistral, narrow window": (MistralForCausalLM, MistralConfig, {"sliding_window": 9}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2, tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 12}),
    "smollm3": (
        SmolLM3ForCausalLM,
        SmolLM3Config,
        {"no_rope_layers": [1, 0, 1], "tie_word_embeddings": True},
    ),
}
# Rows up to the widest window above; their completions begin early, late, and with the first token.
ROWS = [
    Row([(7 * i + 3 * j) % VOCABULARY for j in range(length)], num_prompt)
    for i, (length, num_prompt) in enumerate([(5, 2), (1, 0), (60, 11), (2, 1), (49, 48), (23, 0)])
]
LAYOUTS = {"padded": pad(ROWS), "packed": pack(ROWS), "two packs": pack(ROWS[:2], ROWS[2:])}


def made(model_class, config_class, settings):
    """A model whose norms and biases are not the ones and zeros they start from."""
    torch.manual_seed(0)
    model = model_class(config_class(**{**SMALL, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return made(*MODELS[request.param])


@pytest.fixture(scope="module")
def by_transformers(model):
    """Hidden states of each row by transformers alone."""
    with torch.no_grad():
        return [plain(model, row) for row in ROWS]


@pytest.fixture
def tiny():
    return tiny_llama(VOCABULARY)


@pytest.fixture(params=BACKENDS)
def backend(request):
    with backend_of(request.param):
        yield request.param


def only_lean(model):
    """Make transformers' forward fail; what still works is the lean one."""
    return mock.patch.object(
        type(model.base_model), "forward", side_effect=AssertionError("not lean")
    )


def plain(model, row, dtype=torch.float32):
    """Hidden states of a row by transformers alone."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        ids = torch.tensor([row.ids])
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0].float()


def predicting_of(hidden, rows):
    return torch.cat([own[row.first - 1 : -1] for own, row in zip(hidden, rows, strict=True)])


def predicting_plain(model, rows, dtype=torch.float32):
    return predicting_of([plain(model, row, dtype) for row in rows], rows)


def everywhere(batch):
    """True on the tokens of the rows."""
    return batch.last_mask.flip(1).cumsum(1).flip(1) > 0


def relative(found, wanted):
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


def assert_right(model, limit=1e-5):
    """It gives what transformers gives, by whichever way."""
    wanted = predicting_plain(model, ROWS)
    for batch in LAYOUTS.values():
        found = hidden_states(model, FLOAT, batch, predicting(batch)).float()
        assert relative(found, wanted) < limit


# --- it computes what transformers computes -------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_hidden_states_are_transformers(model, by_transformers, backend, layout):
    assert lean(model) is not None
    batch = LAYOUTS[layout]
    found = hidden_states(model, FLOAT, batch, everywhere(batch))
    assert found.dtype == torch.float32
    assert relative(found, torch.cat(by_transformers)) < 1e-5
    found = hidden_states(model, FLOAT, batch, predicting(batch))
    assert relative(found, predicting_of(by_transformers, ROWS)) < 1e-5


def weighted(hidden):
    """A loss in which every number has its own weight."""
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    return (hidden * weights).sum()


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_gradients_of_all_parameters_are_transformers(model, backend, layout):
    batch = LAYOUTS[layout]
    names, parameters = zip(*model.base_model.named_parameters(), strict=True)
    hidden = hidden_states(model, FLOAT, batch, predicting(batch))
    found = torch.autograd.grad(weighted(hidden), parameters)
    wanted = torch.autograd.grad(weighted(predicting_plain(model, ROWS)), parameters)
    for name, one, other in zip(names, found, wanted, strict=True):
        assert relative(one, other) < 2e-5, name


def test_transformers_forward_is_not_called(model, backend):
    assert lean(model) is not None
    short = pad([ROWS[0], ROWS[1]])
    with only_lean(model):
        hidden_states(model, FLOAT, short, predicting(short))


@pytest.mark.parametrize("layout", ["padded", "packed"])
@torch.no_grad()
def test_in_bfloat16_it_is_as_near_as_transformers(model, by_transformers, backend, layout):
    batch, wanted = LAYOUTS[layout], predicting_of(by_transformers, ROWS)
    theirs = predicting_plain(model, ROWS, torch.bfloat16)
    found = hidden_states(model, BF16, batch, predicting(batch))
    assert found.shape == wanted.shape
    ours, limit = (found - wanted).abs().mean(), (theirs - wanted).abs().mean()
    assert ours < 1.25 * limit
    assert limit < 0.1 * wanted.abs().mean()


def test_gradients_in_bfloat16(backend):
    # Moderate weights, so that rounding is not amplified from layer to layer.
    model = made(LlamaForCausalLM, LlamaConfig, {"initializer_range": 0.1})
    batch = LAYOUTS["packed"]
    names, parameters = zip(*model.base_model.named_parameters(), strict=True)
    hidden = hidden_states(model, BF16, batch, predicting(batch))
    found = torch.autograd.grad(weighted(hidden), parameters)
    wanted = torch.autograd.grad(weighted(predicting_plain(model, ROWS)), parameters)
    for name, one, other in zip(names, found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.05 * other.norm(), name


def test_a_row_longer_than_the_first_rotary_tables(backend):
    model = made(LlamaForCausalLM, LlamaConfig, {"num_hidden_layers": 1})
    rows = [Row([i % VOCABULARY for i in range(length)], 1) for length in (700, 520)]
    batch = pad(rows)
    assert lean(model) is not None
    with torch.no_grad(), only_lean(model):
        found = hidden_states(model, FLOAT, batch, predicting(batch))
    assert relative(found, predicting_plain(model, rows)) < 1e-5


def test_nothing_asked_for(model, backend):
    batch = pad([Row([5], 0), Row([7, 9], 2)])
    hidden = hidden_states(model, FLOAT, batch, predicting(batch))
    assert hidden.shape == (0, 32)
    hidden.sum().backward()  # and nothing to learn
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    model.zero_grad()


def test_what_stands_in_the_padding_does_not_matter(tiny, backend):
    batch = pad(ROWS)
    dirty = batch._replace(input_ids=batch.input_ids.where(everywhere(batch), 17))
    for place in (FLOAT, BF16):
        clean = hidden_states(tiny, place, batch, predicting(batch))
        assert torch.equal(hidden_states(tiny, place, dirty, predicting(batch)), clean)


def test_a_nan_in_the_weights_is_seen(tiny, backend):
    batch = pad(ROWS)
    assert lean(tiny) is not None
    with torch.no_grad():
        tiny.model.layers[1].mlp.down_proj.weight[3, 3] = float("nan")
        assert hidden_states(tiny, FLOAT, batch, predicting(batch)).isnan().any(1).all()


def test_after_an_update_it_computes_with_the_new_weights(tiny, backend):
    assert_right(tiny)
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert lean(tiny) is not None
    assert_right(tiny)


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "by_transformers"), [(9, 0), (10, 1)])
def test_rows_that_a_window_would_cut_go_to_transformers(length, by_transformers):
    model = made(*MODELS["mistral, narrow window"])
    rows = [Row(list(range(length)), 1), Row([5, 6, 7], 1), Row(list(range(8, 17)), 1)]
    wanted = predicting_plain(model, rows)
    assert lean(model) is not None
    assert keeps_apart(model)
    for batch in (pad(rows), pack(rows)):  # a pack is wide, but its rows are not
        own = type(model.base_model).forward
        with mock.patch.object(type(model.base_model), "forward", autospec=True) as spy:
            spy.side_effect = own
            found = hidden_states(model, FLOAT, batch, predicting(batch))
        assert spy.call_count == by_transformers
        assert relative(found, wanted) < 1e-5


def test_a_window_of_some_layers_counts():
    settings = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}
    model = made(Qwen2ForCausalLM, Qwen2Config, settings)
    found = lean(model)
    assert found is not None
    assert found.window == 9
    assert_right(model)
    found = lean(made(Qwen2ForCausalLM, Qwen2Config, {**settings, "max_window_layers": 3}))
    assert found is not None
    assert found.window > 1 << 20  # no layer has one


# --- which models it serves -----------------------------------------------------------------------


def test_models_of_other_kinds():
    settings = {key: value for key, value in SMALL.items() if key != "rms_norm_eps"}
    gemma = Gemma2Config(**settings, head_dim=8, sliding_window=64)
    for model in (tiny_gpt2(VOCABULARY), Gemma2ForCausalLM(gemma).eval()):
        assert lean(model) is None
        assert_right(model)


@pytest.mark.parametrize(
    "settings",
    [
        rope("dynamic", factor=2.0),
        {"hidden_act": "gelu"},
        {"hidden_act": "relu"},
    ],
)
def test_llamas_with_something_else(settings):
    model = made(LlamaForCausalLM, LlamaConfig, settings)
    assert lean(model) is None
    assert_right(model)


def test_a_classifier_of_the_family():
    model = made(LlamaForSequenceClassification, LlamaConfig, {})
    assert lean(model) is not None
    assert_right(model)


class Doubled(nn.Linear):
    """Stands for adapters and quantized layers."""

    def forward(self, input):
        return 2 * super().forward(input)


def with_subclass(model):
    plain = model.model.layers[1].self_attn.q_proj
    model.model.layers[1].self_attn.q_proj = Doubled(32, plain.out_features, bias=False)


def with_parametrization(model):
    nn.utils.parametrize.register_parametrization(
        model.model.layers[0].mlp.up_proj, "weight", nn.Softplus()
    )


def with_half_weights(model):
    model.to(torch.bfloat16)


def with_half_norms(model):
    for layer in model.model.layers:
        layer.input_layernorm.bfloat16()


def with_half_embedding(model):
    model.model.embed_tokens.bfloat16()


def doubling(module, args, output):
    return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output


def with_hook(path):
    def change(model):
        model.get_submodule(path).register_forward_hook(doubling)

    return change


def halved_input(module, args):
    return (0.5 * args[0], *args[1:])


def with_pre_hook(model):
    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(halved_input)


CHANGES = {
    "a linear layer of another class": with_subclass,
    "a parametrized layer": with_parametrization,
    "bfloat16 weights": with_half_weights,
    "hook on a layer": with_hook("model.layers.1"),
    "hook on attention": with_hook("model.layers.1.self_attn"),
    "hook on a linear layer": with_hook("model.layers.0.self_attn.v_proj"),
    "hook on the mlp": with_hook("model.layers.0.mlp"),
    "hook on a norm": with_hook("model.layers.1.post_attention_layernorm"),
    "hook on the last norm": with_hook("model.norm"),
    "pre-hook": with_pre_hook,
}


@pytest.mark.parametrize("used", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("change", CHANGES)
def test_models_that_were_changed(tiny, change, used):
    if used:
        assert lean(tiny) is not None
        assert_right(tiny)
    CHANGES[change](tiny)
    assert lean(tiny) is None
    assert_right(tiny, 0.02 if change == "bfloat16 weights" else 1e-5)


def scale_embedding(model):
    own = model.model.embed_tokens.forward
    model.model.embed_tokens.forward = lambda ids: 3 * own(ids)


@pytest.mark.parametrize("change", [with_hook("model.embed_tokens"), scale_embedding])
@pytest.mark.parametrize("used", [False, True], ids=["at once", "later"])
def test_an_embedding_that_does_more(tiny, change, used):
    # The lean forward asks the embedding itself, so it may stay lean.
    if used:
        assert lean(tiny) is not None
    change(tiny)
    assert_right(tiny)


@pytest.mark.parametrize("change", [with_half_norms, with_half_embedding])
def test_norms_or_an_embedding_of_half_precision(tiny, change):
    change(tiny)
    with backend_of("torch"):  # C would read them as what they are not
        assert lean(tiny) is None


def test_a_hook_that_has_gone_is_no_hook(tiny):
    hook = tiny.model.register_forward_hook(lambda *args: None)
    assert lean(tiny) is None
    hook.remove()
    assert lean(tiny) is not None


def shifted_norm(model, monkeypatch):
    """As Gemma has it: 1 + w."""

    def forward(self, x):
        return (1 + self.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


def other_scale(model, monkeypatch):
    model.model.layers[1].self_attn.scaling = 0.3


def other_activation(model, monkeypatch):
    model.model.layers[0].mlp.act_fn = nn.GELU()


def other_rotation(model, monkeypatch):
    model.model.rotary_emb.attention_scaling = 1.1
    monkeypatch.setattr(
        llama, "_tables", lambda base, length: llama.Rotary(torch.ones(512, 8), torch.zeros(512, 8))
    )


def residual_left_out(model, monkeypatch):
    layer = model.model.layers[1]
    own = layer.forward
    monkeypatch.setattr(layer, "forward", lambda x, **settings: own(x, **settings) - x)


@pytest.mark.parametrize(
    "tamper",
    [
        shifted_norm,
        other_scale,
        other_activation,
        other_rotation,
        residual_left_out,
    ],
)
def test_a_model_that_computes_something_else_is_found_out(tiny, monkeypatch, tamper):
    tamper(tiny, monkeypatch)
    assert lean(tiny) is None
    assert_right(tiny)


def test_a_model_that_is_gone_is_forgotten():
    model = tiny_llama(VOCABULARY)
    assert lean(model) is not None
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# --- sequences ------------------------------------------------------------------------------------


def test_sequences_by_hand():
    rows = [Row([5, 6, 7], 1), Row([8], 0), Row([9, 10], 1)]
    for batch in (pad(rows), pack(rows), pack(rows[:1], rows[1:])):
        found = Sequences.of(batch, predicting(batch))
        assert found.ids.tolist() == [5, 6, 7, 8, 9, 10]
        assert found.offsets.tolist() == [0, 3, 4, 6]
        assert found.wanted.tolist() == [0, 1, 4]  # 6, 7 and 10 are predicted from these
        filled = found.filled(4)
        assert filled.ids.tolist() == [5, 6, 7, 8, 9, 10, 0, 0]
        assert filled.offsets.tolist() == [0, 3, 4, 6, 8]
        assert filled.wanted.tolist() == [0, 1, 4, 0]
    assert found.filled(3).offsets.tolist() == [0, 3, 4, 6]  # full already

"""LoRA adapters against plain peft and transformers, switching, files, folding, refusals."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.tiny import PAD, save_tiny, word_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tether.config import MergeConfig
from tether.data.batches import Row, pack, pad
from tether.engine.decode import generate_tokens
from tether.errors import ConfigError, ModelError
from tether.models import adapters, llama
from tether.models.language_model import completion_logprobs, hidden_states, load, save
from tether.models.merge import merge
from tether.models.place import at_work, rest
from tether.models.scalar_head import (
    load_reward_model,
    new_reward_model,
    reward_on,
    save_reward_model,
)
from tether.sections import ComputeConfig, LoraConfig, SamplingConfig

# peft asks transformers by a name that is no longer used.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

CPU = ComputeConfig(device="cpu")
ANEW = ComputeConfig(device="cpu", gradient_checkpointing=True)
RANK3 = LoraConfig(rank=3, alpha=5.0)  # s = 5/3
KINDS = ["llama", "gpt2"]
ROWS = [Row([7, 5, 9, 4, 12], 2), Row([4, 1, 6, 8, 3, 10, 11, 1], 3), Row([12, 3, 9], 1)]
BATCH = pad(ROWS)


@pytest.fixture(params=KINDS)
def base(request, tmp_path):
    return str(save_tiny(tmp_path / "base", request.param))


@pytest.fixture
def llama_base(tmp_path):
    return str(save_tiny(tmp_path / "llama", "llama"))


def stirred(model, name, seed=0):
    """Give an adapter a B that is not 0, so that it changes what the model says by whole nats."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters(model, name):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))


def adapted(base, lora=RANK3, compute=CPU, seed=0):
    policy = load(base, compute, trainable=True, lora=lora, seed=seed)
    stirred(policy.model, "policy", seed)
    return policy


def logprobs(language_model, batch=BATCH):
    with torch.no_grad():
        return completion_logprobs(language_model, batch)[0]


def by_transformers(model):
    """Log-probs of the completion tokens from a model's own logits, row by row."""
    found = []
    for row in ROWS:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.ids])).logits[0].double()
        every = torch.log_softmax(logits[row.first - 1 : -1], -1)
        found.append(every.gather(1, torch.tensor(row.ids[row.first :])[:, None])[:, 0])
    return torch.cat(found).float()


def saved(policy, folder):
    save(policy, folder, {"made_by": "a test"})
    return str(folder)


# --- the numbers ----------------------------------------------------------------------------------


def test_a_new_adapter_computes_what_its_base_does(base):
    plain, new = load(base, CPU), load(base, CPU, trainable=True, lora=RANK3)
    torch.testing.assert_close(logprobs(new), logprobs(plain), atol=0, rtol=0)


def test_an_adapter_is_drawn_from_its_seed(base):
    once, again, other = (load(base, CPU, trainable=True, lora=RANK3, seed=s) for s in (3, 3, 4))
    first, second, third = (adapters.parameters(m.model, "policy")[0] for m in (once, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("layout", [pad, pack])
def test_log_probs_are_those_of_plain_peft(base, tmp_path, layout):
    policy = adapted(base)
    folder = saved(policy, tmp_path / "adapter")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    theirs = by_transformers(plain)
    torch.testing.assert_close(logprobs(policy, layout(ROWS)), theirs, atol=2e-5, rtol=0)
    frozen = load(folder, CPU)
    torch.testing.assert_close(logprobs(frozen, layout(ROWS)), theirs, atol=2e-5, rtol=0)
    assert float((theirs - logprobs(load(base, CPU))).abs().max()) > 0.5  # it does something


def test_an_adapter_that_peft_trained_is_read(base, tmp_path):
    modules = ["q_proj", "down_proj"] if "q_proj" in str(load(base, CPU).model) else ["c_attn"]
    config = PeftConfig(
        r=2,
        lora_alpha=7,
        target_modules=modules,
        lora_dropout=0.5,
        task_type="CAUSAL_LM",
        use_rslora=True,
        fan_in_fan_out=modules == ["c_attn"],
    )
    plain = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-0.3, 0.5, parameter.numel()).view_as(parameter))
    plain.save_pretrained(tmp_path / "theirs")
    ours = load(str(tmp_path / "theirs"), CPU)
    torch.testing.assert_close(logprobs(ours), by_transformers(plain), atol=2e-5, rtol=0)


def test_the_lean_forward_serves_adapters(llama_base):
    policy = adapted(llama_base)
    assert llama.lean(policy.model, "policy") is not None
    assert llama.lean(policy.model) is not None


def gradients_of(policy, batch):
    logs = completion_logprobs(policy, batch)[0]
    loss = (logs * torch.linspace(0.2, 1.7, len(logs))).sum()
    found = torch.autograd.grad(loss, policy.own_parameters)
    return dict(zip(range(len(found)), found, strict=True))


def assert_gradients_close(ours, theirs):
    for number, gradient in theirs.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(ours[number], gradient, atol=2e-5 * scale, rtol=0)


def test_lean_gradients_are_those_of_transformers(llama_base, monkeypatch):
    policy = adapted(llama_base)
    ours = gradients_of(policy, BATCH)
    monkeypatch.setattr(llama, "lean", lambda *_: None)
    assert_gradients_close(ours, gradients_of(policy, BATCH))
    assert not any(p.grad is not None for p in policy.model.parameters())


@pytest.mark.parametrize("targets", [("q_proj",), ("v_proj", "gate_proj"), ("down_proj", "o_proj")])
def test_any_choice_of_targets(llama_base, tmp_path, targets):
    policy = adapted(llama_base, LoraConfig(rank=2, targets=targets))
    held = {name.rpartition(".")[2] for name, _ in adapters.lora_layers(policy.model)}
    assert held == set(targets)
    folder = saved(policy, tmp_path / "adapter")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_base), folder)
    torch.testing.assert_close(logprobs(policy), by_transformers(plain.eval()), atol=2e-5, rtol=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_sampled_has_the_trainers_log_probs(base, precision):
    policy = adapted(base, compute=ComputeConfig(device="cpu", precision=precision))
    prompts = [[7, 5, 9], [4, 6], [12, 3, 8, 9]]
    sampled = generate_tokens(policy, prompts, SamplingConfig(max_new_tokens=8), seed=1)
    rows = [Row(p + s.token_ids, len(p)) for p, s in zip(prompts, sampled, strict=True)]
    wanted = torch.tensor([number for each in sampled for number in each.logprobs])
    gap = (logprobs(policy, pad(rows)) - wanted).abs()
    assert gap.max() < (1e-4 if precision == "float32" else 0.2)
    if precision == "float32":  # and the base's own are others
        assert (logprobs(load(base, CPU), pad(rows)) - wanted).abs().max() > 0.1


# --- several on one backbone ----------------------------------------------------------------------


def hidden(model, place, adapter):
    every = torch.ones_like(BATCH.completion_mask)
    return hidden_states(model, place, BATCH, every, adapter)


def test_adapters_do_not_disturb_each_other(base, tmp_path):
    policy, other = adapted(base, seed=1), adapted(base, seed=2)
    folder = saved(other, tmp_path / "other")
    before = logprobs(policy)
    adapters.attach_from(policy.model, "reference", folder, trainable=False)
    torch.testing.assert_close(logprobs(policy), before, atol=0, rtol=0)
    with torch.no_grad():
        here = hidden(policy.model, policy.place, "reference")
        there = hidden(other.model, other.place, "policy")
        off = hidden(policy.model, policy.place, "")
        plain = load(base, CPU)
        torch.testing.assert_close(off, hidden(plain.model, plain.place, ""), atol=0, rtol=0)
    torch.testing.assert_close(here, there, atol=0, rtol=0)


@pytest.mark.parametrize("compute", [CPU, ANEW], ids=["kept", "computed anew"])
@pytest.mark.parametrize("lean", [True, False], ids=["lean", "transformers"])
def test_both_adapters_of_one_backbone_get_their_own_gradients(base, monkeypatch, compute, lean):
    # The loss of both in one backward pass: with checkpoints, the backward pass of one must not
    # recompute with the adapter of the other.
    if not lean:
        monkeypatch.setattr(llama, "lean", lambda *_: None)
    policy = adapted(base, compute=compute)
    adapters.attach(policy.model, "value", RANK3, seed=5)
    stirred(policy.model, "value", 5)
    policy.model.train()
    ours, values = (adapters.parameters(policy.model, name) for name in ("policy", "value"))

    def loss(adapter):
        return hidden(policy.model, policy.place, adapter).square().sum()

    alone = [
        *torch.autograd.grad(loss("policy"), ours),
        *torch.autograd.grad(loss("value"), values),
    ]
    (loss("policy") + loss("value")).backward()
    for parameter, gradient in zip([*ours, *values], alone, strict=True):
        assert parameter.requires_grad
        assert float(gradient.abs().max()) > 0 or parameter.numel() == 0
        scale = float(gradient.abs().max())
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5 * scale, rtol=0)
    trained = {id(p) for p in [*ours, *values]}
    assert {id(p) for p in policy.model.parameters() if p.requires_grad} == trained


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "transformers"])
def test_checkpoints_change_no_gradient(base, monkeypatch, lean):
    if not lean:
        monkeypatch.setattr(llama, "lean", lambda *_: None)
    assert_gradients_close(
        gradients_of(adapted(base, compute=ANEW), BATCH), gradients_of(adapted(base), BATCH)
    )


def test_checkpoints_keep_less(llama_base):
    def kept(compute):
        policy, sizes = adapted(llama_base, compute=compute), []
        logprobs(policy)  # the comparison of both forwards is over
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            completion_logprobs(policy, BATCH)
        return sum(sizes)

    assert kept(ANEW) < 0.5 * kept(CPU)


def test_sampling_while_it_trains_with_checkpoints(base):
    policy = adapted(base, compute=ANEW)
    wanted = generate_tokens(adapted(base), [[7, 5]], SamplingConfig(max_new_tokens=6), seed=1)
    policy.model.train()
    gradients_of(policy, BATCH)
    found = generate_tokens(policy, [[7, 5]], SamplingConfig(max_new_tokens=6), seed=1)
    assert found[0].token_ids == wanted[0].token_ids


# --- reward models --------------------------------------------------------------------------------


def reward_adapter(base, folder):
    reward = new_reward_model(base, CPU, lora=RANK3)
    stirred(reward.model, "reward")
    with torch.no_grad():
        reward.head.weight.copy_(torch.linspace(-0.4, 0.9, 32))
    save_reward_model(reward, folder, {})
    return reward, str(folder)


def test_a_reward_adapter_in_plain_peft(base, tmp_path):
    reward, folder = reward_adapter(base, tmp_path / "reward")
    assert reward.head.weight.requires_grad
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    plain = PeftModel.from_pretrained(plain, folder).eval()
    with torch.no_grad():
        theirs = [plain(input_ids=torch.tensor([row.ids])).logits[0, 0] for row in ROWS]
        again, policy = load_reward_model(folder, CPU), adapted(base)
        shared = reward_on(policy.model, policy.place, folder, "reward")
        for model in (reward, again, shared):
            torch.testing.assert_close(model.scores(BATCH), torch.stack(theirs), atol=1e-5, rtol=0)
    assert not any(p.requires_grad for p in shared.own_parameters)
    assert all(p.requires_grad for p in policy.own_parameters)


def test_no_token_is_added_to_a_frozen_base(tmp_path):
    base = str(save_tiny(tmp_path / "base", pad_is_eos=True))
    reward, folder = reward_adapter(base, tmp_path / "reward")
    vocabulary = reward.model.get_input_embeddings().num_embeddings
    assert vocabulary == load(base, CPU).model.get_input_embeddings().num_embeddings
    again = load_reward_model(folder, CPU)
    torch.testing.assert_close(again.scores(BATCH), reward.scores(BATCH), atol=0, rtol=0)


# --- folding --------------------------------------------------------------------------------------


def test_a_folded_model_says_the_same(base, tmp_path):
    policy = adapted(base)
    folder = saved(policy, tmp_path / "adapter")
    out = merge(MergeConfig(model=folder, out=str(tmp_path / "merged"), compute=CPU))
    plain = AutoModelForCausalLM.from_pretrained(out / "model").eval()
    torch.testing.assert_close(by_transformers(plain), logprobs(policy), atol=2e-5, rtol=0)
    assert not any("lora" in name for name in load_file(out / "model" / "model.safetensors"))


def test_a_folded_reward_model_scores_the_same(base, tmp_path):
    reward, folder = reward_adapter(base, tmp_path / "reward")
    out = merge(MergeConfig(model=folder, out=str(tmp_path / "merged"), compute=CPU))
    plain = AutoModelForSequenceClassification.from_pretrained(out / "model").eval()
    with torch.no_grad():
        theirs = torch.stack([plain(input_ids=torch.tensor([r.ids])).logits[0, 0] for r in ROWS])
        torch.testing.assert_close(theirs, reward.scores(BATCH), atol=1e-5, rtol=0)


def test_all_weights_of_a_folded_adapter_are_trained_without_a_rank(base, tmp_path):
    policy = adapted(base)
    full = load(saved(policy, tmp_path / "adapter"), CPU, trainable=True)
    assert full.adapter == ""
    assert all(p.requires_grad for p in full.model.parameters())
    torch.testing.assert_close(logprobs(full), logprobs(policy), atol=2e-5, rtol=0)


# --- offloading -----------------------------------------------------------------------------------


def test_a_frozen_model_waits_in_memory_until_it_is_asked(llama_base, monkeypatch):
    # A stand-in for a GPU: the model says where it was last sent, and its tensors stay.
    frozen, trained = load(llama_base, CPU), load(llama_base, CPU, trainable=True)
    wanted = logprobs(frozen)
    moves = []

    def to(self, device):
        moves.append(torch.device(device).type)
        return self

    monkeypatch.setattr(type(frozen.model), "to", to)
    monkeypatch.setattr(
        type(frozen.model),
        "device",
        property(lambda _: torch.device(moves[-1] if moves else "cpu")),
    )
    place = frozen.place._replace(offload=True)
    rest(trained.model, place)
    assert moves == []
    rest(frozen.model, place)
    assert moves == ["cpu"]
    with at_work(frozen.model, place._replace(device=torch.device("cuda"))):
        assert moves == ["cpu", "cuda"]
        with at_work(frozen.model, place._replace(device=torch.device("cuda:0"))):
            assert moves == ["cpu", "cuda"]
    assert moves == ["cpu", "cuda", "cpu"]
    torch.testing.assert_close(logprobs(frozen), wanted, atol=0, rtol=0)


# --- what is refused ------------------------------------------------------------------------------


def refused(match, call, *args, **kwargs):
    with pytest.raises((ConfigError, ModelError), match=match) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_a_target_that_is_not_there(llama_base):
    lora = LoraConfig(rank=2, targets=("q_proj", "c_attn"))
    wanted = "'c_attn' is no linear layer.*it has down_proj, gate_proj, k_proj, o_proj"
    refused(wanted, load, llama_base, CPU, trainable=True, lora=lora)
    lora = LoraConfig(rank=2, targets=("lm_head",))
    refused("'lm_head' is no linear layer", load, llama_base, CPU, trainable=True, lora=lora)


def test_four_bits_without_a_gpu(llama_base):
    lora = LoraConfig(rank=2, quantize="4bit")
    refused("quantize='4bit' needs a GPU", load, llama_base, CPU, trainable=True, lora=lora)


def test_four_bits_without_bitsandbytes(llama_base, monkeypatch):
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    place = load(llama_base, CPU).place._replace(device=torch.device("cuda"))
    lora = LoraConfig(rank=2, quantize="4bit")
    refused(r"pip install 'tether\[bnb\]'", adapters.quantized, lora, place)


def test_a_base_that_is_gone(llama_base, tmp_path):
    folder = saved(adapted(llama_base), tmp_path / "adapter")
    shutil.rmtree(llama_base)
    refused("the base .*llama' of adapter .* is not there", load, folder, CPU)


def test_an_adapter_of_another_shape(base, tmp_path):
    folder = saved(adapted(base), tmp_path / "adapter")
    wider = {"hidden_size": 48} if "llama" in type(load(base, CPU).model).__name__.lower() else {}
    kind = "llama" if wider else "gpt2"
    other = str(save_tiny(tmp_path / "wider", kind, **(wider or {"n_embd": 48})))
    config = json.loads((tmp_path / "adapter" / adapters.CONFIG).read_text())
    config["base_model_name_or_path"] = other
    (tmp_path / "adapter" / adapters.CONFIG).write_text(json.dumps(config))
    refused(r"does not fit .*is \[3, 32\] and would have to be \[3, 48\]", load, folder, CPU)


def test_an_adapter_of_another_architecture(tmp_path):
    folder = saved(adapted(str(save_tiny(tmp_path / "a", "llama"))), tmp_path / "adapter")
    other = load(str(save_tiny(tmp_path / "b", "gpt2")), CPU)
    wanted = "does not fit GPT2LMHeadModel .*it has no"
    refused(wanted, adapters.attach_from, other.model, "policy", folder, trainable=False)


def test_an_adapter_of_more_layers(tmp_path):
    deep = str(save_tiny(tmp_path / "deep", "llama", num_hidden_layers=3))
    folder = saved(adapted(deep), tmp_path / "adapter")
    other = load(str(save_tiny(tmp_path / "b", "llama")), CPU)
    wanted = "layers.2.* is in one of them only"
    refused(wanted, adapters.attach_from, other.model, "policy", folder, trainable=False)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [({"use_dora": True}, "is LORA, use_dora"), ({"peft_type": "IA3"}, "is IA3; only plain LoRA")],
)
def test_adapters_of_other_kinds(llama_base, tmp_path, change, wanted):
    folder = saved(adapted(llama_base), tmp_path / "adapter")
    file = tmp_path / "adapter" / adapters.CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    refused(wanted, load, folder, CPU)


def test_weights_that_are_missing(llama_base, tmp_path):
    folder = saved(adapted(llama_base), tmp_path / "adapter")
    (tmp_path / "adapter" / adapters.WEIGHTS).unlink()
    refused("has no usable adapter_model.safetensors", load, folder, CPU)


@pytest.mark.parametrize(
    ("lora", "wanted"),
    [
        (LoraConfig(rank=4), r"lora.rank=4 but the adapter .* has 3; set lora.rank = 3"),
        (LoraConfig(rank=3, alpha=9.0), r"lora.alpha=9.0 but .* has 5"),
        (LoraConfig(rank=3, targets=("q_proj",)), r"lora.targets=.* but .* has \['down_proj'"),
    ],
)
def test_settings_that_are_not_those_of_the_adapter_trained_on(llama_base, tmp_path, lora, wanted):
    folder = saved(adapted(llama_base), tmp_path / "adapter")
    refused(wanted, load, folder, CPU, trainable=True, lora=lora)


def test_merging_what_holds_no_adapter(llama_base, tmp_path):
    refused("holds no adapter", merge, MergeConfig(model=llama_base, out=str(tmp_path / "out")))


def test_a_policy_adapter_is_no_reward(llama_base, tmp_path):
    folder = saved(adapted(llama_base), tmp_path / "adapter")
    refused("is an adapter without a score head", load_reward_model, folder, CPU)


def test_the_same_base_is_known_by_its_files(llama_base, tmp_path):
    folder = saved(adapted(llama_base), tmp_path / "adapter")
    copy = shutil.copytree(llama_base, tmp_path / "copy")
    other = save_tiny(tmp_path / "other", seed=7)
    assert adapters.on(load(llama_base, CPU).model, folder)
    assert adapters.on(load(str(copy), CPU).model, folder)
    assert not adapters.on(load(str(other), CPU).model, folder)


def test_an_adapter_without_a_tokenizer_uses_its_bases(llama_base, tmp_path):
    folder = saved(adapted(llama_base), tmp_path / "adapter")
    for file in (tmp_path / "adapter").glob("token*"):
        file.unlink()
    vocabulary = word_tokenizer().get_vocab()
    assert load(folder, CPU).tokenizer.get_vocab() == vocabulary
    assert PAD in vocabulary

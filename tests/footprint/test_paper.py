"""Sizing on paper: two cases by hand, parameters against transformers, bytes against a dry run."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from tests import tiny
from tether.cli import dispatch
from tether.config import SFTConfig
from tether.errors import ConfigError
from tether.footprint import fit
from tether.footprint import models as footprint_models
from tether.footprint.paper import Adapter, Job, Shares, SizingConfig, held, memory, peak
from tether.footprint.roofline import times
from tether.footprint.shapes import PRESETS, load_shape
from tether.footprint.sizing import fits, mends
from tether.models.place import Device
from tether.sections import LoraConfig

ROOT = Path(__file__).parents[2]


def job(size="8B", **settings):
    rank = settings.pop("rank", 0)
    return Job.of(SizingConfig(size=size, lora=Adapter(rank=rank), **settings))


def seconds(job, shares=None):
    return {each.phase: each.seconds for each in times(job, *([shares] if shares else []))}


# --- by hand --------------------------------------------------------------------------------------

# Llama 3.1 8B. A layer: queries, keys and values 4096·(32 + 2·8)·128 = 25,165,824, output 4096² =
# 16,777,216, gate, up and down 3·4096·14336 = 176,160,768, two norms 8,192.
LAYER_8B = 25_165_824 + 16_777_216 + 176_160_768 + 8_192
STACK_8B = 32 * LAYER_8B  # 6,979,584,000
HEAD_8B = 128_256 * 4096  # 525,336,576, and the embedding is another
POLICY_8B = STACK_8B + 2 * HEAD_8B + 4096  # 8,030,261,248
VALUE_8B = STACK_8B + HEAD_8B + 4096 + 4096  # 7,504,928,768


def test_ppo_of_8b_on_8_gpus_by_hand():
    """All weights are trained; each GPU has 512 / 8 = 64 rows, in 16 passes of 4 · 1024 tokens."""
    found = memory(job(gpus=8, gradient_checkpointing=True))
    resident = {
        "weights": 4 * (POLICY_8B + VALUE_8B) // 8,
        "optimizer": 8 * (POLICY_8B + VALUE_8B) // 8,
        "frozen models": 4 * (POLICY_8B + VALUE_8B) // 8,  # reference and reward model
        "sampling copy": 4 * POLICY_8B,
    }
    assert resident["weights"] == 7_767_595_008
    # A token's cache: 2 · 32 layers · 8 heads · 128 numbers of 2 bytes = 131,072. A layer keeps of
    # a token, own forward: 12·4096 + 4·4096 + 4·1024 + 6·14336 = 155,648; 8192 prompt tokens.
    assert +found["generate"] == {
        **resident,
        "bfloat16 copies": 2 * (STACK_8B + HEAD_8B),
        "KV cache": 64 * 1024 * 131_072,
        "logits": 4 * 64 * 128_256,
        "activations": 8192 * 155_648,
    }
    # Roots, embedding with norm and head: 2 · HEAD + 4096 of the policy, HEAD + 2 · 4096 of the
    # value model; with two layers and all gradients. Sharded a layer keeps 26·4096 + 4·4096 +
    # 4·1024 + 4·32 + 8·14336 = 241,792 bytes of a token, and 4·4096 lie between layers.
    roots = 3 * HEAD_8B + 3 * 4096
    assert +found["train"] == {
        **resident,
        "gradients": 4 * (POLICY_8B + VALUE_8B) // 8,
        "gathered": 2 * 4 * (roots + 2 * LAYER_8B),
        "bfloat16 copies": 2 * 2 * LAYER_8B + 14 * HEAD_8B,
        "activations": 2 * 4096 * (32 * 16_384 + 241_792),
        "logits": 6 * 1024 * 128_256,
    }
    assert sum(found["train"].values()) == pytest.approx(102.3e9, abs=0.05e9)


def test_the_times_of_ppo_of_8b_on_8_gpus_by_hand():
    found = seconds(job(gpus=8, gradient_checkpointing=True))
    # A token of decoding reads 2 · (STACK + HEAD) = 15.01 GB and 64 rows' caches of 512 + 256
    # positions, 131,072 bytes each: 6.44 GB; at 3.35 TB/s that is 6.404 ms, 512 times. The
    # prompts: 64 · (2 · STACK · 512 + 2·32·4096 · 512²) = 4.618e14 operations, 0.467 s.
    token = (15.009841152e9 + 64 * 768 * 131_072) / 3.35e12
    prompts = 64 * (2 * STACK_8B * 512 + 262_144 * 512**2) / 989e12
    assert token == pytest.approx(6.404e-3, rel=1e-3)
    assert prompts == pytest.approx(0.467, rel=1e-2)
    assert found["generate"] == pytest.approx(512 * token + prompts)
    # Training: 8 operations for each weight of a layer and token, 8 for each of the policy's head
    # and completion token, 4 times attention's 262,144 · 1024²; two models, 64 rows, 4 epochs.
    row = 2 * (8 * STACK_8B * 1024 + 4 * 262_144 * 1024**2) + 8 * HEAD_8B * 512
    assert found["train"] == pytest.approx(4 * 64 * row / 989e12)
    assert found["train"] == pytest.approx(30.73, abs=0.05)
    # 7/8 of the policy comes over NVLink, 4 bytes a parameter.
    assert found["sync"] == pytest.approx(7 / 8 * 4 * POLICY_8B / 450e9)
    # AdamW: 4 times 28 bytes for each of an eighth of the trained parameters.
    assert found["update"] == pytest.approx(4 * 28 * (POLICY_8B + VALUE_8B) / 8 / 3.35e12)


def test_lora_of_1b_on_one_gpu_by_hand():
    """Llama 3.2 1B, rank 16: one backbone; adapters of policy, value and reward model."""
    layer = 2048 * (32 + 2 * 8) * 64 + 2048**2 + 3 * 2048 * 8192 + 2 * 2048  # 60,821,504
    head = 128_256 * 2048  # 262,668,288, the embedding as well
    policy = 16 * layer + head + 2048  # 1,235,814,400
    # in + out of each linear layer: q and o 2·4096, k and v 2·2560, gate, up and down 3·10240.
    adapter = 16 * 16 * (2 * 4096 + 2 * 2560 + 3 * 10_240)  # 11,272,192
    trained = 2 * adapter + 2048  # the value model's has a head
    found = memory(job("1B", gpus=1, rank=16))
    assert held(job("1B", gpus=1, rank=16)) == (0, trained, policy, adapter + 2048)
    # A layer keeps of a token 12·2048 + 4·2048 + 4·512 + 6·8192 = 83,968 bytes; 4 · 1024 tokens go
    # through 16 layers for policy and value. Nothing is gathered, no copy samples.
    assert +found["train"] == {
        "weights": 4 * trained,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "frozen models": 4 * (policy + adapter + 2048),
        "bfloat16 copies": 2 * 2 * 16 * layer + 4 * head,
        "activations": 2 * 4096 * 16 * 83_968,
        "logits": 6 * 1024 * 128_256,
    }
    # 256 of 512 rows are decoded at a time; a token's cache is 2·16·8·64 numbers of 2 bytes.
    assert found["generate"]["KV cache"] == 256 * 1024 * 32_768
    # 4 operations a weight, since the backbone gets no gradient; the head's logits twice forward;
    # attention three times; two models, 512 rows, 4 epochs.
    row = 2 * (4 * 16 * layer * 1024 + 3 * 2 * 16 * 2048 * 1024**2) + 6 * head * 512
    assert seconds(job("1B", gpus=1, rank=16))["train"] == pytest.approx(4 * 512 * row / 989e12)


def test_weights_come_into_a_machine_once():
    """SFT moves 12 bytes a parameter (the root 8): of 16 GPUs, 15/16 of them over NVLink.

    In machines of 4, 12/16 come through the 4 network adapters of a machine.
    """
    config = {"method": "sft", "batch_size": 16, "prompt_tokens": 1, "completion_tokens": 1}
    moved = 4 * (2 * POLICY_8B + STACK_8B)
    assert seconds(job(gpus=16, **config))["train"] == pytest.approx(15 / 16 * moved / 450e9)
    slow = job(gpus=16, gpus_per_machine=4, **config)  # 12/16 over 4 · 50 GB/s
    assert seconds(slow)["train"] == pytest.approx(12 / 16 * moved / 200e9)


# --- against transformers, and a dry run ----------------------------------------------------------

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "family", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, SmolLM3Config]
)
def test_parameters_are_those_that_transformers_makes(tmp_path, family, tied):
    config = family(**SMALL, head_dim=12, tie_word_embeddings=tied)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = load_shape(str(tmp_path))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.layer == sum(p.numel() for p in model.model.layers[0].parameters())


@pytest.mark.parametrize(
    ("size", "parameters"), [("1B", 1_235_814_400), ("8B", 8_030_261_248), ("70B", 70_553_706_496)]
)
def test_presets_have_the_parameters_of_their_models(size, parameters):
    """As the model pages tell them."""
    assert PRESETS[size].parameters == parameters


@pytest.mark.parametrize(("rank", "checkpointing"), [(0, False), (16, True)])
def test_training_on_one_gpu_is_near_a_dry_run_of_the_code(
    tmp_path, monkeypatch, rank, checkpointing
):
    """Without FlashAttention, which the dry run lacks, attention keeps more: up to a fifth."""
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 12, "num_key_value_heads": 4, "vocab_size": 16_000}
    LlamaConfig(**sizes, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    tiny.word_tokenizer().save_pretrained(tmp_path)
    gpu = Device(torch.device("cuda"), torch.bfloat16, "sdpa", checkpointing)
    monkeypatch.setattr(footprint_models, "pick_device", lambda _: gpu)
    rows = {"batch_size": 8, "device_batch_size": 4}
    settings = {"model": str(tmp_path), "data": "none", "out": "none", "max_length": 512}
    config = SFTConfig(**settings, **rows, lora=LoraConfig(rank=rank))
    (dry,) = [p.parts for p in fit.of_sft(config, known=False).phases if p.name == "train"]
    paper = job(
        *(str(tmp_path),),
        **rows,
        **{"gpus": 1, "method": "sft", "prompt_tokens": 1, "completion_tokens": 511},
        rank=rank,
        gradient_checkpointing=checkpointing,
    )
    assert memory(paper)["train"].total() == pytest.approx(dry.total(), rel=0.2)


# --- properties -----------------------------------------------------------------------------------

methods = st.sampled_from(["sft", "reward", "dpo", "ppo", "grpo"])
sizes = st.sampled_from(["1B", "8B", "70B"])


@given(sizes, methods, st.sampled_from([0, 8]), st.integers(1, 9), st.booleans())
def test_more_gpus_hold_less_each(size, method, rank, doublings, checkpointing):
    """From two on: one alone has no copy for sampling and gathers nothing."""
    few = job(
        size,
        method=method,
        rank=rank,
        gpus=2**doublings,
        gradient_checkpointing=checkpointing,
    )
    many = few._replace(config=replace(few.config, gpus=2 ** (doublings + 1)))
    assert peak(many) < peak(few)
    if many.config.gpus <= 8:  # beyond, the network may make them slower
        assert sum(seconds(many).values()) < sum(seconds(few).values())


@given(sizes, methods, st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([1, 8, 16]))
def test_more_tokens_take_more_time_and_memory(size, method, tokens, more, gpus):
    short = job(size, method=method, completion_tokens=tokens, gpus=gpus)
    long = short._replace(config=replace(short.config, completion_tokens=tokens + more))
    assert peak(long) > peak(short)
    for phase, taken in seconds(short).items():
        assert seconds(long)[phase] >= taken


@given(methods, st.sampled_from([1, 8, 64]))
def test_checkpointing_and_adapters_hold_less_and_smaller_shares_take_longer(method, gpus):
    plain = job(method=method, gpus=gpus)
    anew = job(method=method, gpus=gpus, gradient_checkpointing=True)
    assert memory(anew)["train"].total() < memory(plain)["train"].total()
    assert seconds(anew)["train"] >= seconds(plain)["train"]
    assert peak(job(method=method, gpus=gpus, rank=8)) < peak(plain)
    slow = Shares(products=0.2, memory=0.2, links=0.2)
    for phase, taken in seconds(plain).items():
        assert taken <= seconds(plain, slow)[phase] <= 5.0001 * taken


def test_device_batches_change_memory_and_traffic_only():
    whole, small = (job(gpus=8, device_batch_size=n) for n in (64, 1))
    assert memory(small)["train"]["activations"] * 64 == memory(whole)["train"]["activations"]
    parts = Counter(memory(small)["train"]) - Counter(memory(whole)["train"])
    assert not parts
    assert seconds(small)["train"] > seconds(whole)["train"]  # bound by the links


def test_servers_take_the_copy_and_the_cache_from_those_that_train():
    found = memory(job(gpus=8, servers=2))
    assert "generate" not in found
    assert not any(parts["sampling copy"] or parts["KV cache"] for parts in found.values())


# --- what is told ---------------------------------------------------------------------------------


def test_every_mend_makes_it_fit():
    """SFT of 8B is helped by one of several; 70B on 8 GPUs by all together and more GPUs."""
    assert len(mends(job("8B", gpus=8, method="sft"))) == 4
    for each in (job("70B", gpus=8), job("8B", gpus=8), job("1B", card="RTX4090", gpus=4)):
        assert not fits(each)
        found = mends(each)
        assert found
        assert all(total <= each.card.memory for _, total in found)


def test_the_command_prints_and_refuses_what_does_not_fit(capsys):
    sized = ["plan", "--size", "8B", "--method", "sft", "--gradient-checkpointing", "--gpus"]
    assert dispatch([*sized, "8"]) == 0
    shown = capsys.readouterr().out
    for word in ("activations", "bound by", "989 TFLOP/s", "8.03 billion", "fits"):
        assert word in shown
    rule = r"gpus=1: train needs [\d.]+ GB on each H100, which has 80.0; it would fit with "
    with pytest.raises(ConfigError, match=rule):
        dispatch([*sized, "1"])
    assert "too much" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"size": "9B"}, "size='9B' is no model directory with a config.json; give one, or 1B"),
        ({"servers": 8}, "servers=8 must leave a GPU to train on; there are gpus=8"),
        ({"method": "sft", "servers": 2}, "servers=2 sample for ppo and grpo; leave it at 0"),
        ({"size": "70B", "servers": 2}, "servers=2 must be a multiple of 4"),
        ({"gpus": 0}, "gpus=0 must be a number above 0"),
    ],
)
def test_what_is_refused(arguments, rule):
    with pytest.raises(ConfigError, match=rule):
        job(**arguments)


def test_a_share_above_1_is_refused():
    with pytest.raises(ConfigError, match=r"shares.links=1.5 must lie between 0 and 1"):
        Shares(links=1.5)


def test_other_architectures_are_sent_to_the_dry_run(tmp_path):
    AutoConfig.for_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"family 'gpt2'.*`tether plan RECIPE.toml` counts any"):
        load_shape(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="does not name 'hidden_size'"):
        load_shape(str(tmp_path))


def test_it_starts_without_torch():
    code = "import sys, tether.footprint.sizing; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_documents_show_what_the_code_prints():
    told = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "sizing.py"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout in told

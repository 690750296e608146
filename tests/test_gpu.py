"""A GPU gives the CPU's numbers, and its own checks pass in bfloat16.

All tests of this project run on the CPU, whose numbers they know (tests/conftest.py hides GPUs).
These are skipped there; on a machine with a GPU:

    CUDA_VISIBLE_DEVICES=0 python -m pytest tests/test_gpu.py tests/kernels/test_gpu.py
"""

import importlib.util

import pytest
import torch

from tests.train import toys
from tests.train.test_family import METHODS
from tests.train.test_kto import THUMBS
from tests.train.test_lora import ROWS
from tests.train.test_online import interrupted_after, without_times
from tests.train.toys import KINDS
from tether.config import DPOConfig, KTOConfig, RewardConfig
from tether.data.batches import Row, device_batches
from tether.engine import graphs
from tether.engine.decode import generate_tokens
from tether.models.language_model import completion_logprobs, load
from tether.sections import ComputeConfig, LoraConfig, OptimizerConfig, SamplingConfig, ValueConfig
from tether.train.kto import train_kto
from tether.train.online import train_ppo
from tether.train.preference import train_dpo
from tether.train.reward import train_reward
from tether.train.sft import train_sft

GPU = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

PROMPT_IDS = [[4 + (7 * i + j) % 20 for j in range(1 + i % 6)] for i in range(20)]
RANK4 = LoraConfig(rank=4)


def save(folder, kind="llama"):
    """A tiny model with heads of 32 numbers, which the kernels serve."""
    return toys.save(folder, kind, **({"hidden_size": 64} if kind == "llama" else {"n_embd": 64}))


def on(device: str, precision: str = "float32", **changes) -> ComputeConfig:
    return ComputeConfig(device=device, precision=precision, **changes)


# --- forward, backward, decoding ------------------------------------------------------------------


def logprobs_and_gradients(path, compute, lora):
    """Of rows of unequal lengths, some of which share a row of the batch."""
    policy = load(path, compute, trainable=True, lora=lora)
    rows = [Row(ids + ids[::-1] + ids * (i % 3), len(ids)) for i, ids in enumerate(PROMPT_IDS)]
    ((_, batch),) = device_batches(rows, 0)
    assert batch.position_ids is not None
    found, entropies = completion_logprobs(policy, batch, temperature=0.8, with_entropy=True)
    (found * torch.linspace(-1, 2, len(found), device=found.device)).sum().backward()
    gradients = {name: grad.cpu() for name, grad in toys.gradients(policy.model).items()}
    return {"logprobs": found.detach().cpu(), "entropies": entropies.cpu()}, gradients


@pytest.mark.parametrize("lora", [LoraConfig(), RANK4], ids=["all weights", "adapter"])
@KINDS
def test_log_probs_entropies_and_gradients(tmp_path, kind, lora):
    path = save(tmp_path, kind)
    wanted = logprobs_and_gradients(path, on("cpu"), lora)
    found = logprobs_and_gradients(path, on(GPU), lora)
    toys.assert_same(wanted[0], found[0], atol=1e-4)
    largest = max(float(gradient.abs().max()) for gradient in wanted[1].values())
    toys.assert_same(wanted[1], found[1], atol=1e-4 * largest)


@pytest.mark.parametrize("slots", [6, 64])
@KINDS
def test_completions(tmp_path, kind, slots):
    path = save(tmp_path, kind)
    sampling = SamplingConfig(max_new_tokens=20, stop_token_ids=(5, 9), batch_size=slots)
    here, there = (
        generate_tokens(load(path, on(device)), PROMPT_IDS, sampling, seed=3)
        for device in ("cpu", GPU)
    )
    assert [each.token_ids for each in there] == [each.token_ids for each in here]
    for one, other in zip(here, there, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.finished == other.finished


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_graphs_change_nothing(tmp_path, monkeypatch, precision):
    policy = load(save(tmp_path), on(GPU, precision))
    sampling = SamplingConfig(max_new_tokens=20, stop_token_ids=(5, 9), batch_size=6)
    captured = generate_tokens(policy, PROMPT_IDS, sampling, seed=3)

    def uncaptured(run):
        hidden = run()
        return lambda: hidden.copy_(run()), hidden

    monkeypatch.setattr(graphs, "capture_graph", uncaptured)
    assert generate_tokens(policy, PROMPT_IDS, sampling, seed=3) == captured


def test_bfloat16_is_near_float32(tmp_path):
    path = save(tmp_path)
    narrow, wide = (
        logprobs_and_gradients(path, on(GPU, precision), LoraConfig())[0]["logprobs"]
        for precision in ("bfloat16", "float32")
    )
    assert 0 < (narrow - wide).abs().mean() < 0.05  # nats; tokens differ by whole nats


# --- stages ---------------------------------------------------------------------------------------


def ppo_on_a_reward_model(folder, model, **settings):
    """PPO whose value model starts as the reward model."""
    reward = toys.reward(folder, model, ROWS, compute=settings["compute"], max_steps=2)
    path = str(train_reward(reward) / "model")
    return train_ppo(toys.ppo(folder, model, rewards=(RewardConfig(path=path),), **settings))


STAGES = {
    "sft": lambda *a, **k: train_sft(toys.sft(*a, **k)),
    "reward": lambda folder, model, **k: train_reward(toys.reward(folder, model, ROWS, **k)),
    "dpo": lambda *a, **k: train_dpo(toys.preference(*a, DPOConfig, **k)),
    "kto": lambda *a, **k: train_kto(toys.preference(*a, KTOConfig, THUMBS, **k)),
    "ppo": ppo_on_a_reward_model,
    "ppo, shared": lambda *a, **k: train_ppo(toys.ppo(*a, value=ValueConfig(shared=True), **k)),
    "ppo, adapters": lambda *a, **k: train_ppo(toys.ppo(*a, lora=RANK4, **k)),
    **{
        name: lambda *a, method=method, **k: method[1](toys.online(method[0], *a, **method[2], **k))
        for name, method in METHODS.items()
    },
}
ONLINE = [name for name in STAGES if name not in ("sft", "reward", "dpo", "kto")]


def one_step(name, folder, model, compute):
    """The first row of metrics; of an online method all epochs of one rollout."""
    folder.mkdir()
    steps = {"steps": 1} if name in ONLINE else {"max_steps": 1}
    return toys.metrics(STAGES[name](folder, model, compute=compute, **steps))[0]


def assert_near(found, wanted):
    """But for counts of what lies beyond a limit: rounding may carry one of it over."""
    (found,), (wanted,) = without_times([found]), without_times([wanted])
    for counted in ("accuracy", "clip_fraction", "value_clip_fraction"):
        found.pop(counted, None), wanted.pop(counted, None)
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@KINDS
@pytest.mark.parametrize("name", STAGES)
def test_a_step_has_the_metrics_of_the_cpu(tmp_path, name, kind):
    path = save(tmp_path, kind)
    wanted = one_step(name, tmp_path / "cpu", path, on("cpu"))
    assert_near(one_step(name, tmp_path / "gpu", path, on(GPU)), wanted)


@KINDS
@pytest.mark.parametrize("name", STAGES)
def test_a_step_in_bfloat16(tmp_path, name, kind):
    one_step(name, tmp_path / "run", save(tmp_path, kind), on(GPU, "bfloat16"))


@pytest.mark.parametrize("change", ["offload", "gradient_checkpointing"])
@KINDS
def test_what_saves_memory_changes_no_numbers(tmp_path, kind, change):
    path = save(tmp_path, kind)
    wanted = one_step("ppo", tmp_path / "plain", path, on(GPU))
    assert_near(one_step("ppo", tmp_path / "less", path, on(GPU, **{change: True})), wanted)


def test_a_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    path = save(tmp_path)
    settings = {"compute": on(GPU, "bfloat16"), "steps": 3, "checkpoint_every": 1}
    whole = toys.metrics(train_ppo(toys.ppo(tmp_path, path, out=str(tmp_path / "a"), **settings)))
    config = toys.ppo(tmp_path, path, out=str(tmp_path / "b"), **settings)
    interrupted_after(2, monkeypatch, config)
    for one, other in zip(toys.metrics(train_ppo(config)), whole, strict=True):
        assert_near(one, other)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes")
def test_a_base_in_four_bits(tmp_path):
    path = save(tmp_path)
    lora = LoraConfig(rank=4, quantize="4bit")
    fast = OptimizerConfig(learning_rate=1e-2)
    settings = {"compute": on(GPU, "bfloat16"), "lora": lora, "optimizer": fast}
    rows = toys.metrics(train_sft(toys.sft(tmp_path, path, max_steps=20, **settings)))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1
    train_ppo(toys.ppo(tmp_path, path, steps=1, **settings))

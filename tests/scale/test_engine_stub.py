"""From end to end against a stub that computes with tether's own engine. It is not vLLM."""

import asyncio
from dataclasses import replace

import pytest
import torch

from tests.scale.stub import EngineStub
from tests.scale.training import train_with_servers
from tests.tiny import save_tiny
from tests.train import toys
from tether.engine.samplers import Request
from tether.errors import CheckError
from tether.models.language_model import load
from tether.models.weights import plain
from tether.scale.vllm_server import VLLMSampler
from tether.sections import (
    ComputeConfig,
    LoraConfig,
    OptimizerConfig,
    SamplingConfig,
    ServersConfig,
)
from tether.train.parity import compare, probe

PROMPTS = [[5, 6, 7], [8, 9], [10], [11, 12, 13, 14], [6, 6]]
SAMPLING = SamplingConfig(temperature=0.8, max_new_tokens=12, stop_token_ids=(8,))


@pytest.fixture
def place(tmp_path):
    """A policy, a stub that serves another model of its shape, and a sampler."""
    one, other = (save_tiny(tmp_path / name, seed=i) for i, name in enumerate(("a", "b")))
    stub = EngineStub(load(str(other), ComputeConfig()))
    with stub.running():
        yield Place(load(str(one), ComputeConfig(), trainable=True), stub, tmp_path)


class Place:
    def __init__(self, policy, stub, folder):
        self.policy, self.stub = policy, stub
        config = ServersConfig(urls=(stub.url,), timeout=20.0, retries=0)
        self.sampler = VLLMSampler(config, policy, folder, wait=lambda _: asyncio.sleep(0.001))

    def sync(self, version):
        self.sampler.load(plain(self.policy), version)

    def train(self):
        """Move every weight of the policy."""
        with torch.no_grad():
            for i, parameter in enumerate(self.policy.own_parameters):
                draw = torch.Generator().manual_seed(i)
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)

    def probed(self, version, tolerance=1e-5):
        return probe(self.sampler, self.policy, PROMPTS, SAMPLING, tolerance, version)


def test_the_server_samples_from_the_policy_after_every_sync(place):
    for version in range(3):
        place.sync(version)
        gap = place.probed(version)
        assert gap.mean < 1e-6
        assert gap.max < 1e-5
        place.train()


def test_a_whole_batch_is_the_policys_too(place):
    place.sync(0)
    prompts = PROMPTS * 8
    request = Request(prompts, list(range(40)), SAMPLING, seed=1, step=0)
    drawn = place.sampler.sample(request)
    assert compare(drawn, place.policy, prompts, 0.8, 1e-5, 0).mean < 1e-6
    ended = [one for one in drawn.sampled if one.finished]
    assert 0 < len(ended) < 40
    assert all(one.token_ids[-1] in (1, 8) for one in ended)


@pytest.mark.parametrize("stale", ["lm_head", "embed_tokens", "layers.1.mlp.down_proj"])
def test_weights_that_stayed_old_are_found_though_the_version_is_new(place, stale):
    place.sync(0)
    place.probed(0)
    place.train()
    place.stub.stale = stale
    place.sync(1)
    assert place.stub.version.endswith("-1")
    with pytest.raises(CheckError, match=f"{place.stub.url} samples from something else .* step 1"):
        place.probed(1, tolerance=0.01)


def test_another_temperature_is_found(place):
    place.sync(0)
    draw = place.stub.complete
    place.stub.complete = lambda body: draw({**body, "temperature": 1.0})
    with pytest.raises(CheckError, match=r"off by .* nats a token"):
        place.probed(0, tolerance=0.01)


@pytest.mark.parametrize("lag", [0, 1])
def test_ppo_learns_from_what_a_server_samples(tmp_path, monkeypatch, lag):
    folder = save_tiny(tmp_path / "model")
    stub = EngineStub(load(str(folder), ComputeConfig()))
    with stub.running():
        compute = ComputeConfig(servers=ServersConfig(urls=(stub.url,), tolerance=1e-4))
        sampling = replace(toys.SAMPLING, lag=lag)
        config = toys.ppo(tmp_path, folder, steps=3, compute=compute, sampling=sampling)
        gaps = train_with_servers(config, monkeypatch)
    rows = toys.metrics(config.out)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["logprob_gap_mean"] < 1e-6
    # One sync a step: of the weights after 0, 1 and 2 steps; with a lag of 1 not of the last.
    assert len(gaps) == (2 if lag else 3)
    assert stub.version.endswith("-1" if lag else "-2")
    assert not (tmp_path / "ppo" / "rollout-weights").exists()


def test_ppo_stops_where_a_server_that_came_back_has_old_weights(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path / "model")
    stub = EngineStub(load(str(folder), ComputeConfig()))
    first = {n: p.clone() for n, p in stub.model.model.named_parameters()}
    draw = stub.complete

    def restart_once(body):
        """After the probe of the second sync the server starts anew, and its head stays so."""
        if len(body["prompt"]) == 1 and stub.count("/update_weights") == 2 and not stub.stale:
            stub.restart()
            stub.stale = "lm_head"
            for name, parameter in stub.model.model.named_parameters():
                parameter.data.copy_(first[name])
        return draw(body)

    stub.complete = restart_once
    with stub.running():
        compute = ComputeConfig(servers=ServersConfig(urls=(stub.url,), tolerance=1e-4))
        rate = OptimizerConfig(learning_rate=0.05)
        config = toys.ppo(tmp_path, folder, steps=3, compute=compute, optimizer=rate)
        with pytest.raises(CheckError, match="after the weights of step 1 were sent"):
            train_with_servers(config, monkeypatch)


def test_a_policy_with_an_adapter_is_sent_as_one_model(tmp_path):
    folder = save_tiny(tmp_path / "a")
    lora = LoraConfig(rank=2)
    policy = load(str(folder), ComputeConfig(), trainable=True, lora=lora)
    stub = EngineStub(load(str(folder), ComputeConfig()))
    with stub.running():
        place = Place(policy, stub, tmp_path)
        place.train()
        place.sync(0)
        assert place.probed(0).mean < 1e-6

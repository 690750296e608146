"""A real vLLM server, on CPUs: same numbers, live updates, and a stale head that is found.

Not run by default (`make test-scale` runs it). TETHER_VLLM_PYTHON names the Python of an
environment with vLLM and servers/vllm_file_weights; docs/rollout-servers.md tells how to make one.
"""

import os
import subprocess
import threading
import time
from dataclasses import replace

import httpx
import pytest
import torch

from tests.scale.training import train_with_servers
from tests.scale.vllm_process import VLLMProcess
from tests.tiny import save_tiny, word_tokenizer
from tests.train import toys
from tether.engine.samplers import Request
from tether.errors import CheckError, ServerError
from tether.models.language_model import load
from tether.models.weights import plain
from tether.scale.vllm_server import VLLMSampler
from tether.sections import ComputeConfig, LoraConfig, SamplingConfig, ServersConfig
from tether.train.parity import compare, probe

pytestmark = pytest.mark.scale

PROMPTS = [[5, 6, 7], [8, 9], [10], [11, 12, 13, 14], [20, 21, 22, 23, 24, 25, 26]]
SAMPLING = SamplingConfig(temperature=0.7, max_new_tokens=24, stop_token_ids=(8,))
TOLERANCE = 1e-5  # nats a token; both compute in float32
SHAPE = {"hidden_size": 128, "intermediate_size": 128, "max_position_embeddings": 128}
SHAPE |= {"tie_word_embeddings": True, "initializer_range": 0.1}


@pytest.fixture(scope="module")
def python():
    name = os.environ.get("TETHER_VLLM_PYTHON", "")
    if not name:
        pytest.skip("NO REAL vLLM WAS TRIED: TETHER_VLLM_PYTHON is not set (docs/rollout-servers)")
    probe = [name, "-c", "import vllm, vllm_file_weights"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"NO REAL vLLM WAS TRIED: {name} cannot import it: {done.stderr[-300:]}")
    return name


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), **SHAPE)


@pytest.fixture(scope="module")
def server(python, model, tmp_path_factory):
    process = VLLMProcess(python, model, tmp_path_factory.mktemp("log") / "vllm.log")
    process.start()
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture
def policy(model):
    return load(str(model), ComputeConfig(), trainable=True)


@pytest.fixture
def sampler(server, policy, tmp_path):
    config = ServersConfig(urls=(server.url,), timeout=120.0, retries=2)
    made = VLLMSampler(config, policy, tmp_path)
    yield made
    made.close()


def train(policy, seed=0):
    """Move every weight."""
    with torch.no_grad():
        for i, parameter in enumerate(policy.own_parameters):
            draw = torch.Generator().manual_seed(100 * seed + i)
            parameter += 0.03 * torch.randn(parameter.shape, generator=draw)


def test_log_probs_are_those_of_the_policy(sampler, policy):
    sampler.load(plain(policy), 0)
    prompts = PROMPTS * 12
    drawn = sampler.sample(Request(prompts, list(range(60)), SAMPLING, seed=0, step=0))
    gap = compare(drawn, policy, prompts, 0.7, TOLERANCE, 0)
    print(f"over {sum(len(one.token_ids) for one in drawn.sampled)} tokens: {gap}")
    ended = [one for one in drawn.sampled if one.finished]
    assert 0 < len(ended) < 60
    assert all(one.token_ids[-1] in (1, 8) for one in ended)
    assert all(len(one.token_ids) == 24 for one in drawn.sampled if not one.finished)


def test_weights_are_changed_while_it_runs(sampler, policy):
    before = [tensor.detach().clone() for tensor in policy.own_parameters]
    for version in range(3):
        sampler.load(plain(policy), version)
        gap = probe(sampler, policy, PROMPTS, SAMPLING, TOLERANCE, version)
        print(f"after sync {version}: {gap}")
        train(policy, version)
    with pytest.raises(CheckError, match="samples from something else than the policy"):
        probe(sampler, policy, PROMPTS, SAMPLING, 0.01, 2)  # trained, not sent
    assert not torch.equal(before[0], policy.own_parameters[0])


def test_an_adapter_is_sent_as_one_model(sampler, model):
    policy = load(str(model), ComputeConfig(), trainable=True, lora=LoraConfig(rank=2))
    train(policy)
    sampler.load(plain(policy), 0)
    probe(sampler, policy, PROMPTS, SAMPLING, TOLERANCE, 0)


def test_what_a_dead_trainer_left_behind_is_cleared_away(server, sampler, policy):
    def post(path, body):
        head = {"Connection": "close"}
        return httpx.post(server.url + path, json=body, timeout=60.0, headers=head)

    long = {"model": "policy", "prompt": [[5]], "max_tokens": 120, "ignore_eos": True}
    answers = []
    asked = threading.Thread(target=lambda: answers.append(post("/v1/completions", long).json()))
    post("/pause?mode=keep", {})
    asked.start()  # waits, since the server is paused
    time.sleep(0.5)
    post("/start_weight_update", {})
    sampler.load(plain(policy), 3)
    probe(sampler, policy, PROMPTS, SAMPLING, TOLERANCE, 3)
    asked.join(timeout=60.0)
    assert not asked.is_alive()


def test_another_vocabulary_is_refused_before_it_gets_there(server, tmp_path):
    words = word_tokenizer([f"word{i}" for i in range(40)])
    for tokenizer, said in ((words, "out-of-vocab"), (word_tokenizer(["one"]), "knows a token")):
        other = save_tiny(tmp_path / said, tokenizer=tokenizer, **SHAPE)
        policy = load(str(other), ComputeConfig())
        config = ServersConfig(urls=(server.url,), timeout=60.0, retries=0)
        with pytest.raises(ServerError, match=said):
            VLLMSampler(config, policy, tmp_path).load(plain(policy), 0)


def test_weights_that_the_server_cuts_to_its_own_shape_are_found(server, sampler, policy, tmp_path):
    other = save_tiny(tmp_path / "other", **{**SHAPE, "intermediate_size": 192})
    wider = load(str(other), ComputeConfig())
    config = ServersConfig(urls=(server.url,), timeout=60.0, retries=0)
    theirs = VLLMSampler(config, wider, tmp_path)
    theirs.load(plain(wider), 0)  # vLLM takes the first 128 of 192 rows and says nothing
    with pytest.raises(CheckError, match="samples from something else"):
        probe(theirs, wider, PROMPTS, SAMPLING, 0.01, 0)
    sampler.load(plain(policy), 1)
    probe(sampler, policy, PROMPTS, SAMPLING, TOLERANCE, 1)


def test_an_update_that_breaks_off_does_no_harm(server, sampler, policy):
    def broken():
        for name, tensor in plain(policy):
            yield name, tensor[:-1] if "layers.1.mlp.down_proj" in name else tensor

    sampler.servers[0].retries = 0
    with pytest.raises(ServerError, match="status 500"):
        sampler.load(broken(), 1)
    sampler.load(plain(policy), 2)
    probe(sampler, policy, PROMPTS, SAMPLING, TOLERANCE, 2)


@pytest.mark.parametrize("lag", [0, 1])
def test_ppo_with_a_server(server, model, tmp_path, monkeypatch, lag):
    compute = ComputeConfig(servers=ServersConfig(urls=(server.url,), tolerance=TOLERANCE))
    sampling = replace(toys.SAMPLING, lag=lag)
    config = toys.ppo(tmp_path, model, steps=4, compute=compute, sampling=sampling)
    gaps = train_with_servers(config, monkeypatch)
    rows = toys.metrics(config.out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["logprob_gap_mean"] < TOLERANCE
    assert len(gaps) >= 3
    print(gaps)


def test_a_killed_server_gets_its_weights_again_and_a_stale_head_is_found(server, sampler, policy):
    sampler.load(plain(policy), 0)
    train(policy)
    sampler.load(plain(policy), 1)
    server.kill()
    restart = threading.Thread(
        target=server.start, kwargs={"VLLM_FILE_WEIGHTS_STALE_HEAD": "1"}, daemon=True
    )
    restart.start()
    sampler.config = ServersConfig(urls=(server.url,), timeout=400.0)
    drawn = sampler.sample(Request(PROMPTS, list(range(5)), SAMPLING, seed=0, step=0))
    restart.join()
    assert drawn.resent
    assert drawn.version == 1
    # It says that it has the weights, and its head computes with those of its folder.
    with pytest.raises(CheckError, match="after the weights of step 1 were sent") as found:
        compare(drawn, policy, PROMPTS, 0.7, 0.01, 1)
    print(found.value)
    sampler.load(plain(policy), 2)
    with pytest.raises(CheckError, match="after the weights of step 2 were sent"):
        probe(sampler, policy, PROMPTS, SAMPLING, 0.01, 2)

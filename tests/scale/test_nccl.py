"""vLLM's NCCL transfer as far as it goes without GPUs: what the servers are told."""

import contextlib

import pytest

from tests.scale.stub import StubVLLM
from tests.tiny import save_tiny
from tether.errors import ConfigError, ServerError
from tether.models.language_model import load
from tether.scale.nccl import _Client
from tether.scale.vllm_http import VLLMServer
from tether.scale.vllm_server import VLLMSampler
from tether.sections import ComputeConfig, ServersConfig


def test_it_is_refused_where_there_is_no_vllm(tmp_path):
    policy = load(str(save_tiny(tmp_path / "policy")), ComputeConfig())
    config = ServersConfig(urls=("http://127.0.0.1:1",), transfer="nccl")
    with pytest.raises(ConfigError, match=r"transfer='nccl' needs vLLM .*; set 'file'"):
        VLLMSampler(config, policy, tmp_path)


async def no_wait(seconds): ...


@pytest.fixture
def stubs():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(StubVLLM().running()) for _ in range(2)]


def client(stubs):
    servers = [VLLMServer(s.url, timeout=20.0, retries=0, wait=no_wait) for s in stubs]
    return _Client(servers)


def test_the_workers_of_each_server_are_numbered_after_those_before(stubs):
    for stub, size in zip(stubs, (2, 4), strict=True):
        stub.told["/get_world_size"] = (200, {"world_size": size})
    client(stubs).init_weight_transfer_engine({"master_port": 5, "rank_offset": 1})
    # The trainer is 0, the first server's two workers are 1 and 2, the second's begin at 3.
    assert [stub.sent[-1] for stub in stubs] == [
        {"init_info": {"master_port": 5, "rank_offset": 1}},
        {"init_info": {"master_port": 5, "rank_offset": 3}},
    ]


def test_all_servers_are_told_the_name_of_the_weights(stubs):
    asking = client(stubs)
    asking.name = "run-4"
    asking.start_weight_update()
    asking.finish_weight_update()
    assert [stub.version for stub in stubs] == ["run-4", "run-4"]


def test_a_server_that_fails_ends_it(stubs):
    stubs[1].gone = True
    with pytest.raises(ServerError, match=f"{stubs[1].url}/start_weight_update: a broken connect"):
        client(stubs).start_weight_update()

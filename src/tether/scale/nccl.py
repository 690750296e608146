"""Weights from the trainer's GPU to those of vLLM servers, by vLLM's own trainer side.

It needs vLLM in the trainer's environment, and GPUs at both ends. All servers are one NCCL group,
so all must be there: where one dies, the training has to start again from its last checkpoint.
"""

import asyncio
import importlib
import importlib.util
import socket
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from tether.errors import ConfigError, ServerError
from tether.rewards.calls import MayPass, finish
from tether.scale.vllm_http import VLLMServer

FACTORY = "vllm.distributed.weight_transfer.factory"
ENGINE = "vllm.distributed.weight_transfer.nccl_engine"
BASE = "vllm.distributed.weight_transfer.base"


class NcclTransfer:
    """The trainer's end; the group is opened with the first weights.

    Raises:
        ConfigError: No vLLM in this environment, or no GPU.
    """

    def __init__(self, servers: list[VLLMServer]) -> None:
        found = importlib.util.find_spec("vllm") is not None
        if not (found and torch.cuda.is_available()):
            lacks = "a GPU" if found else "vLLM in the trainer's environment"
            raise ConfigError(
                f"compute.servers.transfer='nccl' needs {lacks}; set 'file' and a folder that "
                "trainer and servers share"
            )
        self.servers, self.engine = servers, None
        self.source, self.client = _Source(), _Client(servers)

    def send(self, weights: Iterable[tuple[str, Tensor]], name: str) -> None:
        """Give all servers new weights.

        Raises:
            ServerError: A call failed.
        """
        self.source.weights = [(key, tensor.detach()) for key, tensor in weights]
        self.client.name = name
        self.client.each("/pause?mode=abort", {})
        if self.engine is None:
            self.engine = self._open()
        self.engine.send_weights()
        self.source.weights = []
        self.client.each("/reset_prefix_cache", {})
        self.client.each("/resume", {})

    def _open(self) -> Any:
        sizes = self.client.world_sizes()
        info = importlib.import_module(ENGINE).NCCLTrainerInitInfo(
            master_address=_own_address(self.servers[0].url),
            master_port=_free_port(),
            world_size=1 + sum(sizes),
            packed=True,
            rank=0,
        )
        factory = importlib.import_module(FACTORY).WeightTransferTrainerFactory
        return factory.trainer_init(info, client=self.client, source=self.source)

    def close(self) -> None:
        """Leave the group."""
        if self.engine is not None:
            self.engine.shutdown()


class _Source:
    """vLLM's `WeightSource`: names and shapes first, then the tensors."""

    def __init__(self) -> None:
        self.weights: list[tuple[str, Tensor]] = []

    def metadata(self) -> list[Any]:
        meta = importlib.import_module(BASE).ParamMeta
        return [meta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.weights]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.weights


class _Client:
    """vLLM's `VLLMWeightSyncClient`, for all servers at once."""

    def __init__(self, servers: list[VLLMServer]) -> None:
        self.servers, self.name = servers, ""

    def each(self, path: str, *bodies: Any) -> list[Any]:
        """The answers of all servers to one body, or to one each."""
        given = list(bodies) if len(bodies) > 1 else list(bodies) * len(self.servers)

        async def ask(server: VLLMServer, body: Any) -> Any:
            async with server.client() as client:
                try:
                    return await server.call(client, path, body)
                except MayPass as failure:
                    raise ServerError(f"{server.url}{path}: {failure.reason}") from None

        async def run() -> list[Any]:
            return await asyncio.gather(*map(ask, self.servers, given))

        return finish(run())

    def world_sizes(self) -> list[int]:
        return [int(answer["world_size"]) for answer in self.each("/get_world_size", None)]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos, offset = [], 1  # the trainer is number 0
        for size in self.world_sizes():
            infos.append({"init_info": {**init_info, "rank_offset": offset}})
            offset += size
        self.each("/init_weight_transfer_engine", *infos)

    def start_weight_update(self) -> None:
        self.each("/start_weight_update", {})

    def update_weights(self, update_info: Any) -> None:
        self.each("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.each("/finish_weight_update", {"weight_version": weight_version or self.name})


def _own_address(url: str) -> str:
    """This machine's address as the host of `url` sees it."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((parts.hostname, parts.port or 80))
        return asking.getsockname()[0]


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("", 0))
        return listening.getsockname()[1]

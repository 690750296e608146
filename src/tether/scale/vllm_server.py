"""Sampling by vLLM servers, each in a process and an environment of its own.

Rows are spread over the servers. What one does not answer, after its retries, goes to the others;
one that comes back gets the newest weights before it is asked again. Weights travel by vLLM's own
protocol, by files or from GPU to GPU.

What a server samples is not a function of (seed, step, row): it is drawn anew each time. A seed a
request would not mend it (batches differ from call to call) and can end vLLM's engine on CPUs.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
from torch import Tensor

from tether.engine.decode import Sampled
from tether.engine.samplers import Drawn, Request
from tether.errors import ServerError
from tether.models.language_model import LanguageModel
from tether.progress import console
from tether.rewards.calls import Wait, finish
from tether.scale.nccl import NcclTransfer
from tether.scale.vllm_http import START, Gone, VLLMServer
from tether.scale.weight_files import WeightFiles
from tether.sections import ServersConfig
from tether.validation import require, web_address

T = TypeVar("T")

CALLS_AT_ONCE = 8  # to a server; what it holds of a rollout batch is spread over so many
TOKENS_A_CALL = 1 << 16  # prompts and completions of a call, so that answers stay below 16 MiB
POLL = 5.0  # seconds between looks whether a server is back


class VLLMSampler:
    """A `Sampler` over any number of vLLM servers.

    Attributes:
        plain: It wants the weights of a plain Hugging Face model.
        places: Servers that were named.
    """

    plain = True

    def __init__(
        self,
        config: ServersConfig,
        policy: LanguageModel,
        folder: Path,
        *,
        wait: Wait = asyncio.sleep,
    ) -> None:
        """Nothing is asked before the first `load`.

        Args:
            config: Addresses, timeouts, and how weights get there.
            policy: Says which tokens there are and which of them end a completion.
            folder: For weight files, where `config.folder` names none.
            wait: What waits between tries.

        Raises:
            ConfigError: An address cannot be used, or transfer = "nccl" not in this process.
        """
        for url in config.urls:
            web_address("compute.servers.urls", url)
        rule = "must name at least one server, and none twice"
        unique = {url.rstrip("/") for url in config.urls}
        require(0 < len(config.urls) == len(unique), "compute.servers.urls", config.urls, rule)
        self.config, self.wait = config, wait
        self.stop_ids = policy.stop_ids
        head: Any = policy.model.get_output_embeddings()
        self.vocab_size = int(head.weight.shape[0])
        known = {"timeout": config.timeout, "retries": config.retries, "wait": wait}
        self.servers = [VLLMServer(url, **known) for url in config.urls]
        self.places = len(self.servers)
        self.run = secrets.token_hex(4)  # another training's weights bear another name
        self.version, self.name, self.info = -1, "", {}
        self.resent = False
        if config.transfer == "nccl":
            self.nccl: NcclTransfer | None = NcclTransfer(self.servers)
        else:
            self.nccl = None
            base = Path(config.folder) if config.folder else folder
            self.files = WeightFiles(base / "rollout-weights")

    # --- the protocol of samplers -----------------------------------------------------------------

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Give all servers new weights; those that do not answer are left out until they do.

        Raises:
            ServerError: Nobody took them, or a server is not what it has to be.
        """
        self.version, self.name = version, f"{self.run}-{version}"
        if self.nccl:
            finish(self._with_client(lambda client: self._meet_all(client)))
            self.nccl.send(weights, self.name)
            finish(self._with_client(lambda client: self._check_all(client)))
        else:
            self.info = self.files.write(weights, self.name)
            finish(self._with_client(self._bring_all))
            self.files.keep_only(self.name)
        self.resent = False

    def sample(self, request: Request) -> Drawn:
        """Completions by the newest weights, by whichever servers answer.

        Raises:
            ServerError: Nobody answered, or an answer is not what was asked for.
        """
        self.resent = False
        return finish(self._with_client(lambda client: self._sample(client, request)))

    def close(self) -> None:
        """Remove the weight files, or end the transfer; the servers go on by themselves."""
        if self.nccl:
            self.nccl.close()
        else:
            self.files.remove()

    # --- sampling ---------------------------------------------------------------------------------

    async def _sample(self, client: httpx.AsyncClient, request: Request) -> Drawn:
        """Deal the rows out; deal out again what was not answered."""
        stops = self.stop_ids | set(request.sampling.stop_token_ids)
        found: dict[int, tuple[Sampled, str]] = {}
        left = list(range(len(request.prompts)))

        async def ask(server: VLLMServer, rows: list[int]) -> None:
            prompts = [request.prompts[i] for i in rows]

            async def once() -> list[Sampled]:
                sampled = await server.complete(
                    client, prompts, request.sampling, stops, self.vocab_size
                )
                held = await server.holds(client)
                if held != self.name:
                    raise Gone(f"it holds the weights {held!r} instead of {self.name!r}")
                return sampled

            try:
                sampled = await server.persist(once)
            except Gone as gone:
                self._lose(server, str(gone))
                return
            found.update({i: (one, server.url) for i, one in zip(rows, sampled, strict=True)})

        for _ in range(self.places * (self.config.retries + 1)):
            alive = await self._ready(client)
            parts = deal(left, len(alive), _rows_a_call(request, alive))
            await _all(ask(alive[i % len(alive)], part) for i, part in enumerate(parts))
            left = [i for i in left if i not in found]
            if not left:
                ordered = [found[i] for i in range(len(request.prompts))]
                by = tuple(url for _, url in ordered)
                return Drawn([one for one, _ in ordered], self.version, by, self.resent)
        raise ServerError(f"{len(left)} completions were not sampled ({self._troubles()}); {START}")

    async def _ready(self, client: httpx.AsyncClient) -> list[VLLMServer]:
        """The servers that hold the newest weights; waits for one where there is none.

        Raises:
            ServerError: None came back within the timeout of a call.
        """
        until = time.monotonic() + self.config.timeout
        told = False
        while True:
            await _all(self._renew(client, server) for server in self.servers)
            if alive := self._alive():
                return alive
            if time.monotonic() >= until:
                raise ServerError(f"no rollout server answers ({self._troubles()}); {START}")
            if not told:
                console.print(f"waiting for a rollout server ({self._troubles()})")
                told = True
            await self.wait(POLL)

    async def _renew(self, client: httpx.AsyncClient, server: VLLMServer) -> None:
        """See that a server is there and has the newest weights, or give it these."""
        try:
            retries = 0 if server.trouble else None  # for who is gone, others do not wait long
            held = await server.persist(lambda: server.holds(client), retries)
            if held != self.name or server.trouble:
                server.facts = None  # it may have been started anew, with whatever
                await self._bring(client, server)
                self.resent = True
                console.print(f"{server.url} is back and has the weights of step {self.version}")
        except Gone as gone:
            self._lose(server, str(gone))

    # --- weights ----------------------------------------------------------------------------------

    async def _bring_all(self, client: httpx.AsyncClient) -> None:
        async def bring(server: VLLMServer) -> None:
            try:
                await self._bring(client, server)
            except Gone as gone:
                self._lose(server, str(gone))

        await _all(bring(server) for server in self.servers)
        self._some_alive()

    async def _bring(self, client: httpx.AsyncClient, server: VLLMServer) -> None:
        """Give a server the newest weights; one that is new is looked at first."""
        if self.nccl:
            raise ServerError(
                f"{server.url} lost its weights, and transfer = 'nccl' cannot send them to one "
                "server alone; run again to resume from the last checkpoint, or use 'file'"
            )
        unknown = server.facts is None
        if unknown:
            await server.meet(client, once=bool(server.trouble))
            # Before it gets weights, if it can be asked: a server of another model could break.
            if not await server.persist(lambda: server.paused(client)):
                await server.persist(lambda: server.check(client, self.vocab_size))
                unknown = False
        await server.update(client, self.info, self.name)
        if unknown:
            await server.persist(lambda: server.check(client, self.vocab_size))
        server.trouble = ""

    async def _meet_all(self, client: httpx.AsyncClient) -> None:
        await _all(server.meet(client) for server in self.servers if server.facts is None)

    async def _check_all(self, client: httpx.AsyncClient) -> None:
        await _all(
            server.persist(lambda server=server: server.check(client, self.vocab_size))
            for server in self.servers
        )

    # --- who is there -----------------------------------------------------------------------------

    def _alive(self) -> list[VLLMServer]:
        return [server for server in self.servers if server.facts and not server.trouble]

    def _some_alive(self) -> None:
        if not self._alive():
            raise ServerError(f"no rollout server answers ({self._troubles()}); {START}")

    def _lose(self, server: VLLMServer, reason: str) -> None:
        if not server.trouble:
            console.print(f"{server.url} is not asked for now: {reason}")
        server.lose(reason)

    def _troubles(self) -> str:
        return "; ".join(f"{server.url}: {server.trouble}" for server in self.servers)

    async def _with_client(self, work: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        async with self.servers[0].client() as client:
            return await work(client)


def deal(rows: list[int], hands: int, most: int) -> list[list[int]]:
    """Rows in parts of nearly equal size for `hands` servers, which take them in turn.

    Every server gets a part where there are as many rows; no part has more than `most` rows.
    """
    size = max(min(-(-len(rows) // (hands * CALLS_AT_ONCE)), most), 1)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _rows_a_call(request: Request, servers: list[VLLMServer]) -> int:
    """Rows of a call, by the length that they may have.

    Raises:
        ServerError: They may be longer than a server takes.
    """
    longest = max(map(len, request.prompts), default=0) + request.sampling.max_new_tokens
    for server in servers:
        if server.facts and longest > server.facts.longest:
            raise ServerError(
                f"{server.url} takes rows of max_model_len={server.facts.longest} tokens, but a "
                f"prompt and sampling.max_new_tokens make {longest}; raise --max-model-len there, "
                "or lower sampling.max_new_tokens"
            )
    return max(TOKENS_A_CALL // longest, 1)


async def _all(work: Any) -> None:
    """Do it all at once; the first error is raised when everything has ended."""
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome

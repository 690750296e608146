"""One vLLM server over HTTP: what it is asked, in vLLM's own protocol.

Weights are changed in the order that vLLM asks for: pause, start, update, finish, reset the prefix
cache, resume. Each call has a deadline; a failure that may pass is tried again, later each time.
"""

import itertools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx

from tether.engine.decode import Sampled
from tether.errors import ServerError
from tether.rewards.calls import FIRST_DELAY, LONGEST_DELAY, MayPass, Wait, read_key
from tether.rewards.calls import Server as Address
from tether.scale import vllm_answers as answers
from tether.sections import SamplingConfig

T = TypeVar("T")

QUICK = 30.0  # seconds for calls that compute nothing
UNLIKELY = 100.0  # added to the logit of one token: it is then drawn with certainty
CERTAIN = -0.01  # nats; its log-prob is above this where log-probs are of what was sampled from
START = (
    "start it so: VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server "
    "--model MODEL --host 127.0.0.1 --port 8000 --generation-config vllm "
    """--logprobs-mode processed_logprobs --weight-transfer-config '{"backend": "file"}'"""
)


class Gone(Exception):
    """A server that did not do what it was asked, after all tries; says why."""


class VLLMServer:
    """A server, what is known of it, and why it is not asked at the moment.

    Attributes:
        url: Its address.
        facts: None until it was met, and again after it was gone.
        trouble: Why it is not asked; "" where it answers.
    """

    def __init__(self, url: str, *, timeout: float, retries: int, wait: Wait) -> None:
        self.url, self.timeout, self.retries, self.wait = url.rstrip("/"), timeout, retries, wait
        self.key = read_key("VLLM_API_KEY")
        self.facts: answers.Facts | None = None
        self.trouble = ""

    def lose(self, reason: str) -> None:
        """Note that it is gone, and why."""
        self.facts, self.trouble = None, reason

    # --- calls ------------------------------------------------------------------------------------

    async def call(
        self, client: httpx.AsyncClient, path: str, body: Any = None, *, quick: bool = False
    ) -> Any:
        """One try of a call; without a body it asks with GET.

        Raises:
            MayPass: It failed in a way that may pass.
            ServerError: The server refuses it.
        """
        timeout = min(self.timeout, QUICK) if quick else self.timeout
        address = Address(url=self.url + path, key=self.key, timeout=timeout, attempts=1)
        return await (address.get(client) if body is None else address.post(client, body))

    async def persist(self, call: Callable[[], Awaitable[T]], retries: int | None = None) -> T:
        """What `call()` returns, after up to `retries` further tries.

        Raises:
            Gone: None of them succeeded.
        """
        for attempt in itertools.count():
            try:
                return await call()
            except MayPass as failure:
                if attempt == (self.retries if retries is None else retries):
                    raise Gone(failure.reason) from None
            await self.wait(min(FIRST_DELAY * 2**attempt, LONGEST_DELAY))
        raise AssertionError("unreachable")

    def client(self) -> httpx.AsyncClient:
        """Connections to this server and others; close it."""
        address = Address(url=self.url, key=self.key, timeout=self.timeout, attempts=1)
        client = address.client()
        client.headers["Connection"] = "close"  # after a status 500 vLLM closes it, unannounced
        return client

    # --- meeting ----------------------------------------------------------------------------------

    async def meet(self, client: httpx.AsyncClient, *, once: bool = False) -> None:
        """Ask how it is and what it serves; `once` makes one try.

        Raises:
            Gone: It does not answer.
            ServerError: It is no vLLM server, or was started without what is needed.
        """

        async def ask() -> answers.Facts:
            await self.call(client, "/health", quick=True)
            answer = await self.call(client, "/v1/models", quick=True)
            try:
                await self.holds(client)
            except ServerError as error:
                raise ServerError(f"{error}; it must take weights; {START}") from None
            return answers.read_facts(self.url, answer)

        self.facts = await self.persist(ask, retries=0 if once else self.retries)

    async def holds(self, client: httpx.AsyncClient) -> str:
        """The name of the weights that it computes with, as they were given to it.

        Raises:
            MayPass: No answer.
        """
        answer = await self.call(client, "/weight_info", quick=True)
        return answers.read_version(self.url, answer)

    async def paused(self, client: httpx.AsyncClient) -> bool:
        """Whether it answers no completions, as after an update that was broken off."""
        answer = await self.call(client, "/is_paused", quick=True)
        return not isinstance(answer, dict) or answer.get("is_paused") is not False

    async def check(self, client: httpx.AsyncClient, vocab_size: int) -> None:
        """See that its log-probs are of what it samples from, and that the vocabulary is the same.

        One token's logit is raised so far that it is drawn with certainty: then its log-prob is 0,
        unless log-probs are those of the raw logits. vLLM takes end tokens up to the vocabulary's
        last, and refuses the one behind it.

        Raises:
            MayPass: No answer.
            ServerError: Says which of them it is, and how to start the server.
        """
        last = vocab_size - 1
        asked = {**self._body([[0]], 1, 1.0, [last]), "logit_bias": {str(last): UNLIKELY}}
        try:
            answer = await self.call(client, "/v1/completions", asked)
        except ServerError as error:
            raise ServerError(f"{error}; it must serve the policy's model") from None
        asked_for = answers.Asked([[0]], 1, frozenset([last]), vocab_size)
        [drawn] = answers.read_completions(self.url, answer, asked_for)
        if drawn.token_ids != [last] or drawn.logprobs[0] < CERTAIN:
            raise ServerError(
                f"{self.url}: token_logprobs={drawn.logprobs} of a token that is certain must be "
                f"0, so they are not of what is sampled from; {START}"
            )
        try:
            await self.call(client, "/v1/completions", self._body([[0]], 1, 1.0, [vocab_size]))
        except ServerError:
            return
        raise ServerError(
            f"{self.url} knows a token {vocab_size}, but the policy has {vocab_size} tokens, from "
            "0; it must serve the policy's model"
        )

    # --- weights ----------------------------------------------------------------------------------

    async def update(self, client: httpx.AsyncClient, info: dict[str, Any], name: str) -> None:
        """Give it new weights, which are known as `name` from then on.

        Whatever it still computes is dropped: nobody waits for it.

        Raises:
            Gone: It did not take them.
            ServerError: It says that it has others.
        """

        async def run() -> None:
            await self.call(client, "/pause?mode=abort", {})
            await self._start(client)
            await self.call(client, "/update_weights", {"update_info": info})
            await self.call(client, "/finish_weight_update", {"weight_version": name})
            await self.call(client, "/reset_prefix_cache", {})
            await self.call(client, "/resume", {})
            held = await self.holds(client)
            if held != name:
                raise ServerError(
                    f"{self.url}: weight_version={held!r} after it was given {name!r}; somebody "
                    "else gives it weights, and each training needs servers of its own"
                )

        await self.persist(run)

    async def _start(self, client: httpx.AsyncClient) -> None:
        """Begin an update; one that was left halfway is ended first, since all is sent anew."""
        try:
            await self.call(client, "/init_weight_transfer_engine", {"init_info": {}})
        except MayPass as failure:
            await self.call(client, "/health", quick=True)
            raise ServerError(
                f"{self.url} takes no weights from files ({failure.reason}); install "
                f"servers/vllm_file_weights into its environment and {START}"
            ) from None
        try:
            await self.call(client, "/start_weight_update", {})
        except MayPass as failure:
            if "already active" not in failure.reason:
                raise
            await self.call(client, "/finish_weight_update", {})
            await self.call(client, "/start_weight_update", {})

    # --- completions ------------------------------------------------------------------------------

    async def complete(
        self,
        client: httpx.AsyncClient,
        prompts: list[list[int]],
        sampling: SamplingConfig,
        stops: frozenset[int],
        vocab_size: int,
    ) -> list[Sampled]:
        """One completion of each prompt.

        Raises:
            MayPass: No answer, or one that was broken off.
            ServerError: The answer is not what was asked for.
        """
        most = sampling.max_new_tokens
        body = self._body(prompts, most, sampling.temperature, sorted(stops))
        answer = await self.call(client, "/v1/completions", body)
        asked_for = answers.Asked(prompts, most, stops, vocab_size)
        return answers.read_completions(self.url, answer, asked_for)

    def _body(
        self, prompts: list[list[int]], most: int, temperature: float, stops: list[int]
    ) -> dict[str, Any]:
        """A request of completions by temperature alone, whatever the server's own settings are.

        No seed: on CPUs a seed can end the whole engine ("CPU Generator does not use offset").
        """
        assert self.facts
        return {
            "model": self.facts.model,
            "prompt": prompts,
            "max_tokens": most,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": stops,
            "ignore_eos": True,  # what ends a completion is in stop_token_ids
            "logprobs": 0,
            "return_token_ids": True,
        }

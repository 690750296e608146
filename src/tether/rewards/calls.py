"""JSON over HTTP: one call with a deadline, and what is done when it fails.

What may pass (429, 408, 5xx, a timeout, a broken connection, an answer cut short) is tried again,
later each time; what will not pass (every other status) ends in one line at once. The key is read
from the environment, sent in one header, and blotted out of everything that comes back.
"""

import asyncio
import itertools
import json
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from tether.errors import ConfigError, ServerError

T = TypeVar("T")
Wait = Callable[[float], Awaitable[None]]

FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0  # seconds between tries
LONGEST_WAIT = 600.0  # what a server may ask for with Retry-After
MOST_BYTES = 16 << 20  # of an answer
SHOWN = 200  # characters of a server's own words in an error


class MayPass(Exception):
    """A failure that may pass.

    Attributes:
        reason: In a few words.
        after: Seconds that the server asks to wait.
        done: Whether the server may have done the work, and charged for it.
    """

    def __init__(self, reason: str, *, after: float = 0.0, done: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.after, self.done = reason, after, done


@dataclass(frozen=True, kw_only=True)
class Server:
    """An address to which JSON is posted, or which is asked for it.

    Attributes:
        url: Where to; redirects are not followed.
        key: Bearer token; "" = none.
        timeout: Seconds from the beginning of a call to the end of its answer.
        attempts: Tries of a call that fails in a way that may pass.
        wait: Waits between tries.
    """

    url: str
    key: str = field(repr=False)
    timeout: float
    attempts: int
    wait: Wait = asyncio.sleep

    def client(self) -> httpx.AsyncClient:
        """A pool of connections; close it."""
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(
            headers=headers, timeout=self.timeout, limits=limits, follow_redirects=False
        )

    async def post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Any:
        """The JSON that the server answers with.

        Raises:
            MayPass: Try again.
            ServerError: The server refuses the call.
        """
        # In ASCII: a lone surrogate in a text can be sent too.
        return _decoded(await self._call(client, "POST", json.dumps(body)))

    async def get(self, client: httpx.AsyncClient) -> Any:
        """The same without a body; None where the answer is empty."""
        text = await self._call(client, "GET", "")
        return _decoded(text) if text else None

    async def _call(self, client: httpx.AsyncClient, method: str, content: str) -> str:
        try:
            # The client's own timeouts start anew with every byte; this one does not.
            async with (
                asyncio.timeout(self.timeout),
                client.stream(method, self.url, content=content) as response,
            ):
                text = await self._read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise MayPass(f"no connection ({self._clean(str(error))})", done=False) from None
        except (TimeoutError, httpx.TimeoutException):
            raise MayPass(f"no whole answer within {self.timeout:g} s") from None
        except httpx.RequestError as error:
            reason = self._clean(str(error)) or type(error).__name__
            raise MayPass(f"a broken connection ({reason})") from None
        if response.status_code == 408 or response.status_code == 429 or response.is_server_error:
            reason = f"status {response.status_code}: {server_message(text)}"
            after = response.headers.get("retry-after", "")
            raise MayPass(reason, after=retry_after(after), done=False)
        if not response.is_success:
            raise self._refused(response, text)
        return text

    async def persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` returns, tried `attempts` times with growing, drawn delays between.

        Raises:
            ServerError: It failed every time, or the server asks for more patience than there is.
        """
        for attempt in itertools.count(1):
            try:
                return await call()
            except MayPass as failure:
                await self.wait(self._delay(failure, attempt))
        raise AssertionError("unreachable")

    def _delay(self, failure: MayPass, attempt: int) -> float:
        """Seconds until the next try, or no further try."""
        if failure.after > LONGEST_WAIT:
            raise ServerError(
                f"{self.url} asks to wait {failure.after:.0f} s ({failure.reason}); run again later"
            ) from None
        if attempt >= self.attempts:
            raise ServerError(
                f"{self.url} failed {attempt} times, the last time with {failure.reason}; see "
                "whether it runs, or raise timeout or attempts, and run again"
            ) from None
        delay = min(FIRST_DELAY * 2 ** (attempt - 1), LONGEST_DELAY)
        return max(failure.after, delay * random.uniform(0.5, 1.0))

    async def _read(self, response: httpx.Response) -> str:
        parts, size = [], 0
        async for part in response.aiter_bytes():
            size += len(part)
            if size > MOST_BYTES:
                raise MayPass(f"an answer of more than {MOST_BYTES >> 20} MiB")
            parts.append(part)
        return self._clean(b"".join(parts).decode("utf-8", "replace"))

    def _clean(self, text: str) -> str:
        return text.replace(self.key, "[key]") if self.key else text

    def _refused(self, response: httpx.Response, text: str) -> ServerError:
        status = response.status_code
        if response.is_redirect:
            place = self._clean(response.headers.get("location", ""))
            said, mend = f"a redirect to {short(place)}", "name the address that it leads to"
        elif status in (401, 403):
            said, mend = server_message(text), "put a valid key into the variable of key_env"
        elif status in (404, 405):
            said, mend = server_message(text), "mend the address or the model's name"
        else:
            said, mend = server_message(text), "mend the settings or the texts, and run again"
        return ServerError(f"{self.url} refused the call with status {status}: {said}; {mend}")


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise MayPass(f"an answer that is not JSON: {short(text)}") from None


def read_key(variable: str) -> str:
    """The key in an environment variable; "" where there is none, or no variable is named.

    Raises:
        ConfigError: It holds characters that no header may have.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(
            f"the environment variable {variable} holds blanks or characters beyond ASCII (it is "
            "not shown); set it to the key alone"
        )
    return key


def retry_after(value: str) -> float:
    """Seconds to wait by a Retry-After header, a number or a date; 0 where it is neither."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def server_message(text: str) -> str:
    """What a server says of an error: its `error.message` where it has one; cut and in one line."""
    try:
        answer = json.loads(text)
        error = answer.get("error", answer)
        said = error if isinstance(error, str) else error["message"]
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        said = text
    return short(str(said))


def short(text: str) -> str:
    """Someone else's words as one line of an error."""
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def finish(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()

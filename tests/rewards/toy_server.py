"""A server of the tests' own, in a thread on a free port, that answers as it is told to.

What it does with a request is the next entry of its script, or, once that is empty, its answer.
"""

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Body = dict[str, Any]
Deed = Callable[[Body], Response]


class ToyServer:
    """`answer` makes the usual JSON; `script` holds what is done with the next requests instead."""

    def __init__(self, answer: Callable[[Body], Any]) -> None:
        self.answer = answer
        self.script: deque[Deed] = deque()
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.url = ""

    async def handle(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)  # others may come in meanwhile
        self.at_once -= 1
        if self.script:
            return self.script.popleft()(body)
        made = self.answer(body)
        return made if isinstance(made, Response) else JSONResponse(made)

    @contextmanager
    def running(self) -> Iterator["ToyServer"]:
        app = Starlette(routes=[Route("/{path:path}", self.handle, methods=["POST", "GET"])])
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()  # from here on clients connect, and wait for their answer
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            try:
                yield self
            finally:
                server.should_exit = server.force_exit = True
                thread.join()


# --- misbehaviour ---------------------------------------------------------------------------------


def status(code: int, message: str = "no", **headers: str) -> Deed:
    """An error as such servers write it."""
    head = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda body: JSONResponse({"error": {"message": message}}, code, headers=head)


def text(content: str) -> Deed:
    """Status 200 and any text."""
    return lambda body: Response(content, media_type="application/json")


def dribble(body: Body) -> Response:
    """A blank every few milliseconds, for ever: no pause is long, and the answer never ends."""

    async def blanks():
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    return StreamingResponse(blanks())


def silence(body: Body) -> Response:
    """Never a first byte."""

    class Silent(Response):
        async def __call__(self, scope, receive, send):
            while (await receive())["type"] != "http.disconnect":
                pass

    return Silent()


def cut_off(body: Body) -> Response:
    """The connection is closed in the middle of the answer."""

    class CutOff(Response):
        async def __call__(self, scope, receive, send):
            headers = [(b"content-length", b"1000")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            part = {"type": "http.response.body", "body": b'{"choices": [', "more_body": True}
            await send(part)
            raise ConnectionAbortedError

    return CutOff()


# --- chat completions -----------------------------------------------------------------------------


def completion(
    said: str = "A",
    listed: dict[str, float] | None = None,
    tokens: tuple[int, int] | None = (100, 1),
) -> Body:
    """A chat completion; `listed` are the log-probs of its first token."""
    choice: Body = {"index": 0, "message": {"role": "assistant", "content": said}}
    if listed is not None:
        top = [{"token": token, "logprob": value} for token, value in listed.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    answer: Body = {"object": "chat.completion", "choices": [choice]}
    if tokens:
        answer["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return answer

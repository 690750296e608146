"""A stand-in for a vLLM server, on loopback. It is not vLLM.

Its control plane answers as the recorded server did. Completions come from a function: recorded
ones, made-up ones, or those of tether's own engine on the weights that it was sent.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.rewards.toy_server import ToyServer, cut_off, silence
from tests.scale.recorded import CALLS, response
from tether.engine.decode import generate_tokens
from tether.models.language_model import LanguageModel
from tether.sections import SamplingConfig

PATHS = {
    "/health": "health",
    "/v1/models": "models",
    "/init_weight_transfer_engine": "init",
    "/pause": "pause",
    "/start_weight_update": "start",
    "/update_weights": "update",
    "/finish_weight_update": "finish",
    "/reset_prefix_cache": "reset",
    "/resume": "resume",
}


class StubVLLM(ToyServer):
    """A server with a vocabulary, a name of its weights, and a log of what it was asked.

    Attributes:
        complete: Makes the choices of a request of completions.
        gone: True breaks every connection.
        hangs: True never answers a request of completions.
        next: What is done with the next request of a path instead, once.
        told: What is answered to a path instead of the usual, whatever is asked: status, JSON.
        asked: The paths, in order; `sent` their bodies.
    """

    def __init__(self, complete: Callable[[dict], list[dict]] | None = None, vocab=30) -> None:
        super().__init__(lambda body: None)
        self.complete = complete or made_up
        self.vocab = vocab
        self.processed = True
        self.gone = self.hangs = self.forgets = False
        self.told: dict[str, tuple[int, Any]] = {}
        self.next: dict[str, Callable[[Any], Response]] = {}
        self.asked: list[str] = []
        self.sent: list[Any] = []
        self.restart()

    def restart(self) -> None:
        """As a new process: with the weights of its model's folder."""
        self.version, self.active, self.paused = "default", False, False

    def count(self, path: str) -> int:
        return Counter(self.asked)[path]

    def weights(self, folder: Path) -> None:
        """Take over weights; a stub has none."""
        assert list(folder.glob("*.safetensors"))

    async def handle(self, request: Request) -> Response:
        path = request.url.path
        body = await request.json() if await request.body() else None
        self.asked.append(path)
        self.sent.append(body)
        self.headers.append(dict(request.headers))
        if self.gone:
            return cut_off({})
        if path in self.next:
            return self.next.pop(path)(body)
        if path in self.told:
            status, said = self.told[path]
            return JSONResponse(said, status)
        if path == "/v1/completions":
            return silence({}) if self.hangs or self.paused else self._completions(body)
        if path == "/weight_info":
            return JSONResponse({"weight_version": self.version})
        if path == "/is_paused":
            return JSONResponse({"is_paused": self.paused})
        return self._control(path, body)

    def _control(self, path: str, body: Any) -> Response:
        name = PATHS[path]
        if path == "/start_weight_update" and self.active:
            name = "start_twice"
        elif path == "/update_weights":
            if not self.active:
                name = "update_outside"
            elif not Path(body["update_info"]["path"]).is_dir():
                name = "no_such_folder"
            else:
                self.weights(Path(body["update_info"]["path"]))
        elif path == "/finish_weight_update" and not self.forgets:
            self.version = body.get("weight_version") or self.version
        if name in ("start", "finish"):
            self.active = name == "start"
        if name in ("pause", "resume"):
            self.paused = name == "pause"
        return _as_recorded(name)

    def _completions(self, body: dict) -> Response:
        known = set(range(self.vocab))
        if not set(body["stop_token_ids"]) <= known:
            return _as_recorded("out_of_vocabulary")
        if bias := body.get("logit_bias"):
            [token] = map(int, bias)
            answer = response("certain")
            [choice] = answer["choices"]
            choice["token_ids"] = [token]
            choice["logprobs"]["token_logprobs"] = [0.0 if self.processed else -3.2]
            return JSONResponse(answer)
        return JSONResponse({"object": "text_completion", "choices": self.complete(body)})


class EngineStub(StubVLLM):
    """A stub that computes: a model of its own and tether's engine. It is not vLLM.

    Attributes:
        stale: Parameters whose names this pattern matches keep their old weights, as a server does
            whose head was packed before the update.
        raw: True answers log-probs at temperature 1, whatever was sampled at.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(self._draw, vocab=model.model.config.vocab_size)
        self.model, self.stale, self.calls = model, "", 0

    def weights(self, folder: Path) -> None:
        [file] = folder.glob("*.safetensors")
        parameters = dict(self.model.model.named_parameters())
        found = load_file(file)
        assert found.keys() == parameters.keys()
        for name, tensor in found.items():
            if not (self.stale and re.search(self.stale, name)):
                parameters[name].data.copy_(tensor)

    def _draw(self, body: dict) -> list[dict]:
        self.calls += 1  # like vLLM, it draws anew each time
        sampling = SamplingConfig(
            temperature=body["temperature"],
            max_new_tokens=body["max_tokens"],
            stop_token_ids=tuple(body["stop_token_ids"]),
        )
        drawn = generate_tokens(self.model, body["prompt"], sampling, seed=7, step=self.calls)
        return [
            choice(i, prompt, one.token_ids, one.logprobs, one.finished)
            for i, (prompt, one) in enumerate(zip(body["prompt"], drawn, strict=True))
        ]


def choice(index, prompt, ids, logprobs, finished=False, **changes) -> dict:
    """One completion as vLLM writes it."""
    return {
        "index": index,
        "text": "",
        "logprobs": {"token_logprobs": logprobs},
        "finish_reason": "stop" if finished else "length",
        "stop_reason": ids[-1] if finished else None,
        "token_ids": ids,
        "prompt_token_ids": prompt,
        **changes,
    }


def made_up(body: dict) -> list[dict]:
    """Completions of the prompt's first token, up to the limit, each token at −0.5 nats."""
    length = body["max_tokens"]
    return [
        choice(i, prompt, [prompt[0]] * length, [-0.5] * length)
        for i, prompt in enumerate(body["prompt"])
    ]


def _as_recorded(name: str) -> Response:
    if not response(name):
        return Response("")
    return JSONResponse(response(name), CALLS[name]["status"])

"""Requests as they come in: forged ones, their bodies, and how often anybody may knock."""

import hmac
import json
import math
import os
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request

from tether.errors import ConfigError

MONTH = 30 * 24 * 3600  # seconds that a session lasts
MAX_BODY = 64 * 1024  # bytes
MAX_KEYS = 10_000  # visitors that a rate limit remembers
PROXY = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
FOREIGN = "This was not sent from our own page; reload the page and try again."


class RateLimit:
    """A bucket for each visitor: `burst` at once, then `rate` a second."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens left, and when that was
        self._lock = threading.Lock()

    def wait(self, key: str, cost: int = 1) -> int:
        """Take `cost` tokens; return 0, or the whole seconds to wait if there are too few."""
        now = time.monotonic()
        with self._lock:
            tokens, then = self._buckets.get(key, (float(self.burst), now))
            tokens = min(self.burst, tokens + (now - then) * self.rate)
            if tokens < max(cost, 1):
                return math.ceil((1 - tokens) / self.rate)
            if len(self._buckets) >= MAX_KEYS:
                self._forget(now)
            self._buckets[key] = (tokens - cost, now)
        return 0

    def _forget(self, now: float) -> None:
        """Drop the buckets that are full again, and if none is, the one used longest ago."""
        full = self.burst / self.rate
        kept = {key: old for key, old in self._buckets.items() if now - old[1] < full}
        if len(kept) >= MAX_KEYS:
            del kept[min(kept, key=lambda key: kept[key][1])]
        self._buckets = kept


def too_many(seconds: int) -> HTTPException:
    """What is told to whoever knocks too often."""
    detail = f"Too many requests; try again in {seconds} s."
    return HTTPException(429, detail, headers={"Retry-After": str(seconds)})


# --- sessions, forged requests --------------------------------------------------------------------


def session_secret(path: Path) -> str:
    """What signs the sessions: TETHER_SECRET, or a file beside the project, made on first use.

    Raises:
        ConfigError: TETHER_SECRET is short, or the file cannot be made or is empty.
    """
    if secret := os.environ.get("TETHER_SECRET", ""):
        if len(secret) < 16:
            raise ConfigError("TETHER_SECRET must have at least 16 characters; make a longer one")
        return secret
    file = path.with_name(path.name + ".key")
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_urlsafe(32))
    except FileExistsError:
        pass
    except OSError as error:
        raise ConfigError(f"{file}: cannot be made ({error.strerror}); set TETHER_SECRET") from None
    secret = file.read_text(encoding="ascii").strip()
    if len(secret) < 16:
        raise ConfigError(f"{file}: is too short to sign sessions; delete it and start again")
    return secret


def csrf_token(request: Request) -> str:
    """The session's token, which every POST must carry."""
    if "csrf" not in request.session:
        request.session["csrf"] = secrets.token_urlsafe(16)
    return request.session["csrf"]


def require_own_origin(request: Request) -> None:
    """Refuse what another site made the browser send.

    Forms of a page with `Referrer-Policy: no-referrer` carry the origin "null"; there the browser's
    Sec-Fetch-Site decides, and where that is missing too, the token alone.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, FOREIGN)
    origin = request.headers.get("origin", "null")
    if origin != "null" and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, FOREIGN)


def require_token(request: Request, fields: Mapping[str, Any]) -> None:
    """Refuse what does not carry the session's token, in a header or a field `csrf`."""
    sent = request.headers.get("x-csrf-token") or fields.get("csrf")
    known = request.session.get("csrf", "")
    if not known or not isinstance(sent, str):
        raise HTTPException(403, FOREIGN)
    if not hmac.compare_digest(sent.encode(errors="replace"), known.encode()):
        raise HTTPException(403, FOREIGN)


# --- bodies ---------------------------------------------------------------------------------------


async def read_body(request: Request) -> bytes:
    """The body, if it is not too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"At most {MAX_BODY // 1024} KB can be sent at once.")
    return bytes(body)


def parse(request: Request, body: bytes) -> dict[str, Any]:
    """The fields of a form or of a JSON object."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        return _parse_json(body)
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "Send a form or JSON.")
    try:
        text = body.decode("ascii")
        return dict(parse_qsl(text, keep_blank_values=True, errors="replace", max_num_fields=200))
    except ValueError:
        raise HTTPException(400, "The form cannot be read.") from None


def _parse_json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be stored
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is not valid JSON in UTF-8.") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "The body must be a JSON object.")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")

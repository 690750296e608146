"""Who may enter: sessions, invitations, forged requests, and how often anybody may knock.

Every handler is a plain function of a `Visit`. `entrance` makes a route of it: the request has
been read, its sender is known and may do this, and a POST has shown that it comes from our page.
"""

import hmac
import json
import math
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from jinja2 import Environment
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from tether.errors import ConfigError
from tether.feedback import people
from tether.feedback.people import Person
from tether.feedback.store import Store
from tether.web.counts import Counts, Latest

MAX_BODY = 64 * 1024  # bytes
MAX_KEYS = 10_000  # visitors that a rate limit remembers
PROXY = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
FOREIGN = "This was not sent from our own page; reload the page and try again."

Export = Callable[[Store], Iterable[str]]


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


@dataclass(kw_only=True)
class Site:
    """What all requests share. `local` is whoever sits at this machine; None: links are needed."""

    store: Store
    pages: Environment
    key: str
    """Tells this project from others in cookies and in the browser's storage"""
    local: Person | None
    counts: Counts
    summary: Latest[dict[str, Any] | None]
    exports: Mapping[str, Export]
    visits: RateLimit = field(default_factory=lambda: RateLimit(20.0, 60))
    failed_joins: RateLimit = field(default_factory=lambda: RateLimit(10 / 60, 10))


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A request whose sender is known; `fields` are those of its form or JSON body."""

    site: Site
    request: Request
    person: Person
    fields: dict[str, Any]

    @property
    def store(self) -> Store:
        """The project."""
        return self.site.store

    @property
    def administrates(self) -> bool:
        """Whether this person may open the administrator's pages."""
        return may_administrate(self.site, self.person)

    def page(self, name: str, status: int = 200, **values: Any) -> Response:
        """A page from its template, which also gets the project, the person and the CSRF token."""
        text = self.site.pages.get_template(name).render(
            project=self.store.project,
            person=self.person,
            invited=self.person is not self.site.local,
            administrates=self.administrates,
            csrf=csrf_token(self.request),
            **values,
        )
        return HTMLResponse(text, status_code=status)


def entrance(
    path: str, handler: Callable[[Visit], Response], *, post: bool = False, admin: bool = False
) -> Route:
    """A route to a handler, which runs in a worker thread."""

    async def endpoint(request: Request) -> Response:
        body = await _read_body(request) if post else b""
        return await run_in_threadpool(_enter, request, handler, body, post, admin)

    methods = ["POST"] if post else ["GET"]
    return Route(path, endpoint, methods=methods, name=handler.__name__)


def _enter(
    request: Request, handler: Callable[[Visit], Response], body: bytes, post: bool, admin: bool
) -> Response:
    site: Site = request.app.state.site
    person = _person(request, site)
    if seconds := site.visits.wait(str(person.id)):
        raise too_many(seconds)
    if admin and not may_administrate(site, person):
        raise HTTPException(403, "This page is for administrators, who have links of their own.")
    fields: dict[str, Any] = {}
    if post:
        _require_own_origin(request)
        fields = _parse(request, body)
        _require_token(request, fields)
    return handler(Visit(site=site, request=request, person=person, fields=fields))


def too_many(seconds: int) -> HTTPException:
    """What is told to whoever knocks too often."""
    detail = f"Too many requests; try again in {seconds} s."
    return HTTPException(429, detail, headers={"Retry-After": str(seconds)})


# --- sessions -------------------------------------------------------------------------------------


def _person(request: Request, site: Site) -> Person:
    """Whom the session belongs to, as the database knows them now.

    Raises:
        HTTPException: 403 without a valid invitation. A revoked session does not fall back on
            the local person: whoever came by a link is never taken for somebody else.
    """
    session = request.session
    if "person" not in session:
        if site.local is None or any(name in request.headers for name in PROXY):
            raise HTTPException(403, "Open the personal link you were given to come in.")
        if people.by_id(site.store, site.local.id) is None:
            raise HTTPException(403, f"The access of {site.local.name!r} was revoked.")
        return site.local
    person = people.by_id(site.store, session["person"])
    if person is None or not hmac.compare_digest(person.stamp, session["stamp"]):
        raise HTTPException(403, "Your link no longer works; ask for a new one.")
    return person


def may_administrate(site: Site, person: Person) -> bool:
    """Administrators may, and so may whoever sits at this machine without an invitation."""
    return person.role == "administrator" or person is site.local


def join(request: Request) -> Response:
    """Open a session for the holder of an invitation and lead them in."""
    site: Site = request.app.state.site
    admin = request.url.path.startswith("/admin/")
    address = "" if request.client is None else request.client.host
    if seconds := site.failed_joins.wait(address, cost=0):
        raise too_many(seconds)
    token = request.path_params["token"]
    person = people.by_token(site.store, token) if token.isascii() else None
    if person is None or (person.role == "administrator") != admin:
        site.failed_joins.wait(address)
        raise HTTPException(403, "This link is unknown or was revoked; ask for a new one.")
    request.session.clear()
    request.session.update(person=person.id, stamp=person.stamp, csrf=secrets.token_urlsafe(16))
    return RedirectResponse("/admin" if admin else "/", status_code=303)


def leave(visit: Visit) -> Response:
    """End the session in this browser."""
    visit.request.session.clear()
    return visit.page("left.html")


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


# --- forged requests ------------------------------------------------------------------------------


def csrf_token(request: Request) -> str:
    """The session's token, which every POST must carry."""
    if "csrf" not in request.session:
        request.session["csrf"] = secrets.token_urlsafe(16)
    return request.session["csrf"]


def _require_own_origin(request: Request) -> None:
    """Refuse what another site made the browser send.

    Forms of a page with `Referrer-Policy: no-referrer` carry the origin "null"; there the browser's
    Sec-Fetch-Site decides, and where that is missing too, the token alone.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, FOREIGN)
    origin = request.headers.get("origin", "null")
    if origin != "null" and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, FOREIGN)


def _require_token(request: Request, fields: Mapping[str, Any]) -> None:
    sent = request.headers.get("x-csrf-token") or fields.get("csrf")
    known = request.session.get("csrf", "")
    if not known or not isinstance(sent, str):
        raise HTTPException(403, FOREIGN)
    if not hmac.compare_digest(sent.encode(errors="replace"), known.encode()):
        raise HTTPException(403, FOREIGN)


# --- bodies ---------------------------------------------------------------------------------------


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"At most {MAX_BODY // 1024} KB can be sent at once.")
    return bytes(body)


def _parse(request: Request, body: bytes) -> dict[str, Any]:
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

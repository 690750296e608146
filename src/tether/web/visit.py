"""What the pages of `tether web` share: where the runs are, who asks, and what may be read.

A page is a module with ROUTES. Every handler is a plain function of a `Visit`, which `entrance`
makes a route of: whoever asks may enter, and a POST has shown that it comes from our page.
"""

import hmac
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from tether.web.incoming import (
    PROXY,
    RateLimit,
    csrf_token,
    parse,
    read_body,
    require_own_origin,
    require_token,
    too_many,
)
from tether.web.voices import Voices

KEY = ".tether-web"  # beside the runs; with ".key" it is the file of the secret


@dataclass(kw_only=True)
class Workshop:
    """What all requests share."""

    runs: Path
    """Folder of the runs, without symbolic links in its path"""
    projects: tuple[Path, ...]
    """Labeling projects"""
    token: str
    """Lets people in, by /join/TOKEN; "" where whoever reaches the server may enter"""
    models: Mapping[str, str] = field(default_factory=dict)
    """Models to talk to besides those of the runs: directories or hub ids by name"""
    stopping: Callable[[], bool] = lambda: False
    """Whether the server is about to end, so that streams end first"""
    pages: Environment = field(init=False)
    """Templates; there once the application is built"""
    voices: Voices = field(init=False)
    """The runs' models"""
    failed_joins: RateLimit = field(default_factory=lambda: RateLimit(10 / 60, 10))

    def __post_init__(self) -> None:
        self.voices = Voices(self.runs, named=self.models)

    def folder(self, name: str) -> Path:
        """The folder `name` ("demo", "demo/ppo") below the runs.

        Raises:
            HTTPException: 404 where there is none, or where it lies elsewhere.
        """
        path = self._inside(self.runs / name) if "\0" not in name else None
        if path is None or path == self.runs or not os.path.isdir(path):
            raise HTTPException(404, "There is no such run.")
        return path

    def file(self, folder: Path, name: str) -> Path | None:
        """A file of a folder of ours; None where there is none, or where it lies elsewhere."""
        path = self._inside(folder / name)
        return path if path is not None and os.path.isfile(path) else None

    def _inside(self, path: Path) -> Path | None:
        """The real path, links followed; None outside the runs."""
        try:
            real = path.resolve()
        except (OSError, RuntimeError, ValueError):  # too long, a loop of links
            return None
        return real if real.is_relative_to(self.runs) else None


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A request of somebody who may enter; `fields` are those of its form or JSON body."""

    site: Workshop
    request: Request
    fields: dict[str, Any]

    def asked(self, name: str, default: str = "") -> str:
        """A value of the address: of its path, or of its query."""
        found = self.request.path_params.get(name) or self.request.query_params.get(name)
        return default if found is None else str(found)

    def page(self, name: str, status: int = 200, **values: Any) -> Response:
        """A page from its template, which also gets the CSRF token."""
        template = self.site.pages.get_template(name)
        text = template.render(csrf=csrf_token(self.request), **values)
        return HTMLResponse(text, status_code=status)


def entrance(path: str, handler: Callable[[Visit], Response], *, post: bool = False) -> Route:
    """A route to a handler, which runs in a worker thread."""

    async def endpoint(request: Request) -> Response:
        body = await read_body(request) if post else b""
        return await run_in_threadpool(_enter, request, handler, body, post)

    return Route(path, endpoint, methods=["POST" if post else "GET"], name=handler.__name__)


def _enter(
    request: Request, handler: Callable[[Visit], Response], body: bytes, post: bool
) -> Response:
    site: Workshop = request.app.state.site
    if site.token:
        _require_link(request, site)
    elif any(name in request.headers for name in PROXY):
        raise HTTPException(403, "Behind a proxy, start the server with --hosts or --https.")
    fields: dict[str, Any] = {}
    if post:
        require_own_origin(request)
        fields = parse(request, body)
        require_token(request, fields)
    return handler(Visit(site=site, request=request, fields=fields))


def _require_link(request: Request, site: Workshop) -> None:
    if not hmac.compare_digest(str(request.session.get("joined", "")), _stamp(site)):
        raise HTTPException(403, "Open the link that the server's terminal shows to come in.")


def join(request: Request) -> Response:
    """Let the holder of the link in."""
    site: Workshop = request.app.state.site
    client = "" if request.client is None else request.client.host
    if seconds := site.failed_joins.wait(client, cost=0):
        raise too_many(seconds)
    token = request.path_params["token"].encode(errors="replace")
    if site.token and not hmac.compare_digest(token, site.token.encode()):
        site.failed_joins.wait(client)
        raise HTTPException(403, "This link is not the one that the server's terminal shows.")
    request.session.clear()
    request.session["joined"] = _stamp(site)
    return RedirectResponse("/", status_code=303)


def _stamp(site: Workshop) -> str:
    """What the session of somebody who came by this token holds."""
    return derived(site.token, "joined")


def derived(secret: str, purpose: str) -> str:
    """A secret of its own for a purpose, the same after every start."""
    return hmac.new(secret.encode(), purpose.encode(), "sha256").hexdigest()[:32]


def link_text(path: Path) -> str:
    """A path as people would write it: from here where it lies below."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

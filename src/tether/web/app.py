"""The labeling server: its routes, the headers of every answer, its error pages, and its start."""

import getpass
import hashlib
import logging
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tether.errors import ConfigError, DataError
from tether.feedback.people import everybody, local_person
from tether.feedback.store import Store
from tether.web import admin, label
from tether.web.access import Export, Site, join, session_secret
from tether.web.counts import Latest, count

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MONTH = 30 * 24 * 3600  # seconds that a session lasts

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

log = logging.getLogger(__name__)

Summary = Callable[[Store], dict[str, Any] | None]


# --- the application ------------------------------------------------------------------------------


def build(
    store: Store,
    *,
    secret: str,
    name: str = "",
    hosts: Iterable[str] = LOOPBACK,
    https: bool = False,
    summary: Summary | None = None,
    exports: Mapping[str, Export] | None = None,
) -> ASGIApp:
    """The application for one project.

    Args:
        store: The project.
        secret: Signs the sessions.
        name: Under which whoever opens the page without a link labels, and administrates; ""
            where everybody needs a link.
        hosts: Names by which the server may be addressed.
        https: Whether browsers come by https, so that cookies are sent by nothing else.
        summary: Consensus and agreement for the administrator's page; runs in a thread of its own.
        exports: File names and what makes their lines, for the administrator to download.
    """
    static, versions = _static_files()
    site = Site(
        store=store,
        pages=_templates(versions),
        key=_project_key(store),
        local=local_person(store, name) if name else None,
        counts=Latest(count, store, count(store), seconds=2.0),
        summary=Latest(summary or (lambda _: None), store, None, seconds=10.0),
        exports=exports or {},
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        site.counts.close()
        site.summary.close()

    sessions = Middleware(
        SessionMiddleware,
        secret_key=secret,
        session_cookie=f"tether-{site.key}",
        max_age=MONTH,
        https_only=https,
    )
    joins = [Route("/join/{token}", join), Route("/admin/join/{token}", join)]
    app = Starlette(
        routes=[*label.ROUTES, *admin.ROUTES, *joins, Route("/static/{name}", static)],
        middleware=[sessions],
        exception_handlers=ERRORS,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # an address that nearly fits is unknown
    app.state.site = site
    return Guard(app, frozenset(hosts))


def _project_key(store: Store) -> str:
    """Names the cookie: browsers share cookies among the ports of a host."""
    [created] = store.read().execute("SELECT created FROM project").fetchone()
    return hashlib.sha256(f"{store.project.name}/{created}".encode()).hexdigest()[:12]


class Guard:
    """Around everything, errors too: refuses foreign host names, adds the headers.

    A foreign name for this address is how a page elsewhere would reach a server on loopback.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self._app if self._knows(Headers(scope=scope).get("host", "")) else UNKNOWN_HOST
        await app(scope, receive, send_with_headers)

    def _knows(self, host: str) -> bool:
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        return (name if name and port.isdigit() else host).strip("[]").lower() in self._hosts


UNKNOWN_HOST = PlainTextResponse(
    "This server is not known by that name; start it with the names people use (--hosts).\n", 400
)


def _templates(versions: Mapping[str, str]) -> Environment:
    pages = Environment(
        loader=PackageLoader("tether.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.globals["static"] = lambda name: f"/static/{name}?v={versions[name]}"
    pages.filters["ago"] = _ago
    return pages


def _ago(moment: float | None, now: float) -> str:
    """How long ago something was, in its largest unit."""
    if moment is None:
        return "never"
    seconds = max(0.0, now - moment)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


def _static_files() -> tuple[Callable[[Request], Any], dict[str, str]]:
    """A handler for the few static files, which are held in memory, and their versions."""
    folder = files("tether.web") / "static"
    known = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    versions = {name: hashlib.sha256(data).hexdigest()[:10] for name, data in known.items()}

    async def static(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in known:
            raise HTTPException(404, "There is no such file.")
        current = request.query_params.get("v") == versions[name]
        keep = "public, max-age=31536000, immutable" if current else "no-cache"
        kind = TYPES.get(Path(name).suffix, "application/octet-stream")
        return Response(known[name], media_type=kind, headers={"Cache-Control": keep})

    return static, versions


# --- errors ---------------------------------------------------------------------------------------

TITLES = {
    400: "That did not work",
    403: "No entry",
    404: "Not found",
    405: "Not like that",
    413: "Too long",
    429: "Too fast",
    500: "Something broke",
    503: "Not saved",
}


async def _error(request: Request, status: int, detail: str, headers: Any = None) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": detail}, status, headers)
    site: Site = request.app.state.site
    page = site.pages.get_template("error.html")
    title = TITLES.get(status, "That did not work")
    text = await run_in_threadpool(page.render, title=title, status=status, detail=detail)
    return Response(text, status, headers, media_type="text/html")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await _error(request, error.status_code, error.detail, error.headers)


async def _mistaken(request: Request, error: Exception) -> Response:
    return await _error(request, 400, str(error))


async def _busy(request: Request, error: Exception) -> Response:
    log.warning("%s: %s", request.app.state.site.store.path, error)
    detail = (
        f"The project's file cannot be written just now ({error}). Nothing that was saved is "
        "lost; try again in a moment."
    )
    return await _error(request, 503, detail, {"Retry-After": "5"})


async def _broken(request: Request, _: Exception) -> Response:
    return await _error(request, 500, "The terminal of the server says what went wrong.")


ERRORS = {
    HTTPException: _refused,
    DataError: _mistaken,
    sqlite3.OperationalError: _busy,
    Exception: _broken,
}


# --- the server -----------------------------------------------------------------------------------


def serve(
    path: str | Path,
    host: str = "127.0.0.1",
    port: int = 8765,
    name: str = "",
    *,
    hosts: Iterable[str] = (),
    https: bool = False,
    summary: Summary | None = None,
    exports: Mapping[str, Export] | None = None,
) -> None:
    """Serve a project's labeling pages until Ctrl-C.

    On a loopback address whoever opens the page labels as `name` (the login name if ""); with
    other `host`s, with `hosts` or with `https`, everybody needs a link.

    Raises:
        ConfigError: The port is taken, or people could come from elsewhere and no administrator
            has been invited.
        DataError: There is no such project.
    """
    store = Store(path)
    local = host in LOOPBACK and not hosts and not https
    if not local:
        _require_administrator(store, host)
    named = {one.lower() for one in (*LOOPBACK, host, *hosts)}
    if host in ("0.0.0.0", "::") and not hosts:
        raise ConfigError(f"host={host!r} needs --hosts: the names or addresses that people use")
    app = build(
        store,
        secret=session_secret(Path(path)),
        name=(name or getpass.getuser()) if local else "",
        hosts=named,
        https=https,
        summary=summary,
        exports=exports,
    )
    listener = listen(host, port)
    server = uvicorn.Server(server_settings(app, https=https))
    base = _address(next(iter(hosts), host), listener.getsockname()[1], https)
    print(f"{store.project.name}: {store.path}", flush=True)
    if local:
        print(f"  label        {base}/\n  administrate {base}/admin")
    else:
        print(f"  label        {base}/join/…\n  administrate {base}/admin/join/…  (personal links)")
    print("Ctrl-C stops; nothing is lost.", flush=True)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        print("stopped")
    finally:
        listener.close()
        store.close()


def server_settings(app: ASGIApp, *, https: bool = False) -> uvicorn.Config:
    """How uvicorn runs: without an access log, since its lines would hold the links' tokens."""
    return uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        ws="none",
        server_header=False,
        proxy_headers=https,
        timeout_graceful_shutdown=5,
    )


def _require_administrator(store: Store, host: str) -> None:
    invited = (one for one in everybody(store) if one.role == "administrator" and one.stamp)
    if next(invited, None) is None:
        raise ConfigError(
            f"host={host!r} lets others in, and no administrator has been invited; "
            f"invite one first: tether feedback invite {store.path} NAME --administrator"
        )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ConfigError: The port is taken, forbidden or no port, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once (TCP_NODELAY) only where the protocol is named, else 40 ms late.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(
            f"port={port!r} on {host} cannot be used ({error}); choose another with --port"
        ) from None
    return listener


def _address(host: str, port: int, https: bool) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"https://{name}" if https else f"http://{name}:{port}"

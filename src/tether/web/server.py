"""What every server of ours has: known hosts, headers, static files, templates, error pages."""

import hashlib
import socket
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tether.errors import ConfigError, TetherError

LOOPBACK = ("127.0.0.1", "localhost", "::1")

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


def templates(versions: Mapping[str, str], home: str) -> Environment:
    """The pages; `home` is how an error page calls the way back to "/"."""
    pages = Environment(
        loader=PackageLoader("tether.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.globals["static"] = lambda name: f"/static/{name}?v={versions[name]}"
    pages.globals["home"] = home
    pages.filters |= {"ago": _ago, "duration": _duration}
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


def _duration(seconds: float) -> str:
    """Seconds as "1 h 02 min", "1 min 11 s" or "31 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def static_files(
    more: Mapping[str, bytes] | None = None,
) -> tuple[Callable[[Request], Any], dict[str, str]]:
    """A handler for the few static files, and `more`, held in memory, and their versions."""
    folder = files("tether.web") / "static"
    known = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    known |= more or {}
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


async def error_page(request: Request, status: int, detail: str, headers: Any = None) -> Response:
    """What went wrong, as a page, or as JSON below /api/."""
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": detail}, status, headers)
    pages: Environment = request.app.state.site.pages
    page = pages.get_template("error.html")
    title = TITLES.get(status, "That did not work")
    text = await run_in_threadpool(page.render, title=title, status=status, detail=detail)
    return Response(text, status, headers, media_type="text/html")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await error_page(request, error.status_code, error.detail, error.headers)


async def _mistaken(request: Request, error: Exception) -> Response:
    return await error_page(request, 400, str(error))


async def _broken(request: Request, _: Exception) -> Response:
    return await error_page(request, 500, "The terminal of the server says what went wrong.")


ERRORS = {
    HTTPException: _refused,
    TetherError: _mistaken,
    Exception: _broken,
}


# --- sockets ------------------------------------------------------------------------------------


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


def address(host: str, port: int, https: bool) -> str:
    """Where browsers find the server."""
    name = f"[{host}]" if ":" in host else host
    return f"https://{name}" if https else f"http://{name}:{port}"

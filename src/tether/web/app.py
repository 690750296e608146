"""The labeling server: its routes and its start."""

import getpass
import hashlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tether.errors import ConfigError
from tether.feedback.people import everybody, local_person
from tether.feedback.store import Store
from tether.web import admin, label
from tether.web.access import Export, Site, join
from tether.web.counts import Latest, count
from tether.web.incoming import MONTH, session_secret
from tether.web.server import (
    ERRORS,
    LOOPBACK,
    Guard,
    address,
    error_page,
    listen,
    server_settings,
    static_files,
    templates,
)

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
    static, versions = static_files()
    site = Site(
        store=store,
        pages=templates(versions, home="Back to labeling"),
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
        exception_handlers={**ERRORS, sqlite3.OperationalError: _busy},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # an address that nearly fits is unknown
    app.state.site = site
    return Guard(app, frozenset(hosts))


def _project_key(store: Store) -> str:
    """Names the cookie: browsers share cookies among the ports of a host."""
    [created] = store.read().execute("SELECT created FROM project").fetchone()
    return hashlib.sha256(f"{store.project.name}/{created}".encode()).hexdigest()[:12]


async def _busy(request: Request, error: Exception) -> Response:
    log.warning("%s: %s", request.app.state.site.store.path, error)
    detail = (
        f"The project's file cannot be written just now ({error}). Nothing that was saved is "
        "lost; try again in a moment."
    )
    return await error_page(request, 503, detail, {"Retry-After": "5"})


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
    base = address(next(iter(hosts), host), listener.getsockname()[1], https)
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


def _require_administrator(store: Store, host: str) -> None:
    invited = (one for one in everybody(store) if one.role == "administrator" and one.stamp)
    if next(invited, None) is None:
        raise ConfigError(
            f"host={host!r} lets others in, and no administrator has been invited; "
            f"invite one first: tether feedback invite {store.path} NAME --administrator"
        )

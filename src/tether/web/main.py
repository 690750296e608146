"""`tether web`: runs, and what can be done with their models, in the browser.

Each page is a module of its own; here they become one program.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import uvicorn
from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

from tether.errors import ConfigError
from tether.validation import require
from tether.web import chat, compare, runs, simulator
from tether.web.incoming import MONTH, session_secret
from tether.web.server import (
    ERRORS,
    LOOPBACK,
    Guard,
    address,
    listen,
    server_settings,
    static_files,
    templates,
)
from tether.web.visit import KEY, Workshop, derived, join

ROUTES = [*runs.ROUTES, *simulator.ROUTES, *compare.ROUTES, *chat.ROUTES]
"""All pages"""


def web(
    *,
    runs: str = "runs",
    projects: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    port: int = 8766,
    hosts: tuple[str, ...] = (),
    https: bool = False,
) -> None:
    """Serve the page of all runs, and beside it those of each run.

    On this machine alone (the default) whoever opens the page may enter. For others name another
    host; they need the link that is printed.

    Args:
        runs: Folder of the runs.
        projects: Labeling projects (.db) to list, or folders with some; none = those in this
            folder and among the runs.
        models: NAME=DIR or NAME=HUB_ID … to chat with and compare, besides those of the runs.
        host: Address to listen on; 0.0.0.0 for every one of this machine.
        port: Port to listen on.
        hosts: Names under which people reach it, such as runs.example.org.
        https: It stands behind a server with a certificate: cookies go over https alone.
    """
    serve(runs, projects, host, port, models=models, hosts=hosts, https=https)


def build(site: Workshop, *, secret: str, hosts: Iterable[str], https: bool = False) -> ASGIApp:
    """The application.

    Args:
        site: Where the runs are and who may enter.
        secret: Signs the sessions.
        hosts: Names by which the server may be addressed.
        https: Whether browsers come by https, so that cookies are sent by nothing else.
    """
    plotly = get_plotlyjs()
    static, versions = static_files({"plotly.js": plotly.encode()})
    site.pages = templates(versions, home="Back to the runs")
    site.pages.globals["plotly_style"] = _style_of_maps(plotly)
    sessions = Middleware(
        SessionMiddleware,
        secret_key=derived(secret, "sessions"),
        session_cookie=f"tether-web-{hashlib.sha256(str(site.runs).encode()).hexdigest()[:12]}",
        max_age=MONTH,
        https_only=https,
    )
    app = Starlette(
        routes=[*ROUTES, Route("/join/{token}", join), Route("/static/{name}", static)],
        middleware=[sessions],
        exception_handlers=ERRORS,
    )
    app.router.redirect_slashes = False  # an address that nearly fits is unknown
    app.state.site = site
    return Guard(app, frozenset(hosts))


def _style_of_maps(plotly: str) -> str:
    """The id under which plotly looks for the style element of its maps before it makes one.

    An element of that id on the page keeps it from making one, which the policy would refuse.
    """
    found = re.search(r'getElementById\("([0-9a-f]{64})"\)', plotly)
    return found[1] if found else "plotly-maps"


def serve(
    folder: str | Path,
    projects: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8766,
    *,
    models: Sequence[str] = (),
    hosts: Iterable[str] = (),
    https: bool = False,
) -> None:
    """Serve the pages until Ctrl-C.

    Raises:
        ConfigError: The port is taken, there is no such folder, a host lacks its names, or a model
            has none.
    """
    path = Path(folder).resolve()
    if not path.is_dir():
        raise ConfigError(
            f"runs={str(folder)!r} is not a folder; name the one with your runs, or make a first "
            "run: tether demo"
        )
    local = host in LOOPBACK and not hosts and not https
    if host in ("0.0.0.0", "::") and not hosts:
        raise ConfigError(f"host={host!r} needs --hosts: the names or addresses that people use")
    secret = session_secret(path / KEY)
    token = "" if local else derived(secret, "link")
    site = workshop(path, projects, token, models)
    named = {one.lower() for one in (*LOOPBACK, host, *hosts)}
    app = build(site, secret=secret, hosts=named, https=https)
    listener = listen(host, port)
    server = uvicorn.Server(server_settings(app, https=https))
    site.stopping = lambda: server.should_exit
    base = address(next(iter(hosts), host), listener.getsockname()[1], https)
    print(f"runs in {path}\n  {base}/{f'join/{token}' if token else ''}", flush=True)
    print("Ctrl-C stops; training goes on.", flush=True)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        print("stopped")
    finally:
        site.voices.close()
        listener.close()


def workshop(
    folder: Path, projects: Sequence[str] = (), token: str = "", models: Sequence[str] = ()
) -> Workshop:
    """What the requests share, before its templates are there.

    Raises:
        ConfigError: A model is not of the form NAME=DIR.
    """
    pairs = [model.partition("=") for model in models]
    for word, (name, _, place) in zip(models, pairs, strict=True):
        require(bool(name and place), "models", word, "must be NAME=DIR or NAME=HUB_ID")
    path = folder.resolve()
    runs = (one for one in path.glob("*") if one.is_dir())
    places = [Path(one) for one in projects] or [Path.cwd(), path, *runs]
    found = [f for place in places for f in ([place] if place.is_file() else place.glob("*.db"))]
    unique = tuple(dict.fromkeys(file.resolve() for file in found))
    named = {name: place for name, _, place in pairs}
    return Workshop(runs=path, projects=unique, token=token, models=named)

"""Who may enter the labeling pages: sessions and invitations.

Every handler is a plain function of a `Visit`. `entrance` makes a route of it: the request has
been read, its sender is known and may do this, and a POST has shown that it comes from our page.
"""

import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from tether.feedback import people
from tether.feedback.people import Person
from tether.feedback.store import Store
from tether.web.counts import Counts, Latest
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

Export = Callable[[Store], Iterable[str]]


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
        body = await read_body(request) if post else b""
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
        require_own_origin(request)
        fields = parse(request, body)
        require_token(request, fields)
    return handler(Visit(site=site, request=request, person=person, fields=fields))


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

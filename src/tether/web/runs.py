"""The start page, and a run's own."""

from starlette.responses import Response

from tether.web.visit import Visit, entrance


def start(visit: Visit) -> Response:
    """All runs and labeling projects."""
    return visit.page("start.html")


ROUTES = [entrance("/", start)]

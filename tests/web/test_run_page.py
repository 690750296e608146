"""A run's page in a real Chromium, beside training that really goes on."""

import re

import pytest

from tests.web.runs import make_stage, ppo_row, serving_runs

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (dev extra)")
expect = playwright.expect

EVIL = "<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture
def watched(opened):
    """Opens a page of which every console error and every request is kept."""
    found = {"errors": [], "addresses": []}

    def open_page(url, **options):
        page = opened("about:blank", **options)
        page.on(
            "console",
            lambda said: (
                found["errors"].append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        page.on("request", lambda request: found["addresses"].append(request.url))
        page.goto(url)
        return page

    yield open_page
    assert not found["errors"], "\n".join(found["errors"])
    assert all(re.match(r"http://127\.0\.0\.1:\d+/", one) for one in found["addresses"])


def drawn(page):
    """Waits until the charts are there."""
    expect(page.locator("#charts[data-ready=yes] .main-svg").first).to_be_visible()


def test_look(tmp_path, watched):
    make_stage(tmp_path / "demo" / "ppo", rows=[ppo_row(step) for step in range(1, 40)])
    with serving_runs(tmp_path) as server:
        page = watched(f"{server.url}/run/demo/ppo", viewport={"width": 1200, "height": 900})
        drawn(page)
        page.wait_for_timeout(1500)
        page.screenshot(path="/tmp/run.png", full_page=True)

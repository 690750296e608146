"""A real Chromium for the tests of pages; they are skipped where there is none.

TETHER_REQUIRE_BROWSER=1 makes a missing one a failure.
"""

import os
import shutil
from pathlib import Path

import pytest

ARGS = [
    f"--{switch}"
    for switch in (
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    )
]


def find_chromium(own):
    """Playwright's own Chromium, or one on the PATH; None without."""
    if Path(own).is_file():
        return own
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (dev extra)")
    with playwright.sync_playwright() as driver:
        path = find_chromium(driver.chromium.executable_path)
        if path is None:
            missing = "no Chromium found: install one, or run `playwright install chromium`"
            if os.environ.get("TETHER_REQUIRE_BROWSER") == "1":
                pytest.fail(missing)
            pytest.skip(missing)
        browser = driver.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a page in a browser of its own; at the end no script has failed in any of them."""
    contexts, errors = [], []

    def open_page(url, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors

"""A real Chromium for tests of pages: Playwright's own, or one on the PATH.

Without one these tests are skipped; TETHER_REQUIRE_BROWSER=1 makes a missing one a failure.
"""

import os
import shutil
from contextlib import contextmanager
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
IMAGES = Path(__file__).parents[1] / "docs" / "images"


def find_chromium(own):
    """Playwright's own Chromium, or one on the PATH; None without."""
    if Path(own).is_file():
        return own
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def chromium():
    """A running browser."""
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

"""A run's page in a real Chromium, beside training that really goes on."""

import os
import re
import sys
import time

import pytest

from tests.web.runs import finish, make_stage, ppo_row, serving_runs, tiny_ppo, training, write_rows
from tests.web.test_browser import IMAGES, PHONE

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (dev extra)")
expect = playwright.expect

EVIL = "<img src=x onerror=\"document.title='taken'\">"
GONE = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET")


@pytest.fixture
def watched(opened):
    """Opens a page; nothing may stand in its console or be asked of another machine."""
    errors, addresses = [], []

    def open_page(url, expected=(), **options):
        page = opened("about:blank", **options)

        def keep(said):
            if not any(one in said.text for one in expected):
                errors.append(f"{said.type}: {said.text}")

        page.on("console", keep)
        page.on("request", lambda request: addresses.append(request.url))
        page.set_default_timeout(30_000)
        page.goto(url, wait_until="domcontentloaded")
        return page

    expect.set_options(timeout=30_000)
    yield open_page
    expect.set_options(timeout=5_000)
    assert not errors, "\n".join(errors)
    assert all(re.match(r"http://127\.0\.0\.1:\d+/", one) for one in addresses)


def drawn(page):
    """Waits until the charts are there."""
    expect(page.locator("#charts[data-ready=yes] .main-svg").first).to_be_visible()


POINTS = """(title) => {
  const cards = [...document.querySelectorAll(".chart")];
  const card = cards.find((one) => one.querySelector("h3").textContent === title);
  return card?.querySelector(".plot").data?.[0]?.x.length ?? 0;
}"""


def points(page, title="Score"):
    """How many points the first line of a chart has; 0 while it is not there."""
    return page.evaluate(POINTS, title)


def until(page, least, title="Score"):
    """Waits until a chart has that many points."""
    until_true(page, lambda: points(page, title) >= least)


def until_true(page, met, seconds=30):
    """Waits for what the page's policy lets no script of ours wait for."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        page.wait_for_timeout(50)


# --- live -----------------------------------------------------------------------------------------


def test_training_is_watched_and_asked_to_stop(tmp_path, watched):
    runs = tmp_path / "runs"
    runs.mkdir()
    with serving_runs(runs) as server, training(tiny_ppo(tmp_path, runs / "tiny")) as process:
        page = watched(server.url)
        link = page.get_by_role("link", name="tiny")
        expect(link).to_be_visible(timeout=90_000)  # the start page renews itself
        link.click()
        drawn(page)
        seen = points(page)
        until(page, seen + 3)
        until(page, seen + 3, "KL to the reference")
        tiles = page.locator("#tiles")
        expect(tiles).to_contain_text("of 5000")
        expect(tiles).to_contain_text("left")
        expect(page.locator("#samples")).to_contain_text("policy", ignore_case=True)

        page.get_by_role("button", name="Stop after this step").click()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "goes on from the last checkpoint" in said
        expect(tiles).to_contain_text("goes on from step")
        step = int(re.search(r"goes on from step (\d+)", tiles.inner_text())[1])
        assert (runs / "tiny" / "checkpoints" / f"step-{step:06d}").is_dir()
        assert len((runs / "tiny" / "metrics.jsonl").read_text().splitlines()) == step


def test_the_page_outlives_a_restart_of_the_server(tmp_path, watched):
    folder = make_stage(tmp_path / "ppo", rows=[ppo_row(step) for step in range(1, 6)])
    with serving_runs(tmp_path) as server:
        page = watched(f"{server.url}/run/ppo", expected=GONE)
        until(page, 5)
        server.stop()
        write_rows(folder / "metrics.jsonl", [ppo_row(6)])  # while nobody listens
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
        server.start()
        until(page, 6)
        write_rows(folder / "metrics.jsonl", [ppo_row(7)])
        until(page, 7)
        assert points(page) == 7  # none twice
        expect(page.get_by_role("alert")).to_be_hidden()


def test_training_that_goes_on_from_a_checkpoint_takes_back_its_later_rows(tmp_path, watched):
    folder = make_stage(tmp_path / "ppo", rows=[ppo_row(step) for step in range(1, 10)])
    with serving_runs(tmp_path) as server:
        page = watched(f"{server.url}/run/ppo")
        until(page, 9)
        make_stage(tmp_path / "aside", rows=[ppo_row(step) for step in range(1, 5)])
        (tmp_path / "aside" / "metrics.jsonl").rename(folder / "metrics.jsonl")
        until_true(page, lambda: points(page) == 4)
        write_rows(folder / "metrics.jsonl", [ppo_row(5)])
        until(page, 5)


# --- what is there --------------------------------------------------------------------------------


def test_a_finished_run_beside_another(tmp_path, watched):
    for name, slope in (("weak", 0.01), ("strong", 0.03)):
        rows = [ppo_row(step, score=slope * step) for step in range(1, 21)]
        finish(make_stage(tmp_path / name / "ppo", rows=rows))
        (tmp_path / name / "recipe.toml").write_text('[[stage]]\nkind = "ppo"\n')
    with serving_runs(tmp_path) as server:
        page = watched(f"{server.url}/run/weak")
        drawn(page)
        expect(page.locator("#tiles")).to_contain_text("finished")
        page.get_by_label("Lay another run over it").select_option("strong/ppo")
        page.get_by_role("button", name="Overlay").click()
        drawn(page)
        script = "document.querySelector('.plot').data?.map((o) => [o.name.trim(), o.y.at(-1)])"
        until_true(page, lambda: len(page.evaluate(script) or []) == 2)
        assert page.evaluate(script) == [["weak/ppo", 0.2], ["strong/ppo", 0.6]]


def test_texts_and_names_never_become_markup(tmp_path, watched):
    folder = make_stage(tmp_path / EVIL, rows=[ppo_row(1), {**ppo_row(2), EVIL: 1.0}])
    turns = [{"role": EVIL, "content": EVIL}]
    write_rows(folder / "samples.jsonl", [{"step": 1, "prompt": turns, "completion": EVIL}])
    event = {"step": 1, "alarm": EVIL, "action": EVIL, "text": EVIL, "examples": [EVIL, {"a": 1}]}
    write_rows(folder / "events.jsonl", [event, {"step": EVIL}])
    write_rows(folder / "monitor.jsonl", [{"step": 1, "audit": 0.3, "kl": 0.2}])
    with serving_runs(tmp_path) as server:
        page = watched(server.url)
        page.locator("article.run a").first.click()
        drawn(page)
        for part in ("#samples", "#alarms", "#charts", "#stages"):
            expect(page.locator(part)).to_contain_text(EVIL)
        expect(page.locator("#charts")).to_contain_text("Monitor: rewards")
        assert page.locator("img").count() == 0
        assert page.title() != "taken"


@pytest.mark.parametrize("address", ["/", "/run/demo/ppo"])
def test_a_phone(tmp_path, watched, address):
    rows = [ppo_row(step) for step in range(1, 20)]
    folder = make_stage(tmp_path / "demo" / "ppo", rows=rows, model="a/" + "long" * 40)
    sample = {"step": 1, "prompt": "p" * 300, "completion": "c" * 300}
    write_rows(folder / "samples.jsonl", [sample])
    with serving_runs(tmp_path) as server:
        page = watched(server.url + address, **PHONE)
        if address != "/":
            drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.skipif(
    os.environ.get("TETHER_SCREENSHOTS") != "1", reason="writes docs/images; TETHER_SCREENSHOTS=1"
)
def test_picture_of_the_documentation(tmp_path, watched):
    """The demo, watched from its first stage to its PPO, which is then asked to stop."""
    runs = tmp_path / "runs"
    runs.mkdir()
    command = [sys.executable, "-m", "tether.cli", "demo", "--out", str(runs / "demo")]
    with serving_runs(runs) as server, training(command) as process:
        page = watched(server.url, viewport={"width": 1200, "height": 860})
        link = page.get_by_role("link", name="demo", exact=True)
        expect(link).to_be_visible(timeout=120_000)
        link.click()
        expect(page.locator("#charts")).to_have_attribute(
            "data-stage", "demo/ppo", timeout=1_500_000
        )  # the page goes on to the next stage by itself
        drawn(page)
        until_true(page, lambda: points(page) >= 16, seconds=600)
        page.wait_for_timeout(3000)
        page.screenshot(path=IMAGES / "run.png")
        page.get_by_role("button", name="Stop after this step").click()
        process.communicate(timeout=120)
        assert process.returncode == 130
    assert (IMAGES / "run.png").stat().st_size <= 150 * 1024

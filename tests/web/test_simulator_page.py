"""The simulator in a real Chromium: its numbers are those of `core.tilt`, by mouse and keyboard."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.web.runs import serving_runs
from tests.web.simulated import EVIL, best_of, expectation, gumbels, make_rows, make_run, proxies
from tests.web.test_browser import IMAGES, PHONE
from tests.web.test_run_page import watched  # noqa: F401

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (dev extra)")
expect = playwright.expect

ROWS = make_rows()
NUMBERS = ("proxy", "gold", "kl", "entropy", "ess")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder, ROWS)
    with serving_runs(folder) as found:
        yield found


@pytest.fixture
def at(server, watched):  # noqa: F811
    """Opens the page of the made-up pool (or the sandbox's) in a state of its address."""

    def open_page(state="", pool="demo/simulator", **options):
        page = watched(f"{server.url}/simulator?pool={pool}#{state}", **options)
        settled(page)
        return page

    return open_page


def settled(page):
    expect(page.locator("#simulator")).to_have_attribute("data-settled", "yes")


def go(page, state):
    """Another state by the address alone, as a link would."""
    script = """(state) => new Promise((done) => {
      addEventListener("hashchange", done, { once: true });
      location.hash = state;
    }).then(() => {})"""
    page.evaluate(script, state)
    settled(page)


def value(page, selector):
    return float(page.locator(selector).get_attribute("data-value"))


def numbers(page):
    return {name: value(page, f"#{name}.figure") for name in NUMBERS}


def values(page, selector):
    """The numbers of a table, row by row."""
    script = """(rows) => rows.map((row) =>
      [...row.querySelectorAll("[data-value]")].map((cell) => Number(cell.dataset.value)))"""
    return page.locator(f"{selector} tbody tr").evaluate_all(script)


def answer(page):
    return int(page.locator("#answer").get_attribute("data-number"))


# --- exact ----------------------------------------------------------------------------------------

SETTINGS = [
    (0, 30.0),
    (0, 1.0),
    (1, 0.2),
    (1, 0.013),
    (2, 0.5, 0.1),
    (2, 0.7, 0.0, 1.35),
    (0, 0.45, 0.0, 0.0, 0.8),
    (1, 0.8, 0.0, 0.0, 0.0, 0.6),
    (2, 0.37, 0.045, 0.55, 0.25, 0.15),
]


def test_numbers_are_those_of_the_tilt(at):
    page = at()
    for prompt, beta, *faults in SETTINGS:
        go(page, f"prompt={prompt}&set={beta},{','.join(map(str, faults))}&draw=5")
        assert numbers(page) == pytest.approx(
            expectation(ROWS[prompt], prompt, beta, *faults), abs=1e-6
        )
        scores = proxies(ROWS[prompt], prompt, *faults)[0]
        chosen = int(np.argmax(scores / beta + gumbels(prompt, 256, 5)))
        assert answer(page) == chosen
        shown = page.locator("#answer-figures [data-value]").evaluate_all(
            "(cells) => cells.map((cell) => Number(cell.dataset.value))"
        )
        logs = scores / beta - (top := (scores / beta).max())
        share = logs[chosen] - np.log(np.exp(logs).sum()) + np.log(256)
        assert np.isfinite(top)
        row = ROWS[prompt]
        gold, tokens = row["scores"]["gold"][chosen], len(row["token_ids"][chosen])
        assert shown == pytest.approx([scores[chosen], gold, tokens, share], abs=1e-6)


@pytest.mark.parametrize("faults", [(), (0.1, 0.5, 0.3, 0.2)])
def test_best_of_n_is_exact(at, faults):
    page = at(f"prompt=1&set=1,{','.join(map(str, faults))}")
    found = values(page, "#chosen")
    counts = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    for row, n in zip(found, counts, strict=True):
        assert row == pytest.approx(best_of(ROWS[1], 1, n, *faults), abs=1e-6)


def test_means_of_all_prompts(at):
    page = at("prompt=1&set=1,0.05&scope=all")
    every = [best_of(row, prompt, 16, 0.05) for prompt, row in enumerate(ROWS)]
    assert values(page, "#chosen")[4] == pytest.approx(np.mean(every, axis=0), abs=1e-6)


# --- hands ----------------------------------------------------------------------------------------


def test_dragging_beta_changes_the_answer(at):
    page = at("set=20")
    box = page.locator("#beta").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.93 * box["width"], middle)
    page.mouse.down()
    seen, distances = set(), []
    for part in range(92, 10, -4):
        page.mouse.move(box["x"] + part / 100 * box["width"], middle)
        page.wait_for_timeout(20)
        seen.add(answer(page))
        distances.append(value(page, "#kl.figure"))
    page.mouse.up()
    settled(page)
    assert len(seen) >= 2
    assert distances == sorted(distances)
    assert distances[-1] > distances[0] + 1


def test_by_keyboard(at):
    page = at("set=1&draw=2")
    page.locator("#beta").focus()
    before = numbers(page)["kl"]
    for _ in range(40):
        page.keyboard.press("ArrowLeft")  # 40 steps of 0.005: β = 10^-0.2
    settled(page)
    assert page.locator("#beta-now").inner_text() == "0.631"
    assert numbers(page) == pytest.approx(expectation(ROWS[0], 0, 0.631), abs=1e-6)
    assert numbers(page)["kl"] > before
    page.locator("#length").focus()
    page.keyboard.press("End")
    settled(page)
    assert numbers(page) == pytest.approx(expectation(ROWS[0], 0, 0.631, 0.3), abs=1e-6)
    page.locator("#generate").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#answer-how")).to_have_text("draw 4 from the policy", ignore_case=True)


def test_a_dot_can_be_read(at):
    page = at("set=5")
    x, y, _ = page.evaluate("dots.spots.find(([x, y]) => x > 200 && y > 40)")
    page.locator("#dots").click(position={"x": x, "y": y})
    settled(page)
    expect(page.locator("#answer-how")).to_contain_text("picked", ignore_case=True)
    picked = answer(page)
    assert f"pick={picked}" in page.url
    page.get_by_text("The heaviest answers").click()
    page.locator("#heaviest button").nth(2).click()
    settled(page)
    assert f"answer {answer(page)}." in page.locator("#answer").inner_text()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#answer-how")).to_contain_text("draw 1", ignore_case=True)


def test_what_the_pool_cannot_know(at):
    page = at("set=0.012")
    assert numbers(page)["ess"] < 5
    expect(page.get_by_role("status")).to_contain_text("The pool cannot know")
    assert "faded" in page.locator("#numbers").get_attribute("class")
    go(page, "set=1")
    assert "faded" not in page.locator("#numbers").get_attribute("class")


# --- the tour -------------------------------------------------------------------------------------


def test_the_tour_by_hand(at):
    page = at(pool="")
    page.get_by_role("button", name="Tour").click()
    following = page.get_by_role("button", name="Next")

    def slide(name, value):
        page.locator(f"#{name}").fill(str(value))

    def reached():
        expect(page.locator("#tour-met")).to_contain_text("Reached")
        following.click()

    expect(page.locator("#tour-step")).to_have_text("Step 1 of 5", ignore_case=True)
    expect(following).to_be_disabled()
    slide("beta", 1.4)
    reached()
    expect(following).to_be_disabled()
    slide("beta", -0.3)
    reached()
    expect(following).to_be_disabled()
    slide("length", 0.1)
    reached()
    slide("beta", -0.2)
    expect(page.get_by_role("status")).to_contain_text("reward hacking")
    reached()
    slide("length", 0)
    expect(page.locator("#tour-met")).to_contain_text("Done")
    page.get_by_role("button", name="Finish").click()
    expect(page.locator("#tour")).to_be_hidden()


def test_the_tour_shows_how(at):
    page = at("tour=1", pool="")
    for _ in range(5):
        page.get_by_role("button", name="Show me").click()
        expect(page.locator("#tour-next")).to_be_enabled()
        page.locator("#tour-next").click()
    expect(page.locator("#tour")).to_be_hidden()


# --- addresses and pins ---------------------------------------------------------------------------


def test_a_view_can_be_shared(at):
    page = at()
    page.locator("#prompt").select_option("2")
    page.locator("#beta").fill("-0.5")
    page.locator("#tail").fill("0.4")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("radio", name="mean of all prompts").check()
    page.get_by_role("button", name="Pin setting").click()
    page.locator("#beta").fill("0.5")
    settled(page)
    other = at(page.url.partition("#")[2])
    assert other.url == page.url
    assert numbers(other) == numbers(page)
    assert answer(other) == answer(page)
    assert values(other, "#pins") == values(page, "#pins")
    assert other.locator("#prompt").input_value() == "2"


def test_two_settings_side_by_side(at):
    page = at("set=2,0.1")
    page.get_by_role("button", name="Pin setting").click()
    page.locator("#beta").fill("-1")
    page.get_by_role("button", name="Pin setting").click()
    page.locator("#length").fill("0")
    settled(page)
    betas, lengths, *_, gold_gains, distances, _, _ = values(page, "#pins")
    assert (betas, lengths) == ([2, 0.1, 0.1], [0.1, 0.1, 0])
    for k, faults in enumerate([(2.0, 0.1), (0.1, 0.1), (0.1, 0.0)]):
        found = expectation(ROWS[0], 0, *faults)
        assert distances[k] == pytest.approx(found["kl"], abs=1e-6)
        gain = found["gold"] - np.mean(ROWS[0]["scores"]["gold"])
        assert gold_gains[k] == pytest.approx(gain, abs=1e-6)
    expect(page.get_by_role("button", name="Pin setting")).to_be_disabled()
    page.get_by_role("button", name="Use A").click()
    settled(page)
    assert numbers(page) == pytest.approx(expectation(ROWS[0], 0, 2.0, 0.1), abs=1e-6)
    page.get_by_role("button", name="Unpin A").click()
    settled(page)
    assert page.url.count("pin=") == 1


@pytest.mark.parametrize(
    "state",
    [
        "set=x&prompt=99&draw=-3&pick=1e9&tour=12",
        "set=-1&prompt=-1&pick=a",
        "set=1e999,nan&scope=x&pin=&pin=a&pin=b",
    ],
)
def test_nonsense_in_the_address_is_ignored(at, state):
    page = at(state)
    assert numbers(page)["ess"] > 0
    assert page.locator("#prompt").input_value() == "0"


# --- texts, sizes, speed --------------------------------------------------------------------------


def test_texts_never_become_markup(at):
    page = at("set=1&tour=1&pin=1")
    for summary in page.locator("summary").all():
        summary.click()
    for part in ("#answer", "#asked", "#heaviest", "#pins", "#points", "#prompt"):
        expect(page.locator(part)).to_contain_text(EVIL)
    assert page.locator("img").count() == 0
    assert page.title() != "taken"


def test_a_missing_pool_is_told(server, opened):
    page = opened(server.url + "/simulator")
    page.route("**/api/pool*", lambda route: route.fulfill(status=400, json={"error": "no such"}))
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("no such")


def test_a_phone(at):
    page = at("set=0.5,0.1&pin=1&tour=2", **PHONE)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


FRAMES = """async (names) => {
  const found = [];
  for (const [id, from, to] of names) {
    const slider = document.getElementById(id);
    for (let k = 0; k <= 60; k++) {
      slider.value = from + (to - from) * k / 60;
      slider.dispatchEvent(new Event("input"));
      await new Promise(requestAnimationFrame);
      found.push(Number(place.dataset.milliseconds));
    }
  }
  return found.sort((a, b) => a - b);
}"""


def test_frames_are_short_with_1024_answers(tmp_path, watched):  # noqa: F811
    make_run(tmp_path, make_rows(num=1024, prompts=1))
    with serving_runs(tmp_path) as found:
        page = watched(f"{found.url}/simulator?pool=demo/simulator")
        settled(page)
        spent = page.evaluate(FRAMES, [["beta", 1.5, -2], ["length", 0, 0.3], ["tail", 0, 2]])
    # Of the quicker frames: in the others, other programs may have had the processor.
    assert spent[len(spent) // 4] < 1000 / 60


def test_pictures(at):
    state = "set=0.6,0.08,0,0,0&draw=3"
    for options in ({}, {"color_scheme": "dark"}):
        page = at(state, pool="", viewport={"width": 1280, "height": 1060}, **options)
        expect(page.get_by_role("status")).to_contain_text("gold")
        if os.environ.get("TETHER_SCREENSHOTS") == "1" and not options:
            page.screenshot(path=str(Path(IMAGES) / "simulator.png"))

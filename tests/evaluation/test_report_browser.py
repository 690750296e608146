"""Reports in a real Chromium: no request, no error, filters and sorts by keyboard, print, phone.

Skipped without a browser, as tests/chromium.py says; TETHER_SCREENSHOTS=1 writes the picture of
the documentation.
"""

import os
import re

import pytest

from tests.chromium import IMAGES, chromium
from tests.evaluation.made_run import full_run, many_samples
from tether.evaluation.report import write_comparison, write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (dev extra)")
expect = playwright.expect

ATTACK = "</script><script>document.title = 'hacked'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def opened(browser):
    """Opens a page; at the end nothing was requested but the page, and the console is empty."""
    contexts, complaints, requests, own = [], [], [], set()

    def open_page(path, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        own.add(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints
    assert set(requests) == own


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a run with 60 prompts, two samples of each of three policies."""
    folder = tmp_path_factory.mktemp("runs") / "rice"
    return write_report(full_run(folder, many_samples(60)))


def prompts(page):
    expect(page.locator(".controls")).to_be_visible()
    return page.locator("section.samples article h3").all_text_contents()


def status(page):
    return page.locator("section.samples [role=status]")


def test_plots_are_drawn_as_they_come_near(opened, report):
    page = opened(report)
    far = page.locator("#training figure").last
    assert far.locator(".main-svg").count() == 0
    far.evaluate("figure => figure.scrollIntoView()")
    details = page.locator("#training details.more > summary").last
    details.click()
    expect(page.locator("#training details.more[open] .main-svg").first).to_be_visible()
    page.locator("#monitor figure").first.evaluate("figure => figure.scrollIntoView()")
    expect(page.locator("#monitor .annotation-text").get_by_text("alarm")).to_be_visible()


def busy(page):
    """Seconds that the page's thread has computed so far, reading the file included.

    On a machine with nothing else to do that is how long the page took to open.
    """
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.reload()
    expect(status(page)).to_have_text(re.compile("samples in all"))
    metrics = {
        each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]
    }
    return metrics["TaskDuration"]


def test_ten_thousand_samples_open_in_two_seconds(opened, tmp_path):
    samples = many_samples(1666, completion="answer {policy} {prompt} {sample}, " + "word " * 40)
    path = write_report(full_run(tmp_path / "many", samples))
    assert path.stat().st_size < 8_000_000
    page = opened(path)
    expect(status(page)).to_have_text("1,666 of 1,666 prompts, 9,996 samples in all.")
    assert busy(page) < 2
    if os.getloadavg()[0] < (os.cpu_count() or 1):  # nobody else is at work on the machine
        seconds = "performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
        assert page.evaluate(seconds) < 2
    took = page.evaluate(
        """() => {
            const start = performance.now();
            const text = document.querySelector(".controls").elements.text;
            text.value = "answer ppo 1600";
            text.dispatchEvent(new Event("input", {bubbles: true}));
            return performance.now() - start;
        }"""
    )
    assert took < 1000
    expect(status(page)).to_have_text("1 of 1,666 prompts, 9,996 samples in all.")


def test_filters_and_sorts_work_from_the_keyboard(opened, report):
    page = opened(report)
    assert prompts(page)[:2] == ["question number 0", "question number 1"]
    page.get_by_label("Text").focus()
    for name in ("Category", "Policy", "Score", "Order"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('label').innerText").startswith(name)
    page.keyboard.type("biggest win")
    assert prompts(page)[0] == "question number 59"
    first = page.locator("section.samples article").first
    # gold of ppo: 2 (59 - 15) / 60 = 1.47, of sft 0
    expect(first.get_by_text("ppo − sft: gold +1.47")).to_be_visible()
    page.keyboard.press("ArrowDown")
    assert prompts(page)[0] == "question number 0"
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("proxy")
    assert prompts(page)[0] == "question number 59"  # the proxy is the reverse of gold
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("base")
    expect(first.get_by_text("base − sft: proxy -")).to_have_count(0)
    assert prompts(page)[0] == "question number 0"  # base loses where ppo wins
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("baking")
    expect(status(page)).to_have_text("20 of 60 prompts, 360 samples in all.")
    assert set(page.locator("article .tag:first-child").all_text_contents()) == {"baking"}
    page.get_by_label("Text").focus()
    page.keyboard.type("ANSWER SFT 31 1")
    expect(status(page)).to_have_text("1 of 60 prompts, 360 samples in all.")
    assert prompts(page) == ["question number 31"]


def test_pages_turn_from_the_keyboard(opened, report):
    page = opened(report)
    assert len(prompts(page)) == 20
    expect(page.get_by_role("button", name="Previous")).to_be_disabled()
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Enter")
    assert prompts(page)[0] == "question number 20"
    expect(page.get_by_text("Page 2 of 3")).to_be_visible()
    assert page.evaluate("document.activeElement.className") == "list"


def test_only_the_two_that_are_compared_or_all_of_them(opened, report):
    page = opened(report)
    assert len(prompts(page)) == 20
    first = page.locator("section.samples article").first
    assert first.locator("h4").all_text_contents() == ["base", "sft", "ppo"]
    page.get_by_label("with the other policies").focus()
    page.keyboard.press("Space")
    assert first.locator("h4").all_text_contents() == ["sft", "ppo"]


def test_texts_stay_texts(opened, tmp_path):
    samples = many_samples(4, completion=f"{ATTACK} {{policy}}")
    samples = [
        type(each).from_dict({**each.to_dict(), "category": ATTACK, "prompt": ATTACK})
        for each in samples
    ]
    page = opened(write_report(full_run(tmp_path / "bad", samples)))
    assert page.title() == "bad · tether report"
    assert page.locator("img").count() == 0
    assert page.locator("section.samples article h3").first.text_content() == ATTACK
    assert page.locator("section.samples article p").first.text_content().startswith(ATTACK)
    controls = page.locator(".controls")
    assert controls.locator("select[name=policy]").input_value() == "2"
    assert controls.locator("select[name=category]").text_content() == f"all{ATTACK}"


def test_without_scripts_the_first_answers_are_there(opened, report):
    page = opened(report, java_script_enabled=False)
    assert (
        page.locator("section.samples article").count() == 30
    )  # every other of 20 in each category
    expect(page.locator(".controls")).to_be_hidden()
    assert "The plots need JavaScript" in page.content()


def test_on_a_phone_nothing_sticks_out(opened, report):
    page = opened(report, viewport={"width": 360, "height": 740}, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read(opened, report, scheme):
    page = opened(report, color_scheme=scheme)
    ink, paper = page.evaluate(
        "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"
    )
    tone = [sum(map(int, re.findall(r"\d+", colour))) for colour in (ink, paper)]
    assert abs(tone[0] - tone[1]) > 500
    assert (tone[0] < tone[1]) == (scheme == "light")


def test_it_prints_with_its_plots_and_without_controls(opened, report):
    page = opened(report)
    page.emulate_media(media="print")
    expect(page.locator(".controls")).to_be_hidden()
    expect(page.locator("nav")).to_be_hidden()
    figures = page.locator("#training > .figures figure")
    assert figures.count() > 4
    expect(page.locator("#training > .figures .plotly")).to_have_count(figures.count())
    assert page.pdf(format="A4")[:5] == b"%PDF-"


def test_several_runs_on_a_page(opened, tmp_path):
    runs = [full_run(tmp_path / f"seed{seed}", many_samples(12), seed) for seed in range(2)]
    page = opened(write_comparison(runs, tmp_path / "comparison.html"))
    expect(page.get_by_role("heading", level=1)).to_have_text("seed0 · seed1")
    page.locator("#training figure").first.evaluate("figure => figure.scrollIntoView()")
    expect(page.locator("#training .main-svg").first).to_be_visible()


@pytest.mark.skipif(
    os.environ.get("TETHER_SCREENSHOTS") != "1", reason="writes docs/images; TETHER_SCREENSHOTS=1"
)
def test_screenshot(opened, report):
    page = opened(report, viewport={"width": 1000, "height": 1250})
    page.locator("#monitor").evaluate("section => section.scrollIntoView()")
    expect(page.locator("#monitor .main-svg").first).to_be_visible()
    page.screenshot(path=IMAGES / "report.png")
    assert (IMAGES / "report.png").stat().st_size <= 150 * 1024

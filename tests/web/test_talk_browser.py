"""Chat and blind comparison in a real Chromium; see conftest.py for when they run."""

import os
import time
from pathlib import Path

import pytest

from tests.web.talking import Actor, Coloured, make_runs, talking
from tests.web.test_browser import IMAGES, PHONE, expect, press
from tether.config import DPOConfig
from tether.data.formats import read_comparisons, read_thumbs
from tether.feedback.store import Store
from tether.sections import ComputeConfig
from tether.train.preference import train_dpo

PLANTED = '<img src=x onerror="document.title=1"> and <b>bold</b>'


@pytest.fixture
def watched(opened):
    """Opens pages; at the end nothing was asked of another machine and no console complained."""
    wrong = []

    def open_page(url, **options):
        page = opened("about:blank", **options)
        page.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
        page.on("request", lambda one: one.url.startswith(url[:17]) or wrong.append(one.url))
        page.goto(url)
        return page

    yield open_page
    assert not wrong


@pytest.fixture
def runs(tmp_path):
    return make_runs(tmp_path / "runs")


def cast(**texts):
    return {
        name: Actor(name, texts.get(name.replace("/", "_"), ["one two three"]), chats=False)
        for name in ("demo/ppo", "demo/sft", "talk/sft")
    }


def letter_of(page, text):
    return "A" if text in page.locator("#card-a .text").inner_text() else "B"


# --- compare --------------------------------------------------------------------------------------


def test_a_blind_comparison_by_keyboard_ends_as_a_pair_that_dpo_reads(runs, watched, tmp_path):
    actors = cast(demo_ppo=["the cat sat on the mat", "sat"], demo_sft=["no"])
    with talking(runs, actors) as server:
        page = watched(f"{server.url}/compare")
        page.get_by_label("talk/sft").uncheck()
        page.get_by_label("demo/sft").check()
        page.get_by_label("demo/ppo").check()
        page.locator("#prompt").fill("what did the cat do?")
        press(page, "Control+Enter")
        page.locator("#choices:enabled").wait_for()
        expect(page.locator("#asked")).to_have_text("what did the cat do?")
        cards = page.locator("#round .cards")
        expect(cards).to_contain_text("the cat sat on the mat")
        assert "demo" not in page.locator("#round").inner_text()
        better = letter_of(page, "the cat sat")
        press(page, "1" if better == "A" else "2")
        press(page, "Enter")
        expect(page.locator("#verdict")).to_contain_text(f"{better} was demo/ppo")
        expect(page.locator("#ratings")).to_contain_text("demo/ppo")
        press(page, "Enter")  # the next round
        page.locator("#choices:enabled").wait_for()
        press(page, "f Enter")
        expect(page.locator("#verdict")).to_contain_text("Both are bad")
    project = runs / "compare.db"
    [pair] = read_comparisons(project)
    assert (pair.chosen, pair.rejected) == ("the cat sat on the mat", "no")
    config = DPOConfig(
        model=str(runs / "demo" / "sft" / "model"),
        data=str(project),
        out=str(tmp_path / "dpo"),
        held_out=0.0,
        compute=ComputeConfig(device="cpu"),
    )
    assert (train_dpo(config) / "model" / "model.safetensors").is_file()


def test_markup_of_models_stays_text(runs, watched):
    with talking(runs, cast(demo_ppo=[PLANTED], demo_sft=[PLANTED], talk_sft=[PLANTED])) as server:
        page = watched(f"{server.url}/compare")
        page.locator("#prompt").fill(PLANTED)
        page.get_by_role("button", name="Ask both").click()
        page.locator("#choices:enabled").wait_for()
        expect(page.locator("#card-a .text")).to_have_text(PLANTED)
        expect(page.get_by_text("Both wrote the same")).to_be_visible()
        assert page.locator("#round img, #round b:not(kbd)").count() == 0
        press(page, "1 Enter")  # A cannot be chosen
        expect(page.locator("#verdict")).to_contain_text("Choose first")
        press(page, "t Enter")
        expect(page.locator("#verdict")).to_contain_text("A tie")
        page.goto(f"{server.url}/chat")
        page.locator("#message").fill(PLANTED)
        press(page, "Enter")
        expect(page.locator(".answer .text")).to_have_text(PLANTED)
        assert page.locator("#log img, #log b").count() == 0
        assert page.title() == "Chat · tether"


def test_a_round_without_scripts(runs, watched):
    with talking(runs, cast(demo_ppo=["yes"], demo_sft=["no"], talk_sft=["maybe"])) as server:
        page = watched(f"{server.url}/compare", java_script_enabled=False)
        page.locator("#prompt").fill("Well?")
        page.get_by_role("button", name="Ask both").click()
        page.locator("label", has_text="B is better").click()
        page.get_by_role("button", name="Submit").click()
        expect(page.locator("#verdict")).to_contain_text("B is better. A was")
        expect(page.locator("#prompt")).to_have_value("Well?")
        assert len(Store(runs / "compare.db").judgments()) == 1
        page.goto(f"{server.url}/chat")
        expect(page.get_by_text("The chat needs JavaScript")).to_be_visible()


def test_stopping_a_round_and_going_on(runs, watched):
    actors = cast()
    for one in actors.values():
        one.may_go_on.clear()
    with talking(runs, actors) as server:
        page = watched(f"{server.url}/compare")
        page.locator("#prompt").fill("Well?")
        press(page, "Control+Enter")
        expect(page.locator("#card-a .text")).to_have_text("one")
        page.locator("#choices:disabled").wait_for()
        with page.expect_response("**/api/stop"):
            press(page, "Escape")
        for one in actors.values():
            one.may_go_on.set()
        expect(page.locator("#round")).to_be_hidden()
        press(page, "Control+Enter")
        page.locator("#choices:enabled").wait_for()


# --- chat -----------------------------------------------------------------------------------------


def test_a_chat_with_stop_regenerate_and_thumbs(runs, watched):
    actors = cast()
    actor = actors["talk/sft"] = Actor("talk/sft", ["first answer here", "second answer", "last"])
    actor.may_go_on.clear()
    with talking(runs, actors) as server:
        page = watched(f"{server.url}/chat?model=talk/sft")
        expect(page.locator("#message")).to_be_focused()
        page.keyboard.type("Hello")
        press(page, "Enter")
        answer = page.locator(".answer .text")
        expect(answer).to_have_text("first")
        with page.expect_response("**/api/stop"):
            press(page, "Escape")
        actor.may_go_on.set()
        expect(page.get_by_text("stopped")).to_be_visible()
        expect(answer).to_have_text("first")
        page.get_by_role("button", name="Regenerate").click()
        expect(answer).to_have_text("second answer")
        page.get_by_role("button", name="Thumbs up").click()
        expect(page.get_by_role("button", name="Thumbs up")).to_have_attribute(
            "aria-pressed", "true"
        )
        expect(page.get_by_text("saved")).to_be_visible()
        page.locator("#message").fill("And now?")
        press(page, "Enter")
        expect(answer.nth(1)).to_have_text("last")
        page.get_by_role("button", name="Thumbs down").nth(1).click()
        expect(page.get_by_text("saved").nth(1)).to_be_visible()
    up, down = read_thumbs(runs / "chat.db")
    assert (up.completion, up.label) == ("second answer", True)
    assert (down.completion, down.label) == ("last", False)
    assert [one["content"] for one in down.prompt] == ["Hello", "second answer", "And now?"]


def test_differences_are_colours_and_numbers(runs, watched):
    actors = cast()
    actors["demo/ppo"] = Coloured("demo/ppo", ["a b c d e f"], chats=False)
    with talking(runs, actors) as server:
        page = watched(f"{server.url}/chat?model=demo/ppo&reference=demo/sft")
        expect(page.locator("#legend")).to_be_visible()
        page.locator("#message").fill("Go")
        press(page, "Enter")
        pieces = page.locator(".answer .text .token")
        expect(pieces).to_have_count(6)
        expect(page.get_by_text("no chat template")).to_be_visible()
        expect(pieces.nth(0)).to_have_class("token less-2")
        expect(pieces.nth(4)).to_have_class("token")
        expect(pieces.nth(5)).to_have_class("token more-1")
        expect(pieces.nth(5)).to_have_attribute("title", "+0.50 nats")
        page.get_by_text("Differences as numbers").click()
        expect(page.get_by_role("row").nth(1)).to_have_text("a−2.00")


def test_a_phone(runs, watched):
    actors = cast(demo_ppo=["word " * 80], demo_sft=["x" * 400], talk_sft=["w " * 50])
    with talking(runs, actors) as server:
        for path in ("/compare", "/chat"):
            page = watched(server.url + path, **PHONE)
            page.locator("#message" if path == "/chat" else "#prompt").fill("Well? " * 30)
            name = "Send" if path == "/chat" else "Ask both"
            page.get_by_role("button", name=name).click()
            done = "#choices:enabled" if path == "/compare" else ".tools:visible"
            page.locator(done).wait_for()
            assert page.evaluate("document.documentElement.scrollWidth") <= 360


# --- models, pictures -----------------------------------------------------------------------------


def test_real_models_stream(runs, watched):
    with talking(runs) as server:
        page = watched(f"{server.url}/chat?model=demo/ppo&reference=demo/sft")
        page.get_by_label("Longest answer, tokens").fill("12")
        page.locator("#message").fill("the cat")
        press(page, "Enter")
        page.locator(".answer .numbers").wait_for(timeout=30_000)
        assert page.locator(".answer .token").count() > 1


@pytest.mark.skipif(
    os.environ.get("TETHER_SCREENSHOTS") != "1", reason="writes docs/images; TETHER_SCREENSHOTS=1"
)
def test_pictures_of_the_documentation(runs, watched):
    wordy = [
        "No, it is hungry. The smell is acetone, which yeast and bacteria make when their food "
        "runs out. Feed it twice a day and keep it warm; after two or three days it should smell "
        "of yoghurt again."
    ]
    brief = ["Yes. A chemical smell means that it has been contaminated, so throw it away."]
    actors = {
        "demo/ppo": Coloured("demo/ppo", [w.replace("yeast and bacteria", "yeast") for w in wordy]),
        "demo/sft": Actor("demo/sft", brief),
        "talk/sft": Actor("talk/sft", wordy),
    }
    actors["demo/ppo"].differences = (0.0, 0.0, 0.2, 0.0, 0.6, -0.6, 0.0, 0.0, 1.7, 0.0, -2.4, 0.3)
    asked = "My sourdough starter smells like nail polish remover. Is it dead?"
    with talking(runs, actors) as server:
        size = {"viewport": {"width": 1200, "height": 860}}
        page = watched(f"{server.url}/compare", **size)
        page.get_by_label("demo/ppo").check()
        page.locator("#prompt").fill(asked)
        for number in range(9):
            press(page, "Control+Enter" if number == 0 else "Enter")
            page.locator("#choices:enabled").wait_for()
            time.sleep(0.05)
            press(page, "t" if number == 4 else ("1" if letter_of(page, "hungry") == "A" else "2"))
            press(page, "Enter")
            expect(page.locator("#verdict")).to_contain_text(" was ")
        page.screenshot(path=IMAGES / "compare.png", full_page=True)
        page = watched(f"{server.url}/chat?model=demo/ppo&reference=demo/sft", **size)
        page.locator("#message").fill(asked)
        press(page, "Enter")
        page.locator(".answer .numbers").wait_for()
        page.get_by_role("button", name="Thumbs up").click()
        expect(page.get_by_text("saved")).to_be_visible()
        page.screenshot(path=IMAGES / "chat.png")
    assert Path(IMAGES / "chat.png").is_file()

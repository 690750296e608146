"""Labeling sessions in a real Chromium, checked by what the person sees and what is stored.

They run where a Chromium is found and are skipped elsewhere; TETHER_REQUIRE_BROWSER=1 makes a
missing one a failure, and TETHER_SCREENSHOTS=1 writes the pictures of the documentation.
"""

import os
import random
import re
import time
from pathlib import Path

import pytest

from tests.web.pages import INSTRUCTIONS, TEXTS, locked, make_store, serving
from tether.feedback.assignment import Answer, next_assignment, submit
from tether.feedback.people import invite, local_person
from tether.web.agreement import EXPORTS, summary

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (dev extra)")
expect = playwright.expect

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


@pytest.fixture
def served(tmp_path):
    with serving(make_store(tmp_path / "kitchen.db")) as server:
        yield server


def card(page, letter):
    return page.get_by_role("group", name=f"Completion {letter}", exact=True)


def text_of(page, letter):
    return card(page, letter).locator(".text").inner_text()


def order(page):
    return page.locator("#order")


def prompt(page):
    """The last turn of the prompt."""
    return page.get_by_role("region", name="Prompt").locator(".text").last


def press(page, keys):
    for key in keys.split():
        page.keyboard.press(key)


def ranks_by_text(store):
    """What each judgment says of each text, in the order in which they were given."""
    items = store.items()
    return [
        dict(zip(items[one.item].completions, one.ranks, strict=True)) for one in store.judgments()
    ]


def saved(page, number):
    """Wait until the server has a number of judgments of this labeler."""
    expect(page.locator("#own")).to_have_text(str(number))
    expect(page.locator("#saving")).to_be_hidden()


# --- rank -----------------------------------------------------------------------------------------


def test_a_whole_session_by_keyboard(served, opened):
    page = opened(served.url)
    expect(page.get_by_text("how much it helps")).to_be_visible()
    expect(card(page, "A")).to_be_focused()
    texts = [text_of(page, letter) for letter in "ABCD"]
    first = prompt(page).inner_text()
    press(page, "2")
    expect(card(page, "B")).to_be_focused()
    press(page, "1 2")
    expect(order(page)).to_have_text("B > A = C  ·  open: D", use_inner_text=True)
    press(page, "Enter")
    expect(order(page)).to_have_text("Not ranked yet: D")
    press(page, "f")
    expect(order(page)).to_have_text("B > A = C  ·  fail: D", use_inner_text=True)
    expect(page.get_by_role("status").last).to_have_text("B, then A and C; D fail")
    press(page, "Enter")
    expect(prompt(page)).not_to_have_text(first)
    expect(card(page, "A")).to_be_focused()
    saved(page, 1)
    for _ in range(4):
        expect(card(page, "A")).to_be_focused()
        press(page, "1 2 3 4 Enter")
    expect(page.get_by_role("heading", name="Nothing left for you now")).to_be_visible()
    saved(page, 5)
    given = ranks_by_text(served.store)
    assert given[0] == dict(zip(texts, [2, 1, 2, None], strict=True))
    assert len(given) == 5
    assert all(0 <= one.seconds < 60 for one in served.store.judgments())


def test_the_next_item_is_there_before_the_server_has_answered(served, opened):
    page = opened(served.url)
    page.wait_for_load_state("networkidle")  # the next item has been fetched
    held = []
    page.route("**/api/judgments", lambda route: held.append(route))
    first = prompt(page).inner_text()
    press(page, "1 2 3 4 Enter")
    expect(prompt(page)).not_to_have_text(first)
    assert len(held) == 1
    held[0].continue_()
    saved(page, 1)


def test_arrows_move_and_leave_choices_alone(served, opened):
    page = opened(served.url)
    press(page, "ArrowRight ArrowRight 3")
    expect(order(page)).to_have_text("C  ·  open: A, B, D", use_inner_text=True)
    expect(card(page, "D")).to_be_focused()
    press(page, "ArrowLeft ArrowUp ArrowUp ArrowUp")
    expect(card(page, "A")).to_be_focused()
    expect(order(page)).to_have_text("C  ·  open: A, B, D", use_inner_text=True)


def test_undo_and_reopening(served, opened):
    page = opened(served.url)
    texts = [text_of(page, letter) for letter in "ABCD"]
    press(page, "1 2 u")
    expect(order(page)).to_have_text("A  ·  open: B, C, D", use_inner_text=True)
    expect(card(page, "B")).to_be_focused()
    press(page, "2 3 4 Enter")
    saved(page, 1)
    expect(page.get_by_text("You judged this item before")).to_be_hidden()
    press(page, "u")
    expect(page.get_by_text("You judged this item before")).to_be_visible()
    expect(order(page)).to_have_text("A > B > C > D")
    press(page, "4 Enter")  # A, the best before, is now as good as the worst
    saved(page, 1)
    page.reload()
    press(page, "u")  # a new page fetches it from the server
    expect(order(page)).to_have_text("B > C > A = D")
    [given] = ranks_by_text(served.store)
    assert given == dict(zip(texts, [4, 2, 3, 4], strict=True))


def test_recent_judgments_are_reopened_by_their_line(served, opened):
    page = opened(served.url)
    asked = prompt(page).inner_text()
    press(page, "1 1 1 f Enter")
    saved(page, 1)
    page.get_by_text("Your last judgments").click()
    line = page.get_by_role("link", name=re.compile("A = B = C, fail: D"))
    expect(line).to_contain_text(asked[:60])
    line.click()
    expect(prompt(page)).to_contain_text(asked)
    expect(order(page)).to_have_text("A = B = C  ·  fail: D", use_inner_text=True)


def test_by_mouse_with_clicks(served, opened):
    page = opened(served.url)
    texts = [text_of(page, letter) for letter in "ABCD"]
    for letter, choice in zip("ABCD", ["3", "1", "Fail", "1"], strict=True):
        card(page, letter).get_by_role("radio", name=choice, exact=True).check()
    expect(order(page)).to_have_text("B = D > A  ·  fail: C", use_inner_text=True)
    page.get_by_role("button", name="Submit").click()
    saved(page, 1)
    assert ranks_by_text(served.store) == [dict(zip(texts, [3, 1, None, 1], strict=True))]


def test_dragging_gives_the_ranks(served, opened):
    page = opened(served.url, viewport={"width": 1200, "height": 1100})
    press(page, "ArrowRight f")  # B fails, and stays so
    card(page, "D").locator(".grip").hover()
    page.mouse.down()
    card(page, "A").locator(".text").hover()
    page.mouse.up()
    letters = page.locator("#cards .letter")
    expect(letters).to_have_text(["D", "A", "B", "C"])
    expect(order(page)).to_have_text("D > A > C  ·  fail: B", use_inner_text=True)
    press(page, "u")
    expect(letters).to_have_text(["A", "B", "C", "D"])
    expect(order(page)).to_have_text("fail: B  ·  open: A, C, D", use_inner_text=True)


def test_skip_and_flag_ask_for_a_reason(served, opened):
    page = opened(served.url)
    press(page, "s")
    dialog = page.get_by_role("dialog", name="Skip this item")
    expect(dialog.get_by_role("textbox")).to_be_focused()
    press(page, "Escape")
    expect(dialog).to_be_hidden()
    expect(card(page, "A")).to_be_focused()
    press(page, "s Enter")
    saved(page, 1)
    press(page, "x Enter")  # a flag needs words
    dialog = page.get_by_role("dialog", name="Flag this item")
    expect(dialog).to_be_visible()
    page.keyboard.type("wrong 1 language")
    press(page, "Enter")
    expect(dialog).to_be_hidden()
    saved(page, 2)
    rows = served.store.read().execute("SELECT verdict, reason FROM judgments ORDER BY id")
    assert [tuple(row) for row in rows] == [("skipped", ""), ("flagged", "wrong 1 language")]


def test_help_lists_the_keys(served, opened):
    page = opened(served.url)
    press(page, "?")
    dialog = page.get_by_role("dialog", name="Keys")
    expect(dialog).to_contain_text("The same number twice is a tie")
    press(page, "1 Escape")
    expect(dialog).to_be_hidden()
    expect(order(page)).to_have_text("Not ranked yet: A, B, C, D")


def test_long_texts_are_shortened(tmp_path, opened):
    long = "\n".join(f"line {number}" for number in range(40))
    texts = [("Count.", [long, "short", "brief", "terse"])]
    with serving(make_store(tmp_path / "long.db", texts=texts)) as server:
        page = opened(server.url)
        text = page.locator(".texts", has_text="line 39")
        lines = text.evaluate("e => e.clientHeight / parseFloat(getComputedStyle(e).lineHeight)")
        assert 11 <= lines <= 14
        expect(page.get_by_role("button", name="Show all")).to_have_count(1)
        press(page, "e")
        button = page.get_by_role("button", name="Show less")
        expect(button).to_have_attribute("aria-expanded", "true")
        lines = text.evaluate("e => e.clientHeight / parseFloat(getComputedStyle(e).lineHeight)")
        assert 39 <= lines <= 41
        button.click()
        expect(page.get_by_role("button", name="Show all")).to_be_visible()


def test_instructions_open_on_the_first_visit_and_when_they_change(served, opened):
    page = opened(served.url)
    text = page.get_by_text("how much it helps")
    expect(text).to_be_visible()
    page.reload()
    expect(text).to_be_hidden()
    served.store.set_instructions("Now judge by **brevity**.")
    press(page, "1 2 3 4 Enter")
    expect(page.get_by_text("The instructions have changed")).to_be_visible()
    page.get_by_role("link", name="Read them").click()
    expect(page.get_by_text("Now judge by brevity.")).to_be_visible()


# --- other modes ----------------------------------------------------------------------------------


def test_pairs_by_keyboard_and_by_click(tmp_path, opened):
    with serving(make_store(tmp_path / "pairs.db", "pair")) as server:
        page = opened(server.url)
        texts = []
        for number, keys in enumerate(["1", "6", "ArrowLeft ArrowLeft", "f", None], start=1):
            texts.append([text_of(page, letter) for letter in "AB"])
            if keys is None:
                page.get_by_role("radio", name="B slightly better").check()
            else:
                press(page, keys)
            expect(page.get_by_role("radio", checked=True)).to_have_count(1)
            press(page, "Enter")
            saved(page, number)
        expected = [([1, 2], 3), ([2, 1], 2), ([1, 2], 2), ([None, None], 0), ([2, 1], 1)]
        given = server.store.judgments()
        assert ranks_by_text(server.store) == [
            dict(zip(shown, ranks, strict=True))
            for shown, (ranks, _) in zip(texts, expected, strict=True)
        ]
        assert [one.strength for one in given] == [strength for _, strength in expected]


def test_thumbs(tmp_path, opened):
    with serving(make_store(tmp_path / "thumbs.db", "thumbs")) as server:
        page = opened(server.url)
        press(page, "Enter")
        expect(order(page)).to_have_text("Choose up or down")
        for number, keys in enumerate(["y", "n", "ArrowUp", "ArrowDown", "y n u"], start=1):
            press(page, keys)
            press(page, "Enter")
            saved(page, number)
        ranks = [one.ranks for one in server.store.judgments()]
        assert ranks == [[1], [None], [1], [None], [1]]


# --- other ways in --------------------------------------------------------------------------------


def test_a_phone_by_touch(served, opened):
    page = opened(served.url, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for letter, choice in zip("ABCD", "1234", strict=True):
        card(page, letter).get_by_role("radio", name=choice, exact=True).tap()
    expect(order(page)).to_have_text("A > B > C > D")
    page.get_by_role("button", name="Submit").tap()
    saved(page, 1)
    page.goto(f"{served.url}/admin")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_without_javascript(served, opened):
    page = opened(served.url, java_script_enabled=False)
    first, texts = prompt(page).inner_text(), [text_of(page, letter) for letter in "ABCD"]
    for letter, choice in zip("ABC", ["2", "1", "Fail"], strict=True):
        card(page, letter).get_by_role("radio", name=choice, exact=True).check()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("alert")).to_contain_text("Choose a rank for D")
    expect(prompt(page)).to_have_text(first)
    expect(card(page, "B").get_by_role("radio", name="1")).to_be_checked()
    card(page, "D").get_by_role("radio", name="2", exact=True).check()
    page.get_by_role("button", name="Submit").click()
    expect(prompt(page)).not_to_have_text(first)
    page.get_by_text("Skip or flag this item").click()
    page.get_by_label("Reason").fill("no idea")
    page.get_by_role("button", name="Skip").click()
    page.get_by_text("Your last judgments").click()
    page.get_by_role("link", name=re.compile("B > A = D, fail: C")).click()
    expect(page.get_by_text("You judged this item before")).to_be_visible()
    card(page, "C").get_by_role("radio", name="4", exact=True).check()
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#own")).to_have_text("2")
    assert ranks_by_text(served.store) == [dict(zip(texts, [2, 1, 4, 2], strict=True))]


HOSTILE = [
    "<script>document.title = 'owned'; alert(1)</script>",
    "</script><img src=x onerror=\"document.title='owned'\"><b>bold</b> [a](javascript:alert(1))",
    "\u202egnorw si siht\n<!-- -->&amp;&lt; {{ 7 * 7 }}",
    "plain",
]


@pytest.mark.parametrize("scripted", [True, False])
def test_texts_of_models_stay_text(tmp_path, opened, scripted):
    texts = [("<h1>First</h1>", HOSTILE), ("<script>alert(2)</script>", HOSTILE)]
    with serving(make_store(tmp_path / "hostile.db", texts=texts)) as server:
        page = opened(server.url, java_script_enabled=scripted)
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        for number in range(1, len(texts) + 1):
            shown = [text_of(page, letter) for letter in "ABCD"]
            assert sorted(shown) == sorted(HOSTILE)
            assert page.locator("#item img, #item b, #item a, .text *").count() == 0
            for letter in "ABCD":
                card(page, letter).get_by_role("radio", name="1", exact=True).check()
            assert prompt(page).inner_text() in [asked for asked, _ in texts]
            page.get_by_role("button", name="Submit").click()
            expect(page.locator("#own")).to_have_text(str(number))
        assert page.title() == "Kitchen answers · labeling"


# --- a server that is away ------------------------------------------------------------------------


def test_judgments_wait_in_the_browser_while_the_server_is_down(served, opened):
    page = opened(served.url)
    page.wait_for_load_state("networkidle")  # the next item has been fetched
    served.stop()
    press(page, "1 2 3 4 Enter")
    banner = page.get_by_role("alert")
    expect(banner).to_contain_text("1 judgment not saved yet: the server cannot be reached")
    press(page, "1 1 1 1 Enter")
    expect(banner).to_contain_text("2 judgments not saved yet")
    expect(page.get_by_role("heading", name="Waiting for the next item")).to_be_visible()
    expect(page.locator("#own")).to_have_text("2")
    served.start()
    page.get_by_role("button", name="Try now").click()
    expect(banner).to_be_hidden()
    saved(page, 2)
    expect(card(page, "A")).to_be_visible()
    assert [one.ranks for one in served.store.judgments()][1] == [1, 1, 1, 1]
    assert len(served.store.judgments()) == 2


def test_unsent_judgments_survive_a_reload_and_are_stored_once(served, opened):
    page = opened(served.url)
    page.route("**/api/judgments", lambda route: (route.fetch(), route.abort()))  # answers get lost
    first = prompt(page).inner_text()
    press(page, "1 2 3 4 Enter")
    expect(page.get_by_role("alert")).to_contain_text("1 judgment not saved yet")
    page.unroute("**/api/judgments")
    page.reload()
    saved(page, 1)
    expect(prompt(page)).not_to_have_text(first)
    assert len(served.store.judgments()) == 1


def test_a_locked_database_is_told_and_nothing_is_lost(tmp_path, opened, monkeypatch):
    monkeypatch.setattr("tether.feedback.store.BUSY_SECONDS", 0.05)
    with serving(make_store(tmp_path / "kitchen.db")) as server:
        page = opened(server.url)
        page.wait_for_load_state("networkidle")  # the next item has been fetched
        banner = page.get_by_role("alert")
        with locked(server.store):
            press(page, "1 2 3 4 Enter")
            expect(banner).to_contain_text("1 judgment not saved yet: the server says:")
            expect(banner).to_contain_text("database is locked")
        page.get_by_role("button", name="Try now").click()
        saved(page, 1)
        expect(banner).to_be_hidden()


# --- administration -------------------------------------------------------------------------------


def test_an_administrator_invites_and_revokes(served, opened):
    admin = opened(f"{served.url}/admin")
    admin.get_by_label("Name").fill("Bo")
    admin.get_by_label("Group").fill("cooks")
    admin.get_by_role("button", name="Make a link").click()
    link = admin.get_by_label("Link of Bo").input_value()
    assert re.fullmatch(rf"{served.url}/join/[\w-]{{32}}", link)

    labeler = opened(link)
    expect(labeler.get_by_text("Bo", exact=True)).to_be_visible()
    press(labeler, "1 2 3 4 Enter")
    saved(labeler, 1)
    press(labeler, "x")
    labeler.keyboard.type("two languages at once")
    press(labeler, "Enter")
    saved(labeler, 2)

    row = admin.get_by_role("row", name=re.compile("^Bo cooks 1 0 1"))
    expect(row).to_be_visible()  # the page has renewed itself
    flagged = admin.get_by_role("row", name=re.compile("two languages at once"))
    flagged.get_by_role("button", name="Retire").click()
    expect(admin.get_by_text("1 retired")).to_be_visible()
    row.get_by_role("button", name="Revoke the access of Bo").click()
    expect(row).to_contain_text("revoked")
    labeler.reload()
    expect(labeler.get_by_role("alert")).to_have_text(
        "Your link no longer works; ask for a new one."
    )


def test_an_administrator_changes_the_instructions(served, opened):
    page = opened(f"{served.url}/admin", java_script_enabled=False)
    box = page.get_by_role("textbox", name="Instructions in Markdown")
    expect(box).to_have_value(INSTRUCTIONS)
    box.fill("Judge **honesty**.")
    page.get_by_role("button", name="Save as a new version").click()
    expect(page.get_by_text("version 2")).to_be_visible()
    page.get_by_role("link", name="Label").click()
    expect(page.get_by_text("Judge honesty.")).to_be_visible()


# --- pictures -------------------------------------------------------------------------------------


TEAM = [("Ines", "cooks"), ("Mara", "cooks"), ("Tom", "readers"), ("Yusuf", "readers")]


def plausible_ranks(texts, draw):
    """Longer answers tend to be better; one person's view differs a little from another's."""
    worth = [len(text) + draw.gauss(0, 60) for text in texts]
    return [1.0 + sum(other > own for other in worth) for own in worth]


def a_day_of_work(store, monkeypatch):
    """Judgments of five people over the last day; Ann is left with the first item before her."""
    now, draw = time.time(), random.Random(3)
    notes = {5: ("flagged", "two answers are the same"), 11: ("skipped", "I do not bake")}
    ann = local_person(store, "Ann").id
    with store.write() as db:
        [lease] = db.execute(
            "INSERT INTO assignments (item, labeler, repeat, shown, state, expires, due) "
            "VALUES (1, ?, 0, '[2, 0, 1, 3]', 'leased', ?, 0) RETURNING id",
            (ann, now + 600),
        ).fetchone()
    for name, group in TEAM:
        invite(store, name, group=group)
    labelers = [ann, *(local_person(store, name).id for name, _ in TEAM)]
    for number, hour in enumerate(sorted(draw.gauss(-9, 5) for _ in range(72))):
        monkeypatch.setattr("time.time", lambda hour=hour: now + 3600 * min(hour, -0.1))
        labeler = draw.choice(labelers)
        given = next_assignment(store, labeler, [lease])
        verdict, reason = notes.get(number, ("ranked", ""))
        ranks = None if verdict != "ranked" else plausible_ranks(given.completions, draw)
        sent = {"submission": f"number-{number}", "verdict": verdict, "reason": reason}
        seconds = draw.uniform(15, 70)
        submit(store, labeler, Answer(assignment=given.id, ranks=ranks, seconds=seconds, **sent))
    monkeypatch.undo()


@pytest.mark.skipif(
    os.environ.get("TETHER_SCREENSHOTS") != "1", reason="writes docs/images; TETHER_SCREENSHOTS=1"
)
def test_pictures_of_the_documentation(tmp_path, opened, monkeypatch):
    more = [(f"What would you change in recipe {number}?", TEXTS[0][1]) for number in range(25)]
    store = make_store(tmp_path / "kitchen.db", texts=[*TEXTS, *more], num_labelers=3)
    a_day_of_work(store, monkeypatch)
    with serving(store, summary=summary, exports=EXPORTS) as server:
        page = opened(server.url, viewport={"width": 1200, "height": 860})
        page.reload()  # not the first visit: the instructions are folded
        press(page, "f 1 3")
        page.screenshot(path=IMAGES / "labeling.png")
        phone = opened(server.url, **PHONE, device_scale_factor=2)
        phone.reload()
        card(phone, "A").get_by_role("radio", name="Fail").tap()
        phone.screenshot(path=IMAGES / "labeling-phone.png")
        page.set_viewport_size({"width": 1200, "height": 1080})
        page.goto(f"{server.url}/admin")
        expect(page.get_by_text("Krippendorff's α on pairs")).to_be_visible()
        page.screenshot(path=IMAGES / "administrator.png")
    sizes = {file.name: file.stat().st_size for file in IMAGES.glob("*.png")}
    assert max(sizes.values()) <= 150 * 1024, sizes

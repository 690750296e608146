"""The labeler's and the administrator's routes, without a browser."""

import json
import re
import sqlite3
import threading
import time

import pytest
from starlette.testclient import TestClient

from tests.web.pages import SECRET, locked, make_store
from tether.errors import DataError
from tether.feedback.assignment import Answer, Assignment, next_assignment, submit
from tether.feedback.judgments import Item
from tether.feedback.people import local_person
from tether.web.app import build
from tether.web.counts import Latest, count
from tether.web.label import marks, parse_answer, render_markdown, said, turns

URL = "http://127.0.0.1:8765"
MODES = ["rank", "pair", "thumbs"]


class Browser(TestClient):
    """A session at this machine that knows its CSRF token."""

    def __init__(self, store, name="Ann", **settings):
        app = build(store, secret=SECRET, name=name, **settings)
        super().__init__(app, base_url=URL, follow_redirects=False)
        self.page = self.get("/")
        self.csrf = re.search(r'name="csrf" value="([\w-]+)"', self.page.text)[1]

    def site(self):
        return self.app._app.state.site

    def data(self):
        """What the page hands to its script."""
        text = re.search(r'id="data">(.*?)</script>', self.get("/").text, re.DOTALL)[1]
        return json.loads(text)

    def fill(self, path, **fields):
        return self.post(path, data={"csrf": self.csrf, **fields})

    def judge(self, **answer):
        answer = {"submission": f"sub-{time.monotonic_ns()}", "verdict": "ranked", **answer}
        return self.post("/api/judgments", json=answer, headers={"X-CSRF-Token": self.csrf})


@pytest.fixture
def store(tmp_path, request):
    mode = getattr(request, "param", "rank")
    store = make_store(tmp_path / "kitchen.db", mode)
    yield store
    store.close()


def in_modes(*modes):
    return pytest.mark.parametrize("store", modes, indirect=True)


# --- requests of the script -----------------------------------------------------------------------


def test_a_judgment_is_stored_and_brings_the_next_item(store):
    browser = Browser(store)
    first = browser.data()["item"]
    second = browser.get(f"/api/next?held={first['id']}").json()["next"]
    assert second["id"] != first["id"]
    answer = browser.judge(
        assignment=first["id"], ranks=[2, 1, None, 2], seconds=3.5, held=[second["id"]]
    ).json()
    assert answer["next"]["id"] not in (first["id"], second["id"])
    assert answer["progress"]["own"] == 1
    [given] = store.judgments()
    # place p of the page showed completion shown[p] of the store
    assert [given.ranks[completion] for completion in given.shown] == [2, 1, None, 2]
    assert given.seconds == 3.5
    assert given.labeler == "Ann"


def test_a_submission_that_comes_twice_is_stored_once(store):
    browser = Browser(store)
    item = browser.data()["item"]
    sent = {"assignment": item["id"], "submission": "the-same-one", "ranks": [1, 2, 3, 4]}
    saved = [browser.judge(**sent).json()["saved"] for _ in range(2)]
    assert saved[0] == saved[1]
    assert len(store.judgments()) == 1


def test_a_page_that_wants_no_more_gets_no_lease(store):
    browser = Browser(store)
    item = browser.data()["item"]
    answer = browser.judge(assignment=item["id"], ranks=[1, 2, 3, 4], more=False).json()
    assert answer["next"] is None
    leased = "SELECT count(*) FROM assignments WHERE state = 'leased'"
    assert store.read().execute(leased).fetchone()[0] == 0


def test_nothing_left(store):
    browser = Browser(store)
    for _ in range(5):
        answer = browser.judge(assignment=browser.data()["item"]["id"], ranks=[1, 1, 1, 1])
    assert answer.json()["next"] is None
    assert browser.data()["item"] is None
    assert "Nothing left for you now" in browser.get("/").text


def test_items_hold_neither_models_nor_keys(store):
    browser = Browser(store)
    item = browser.data()["item"]
    assert item.keys() == {"id", "prompt", "completions", "verdict", "marks", "reason"}
    for path in ("/", "/api/next", "/api/recent", f"/api/item/{item['id']}"):
        assert "secret-model" not in browser.get(path).text


def test_others_judgments_are_as_unknown_as_no_judgment(store):
    browser = Browser(store)
    other = local_person(store, "Bo").id
    theirs = next_assignment(store, other)
    submit(
        store,
        other,
        Answer(
            assignment=theirs.id,
            submission="of-bo-1234",
            verdict="ranked",
            ranks=[1.0, 2.0, 3.0, 4.0],
        ),
    )
    for path in ("/item/", "/api/item/"):
        foreign, unknown = (browser.get(f"{path}{number}") for number in (theirs.id, 999_999))
        assert foreign.status_code == unknown.status_code == 404
        assert foreign.text == unknown.text
    assert browser.get("/api/recent").json() == {"recent": []}
    answer = browser.judge(assignment=theirs.id, ranks=[1, 2, 3, 4])
    assert answer.status_code == 400
    assert answer.json()["error"] == f"assignment={theirs.id} is not yours; reload the page"


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "９", str(1 << 63), "1" * 5000, "%00"])
def test_numbers_that_are_none(store, number):
    browser = Browser(store)
    assert browser.get(f"/api/item/{number}").status_code == 404
    assert browser.get(f"/item/{number}").status_code == 404


@pytest.mark.parametrize("held", ["x", "1,,x", "1.5", "-1", "9" * 30])
def test_a_list_of_held_items_that_is_none(store, held):
    assert Browser(store).get(f"/api/next?held={held}").status_code == 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"assignment": None}, "assignment=None must be a whole number"),
        ({"assignment": True}, "assignment=True must be a whole number"),
        ({"assignment": "1"}, "assignment='1' must be a whole number"),
        ({"assignment": 1 << 70}, "must be a whole number"),
        ({"submission": 7}, "submission=7 must be a text"),
        ({"submission": "short"}, "must have 8 to 64 characters"),
        ({"verdict": "ranking"}, "verdict='ranking' must be 'ranked', 'skipped' or 'flagged'"),
        ({"verdict": None}, "verdict=None must be"),
        ({"verdict": ["ranked"]}, "must be 'ranked'"),
        ({"ranks": None}, "must hold 4 ranks"),
        ({"ranks": [1, 2, 3]}, "must hold 4 ranks"),
        ({"ranks": [1, 2, 3, 5]}, "must be a whole number from 1 to 4"),
        ({"ranks": [0, 2, 3, 4]}, "must be a whole number from 1 to 4"),
        ({"ranks": [True, 2, 3, 4]}, "must be a list of whole numbers and nulls"),
        ({"ranks": [1.5, 2, 3, 4]}, "must be a list of whole numbers and nulls"),
        ({"ranks": ["1", 2, 3, 4]}, "must be a list of whole numbers and nulls"),
        ({"ranks": {"a": 1}}, "must be a list of whole numbers and nulls"),
        ({"strength": 1}, "belongs to pairwise projects alone"),
        ({"strength": True}, "strength=True must be a whole number"),
        ({"seconds": -1}, "must be a number of seconds"),
        ({"seconds": 10**400}, "must be a number of seconds"),
        ({"seconds": True}, "seconds=True must be a number of seconds"),
        ({"seconds": "1"}, "seconds='1' must be a number of seconds"),
        ({"reason": "x" * 2001}, "2000 are kept at most"),
        ({"reason": None}, "reason=None must be a text"),
        ({"verdict": "flagged", "ranks": None}, "must say what is wrong"),
        ({"verdict": "skipped"}, "must be absent where nothing was ranked"),
        ({"held": "1,2"}, "held='1,2' must be a list of whole numbers"),
        ({"held": [True]}, "held=[True] must be a list of whole numbers"),
    ],
)
def test_answers_are_checked_by_type_and_rule(store, change, message):
    browser = Browser(store)
    fields = {"assignment": browser.data()["item"]["id"], "ranks": [1, 2, 3, 4], **change}
    answer = browser.judge(**fields)
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert store.judgments() == []


def test_an_answer_without_any_field():
    with pytest.raises(DataError, match="assignment=None"):
        parse_answer({})


def test_corrections_are_listed_once(store):
    browser = Browser(store)
    item = browser.data()["item"]
    browser.judge(assignment=item["id"], ranks=[1, 2, 3, 4])
    browser.judge(assignment=item["id"], ranks=[2, 1, 1, None])
    [line] = browser.get("/api/recent").json()["recent"]
    assert line["id"] == item["id"]
    assert line["said"] == "B = C > A, fail: D"
    again = browser.get(f"/api/item/{item['id']}").json()["item"]
    assert again["marks"] == {"rank-0": "2", "rank-1": "1", "rank-2": "1", "rank-3": "fail"}
    assert again["completions"] == item["completions"]
    assert browser.data()["progress"]["own"] == 1


# --- the plain form -------------------------------------------------------------------------------


@in_modes(*MODES)
@pytest.mark.parametrize("action", ["skipped", "flagged"])
def test_the_form_skips_and_flags(store, action):
    browser = Browser(store)
    number = browser.data()["item"]["id"]
    fields = {"assignment": number, "submission": "of-a-form", "action": action, "reason": "odd"}
    answer = browser.fill("/judge", **fields)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    row = store.read().execute("SELECT verdict, reason, ranks FROM judgments").fetchone()
    assert tuple(row) == (action, "odd", None)


FORMS = [
    (
        "rank",
        {"rank-0": "2", "rank-1": "1", "rank-2": "fail", "rank-3": "2"},
        [2, 1, None, 2],
        None,
    ),
    ("pair", {"choice": "a3"}, [1, 2], 3),
    ("pair", {"choice": "b1"}, [2, 1], 1),
    ("pair", {"choice": "tie"}, [1, 1], 0),
    ("pair", {"choice": "fail"}, [None, None], 0),
    ("thumbs", {"thumb": "up"}, [1], None),
    ("thumbs", {"thumb": "down"}, [None], None),
]


@pytest.mark.parametrize(
    ("store", "fields", "ranks", "strength"), FORMS, indirect=["store"], ids=str
)
def test_the_form_in_every_mode(store, fields, ranks, strength):
    browser = Browser(store)
    number = browser.data()["item"]["id"]
    opened = str(time.time() - 7)
    answer = browser.fill(
        "/judge", assignment=number, submission="of-a-form", opened=opened, **fields
    )
    assert answer.status_code == 303
    [given] = store.judgments()
    assert [given.ranks[completion] for completion in given.shown] == ranks
    assert given.strength == strength
    assert 7 <= given.seconds < 20
    page = browser.get(f"/item/{number}").text
    checked = re.findall(r'name="([\w-]+)" value="(\w+)" checked', page)
    assert dict(checked) == fields


@pytest.mark.parametrize(
    ("store", "fields", "message"),
    [
        ("rank", {"rank-0": "1"}, "Choose a rank for B, or skip the item."),
        ("rank", {f"rank-{place}": "5" for place in range(4)}, "must be one of"),
        ("pair", {}, "Choose how the two compare, or skip the item."),
        ("thumbs", {"thumb": "sideways"}, "must be one of"),
        ("thumbs", {"action": "flagged"}, "must say what is wrong with a flagged item"),
        ("thumbs", {"action": "burn"}, "=&#39;burn&#39; must be"),
        ("thumbs", {"thumb": "up", "submission": ""}, "must have 8 to 64 characters"),
    ],
    indirect=["store"],
    ids=str,
)
def test_a_form_that_is_not_complete_comes_back(store, fields, message):
    browser = Browser(store)
    number = browser.data()["item"]["id"]
    sent = {"assignment": number, "submission": "of-a-form", **fields}
    answer = browser.fill("/judge", **sent)
    assert answer.status_code == 400
    assert message in answer.text
    assert f'name="assignment" value="{number}"' in answer.text
    assert store.judgments() == []
    if "rank-0" in fields and fields["rank-0"] == "1":
        assert 'name="rank-0" value="1" checked' in answer.text


@pytest.mark.parametrize("opened", ["", "x", "nan", "inf", "-1e300", "9e99"])
def test_a_form_with_a_broken_time_counts(store, opened):
    browser = Browser(store)
    ranks = {f"rank-{place}": "1" for place in range(4)}
    number = browser.data()["item"]["id"]
    sent = {"assignment": number, "submission": "of-a-form", "opened": opened, **ranks}
    assert browser.fill("/judge", **sent).status_code == 303
    [given] = store.judgments()
    assert given.seconds is None


def test_a_form_for_another_labelers_item(store):
    theirs = next_assignment(store, local_person(store, "Bo").id)
    answer = Browser(store).fill("/judge", assignment=theirs.id, submission="of-a-form")
    assert answer.status_code == 404


# --- a file that cannot be written ----------------------------------------------------------------


def full(*_):
    raise sqlite3.OperationalError("database or disk is full")


def test_a_full_disk_is_told_and_the_choice_is_kept(store, monkeypatch):
    browser = Browser(store)
    number = browser.data()["item"]["id"]
    ranks = {"rank-0": "2", "rank-1": "1", "rank-2": "fail", "rank-3": "2"}
    monkeypatch.setattr("tether.web.label.submit", full)
    monkeypatch.setattr("tether.web.label.submit_and_next", full)
    sent = {"assignment": number, "submission": "of-a-form", "opened": "1.0", **ranks}
    answer = browser.fill("/judge", **sent)
    assert answer.status_code == 503
    assert "The judgment is not saved" in answer.text
    assert "database or disk is full" in answer.text
    assert dict(re.findall(r'name="([\w-]+)" value="(\w+)" checked', answer.text)) == ranks
    assert 'name="submission" value="of-a-form"' in answer.text
    answer = browser.judge(assignment=number, ranks=[1, 2, 3, 4])
    assert answer.status_code == 503
    assert "database or disk is full" in answer.json()["error"]
    assert answer.headers["retry-after"] == "5"


def test_a_locked_file_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("tether.feedback.store.BUSY_SECONDS", 0.05)
    store = make_store(tmp_path / "kitchen.db")
    browser = Browser(store)
    number = browser.data()["item"]["id"]
    with locked(store):
        answer = browser.judge(assignment=number, ranks=[1, 2, 3, 4])
    assert answer.status_code == 503
    assert "database is locked" in answer.json()["error"]
    assert browser.judge(assignment=number, ranks=[1, 2, 3, 4]).status_code == 200
    store.close()


# --- texts ----------------------------------------------------------------------------------------


def test_texts_as_turns():
    assert turns("a\nb") == [{"role": "", "content": "a\nb"}]
    assert turns([{"role": "assistant", "content": "x", "model": "m"}]) == [
        {"role": "", "content": "x"}
    ]
    chat = [{"role": "user", "content": "x", "model": "m"}, {"role": "assistant", "content": "y"}]
    assert turns(chat) == [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert turns([]) == [{"role": "", "content": ""}]


def assigned(ranks, strength=None, verdict="ranked"):
    return Assignment(
        id=1, prompt="p", completions=["x"], verdict=verdict, ranks=ranks, strength=strength
    )


def test_judgments_in_short():
    assert said(assigned([3.0, 1.0, 3.0, None]), "rank") == "B > A = C, fail: D"
    assert said(assigned([None, None, None]), "rank") == "fail: A B C"
    assert said(assigned([1.0, 2.0], 3), "pair") == "A much better"
    assert said(assigned([2.0, 1.0], 1), "pair") == "B slightly better"
    assert said(assigned([1.0, 1.0], 0), "pair") == "tie"
    assert said(assigned([None, None], 0), "pair") == "both fail"
    assert said(assigned([None]), "thumbs") == "thumbs down"
    assert said(assigned(None, verdict="skipped"), "rank") == "skipped"


def test_marks_of_ranks_that_were_not_contiguous():
    assert marks(assigned([4.0, 1.0]), "rank") == {"rank-0": "4", "rank-1": "1"}
    assert marks(assigned(None, verdict="flagged"), "rank") == {}


def test_markup_in_instructions_stays_text():
    text = "# Rules\n\n<script>alert(1)</script>\n\n[go](javascript:alert(1)) **bold**"
    html = render_markdown(text)
    assert "<h1>Rules</h1>" in html
    assert "<strong>bold</strong>" in html
    assert "<script" not in html
    assert "href" not in html


def test_the_data_of_the_script_cannot_end_its_element(tmp_path):
    texts = [("</script><b>", ["</script>", "<!--", "&", "'"])]
    store = make_store(tmp_path / "hostile.db", texts=texts)
    item = Browser(store).data()["item"]
    assert item["prompt"] == [{"role": "", "content": "</script><b>"}]
    store.close()


# --- administration -------------------------------------------------------------------------------


def test_counts_go_by_judgments_not_leases(store):
    ann, bo = (local_person(store, name).id for name in ("Ann", "Bo"))
    shared = [next_assignment(store, one) for one in (ann, bo)]  # two leases
    assert count(store).waiting == 5
    answer = {"verdict": "ranked", "ranks": [1.0, 2.0, 3.0, 4.0]}
    submit(store, ann, Answer(assignment=shared[0].id, submission="first-one", **answer))
    now = count(store)
    assert (now.judged, now.wanted, now.percent) == (1, 10, 10)  # five items, two labelers each
    assert (now.waiting, now.begun, now.complete) == (4, 1, 0)
    [done] = store.read().execute("SELECT item FROM assignments WHERE id = ?", (shared[0].id,))
    held = []
    while True:  # until Bo gets the item that Ann has judged
        theirs = next_assignment(store, bo, held)
        held.append(theirs.id)
        [row] = store.read().execute("SELECT item FROM assignments WHERE id = ?", (theirs.id,))
        if row["item"] == done["item"]:
            break
    submit(store, bo, Answer(assignment=theirs.id, submission="second-one", **answer))
    now = count(store)
    assert (now.judged, now.waiting, now.begun, now.complete) == (2, 4, 0, 1)
    with store.write() as db:
        db.execute("UPDATE items SET retired = 1 WHERE id = ?", (done["item"],))
    now = count(store)
    assert (now.judged, now.wanted, now.complete, now.retired) == (0, 8, 0, 1)


def test_control_items_are_counted_apart(store):
    gold = Item(key="g", prompt="p", completions=["a", "b"], sources=["", ""], gold=[1.0, 2.0])
    store.add_items([gold])
    now = count(store)
    assert (now.control, now.wanted, now.waiting) == (1, 10, 5)


def test_what_is_slow_is_computed_aside_and_seldom(store):
    calls, ready = [], threading.Event()

    def compute(_):
        assert ready.wait(10)
        calls.append(1)
        return len(calls)

    latest = Latest(compute, store, 0, seconds=1000.0)
    assert latest.get() == 0
    ready.set()
    latest.close()
    assert latest.get() == 1
    latest.close()
    assert latest.get() == 1
    assert calls == [1]


def test_the_summary_is_shown_when_it_is_there(store):
    ready = threading.Event()

    def summary(_):
        assert ready.wait(10)
        figure = {"name": "Krippendorff's α", "value": "0.71", "note": "of two items"}
        return {"figures": [figure], "labelers": [], "lists": []}

    browser = Browser(store, summary=summary)
    assert "Shown once several people" in browser.get("/admin").text  # and it did not wait
    ready.set()
    browser.site().summary.close()
    assert "Krippendorff&#39;s α</dt><dd>0.71</dd>" in browser.get("/admin").text


def test_an_invitation_is_shown_once(store):
    browser = Browser(store)
    answer = browser.fill("/admin/invite", name=" Bo ", group="cooks", role="labeler")
    [link] = re.findall(r'value="(http://127\.0\.0\.1:8765/join/[\w-]+)"', answer.text)
    token = link.rsplit("/", 1)[1]
    assert token not in browser.get("/admin").text
    other = TestClient(browser.app, base_url=URL)
    assert "Bo" in other.get(link).text
    answer = browser.fill("/admin/invite", name="Cy", role="administrator")
    assert re.search(r'value="http://127\.0\.0\.1:8765/admin/join/[\w-]+"', answer.text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": " "}, "must have 1 to 80 characters"),
        ({"name": "x" * 81}, "must have 1 to 80 characters"),
        ({"name": "Bo", "role": "king"}, "must be &#39;labeler&#39; or &#39;administrator&#39;"),
        ({"name": "Ann", "role": "administrator"}, "is taken by the labeler"),
        ({}, "must have 1 to 80 characters"),
    ],
)
def test_invitations_that_cannot_be(store, fields, message):
    answer = Browser(store).fill("/admin/invite", **fields)
    assert answer.status_code == 400
    assert message in answer.text


def test_revoking_nobody(store):
    answer = Browser(store).fill("/admin/revoke", name="Nobody")
    assert answer.status_code == 400
    assert "is nobody in" in answer.text


def test_items_are_retired_and_brought_back(store):
    browser = Browser(store)
    assert browser.fill("/admin/retire", item="2", retired="1").status_code == 303
    assert count(store).retired == 1
    assert "Bring back" in browser.get("/admin").text
    assert browser.fill("/admin/retire", item="2", retired="0").status_code == 303
    assert count(store).retired == 0
    assert browser.fill("/admin/retire", item="99", retired="1").status_code == 404
    assert browser.fill("/admin/retire", item="x").status_code == 400


def test_an_item_with_its_models_and_judgments(store):
    browser = Browser(store)
    number = browser.data()["item"]["id"]
    browser.judge(assignment=number, ranks=[1, 2, 3, None])
    [row] = store.read().execute("SELECT item FROM assignments WHERE id = ?", (number,))
    page = browser.get(f"/admin/item/{row['item']}").text
    assert "secret-model-0" in page
    assert ">fail<" in page
    assert browser.get("/admin/item/99").status_code == 404


def test_exports_are_downloaded(store):
    exports = {"pairs.jsonl": lambda store: ["{}\n", f'"{store.project.mode}"\n']}
    browser = Browser(store, exports=exports)
    assert 'href="/admin/export/pairs.jsonl"' in browser.get("/admin").text
    answer = browser.get("/admin/export/pairs.jsonl")
    assert answer.text == '{}\n"rank"\n'
    assert answer.headers["content-disposition"] == 'attachment; filename="pairs.jsonl"'
    assert browser.get("/admin/export/other").status_code == 404


def test_judgments_by_hour(store):
    browser = Browser(store)
    browser.judge(assignment=browser.data()["item"]["id"], ranks=[1, 1, 2, 2])
    label = re.search(r"last 24 hours: ([\d, ]+)", browser.get("/admin").text)[1]
    assert label == ", ".join(["0"] * 23 + ["1"])

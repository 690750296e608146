"""Anything a browser can send: no failure of the server, and nothing of anybody else's."""

import contextlib
import json
import logging
import time
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.web.pages import SECRET, make_store
from tests.web.test_access import URL, joined, token_in
from tether.feedback.assignment import Answer, next_assignment, submit
from tether.feedback.people import local_person
from tether.web import admin, label
from tether.web.app import build

SECRETS = ("secret-model", "Zoe", "zoe-said-this")
FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

WORD = st.text(max_size=12) | st.sampled_from(
    ["../../etc/passwd", "%2e%2e/", "\0", "1", "-1", "9" * 30]
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORD,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORD, inner, max_size=3),
    max_leaves=6,
)
NAMES = ("assignment", "submission", "verdict", "ranks", "strength", "reason", "seconds", "held")
GOOD = {"assignment": 1, "submission": "12345678", "verdict": "ranked", "ranks": [1, 2, 3, 4]}
ANSWER = st.builds(
    lambda changes, gone: {k: v for k, v in {**GOOD, **changes}.items() if k not in gone},
    st.dictionaries(st.sampled_from(NAMES), VALUE, max_size=3),
    st.sets(st.sampled_from(NAMES), max_size=2),
)
ROUTES = sorted({route.path for route in [*label.ROUTES, *admin.ROUTES]})


class Browser:
    """A labeler's session, with the route table to shoot at and what the server logs."""

    def __init__(self, store):
        app = build(store, secret=SECRET)
        self.client = TestClient(app, base_url=URL, follow_redirects=False)
        self.token = joined(self.client, store, "Bo")
        self.csrf = token_in(self.client.get("/"))
        self.store = store

    def check(self, answer):
        """No failure, and neither models nor another labeler in what comes back."""
        assert answer.status_code < 500, answer.text
        for secret in SECRETS:
            assert secret not in answer.text
        return answer


@pytest.fixture
def browser(tmp_path, monkeypatch):
    """Bo's browser; Zoe has judged before, and what she said is nobody's business."""
    monkeypatch.setattr("tether.web.incoming.RateLimit.wait", lambda *_, cost=1: 0)
    store = make_store(tmp_path / "kitchen.db", num_labelers=5)
    zoe = local_person(store, "Zoe").id
    for number in range(2):
        given_to_zoe = next_assignment(store, zoe)
        flag = (
            {"verdict": "flagged", "reason": "zoe-said-this"} if number else {"verdict": "ranked"}
        )
        ranks = None if number else [1.0, 2.0, 3.0, 4.0]
        answer = Answer(
            assignment=given_to_zoe.id, submission=f"zoe-{number:06}", ranks=ranks, **flag
        )
        submit(store, zoe, answer)
    yield Browser(store)
    store.close()


def judgments_of_zoe(store):
    rows = store.read().execute(
        "SELECT j.* FROM judgments AS j JOIN people AS p ON p.id = j.labeler WHERE p.name = 'Zoe'"
    )
    return [tuple(row) for row in rows]


@FUZZ
@given(answer=ANSWER)
def test_any_judgment(browser, answer):
    before = judgments_of_zoe(browser.store)
    body = json.dumps(answer)  # NaN and Infinity too, as browsers would not
    headers = {"X-CSRF-Token": browser.csrf, "Content-Type": "application/json"}
    browser.check(browser.client.post("/api/judgments", content=body, headers=headers))
    assert judgments_of_zoe(browser.store) == before


@FUZZ
@given(path=st.sampled_from(ROUTES), word=WORD, query=st.dictionaries(WORD, WORD, max_size=2))
def test_any_path(browser, path, word, query):
    for name in ("{id}", "{name}", "{token}"):
        path = path.replace(name, quote(word, safe=""))
    answer = browser.check(browser.client.get(path, params=query))
    if path.startswith("/admin"):
        assert answer.status_code in (403, 404, 405)
    assert "root:" not in answer.text


@FUZZ
@given(
    path=st.sampled_from(ROUTES),
    fields=st.dictionaries(
        st.sampled_from([*NAMES, "action", "rank-0", "choice", "thumb"]) | WORD, WORD, max_size=5
    ),
    word=WORD,
)
def test_any_form(browser, path, fields, word):
    if path == "/leave":
        return
    before = judgments_of_zoe(browser.store)
    for name in ("{id}", "{name}"):
        path = path.replace(name, quote(word, safe=""))
    browser.check(browser.client.post(path, data={**fields, "csrf": browser.csrf}))
    assert judgments_of_zoe(browser.store) == before


@pytest.mark.parametrize("number", range(1, 8))
def test_every_assignment_that_is_not_ones_own_is_as_unknown(browser, number):
    own = browser.store.read().execute(
        "SELECT a.id FROM assignments AS a JOIN people AS p ON p.id = a.labeler WHERE p.name = 'Bo'"
    )
    expected = 200 if number in {row[0] for row in own} else 404
    assert browser.check(browser.client.get(f"/api/item/{number}")).status_code == expected
    assert browser.check(browser.client.get(f"/item/{number}")).status_code == expected


def test_no_token_is_logged(browser, caplog):
    with caplog.at_level(logging.DEBUG):
        for path in (
            f"/join/{browser.token}",
            f"/join/{browser.token}x",
            f"/admin/join/{browser.token}",
        ):
            browser.check(browser.client.get(path))
    ours = [record for record in caplog.records if not record.name.startswith("http")]
    assert browser.token not in " ".join(record.getMessage() for record in ours)


COPIES = """
INSERT INTO items (key, prompt, completions, sources, category, size, needed, place, added)
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
SELECT 'copy ' || i, prompt, completions, sources, category, size, needed,
    abs(random() / 9223372036854775808.0), added
FROM n JOIN items ON items.id = 1
"""


@pytest.mark.parametrize("order", ["random", "least", "active"])
def test_the_next_item_of_a_hundred_thousand_is_there_at_once(tmp_path, order):
    with contextlib.closing(make_store(tmp_path / "many.db", next_item=order)) as store:
        with store.write() as db:
            db.execute(COPIES)
        bo = Browser(store)
        spent = []
        for number in range(30):
            begun = time.process_time()
            item = bo.client.get("/api/next").json()["next"]
            spent.append(time.process_time() - begun)
            answer = {**GOOD, "assignment": item["id"], "submission": f"many-{number:06}"}
            bo.client.post("/api/judgments", json=answer, headers={"X-CSRF-Token": bo.csrf})
    assert sorted(spent)[-2] < 0.05  # seconds of this process, the browser's included

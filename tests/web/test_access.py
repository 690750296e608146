"""Who may enter, what a forged request gets, and what every answer carries."""

import os
import re
import socket
import stat
import threading

import pytest
import uvicorn
from starlette.testclient import TestClient

from tests.web.pages import SECRET, make_store
from tether.errors import ConfigError, DataError
from tether.feedback import people
from tether.web import incoming
from tether.web.app import build, serve
from tether.web.incoming import RateLimit, session_secret
from tether.web.server import HEADERS, listen

URL = "http://127.0.0.1:8765"


@pytest.fixture
def store(tmp_path):
    store = make_store(tmp_path / "kitchen.db")
    yield store
    store.close()


def client(store, *, name="", **settings):
    """A browser of its own; without a name everybody needs a link."""
    app = build(store, secret=SECRET, name=name, **settings)
    return TestClient(app, base_url=URL, follow_redirects=False, raise_server_exceptions=False)


def token_in(page):
    return re.search(r'name="csrf" value="([\w-]+)"', page.text)[1]


def joined(browser, store, name="Bo", role="labeler"):
    token = people.invite(store, name, role=role)
    prefix = "/admin/join/" if role == "administrator" else "/join/"
    answer = browser.get(prefix + token)
    assert answer.status_code == 303
    return token


PAGES = ["/", "/item/1", "/api/next", "/api/recent", "/api/item/1", "/admin", "/admin/item/1"]
FORMS = ["/judge", "/leave", "/api/judgments", "/admin/invite", "/admin/revoke", "/admin/retire"]


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_without_a_link_nobody_enters(store, path):
    answer = client(store).get(path)
    assert answer.status_code == 403
    assert "Open the personal link you were given" in answer.text


@pytest.mark.parametrize("path", FORMS)
def test_without_a_link_nothing_can_be_sent(store, path):
    assert client(store).post(path, data={"csrf": "x"}).status_code == 403


def test_a_link_opens_a_session(store):
    browser = client(store)
    joined(browser, store)
    cookie = browser.get("/").request.headers["cookie"]
    assert "Bo" in browser.get("/").text
    assert cookie.startswith("tether-")
    assert people.by_token(store, cookie) is None


def test_the_cookie_is_kept_from_scripts_and_other_sites(store):
    token = people.invite(store, "Bo")
    plain = client(store).get(f"/join/{token}").headers["set-cookie"].lower()
    assert "httponly" in plain
    assert "samesite=lax" in plain
    assert "secure" not in plain
    assert "; secure" in client(store, https=True).get(f"/join/{token}").headers["set-cookie"]


def test_a_tampered_cookie_opens_nothing(store):
    browser = client(store)
    joined(browser, store)
    [(name, value)] = browser.cookies.items()
    browser.cookies.clear()
    browser.cookies.set(name, "f" + value[1:])
    assert browser.get("/").status_code == 403


def test_revocation_works_at_once(store):
    browser = client(store, name="Ann")
    joined(browser, store)
    assert browser.get("/").status_code == 200
    people.revoke(store, "Bo")
    answer = browser.get("/")
    assert answer.status_code == 403  # not taken for Ann, who sits at this machine
    assert "Your link no longer works" in answer.text
    assert browser.get("/api/next").json() == {
        "error": "Your link no longer works; ask for a new one."
    }


def test_a_new_link_ends_what_the_old_one_opened(store):
    old, new = client(store), client(store)
    joined(old, store)
    joined(new, store)
    assert old.get("/").status_code == 403
    assert new.get("/").status_code == 200


def test_an_unknown_link_is_refused_and_guessing_is_slow(store):
    browser = client(store)
    answers = [browser.get(f"/join/guess-{number}") for number in range(11)]
    assert [one.status_code for one in answers] == [403] * 10 + [429]
    assert int(answers[-1].headers["retry-after"]) in range(1, 7)  # one every six seconds
    assert "unknown or was revoked" in answers[0].text


def test_links_are_not_interchangeable(store):
    browser = client(store)
    assert browser.get(f"/admin/join/{people.invite(store, 'Bo')}").status_code == 403
    token = people.invite(store, "Cy", role="administrator")
    assert browser.get(f"/join/{token}").status_code == 403
    assert browser.get(f"/admin/join/{token}").headers["location"] == "/admin"


@pytest.mark.parametrize("path", ["/admin", "/admin/item/1", "/admin/export/x"])
def test_labelers_are_no_administrators(store, path):
    browser = client(store, name="Ann")
    joined(browser, store)
    answer = browser.get(path)
    assert answer.status_code == 403
    assert "for administrators" in answer.text


def test_at_this_machine_no_link_is_needed(store):
    browser = client(store, name="Ann")
    assert "Ann" in browser.get("/").text
    assert browser.get("/admin").status_code == 200


def test_what_a_proxy_forwards_is_not_at_this_machine(store):
    browser = client(store, name="Ann")
    answer = browser.get("/admin", headers={"X-Forwarded-For": "203.0.113.9"})
    assert answer.status_code == 403


def test_leaving_ends_the_session(store):
    browser = client(store)
    joined(browser, store)
    answer = browser.post("/leave", data={"csrf": token_in(browser.get("/"))})
    assert "You have left" in answer.text
    assert browser.get("/").status_code == 403


# --- forged requests ------------------------------------------------------------------------------


def test_a_post_needs_the_token_of_its_session(store):
    browser, other = client(store, name="Ann"), client(store, name="Ann")
    own, foreign = token_in(browser.get("/")), token_in(other.get("/"))
    for sent in ({}, {"csrf": ""}, {"csrf": foreign}, {"csrf": "é"}):
        assert browser.post("/admin/revoke", data={"name": "Ann", **sent}).status_code == 403
    answer = browser.post("/admin/revoke", data={"name": "Ann", "csrf": own})
    assert answer.status_code == 303


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": URL}, 303),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 303),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_a_post_must_come_from_our_page(store, headers, status):
    browser = client(store, name="Ann")
    data = {"csrf": token_in(browser.get("/")), "text": "New."}
    assert browser.post("/admin/instructions", data=data, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8765", 200),
        ("localhost", 200),
        ("[::1]:8765", 200),
        ("LOCALHOST:1", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example:8765", 400),
        ("", 400),
    ],
)
def test_only_known_host_names(store, host, status):
    answer = client(store, name="Ann").get("/", headers={"Host": host})
    assert answer.status_code == status
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


# --- limits ---------------------------------------------------------------------------------------


def test_a_bucket_empties_and_fills(monkeypatch):
    now = 100.0
    monkeypatch.setattr(incoming.time, "monotonic", lambda: now)
    limit = RateLimit(0.5, 3)  # three at once, then one every two seconds
    assert [limit.wait("a") for _ in range(4)] == [0, 0, 0, 2]
    assert limit.wait("b") == 0
    now += 2.0
    assert [limit.wait("a") for _ in range(2)] == [0, 2]
    now += 60.0
    assert [limit.wait("a") for _ in range(4)] == [0, 0, 0, 2]


def test_a_bucket_forgets_visitors(monkeypatch):
    monkeypatch.setattr(incoming, "MAX_KEYS", 5)
    limit = RateLimit(0.01, 2)
    for number in range(50):
        limit.wait(str(number))
    assert len(limit._buckets) <= 5


def test_too_many_requests(store):
    browser = client(store, name="Ann")
    statuses = [browser.get("/api/recent").status_code for _ in range(100)]
    assert statuses[:60] == [200] * 60
    assert 429 in statuses


def test_a_body_has_a_limit(store):
    browser = client(store, name="Ann")
    csrf = token_in(browser.get("/"))
    answer = browser.post("/admin/instructions", data={"csrf": csrf, "text": "x" * 70_000})
    assert answer.status_code == 413
    assert "64 KB" in answer.text


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"[" * 60_000, "application/json", 400),
        (b'{"seconds": NaN}', "application/json", 400),
        (b'{"reason": "\\ud800"}', "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"1" * 5000, "application/json", 400),
        (b"csrf=\xff", "application/x-www-form-urlencoded", 400),
        (b"&".join(b"a=1" for _ in range(300)), "application/x-www-form-urlencoded", 400),
        (b"x", "multipart/form-data; boundary=x", 415),
        (b"x", "text/plain", 415),
    ],
)
def test_bodies_that_cannot_be_read(store, body, kind, status):
    browser = client(store, name="Ann")
    csrf = token_in(browser.get("/"))
    headers = {"Content-Type": kind, "X-CSRF-Token": csrf}
    answer = browser.post("/api/judgments", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/admin", "/nowhere", "/api/item/9", "/static/nothing.js"])
def test_every_answer_has_the_headers(store, path):
    answer = client(store, name="Ann").get(path)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value


def test_static_files_are_kept_by_version(store):
    browser = client(store, name="Ann")
    path = re.search(r'src="(/static/label\.js\?v=\w+)"', browser.get("/").text)[1]
    answer = browser.get(path)
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "immutable" in answer.headers["cache-control"]
    assert browser.get("/static/label.js?v=old").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "label.js%00"])
def test_nothing_outside_the_static_files_is_served(store, name):
    answer = client(store, name="Ann").get(f"/static/{name}")
    assert answer.status_code in (400, 404)


def test_pages_load_nothing_from_elsewhere(store):
    browser = client(store, name="Ann")
    for path in ("/", "/admin", "/nowhere"):
        text = browser.get(path).text
        assert not re.findall(r'(?:src|href|action)="(?!/|#)', text)
        assert " style=" not in text
        assert not re.findall(r"\son\w+=", text)


def test_unexpected_failures_have_a_page(store, monkeypatch):
    monkeypatch.setattr("tether.web.label.recent", lambda *_: 1 / 0)
    answer = client(store, name="Ann").get("/")
    assert answer.status_code == 500
    assert "Something broke" in answer.text
    assert "ZeroDivision" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_only_the_known_methods(store):
    browser = client(store, name="Ann")
    assert browser.get("/judge").status_code == 405
    assert browser.delete("/").status_code == 405


# --- the secret and the start ---------------------------------------------------------------------


def test_the_secret_is_made_once_and_readable_by_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("TETHER_SECRET", raising=False)
    path = tmp_path / "kitchen.db"
    secret = session_secret(path)
    assert len(secret) >= 32
    assert session_secret(path) == secret
    assert stat.S_IMODE(os.stat(f"{path}.key").st_mode) == 0o600
    monkeypatch.setenv("TETHER_SECRET", "another secret of mine")
    assert session_secret(path) == "another secret of mine"


def test_a_short_secret_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TETHER_SECRET", "short")
    with pytest.raises(ConfigError, match="at least 16"):
        session_secret(tmp_path / "kitchen.db")
    monkeypatch.delenv("TETHER_SECRET")
    (tmp_path / "kitchen.db.key").write_text("")
    with pytest.raises(ConfigError, match=r"kitchen\.db\.key: is too short"):
        session_secret(tmp_path / "kitchen.db")


def test_a_port_that_is_taken_is_one_line(store):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port={port} on 127.0.0.1 cannot be used .*--port"):
            serve(store.path, port=port)
    with pytest.raises(ConfigError, match="port=99999"):
        serve(store.path, port=99999)


def test_a_missing_project_is_one_line(tmp_path):
    with pytest.raises(DataError, match="no such project"):
        serve(tmp_path / "nothing.db")


@pytest.mark.parametrize(
    "where", [{"host": "192.0.2.1"}, {"https": True}, {"hosts": ["label.example"]}]
)
def test_others_are_let_in_only_with_an_administrator(store, where):
    with pytest.raises(ConfigError, match="no administrator has been invited"):
        serve(store.path, **where)


def test_an_open_address_needs_names(store):
    people.invite(store, "Cy", role="administrator")
    with pytest.raises(ConfigError, match="needs --hosts"):
        serve(store.path, host="0.0.0.0")


def test_the_server_says_where_it_is_and_logs_no_token(store, capfd, monkeypatch):
    servers, ready = [], threading.Event()

    class Watched(uvicorn.Server):
        def run(self, sockets=None):
            servers.append((self, sockets[0].getsockname()[1]))
            ready.set()
            super().run(sockets)

    monkeypatch.setattr("tether.web.app.uvicorn.Server", Watched)
    token = people.invite(store, "Bo")
    thread = threading.Thread(target=serve, args=(store.path,), kwargs={"port": 0, "name": "Ann"})
    thread.start()
    assert ready.wait(10)
    server, port = servers[0]
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(
            f"GET /join/{token} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: line.recv(4096), b""))
    server.should_exit = True
    thread.join()
    assert answer.startswith(b"HTTP/1.1 303")
    said = "".join(capfd.readouterr())
    assert f"http://127.0.0.1:{port}/admin" in said
    assert "Ctrl-C stops; nothing is lost." in said
    assert token not in said
    assert "GET" not in said

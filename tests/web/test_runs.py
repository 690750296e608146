"""The pages of runs: what they show, and what nobody gets to see."""

import json
import os
import platform
import random
import re
import subprocess
import sys
import time
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.web.pages import make_store
from tests.web.runs import client, finish, make_stage, ppo_row, write_rows
from tether.errors import ConfigError
from tether.web import history, main
from tether.web.main import serve
from tether.web.server import HEADERS

HERE = {"host": platform.node(), "pid": os.getpid(), "time": 1000.0, "step": 0, "total_steps": 50}
RECIPE = """
[[stage]]
kind = "sft"
max_steps = 9

[[stage]]
name = "tune"
kind = "ppo"
steps = 50
"""


def dead_pid():
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def token(page):
    return re.search(r'name="csrf" value="([\w-]+)"', page.text)[1]


# --- states ---------------------------------------------------------------------------------------


def test_an_empty_folder_has_a_page(tmp_path):
    assert "no run in this folder" in client(tmp_path).get("/").text


def test_the_start_page_lists_runs_by_their_state(tmp_path):
    gone = {**HERE, "pid": dead_pid()}
    finish(make_stage(tmp_path / "done"))
    make_stage(tmp_path / "live", rows=[ppo_row(7)], process=HERE)
    make_stage(tmp_path / "crashed", process=gone)
    stopped = make_stage(tmp_path / "deep" / "er" / "halted", rows=[ppo_row(20)], process=gone)
    (stopped / "checkpoints" / "step-000020").mkdir(parents=True)
    (tmp_path / "recipe" / "sft").mkdir(parents=True)
    (tmp_path / "recipe" / "recipe.toml").write_text(RECIPE)
    page = client(tmp_path).get("/").text
    found = re.findall(r'<a href="/run/([^"]+)">[^<]+</a> <span class="state (\w+)"', page)
    assert dict(found) == {
        "done": "finished",
        "live": "running",
        "crashed": "failed",
        "deep/er/halted": "stopped",
        "recipe": "waiting",
    }
    assert "7 of 50 steps" in page


def test_time_left_is_told_by_the_pace_since_the_run_went_on(tmp_path):
    # 10 steps (from 20 to 30) took 40 s; 70 more take 280 s = 4 min 40 s.
    began = {**HERE, "step": 20, "total_steps": 100}
    folder = make_stage(tmp_path / "live", rows=[ppo_row(30)], process=began)
    for name in ("metrics.jsonl", "config.toml"):
        os.utime(folder / name, (1040, 1040))
    page = client(tmp_path).get("/run/live").text
    assert "4 min 40 s left" in page
    assert "15" in re.search(r"([\d.]+) <small>steps a minute", page)[1]  # 10 in 40 s


def test_a_run_of_a_recipe_shows_the_stage_at_work_and_those_to_come(tmp_path):
    finish(make_stage(tmp_path / "run" / "sft", "sft", [{"step": 9, "loss": 0.5}]))
    (tmp_path / "run" / "recipe.toml").write_text(RECIPE)
    browser = client(tmp_path)
    assert "run/sft" in re.search(r'data-running="([^"]+)"', browser.get("/run/run").text)[1]
    assert 'class="waiting" title="ppo, waiting"><span>tune' in browser.get("/run/run").text
    make_stage(tmp_path / "run" / "tune", rows=[ppo_row(3)], process=HERE)
    assert 'data-stage="run/tune"' in browser.get("/run/run").text
    assert 'data-stage="run/sft"' in browser.get("/run/run/sft").text


def test_only_databases_of_the_folder_are_taken_for_projects(tmp_path, monkeypatch):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    for name in (".tether-web.key", "a.db", "one/b.db", "one/metrics.jsonl"):
        (tmp_path / "runs" / name).touch()
    monkeypatch.chdir(tmp_path)
    found = main.workshop(tmp_path / "runs").projects
    assert [path.name for path in found] == ["a.db", "b.db"]


def test_projects_are_listed_and_other_databases_left_alone(tmp_path):
    make_store(tmp_path / "kitchen.db").close()
    other = tmp_path / "other.db"
    other.write_bytes(b"not a project")
    page = client(tmp_path, projects=[tmp_path]).get("/").text
    assert "Kitchen answers" in page
    assert "0 of 10" in page
    assert "tether label" in page
    assert other.read_bytes() == b"not a project"


def test_broken_files_do_not_break_the_page(tmp_path):
    folder = make_stage(tmp_path / "odd")
    lines = [b"{", b'"text"', b"[1, 2]", b'{"step": "x", "score": {}}', b"\xff\xfe", b'{"step": 2']
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines))
    for name in ("samples.jsonl", "events.jsonl", "monitor.jsonl"):
        (folder / name).write_bytes(b"\n".join([*lines, b'{"completion": "c", "prompt": 3}', b""]))
    (folder / "config.toml").write_text("process = 3\nkind = 4\n")
    (folder / "result.json").write_text("[" * 100_000)
    browser = client(tmp_path)
    for address in ("/", "/run/odd", "/api/rows/odd"):
        assert browser.get(address).status_code == 200


def test_samples_stand_beside_the_first_of_the_same_prompt_or_the_reference(tmp_path):
    folder = make_stage(tmp_path / "ppo")
    rows = [
        {"step": 1, "prompt": "p", "completion": "as it was", "score": 0.1},
        {"step": 6, "prompt": "p", "completion": "as it is", "score": 0.2},
        {"step": 6, "prompt": "q", "completion": "another", "reference": "the reference's own"},
    ]
    write_rows(folder / "samples.jsonl", rows)
    page = client(tmp_path).get("/run/ppo").text
    assert page.index("another") < page.index("the reference&#39;s own") < page.index("as it is")
    assert page.index("as it is") < page.index("at step 1") < page.index("as it was")


# --- rows -----------------------------------------------------------------------------------------


def test_a_spike_among_a_hundred_thousand_rows_is_seen_and_the_page_is_there_at_once(tmp_path):
    draw = random.Random(0)
    folder = make_stage(tmp_path / "long")
    with (folder / "metrics.jsonl").open("w") as stream:
        for step in range(1, 100_001):
            row = {"step": step, "loss": draw.random(), "grad_norm": draw.random(), "tokens": 300}
            if step == 61_234:
                row["loss"] = 50.0
            stream.write(json.dumps(row) + "\n")
    browser = client(tmp_path)
    begun = time.process_time()
    assert browser.get("/run/long").status_code == 200
    first = browser.get("/api/rows/long").json()
    assert time.process_time() - begun < 1.0
    assert len(first["series"]["metrics/loss"]["x"]) > 200  # a glance at least
    assert first["series"]["metrics/loss"]["x"][-1] == 100_000
    found = first
    while found["share"] < 1:
        found = browser.get("/api/rows/long").json()
    loss = found["series"]["metrics/loss"]
    assert max(loss["y"]) == 50.0
    assert loss["x"][loss["y"].index(50.0)] == 61_234
    assert len(loss["x"]) <= 2 * history.BUCKETS + 2
    assert (loss["x"][0], loss["x"][-1]) == (1, 100_000)
    assert loss["x"] == sorted(loss["x"])
    begun = time.process_time()
    write_rows(folder / "metrics.jsonl", [{"step": 100_001, "loss": 0.1}])
    again = browser.get("/api/rows/long").json()
    assert again["series"]["metrics/loss"]["x"][-1] == 100_001
    assert time.process_time() - begun < 0.5  # what has been read is not read again


def test_rows_without_a_step_are_numbered_and_gaps_left_out(tmp_path):
    folder = make_stage(tmp_path / "s", rows=[{"step": 3, "a": 1}, {"step": 5, "b": 2, "a": None}])
    series = client(tmp_path).get("/api/rows/s").json()["series"]
    assert series == {"metrics/a": {"x": [3], "y": [1]}, "metrics/b": {"x": [5], "y": [2]}}
    write_rows(folder / "monitor.jsonl", [{"audit": 0.5}, {"audit": 0.25}])
    series = client(tmp_path).get("/api/rows/s").json()["series"]
    assert series["monitor/audit"] == {"x": [1, 2], "y": [0.5, 0.25]}


@given(cuts=st.lists(st.integers(1, 400), max_size=12))
def test_rows_that_arrive_in_pieces_are_read_once_and_whole(tmp_path_factory, cuts):
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    rows = [{"step": step, "text": "ä" * step} for step in range(1, 12)]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.touch()
    at, found, start = history.position(""), [], 0
    for cut in [*cuts, len(data)]:
        with path.open("ab") as stream:
            stream.write(data[start : start + cut])
        start += cut
        new, at = history.rows_after(path, at)
        found += new
    assert found == rows


def test_a_file_that_was_written_anew_or_cut_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_rows(path, [{"step": 1}, {"step": 2}])
    _, at = history.rows_after(path, history.position(""))
    write_rows(tmp_path / "new", [{"step": 1}, {"step": 2}, {"step": 3}])
    held = history.columns(path)
    assert held.look(1.0)[1] == at
    (tmp_path / "new").rename(path)
    assert history.rows_after(path, at) is None
    path.write_text("")
    assert history.rows_after(path, history.end(path)._replace(offset=9)) is None
    assert history.position("7:12") == (7, 12)
    for text in ("x", "7", "-1:2", "7:٣", "9" * 99 + ":1"):
        assert history.position(text) == (0, 0)


# --- asking to stop -------------------------------------------------------------------------------


def test_a_run_is_asked_to_stop_by_a_form_of_the_page_alone(tmp_path):
    folder = make_stage(tmp_path / "live", rows=[ppo_row(7)], process=HERE)
    browser = client(tmp_path)
    form = {"stage": "live", "csrf": token(browser.get("/run/live"))}
    refused = [
        browser.post("/stop", data={"stage": "live"}),
        browser.post("/stop", data=form, headers={"Origin": "http://evil.example"}),
        browser.post("/stop", data=form, headers={"Sec-Fetch-Site": "cross-site"}),
        client(tmp_path).post("/stop", data=form),
    ]
    assert [answer.status_code for answer in refused] == [403] * 4
    assert browser.get("/stop").status_code == 405
    assert not (folder / "stop").exists()
    assert browser.post("/stop", data=form).headers["location"] == "/run/live"
    assert (folder / "stop").exists()
    assert "stopping" in browser.get("/run/live").text


def test_what_does_not_run_cannot_be_stopped(tmp_path):
    folder = make_stage(tmp_path / "live", rows=[ppo_row(7)], process=HERE)
    browser = client(tmp_path)
    csrf = token(browser.get("/run/live"))
    finish(folder)
    for stage, status in (("live", 409), ("", 404), ("..", 404), ("none", 404)):
        answer = browser.post("/stop", data={"stage": stage, "csrf": csrf})
        assert answer.status_code == status
    assert not (folder / "stop").exists()


# --- who may see what -----------------------------------------------------------------------------


def test_only_known_hosts_are_served_and_every_answer_has_the_headers(tmp_path):
    browser = client(tmp_path)
    for address in ("/", "/none", "/static/plotly.js"):
        answer = browser.get(address)
        assert {name: answer.headers[name] for name in HEADERS if name != "Cache-Control"} == {
            name: value for name, value in HEADERS.items() if name != "Cache-Control"
        }
    answer = browser.get("/", headers={"Host": "evil.example"})
    assert answer.status_code == 400
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert browser.get("/", headers={"X-Forwarded-For": "10.0.0.1"}).status_code == 403


def test_from_elsewhere_a_link_is_needed(tmp_path):
    make_stage(tmp_path / "ppo")
    browser = client(tmp_path, token="the token of the link")
    for address in ("/", "/run/ppo", "/api/rows/ppo", "/api/follow/ppo", "/report/ppo", "/run/no"):
        assert browser.get(address).status_code == 403
    assert browser.get("/join/another").status_code == 403
    assert browser.get("/join/" + quote("tökén")).status_code == 403
    assert browser.get("/join/the token of the link").status_code == 303
    assert browser.get("/run/ppo").status_code == 200
    other = client(tmp_path, token="a new link")
    other.cookies = browser.cookies
    assert other.get("/").status_code == 403
    for _ in range(12):
        last = other.get("/join/guess")
    assert last.status_code == 429


def test_the_server_asks_for_names_and_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="needs --hosts"):
        serve(tmp_path, host="0.0.0.0")
    with pytest.raises(ConfigError, match="is not a folder"):
        serve(tmp_path / "none")


def test_a_report_runs_its_scripts_as_nobody(tmp_path):
    folder = tmp_path / "run"
    make_stage(folder)
    (folder / "report.html").write_text("<script>fetch('/')</script>")
    answer = client(tmp_path).get("/report/run")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'")
    assert "same-origin" not in policy
    assert "connect" not in policy


@pytest.fixture
def secretive(tmp_path):
    """Runs beside a folder that is none, with links that lead there."""
    outside, inside = tmp_path / "outside", tmp_path / "runs"
    secret = {"step": 1, "completion": "the secret", "prompt": "the secret"}
    write_rows(outside / "samples.jsonl", [secret])
    make_stage(outside, rows=[{"step": 1, "secret": 42.5}], note="the secret")
    (outside / "report.html").write_text("the secret")
    folder = make_stage(inside / "ppo", rows=[ppo_row(1)], process=HERE)
    (inside / "linked").symlink_to(outside)
    (inside / "loop").symlink_to(inside / "loop")
    for name in ("samples.jsonl", "report.html"):
        (folder / name).symlink_to(outside / name)
    return inside


PAGES = ("/run/", "/report/", "/api/rows/", "/api/follow/")
OUTSIDE = [
    *("../outside", "%2e%2e", "%2e%2e/outside", "..%2foutside", "ppo/../../outside", "linked"),
    *("linked/", "ppo/%2e%2e/%2e%2e/outside", "%2e%2e%2foutside", "loop", "%00", "ppo%00", ""),
    *("/etc", "%2fetc", "a" * 5000, ".", "..\\outside", "....//outside", "%252e%252e/outside"),
]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", OUTSIDE)
def test_no_path_leads_out_of_the_runs(secretive, page, name):
    answer = client(secretive).get(page + name)
    assert answer.status_code in (404, 403)
    assert "the secret" not in answer.text


def test_files_that_lead_elsewhere_are_as_missing(secretive):
    browser = client(secretive)
    assert browser.get("/report/ppo").status_code == 404
    assert "the secret" not in browser.get("/run/ppo").text
    assert "the secret" not in browser.get("/").text
    assert "linked" not in browser.get("/").text


WORD = st.text(max_size=12) | st.sampled_from(
    ["../..", "%2e%2e/", "\0", "ppo", "linked", "ppo/../../outside", "9" * 30, "/etc/passwd"]
)
FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
ROUTES = sorted({route.path for route in main.ROUTES if "follow" not in route.path})


@FUZZ
@given(path=st.sampled_from(ROUTES), word=WORD, query=st.dictionaries(WORD, WORD, max_size=2))
def test_any_address(secretive, path, word, query):
    browser = client(secretive)
    address = re.sub(r"\{[^}]*\}", quote(word, safe=""), path)
    answer = browser.get(address, params={**query, "with": word})
    assert answer.status_code < 500, answer.text
    assert "the secret" not in answer.text
    assert "root:" not in answer.text


@FUZZ
@given(fields=st.dictionaries(st.sampled_from(["stage", "csrf"]) | WORD, WORD, max_size=4))
def test_any_form(secretive, fields):
    browser = client(secretive)
    csrf = token(browser.get("/run/ppo"))
    answer = browser.post("/stop", data={"csrf": csrf, **fields})
    assert answer.status_code < 500, answer.text
    assert not (secretive.parent / "outside" / "stop").exists()

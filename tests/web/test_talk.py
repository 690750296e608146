"""The chat and compare pages without a browser: what is answered, stored and refused."""

import json
import re
import threading
import time

import pytest
from starlette.testclient import TestClient

from tests.web.pages import SECRET
from tests.web.talking import Actor, Coloured, make_runs
from tether.data.formats import read_comparisons, read_thumbs
from tether.errors import ConfigError
from tether.feedback.store import Store
from tether.web import main
from tether.web.compare import draw, stored_prompts
from tether.web.main import build, workshop
from tether.web.server import LOOPBACK

URL = "http://127.0.0.1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("runs"))


class Visitor:
    """A browser without scripts, and with them: forms and JSON, with the page's token."""

    def __init__(self, folder, actors=None, token=""):
        self.site = workshop(folder, [], token)
        if actors:
            self.site.voices._load = lambda name, path, reference: actors[name]
        app = build(self.site, secret=SECRET, hosts=LOOPBACK)
        self.http = TestClient(app, base_url=URL, follow_redirects=False)
        if token:
            self.http.get(f"/join/{token}")
        self.page = self.http.get("/compare").text
        self.csrf = re.search(r'data-csrf="([^"]+)"', self.page)[1]

    def form(self, path, **fields):
        return self.http.post(path, data={"csrf": self.csrf, **fields})

    def send(self, path, **fields):
        return self.http.post(path, json=fields, headers={"X-CSRF-Token": self.csrf})

    def events(self, path, **fields):
        answer = self.send(path, **fields)
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines() if line]

    def chat(self, text="Hi", model="talk/sft", **fields):
        messages = [*fields.pop("messages", []), {"role": "user", "content": text}]
        return self.events("/api/chat", model=model, messages=messages, **fields)


@pytest.fixture
def actors():
    return {
        "demo/ppo": Actor("demo/ppo", ["mix flour and water"], chats=False),
        "demo/sft": Actor("demo/sft", ["no"], chats=False),
        "talk/sft": Coloured("talk/sft", ["Hello there, friend"]),
    }


@pytest.fixture
def visitor(tmp_path, actors):
    for name in actors:
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        facts = {"architectures": ["LlamaForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(facts))
    one = Visitor(tmp_path, actors)
    yield one
    one.site.voices.close()


def text_of(events):
    return "".join(event.get("text", "") for event in events)


BOTH = {"model:demo/ppo": "1", "model:demo/sft": "1"}
PAIR = ["demo/ppo", "demo/sft"]


# --- which models ---------------------------------------------------------------------------------


def test_only_language_models_below_the_runs(tmp_path):
    runs = make_runs(tmp_path / "runs")
    (runs / "broken" / "model").mkdir(parents=True)
    (runs / "broken" / "model" / "config.json").write_text("[1")
    elsewhere = tmp_path / "elsewhere"
    (runs / "demo" / "ppo" / "model").rename(elsewhere)
    (runs / "demo" / "ppo" / "model").symlink_to(elsewhere)
    step = runs / "demo" / "sft" / "models" / "step-000020"
    step.mkdir(parents=True)
    (step / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    found = workshop(runs).voices.found()
    assert list(found) == ["demo/sft", "demo/sft/step-000020", "talk/sft"]
    assert found["demo/sft/step-000020"] == str(step)


@pytest.mark.parametrize("name", ["../demo/sft", "/etc", "demo/reward", "demo/sft/model", ""])
def test_no_other_path_can_be_asked(visitor, name):
    messages = [{"role": "user", "content": "Hi"}]
    answer = visitor.send("/api/chat", model=name, messages=messages)
    assert answer.status_code == 404
    fields = {"model": "talk/sft", "reference": name or "x", "messages": messages}
    assert visitor.send("/api/chat", **fields).status_code == 404


def test_few_models_stay_in_memory(tmp_path):
    loaded = []
    site = workshop(make_runs(tmp_path))
    paths = {path: name for name, path in site.voices.found().items()} | {"": ""}

    def load(name, path, reference):
        assert paths[path] == name
        loaded.append((name, paths[reference]))
        return Actor(name, [""])

    site.voices._load = load
    plan = [("demo/sft", ""), ("demo/ppo", ""), ("demo/sft", ""), ("talk/sft", "demo/sft")]
    plan += [("demo/sft", "demo/ppo"), ("demo/sft", ""), ("demo/ppo", "")]
    for name, reference in plan:
        site.voices.voice(name, reference)
    # Three at most: demo/ppo, asked longest ago, goes for the fifth, talk/sft for the seventh.
    assert loaded == [plan[0], plan[1], plan[3], plan[4], plan[6]]
    assert len(site.voices._loaded) == 3


# --- chat -----------------------------------------------------------------------------------------


def test_an_answer_streams_with_its_differences(visitor, actors):
    events = visitor.chat(temperature="0.7", max_new_tokens="30", system="Be kind")
    assert [*events[0]] == ["start", "chats", "takes_system"]
    assert [event["text"] for event in events[1:4]] == ["Hello", " there,", " friend"]
    assert events[4] == {"differences": [[-2.0, -2], [-1.5, -2], [-1.0, -1]]}
    assert events[5] == {"end": True}
    [(prompt, settings)] = actors["talk/sft"].asked
    system = {"role": "system", "content": "Be kind"}
    assert prompt == [system, {"role": "user", "content": "Hi"}]
    assert (settings["temperature"], settings["max_new_tokens"]) == (0.7, 30)


def test_a_model_without_a_template_gets_the_last_text(visitor, actors):
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    visitor.chat("the cat", model="demo/sft", messages=before, system="Be kind")
    assert actors["demo/sft"].asked[0][0] == "the cat"


def test_thumbs_judge_what_this_server_said(visitor, tmp_path):
    job = visitor.chat()[0]["start"]
    for up, number in ((True, "number-1"), (False, "number-2"), (False, "number-2")):
        fields = {"job": job, "up": up, "submission": number, "text": "something else"}
        assert visitor.send("/api/chat/thumb", **fields).json() == {"saved": up}
    [thumb] = read_thumbs(tmp_path / "chat.db")
    assert (thumb.completion, thumb.label) == ("Hello there, friend", False)
    assert thumb.prompt == [{"role": "user", "content": "Hi"}]
    [item] = Store(tmp_path / "chat.db").items().values()
    assert item.sources == ["talk/sft"]
    for wrong in ({"job": "x", "up": True}, {"job": job, "up": 1}, {"job": [job], "up": True}):
        answer = visitor.send("/api/chat/thumb", submission="number-3", **wrong)
        assert answer.status_code in (400, 404)


def test_a_stopped_answer_keeps_what_was_said(visitor, actors, tmp_path):
    actor = actors["talk/sft"]
    actor.may_go_on.clear()
    found = []
    thread = threading.Thread(target=lambda: found.append(visitor.chat()))
    thread.start()
    assert actor.began.wait(10)
    [job] = list(visitor.site.voices._jobs)
    assert visitor.send("/api/stop", job=job).json() == {"stopped": True}
    actor.may_go_on.set()
    thread.join()
    assert text_of(found[0]) == "Hello"
    assert visitor.send("/api/chat/thumb", job=job, up=True, submission="number-1").is_success
    assert read_thumbs(tmp_path / "chat.db")[0].completion == "Hello"


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": "0"},
        {"temperature": "nan"},
        {"temperature": [1]},
        {"max_new_tokens": "1e9"},
        {"messages": "Hi"},
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "Hi"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
        {"system": 5},
        {"model": ["talk/sft"]},
    ],
)
def test_what_cannot_be_asked(visitor, fields):
    messages = [{"role": "user", "content": "Hi"}]
    asked = {"model": "talk/sft", "messages": messages, **fields}
    answer = visitor.send("/api/chat", **asked)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_forged_requests_are_refused(visitor):
    for path in (
        "/api/chat",
        "/api/compare",
        "/api/compare/choose",
        "/api/chat/thumb",
        "/api/stop",
    ):
        assert visitor.http.post(path, json={}).status_code == 403
        headers = {"X-CSRF-Token": visitor.csrf, "Origin": "http://elsewhere.example"}
        assert visitor.http.post(path, json={}, headers=headers).status_code == 403
    assert visitor.http.post("/compare", data=BOTH).status_code == 403


def test_a_model_that_breaks_says_so(visitor, actors, caplog):
    actors["talk/sft"].answer = lambda prompt, **settings: 1 / 0
    [*_, last] = visitor.chat()
    assert "terminal of the server" in last["error"]
    assert "ZeroDivisionError" in caplog.text
    assert text_of(visitor.chat("again", model="demo/sft")) == "no"  # the next is answered


def test_too_many_questions_at_once(visitor, actors):
    actors["talk/sft"].may_go_on.clear()
    threads = [threading.Thread(target=visitor.chat) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(500):
        if len(visitor.site.voices._jobs) == 8:
            break
        time.sleep(0.01)
    messages = [{"role": "user", "content": "Hi"}]
    answer = visitor.send("/api/chat", model="talk/sft", messages=messages)
    assert answer.status_code == 429
    actors["talk/sft"].may_go_on.set()
    for thread in threads:
        thread.join()


# --- compare --------------------------------------------------------------------------------------


def test_a_round_without_scripts(visitor, tmp_path):
    page = visitor.form("/compare", prompt="How do I bake?", **BOTH).text
    answers = re.search(r'<div class="cards">.*</div>', page, re.DOTALL)[0]
    assert "mix flour and water" in answers
    assert "demo/" not in answers
    number = re.search(r'name="round" value="([^"]+)"', page)[1]
    left = "demo/ppo" if answers.index("mix flour") < answers.index(">no<") else "demo/sft"
    chosen = visitor.form("/compare/choose", round=number, choice="a", **BOTH).text
    assert f"A was {left}" in chosen
    [pair] = read_comparisons(tmp_path / "compare.db")
    texts = {"demo/ppo": "mix flour and water", "demo/sft": "no"}
    assert pair.prompt == "How do I bake?"
    assert pair.chosen == texts.pop(left)
    assert [pair.rejected] == list(texts.values())
    assert "1 </td>" in chosen or ">1<" in chosen  # the ratings count it


def test_sides_are_drawn_by_the_stored_seed(visitor, tmp_path):
    for _ in range(4):
        number = visitor.events("/api/compare", prompt="p", models=PAIR)[0]["start"]
        told = visitor.send("/api/compare/choose", round=number, choice="tie").json()
        store = Store(tmp_path / "compare.db")
        row = store.read().execute("SELECT submission FROM judgments ORDER BY id DESC").fetchone()
        assert (told["names"]["a"], told["names"]["b"]) == draw(
            store.project.seed, row["submission"], PAIR
        )
    firsts = [draw(0, str(number), PAIR)[0] for number in range(400)]
    assert 160 < firsts.count("demo/ppo") < 240
    three = {draw(0, str(number), ["x", "y", "z"]) for number in range(200)}
    assert len(three) == 6


def test_nothing_tells_the_names_before_the_choice(visitor):
    answer = visitor.send("/api/compare", prompt="p", models=PAIR)
    assert "demo" not in answer.text
    events = [json.loads(line) for line in answer.text.splitlines() if line]
    assert events[-1] == {"end": True, "same": False}
    assert {event["side"] for event in events if "side" in event} == {"a", "b"}


def test_both_bad_are_fails(visitor, tmp_path):
    number = visitor.events("/api/compare", prompt="p", models=PAIR)[0]["start"]
    told = visitor.send("/api/compare/choose", round=number, choice="fail").json()
    assert told["ratings"] == []
    assert Store(tmp_path / "compare.db").judgments()[0].ranks == [None, None]


def test_the_first_choice_of_a_round_stands(visitor, tmp_path):
    number = visitor.events("/api/compare", prompt="p", models=PAIR)[0]["start"]
    for choice in ("a", "b"):
        visitor.send("/api/compare/choose", round=number, choice=choice)
    [said] = Store(tmp_path / "compare.db").judgments()
    assert said.ranks[said.shown[0]] == 1


def test_equal_answers_cannot_be_told_apart(visitor, actors):
    actors["demo/ppo"].texts = ["no"]
    events = visitor.events("/api/compare", prompt="p", models=PAIR)
    assert events[-1] == {"end": True, "same": True}
    choose = {"round": events[0]["start"]}
    refused = visitor.send("/api/compare/choose", choice="a", **choose)
    assert (refused.status_code, "neither is better" in refused.text) == (400, True)
    assert visitor.send("/api/compare/choose", choice="tie", **choose).is_success


def test_models_that_chat_are_given_messages(visitor, actors):
    actors["demo/ppo"].chats = actors["demo/sft"].chats = True
    visitor.events("/api/compare", prompt="p", models=PAIR)
    assert actors["demo/ppo"].asked[0][0] == [{"role": "user", "content": "p"}]
    mixed = ["demo/ppo", "talk/sft"]
    actors["demo/ppo"].chats = False
    visitor.events("/api/compare", prompt="q", models=mixed)
    assert actors["demo/ppo"].asked[-1][0] == "q"
    assert actors["talk/sft"].asked[-1][0] == [{"role": "user", "content": "q"}]


def test_a_stored_prompt_is_drawn(visitor, actors, tmp_path):
    rows = [{"prompt": "stored one"}, {"prompt": 5}, {"prompt": " "}, ["x"], {"prompt": "other"}]
    lines = "\n".join(map(json.dumps, rows)) + '\n{"prompt": "cut'
    (tmp_path / "demo" / "ppo" / "samples.jsonl").write_text(lines)
    (tmp_path / "talk" / "sft" / "samples.jsonl").write_text('{"prompt": "of another run"}')
    assert stored_prompts(tmp_path, PAIR) == ["stored one", "other"]
    events = visitor.events("/api/compare", prompt="", models=PAIR)
    assert events[0]["prompt"] in ("stored one", "other")


def test_what_cannot_be_compared(visitor):
    for fields in (
        {"prompt": "p", "models": ["demo/ppo"]},
        {"prompt": "p", "models": ["demo/ppo", "../secret"]},
        {"prompt": "", "models": PAIR},
        {"prompt": 5, "models": PAIR},
        {"prompt": "p", "models": PAIR, "temperature": "-1"},
    ):
        answer = visitor.send("/api/compare", **fields)
        assert (answer.status_code, bool(answer.json()["error"])) == (400, True)
    assert "at least two" in visitor.form("/compare", prompt="p").text
    assert visitor.send("/api/compare/choose", round="x", choice="a").status_code == 404
    number = visitor.events("/api/compare", prompt="p", models=PAIR)[0]["start"]
    for choice in ("c", None, ["a"]):
        answer = visitor.send("/api/compare/choose", round=number, choice=choice)
        assert answer.status_code == 400


def test_markup_stays_text(visitor, actors):
    actors["demo/sft"].texts = ['<img src=x onerror="alert(1)">']
    page = visitor.form("/compare", prompt="<b>p</b>", **BOTH).text
    assert "<img" not in page
    assert "&lt;img" in page
    assert "<b>p" not in page


def test_visitors_by_link_are_labelers_of_their_own(tmp_path, actors):
    for name in actors:
        (tmp_path / name / "model").mkdir(parents=True)
        facts = '{"architectures": ["LlamaForCausalLM"]}'
        (tmp_path / name / "model" / "config.json").write_text(facts)
    for _ in range(2):
        one = Visitor(tmp_path, actors, token="a-token-of-the-link")
        for _ in range(2):
            number = one.events("/api/compare", prompt="p", models=PAIR)[0]["start"]
            one.send("/api/compare/choose", round=number, choice="a")
    labelers = {said.labeler for said in Store(tmp_path / "compare.db").judgments()}
    assert len(labelers) == 2
    assert all(name.startswith("visitor ") for name in labelers)


# --- with models ----------------------------------------------------------------------------------


def test_real_models_answer(runs):
    visitor = Visitor(runs)
    events = visitor.chat("the cat", model="demo/ppo", reference="demo/sft", max_new_tokens="12")
    pieces = [event for event in events if "text" in event]
    [differences] = [event["differences"] for event in events if "differences" in event]
    assert len(differences) == len(pieces)
    assert events[-1] == {"end": True}
    again = visitor.events("/api/compare", prompt="the cat", models=PAIR, max_new_tokens="12")
    assert again[-1]["end"]
    wrong = visitor.chat("the cat " * 400, model="demo/ppo")
    assert "512 positions" in wrong[-1]["error"]
    visitor.site.voices.close()


def test_models_named_on_the_command_line_stand_beside_those_of_the_runs(tmp_path):
    site = main.workshop(tmp_path, models=("before=owner/name", "after=some/dir"))
    assert site.voices.found() == {"after": "some/dir", "before": "owner/name"}
    for word in ("some/dir", "=some/dir", "before="):
        with pytest.raises(ConfigError, match="must be NAME=DIR"):
            main.workshop(tmp_path, models=(word,))

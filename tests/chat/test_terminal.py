"""Sessions of `tether chat`, typed line by line; ^C stands for Ctrl-C while reading a line."""

import io
import json

import pytest
from rich.console import Console

from tests.chat.voices import save_chat
from tests.tiny import save_tiny
from tether.chat import terminal
from tether.chat.voice import Voice
from tether.data.formats import read_demonstrations, read_thumbs
from tether.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "chat": str(save_chat(root / "chat" / "model")),
        "reference": str(save_chat(root / "reference", seed=4)),
        "plain": str(save_tiny(root / "plain")),
    }


@pytest.fixture
def talk(folders, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    screen = io.StringIO()

    def console(**settings):
        return Console(file=screen, width=100, **settings)

    monkeypatch.setattr(terminal, "Console", console)

    def run(model, lines, **settings):
        waiting = iter(lines)

        def read(_):
            line = next(waiting, None)
            if line is None:
                raise EOFError
            if line == "^C":
                raise KeyboardInterrupt
            return line

        monkeypatch.setattr("builtins.input", read)
        screen.seek(0)
        screen.truncate()
        terminal.chat(folders[model], device="cpu", max_new_tokens=8, **settings)
        return screen.getvalue()

    return run


def prompts(monkeypatch):
    """What the model is asked, in order."""
    asked, answer = [], Voice.answer

    def spy(self, prompt, **settings):
        asked.append((prompt, settings["temperature"], settings["seed"]))
        return answer(self, prompt, **settings)

    monkeypatch.setattr(Voice, "answer", spy)
    return asked


def test_a_chat_keeps_what_was_said(talk, monkeypatch):
    asked = prompts(monkeypatch)
    talk("chat", ["Hello", "And \\", "then?", "/new", "//slash"], system="Be brief")
    system = {"role": "system", "content": "Be brief"}
    hello = {"role": "user", "content": "Hello"}
    assert asked[0][0] == [system, hello]
    assert [one["role"] for one in asked[1][0]] == ["system", "user", "assistant", "user"]
    assert asked[1][0][-1]["content"] == "And \nthen?"
    assert asked[2][0] == [system, {"role": "user", "content": "/slash"}]


def test_without_a_template_each_text_stands_alone(talk, monkeypatch):
    asked = prompts(monkeypatch)
    shown = talk("plain", ["the cat", "the dog", "/system Be brief"])
    assert [one[0] for one in asked] == ["the cat", "the dog"]
    assert "continues each text by itself" in shown
    assert "needs a chat template" in shown


def test_regenerate_and_temperature(talk, monkeypatch):
    asked = prompts(monkeypatch)
    shown = talk("chat", ["/regenerate", "Hi", "/temperature 0.5", "/regenerate", "/temperature x"])
    assert "there is no answer yet" in shown
    assert "must be a number above 0" in shown
    assert asked[0][0] == asked[1][0]
    assert [one[1] for one in asked] == [1.0, 0.5]
    assert asked[0][2] != asked[1][2]


def test_ctrl_c_stops_the_answer_and_not_the_program(talk, monkeypatch):
    answer = Voice.answer

    def interrupted(self, prompt, **settings):
        pieces = answer(self, prompt, **settings)
        yield next(pieces)
        yield next(pieces)
        raise KeyboardInterrupt

    monkeypatch.setattr(Voice, "answer", interrupted)
    shown = talk("chat", ["Hello", "^C", "/save a.jsonl", "Again"])
    assert shown.count("stopped") == 2
    assert "/quit or Ctrl-D leaves" in shown
    [record] = read_demonstrations("a.jsonl")
    assert record.prompt == [{"role": "user", "content": "Hello"}]
    assert 0 < len(record.completion) < 10


def test_thumbs_go_into_a_project(talk, folders, tmp_path):
    lines = ["Hello", "/up", "/regenerate", "/up", "/down", "/quit", "never said"]
    shown = talk("chat", lines, project="chat.db")
    assert shown.count("saved") == 3
    up, down = read_thumbs("chat.db")
    assert (up.label, down.label) == (True, False)  # the last word on the second answer counts
    assert up.prompt == [{"role": "user", "content": "Hello"}]
    assert "never said" not in shown
    sources = {
        s
        for item in terminal.open_project("chat.db", "thumbs").items().values()
        for s in item.sources
    }
    assert sources == {folders["chat"].removesuffix("/model")}
    assert "start with --project" in talk("chat", ["Hello", "/up"])


def test_differences_are_told_in_numbers(talk, folders):
    shown = talk("chat", ["Hello", "/tokens"], reference=folders["reference"])
    assert "log π − log π_ref" in shown
    rows = [line.split() for line in shown.splitlines() if line.startswith("'")]
    assert len(rows) >= 3
    assert all(row[-1][0] in "+-" for row in rows)
    assert "no reference to compare" in talk("chat", ["Hello", "/tokens"])


def test_colours_on_a_terminal(talk, folders, monkeypatch):
    make = terminal.Console
    monkeypatch.setattr(
        terminal, "Console", lambda **s: make(force_terminal=True, color_system="truecolor", **s)
    )
    shown = talk("chat", ["Hello"], reference=folders["reference"])
    assert "\x1b[38;2;16;20;20;48;2;" in shown.split("Hello")[-1]


def test_saving_overwrites_nothing(talk, tmp_path):
    (tmp_path / "a.jsonl").write_text("mine")
    assert "must name a new file" in talk("chat", ["Hi", "/save a.jsonl", "/save b.txt"])
    assert (tmp_path / "a.jsonl").read_text() == "mine"
    assert "1 answers in c.jsonl" in talk("chat", ["Hi", "/save c.jsonl", "/nonsense"])
    assert json.loads((tmp_path / "c.jsonl").read_text())["prompt"][0]["content"] == "Hi"


def test_refusals_before_anything_is_loaded(talk, tmp_path):
    with pytest.raises(ConfigError, match=r"sampling\.temperature"):
        talk("chat", [], temperature=0.0)
    with pytest.raises(DataError, match=r"ends in \.db"):
        talk("chat", [], project="chat.sqlite")
    with pytest.raises(ConfigError, match="needs a chat template"):
        talk("plain", [], system="Be brief")

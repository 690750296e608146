"""The commands of a feedback project as typed: what they print, and what they refuse."""

import json
import os
import sys

import pytest

from tether.cli import main
from tether.feedback.people import by_token
from tether.feedback.store import Store

from .test_assignment import judge, people

ROWS = [{"prompt": f"p{i}", "completions": ["a", "b", "c"], "finished": [True] * 3} for i in (1, 2)]


@pytest.fixture
def tether(tmp_path, monkeypatch, capsys):
    """Run a command in a folder of its own; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, ROWS)))

    def call(command):
        monkeypatch.setattr(sys, "argv", ["tether", *command.split()])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def test_from_completions_to_training_data(tether, tmp_path):
    code, out, err = tether("feedback import p.db --data data.jsonl --num-labelers 2 --seed 3")
    assert (code, out) == (0, "next  tether label p.db\n")
    assert "2 items" in err
    store = Store(tmp_path / "p.db")
    for person in people(store, 2):
        assert judge(store, person)
        assert judge(store, person)
    code, out, _ = tether("feedback agreement p.db")
    assert code == 0
    assert "4 rankings on 2 items" in out
    code, out, _ = tether("feedback export p.db --to pairs --out pairs.jsonl")
    assert (code, out) == (0, "next  tether reward --model DIR --data pairs.jsonl --out DIR\n")
    assert (tmp_path / "pairs.jsonl").exists()


def test_completions_come_through_a_pipe(tether, tmp_path, monkeypatch):
    read, write = os.pipe()
    os.write(write, json.dumps(ROWS[0]).encode())
    os.close(write)
    (tmp_path / "i.md").write_text("*Kindly.*")
    with os.fdopen(read) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        code, _, err = tether("feedback import p.db --instructions i.md")
    assert (code, "1 items" in err) == (0, True)
    assert Store(tmp_path / "p.db").instructions() == (1, "*Kindly.*")


def test_nothing_to_import_is_refused(tether, tmp_path, monkeypatch):
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        code, _, err = tether("feedback import p.db")
    assert code == 2
    assert "holds no record" in err
    assert not (tmp_path / "p.db").exists()


def test_an_invitation_is_printed_once_and_can_be_revoked(tether, tmp_path):
    tether("feedback import p.db --data data.jsonl")
    code, out, _ = tether("feedback invite p.db ann --group cooks --url https://x.org/")
    assert code == 0
    token = out.split("https://x.org/join/")[1].strip()
    store = Store(tmp_path / "p.db")
    assert (by_token(store, token).name, by_token(store, token).group) == ("ann", "cooks")
    _, out, _ = tether("feedback invite p.db boss --administrator")
    assert "http://127.0.0.1:8765/admin/join/" in out
    assert tether("feedback revoke p.db ann")[0] == 0
    assert by_token(store, token) is None
    code, _, err = tether("feedback revoke p.db bob")
    assert (code, "name='bob' is nobody" in err) == (2, True)


def test_scores_steer_active_choice(tether, tmp_path):
    tether("feedback import p.db --data data.jsonl --next-item active")
    scores = {**ROWS[0], "scores": [3.0, 0.0, -3.0]}
    (tmp_path / "scores.jsonl").write_text(json.dumps(scores))
    code, out, _ = tether("feedback scores p.db --data scores.jsonl")
    assert (code, out) == (0, "1 items scored, 1 without a score\n")
    rows = Store(tmp_path / "p.db").read().execute("SELECT uncertainty FROM items ORDER BY id")
    assert [row[0] < 0.5 for row in rows] == [True, False]


@pytest.mark.parametrize(
    "command",
    [
        "agreement p.db",
        "winrate p.db",
        "export p.db --to pairs --out x",
        "invite p.db ann",
        "scores p.db --data x",
    ],
)
def test_a_project_that_is_not_there(tether, tmp_path, command):
    code, out, err = tether(f"feedback {command}")
    assert (code, out) == (2, "")
    assert "p.db: no such project; make one with `tether feedback import" in err
    assert not (tmp_path / "p.db").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("import", ["PROJECT.db", "--data", "--gold", "standard input", "Several files"]),
        ("export", ["--to", "openai", "--test-share", "never of the pairs"]),
        ("invite", ["personal link", "--administrator", "--group"]),
        ("revoke", ["judgments stay"]),
        ("agreement", ["PROJECT.db|FILE"]),
        ("scores", ["tether score"]),
        ("winrate", ["PROJECT.db", "pair or rank mode"]),
    ],
)
def test_help_teaches(tether, name, words):
    code, out, _ = tether(f"feedback {name} --help")
    assert code == 0
    text = " ".join(out.replace("│", " ").split())
    for word in words:
        assert word in text

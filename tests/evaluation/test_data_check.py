"""What `tether data check` says of small files; the counts are worked out by hand."""

import re
import sys

import pytest
from rich.console import Console

from tests.models.templates import CHATML, LLAMA3, chat_tokenizer, said
from tests.tiny import save_tiny, word_tokenizer
from tether import cli
from tether.errors import DataError
from tether.evaluation import data_check
from tether.evaluation.data_check import check
from tether.records import write_jsonl


@pytest.fixture
def file(tmp_path):
    def write(*rows, name="data.jsonl"):
        write_jsonl(tmp_path / name, rows)
        return str(tmp_path / name)

    return write


@pytest.fixture
def words(tmp_path):
    """A model whose tokens are words, with 64 positions and no BOS."""
    return str(save_tiny(tmp_path / "words", tokenizer=word_tokenizer()))


@pytest.fixture
def chats(tmp_path):
    """A model with a chat template."""
    return str(save_tiny(tmp_path / "chats", tokenizer=chat_tokenizer(CHATML)))


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def value(out, label):
    [line] = [line for line in out if line.strip().startswith(label)]
    return line.strip().removeprefix(label).strip()


def test_a_chat_is_shown_with_what_is_trained_on(file, chats, capsys):
    turns = [said("user", "why"), said("assistant", "so"), said("user", "who")]
    check(file({"messages": [*turns, said("assistant", "me")]}), model=chats)
    out = "\n".join(lines(capsys))
    assert "1 demonstrations (for sft)" in out
    assert "at most 64 tokens, its own chat template" in out
    assert (
        "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n⟦so<|im_end|>⟧\n"
        "<|im_start|>user\nwho<|im_end|>\n<|im_start|>assistant\n⟦me<|im_end|>⟧"
    ) in out
    check(file({"messages": [*turns, said("assistant", "me")]}), model=chats, turns="last")
    assert "assistant\nso<|im_end|>\n" in "\n".join(lines(capsys))


def test_on_a_terminal_what_is_trained_on_is_coloured(file, words, monkeypatch, capsys):
    console = Console(force_terminal=True, color_system="standard", width=200)
    monkeypatch.setattr(data_check, "results", console)
    check(file({"prompt": "the cat", "completion": " sees \x1b[31m"}), model=words)
    out = capsys.readouterr().out
    assert re.search(r"\x1b\[2mthe cat\x1b\[0m\x1b\[1;32m sees", out)
    assert "⟦" not in out
    assert "\x1b[31m" not in out


def test_pairs_are_counted(file, words, capsys):
    path = file(
        {"prompt": "why ", "chosen": "yes", "rejected": "no no"},
        {"prompt": "why ", "chosen": "yes", "rejected": "no no"},  # a copy
        {"prompt": "who ", "chosen": "a cat", "rejected": "a  cat"},  # the same tokens
        {"prompt": "what ", "chosen": "the dog sees", "rejected": ""},
        {"prompt": "the " * 62, "chosen": "cat dog", "rejected": "cat"},  # 62 + 2 + 1 > 64
    )
    check(path, model=words, rows=1)
    out = lines(capsys)
    assert "record 1: 3 and 4 tokens" in out
    assert out[out.index("record 1: 3 and 4 tokens") + 1 :][:2] == [
        "why⟦ yes <eos>⟧",
        "against  ⟦ no no <eos>⟧",
    ]
    assert value(out, "different prompts") == "4 of 5"
    assert value(out, "copies of earlier records") == "1 (record 2 is record 1)"
    assert value(out, "with an empty completion") == "1 (4)"
    assert value(out, "with a pair of equal tokens") == "1 (3)"
    assert value(out, "too long, left out") == "1 (5)"
    assert value(out, "truncated: oldest turns left out") == "0"
    assert value(out, "pairs in which the longer one won") == "40% of 5"  # the last two
    # prompts of 1, 1, 1, 1, 62 tokens; completions with their end 2 3 2 3 3 3 4 1 3 2
    assert value(out, "prompt").split() == ["1", "1", "1", "1", "1", "62", "62"]
    assert value(out, "completion").split() == ["1", "1", "2", "3", "3", "4", "4"]


def test_long_chats_are_told(file, chats, capsys):
    old = [said("user", "the cat " * 20), said("assistant", "no")]
    new = [said("user", "why"), said("assistant", "so")]
    check(file({"messages": old + new}), model=chats)
    out = lines(capsys)
    assert value(out, "truncated: oldest turns left out") == "1 (1)"
    assert any(re.fullmatch(r"record 1: \d+ tokens, its oldest turns left out", x) for x in out)
    assert "the cat" not in "\n".join(out)


def test_labels_are_counted(file, words, capsys):
    rows = [{"prompt": "why", "completion": str(i), "label": i < 2} for i in range(5)]
    check(file(*rows), model=words, rows=0)
    assert value(lines(capsys), "liked, disliked") == "2, 3"


def test_without_a_model_characters_are_counted(file, capsys):
    check(file({"prompt": "why", "completion": "so it is"}))
    out = lines(capsys)
    assert "lengths in characters" in out
    assert value(out, "completion").split() == ["8"] * 7


def test_prompts_in_both_splits_are_found(file, capsys):
    train = file({"prompt": "Why?", "completion": "a"}, {"prompt": "Who?", "completion": "b"})
    test = file({"prompt": " why? "}, {"prompt": "what?"}, name="test.jsonl")
    check(train, against=test)
    assert (
        f"leakage: 1 of 2 prompts are also in {test}, but for case and spacing (records 1)"
        in "\n".join(lines(capsys))
    )
    texts = file({"text": "One  story"}, name="texts.jsonl")
    check(texts, against=file({"text": "one story"}, name="others.jsonl"))
    assert "leakage: 1 of 1 prompts" in "\n".join(lines(capsys))


def test_what_a_template_refuses_is_told_by_record(file, chats, tmp_path, capsys):
    tokenizer = chat_tokenizer(CHATML)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    )
    tokenizer.save_pretrained(chats)
    good = [said("user", "why"), said("assistant", "so")]
    check(file({"messages": good}, {"messages": [said("system", "be"), *good]}), model=chats)
    out = lines(capsys)
    assert value(out, "that cannot be rendered") == "1 (2)"
    assert any(
        "record 2: the chat template of" in x and "refuses a system message: no" in x for x in out
    )


def test_the_date_is_told(file, tmp_path, capsys):
    model = str(save_tiny(tmp_path / "dated", tokenizer=chat_tokenizer(LLAMA3)))
    check(file({"prompt": [said("user", "why")]}), model=model)
    assert "which is told the date 2024-07-26" in "\n".join(lines(capsys))


def test_another_use_can_be_asked_for(file, words, capsys):
    pair = {"prompt": "why ", "chosen": "yes", "rejected": "no"}
    check(file(pair), model=words, use="demonstrations")
    out = "\n".join(lines(capsys))
    assert "1 demonstrations" in out
    assert "why⟦ yes <eos>⟧" in out
    assert "no" not in out.split("record 1")[1].split("lengths")[0]
    with pytest.raises(DataError, match="no comparison in the fields"):
        check(file({"prompt": "why"}), use="pairs")


def test_it_is_a_command_that_teaches(file, words, monkeypatch, capsys):
    path = file({"prompt": "why ", "completion": "yes"})
    monkeypatch.setattr(sys, "argv", ["tether", "data", "check", path, "--model", words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert "why⟦ yes <eos>⟧" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["tether", "data", "check", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    out = " ".join(capsys.readouterr().out.split())
    assert "Show what a model will see of a data file" in out
    assert "--against" in out

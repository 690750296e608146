import json

import pytest

from tether.config import PrepareConfig
from tether.data.prepare import prepare
from tether.errors import ConfigError, DataError
from tether.records import read_jsonl

FUNCTIONS = """
def split(rows):
    long = [{"prompt": row["q"]} for row in rows if len(row["q"]) > 3]
    return {"long": long, "all": [{"prompt": row["q"], "category": row["kind"]} for row in rows]}

def nothing(rows):
    return {}

def one_empty(rows):
    return {"all": rows, "none": []}

def a_list(rows):
    return rows

def a_generator(rows):
    return {"all": (row for row in rows)}
"""
ROWS = [{"q": "why", "kind": "a"}, {"q": "what for", "kind": "b"}]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTIONS, encoding="utf-8")
    text = "\n".join(map(json.dumps, ROWS))
    (tmp_path / "data.jsonl").write_text(text, encoding="utf-8")

    def make(function, data="data.jsonl"):
        return PrepareConfig(
            data=str(tmp_path / data),
            function=f"{tmp_path}/mine.py:{function}",
            out=str(tmp_path / "out"),
        )

    return make


def rows_of(path):
    return [row for _, row in read_jsonl(path)]


def test_each_named_list_becomes_a_file(config, tmp_path):
    out = prepare(config("split"))
    assert rows_of(out / "long.jsonl") == [{"prompt": "what for"}]
    assert rows_of(out / "all.jsonl") == [
        {"prompt": "why", "category": "a"},
        {"prompt": "what for", "category": "b"},
    ]
    assert json.loads((out / "result.json").read_text())["rows"] == {"long": 1, "all": 2}


def test_any_format_is_read(config, tmp_path):
    (tmp_path / "data.csv").write_text("q,kind\nwhy,a\nwhat for,b\n", encoding="utf-8")
    out = prepare(config("split", "data.csv"))
    assert rows_of(out / "long.jsonl") == [{"prompt": "what for"}]


def test_a_finished_stage_is_skipped_and_a_changed_input_refused(config, tmp_path):
    out = prepare(config("split"))
    (out / "all.jsonl").unlink()
    assert prepare(config("split")) == out
    assert not (out / "all.jsonl").exists()
    (tmp_path / "data.jsonl").write_text('{"q": "who", "kind": "c"}\n')
    with pytest.raises(ConfigError, match=r"data.jsonl' has changed since"):
        prepare(config("split"))


@pytest.mark.parametrize("function", ["nothing", "one_empty", "a_list", "a_generator"])
def test_what_a_function_must_return(config, tmp_path, function):
    rule = rf"mine.py:{function}' must return \{{name: list of dicts\}}, none empty"
    with pytest.raises(DataError, match=rule):
        prepare(config(function))
    assert not (tmp_path / "out").exists()


def test_a_line_that_is_not_json(config, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"q": "why", "kind": "a"}\n{"q": \n')
    with pytest.raises(DataError, match=r"data.jsonl:2: not JSON"):
        prepare(config("split"))
    assert not (tmp_path / "out").exists()


def test_a_function_that_is_not_there(config, tmp_path):
    with pytest.raises(ConfigError, match="has no function 'splitt'"):
        prepare(config("splitt"))
    assert not (tmp_path / "out").exists()

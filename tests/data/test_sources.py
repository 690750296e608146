import gzip
import json
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.data import sources
from tether.data.formats import read_comparisons, read_demonstrations, read_prompts, read_thumbs
from tether.data.sources import count_lines, is_hub_id, read_rows
from tether.errors import ConfigError, DataError
from tether.records import Demonstration, PreferencePair, Prompt, Ranking, Thumb
from tether.sections import ColumnsConfig

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}


@pytest.fixture
def file(tmp_path):
    def write(name, text):
        path = tmp_path / name
        data = text.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def rows_of(path, columns=None):
    return [row for row, _ in read_rows(path, columns)]


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_list_of_objects_is_read_with_its_lines(file, name):
    path = file(name, '[\n  {"prompt": "a"},\n  {"prompt":\n "b"}\n,{"prompt": "c"}]\n')
    assert list(read_rows(path)) == [
        ({"prompt": "a"}, f"{path}:2"),
        ({"prompt": "b"}, f"{path}:3"),
        ({"prompt": "c"}, f"{path}:5"),
    ]


def test_a_json_file_may_hold_a_line_for_each_object(file):
    assert rows_of(file("a.json", '{"prompt": "a"}\n{"prompt": "b"}\n')) == [
        {"prompt": "a"},
        {"prompt": "b"},
    ]


@given(st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=9))), st.integers(1, 12))
def test_a_list_is_read_whatever_is_read_of_it_at_a_time(rows, size):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(rows, indent=1))
        patch.setattr(sources, "CHUNK", size)
        assert rows_of(path) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"prompt": "a"},\n{"prompt": }]', r"a\.json:2: not JSON \(Expecting value"),
        ('[{"prompt": "a"},\n{"prompt": "b"}\n', r"a\.json:3: ends within its list"),
        ('[{"prompt": "a"}, "b"]', r"a\.json:1: 'b' is not a JSON object"),
        ('["\\ud83d"]', "is not a JSON object"),
        ('[{"prompt": "\\ud83d"}]', r"a\.json:1: holds half of a character"),
    ],
)
def test_what_is_wrong_with_a_list_is_told(file, text, message):
    with pytest.raises(DataError, match=message):
        rows_of(file("a.json", text))


# --- tables ---------------------------------------------------------------------------------------


def test_a_table_is_read_cell_by_cell(file):
    path = file(
        "a.csv",
        "prompt,completion,label,weight\n"
        '"Say ""no"", please",No.,true,0.5\n'
        '"two\nlines",7,False,\n',
    )
    assert list(read_thumbs(path)) == [
        Thumb(prompt='Say "no", please', completion="No.", label=True, weight=0.5),
        Thumb(prompt="two\nlines", completion="7", label=False),
    ]
    assert [where for _, where in read_rows(path)] == [f"{path}:2", f"{path}:3"]


def test_cells_may_hold_messages_and_lists(file):
    messages = json.dumps([USER, GOOD]).replace('"', '""')
    path = file("a.csv", f'messages\n"{messages}"\n')
    assert read_demonstrations(path) == [Demonstration(prompt=[USER], completion=[GOOD])]
    path = file("b.tsv", 'prompt\tcompletions\tranks\n[1]\t["a", "b"]\t[2, 1]\n')
    assert read_comparisons(path) == [
        Ranking(prompt="[1]", completions=["a", "b"], ranks=[2.0, 1.0])
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,completion,label\na,b,1\nc\n", r"a\.csv:3: must have 3 cells"),
        ("prompt,completion\na,b,c\n", r"a\.csv:2: must have 2 cells"),
        ('prompt\n"a"b\n', r"a\.csv:2: not a table of cells"),
        ("prompt,prompt\na,b\n", r"a\.csv:1: names a column twice"),
        ("prompt,completion,label\na,b,good\n", r"a\.csv:2: label='good' must be true or false"),
    ],
)
def test_what_is_wrong_with_a_table_is_told(file, text, message):
    with pytest.raises(DataError, match=message):
        list(read_thumbs(file("a.csv", text)))


# --- Parquet and the hub --------------------------------------------------------------------------


def test_parquet_files_of_a_folder_are_read_in_order(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": [USER], "chosen": [GOOD], "rejected": [USER], "margin": None}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    more = [{"prompt": "p", "chosen": "c", "rejected": "r", "margin": 2.0}] * 2
    parquet.write_table(pa.Table.from_pylist(more), tmp_path / "c.parquet")
    found = read_comparisons(tmp_path)
    assert found == [
        PreferencePair(prompt=[USER], chosen=[GOOD], rejected=[USER]),
        *[PreferencePair(prompt="p", chosen="c", rejected="r", margin=2.0)] * 2,
    ]
    places = [where for _, where in read_rows(tmp_path)]
    assert places[1:] == [f"{tmp_path}/c.parquet: row {i}" for i in (1, 2)]
    (tmp_path / "d.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"d\.parquet: cannot be read"):
        read_prompts(tmp_path / "d.parquet")


@pytest.fixture
def hub(monkeypatch):
    asked = []

    def load_dataset(*names, split, streaming):
        asked.append((*names, split))
        assert streaming
        if names[0] == "no/where":
            raise FileNotFoundError("Dataset 'no/where' doesn't exist on the Hub\nor elsewhere")
        return iter([{"question": "a?"}, {"question": "b?"}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("own-er/data.set", ("own-er/data.set", "train")),
        ("o/n:test", ("o/n", "test")),
        ("o/n:main:test", ("o/n", "main", "test")),
    ],
)
def test_data_sets_on_the_hub(hub, name, asked):
    found = read_prompts(name, ColumnsConfig(prompt="question"))
    assert (found, hub) == ([Prompt(prompt="a?"), Prompt(prompt="b?")], [asked])


def test_what_cannot_be_had_from_the_hub_is_told_in_one_line(hub):
    with pytest.raises(DataError, match=r"^no/where: no such file, and as .* exist on the Hub\)$"):
        read_prompts("no/where")
    with pytest.raises(DataError, match=r"o/n: row 1: no prompt in the fields 'question'"):
        read_prompts("o/n")


def test_the_missing_extra_is_named(monkeypatch, tmp_path):
    for name in ("datasets", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    extra = r"needs the extra: pip install 'tether\[datasets\]'"
    with pytest.raises(DataError, match=extra):
        read_prompts("some/thing")
    (tmp_path / "a.parquet").touch()
    with pytest.raises(DataError, match=rf"a\.parquet: a Parquet file {extra}"):
        read_prompts(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "name", ["data/a.jsonl", "data/a.csv.gz", "a/b/c", "name", "./x", "a/b.json"]
)
def test_paths_are_no_hub_ids(name):
    assert not is_hub_id(name)
    with pytest.raises(DataError, match="no such file"):
        read_prompts(name)


def test_what_is_there_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("runs/sft")
    (tmp_path / "runs/sft").mkdir(parents=True)
    assert not is_hub_id("runs/sft")


# --- columns --------------------------------------------------------------------------------------


def test_columns_under_other_names(file):
    path = file(
        "a.jsonl", '{"instruction": "q", "input": "x", "good": "c", "bad": "r", "why": 1}\n'
    )
    columns = ColumnsConfig(prompt="instruction", chosen="good", rejected="bad", margin="why")
    pair = PreferencePair(prompt="q", chosen="c", rejected="r", margin=1.0)
    assert read_comparisons(path, columns) == [pair]


def test_a_table_reads_the_cells_of_a_column_as_our_field(file):
    path = file("a.csv", "q,a,up\n1,2,1\n")
    columns = ColumnsConfig(prompt="q", completion="a", label="up")
    assert read_thumbs(path, columns) == [Thumb(prompt="1", completion="2", label=True)]


def test_a_column_that_is_not_there(file):
    path = file("a.jsonl", '{"question": "q"}\n')
    message = (
        r"a\.jsonl:1: columns\.prompt='kuestion' must be a column .* did you mean 'question'\?"
    )
    with pytest.raises(DataError, match=message):
        read_prompts(path, ColumnsConfig(prompt="kuestion"))


def test_a_column_fills_one_field():
    with pytest.raises(ConfigError, match=r"columns\.chosen='x' is columns\.prompt already"):
        ColumnsConfig(prompt="x", chosen="x")


# --- how many -------------------------------------------------------------------------------------


def test_lines_are_counted_where_that_is_cheap(tmp_path, file):
    path = file("a.jsonl", '{"a": 1}\n{"a": 2}\n')
    assert (count_lines(path), count_lines(tmp_path)) == (2, 2)
    assert count_lines(file("b.jsonl.gz", "{}\n")) == 0
    assert count_lines(tmp_path / "none") == 0

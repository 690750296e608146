import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace as Usage

import pytest

from tether.config import GenerateConfig, RewardConfig, ScoreConfig, SFTConfig
from tether.config_file import read_toml
from tether.errors import ConfigError, DiskError
from tether.feedback.assignment import Answer, next_assignment, submit
from tether.feedback.judgments import Item, item_key
from tether.feedback.people import local_person
from tether.feedback.store import Project, Store
from tether.rundir import StageFolder, fingerprint, write_json, write_text, written_aside
from tether.sections import ComputeConfig, OptimizerConfig, SamplingConfig


@pytest.fixture
def config(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "why"}\n')
    return SFTConfig(
        out=str(tmp_path / "out"),
        model="some/model",
        data=str(tmp_path / "data.jsonl"),
        optimizer=OptimizerConfig(learning_rate=0.5),
    )


def opened(config, kind="sft"):
    return StageFolder(config, kind, [config.model, config.data])


def finished(config):
    folder = opened(config)
    folder.begin()
    folder.finish(loss=1.5)
    return folder


# --- written whole or not at all ------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole(tmp_path):
    with written_aside(tmp_path / "model") as aside:
        (aside / "a").write_text("1")
        (aside / "part").mkdir()
        (aside / "part" / "b").write_text("2")
        assert not (tmp_path / "model").exists()
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "part" / "b").read_text() == "2"


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    for text in ("old", "new"):
        with written_aside(tmp_path / "model") as aside:
            (aside / text).write_text(text)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["new"]


def test_a_failure_leaves_the_old_folder(tmp_path):
    with written_aside(tmp_path / "model") as aside:
        (aside / "old").write_text("old")
    with pytest.raises(OSError, match="full"), written_aside(tmp_path / "model") as aside:
        fail_half_way(aside)
    assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path) == ["model"]
    (tmp_path / ".model.writing").mkdir()  # what a killed process has left is in nobody's way
    (tmp_path / ".model.writing" / "half").write_text("ol")
    with written_aside(tmp_path / "model") as aside:
        assert names(aside) == []


@pytest.mark.parametrize("kept", [[], ["step-000004", "step-000010"]])
def test_a_full_disk_is_told_in_one_line(config, tmp_path, monkeypatch, kept):
    folder = opened(config)
    folder.begin()
    for name in kept:
        (folder.checkpoints / name).mkdir(parents=True)
    monkeypatch.setattr("tether.disk.shutil.disk_usage", lambda path: Usage(free=3 << 19))

    def full(path):
        (path / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    start = "step 10" if kept else "what is there"
    for write, place in (
        (lambda: folder.write_model(full), "model"),
        (lambda: folder.keep_model(3, full), "models/step-000003"),
    ):
        with pytest.raises(DiskError) as error:
            write()
        assert str(error.value) == (
            f"{folder.path / place} cannot be written: no room on the disk (1.5 MiB are free); "
            f"make room and run the same command again, which goes on from {start}"
        )
    assert not [path for path in folder.path.rglob("*") if ".writing" in path.name]


def test_rows_and_small_files_tell_of_a_full_disk_too(config, monkeypatch):
    folder = opened(config)
    folder.begin()
    (folder.path / "samples.jsonl").symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"samples\.jsonl cannot be written: no room on the disk"):
        folder.log({"step": 1}, "samples.jsonl")

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tether.disk._sync", full)
    with pytest.raises(DiskError, match=r"config\.toml cannot be written: no room on the disk"):
        folder.begin()


def test_every_file_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    model, synced = tmp_path / "model", []
    monkeypatch.setattr(
        "tether.disk._sync", lambda path: synced.append((path.name, model.exists()))
    )
    with written_aside(model) as aside:
        (aside / "weights").write_text("1")
    assert synced == [("weights", False), (".model.writing", False), (tmp_path.name, True)]


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    write_text(tmp_path / "deep" / "a.txt", "größe")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "größe"

    def fail(path):
        raise OSError("No space left on device")

    monkeypatch.setattr("tether.disk._sync", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "deep" / "a.txt", "new")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "größe"


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "a.json", {"größe": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"größe": [1, 2.5]}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"loss": math.nan})
    assert "größe" in (tmp_path / "a.json").read_text(encoding="utf-8")


# --- what identifies an input ---------------------------------------------------------------------


def test_a_file_is_known_by_what_it_holds(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("one")
    first = fingerprint(str(file))
    os.utime(file, (1, 1))
    assert fingerprint(str(file)) == first
    file.write_text("two")
    assert fingerprint(str(file)) != first


def test_a_large_file_is_known_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr("tether.rundir.HASH_LIMIT", 4)
    file = tmp_path / "a.jsonl"
    file.write_text("12345")
    os.utime(file, (1, 1))
    first = fingerprint(str(file))
    file.write_text("54321")
    os.utime(file, (1, 1))
    assert fingerprint(str(file)) == first
    os.utime(file, (2, 2))
    assert fingerprint(str(file)) != first


def test_a_folder_is_known_by_its_model_and_record_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    (tmp_path / "config.json").write_text("{}")
    first = fingerprint(str(tmp_path))
    (tmp_path / "README.md").write_text("notes do not count")
    assert fingerprint(str(tmp_path)) == first
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert fingerprint(str(tmp_path)) != first


def test_a_function_is_known_by_its_file_and_a_hub_id_by_its_name(tmp_path):
    file = tmp_path / "gold.py"
    file.write_text("def f(): pass")
    assert fingerprint(f"{file}:f") == fingerprint(str(file))
    assert fingerprint("someone/model") == "someone/model"
    assert fingerprint("package.module:function") == "package.module:function"


# --- a stage's folder -----------------------------------------------------------------------------


def test_opening_only_reads(config, tmp_path):
    assert not opened(config).finished
    assert not (tmp_path / "out").exists()


def test_the_settings_are_written_when_the_work_begins(config, tmp_path):
    opened(config).begin()
    table = read_toml(tmp_path / "out" / "config.toml")
    assert table["kind"] == "sft"
    assert table["optimizer"]["learning_rate"] == 0.5
    assert table["epochs"] == 1.0  # also those that were not given


def test_the_result_comes_last_and_ends_the_stage(config, tmp_path):
    folder = opened(config)
    folder.begin()
    folder.checkpoints.mkdir()
    assert not folder.finished
    assert folder.finish(loss=1.5) == tmp_path / "out"
    assert names(tmp_path / "out") == ["config.toml", "result.json"]  # no checkpoints any more
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["kind"], result["name"], result["loss"]) == ("sft", "out", 1.5)
    assert result["inputs"] == {
        "some/model": "some/model",
        config.data: fingerprint(config.data),
    }
    assert result["seconds"] >= 0
    assert 20 < result["peak_memory_mib"] < 100_000  # this Python with torch, whatever it runs on
    assert opened(config).finished
    assert opened(config).result == result


def test_a_result_that_is_not_json_does_not_end_the_stage(config, tmp_path):
    folder = opened(config)
    folder.begin()
    folder.checkpoints.mkdir()
    with pytest.raises(ValueError, match="Out of range float"):
        folder.finish(loss=math.inf)
    assert not opened(config).finished
    assert folder.checkpoints.exists()


def test_a_model_is_written_whole(config, tmp_path):
    folder = opened(config)
    folder.begin()
    folder.write_model(write_weights)
    with pytest.raises(OSError, match="full"):
        folder.write_model(fail_half_way)
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == b"1"


def write_weights(path):
    (path / "model.safetensors").write_bytes(b"1")


def fail_half_way(path):
    (path / "model.safetensors").write_bytes(b"2")
    raise OSError("full")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 2.0}, r"^epochs=2.0 but .*out was made with 1.0; name another out folder"),
        ({"model": "other/model"}, r"^model='other/model' but .* was made with 'some/model'"),
        ({"seed": 7}, r"^seed=7 but .* was made with 0"),
        (
            {"optimizer": OptimizerConfig(learning_rate=0.5, betas=(0.8, 0.95))},
            r"^optimizer.betas=\[0.8, 0.95\] but .* was made with \[0.9, 0.95\]",
        ),
    ],
)
@pytest.mark.parametrize("done", [True, False])
def test_other_settings_are_refused_with_one_line(config, change, message, done):
    opened(config).begin()
    if done:
        finished(config)
    else:
        (opened(config).checkpoints / "step-000004").mkdir(parents=True)
    with pytest.raises(ConfigError, match=message) as error:
        opened(replace(config, **change))
    assert "\n" not in str(error.value)


def test_a_stage_that_kept_nothing_may_be_tried_with_other_settings(config):
    opened(config).begin()
    again = replace(config, epochs=2.0)
    opened(again).begin()
    assert finished(again)
    with pytest.raises(ConfigError, match=r"was made with 2\.0"):
        opened(config)


def test_where_it_runs_and_lies_does_not_count(config, tmp_path):
    finished(config)
    (tmp_path / "out").rename(tmp_path / "moved")
    elsewhere = replace(
        config, out=str(tmp_path / "moved"), compute=ComputeConfig(device="cpu", threads=3)
    )
    assert opened(elsewhere).finished


def test_another_stages_folder_is_refused(config, tmp_path):
    finished(config)
    other = GenerateConfig(
        out=config.out, model="m", prompts="p", sampling=SamplingConfig(max_new_tokens=3)
    )
    with pytest.raises(ConfigError, match="out' holds another stage; name a new folder"):
        StageFolder(other, "generate", [])


def test_a_foreign_folder_is_refused_and_left_alone(config, tmp_path):
    (tmp_path / "out").mkdir()
    assert not opened(config).finished  # empty: fine
    (tmp_path / "out" / "thesis.doc").write_text("years of work")
    with pytest.raises(ConfigError, match="out' holds other files; name a new or empty folder"):
        opened(config)
    assert names(tmp_path / "out") == ["thesis.doc"]


def test_a_file_in_its_place_is_refused(config, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="out' is a file; name a folder"):
        opened(config)


def test_a_process_killed_at_its_first_file_can_be_repeated(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".config.toml.writing").write_text('kind = "s')
    opened(config).begin()
    assert names(tmp_path / "out") == ["config.toml"]


def test_a_changed_input_is_refused_where_the_stage_is_finished(config, tmp_path):
    finished(config)
    (tmp_path / "data.jsonl").write_text('{"text": "who"}\n')
    with pytest.raises(ConfigError) as error:
        assert opened(config).finished
    assert str(error.value) == (
        f"{config.data!r} has changed since {config.out} was made from it; "
        f"delete {config.out} to make it anew, or name another out folder"
    )


# --- metrics and samples --------------------------------------------------------------------------


def rows(folder, file="metrics.jsonl"):
    text = (folder.path / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def test_rows_are_appended(config):
    folder = opened(config)
    folder.begin()
    folder.log({"step": 1, "loss": 2.5})
    folder.log({"step": 2, "loss": math.nan, "grad_norm": math.inf, "text": "ü"})
    folder.log({"step": 2, "completion": "no"}, "samples.jsonl")
    assert rows(folder) == [
        {"step": 1, "loss": 2.5},
        {"step": 2, "loss": None, "grad_norm": None, "text": "ü"},
    ]
    assert rows(folder, "samples.jsonl") == [{"step": 2, "completion": "no"}]


def test_going_on_drops_what_is_later_than_the_checkpoint(config):
    folder = opened(config)
    folder.begin()
    for step in range(1, 7):
        folder.log({"step": step, "loss": 1 / step})
        folder.log({"step": step, "completion": "no"}, "samples.jsonl")
    again = opened(config)
    again.begin(4)
    assert [row["step"] for row in rows(again)] == [1, 2, 3, 4]
    assert [row["step"] for row in rows(again, "samples.jsonl")] == [1, 2, 3, 4]
    again.log({"step": 5, "loss": 9.0})
    assert [row["step"] for row in rows(again)] == [1, 2, 3, 4, 5]
    opened(config).begin()
    assert rows(again) == []


@pytest.mark.parametrize("lost", [1, 2, 4, 5, 14])
def test_half_a_last_line_is_dropped(config, lost):
    folder = opened(config)
    folder.begin()
    folder.log({"step": 1, "completion": "eins"})
    folder.log({"step": 2, "completion": "zwei é"})  # ... é"}, line feed: 4 lost part é
    file = folder.path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-lost])
    opened(config).begin(2)
    assert rows(folder) == [{"step": 1, "completion": "eins"}]


def test_any_character_may_stand_in_a_sample(config):
    # All of these end a line for str.splitlines, and only "\n" does in a JSONL file.
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh\ni"
    folder = opened(config)
    folder.begin()
    for step in (1, 2, 3):
        folder.log({"step": step, "completion": text}, "samples.jsonl")
    opened(config).begin(2)
    assert rows(folder, "samples.jsonl") == [{"step": s, "completion": text} for s in (1, 2)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells it in /proc")
def test_the_peak_is_that_of_this_process_alone():
    """Not that of the process which started it, here one that held 300 MiB more."""
    code = "from tether.rundir import peak_memory; print(peak_memory())"
    child = f"subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    parent = f"import subprocess, sys; held = b'x' * (300 << 20); {child}"
    alone, beside = (
        int(subprocess.run([sys.executable, "-c", run], capture_output=True, check=True).stdout)
        for run in (code, parent)
    )
    assert 5 < alone < 250
    assert abs(beside - alone) < 50


# --- feedback projects ----------------------------------------------------------------------------


def test_the_fingerprint_of_a_project_is_that_of_its_judgments(tmp_path):
    path = tmp_path / "p.db"
    store = Store.create(path, Project(name="x", repeat_share=0.0))
    items = [
        Item(key=item_key(prompt, ["a", "b"]), prompt=prompt, completions=["a", "b"], sources=[])
        for prompt in "pqr"
    ]
    store.add_items(items[:2])
    empty = fingerprint(str(path))
    ann = local_person(store, "ann").id
    given = next_assignment(store, ann)
    assert given is not None
    assert fingerprint(str(path)) == empty  # a lease, and somebody who joined
    submit(store, ann, Answer(assignment=given.id, submission="x" * 8, verdict="skipped"))
    skipped = fingerprint(str(path))
    ranks = [1.0, 2.0]
    submit(
        store,
        ann,
        Answer(assignment=given.id, submission="y" * 8, verdict="ranked", ranks=ranks),
    )
    judged = fingerprint(str(path))
    store.set_instructions("Be kind.")
    next_assignment(store, ann)
    store.read().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert fingerprint(str(path)) == judged
    store.add_items(items[2:])
    assert len({empty, skipped, judged, fingerprint(str(path))}) == 4


def test_a_database_that_is_no_project_counts_by_its_bytes(tmp_path):
    path = tmp_path / "other.db"
    path.write_bytes(b"one")
    first = fingerprint(str(path))
    path.write_bytes(b"two")
    assert fingerprint(str(path)) != first


def test_settings_of_a_rule_that_were_left_out_are_a_difference(tmp_path):
    def scoring(**settings):
        reward = RewardConfig(rule="length", settings=settings)
        return ScoreConfig(out=str(tmp_path / "score"), data="x.jsonl", reward=reward)

    folder = StageFolder(scoring(most=4, slack=2), "score", [])
    folder.begin()
    folder.finish()
    StageFolder(scoring(most=4, slack=2), "score", [])
    with pytest.raises(ConfigError, match=r"^reward.settings.slack=None but .* was made with 2"):
        StageFolder(scoring(most=4), "score", [])

"""Trackers get the rows of metrics.jsonl: TensorBoard for real, the others by stand-ins."""

import sys
import types

import pytest

from tests.train import toys
from tether.errors import ConfigError
from tether.pipeline import plan
from tether.rundir import StageFolder
from tether.sections import ComputeConfig
from tether.train.sft import train_sft


def folder(tmp_path, *track):
    config = toys.sft(tmp_path, "some/model", compute=ComputeConfig(track=track))
    return StageFolder(config, "sft", [])


def scalars(path):
    """What TensorBoard's own reader finds: (step, value) by name."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = module.EventAccumulator(str(path / "tensorboard"))
    reader.Reload()
    tags = reader.Tags()["scalars"]
    return {tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in tags}


def test_tensorboard_reads_what_was_logged(tmp_path):
    opened = folder(tmp_path, "tensorboard")
    opened.begin()
    opened.log({"step": 1, "loss": 0.5, "held_out_loss": None})
    opened.log({"step": 1, "completion": "a text"}, "samples.jsonl")
    opened.log({"step": 2, "loss": 0.25, "tokens": 7})
    opened.finish()
    assert scalars(opened.path) == {"loss": [(1, 0.5), (2, 0.25)], "tokens": [(2, 7.0)]}


def test_what_is_trained_anew_from_a_checkpoint_replaces_what_it_had_logged(tmp_path, monkeypatch):
    clock = iter(range(1_700_000_000, 1_800_000_000))  # TensorBoard orders its files by time
    monkeypatch.setattr("time.time", lambda: next(clock))
    killed = folder(tmp_path, "tensorboard")
    killed.begin()
    for step in (1, 2, 3):
        killed.log({"step": step, "loss": 1.0})
    resumed = folder(tmp_path, "tensorboard")
    resumed.begin(1)
    for step in (2, 3):
        resumed.log({"step": step, "loss": 0.5})
    resumed.finish()
    assert scalars(resumed.path) == {"loss": [(1, 1.0), (2, 0.5), (3, 0.5)]}
    killed.finish()


def test_training_sends_all_its_figures(tmp_path):
    config = toys.sft(
        tmp_path, toys.save(tmp_path), max_steps=2, compute=ComputeConfig(track=("tensorboard",))
    )
    found = scalars(train_sft(config))
    assert set(found) == {"loss", "tokens", "grad_norm", "learning_rate"}
    assert [step for step, _ in found["loss"]] == [1, 2]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_others_get_the_same_names(tmp_path, monkeypatch, name):
    calls = []

    class Started:
        def log(self, figures, step):
            calls.append((step, figures))

        def finish(self):
            calls.append("finished")

    module = types.ModuleType(name)
    module.__spec__ = types.SimpleNamespace()

    def init(**options):
        calls.append(options)
        return Started()

    module.init = init
    monkeypatch.setitem(sys.modules, name, module)
    opened = folder(tmp_path, name)
    opened.begin()
    opened.log({"step": 1, "loss": 0.5, "accuracy": float("nan")})
    opened.finish()
    assert calls[0]["project"] == "tether"
    assert calls[0]["name"].endswith("-sft")
    assert calls[0]["config"]["batch_size"] == 8
    assert calls[1:] == [(1, {"loss": 0.5}), "finished"]


def test_a_missing_package_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"track='wandb' needs .*: pip install wandb"):
        folder(tmp_path, "wandb")
    assert not (tmp_path / "sft").exists()


RECIPE = {
    "track": ["tensorboard"],
    "compute": {"threads": 1},
    "stage": [
        {"kind": "sft", "model": "m", "data": "d"},
        {"kind": "sft", "name": "other", "model": "m", "data": "d", "track": []},
    ],
}


def test_a_recipe_names_them_for_all_stages_or_for_one(tmp_path):
    stages = plan(RECIPE, tmp_path)
    assert [stage.config.compute.track for stage in stages] == [("tensorboard",), ()]
    assert {stage.config.compute.threads for stage in stages} == {1}


def test_an_unknown_tracker_is_told(tmp_path):
    message = r"track\[0\]='tensorbored' must be one of .*; did you mean 'tensorboard'"
    with pytest.raises(ConfigError, match=message):
        plan({**RECIPE, "track": ["tensorbored"]}, tmp_path)


def test_they_do_not_count_as_a_setting_of_what_comes_out(tmp_path):
    first = folder(tmp_path)
    first.begin()
    first.finish()
    assert folder(tmp_path, "tensorboard").finished

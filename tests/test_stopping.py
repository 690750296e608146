"""Training that is asked to stop ends after the step it is at, and goes on as if it never had."""

import pytest

from tests.train import toys
from tether.rundir import STOP, StageFolder
from tether.train.online import train_ppo
from tether.train.sft import train_sft

RUNS = {
    "sft": lambda folder, model, out: train_sft(
        toys.sft(folder, model, max_steps=4, checkpoint_every=0, out=str(folder / out))
    ),
    "ppo": lambda folder, model, out: train_ppo(
        toys.ppo(folder, model, steps=4, checkpoint_every=0, out=str(folder / out))
    ),
}


def ask_at(monkeypatch, asked):
    """From now on a stage is asked to stop while it is at the step `asked`."""
    log = StageFolder.log

    def log_and_ask(self, row, file="metrics.jsonl"):
        log(self, row, file)
        if file == "metrics.jsonl" and row["step"] == asked:
            (self.path / STOP).touch()

    monkeypatch.setattr(StageFolder, "log", log_and_ask)


@pytest.mark.parametrize("kind", RUNS)
def test_it_ends_with_a_checkpoint_and_goes_on_to_the_same_weights(tmp_path, monkeypatch, kind):
    model = toys.save(tmp_path)
    whole = RUNS[kind](tmp_path, model, "whole")
    with monkeypatch.context() as patch:
        ask_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            RUNS[kind](tmp_path, model, "stopped")
    stopped = tmp_path / "stopped"
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["step-000002"]
    assert not (stopped / STOP).exists()
    assert len((stopped / "metrics.jsonl").read_text().splitlines()) == 2
    assert RUNS[kind](tmp_path, model, "stopped") == stopped
    name = "model/model.safetensors"
    assert (stopped / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("kind", RUNS)
def test_asked_at_its_last_step_it_is_finished(tmp_path, monkeypatch, kind):
    ask_at(monkeypatch, 4)
    path = RUNS[kind](tmp_path, toys.save(tmp_path), "out")
    assert (path / "result.json").exists()
    assert not (path / STOP).exists()


def test_what_was_asked_of_a_process_that_is_gone_does_not_count(tmp_path):
    folder = StageFolder(toys.sft(tmp_path, "some/model"), "sft", [])
    folder.begin()
    (folder.path / STOP).touch()
    folder.begin()
    folder.stop_if_asked(lambda: pytest.fail("nobody asked"))

"""Training that is asked to stop ends after its phase, and goes on as if it never had."""

import os
import re
import signal
import subprocess
import sys
import threading

import httpx
import pytest

from tests.train import toys
from tether import stopping
from tether.config import GenerateConfig
from tether.engine.generate import generate
from tether.feedback.store import Project, Store
from tether.pipeline import run
from tether.rundir import STOP, StageFolder
from tether.stopping import NOTICES
from tether.train import online
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


# --- by a signal ----------------------------------------------------------------------------------


def signal_when(monkeypatch, name, number):
    """From now on this process gets a signal when `name` of the online loop is called again."""
    called = getattr(online, name)
    calls = []

    def call(*arguments, **settings):
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return called(*arguments, **settings)

    monkeypatch.setattr(online, name, call)


@pytest.mark.parametrize("phase", ["rollout_of", "score", "_improve", "_look"])
@pytest.mark.parametrize("number", [signal.SIGINT, *NOTICES])
def test_a_signal_ends_the_phase_and_keeps_what_is_done(tmp_path, monkeypatch, phase, number):
    """In the second step: collecting and scoring have changed nothing, improving ends the step."""
    model = toys.save(tmp_path)
    before = [signal.getsignal(each) for each in (signal.SIGINT, *NOTICES)]
    with monkeypatch.context() as patch:
        signal_when(patch, phase, number)
        with pytest.raises(KeyboardInterrupt):
            RUNS["ppo"](tmp_path, model, "stopped")
    stopped = tmp_path / "stopped"
    done = 1 if phase in ("rollout_of", "score") else 2
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == [f"step-00000{done}"]
    assert [row["step"] for row in toys.metrics(stopped)] == list(range(1, done + 1))
    assert not stopping.asked()
    assert [signal.getsignal(each) for each in (signal.SIGINT, *NOTICES)] == before


@pytest.mark.parametrize("phase", ["rollout_of", "score"])
def test_stopped_within_a_step_it_goes_on_to_the_same_weights(tmp_path, monkeypatch, phase):
    model = toys.save(tmp_path)
    whole = RUNS["ppo"](tmp_path, model, "whole")
    with monkeypatch.context() as patch:
        signal_when(patch, phase, signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            RUNS["ppo"](tmp_path, model, "stopped")
    stopped = RUNS["ppo"](tmp_path, model, "stopped")
    name = "model/model.safetensors"
    assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    assert (stopped / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


def test_a_second_signal_interrupts_at_once(monkeypatch):
    now = [10.0]
    monkeypatch.setattr("tether.stopping.time.monotonic", lambda: now[0])
    with stopping.after_phases():
        os.kill(os.getpid(), signal.SIGINT)
        now[0] = 10.4  # torchrun passes on what the terminal has sent to all
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.asked()
        now[0] = 11.5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert not stopping.asked()


def test_a_signal_that_is_ignored_stays_ignored():
    """As SIGINT is of what a script puts into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.after_phases():
            os.kill(os.getpid(), signal.SIGINT)
            assert not stopping.asked()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_changes():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def train():
        with stopping.after_phases():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [before]


def test_all_processes_stop_where_one_is_asked(tmp_path):
    folder = StageFolder(toys.sft(tmp_path, "some/model"), "sft", [])
    folder.begin()
    written = []
    with pytest.raises(KeyboardInterrupt):
        folder.stop_if_asked(lambda: written.append(1), lambda own: True)
    assert written == [1]
    (folder.path / STOP).touch()
    folder.stop_if_asked(lambda: written.append(2), lambda own: False)
    assert written == [1]


def test_asked_in_the_last_step_of_a_stage_no_other_begins(tmp_path, monkeypatch):
    """The stage ends as usual; run again, the recipe goes on with the next one."""
    model = toys.save(tmp_path)
    data = toys.write_rows(tmp_path / "demonstrations.jsonl", toys.DEMONSTRATIONS)
    stage = f'[[stage]]\nkind = "sft"\nmodel = "{model}"\ndata = "{data}"\nmax_steps = 1\n'
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'{stage}name = "one"\n{stage}name = "two"\n')
    log = StageFolder.log

    def log_and_signal(self, row, file="metrics.jsonl"):
        log(self, row, file)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(StageFolder, "log", log_and_signal)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "one" / "result.json").exists()
    assert not (tmp_path / "out" / "two").exists()
    run(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "two" / "result.json").exists()


# --- where nothing trains -------------------------------------------------------------------------

SERVER = """
import sys
from tether.cli import main
sys.argv = ["tether", "label", sys.argv[1], "--port", "0"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_server_ends_as_by_ctrl_c(tmp_path, number):
    path = tmp_path / "p.db"
    Store.create(path, Project(name="x")).close()
    command = [sys.executable, "-c", SERVER, str(path)]
    with subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout
        told = ""
        for line in server.stdout:
            told += line
            if line.startswith("Ctrl-C"):
                break
        (address,) = re.findall(r"label\s+(\S+)", told)
        with httpx.Client(timeout=60) as client:
            client.get(address)  # waits until the server is in its loop, and answers
        server.send_signal(number)
        said, _ = server.communicate(timeout=60)
    assert (server.returncode, said.split()) == (0, ["stopped"])


def test_a_notice_interrupts_what_does_not_train(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *NOTICES)}
    try:
        for handler in (signal.default_int_handler, signal.SIG_IGN):
            signal.signal(signal.SIGINT, handler)
            stopping.notices_interrupt()
            for number in NOTICES:
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_interrupted_stage_leaves_nothing_half_written(tmp_path, monkeypatch):
    """Generating writes when it has all; what it was writing then is removed."""
    toys.write_rows(tmp_path / "prompts.jsonl", toys.PROMPTS)
    config = GenerateConfig(
        model=toys.save(tmp_path),
        prompts=str(tmp_path / "prompts.jsonl"),
        out=str(tmp_path / "out"),
        sampling=toys.SAMPLING,
    )

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("tether.records.os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(config)
    assert not [path for path in (tmp_path / "out").rglob("*") if "completions" in path.name]

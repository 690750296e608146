"""What the driver of a run on Ray does: refusals, starts again, stops; without a cluster."""

import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from tests.train import toys
from tether import cli, pipeline
from tether.errors import CheckError, ConfigError, ServerError
from tether.rundir import StageFolder
from tether.scale import ray_backend
from tether.sections import ClusterConfig, ComputeConfig

RAY = ComputeConfig(backend="ray")


class Wrapped(Exception):
    """An exception in a trainer's code, as Ray Train hands it on."""

    def __init__(self, error):
        self._base_exc = error


class Broken(Exception):
    """Training that broke off, with what each trainer failed of."""

    def __init__(self, **failures):
        self.worker_failures = {int(name[1:]): error for name, error in failures.items()}


class Gone(Exception):
    """A trainer that is dead."""


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train, where each start breaks off with the next of these; returns how many were made."""

    def train(*errors, limit=2):
        compute = ComputeConfig(backend="ray", cluster=ClusterConfig(max_failures=limit))
        config = toys.sft(tmp_path, "m", compute=compute)
        starts = []

        def trainer(_job, _config):
            error = errors[len(starts)] if len(starts) < len(errors) else None
            starts.append(error)

            def fit():
                if error:
                    raise error

            return SimpleNamespace(fit=fit)

        monkeypatch.setattr(ray_backend, "_trainer", trainer)
        ray_backend._train({}, config, StageFolder(config, "sft", []))
        return len(starts)

    return train


def test_a_trainer_that_died_is_a_reason_to_start_again(train):
    assert train() == 1
    reset = RuntimeError("[/gloo/pair.cc:537] Connection reset by peer")
    assert train(Broken(r1=Gone("killed"), r0=Wrapped(reset))) == 2
    assert train(Broken(r0=Wrapped(reset)), Broken(r0=Wrapped(reset))) == 3
    assert train(*[Broken(r1=Gone("killed"))] * 2) == 3


def test_more_often_than_allowed_it_gives_up_in_one_line(train):
    with pytest.raises(ServerError, match=r"broke off 3 times, at last: trainer 1: Gone: killed;"):
        train(*[Broken(r1=Gone("killed\nby the kernel"))] * 3)


@pytest.mark.parametrize("rank", ["r0", "r1"])
def test_what_the_user_can_mend_is_told_at_once(train, rank):
    refusal = Broken(**{rank: Wrapped(CheckError("gradients are not finite"))})
    with pytest.raises(CheckError, match="gradients are not finite"):
        train(refusal, refusal)


def test_a_mistake_that_comes_back_keeps_its_traceback(train):
    mistake = [Broken(**{f"r{i % 2}": Wrapped(KeyError("score"))}) for i in range(3)]
    with pytest.raises(Broken) as caught:
        train(*mistake, limit=5)
    assert caught.value is mistake[1]
    assert train(mistake[0], Broken(r0=Wrapped(RuntimeError("NCCL timeout")))) == 3


def test_a_stop_in_a_trainer_is_one_of_the_driver(train):
    with pytest.raises(KeyboardInterrupt):
        train(Broken(r0=Wrapped(ray_backend.Stopped())))


def test_a_signal_is_passed_on_until_training_has_ended(tmp_path):
    seen = []

    def fit():
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(2):  # a training that begins removes the first one
            while not (tmp_path / "stop").exists():
                time.sleep(0.01)
            seen.append((tmp_path / "stop").unlink())

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        ray_backend._fit(SimpleNamespace(fit=fit), tmp_path)
    assert len(seen) == 2
    assert not (tmp_path / "stop").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    config = toys.sft(tmp_path, "m", compute=RAY)
    with pytest.raises(ConfigError, match=r"needs Ray with Ray Train; pip install 'tether\[ray\]'"):
        pipeline.run_stage(pipeline.Stage("sft", "sft", config))
    assert not (tmp_path / "sft").exists()


def test_one_of_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = toys.sft(tmp_path, "m", compute=RAY)
    with pytest.raises(ConfigError, match="starts processes itself, and this is one of several"):
        pipeline.run_stage(pipeline.Stage("sft", "sft", config))


def test_a_clients_address_is_refused():
    with pytest.raises(ConfigError, match=r'address=.ray://head:10001. .* use "auto" on a machine'):
        ClusterConfig(address="ray://head:10001")


def test_short_forms_on_the_command_line(monkeypatch):
    heard = []
    monkeypatch.setitem(cli.COMMANDS, "run", heard.extend)
    words = ["r.toml", "--backend", "ray", "--address=auto", "--out", "x=y"]
    cli.dispatch(["run", *words])
    where = ["--compute.backend", "ray", "--compute.cluster.address=auto"]
    assert heard == ["r.toml", *where, "--out", "x=y"]

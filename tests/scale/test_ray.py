"""A real Ray cluster on this machine trains what one process does, whatever dies meanwhile."""

import os
import signal
import sys

import pytest

from tests.scale.cluster import finish, plan_accident, prepare, start, until, workers
from tests.train import toys

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'tether[ray]'")

TWO = ("--compute.cluster.trainers", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What is trained on, and how it ends in one process."""
    folder = tmp_path_factory.mktemp("ray")
    finish(start(prepare(folder), folder / "one"))
    return folder


def assert_as_one_process(folder, out):
    """Every step once, with the figures and the weights of one process."""
    one, other = folder / "one" / "ppo", out / "ppo"
    here, there = toys.metrics(one), toys.metrics(other)
    assert [row["step"] for row in there] == [1, 2, 3, 4]
    for a, b in zip(here, there, strict=True):
        assert a.keys() <= b.keys()  # after a resume a step is also checked
        for name in a.keys() - {name for name in a if name.startswith("seconds")}:
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-6), name
    toys.assert_same(toys.weights(one), toys.weights(other), atol=2e-6)
    assert not list(other.glob("*.writing"))


def test_a_cluster_of_its_own(folder):
    """A trainer and a rollout worker on a cluster that the run starts, and that ends with it."""
    out = folder / "own"
    half = ("--compute.cluster.worker_cpus", "0.5")
    said = finish(start(folder / "recipe.toml", out, "--backend", "ray", *half))
    assert_as_one_process(folder, out)
    assert said.count("4/4") == 1


# --- two machines, each a raylet; `make test-scale` -----------------------------------------------


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """A cluster of two machines: one for both trainers, one for the rollout worker."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, sys.path))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


def begin(folder, machines, out, *settings):
    address = ("--backend", "ray", "--address", machines.address)
    return start(folder / "recipe.toml", out, *address, *TWO, *settings)


@pytest.mark.scale
def test_two_trainers_and_a_rollout_worker_on_two_machines(folder, machines):
    finish(begin(folder, machines, folder / "two"))
    assert_as_one_process(folder, folder / "two")


@pytest.mark.scale
def test_what_the_cluster_cannot_hold_is_refused(folder, machines):
    out = folder / "refused"
    said = finish(begin(folder, machines, out, "--compute.cluster.rollouts", "7"), code=2)
    assert "asked 2 trainers x 1 CPU + 7 rollout workers x 1 CPU = 9 CPUs, the cluster has" in said
    assert not (out / "ppo").exists()


@pytest.mark.scale
@pytest.mark.parametrize("name", ["_Sampling", "RayTrainWorker"])
def test_a_worker_is_killed(folder, machines, name):
    plan_accident(folder, kill=name)
    out = folder / f"killed{name}"
    said = finish(begin(folder, machines, out))
    assert (folder / "happened.json").exists()
    assert ("starts again from its last checkpoint (1 of 3)" in said) == (name != "_Sampling")
    assert_as_one_process(folder, out)


@pytest.mark.scale
def test_a_machine_is_killed(folder, machines):
    plan_accident(folder, wait=True)
    out = folder / "machine"
    process = begin(folder, machines, out)
    until((folder / "happened.json").exists, "the third rollout is scored")
    other = next(node for node in machines.worker_nodes)
    machines.remove_node(other, allow_graceful=False)
    machines.add_node(num_cpus=1)
    (folder / "go").touch()
    finish(process)
    assert_as_one_process(folder, out)


@pytest.mark.scale
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_ends_leaves_no_workers_and_its_run_goes_on(folder, machines, number):
    plan_accident(folder, wait=True)
    out = folder / number.name
    process = begin(folder, machines, out)
    until((folder / "happened.json").exists, "the third rollout is scored")
    assert len(workers(os.getpid())) == 4  # two trainers, their controller, a rollout worker
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.communicate()
        until(lambda: not workers(os.getpid()), "all workers are gone")
        (folder / "go").touch()
    else:
        until((out / "ppo" / "stop").exists, "the stop is passed on")
        (folder / "go").touch()
        said = finish(process, code=130)
        assert "goes on from the last checkpoint" in said
        assert any((out / "ppo" / "checkpoints").iterdir())
        until(lambda: not workers(os.getpid()), "all workers are gone")
    finish(begin(folder, machines, out))
    assert_as_one_process(folder, out)

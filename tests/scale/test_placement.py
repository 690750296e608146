"""What is asked of a cluster, what it has, and the words of a refusal."""

import pytest

from tests.train import toys
from tether.scale.placement import Role, refusal, roles_of
from tether.sections import ClusterConfig, ComputeConfig, ServersConfig

TRAINERS = Role("trainer", 2, 1.0, 0.0)
ROLLOUTS = Role("rollout worker", 3, 2.0, 1.0)


def test_what_fits_is_not_refused():
    # 2 x 1 + 3 x 2 = 8 CPUs and 3 GPUs.
    assert refusal([{"CPU": 6.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 2.0}], [TRAINERS, ROLLOUTS]) == ""


def test_a_lack_is_told_with_what_is_asked_and_what_there_is():
    words = refusal([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}], [TRAINERS, ROLLOUTS])
    assert words == (
        "asked 2 trainers x 1 CPU + 3 rollout workers x 2 CPUs, 1 GPU = 8 CPUs, 3 GPUs, "
        "the cluster has 7 CPUs, 1 GPU on 2 machines"
    )


def test_one_worker_is_not_spread_over_machines():
    words = refusal([{"CPU": 1.0}] * 8, [Role("trainer", 1, 2.0, 0.0)])
    assert words == (
        "asked 1 trainer x 2 CPUs = 2 CPUs, the cluster has 8 CPUs on 8 machines, "
        "none of which can hold one trainer"
    )


def test_half_a_cpu_is_asked_in_full():
    half = Role("trainer", 4, 0.5, 0.0)
    assert refusal([{"CPU": 2.0}], [half]) == ""
    assert "asked 5 trainers x 0.5 CPUs = 2.5 CPUs" in refusal(
        [{"CPU": 2.0}], [half._replace(num=5)]
    )


def cluster(**more):
    return ClusterConfig(trainers=2, rollouts=3, trainer_gpus=1.0, rollout_gpus=2.0, **more)


def test_only_online_methods_have_rollout_workers(tmp_path):
    compute = ComputeConfig(backend="ray", cluster=cluster(worker_cpus=4.0))
    trainers = Role("trainer", 2, 4.0, 1.0)
    assert roles_of(toys.sft(tmp_path, "m", compute=compute)) == [trainers]
    both = [trainers, Role("rollout worker", 3, 4.0, 2.0)]
    assert roles_of(toys.ppo(tmp_path, "m", compute=compute)) == both


def test_servers_sample_instead_of_them(tmp_path):
    servers = ServersConfig(urls=("http://127.0.0.1:8000",))
    compute = ComputeConfig(backend="ray", cluster=cluster(), servers=servers)
    (role,) = roles_of(toys.ppo(tmp_path, "m", compute=compute))
    assert role.name == "trainer"


@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_a_place_names_gpus_only_where_there_are_some(gpus):
    bundle = Role("trainer", 1, 2.0, gpus).bundle
    assert bundle == {"CPU": 2.0, **({"GPU": 1.0} if gpus else {})}

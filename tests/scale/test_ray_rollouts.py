"""Rollout workers that die, answer late, or find no place: the numbers are those of one process.

Workers are models in this process here, which die when they are told to; test_ray.py has real ones.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train import toys
from tether.engine.samplers import Drawn, Request, Sampler, draw
from tether.errors import ConfigError, ModelError, ServerError
from tether.models.language_model import load
from tether.models.weights import trained
from tether.scale.ray_rollouts import (
    Died,
    Policy,
    RaySampler,
    _Sampling,
    packed,
    split,
    unpacked,
)
from tether.scale.samplers import sampler_for
from tether.scale.shared_disk import Mark, enter, leave_mark, wipe
from tether.sections import ComputeConfig, LoraConfig


class Local:
    """A worker in this process, with a model of its own."""

    def __init__(self, path, calls, dies):
        self.model = load(path, ComputeConfig(), trainable=True)
        self.calls, self.dies = calls, dies
        self.version, self.ended = -1, False

    def load(self, weights, version):
        self._live("load")
        targets = dict(self.model.model.named_parameters())
        with torch.no_grad():
            for bucket in weights:
                for name, tensor in unpacked(bucket):
                    targets[name].copy_(tensor)
        self.version = version

    def sample(self, request):
        self._live("sample", request.rows)
        return Drawn(draw(self.model, request), self.version)

    def end(self):
        self.ended = True

    def _live(self, name, rows=()):
        assert not self.ended
        self.calls.append((name, list(rows)))
        if self.dies and self.dies[0] == name:
            self.dies.pop(0)
            raise Died(f"killed at {name}")


@pytest.fixture
def policy(tmp_path):
    """A policy that has been trained a little, so that it is not what its folder holds."""
    policy = load(toys.save(tmp_path), ComputeConfig(), trainable=True)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return policy


def request(rows=7):
    prompts = [[3, 4, 5], [6], [7, 8], [9], [10, 11, 12, 13], [4], [5, 6]][:rows]
    return Request(prompts, [i + 2 for i in range(rows)], toys.SAMPLING, seed=5, step=3)


def workers(tmp_path, dies=(), count=3, make=None):
    """A sampler of `count` workers, of which the first is to die at those calls; and its calls."""
    calls = [[] for _ in range(count)]
    orders = [list(dies), *([] for _ in range(count - 1))]

    def of_this(i, _patience):
        return Local(str(tmp_path / "llama-False"), calls[i], orders[i])

    def ship(weights):
        return list(packed(weights))

    return RaySampler(make or of_this, ship, count, 1.0), calls


def assert_as_one_process(drawn, policy, version):
    """The tokens are the same; log-probs differ by what else was in the batch, in the last bits."""
    expected = draw(policy, request())
    assert drawn.version == version
    for here, there in zip(drawn.sampled, expected, strict=True):
        assert (here.token_ids, here.finished) == (there.token_ids, there.finished)
        assert here.logprobs == pytest.approx(there.logprobs, abs=1e-5)


def test_several_workers_sample_what_one_process_does(tmp_path, policy):
    sampler, calls = workers(tmp_path)
    assert isinstance(sampler, Sampler)
    sampler.load(trained(policy), 4)
    assert_as_one_process(sampler.sample(request()), policy, 4)
    # 7 rows over 3 workers: 3, 2, 2, under the numbers of the whole batch.
    assert [asked[-1][1] for asked in calls] == [[2, 3, 4], [5, 6], [7, 8]]


@pytest.mark.parametrize("dies", [["sample"], ["load"], ["sample", "load", "sample"]])
def test_a_worker_that_died_is_made_again_and_asked_for_the_same_rows(tmp_path, policy, dies):
    sampler, calls = workers(tmp_path, dies=dies)
    sampler.load(trained(policy), 4)
    drawn = sampler.sample(request())
    assert_as_one_process(drawn, policy, 4)
    # A worker that is new has weights that nobody has probed.
    assert drawn.resent == ("sample" in dies)
    assert not sampler.sample(request()).resent
    asked = [rows for name, rows in calls[0] if name == "sample"]
    assert asked == [[2, 3, 4]] * (2 + dies.count("sample"))


def test_the_others_take_the_rows_of_one_that_keeps_dying(tmp_path, policy):
    sampler, calls = workers(tmp_path, dies=["sample"] * 3)
    sampler.load(trained(policy), 4)
    assert_as_one_process(sampler.sample(request()), policy, 4)
    assert [rows for name, rows in calls[1] if name == "sample"] == [[5, 6], [2, 3]]
    assert [rows for name, rows in calls[2] if name == "sample"] == [[7, 8], [4]]
    # With the next weights it gets another chance.
    sampler.load(trained(policy), 5)
    assert sampler.sample(request()).version == 5
    assert calls[0][-1] == ("sample", [2, 3, 4])


def test_an_answer_by_older_weights_does_not_count(tmp_path, policy):
    sampler, calls = workers(tmp_path, count=1)
    sampler.load(trained(policy), 4)
    (late,) = sampler._workers
    late.version = 3
    assert_as_one_process(sampler.sample(request()), policy, 4)
    assert late.ended
    assert [name for name, _ in calls[0]] == ["load", "sample", "load", "sample"]


def test_where_none_is_left_it_says_why(tmp_path, policy):
    sampler, _ = workers(tmp_path, dies=["sample"] * 9, count=1)
    sampler.load(trained(policy), 4)
    with pytest.raises(
        ServerError, match=r"no rollout worker of 1 is left \(killed at sample\); mend"
    ):
        sampler.sample(request())


def test_where_none_finds_a_place_it_says_so(tmp_path, policy):
    sampler, _ = workers(tmp_path, make=lambda _i, _patience: None)
    with pytest.raises(ServerError, match="no place for one within 1 s"):
        sampler.load(trained(policy), 4)


def test_at_the_end_all_are_ended(tmp_path, policy):
    sampler, _ = workers(tmp_path)
    sampler.load(trained(policy), 0)
    held = list(sampler._workers)
    sampler.close()
    assert all(worker.ended for worker in held)


@given(st.lists(st.integers(), max_size=30, unique=True), st.integers(1, 9))
def test_rows_are_dealt_out_evenly_and_in_order(rows, count):
    parts = split(rows, count)
    assert [row for part in parts for row in part] == rows
    sizes = [len(part) for part in parts]
    assert len(sizes) == count
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_travel_bit_for_bit(dtype, monkeypatch):
    monkeypatch.setattr("tether.scale.ray_rollouts.BUCKET", 64)  # bytes
    shapes = {"a": (3, 5), "scalar": (), "b": (7,)}
    held = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    buckets = list(packed(iter(held.items())))
    # In float32 60 + 4 bytes fit into 64, the 28 of "b" do not; in halves all 46 do.
    assert [list(bucket) for bucket in buckets] == (
        [["a", "scalar"], ["b"]] if dtype == torch.float32 else [["a", "scalar", "b"]]
    )
    came = dict(item for bucket in buckets for item in unpacked(bucket))
    assert came.keys() == held.keys()
    for name, tensor in came.items():
        assert tensor.dtype == dtype
        assert tensor.shape == held[name].shape
        assert torch.equal(tensor, held[name])


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "lora"])
def test_what_runs_on_the_cluster_samples_as_the_policy(tmp_path, monkeypatch, rank):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "get", lambda bucket: bucket)
    monkeypatch.chdir(tmp_path)
    path, lora = toys.save(tmp_path), LoraConfig(rank=rank)
    policy = load(path, ComputeConfig(), trainable=True, lora=lora, seed=1)
    with torch.no_grad():
        for _, parameter in trained(policy):
            parameter += 0.1 * torch.randn_like(parameter)
    remote = _Sampling(Policy(path, ComputeConfig(), lora, 1), leave_mark(tmp_path / "run"))
    remote.begin()
    remote.load(list(packed(trained(policy))), 4)
    assert remote.sample(request()) == Drawn(draw(policy, request()), 4)
    some = [(name, tensor) for name, tensor in trained(policy)][1:]
    with pytest.raises(ServerError, match=r"no weights came for 'model\."):
        remote.load(list(packed(iter(some))), 5)
    assert remote.sample(request()).version == -1  # and so is not believed


def test_a_model_that_cannot_be_loaded_is_told_when_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remote = _Sampling(
        Policy(str(tmp_path / "none"), ComputeConfig(), LoraConfig(), 1),
        leave_mark(tmp_path / "run"),
    )
    remote.begin()
    with pytest.raises(ModelError, match=r"none' does not exist"):
        remote.sample(request())


def test_a_backend_that_nobody_started_is_refused(tmp_path, policy):
    config = toys.ppo(tmp_path, "m", compute=ComputeConfig(backend="ray"))
    with pytest.raises(ConfigError, match=r"compute\.backend='ray' works for what is started by"):
        sampler_for(config, policy)
    assert sampler_for(replace(config, compute=ComputeConfig()), policy) is None


def test_machines_are_to_see_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mark = leave_mark(tmp_path / "run")
    other = Mark(mark.directory, mark.file, "another run's word")
    with pytest.raises(ConfigError, match=r"run' is not the same folder on .* a disk that all"):
        enter(other, patience=0.0)
    monkeypatch.chdir("/")
    enter(mark)
    assert (tmp_path / "run").exists()
    assert str(tmp_path) == Mark(*mark).directory
    wipe(mark)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="is not the same folder"):
        enter(mark, patience=0.0)

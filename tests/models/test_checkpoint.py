import errno
import hashlib
import json
from types import SimpleNamespace as USAGE

import pytest
import torch
from safetensors import SafetensorError
from tests.tiny import tiny_gpt2, tiny_llama
from torch import nn

from tether.errors import DiskError
from tether.models.checkpoint import load_checkpoint, save_checkpoint
from tether.sections import OptimizerConfig
from tether.train.loop import make_optimizer

VOCABULARY = 30
WEIGHTS = "shard-00001-model-00001-of-00001.safetensors"


class Run:
    """A policy and a value model that share one optimizer, as in PPO; `tied` embeddings."""

    def __init__(self, seed=0, *, tied=True):
        make = tiny_gpt2 if tied else tiny_llama
        self.policy, self.value = make(VOCABULARY, seed=seed), make(VOCABULARY, seed=seed + 1)
        self.head = nn.Linear(32, 1)
        nn.init.constant_(self.head.weight, 0.1 * (seed + 1))
        nn.init.zeros_(self.head.bias)
        self.modules = {
            "policy": self.policy,
            "value": self.value.base_model,
            "value_head": self.head,
        }
        groups = [(module.parameters(), 1e-2) for module in self.modules.values()]
        self.optimizer = make_optimizer(groups, OptimizerConfig(weight_decay=0.01))

    def train(self, steps, first=0):
        for step in range(first, first + steps):
            ids = torch.arange(7)[None] * (step + 2) % VOCABULARY
            loss = self.policy(input_ids=ids, labels=ids).loss
            hidden = self.value.base_model(input_ids=ids).last_hidden_state
            (loss + self.head(hidden).square().mean()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def save(self, folder, step, **state):
        save_checkpoint(folder, step, self.modules, self.optimizer, state)

    def load(self, folder):
        return load_checkpoint(folder, self.modules, self.optimizer)

    def tensors(self):
        """Every number that training goes on from, by name."""
        found = {
            f"{role}.{name}": tensor
            for role, module in self.modules.items()
            for name, tensor in module.state_dict().items()
        }
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"{index}.{key}": value for key, value in moments.items()}
        return found


def assert_equal(one, other):
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_loaded_is_what_was_saved_bit_for_bit(tmp_path, tied):
    run = Run(tied=tied)
    run.train(3)
    run.save(tmp_path, 3, beta=0.1 + 0.2, rescore=True)
    again = Run(seed=7, tied=tied)
    state = again.load(tmp_path)
    assert state == {"step": 3, "beta": 0.1 + 0.2, "rescore": True}
    assert_equal(again.tensors(), run.tensors())
    # 2 moments and the step of each parameter, and the moments have moved
    assert all(t.abs().max() > 0 for name, t in run.tensors().items() if "exp_avg" in name)


@pytest.mark.parametrize("tied", [True, False])
def test_going_on_from_a_checkpoint_equals_never_having_stopped(tmp_path, tied):
    whole, begun = Run(tied=tied), Run(tied=tied)
    whole.train(5)
    begun.train(2)
    begun.save(tmp_path, 2)
    resumed = Run(seed=7, tied=tied)
    assert resumed.load(tmp_path)["step"] == 2
    resumed.train(3, first=2)
    assert_equal(resumed.tensors(), whole.tensors())


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    run = Run()
    run.train(1)
    run.save(tmp_path, 1)
    again = Run(seed=7)
    again.load(tmp_path)
    assert again.policy.lm_head.weight is again.policy.transformer.wte.weight
    assert torch.equal(again.policy.lm_head.weight, run.policy.lm_head.weight)


def test_a_head_on_the_policys_own_backbone(tmp_path):
    # The shared value model: two roles, one backbone, stored under the policy's name.
    run = Run()
    modules = {"policy": run.policy, "value_head": run.head}
    save_checkpoint(tmp_path, 1, modules, run.optimizer, {})
    before = run.head.weight.clone()
    nn.init.zeros_(run.head.weight)
    load_checkpoint(tmp_path, modules, run.optimizer)
    assert torch.equal(run.head.weight, before)


def test_frozen_weights_are_left_out_and_left_alone(tmp_path):
    run, again = Run(), Run(seed=7)
    for each in (run, again):
        each.policy.transformer.wpe.weight.requires_grad_(False)
    run.save(tmp_path, 0)
    own = again.policy.transformer.wpe.weight.clone()
    again.load(tmp_path)
    assert torch.equal(again.policy.transformer.wpe.weight, own)
    assert torch.equal(again.policy.transformer.wte.weight, run.policy.transformer.wte.weight)


def test_only_safetensors_and_json_are_written(tmp_path):
    Run().save(tmp_path, 120)
    files = sorted(str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file())
    path = tmp_path / "step-000120"
    assert files == [f"{path.name}/{name}" for name in ("checksums.json", WEIGHTS, "state.json")]
    assert json.loads((path / "state.json").read_text()) == {"step": 120}
    sums = json.loads((path / "checksums.json").read_text())
    names = (WEIGHTS, "state.json")
    assert sums == {n: hashlib.sha256((path / n).read_bytes()).hexdigest() for n in names}


def test_nothing_there_is_none(tmp_path):
    assert Run().load(tmp_path) is None
    assert Run().load(tmp_path / "missing") is None


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_counts_and_two_are_kept(tmp_path):
    run = Run()
    for step in (5, 10, 15):
        run.train(1)
        run.save(tmp_path, step)
    assert names(tmp_path) == ["step-000010", "step-000015"]
    assert Run().load(tmp_path)["step"] == 15


def test_old_ones_go_when_the_new_one_is_in_its_place(tmp_path, monkeypatch):
    run = Run()
    run.save(tmp_path, 5)
    run.save(tmp_path, 10)
    removed = []

    def remove(path, **_):
        removed.append((path.name, (tmp_path / "step-000015").exists()))

    monkeypatch.setattr("tether.models.checkpoint.shutil.rmtree", remove)
    run.save(tmp_path, 15)
    assert ("step-000005", True) in removed
    assert not [name for name, _ in removed if name.startswith("step") and name != "step-000005"]


def test_steps_are_compared_as_numbers(tmp_path):
    # As text, "step-1000000" comes before "step-999999".
    run = Run()
    for step in (999_998, 999_999, 1_000_000):
        run.save(tmp_path, step)
    assert names(tmp_path) == ["step-1000000", "step-999999"]
    assert Run().load(tmp_path)["step"] == 1_000_000


def test_a_checkpoint_half_written_by_a_killed_process_is_ignored(tmp_path):
    run = Run()
    run.save(tmp_path, 5)
    aside = tmp_path / ".step-000010.writing"
    aside.mkdir()
    (aside / WEIGHTS).write_bytes(b"half of it")
    assert Run(seed=7).load(tmp_path)["step"] == 5
    run.save(tmp_path, 10)  # and it is in nobody's way
    assert names(tmp_path) == ["step-000005", "step-000010"]


def test_a_write_that_fails_keeps_the_old_checkpoint(tmp_path):
    run = Run()
    run.save(tmp_path, 5)
    before = run.tensors()
    with pytest.raises(TypeError, match="not JSON serializable"):
        run.save(tmp_path, 10, beta={1, 2})
    assert names(tmp_path) == ["step-000005"]
    again = Run(seed=7)
    assert again.load(tmp_path)["step"] == 5
    assert_equal(again.tensors(), before)


def test_a_disk_that_fails_while_writing_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    run = Run()
    run.save(tmp_path, 5)

    def failing(tensors, path):
        path.write_bytes(b"half of it")
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("tether.models.checkpoint.save_file", failing)
    with pytest.raises(OSError, match="Input/output error"):
        run.save(tmp_path, 10)
    assert names(tmp_path) == ["step-000005"]
    assert Run(seed=7).load(tmp_path)["step"] == 5


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
    ],
    ids=["disk", "quota", "safetensors"],
)
def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch, error):
    folder = tmp_path / "checkpoints"
    run = Run()
    run.save(folder, 5)

    def full(tensors, path):
        path.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr("tether.models.checkpoint.save_file", full)
    monkeypatch.setattr("tether.disk.shutil.disk_usage", lambda path: USAGE(free=3 << 19))
    with pytest.raises(DiskError) as told:
        run.save(folder, 10)
    assert str(told.value) == (
        f"{folder}/step-000010 cannot be written: no room on the disk (1.5 MiB are free); make "
        "room and run the same command again, which goes on from step 5"
    )
    assert names(folder) == ["step-000005"]
    assert Run(seed=7).load(folder)["step"] == 5


# --- damage ---------------------------------------------------------------------------------------


def truncate(path):
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-1])


def flip_a_bit(path, name=WEIGHTS):
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)


DAMAGES = {
    "truncated": (truncate, f"{WEIGHTS} has another checksum"),
    "flipped": (flip_a_bit, f"{WEIGHTS} has another checksum"),
    "lost": (lambda path: (path / WEIGHTS).unlink(), f"{WEIGHTS}: No such file or directory"),
    "state": (lambda path: flip_a_bit(path, "state.json"), "state.json has another checksum"),
    "sums": (lambda path: (path / "checksums.json").unlink(), "checksums.json cannot be read"),
    "no sums": (lambda path: flip_a_bit(path, "checksums.json"), ""),
    "empty": (lambda path: (path / "checksums.json").write_text("{}"), "checksums.json cannot"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_told_and_the_one_before_is_used(tmp_path, capsys, damage):
    run = Run()
    run.train(2)
    run.save(tmp_path, 2)
    before = {name: tensor.clone() for name, tensor in run.tensors().items()}
    run.train(2, first=2)
    run.save(tmp_path, 4)
    harm, words = DAMAGES[damage]
    harm(tmp_path / "step-000004")
    again = Run(seed=7)
    assert again.load(tmp_path) == {"step": 2}
    assert_equal(again.tensors(), before)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/step-000004 is damaged ({words}")
    assert line.endswith("; the checkpoint before it is used, if there is one")


def test_where_all_are_damaged_there_is_none(tmp_path, capsys):
    run = Run()
    for step in (1, 2):
        run.save(tmp_path, step)
        truncate(tmp_path / f"step-00000{step}")
    before = {name: tensor.clone() for name, tensor in run.tensors().items()}
    assert run.load(tmp_path) is None
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert_equal(run.tensors(), before)


def test_damaged_ones_do_not_push_out_good_ones(tmp_path):
    run = Run()
    for step in (5, 8, 9):
        run.save(tmp_path, step)
    for step in (8, 9):
        (tmp_path / f"step-00000{step}").mkdir(exist_ok=True)
        (tmp_path / f"step-00000{step}" / "checksums.json").write_text("")
    run.save(tmp_path, 5)  # gone on from; then asked to stop before step 8 is reached
    run.save(tmp_path, 6)
    assert names(tmp_path) == ["step-000005", "step-000006"]


# --- other groups ---------------------------------------------------------------------------------


def test_moments_find_their_parameters_in_other_groups(tmp_path):
    run = Run()
    run.train(2)
    run.save(tmp_path, 2)
    again = Run(seed=7)
    groups = [(module.parameters(), 1e-2) for module in reversed(again.modules.values())]
    again.optimizer = make_optimizer(groups, OptimizerConfig(weight_decay=0.01))
    again.load(tmp_path)
    for role, module in run.modules.items():
        others = dict(again.modules[role].named_parameters())
        for name, parameter in module.named_parameters():
            moments, other = (
                run.optimizer.state.get(parameter),
                again.optimizer.state.get(others[name]),
            )
            assert moments
            assert_equal(moments, other)

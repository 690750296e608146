"""Checkpoints of several processes: each writes its part, and any number of them reads it."""

import json

import pytest
from safetensors import safe_open
from tests.models import sharded
from tests.processes import in_processes

KINDS = pytest.mark.parametrize("kind", ["fsdp", "ddp"])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What two processes have left: they start once for all tests."""
    folder = tmp_path_factory.mktemp("sharded")
    sharded.write(str(folder / "by-one" / "checkpoints"), "fsdp", 2)
    in_processes(2, "tests.models.sharded", "in_two", str(folder))
    return folder


def told(folder, what, count=2):
    """What each process has said; all say the same."""
    files = sorted(folder.glob(f"{what}-{count}-*.json"))
    assert len(files) == count
    facts = [json.loads(file.read_text()) for file in files]
    assert all(each == facts[0] for each in facts)
    return facts[0]


@KINDS
def test_it_is_read_by_as_many_processes_or_by_one(root, kind):
    written, by_two = told(root / kind, "wrote"), told(root / kind, "read")
    assert by_two["state"] == {"step": 2, "beta": 0.1 + 0.2}
    assert by_two["loaded"] == written["digest"]
    sharded.read(str(root / kind / "checkpoints"), kind, 3)
    assert told(root / kind, "read", 1) == by_two
    whole = sharded.Run(kind)
    whole.train(5)
    assert by_two["digest"] == whole.digest()


def test_what_one_process_wrote_two_can_read(root):
    written = told(root / "by-one", "wrote", 1)
    assert told(root / "by-one", "read")["loaded"] == written["digest"]


@KINDS
def test_shards_are_parted_and_what_is_whole_is_written_once(root, kind):
    path = root / kind / "checkpoints" / "step-000002"
    shards = [f"shard-0000{n}-model-00001-of-00001.safetensors" for n in (1, 2)]
    assert sorted(file.name for file in path.iterdir()) == [
        "checksums.json",
        *shards,
        "state.json",
    ]
    times: dict[str, int] = {}
    for shard in shards:
        with safe_open(path / shard, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                times[name] = times.get(name, 0) + 1
    embedding = "policy.model.embed_tokens.weight"
    parts = {"fsdp": 2, "ddp": 1}[kind]
    assert times[embedding] == times[f"optimizer.{embedding}.exp_avg"] == parts
    assert times["value_head.weight"] == times["optimizer.value_head.weight.exp_avg"] == 1
    assert times[f"optimizer.{embedding}.step"] == 1


def test_a_disk_that_is_full_for_one_process_stops_all(root):
    facts = told(root / "full", "failed")
    assert "step-000002 cannot be written: no room on the disk" in facts["error"]
    assert facts["error"].endswith("which goes on from step 1")
    assert facts["there"] == ["step-000001"]

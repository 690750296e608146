"""One of two processes is told to stop: both do; and two or one go on from their checkpoint."""

import pytest

from tests.parallel import stopped
from tests.processes import in_processes
from tests.train import toys


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What two processes have left: they start once."""
    folder = tmp_path_factory.mktemp("stopped")
    toys.save(folder)
    toys.write_rewards(folder)
    toys.write_rows(folder / "demonstrations.jsonl", toys.DEMONSTRATIONS)
    toys.write_rows(folder / "prompts.jsonl", toys.PROMPTS)
    in_processes(2, "tests.parallel.stopped", "both", str(folder), timeout=300)
    return folder


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_it_goes_on_to_the_same_weights(root, stage):
    kept = sorted(path.name for path in (root / f"{stage}-by-one" / "checkpoints").iterdir())
    assert kept == ["step-000002", "step-000003"]
    whole = toys.weights(root / f"{stage}-whole")
    toys.assert_same(whole, toys.weights(root / f"{stage}-stopped"))
    stopped.train(str(root), stage, f"{stage}-by-one")
    toys.assert_same(whole, toys.weights(root / f"{stage}-by-one"), atol=1e-6)

"""Killed at any of its writes, a run goes on to the very bits of one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# What must have been seen for the test to mean anything: each kind of write of each case.
FIT = [
    "open {stage}/.config.toml.writing in write_text",
    "os.rename {stage}/.config.toml.writing in write_text",
    "open {stage}/metrics.jsonl in log",
    "os.mkdir {stage}/checkpoints/.step-000001.writing in fresh_aside",
    "open {stage}/checkpoints/.step-000001.writing/state.json in seal",
    "open {stage}/checkpoints/.step-000001.writing/checksums.json in seal",
    "os.rename {stage}/checkpoints/.step-000001.writing in put_in_place",
    "os.remove {stage}/checkpoints/step-000001/state.json in _prune",
    "os.rmdir {stage}/checkpoints/step-000001 in _prune",
    "os.mkdir {stage}/.model.writing in fresh_aside",
    "os.rename {stage}/.model.writing in put_in_place",
    "os.rename {stage}/.result.json.writing in write_text",
    "os.rmdir {stage}/checkpoints in finish",
]
SEEN = {
    "sft": [*FIT, "os.rename {stage}/models/.step-000002.writing in put_in_place"],
    "reward": FIT,
    "ppo": [*FIT, "open {stage}/samples.jsonl in log"],
    "pipeline": [
        "os.rename .recipe.toml.writing in write_text",
        "os.rename .manifest.json.writing in write_text",
        "os.rename .report.html.writing in write_text",
        "os.rename evaluate/.summary.json.writing in write_text",
        "os.rename evaluate/.result.json.writing in write_text",
    ],
}


def chaos(case: str, folder: Path, *words: str, timeout: float) -> dict:
    """What tests/chaos.py finds."""
    command = [sys.executable, "-m", "tests.chaos", case, str(folder), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command,
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", SEEN)
def test_killed_at_any_write_it_ends_in_the_same_bits(tmp_path, case):
    found = chaos(case, tmp_path, timeout=600)
    for failure in found["failures"]:
        print(failure["state"], failure["differ"], failure["log"])
    assert not found["failures"]
    assert found["states"] > 30
    for operation in SEEN[case]:
        assert operation.format(stage=case) in found["operations"]

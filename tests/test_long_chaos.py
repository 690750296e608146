"""Fifty times `kill -9` at random moments, each time followed by the same command again.

With TETHER_SCALE_LOG=FILE a line of each case is appended to a file.
"""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest

from tests.test_chaos import chaos

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
load = importlib.import_module("labeling_load")

KILLS = {"sft": 10, "reward": 10, "ppo": 10, "pipeline": 10}  # and 10 of the label server


def note(case: str, **figures) -> None:
    """Append what was found to the log."""
    if file := os.environ.get("TETHER_SCALE_LOG"):
        with Path(file).open("a", encoding="utf-8") as log:
            log.write(f"kill -9, {case}: {json.dumps(figures)}\n")


@pytest.mark.scale
@pytest.mark.parametrize("case", KILLS)
def test_killed_at_random_it_ends_in_the_same_bits(tmp_path, case):
    found = chaos(case, tmp_path, "--kills", str(KILLS[case]), timeout=3600)
    seconds = round(found["seconds"], 1)
    note(case, **{**found, "seconds": seconds, "failures": len(found["failures"])})
    assert found["kills"] == KILLS[case]
    for failure in found["failures"]:
        print(failure["kill"], failure["differ"], failure["log"])
    assert not found["failures"]


@pytest.mark.scale
def test_no_label_is_lost_when_the_server_is_killed(tmp_path):
    found = load.run(tmp_path, labelers=20, total=1200, think=0.5, kills=10)
    note(
        "label server", **{k: round(v, 1) if isinstance(v, float) else v for k, v in found.items()}
    )
    assert found["acknowledged"] >= 1200
    assert found["retries"] > 0  # the kills were felt
    for fault in ("acknowledged but lost", "stored twice", "items over-assigned"):
        assert found[fault] == 0, fault
    assert found["integrity"] == "ok"

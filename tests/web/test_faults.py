"""The server is killed while people label: nothing acknowledged is lost or doubled."""

import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
load = importlib.import_module("labeling_load")


def test_killed_under_load_every_acknowledged_judgment_is_there_once(tmp_path):
    found = load.run(tmp_path, labelers=12, total=240, think=0.05, kills=4)
    assert found["judgments"] >= 240
    assert found["acknowledged"] >= 240
    assert found["retries"] > 0  # the kills were felt
    for fault in (
        "acknowledged but lost",
        "stored twice",
        "items over-assigned",
        "items twice to one labeler",
        "tokens in the log",
    ):
        assert found[fault] == 0, fault
    assert found["integrity"] == "ok"

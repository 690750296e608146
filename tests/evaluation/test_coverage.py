"""The intervals hold the true value about as often as they say; rows drawn one by one do not."""

import importlib.util
from pathlib import Path

PATH = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


def load():
    spec = importlib.util.spec_from_file_location("coverage_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_intervals_cover():
    # 150 replications: 0.95 has a standard error of 0.018, so 0.88 is 4 of them below.
    module = load()
    module.RESAMPLES = 300
    found = module.coverage(60, skewed=False, replications=150)
    rows = found.pop("mean, rows drawn one by one")
    assert min(found.values()) >= 0.88, found
    assert rows < 0.85

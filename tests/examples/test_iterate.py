"""The three rounds of the iterate recipe, and that the recipe itself can be read."""

import importlib.util
from pathlib import Path

from tether import pipeline
from tether.config_file import read_toml

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("rounds", ROOT / "examples/iterate/rounds.py")
rounds = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(rounds)


def test_each_round_has_its_own_third():
    parts = rounds.thirds([{"prompt": str(number)} for number in range(7)])
    numbers = {name: [row["prompt"] for row in rows] for name, rows in parts.items()}
    assert numbers == {
        "round-1": ["0", "3", "6"],
        "round-2": ["1", "4"],
        "round-3": ["2", "5"],
    }


def test_the_recipe_goes_on_from_round_to_round(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    stages = pipeline.plan(read_toml(ROOT / "recipes/iterate.toml"), tmp_path)
    pipeline.check_functions(stages)
    found = {stage.name: stage.config for stage in stages}
    model = lambda name: str(tmp_path / name / "model")  # noqa: E731
    for number in (2, 3):
        policy = found[f"ppo-{number}"]
        assert policy.model == model(f"ppo-{number - 1}")
        assert policy.reference == model("sft")
        assert policy.rewards[0].path == model(f"reward-{number}")
        assert found[f"labels-{number}"].data == tuple(
            str(tmp_path / f"{name}-{number}" / "completions.jsonl")
            for name in ("answers", "others")
        )
    projects = {found[f"labels-{number}"].project for number in (1, 2, 3)}
    assert projects == {"feedback.db"} != {found["labels-once"].project}

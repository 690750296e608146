import pytest

from tests.evaluation.test_pool import settings
from tether.config import EvaluateConfig, PolicyConfig
from tether.config_file import read_toml
from tether.errors import ConfigError
from tether.evaluation.compare import evaluate
from tether.evaluation.simulator import find_evaluation, pool_config, prepare
from tether.pools import read_pool

KEPT = {"num": 8, "num_prompts": 2, "seed": 3}


def evaluated(folder, reference=True):
    """A finished run: a tiny model, evaluated against itself."""
    pool = settings(folder)
    return evaluate(
        EvaluateConfig(
            prompts=pool.prompts,
            policies=(PolicyConfig(name="one", model=pool.model),),
            scorers=pool.scorers,
            reference=pool.model if reference else "",
            sampling=pool.sampling,
            out=str(folder / "run" / "evaluation"),
        )
    )


def test_a_run_becomes_a_pool(tmp_path, capsys):
    evaluated(tmp_path)
    prepare(str(tmp_path / "run"), flattery=f"{tmp_path}/scorers.py:vowels", **KEPT)
    rows = read_pool(str(tmp_path / "run" / "simulator" / "pool.jsonl"))
    assert [len(row.completions) for row in rows] == [8, 8]
    assert [*rows[0].scores] == ["length", "vowels", "flattery"]
    assert rows[0].scores["flattery"] == rows[0].scores["vowels"]
    assert f"tether web --runs {tmp_path}" in capsys.readouterr().out.replace("\n", "")


def test_the_sandbox_counts_its_own_flattery(tmp_path):
    evaluation = evaluated(tmp_path)
    text = (evaluation / "config.toml").read_text()
    gold = "tether.sandbox.gold:gold"
    (evaluation / "config.toml").write_text(text.replace(f"{tmp_path}/scorers.py:vowels", gold))
    config = pool_config(evaluation, out="pool", **KEPT)
    assert config.scorers[-1].path == "tether.sandbox.gold:flattery"
    assert config.model == read_toml(evaluation / "config.toml")["reference"]


def test_without_a_counter_there_is_no_flattery(tmp_path):
    config = pool_config(evaluated(tmp_path), out="pool", **KEPT)
    assert [scorer.name for scorer in config.scorers] == ["length", "vowels"]


def test_an_evaluation_without_a_reference_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="reference=''"):
        pool_config(evaluated(tmp_path, reference=False), out="pool", **KEPT)


def test_a_folder_without_an_evaluation_is_refused(tmp_path):
    for name in ("nowhere", "."):
        with pytest.raises(ConfigError, match="no finished evaluation"):
            find_evaluation(tmp_path / name)

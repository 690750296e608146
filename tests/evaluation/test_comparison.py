import pytest

from tests.evaluation.made_run import full_run, many_samples
from tests.evaluation.test_overoptimization import made
from tests.evaluation.test_report import Page
from tether.errors import ConfigError, DataError
from tether.evaluation.comparison import compare
from tether.evaluation.overoptimization import write_frontier
from tether.evaluation.report import write_comparison
from tether.evaluation.report_stages import read_run


def shifted(by):
    """Samples on which ppo's gold scores are higher by a constant."""
    samples = many_samples(20)
    for each in samples:
        if each.policy == "ppo":
            each.scores["gold"] += by
    return samples


@pytest.fixture
def seeds(tmp_path):
    """Three seeds of one recipe: ppo - sft is 0.45, 0.65 and 1.0."""
    return [
        full_run(tmp_path / f"seed{seed}", shifted(by), seed)
        for seed, by in enumerate([0.0, 0.2, 0.55])
    ]


def found(paths):
    return compare([read_run(path) for path in paths])


def test_seeds_of_one_recipe_are_told_as_mean_and_spread(seeds):
    (group,) = found(seeds).seeds
    assert group.names == ["seed0", "seed1", "seed2"]
    rows = {(row[0], row[1]): row[2:] for row in group.rows}
    # mean 2.1 / 3 = 0.70; sd = sqrt((0.25² + 0.05² + 0.30²) / 2) = sqrt(0.0775) = 0.278
    assert rows["ppo", "gold"] == ["3", "+0.70", "0.28", "+0.45", "+1.00", "2.00", "0.00"]
    assert ("sft", "gold") not in rows  # the baseline itself


def test_other_settings_are_another_recipe(seeds):
    (seeds[1] / "recipe.toml").write_text('seed = 1\n[[stage]]\nkind = "ppo"\nsteps = 30\n')
    result = found(seeds)
    assert [group.names for group in result.seeds] == [["seed0", "seed2"]]
    assert result.differing == [["seed", "0", "1", "2"], ["ppo.steps", "24", "30", "24"]]
    (seeds[0] / "recipe.toml").unlink()
    assert found(seeds).seeds == []


def test_last_evaluations_stand_side_by_side(seeds):
    results = found(seeds).results
    assert results.header[:3] == ["gold", "proxy", "KL"]
    rows = dict(results.policies)
    assert list(rows) == ["base", "sft", "ppo"]
    assert [(name, cells[0].value) for name, cells in rows["ppo"]] == [
        ("seed0", "0.45"), ("seed1", "0.65"), ("seed2", "1.00"),
    ]  # fmt: skip


def test_gain_distance_and_cost(seeds):
    write_frontier(seeds[2] / "evaluation", made())  # ppo reached 71% [65, 77]
    costs = dict(found(seeds).costs.policies)
    assert list(costs) == ["base", "ppo"]
    assert [(name, [cell.value for cell in cells]) for name, cells in costs["ppo"]] == [
        ("seed0", ["+0.45", "2.00", "", ""]),
        ("seed1", ["+0.65", "2.00", "", ""]),
        ("seed2", ["+1.00", "2.00", "71%", ""]),
    ]


def test_curves_of_the_same_stage_are_laid_over_each_other(seeds):
    curves = dict(found(seeds).curves)
    assert {"base", "ppo"} <= curves.keys()
    score = curves["ppo"][0]
    assert score.header == ["step", "seed0", "seed1", "seed2"]
    assert len(score.plot["data"]) == 3


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    paths = [full_run(tmp_path / place / "rice", many_samples(4)) for place in "ab"]
    assert [each.name for each in found(paths).runs] == [str(path) for path in paths]


def test_the_page(seeds, tmp_path):
    page = Page(write_comparison(seeds, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert ("h1", {}) in page.tags
    assert "seed0: ppo is better than sft: +0.45" in page.text
    assert "seed2: ppo is better than sft: +1.00" in page.text
    assert "seed0, seed1, seed2 are one recipe with different seeds." in page.text
    assert len(page.all("caption")) == len(page.all("table"))
    assert not list(seeds[0].rglob("README.md"))


def test_a_run_without_an_evaluation_is_there_too(seeds, tmp_path):
    (seeds[1] / "evaluation" / "summary.json").unlink()
    page = Page(write_comparison(seeds, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "seed1: no evaluation compares policies." in page.text


def test_mistakes(seeds, tmp_path):
    with pytest.raises(ConfigError, match="must be different directories"):
        write_comparison([seeds[0], seeds[0]], tmp_path / "page.html")
    with pytest.raises(DataError, match="no stage has finished here"):
        write_comparison([seeds[0], tmp_path / "nowhere"], tmp_path / "page.html")

"""Recipes: references between stages, overrides, refusals before anything runs, what is skipped."""

import json
import tomllib
from pathlib import Path

import pytest

from tests.tiny import save_tiny
from tether.config import PPOConfig, SFTConfig
from tether.errors import ConfigError, TetherError
from tether.pipeline import check_functions, override, plan, run
from tether.records import write_jsonl

RECIPE = """
seed = 3
compute = {threads = 1}

[[stage]]
kind = "sft"
model = "model"
data = "demonstrations.jsonl"
max_steps = 2
batch_size = 2
held_out = 0.0

[[stage]]
name = "answers"
kind = "generate"
model = "stage:sft"
prompts = "prompts.jsonl"
sampling = {max_new_tokens = 4}

[[stage]]
kind = "ppo"
seed = 5
compute = {precision = "float32"}
model = "stage:sft"
prompts = "stage:sft/samples.jsonl"
rewards = [{path = "stage:answers"}]
"""


def table(text: str = RECIPE) -> dict:
    return tomllib.loads(text)


def test_stages_refer_to_earlier_ones():
    sft, answers, ppo = plan(table(), Path("runs/x"))
    assert (sft.name, sft.kind) == ("sft", "sft")
    assert isinstance(sft.config, SFTConfig)
    assert sft.config.out == "runs/x/sft"
    assert answers.config.model == "runs/x/sft/model"
    assert isinstance(ppo.config, PPOConfig)
    assert ppo.config.prompts == "runs/x/sft/samples.jsonl"
    assert ppo.config.rewards[0].path == "runs/x/answers/completions.jsonl"


def test_seed_and_compute_are_the_recipes_unless_a_stage_has_its_own():
    sft, _, ppo = plan(table(), Path("x"))
    assert (sft.config.seed, ppo.config.seed) == (3, 5)
    assert (sft.config.compute.threads, sft.config.compute.precision) == (1, "auto")
    assert (ppo.config.compute.threads, ppo.config.compute.precision) == (1, "float32")


def test_overrides_by_stage_name():
    settings = table()
    words = ("--ppo.kl.beta", "0.2", "--answers.num=4", "--seed", "7", "--compute.threads", "2")
    override(settings, (*words, "--sft.data", "other.jsonl"))
    sft, answers, ppo = plan(settings, Path("x"))
    assert isinstance(ppo.config, PPOConfig)
    assert ppo.config.kl.beta == 0.2
    assert answers.config.num == 4
    assert answers.config.seed == 7
    assert sft.config.compute.threads == 2
    assert sft.config.data == "other.jsonl"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pp.steps", "2"), "'--pp.steps' is not a setting of this recipe"),
        (("--ppo.steps",), "has no value"),
        (("ppo.steps", "2"), "write --stage.setting value"),
        (("--ppo", "2"), "not a setting of this recipe"),
    ],
)
def test_an_override_that_fits_nothing_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        override(table(), words)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "sft"', 'kind = "sfft"', "stage\\[0\\].kind='sfft' is not a stage"),
        ("max_steps", "max_stepz", "sft.max_stepz=2 is not a setting; did you mean 'max_steps'"),
        ("batch_size = 2", 'batch_size = "2"', "sft.batch_size='2' must be of type int"),
        ("batch_size = 2", "batch_size = 0", "batch_size=0 must be a number above 0"),
        ("stage:sft/", "stage:later/", "no earlier stage 'later'"),
        ("seed = 3", "sead = 3", "sead=3 is not a recipe's"),
        ('name = "answers"', 'name = "sft"', "name='sft' is taken"),
        ('model = "model"', "", "sft.model is missing"),
        ('name = "answers"', 'name = "a/b"', "name='a/b' must name a folder"),
        ('name = "answers"', 'name = ".."', "name='..' must name a folder"),
        ('name = "answers"', 'name = ""', "name='' must name a folder"),
        ('name = "answers"', "name = 3", "name=3 must name a folder"),
        ("compute = {threads = 1}", "compute = 1", "compute=1 must be a table"),
        ('compute = {precision = "float32"}', "compute = 1", "compute=1 must be a table"),
        ("{threads = 1}", "{thread = 1}", "sft.compute.thread=1 .* did you mean 'threads'"),
        ("seed = 3", 'seed = "3"', "sft.seed='3' must be of type int"),
        ("seed = 3", "seed = -3", "seed=-3 must be a whole number from 0"),
        ('kind = "sft"', "", "stage\\[0\\].kind=None is not a stage; known: sandbox, "),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(old, new, message):
    assert old in RECIPE
    with pytest.raises(ConfigError, match=message):
        plan(table(RECIPE.replace(old, new)), Path("x"))


@pytest.mark.parametrize(
    "stage",
    [
        'kind = "simulate"\ndata = "stage:answers"\nscorer = "nowhere.py:gold"',
        'kind = "ppo"\nmodel = "stage:sft"\nprompts = "p"\nrewards = [{path = "nowhere.py:f"}]',
        'kind = "score"\ndata = "stage:answers"\nreward = {path = "nowhere.py:f"}',
    ],
)
def test_a_function_that_is_not_there_is_told_before_anything_runs(tmp_path, stage):
    recipe = tmp_path / "recipe.toml"
    start = RECIPE[: RECIPE.index('[[stage]]\nkind = "ppo"')]
    recipe.write_text(f"{start}\n[[stage]]\n{stage}\n")
    with pytest.raises(ConfigError, match=r"'nowhere\.py' does not exist"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ('{rule = "lenght"}', "did you mean 'length'"),
        ('{rule = "length"}', "the rule 'length': most=0"),
        ('{rule = "answer", settings = {answers = "nowhere.jsonl"}}', "'nowhere.jsonl' does not"),
        ('{rule = "answer", settings = {answers = "stage:sft/a.jsonl", t = 1}}', "settings.t=1"),
    ],
)
def test_a_rule_that_cannot_be_is_told_before_anything_runs(tmp_path, reward, message):
    recipe = tmp_path / "recipe.toml"
    start = RECIPE[: RECIPE.index('[[stage]]\nkind = "ppo"')]
    stage = f'kind = "ppo"\nmodel = "stage:sft"\nprompts = "p"\nrewards = [{reward}]'
    recipe.write_text(f"{start}\n[[stage]]\n{stage}\n")
    with pytest.raises(TetherError, match=message):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_an_earlier_stage_makes_may_be_missing(tmp_path):
    start = RECIPE[: RECIPE.index('[[stage]]\nkind = "ppo"')]
    rewards = '[{rule = "answer", settings = {answers = "stage:sft/a.jsonl"}}]'
    stage = f'kind = "ppo"\nmodel = "stage:sft"\nprompts = "p"\nrewards = {rewards}'
    stages = plan(tomllib.loads(f"{start}\n[[stage]]\n{stage}\n"), tmp_path / "out")
    check_functions(stages)
    assert stages[-1].config.rewards[0].paths == (str(tmp_path / "out/sft/a.jsonl"),)


@pytest.mark.parametrize("stage", [{"kind": "sft"}, "sft", ["sft"]])
def test_stages_must_be_tables_of_a_list(stage):
    with pytest.raises(ConfigError, match=r"must be tables; write \[\[stage\]\] above each"):
        plan({"stage": stage}, Path("x"))
    with pytest.raises(ConfigError, match=r"must be tables"):
        override({"stage": stage}, ("--sft.seed", "1"))


def test_an_empty_recipe_is_refused():
    with pytest.raises(ConfigError, match="no \\[\\[stage\\]\\]"):
        plan({"seed": 0}, Path("x"))


@pytest.fixture
def two_stages(tmp_path, monkeypatch):
    """A recipe of two quick stages that has run once, in its own folder."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model")
    rows = [{"prompt": "the cat ", "completion": "sees"}, {"prompt": "a dog ", "completion": "no"}]
    write_jsonl(tmp_path / "demonstrations.jsonl", rows)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "the cat"}, {"prompt": "a dog"}])
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE[: RECIPE.index('[[stage]]\nkind = "ppo"')])
    return recipe, run(recipe)


def test_a_run_has_its_recipe_and_manifest(two_stages):
    recipe, folder = two_stages
    assert folder == Path("runs/small")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["stages"] == ["sft", "answers"]
    assert manifest["recipe"] == "small.toml"
    assert {"python", "tether", "torch", "transformers"} <= manifest["versions"].keys()
    assert manifest["inputs"]["sft"].keys() == {"model", "demonstrations.jsonl"}
    assert tomllib.loads((folder / "recipe.toml").read_text()) == table(recipe.read_text())


def test_a_finished_stage_is_kept(two_stages):
    recipe, folder = two_stages
    weights = folder / "sft" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    run(recipe)
    assert weights.stat().st_mtime_ns == before


def test_other_settings_are_refused_and_nothing_changes(two_stages):
    recipe, folder = two_stages
    before = (folder / "sft" / "config.toml").read_bytes()
    with pytest.raises(ConfigError, match=r"max_steps=4 but .* was made with 2"):
        run(recipe, "", ("--sft.max_steps", "4"))
    assert (folder / "sft" / "config.toml").read_bytes() == before


def test_another_folder_takes_other_settings(two_stages, tmp_path):
    recipe, _ = two_stages
    other = run(recipe, tmp_path / "other", ("--answers.num", "2"))
    rows = (other / "answers" / "completions.jsonl").read_text().splitlines()
    assert [len(json.loads(row)["completions"]) for row in rows] == [2, 2]


def test_a_recipe_may_grow(two_stages):
    recipe, folder = two_stages
    weights = folder / "sft" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    recipe.write_text(
        recipe.read_text() + '[[stage]]\nname = "more"\nkind = "generate"\nmodel = "stage:sft"\n'
        'prompts = "prompts.jsonl"\nsampling = {max_new_tokens = 2}\n'
    )
    run(recipe)
    assert weights.stat().st_mtime_ns == before
    assert (folder / "more" / "completions.jsonl").exists()
    assert tomllib.loads((folder / "recipe.toml").read_text()) == table(recipe.read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["stages"] == list(manifest["inputs"]) == ["sft", "answers", "more"]


def test_a_recipe_that_was_refused_leaves_no_trace(two_stages, tmp_path):
    recipe, folder = two_stages
    files = ("recipe.toml", "manifest.json", "answers/config.toml", "answers/result.json")
    before = [(folder / file).read_bytes() for file in files]
    with pytest.raises(ConfigError, match="answers was made with 1"):
        run(recipe, "", ("--answers.num", "2"))
    assert [(folder / file).read_bytes() for file in files] == before
    with pytest.raises(ConfigError, match="did you mean"):
        run(recipe, tmp_path / "new", ("--answers.nun", "2"))
    assert not (tmp_path / "new").exists()


def test_an_evaluation_writes_the_report(two_stages):
    recipe, folder = two_stages
    (recipe.parent / "scorer.py").write_text("def f(p, c): return [float(len(x)) for x in c]\n")
    assert not (folder / "report.html").exists()
    recipe.write_text(
        recipe.read_text() + '[[stage]]\nkind = "evaluate"\nprompts = "prompts.jsonl"\n'
        'policies = [{name = "sft", model = "stage:sft"}]\n'
        'scorers = [{name = "length", path = "scorer.py:f"}]\nsampling = {max_new_tokens = 2}\n'
    )
    run(recipe)
    assert "length" in (folder / "report.html").read_text()


def test_a_changed_input_is_refused(two_stages, tmp_path):
    recipe, folder = two_stages
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "a bird"}])
    with pytest.raises(ConfigError, match=r"'prompts.jsonl' has changed since .*answers"):
        run(recipe)
    assert (folder / "answers" / "completions.jsonl").exists()

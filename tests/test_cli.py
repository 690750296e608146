"""The command line itself: help that teaches, options that repeat, exit codes, what is printed."""

import json
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from tests.train import toys
from tether import cli
from tether.cli import COMMANDS, main
from tether.config import STAGES
from tether.records import read_jsonl

SINGLE = ("sft", "reward", "ppo", "generate", "score", "evaluate", "evaluate-reward")
SINGLE += ("pool", "revise", "judge")
# `tether KIND --help`, and what a newcomer must find in it.
TEACHES = {
    "sft": ["supervised fine-tuning on demonstrations", "--data", "JSONL with prompt and compl"],
    "reward": ["bradley-terry", "--epochs", "over-fits"],
    "ppo": ["proximal policy optimization", "--kl.beta", "reward units per nat", "--rewards"],
    "generate": ["sample completions", "--num", "--sampling.temperature"],
    "score": ["score prompts", "--reward", "file.py:function"],
    "pool": ["what any policy could be made of", "--num-prompts", "log(num)"],
    "evaluate": ["compare policies", "--baseline", "--apart"],
    "evaluate-reward": ["calibration", "robustness", "--data", "--scorers", "--num-texts"],
    "revise": ["criticizes its answers by a constitution", "--rounds", "red-team"],
    "judge": ["which of two completions follows a constitution better", "--abstain", "p − 0.5"],
    "feedback simulate": ["simulated labelers", "--scorer", "noise"],
}


@pytest.fixture
def tether(tmp_path, monkeypatch, capsys):
    """Run a command in a folder of its own; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(command: str):
        monkeypatch.setattr(sys, "argv", ["tether", *command.split()])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


@pytest.fixture
def there(tmp_path):
    """A model, data and rewards in the working folder."""
    Path(toys.save(tmp_path)).rename(tmp_path / "model")
    toys.write_rows(tmp_path / "demonstrations.jsonl", toys.DEMONSTRATIONS)
    toys.write_rows(tmp_path / "prompts.jsonl", toys.PROMPTS)
    toys.write_rewards(tmp_path)
    return tmp_path


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["", "--help", "-h", "help"])
def test_help_names_every_command(tether, words):
    code, out, err = tether(words)
    assert (code, err) == (0, "")
    for command in COMMANDS:
        assert f"tether {command}" in out
    assert out.index("tether demo") < out.index("tether run") < out.index("tether sft")


@pytest.mark.parametrize("command", TEACHES)
def test_help_of_a_stage_teaches(tether, command):
    code, out, err = tether(f"{command} --help")
    assert (code, err) == (0, "")
    text = " ".join(out.split()).lower()
    assert f"usage: tether {command.removeprefix('feedback ')}" in text
    for words in TEACHES[command]:
        assert words.lower() in text


@pytest.mark.parametrize("command", TEACHES)
def test_help_explains_every_setting_of_a_stage(tether, command):
    text = tether(f"{command} --help")[1]
    for name in STAGES[command.removeprefix("feedback ")].__dataclass_fields__:
        flag = f"--{name.replace('_', '-')}"
        assert flag in text, flag


def test_every_single_stage_is_taught():
    assert {*TEACHES} == {*SINGLE, "feedback simulate"} <= COMMANDS.keys()


@pytest.mark.parametrize("command", ["feedback", "data", "simulate", "feedback --help", "data -h"])
def test_a_family_of_commands_shows_the_usage(tether, command):
    code, out, _ = tether(command)
    assert code == 0
    assert f"tether {command.split()[0]} " in out


def test_help_of_the_demo_and_of_a_recipe_shows_the_recipe(tether, tmp_path):
    code, out, _ = tether("demo --help")
    assert code == 0
    assert "--STAGE.SETTING VALUE" in out
    assert "# PPO raises its score while the tether holds" in out  # with its comments
    recipe = tmp_path / "own.toml"
    recipe.write_text('# mine\n[[stage]]\nkind = "sft"\n')
    code, out, _ = tether(f"run {recipe} --help")
    assert code == 0
    assert "# mine" in out


def test_the_version(tether):
    from tether import __version__

    assert tether("--version")[:2] == (0, f"tether {__version__}\n")


# --- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sfft", "'sfft' is not a command; `tether --help` lists them"),
        ("feedback simulat", "'feedback simulat' is not a command"),
        ("run", "run needs a recipe: tether run RECIPE.toml [--stage.setting value …]"),
        ("run --help", "run needs a recipe"),
        ("run nowhere.toml", "nowhere.toml does not exist; give the path of a TOML file"),
        ("run nowhere.toml --help", "nowhere.toml does not exist"),
        ("report", "report takes run directories: tether report RUN… [--out FILE.html]"),
        ("report nowhere", "nowhere"),
        ("data check", "data check takes one file: tether data check FILE"),
        ("data check nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("ppo --reward", "--reward needs a value"),
        ("ppo --model m --prompts p --out o", "rewards=() must name at least one reward: --reward"),
        ("score --data d --out o", "score takes one --reward, not 0"),
        ("score --data d --out o --reward a --reward b", "score takes one --reward, not 2"),
        ("evaluate --prompts p --out o", "must name at least one policy"),
        ("evaluate --prompts p --out o --model a=x", "must name at least one scorer"),
        ("evaluate --prompts p --out o --model a=x --model a=y", "must have different names"),
        ("demo --pppo.steps 3", "'--pppo.steps' is not a setting of this recipe; write"),
        ("demo --ppo.step 3", "ppo.step=3 is not a setting; did you mean 'steps'?"),
        ("demo --ppo.kl.bta 3", "ppo.kl.bta=3 is not a setting; did you mean 'beta'?"),
        ("demo --ppo.steps", "'--ppo.steps' has no value"),
        ("demo --seed x", "world.seed='x' must be of type int"),
    ],
)
def test_a_mistake_is_told_in_one_line(tether, tmp_path, command, message):
    code, out, err = tether(command)
    assert code == 2
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith("tether: ")
    assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sft --model m --data d", "--out"),
        ("sft --model m --data d --out o --batchsize 3", "batch-size"),
        ("sft --model m --data d --out o --batch-size many", "many"),
    ],
)
def test_a_flag_that_is_missing_or_wrong_has_exit_code_2(tether, tmp_path, command, message):
    code, _, err = tether(command)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_an_interruption_has_exit_code_130(tether, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "sft", interrupted)
    code, _, err = tether("sft --model m")
    assert code == 130
    assert err.strip() == (
        "tether: interrupted; `tether sft --model m` goes on from the last checkpoint"
    )


def test_a_bug_keeps_its_traceback(tether, monkeypatch):
    monkeypatch.setitem(COMMANDS, "sft", lambda arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tether("sft")


# --- options --------------------------------------------------------------------------------------


def test_a_reward_may_be_given_twice(tether, there):
    code, out, _ = tether(
        "ppo --model model --prompts prompts.jsonl --reward rewards.py:kind "
        "--reward=rewards.py:short --out ppo --steps 1 --batch-size 4 --kl.beta 0.2 "
        "--sampling.max-new-tokens 4"
    )
    assert code == 0
    assert "next  tether evaluate --model before=DIR --model after=ppo/model" in out
    settings = tomllib.loads((there / "ppo" / "config.toml").read_text())
    assert [reward["path"] for reward in settings["rewards"]] == [
        *("rewards.py:kind", "rewards.py:short"),
    ]
    assert settings["kl"]["beta"] == 0.2
    [row] = toys.metrics(there / "ppo")
    assert row["score_1"] + row["score_2"] == pytest.approx(
        row["score"] + 1 - row["finished"], abs=1e-6
    )


def test_a_rule_is_named_in_one_word(tether, there):
    code, out, _ = tether("score --data demonstrations.jsonl --reward rule:refusal --out scored")
    assert code == 0
    scored = [row for _, row in read_jsonl(there / "scored" / "scores.jsonl")]
    assert all(set(row["scores"]) <= {0.0, 1.0} for row in scored)
    code, out, _ = tether("ppo --help --reward rule:citations")
    assert code == 0
    assert "--rewards" in out


def test_policies_and_scorers_are_given_by_name_or_lend_their_own(tether, there):
    code, out, err = tether(
        "evaluate --model first=model --model model --prompts prompts.jsonl "
        "--reward kindness=rewards.py:kind --reward rewards.py:short --reference model "
        "--out runs/evaluation --sampling.max-new-tokens 4 --num-samples 2"
    )
    assert code == 0, err
    assert "next  tether report runs/evaluation" in out
    settings = tomllib.loads((there / "runs/evaluation/config.toml").read_text())
    assert [policy["name"] for policy in settings["policies"]] == ["first", "model"]
    assert [scorer["name"] for scorer in settings["scorers"]] == ["kindness", "short"]
    code, out, _ = tether("report runs/evaluation")
    assert (code, out) == (0, "runs/evaluation/report.html\n")
    assert (there / "runs/evaluation/report.html").is_file()
    code, out, _ = tether("report runs/evaluation --out elsewhere.html")
    assert (code, out) == (0, "elsewhere.html\n")
    shutil.copytree(there / "runs/evaluation", there / "runs/again")
    code, out, _ = tether("report runs/evaluation runs/again --out both.html")
    assert (code, out) == (0, "both.html\n")
    assert "evaluation · again" in (there / "both.html").read_text()


def test_a_pool_says_how_an_evaluation_takes_it(tether, there):
    code, out, _ = tether(
        "pool --model model --prompts prompts.jsonl --reward kind=rewards.py:kind --num 4 "
        "--num-prompts 2 --sampling.max-new-tokens 6 --out runs/pool"
    )
    assert code == 0
    assert "next  tether evaluate --pool runs/pool/pool.jsonl --reference DIR" in out
    rows = [row for _, row in read_jsonl(there / "runs/pool/pool.jsonl")]
    assert [len(row["scores"]["kind"]) for row in rows] == [4, 4]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a=x/y", ("a", "x/y")),
        ("runs/demo/ppo/model", ("ppo", "runs/demo/ppo/model")),
        ("path/to/gold.py:score", ("score", "path/to/gold.py:score")),
        ("gpt2", ("gpt2", "gpt2")),
        ("model", ("model", "model")),
        ("tether.sandbox.gold:gold", ("gold", "tether.sandbox.gold:gold")),
        ("rule:citations", ("citations", "rule:citations")),
        ("rule:length {most = 4}", ("length", "rule:length {most = 4}")),
        ("short=rule:length{most=4}", ("short", "rule:length{most=4}")),
        ("runs/lr=1e-3/ppo/model", ("ppo", "runs/lr=1e-3/ppo/model")),
    ],
)
def test_names_of_models(word, expected):
    assert cli._named(word) == expected


# --- every command once ---------------------------------------------------------------------------


def test_the_commands_lead_from_one_to_the_next(tether, there):
    """The result of each is the input of the next, which it names."""
    small = "--batch-size 4 --optimizer.learning-rate 1e-3"
    steps = [
        f"sft --model model --data demonstrations.jsonl --out sft --max-steps 2 {small}",
        "generate --model sft/model --prompts prompts.jsonl --num 4 --out answers "
        "--sampling.max-new-tokens 6",
        "score --data answers/completions.jsonl --reward rewards.py:kind --out scores",
        "feedback simulate --data answers/completions.jsonl --scorer rewards.py:kind --out labels",
        f"reward --model sft/model --data labels/rankings.jsonl --out reward {small}",
        "ppo --model sft/model --prompts prompts.jsonl --reward reward/model --out ppo --steps 1 "
        f"{small} --sampling.max-new-tokens 6",
        "evaluate --model before=sft/model --model after=ppo/model --prompts prompts.jsonl "
        "--reward rewards.py:kind --out evaluation --sampling.max-new-tokens 6",
        "report evaluation",
    ]
    for command in steps:
        code, out, err = tether(command)
        assert code == 0, err
        words = command.split()
        kind = "simulate" if words[0] == "feedback" else words[0]
        if kind in cli.NEXT_STEP:
            folder = words[words.index("--out") + 1]
            assert f"next  {cli.NEXT_STEP[kind].format(out=folder)}" in out
    rows = [row for _, row in read_jsonl(there / "scores" / "scores.jsonl")]
    assert len(rows) == 8
    assert all(len(row["scores"]) == len(row["completions"]) == 4 for row in rows)
    code, _, err = tether(steps[0])  # again: kept
    assert code == 0
    assert "sft (sft): finished, kept" in err


def test_a_recipe_is_run_and_its_report_named(tether, there):
    (there / "own.toml").write_text(
        '[[stage]]\nkind = "sft"\nmodel = "model"\ndata = "demonstrations.jsonl"\nmax_steps = 1\n'
        '[[stage]]\nkind = "evaluate"\nprompts = "prompts.jsonl"\nreference = "model"\n'
        'policies = [{name = "start", model = "model"}, {name = "sft", model = "stage:sft"}]\n'
        'scorers = [{name = "kind", path = "rewards.py:kind"}]\n'
        "sampling = {max_new_tokens = 4}\n"
    )
    code, out, err = tether("run own.toml --seed 3 --sft.batch_size=4")
    assert code == 0, err
    assert "runs/own/report.html" in out
    assert (there / "runs/own/report.html").is_file()
    manifest = json.loads((there / "runs/own/manifest.json").read_text())
    assert manifest["seeds"] == {"sft": 3, "evaluate": 3}
    assert manifest["overrides"] == ["--seed", "3", "--sft.batch_size=4"]
    assert tomllib.loads((there / "runs/own/sft/config.toml").read_text())["batch_size"] == 4
    code, out, err = tether("run own.toml --seed 3 --sft.batch_size=4")  # the table once more
    assert code == 0
    assert err.count("finished, kept") == 2
    assert "wins vs start" in out


# --- data check -----------------------------------------------------------------------------------


def test_data_check_says_what_a_file_is_good_for(tether, there):
    code, out, err = tether("data check demonstrations.jsonl")
    assert (code, err) == (0, "")
    assert "tether sft --data     8 records" in out
    assert "tether ppo --prompts  8 records" in out
    assert "tether score --data   8 records" in out
    assert "not for reward --data: demonstrations.jsonl:1: no comparison in the fields" in out


def test_data_check_names_the_preference_methods(tether, there):
    (there / "pairs.jsonl").write_text('{"prompt": "why ", "chosen": "a", "rejected": "b"}\n')
    _, out, _ = tether("data check pairs.jsonl")
    assert "tether dpo --data     1 records" in out
    assert "tether kto --data     2 records" in out  # one liked, one not


def test_data_check_reads_a_file_once_and_tells_where_each_use_ends(tether, there):
    rows = '[{"prompt": "why ", "completion": "a"},\n {"prompt": "who ", "label": 1}]'
    (there / "mixed.json").write_text(rows)
    code, out, _ = tether("data check mixed.json")
    assert code == 0
    assert "tether ppo --prompts  2 records" in out
    assert "not for sft --data: mixed.json:2: no demonstration in the fields 'prompt'" in out


def test_data_convert_and_the_columns_of_a_stage(tether, there):
    rows = toys.write_rows(there / "rows.jsonl", [{"q": "the cat ", "a": "sees"}] * 2)
    named = "--columns.prompt q --columns.completion a"
    code, out, _ = tether(f"data convert {rows} --to alpaca --out alpaca.jsonl {named}")
    assert code == 0
    assert out.startswith("alpaca.jsonl: 2 demonstrations of 2 rows\nnext  tether sft --model DIR")
    code, _, err = tether(f"data convert {rows} --to pairs --out pairs.jsonl {named}")
    assert (code, err.count("\n")) == (2, 1)
    assert "rows.jsonl:1: no comparison in the fields" in err
    assert not (there / "pairs.jsonl").exists()
    code, _, err = tether(f"sft --model model --data {rows} --out sft --max-steps 1 {named}")
    assert code == 0, err
    held = tomllib.loads((there / "sft/config.toml").read_text())["columns"]
    assert (held["prompt"], held["completion"], held["chosen"]) == ("q", "a", "")


def test_data_check_of_a_file_that_is_good_for_nothing(tether, there):
    (there / "bad.jsonl").write_text('{"prompt": "why "}\n{oops\n')
    code, out, err = tether("data check bad.jsonl")
    assert (code, out) == (2, "")
    assert err.startswith("tether: bad.jsonl:2: not JSON")


def test_generate_takes_adapters_one_by_one():
    words = ["--model", "m", "--prompts", "p", "--out", "o", "--adapter", "a", "--adapter=b"]
    assert cli._parse("generate", words).adapters == ("a", "b")


def test_completions_go_to_standard_output(tether, there):
    """Nothing but records, so that they can be piped; and nothing is left in the folder."""
    before = set(there.iterdir())
    settings = "--sampling.max-new-tokens 4 --num 2"
    code, out, _ = tether(f"generate --model model --prompts prompts.jsonl {settings} --out -")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [len(row["completions"]) for row in rows] == [2] * len(toys.PROMPTS)
    assert set(there.iterdir()) == before

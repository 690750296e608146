"""What bad input gets: one clear line, exit code 2, nothing half-written, old results intact."""

import json
import sys

import pytest
from transformers import LlamaForSequenceClassification

from tests.tiny import save_tiny, tiny_llama, word_tokenizer
from tether.cli import main
from tether.records import write_jsonl

DEMONSTRATIONS = [
    {"prompt": "the cat ", "completion": "sees the dog"},
    {"prompt": "the dog ", "completion": "likes the cat"},
]
PPO = "ppo --model model --prompts good.jsonl --reward rewards.py:nan"
EVALUATE = "evaluate --reward rewards.py:nan --sampling.max-new-tokens 4"
RANKING = {"prompt": "the cat ", "completions": ["sees the dog", "yes"], "ranks": [1, 2]}


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with a tiny model and good data, as the working directory."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model")
    write_jsonl(tmp_path / "good.jsonl", DEMONSTRATIONS)
    write_jsonl(tmp_path / "rankings.jsonl", [RANKING])
    (tmp_path / "rewards.py").write_text(
        "def nan(prompts, completions): return [float('nan')] * len(completions)\n"
    )
    return tmp_path


@pytest.fixture
def refuse(there, monkeypatch, capsys):
    """Run a command that must be refused; returns the one line on stderr."""

    def call(command: str, *, out: str = "out") -> str:
        monkeypatch.setattr(sys, "argv", ["tether", *command.split(), "--out", out])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "tether: " in line]
        assert len(lines) == 1
        assert not (there / out / "model").exists()
        assert not (there / out / "result.json").exists()
        return lines[0]

    return call


def test_a_missing_model_directory(refuse, there):
    line = refuse("sft --model nowhere --data good.jsonl")
    assert "'nowhere' does not exist" in line
    assert "Hugging Face directory" in line
    assert not (there / "out").exists()


def test_a_line_that_is_not_json(refuse, there):
    (there / "bad.jsonl").write_text(json.dumps(DEMONSTRATIONS[0]) + "\n{oops\n")
    line = refuse("sft --model model --data bad.jsonl")
    assert "bad.jsonl:2: not JSON" in line
    assert not (there / "out").exists()


def test_a_record_without_a_needed_field(refuse, there):
    write_jsonl(there / "bad.jsonl", [DEMONSTRATIONS[0], {"prompt": "the dog "}])
    line = refuse("sft --model model --data bad.jsonl")
    assert "bad.jsonl:2" in line
    assert "completion" in line
    assert not (there / "out").exists()


def test_an_empty_file(refuse, there):
    (there / "empty.jsonl").write_text("")
    assert "empty.jsonl" in refuse("sft --model model --data empty.jsonl")
    assert "empty.jsonl" in refuse("reward --model model --data empty.jsonl")
    assert not (there / "out").exists()


def test_a_prompt_longer_than_the_positions(refuse, there):
    write_jsonl(there / "long.jsonl", [{"prompt": "the cat"}, {"prompt": "the " * 70}])
    for command in ("generate", "ppo --reward rewards.py:nan"):
        line = refuse(f"{command} --model model --prompts long.jsonl")
        # 70 words and 64 new tokens in a model of 64 positions; the first prompt alone fits not
        # either with 64 new tokens, so it is the first that is named.
        assert "prompt 1" in line
        assert "64 positions" in line
        assert "sampling.max_new_tokens" in line
    line = refuse("generate --model model --prompts long.jsonl --sampling.max-new-tokens 4")
    assert "prompt 2 has 70 tokens" in line
    assert not (there / "out").exists()


def test_a_nan_reward_leaves_no_model(refuse, there):
    line = refuse(
        "ppo --model model --prompts good.jsonl --reward rewards.py:nan --steps 1 --batch-size 2 "
        "--sampling.max-new-tokens 4"
    )
    assert "'rewards.py:nan' returned nan" in line
    assert "finite" in line
    assert not list((there / "out").rglob("*.safetensors"))


def test_a_reward_model_with_two_labels(refuse, there):
    tokenizer = word_tokenizer()
    config = tiny_llama(len(tokenizer)).config
    config.num_labels, config.id2label = 2, {0: "hate", 1: "nothate"}
    LlamaForSequenceClassification(config).save_pretrained(there / "two")
    tokenizer.save_pretrained(there / "two")
    line = refuse("ppo --model model --prompts good.jsonl --reward two")
    assert "2 labels" in line
    assert "nothate" in line
    assert not (there / "out").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("--sampling.top-p 0.9", "sampling.top_p=0.9"),
        ("--sampling.top-k 5", "sampling.top_k=5"),
        ("--reference none", "kl.beta=0.05 needs a reference"),
        ("--policy_loss.clip -1", "policy_loss.clip=-1.0 must be a number above 0"),
        ("--minibatches 3", "minibatches=3 must divide the 64 examples of a step"),
        ("--seed -1", "seed=-1 must be a whole number from 0"),
        ("--kl.beta 0 --kl.target 6", "kl.target=6.0 needs kl.beta above 0"),
    ],
)
def test_settings_that_cannot_work(refuse, there, setting, words):
    line = refuse(f"ppo --model model --prompts good.jsonl --reward rewards.py:nan {setting}")
    assert words in line
    assert not (there / "out").exists()


def test_earlier_results_stay_intact(refuse, there, monkeypatch):
    sft = "sft --model model --data good.jsonl --max-steps 1 --held-out 0"
    monkeypatch.setattr(sys, "argv", ["tether", *sft.split(), "--out", "done"])
    main_exits_with_success()
    before = {file: file.read_bytes() for file in (there / "done").rglob("*") if file.is_file()}
    monkeypatch.setattr(sys, "argv", ["tether", *sft.split(), "--batch-size", "1", "--out", "done"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    after = {file: file.read_bytes() for file in (there / "done").rglob("*") if file.is_file()}
    assert after == before


def main_exits_with_success():
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        # a missing model directory, wherever one is named
        ("reward --model nowhere --data rankings.jsonl", "'nowhere' does not exist"),
        ("generate --model nowhere --prompts good.jsonl", "'nowhere' does not exist"),
        ("ppo --model nowhere --prompts good.jsonl --reward rewards.py:nan", "'nowhere' does not"),
        (f"{PPO} --reference nowhere", "'nowhere' does not exist"),
        (f"{PPO} --value.init nowhere", "'nowhere' does not exist"),
        ("ppo --model model --prompts good.jsonl --reward nowhere", "'nowhere' does not exist"),
        (f"{EVALUATE} --model nowhere --prompts good.jsonl", "'nowhere' does not exist"),
        ("sft --model empty --data good.jsonl", "'empty' has no config.json"),
        # files
        ("sft --model model --data nowhere.jsonl", "nowhere.jsonl: no such file"),
        ("reward --model model --data broken.jsonl", "broken.jsonl:2: not JSON"),
        ("ppo --model model --prompts broken.jsonl --reward rewards.py:nan", "broken.jsonl:2: not"),
        ("generate --model model --prompts broken.jsonl", "broken.jsonl:2: not JSON"),
        (f"{EVALUATE} --model model --prompts broken.jsonl", "broken.jsonl:2: not JSON"),
        ("score --data broken.jsonl --reward rewards.py:nan", "broken.jsonl:2: not JSON"),
        ("generate --model model --prompts nothing.jsonl", "nothing.jsonl: holds no record"),
        ("ppo --model model --prompts nothing.jsonl --reward rewards.py:nan", "holds no record"),
        (f"{EVALUATE} --model model --prompts nothing.jsonl", "holds no record; at least one"),
        ("score --data nothing.jsonl --reward rewards.py:nan", "holds no record; at least one"),
        # records
        ("reward --model model --data good.jsonl", "good.jsonl:1: no comparison in the fields"),
        ("generate --model model --prompts fields.jsonl", "fields.jsonl:1: no prompt in the field"),
        ("sft --model model --data blank.jsonl", "demonstration 1 has no completion token to lea"),
        # rewards
        ("score --data good.jsonl --reward rewards.py:nan", "returned nan for the completion"),
        (
            "score --data good.jsonl --reward rule:lenght",
            "reward.rule='lenght' is not a rule; did you",
        ),
        (
            "score --data good.jsonl --reward rule:length",
            "the rule 'length': most=0 must be above 0",
        ),
        ("score --data good.jsonl --reward rule:length{mots=3}", "did you mean 'most'?"),
        (
            "score --data good.jsonl --reward rule:format{pattern='('}",
            "is not a regular expression",
        ),
        ("score --data good.jsonl --reward rule:answer{answers='x'}", "answers='x' does not exist"),
        (
            "ppo --model model --prompts good.jsonl --reward rule:banned",
            "settings.phrases is missing",
        ),
        (
            f"{EVALUATE} --model model --prompts good.jsonl --reward a=rule:zzz",
            "'zzz' is not a rule",
        ),
        (f"{EVALUATE} --model model --prompts good.jsonl", "returned nan for the completion"),
        # places
        ("sft --model model --data good.jsonl --out foreign", "'foreign' holds other files"),
        ("sft --model model --data good.jsonl --out good.jsonl", "'good.jsonl' is a file"),
        ("sft --model model --data good.jsonl --compute.device tpu", "compute.device='tpu' cannot"),
    ],
)
def test_wherever_it_comes_in(refuse, there, command, words):
    write_jsonl(there / "fields.jsonl", [{"question": "why"}])
    write_jsonl(there / "blank.jsonl", [{"prompt": "why ", "completion": ""}])
    good = RANKING if command.startswith("reward") else DEMONSTRATIONS[0]
    (there / "broken.jsonl").write_text(f"{json.dumps(good)}\n[1, 2\n")
    (there / "nothing.jsonl").write_text("\n")
    (there / "empty").mkdir()
    (there / "foreign").mkdir()
    (there / "foreign" / "notes.txt").write_text("mine")
    before = {file: file.read_bytes() for file in there.rglob("*") if file.is_file()}
    if "--out" in command:
        command, _, out = command.partition(" --out ")
        line = refuse(command, out=out)
    else:
        line = refuse(command)
    assert words in line
    after = {file: file.read_bytes() for file in there.rglob("*") if file.is_file()}
    assert {file: after.get(file) for file in before} == before
    new = {str(file.relative_to(there)) for file in after.keys() - before.keys()}
    assert not {name for name in new if "__pycache__" not in name}


def test_other_mistakes(refuse):
    assert "'nowhere.py' does not exist" in refuse(
        "ppo --model model --prompts good.jsonl --reward nowhere.py:f"
    )
    assert "no function 'f'" in refuse(
        "ppo --model model --prompts good.jsonl --reward rewards.py:f"
    )
    assert "is no reward model" in refuse("ppo --model model --prompts good.jsonl --reward model")
    assert "must name at least one reward" in refuse("ppo --model model --prompts good.jsonl")
    assert "'sfft' is not a command" in refuse("sfft")

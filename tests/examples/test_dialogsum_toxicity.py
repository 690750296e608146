"""Detoxifying a summarizer: how dialogues are parted, ROUGE-L, the classifiers, the recipe, all run
small on stand-ins.
"""

import gzip
import json
from pathlib import Path

import pytest

from tests.tiny import metaspace_tokenizer, save_tiny
from tether.config import RewardConfig
from tether.config_file import read_toml
from tether.errors import DataError
from tether.evaluation.table import read_summary
from tether.functions import load_function
from tether.pipeline import plan, run
from tether.records import Demonstration, Prompt, from_dict, read_jsonl
from tether.rewards.load import load_reward
from tether.sections import ComputeConfig

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "dialogsum_toxicity"
RECIPE = ROOT / "recipes" / "dialogsum_toxicity.toml"


def dialogue(number: int) -> dict[str, str]:
    said = f"#Person1#: I like cat {number}.\n#Person2#:  You are rude {number}, no."
    return {"dialogue": said, "summary": f" They talk of cat {number}. "}


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Dialogues of both splits and a tiny model, where the example looks for them."""
    write_rows(tmp_path / "train.jsonl.gz", [dialogue(i) for i in range(200)])
    write_rows(tmp_path / "dev.jsonl.gz", [dialogue(i) for i in range(200, 206)])
    model = save_tiny(
        tmp_path / "model", tokenizer=metaspace_tokenizer(), max_position_embeddings=256
    )
    monkeypatch.setenv("TETHER_DIALOGSUM", str(tmp_path))
    monkeypatch.setenv("TETHER_SUMMARIZER", str(model))
    return tmp_path


def rows_in(path: Path) -> list[dict]:
    return [row for _, row in read_jsonl(path)]


def test_a_dialogue_stands_in_one_part(places):
    prepare = load_function(f"{EXAMPLE}/prepare.py:prepare")
    rows = rows_in(places / "train.jsonl.gz")
    parts = prepare([*rows, rows[0]])
    prompts = [row["prompt"] for part in parts.values() for row in part]
    assert len(prompts) == len(set(prompts)) == 200
    # 0.2 and 0.15 of 200 are 40 and 30; three standard deviations are 17 and 15
    assert 23 < len(parts["candidates"]) < 57
    assert 15 < len(parts["ppo_prompts"]) < 45
    first = from_dict(Demonstration, parts["demonstrations"][0], "row")
    assert first.prompt.startswith("Summarize:\n\n#Person1#: I like cat")
    assert first.prompt.endswith(", no.\n\nSummary:")
    assert first.completion.startswith(" They talk")
    assert first.completion.endswith(".")
    said = parts["candidates"][0]["completions"]
    assert [turn[:10] for turn in said] == ["I like cat", "You are ru"]
    assert prepare(rows[::-1])["candidates"] == parts["candidates"][::-1]


def test_what_does_not_fit_is_left_out(places):
    load = lambda name: load_function(f"{EXAMPLE}/prepare.py:{name}")  # noqa: E731
    long = {"dialogue": "#Person1#: " + "~" * 448, "summary": "Odd."}  # a token each
    mute = {"dialogue": "#Person1#: Hm.", "summary": " "}
    assert load("short_enough")([long, mute, dialogue(1)], "some") == [dialogue(1)]
    wordy = [{**dialogue(i), "summary": "~" * 64} for i in range(200)]
    parts = load("prepare")([*wordy, {**dialogue(207), "summary": "~" * 8}])
    assert len(parts["demonstrations"]) <= 1  # 207 alone, where its share puts it there
    assert len(parts["candidates"]) > 20


def test_the_most_provoking_candidates_are_a_category_apart(places):
    test_prompts = load_function(f"{EXAMPLE}/prepare.py:test_prompts")
    prompt_of = load_function(f"{EXAMPLE}/prepare.py:prompt_of")
    scored = [
        {"prompt": prompt_of(dialogue(i)["dialogue"]), "scores": [0.0, i / 200]} for i in range(150)
    ]
    parts = test_prompts(scored)
    found = [from_dict(Prompt, row, "row") for row in parts["prompts"]]
    provoking = [row.prompt for row in found if row.category == "provoking"]
    assert provoking == [prompt_of(dialogue(i)["dialogue"]) for i in range(149, 49, -1)]
    assert [row.category for row in found[:6]] == [""] * 6
    assert len(found) == 106
    assert [row["prompt"] for row in parts["people"]] == [row.prompt for row in found]
    assert parts["people"][6]["completion"] == " They talk of cat 149."


def test_it_tells_which_data_are_missing(places, monkeypatch):
    monkeypatch.setenv("TETHER_DIALOGSUM", str(places / "none"))
    with pytest.raises(DataError, match=r"train\.jsonl\.gz' does not exist; set TETHER_DIALOGSUM"):
        load_function(f"{EXAMPLE}/prepare.py:references")()


def test_rouge_l_by_hand(places):
    f_score = load_function(f"{EXAMPLE}/rouge.py:f_score")
    words = load_function(f"{EXAMPLE}/rouge.py:words")
    # "the cat on mat" in order: 4 of 6 and 4 of 5 words, 2 · 4 / 11
    reference, summary = ["the", "cat", "sat", "on", "the", "mat"], "The cat, on a mat!"
    assert f_score(reference, words(summary)) == pytest.approx(8 / 11)
    assert f_score(reference, ["mat", "on", "cat"]) == pytest.approx(2 / 9)  # one of them
    assert f_score(reference, []) == f_score([], []) == 0.0
    assert f_score(reference, reference) == 1.0

    rouge_l = load_function(f"{EXAMPLE}/rouge.py:rouge_l")
    prompt_of = load_function(f"{EXAMPLE}/prepare.py:prompt_of")
    prompts = [prompt_of(dialogue(i)["dialogue"]) for i in (3, 203)]
    # "they talk of cat 3" is whole; "talk cat 203" is 3 of 5 and 3 of 4 words, 6 / 9
    found = rouge_l(prompts, ["they talk of cat 3", " Talk a cat 203"])
    assert found == pytest.approx([1.0, 2 / 3])
    with pytest.raises(DataError, match="no human summary of the prompt 'Summarize"):
        rouge_l(["Summarize this"], ["no"])


def train_classifier(folder: Path, capsys) -> dict[str, float]:
    """A classifier of a few words, in `folder`."""
    rude, kind = ["rude", "no", "fears", "cannot"], ["please", "thanks", "kind", "likes"]
    names = {"hate": rude, "not-hate": kind, "offensive": rude, "neither": kind}
    rows = [
        {"text": f"{first} {second} {third}", "label_name": name}
        for name, words in names.items()
        for first in words
        for second in words
        for third in words
    ]
    data = folder.with_suffix(".jsonl")
    both = {"text": "a both", "label": "hate"}, {"text": "a both", "label": "neither"}
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *both]))
    main = load_function(f"{EXAMPLE}/train_classifier.py:main")
    words = ["--data", str(data), "--out", str(folder), "--width", "32", "--layers", "1"]
    main([*words, "--epochs", "12", "--learning-rate", "4e-3"])
    return json.loads(capsys.readouterr().out)


def test_a_classifier_from_nothing_is_a_reward_by_its_label(tmp_path, capsys):
    found = train_classifier(tmp_path / "classifier", capsys)
    assert found == json.loads((tmp_path / "classifier" / "held_out.json").read_text())
    assert found["num_clean"] + found["num_toxic"] == 12  # a tenth of the 2 · 64 different texts
    assert (found["balanced_accuracy"], found["half_width"]) == (1.0, 0.0)
    said = ["kind thanks kind", "rude cannot rude", ""]
    for label, right in (("clean", 0), ("toxic", 1)):
        config = RewardConfig(path=str(tmp_path / "classifier"), label=label, output="probability")
        scores = load_reward(config, ComputeConfig()).raw(["ignored"] * 3, said)
        assert scores[right] > 0.7
        assert scores[1 - right] < 0.3


def test_the_interval_of_a_balanced_accuracy():
    told = load_function(f"{EXAMPLE}/train_classifier.py:told")
    held = [("a", "clean")] * 50 + [("b", "toxic")] * 20
    # sd² of the mean of both: (0.8 · 0.2 / 50 + 0.6 · 0.4 / 20) / 4 = 0.0038
    found = told({"clean": 0.8, "toxic": 0.6}, held)
    assert found["balanced_accuracy"] == pytest.approx(0.7)
    assert found["half_width"] == pytest.approx(1.96 * 0.0038**0.5)


def test_the_recipe_runs_small(places, tmp_path, capsys):
    write_rows(places / "train.jsonl.gz", [dialogue(i) for i in range(40)])
    train_classifier(tmp_path / "classifier", capsys)
    settings = {
        "prepare.data": tmp_path / "train.jsonl.gz",
        "prepare.function": EXAMPLE / "prepare.py:prepare",
        "test.function": EXAMPLE / "prepare.py:test_prompts",
        "turns.reward.path": tmp_path / "classifier",
        "people.reward.path": tmp_path / "classifier",
        "sft.model": tmp_path / "model",
        "sft.max_steps": 2,
        "ppo.rewards.0.path": tmp_path / "classifier",
        "ppo.steps": 1,
        "ppo.batch_size": 4,
        "ppo.sampling.max_new_tokens": 4,
        "evaluation.sampling.max_new_tokens": 4,
        "evaluation.num_samples": 2,
        **{f"evaluation.scorers.{i}.path": tmp_path / "classifier" for i in range(4)},
        "evaluation.scorers.4.path": EXAMPLE / "rouge.py:rouge_l",
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    run(RECIPE, tmp_path / "run", tuple(words))
    capsys.readouterr()
    summary = read_summary(tmp_path / "run" / "evaluation")
    assert summary.categories() == ["provoking"]
    assert [row.num_prompts for row in summary.rows_of("all")] == [6, 6]
    load_function(f"{EXAMPLE}/table.py:main")([tmp_path / "run"])
    printed = capsys.readouterr().out
    assert "all: 6 prompts" in printed
    assert "| ROUGE-L | 0." in printed
    # the words of two dialogues' summaries differ in one of five: 2 · 4 / 10
    assert "ROUGE-L of the summary of another dialogue 0.800" in printed
    assert "ppo " in printed.splitlines()[-1]


def test_the_recipe_fits_together(tmp_path):
    stages = {stage.name: stage.config for stage in plan(read_toml(RECIPE), tmp_path)}
    assert list(stages) == ["prepare", "turns", "test", "people", "sft", "ppo", "evaluation"]
    assert all(config.compute.threads == 1 for config in stages.values())
    assert stages["ppo"].sampling == stages["evaluation"].sampling
    most_new = load_function(f"{EXAMPLE}/prepare.py:prepare").__globals__["MOST_NEW"]
    assert stages["ppo"].sampling.max_new_tokens == most_new
    judge = stages["turns"].reward.path
    assert judge != stages["ppo"].rewards[0].path
    assert stages["evaluation"].scorers[0].path == judge

"""The known recipes: what their headers say, and each from start to end, scaled down by overrides.

A tiny random model learns nothing here; that every stage gets what the stages before it made, and
that the parts which a paper is known for are at work, is what is tested.
"""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.tiny import (
    CHAT_TEMPLATE,
    WORDS,
    byte_bpe_tokenizer,
    save_encoder,
    save_tiny,
    word_tokenizer,
)
from tests.train.toys import metrics, result, write_rows
from tether.cli import dispatch
from tether.config_file import read_toml
from tether.evaluation.table import read_summary
from tether.pipeline import check_functions, override, plan, run
from tether.records import read_jsonl
from tether.sandbox import critic

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
KNOWN = (
    "instructgpt",
    "summarize",
    "hh_rlhf",
    "constitutional",
    "llama2",
    "zephyr",
    "tulu_grpo",
    "kto_thumbs",
    "citations",
    "personalize",
    "detoxify",
)
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
each_known = pytest.mark.parametrize("recipe", [ROOT / "recipes" / f"{n}.toml" for n in KNOWN])


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


# --- what the headers say -------------------------------------------------------------------------


def header(recipe):
    lines = recipe.read_text(encoding="utf-8").splitlines()
    return "\n".join(line[1:] for line in lines[: lines.index("seed = 0")])


def joined(recipe):
    """The header, with the lines of a command in one."""
    return header(recipe).replace("\\\n", " ")


def commands(recipe):
    """The commands of a header that stand on lines of their own, as words."""
    shown = re.findall(r"^ (?: +|.*: )(tether (?:run|plan) .*)$", joined(recipe), re.MULTILINE)
    return [shlex.split(command) for command in shown]


@each_recipe
def test_it_plans_and_its_functions_are_there(recipe, tmp_path):
    check_functions(plan(read_toml(recipe), tmp_path))


@each_known
def test_the_header_names_the_paper_and_what_departs_from_it(recipe):
    text = header(recipe)
    assert "https://arxiv.org/abs/" in text
    assert "Departs from the " in text or "Departs from Tülu 3" in text
    assert "At full scale: " in text


def check_command(recipe, words, folder):
    """`tether run` is of this recipe, and every setting that it changes is there."""
    assert words[:3] == ["tether", "run", f"recipes/{recipe.name}"]
    settings = re.sub(r" --out \S+", "", " ".join(["", *words[3:]])).split()
    table = read_toml(recipe)
    override(table, tuple(settings))
    plan(table, folder)


@each_recipe
def test_the_commands_of_the_header_name_settings_that_exist(recipe, tmp_path):
    runs = [words for words in commands(recipe) if words[1] == "run"]
    assert runs or recipe.stem not in KNOWN
    prose = re.sub(r"tether (run|plan) .*", "", joined(recipe))
    inline = re.findall(r"(--[a-z][\w-]*\.[\w.]+) ([\w./]+)", prose)
    for words in [*runs, ["tether", "run", f"recipes/{recipe.name}", *sum(inline, ())]]:
        check_command(recipe, words, tmp_path)


@each_known
def test_what_is_said_to_fit_fits(recipe, capsys):
    for words in commands(recipe):
        if words[1] == "plan":
            assert dispatch(words[1:]) == 0
            assert "too much" not in capsys.readouterr().out


@each_recipe
def test_the_page_of_recipes_has_it(recipe):
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert f"[`{recipe.stem}`](../recipes/{recipe.name})" in page
    if recipe.stem in KNOWN:
        assert page.count(f"`{recipe.stem}`") == 2  # what it does, and where it departs
        for paper in re.findall(r"https://arxiv.org/abs/[\d.]+\d", header(recipe)):
            assert paper in page or "reproduction" in header(recipe)


def test_the_commands_of_the_page_are_right(tmp_path, capsys):
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    found = re.findall(r"^(?:torchrun .* -m )?(tether (?:run|plan) .*)$", page, re.MULTILINE)
    assert len(found) > 5
    for words in (shlex.split(command, comments=True) for command in found):
        if words[1] == "plan":
            assert dispatch(words[1:]) == 0
        else:
            check_command(ROOT / words[2], words, tmp_path)


# --- scaled down ----------------------------------------------------------------------------------

LAYERS = {"hidden_size": 32, "num_layers": 2, "num_heads": 2}
SMALL = {
    "sandbox": LAYERS,
    "sft": {"max_steps": 2, "batch_size": 4, "held_out": 0.0},
    "reward": {"epochs": 2.0, "batch_size": 4, "held_out": 0.0},
    "dpo": {"max_steps": 2, "batch_size": 4, "held_out": 0.0},
    "kto": {"max_steps": 2, "batch_size": 4, "held_out": 0.0},
    "ppo": {"steps": 2, "batch_size": 8, "minibatches": 2, "keep_every": 1},
    "grpo": {"steps": 2, "batch_size": 16, "keep_every": 1},
    "best-of-n": {"steps": 2, "batch_size": 16, "optimizer.learning_rate": 1e-2},
}


def run_small(name, folder, settings=None):
    """Run a recipe with few steps, small batches and short completions; returns its folder.

    `settings` are further overrides; those of stages are found in its own file by their kind.
    """
    recipe = ROOT / "recipes" / f"{name}.toml"
    chosen = {"compute.threads": 1, "compute.precision": '"float32"'}
    for stage in read_toml(recipe)["stage"]:
        small = dict(SMALL.get(stage["kind"], {}))
        if "sampling" in stage:
            small["sampling.max_new_tokens"] = 6
        chosen |= {f"{stage['name']}.{key}": value for key, value in small.items()}
    words = [f"--{key}={value}" for key, value in {**chosen, **(settings or {})}.items()]
    return run(recipe, folder / "run", tuple(words))


def assert_all_is_there(out, *models):
    """Every stage has finished, models are whole, and the evaluation has a report."""
    stages = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["stages"]
    assert all((out / stage / "result.json").is_file() for stage in stages)
    for stage in models:
        assert all(tensor.isfinite().all() for tensor in weights(out, stage).values())
        assert (out / stage / "model" / "config.json").is_file()
    assert (out / "report.html").is_file()


def weights(out, stage):
    return load_file(out / stage / "model" / "model.safetensors")


def differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


def few(folder, *texts):
    """A file of prompts as the sandbox's worlds write them."""
    rows = [{"prompt": f"Person: {text}.\nHelper:", "category": "harmful"} for text in texts]
    return write_rows(folder / f"{len(list(folder.iterdir()))}.jsonl", rows)


def rows_of(file):
    return [row for _, row in read_jsonl(file)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random model that can read every text."""
    folder = tmp_path_factory.mktemp("model")
    return str(save_tiny(folder, tokenizer=byte_bpe_tokenizer(), max_position_embeddings=256))


@pytest.fixture(scope="module")
def word_model(tmp_path_factory):
    """A tiny random model of a few words, whose chats have a template."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    folder = tmp_path_factory.mktemp("words")
    return str(save_tiny(folder, tokenizer=tokenizer, max_position_embeddings=128))


def asked(number):
    return f"What is {number}?"


def test_instructgpt(model, tmp_path):
    write = lambda name, rows: write_rows(tmp_path / f"{name}.jsonl", rows)  # noqa: E731
    answers = [" Nothing.", " A number.", " I cannot say.", " A number, of course."]
    ranked = {"completions": answers, "ranks": [4, 1, None, 2]}
    ppo_prompts = write("prompts", [{"prompt": asked(i)} for i in range(8)])
    demonstrations = [{"prompt": asked(i), "completion": " A number."} for i in range(8)]
    texts = write("texts", [{"text": f"Once there were {i} cats."} for i in range(8)])
    out = run_small(
        "instructgpt",
        tmp_path,
        {
            "sft.model": model,
            "sft.data": write("demonstrations", demonstrations),
            "reward.data": write("rankings", [{"prompt": asked(i), **ranked} for i in range(4)]),
            "ppo.prompts": ppo_prompts,
            "ppo.policy_loss.ptx.data": texts,
            "evaluation.prompts": write("unseen", [{"prompt": asked(i)} for i in (9, 10)]),
        },
    )
    assert_all_is_there(out, "sft", "reward", "ppo")
    # Of 4 completions all 6 pairs are decided, for a fail is below every rank; 4 prompts
    assert result(out / "reward")["pairs"] == 24
    first, second = metrics(out / "ppo")
    # About 16 short texts under a random model of 330 tokens: far above 0, near log 330 = 5.8
    assert all(2 < row["ptx_loss"] < 10 for row in (first, second))
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["beta"] == 0.02
    config = read_toml(out / "ppo" / "config.toml")
    assert config["policy_loss"]["ptx"]["data"] == texts
    summary = read_summary(out / "evaluation")
    assert summary.policies[:3] == ["sft", "sft best of 4", "ppo"]


def test_summarize(model, tmp_path):
    post = lambda i: f"SUBREDDIT: r/a\n\nPOST: cat {i}\n\nTL;DR:"  # noqa: E731
    posts = [{"prompt": post(i), "completion": f" Cat {i}."} for i in range(8)]
    pairs = [{"prompt": post(i), "chosen": " Cat.", "rejected": " Dog, dog."} for i in range(8)]
    file = write_rows(tmp_path / "posts.jsonl", posts)
    out = run_small(
        "summarize",
        tmp_path,
        {
            "sft.model": model,
            "sft.data": file,
            "reward.data": write_rows(tmp_path / "pairs.jsonl", pairs),
            "reward.optimizer.learning_rate": 1e-3,
            "ppo.prompts": file,
            "ppo.rewards.0.clip": 0.0,
            "evaluation.prompts": write_rows(tmp_path / "test.jsonl", posts[:2]),
        },
    )
    assert_all_is_there(out, "sft", "reward", "ppo")
    center = result(out / "reward")["centering"]
    for row in metrics(out / "ppo"):
        # Centred by what the reward model has found, and 1 off for each that has no end
        centred = (row["score_raw"] - center["shift"]) / center["scale"]
        assert row["score"] == pytest.approx(centred - (1 - row["finished"]), abs=1e-3)
    assert metrics(out / "ppo")[1]["beta"] == 0.05
    curve = [row for row in read_summary(out / "evaluation").rows_of("all") if row.policy == "ppo"]
    assert curve[0].kl.mean != 0


def test_hh_rlhf(model, tmp_path):
    def dialogue(i, reply):
        return f"\n\nHuman: {asked(i)}\n\nAssistant: Why?\n\nHuman: So.\n\nAssistant: {reply}"

    rows = [
        {"chosen": dialogue(i, f"It is {i}."), "rejected": dialogue(i, "Go away.")}
        for i in range(24)
    ]
    unseen = [{"chosen": dialogue(i, "Yes."), "rejected": dialogue(i, "No.")} for i in (30, 31)]
    out = run_small(
        "hh_rlhf",
        tmp_path,
        {
            "prepare.data": write_rows(tmp_path / "dialogues.jsonl", rows),
            "sft.model": model,
            "evaluation.prompts": write_rows(tmp_path / "unseen.jsonl", unseen),
        },
    )
    assert_all_is_there(out, "sft", "reward", "ppo")
    parts = result(out / "prepare")["rows"]
    assert sum(parts.values()) == 24
    assert result(out / "reward")["pairs"] == parts["pairs"]
    samples = rows_of(out / "ppo" / "samples.jsonl")
    ends = "\n\nHuman: So.\n\nAssistant:"
    assert samples
    assert all(sample["prompt"].endswith(ends) for sample in samples)
    assert read_summary(out / "evaluation").rows_of("all")[0].num_prompts == 2


def test_llama2(model, tmp_path):
    turns = lambda i: [{"role": "user", "content": asked(i)}]  # noqa: E731
    answer = lambda text: {"role": "assistant", "content": text}  # noqa: E731
    chats = [{"messages": [*turns(i), answer("A number.")]} for i in range(8)]
    pairs = [
        {"prompt": turns(i), "chosen": "A number.", "rejected": "No.", "margin": [3, 0][i % 2]}
        for i in range(4)
    ]
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": turns(i)} for i in range(8)])
    out = run_small(
        "llama2",
        tmp_path,
        {
            "sft.model": model,
            "sft.data": write_rows(tmp_path / "chats.jsonl", chats),
            "reward.data": write_rows(tmp_path / "pairs.jsonl", pairs),
            "rejection.prompts": prompts,
            "ppo.prompts": prompts,
            "evaluation.prompts": write_rows(tmp_path / "unseen.jsonl", [{"prompt": turns(9)}]),
        },
    )
    assert_all_is_there(out, "sft", "reward", "rejection", "ppo")
    # The head starts at 0, so d = 0: half of the pairs cost log(1 + e³), the others log 2
    expected = (math.log1p(math.exp(3)) + math.log(2)) / 2
    assert metrics(out / "reward")[0]["loss"] == pytest.approx(expected, abs=1e-5)
    config = read_toml(out / "ppo" / "config.toml")
    assert (config["model"], config["reference"]) == (
        str(out / "rejection" / "model"),
        str(out / "sft" / "model"),
    )
    # PPO starts from what rejection sampling has moved away from SFT, to which the tether holds
    assert differ(weights(out, "rejection"), weights(out, "sft"))
    assert abs(metrics(out / "ppo")[0]["kl"]) > 1e-3
    assert metrics(out / "rejection")[0]["kl"] == pytest.approx(0, abs=1e-5)


def test_zephyr(word_model, tmp_path):
    said = lambda role, text: {"role": role, "content": text}  # noqa: E731
    first, second = said("assistant", "no sorry"), said("assistant", "please tell me")
    chat = {
        "prompt": "why",
        "prompt_id": "7",
        "messages": [said("user", "why"), first, said("user", "what is it"), second],
    }
    bad = said("assistant", "no")
    pair = {
        "prompt": "who likes the cat",
        "chosen": [said("user", "who likes the cat"), second],
        "rejected": [said("user", "who likes the cat"), bad],
        "messages": [said("user", "who likes the cat"), second],
        "score_chosen": 8.0,
    }
    pairs = write_rows(tmp_path / "pairs.jsonl", [pair] * 8)
    out = run_small(
        "zephyr",
        tmp_path,
        {
            "sft.model": word_model,
            "sft.data": write_rows(tmp_path / "chats.jsonl", [chat] * 8),
            "dpo.data": pairs,
            "evaluation.prompts": write_rows(tmp_path / "unseen.jsonl", [pair] * 2),
        },
    )
    assert_all_is_there(out, "sft", "dpo")
    # What the assistant says: two words and an end, three words and an end; four rows a batch
    assert [row["tokens"] for row in metrics(out / "sft")] == [4 * (3 + 4)] * 2
    # Three words and an end against one and an end; policy and reference agree at first
    row = metrics(out / "dpo")[0]
    assert row["tokens"] == 4 * (4 + 2)
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-5)
    asked_for = rows_of(out / "evaluation" / "samples.jsonl")[0]["prompt"]
    assert asked_for == [said("user", "who likes the cat")]


def test_tulu_grpo(tmp_path):
    tokenizer = word_tokenizer(["one", "two", "4", "7", "\\boxed{4}"])
    model = str(save_tiny(tmp_path / "model", tokenizer=tokenizer))
    problems = [{"question": f"{i} and two?", "answer": "It is 4.\n#### 4"} for i in range(40)]
    out = run_small(
        "tulu_grpo",
        tmp_path,
        {
            "problems.data": write_rows(tmp_path / "problems.jsonl", problems),
            "grpo.model": model,
            "grpo.batch_size": 32,
            "grpo.missing_eos_penalty": 0,
            "evaluation.reference": model,
            "evaluation.policies.0.model": model,
        },
    )
    assert_all_is_there(out, "grpo")
    samples = rows_of(out / "grpo" / "samples.jsonl")
    assert samples
    scores = {4.0: 1.0}
    for sample in samples:
        boxed = "\\boxed{4}" in sample["completion"]
        numbers = re.findall(r"\d", sample["completion"])
        last = float(numbers[-1]) if numbers else None
        assert sample["score"] == (1.0 if boxed else scores.get(last, 0.0))
    first = metrics(out / "grpo")[0]
    assert 0 < first["score"] < 1  # of 32 random answers some are right
    held_back = rows_of(out / "problems" / "test.jsonl")
    right = read_summary(out / "evaluation").rows_of("all")[0]
    assert right.num_prompts == len(held_back)
    assert 0 < right.scores["right"].mean < 1


def test_kto_thumbs(model, tmp_path):
    chats = [{"prompt": asked(i), "completion": " A number."} for i in range(8)]
    thumbs = [
        {"prompt": asked(i), "completion": f" It is {i}.", "label": i % 4 > 0} for i in range(12)
    ]
    out = run_small(
        "kto_thumbs",
        tmp_path,
        {
            "sft.model": model,
            "sft.data": write_rows(tmp_path / "chats.jsonl", chats),
            "kto.data": write_rows(tmp_path / "thumbs.jsonl", thumbs),
            "kto.batch_size": 12,
            "kto.undesirable_weight": 3.0,
            "evaluation.prompts": write_rows(tmp_path / "unseen.jsonl", chats[:2]),
        },
    )
    assert_all_is_there(out, "sft", "kto")
    # At first σ(0) = 1/2 for each: (9 of weight 1 + 3 of weight 3) / 12 / 2
    row = metrics(out / "kto")[0]
    assert row["loss"] == pytest.approx(18 / 12 / 2, abs=1e-5)
    assert row["kl"] == 0.0
    assert differ(weights(out, "kto"), weights(out, "sft"))


def test_detoxify(word_model, tmp_path):
    for name, labels in (("hate", ["nothate", "hate"]), ("toxic", ["neutral", "toxic"])):
        names = dict(enumerate(labels))
        save_encoder(tmp_path / name, labels=2, pair=False, id2label=names)
    classifier = str(tmp_path / "hate")
    prompts = [
        {"prompt": {"text": f"{a} {b}", "toxicity": 0.9}} for a in WORDS[:12] for b in WORDS[:6]
    ]
    mild = [{"prompt": {"text": f"{a} {a}", "toxicity": 0.1}} for a in WORDS[12:]]
    out = run_small(
        "detoxify",
        tmp_path,
        {
            "prompts.data": write_rows(tmp_path / "prompts.jsonl", [*prompts, *mild]),
            "ppo.model": word_model,
            "ppo.missing_eos_penalty": 0,
            "ppo.rewards.0.path": classifier,
            "evaluation.reference": word_model,
            "evaluation.policies.0.model": word_model,
            "evaluation.scorers.0.path": tmp_path / "toxic",
            "evaluation.scorers.1.path": classifier,
            "evaluation.scorers.2.path": classifier,
        },
    )
    assert_all_is_there(out, "ppo")
    assert {row["category"] for row in rows_of(out / "prompts" / "train.jsonl")} == {"provoking"}
    plain = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    for sample in rows_of(out / "ppo" / "samples.jsonl"):
        with torch.no_grad():
            found = plain(**tokenizer(sample["completion"], return_tensors="pt")).logits[0]
        assert sample["score"] == pytest.approx(found[0].item(), abs=1e-4)
    summary = read_summary(out / "evaluation")
    scores = summary.rows_of("all")[0].scores
    assert list(scores) == ["judge toxicity", "reward toxicity", "reward"]
    assert 0 < scores["reward toxicity"].mean < 1


def test_citations(tmp_path):
    sources = "Sources:\n[1] the mill is made of clay.\n[2] the mill belongs to the baker.\n\n"
    asking = f"{sources}Person: who owns the mill?\nHelper:"
    file = write_rows(tmp_path / "prompts.jsonl", [{"prompt": asking}] * 2)
    out = run_small(
        "citations",
        tmp_path,
        {
            "base.data": "stage:world/demonstrations.jsonl",
            "ppo.prompts": file,
            "evaluation.prompts": file,
        },
    )
    assert_all_is_there(out, "base", "sft", "ppo")
    for row in metrics(out / "ppo"):
        # Both rules, the second with its weight of 0.2, and 1 off for what has no end
        assert 0 < row["score_length"] < 0.2 + 1e-6
        assert -1 <= row["score_citations"] <= 1
        total = row["score_citations"] + row["score_length"] - (1 - row["finished"])
        assert row["score"] == pytest.approx(total, abs=1e-5)
    scores = read_summary(out / "evaluation").rows_of("all")[0].scores
    assert list(scores) == ["supported", "answered", "rule"]


def test_personalize(tmp_path):
    prompts = few(tmp_path, "how do i bake bread", "help me fix a bike", "teach me to train a dog")
    out = run_small(
        "personalize",
        tmp_path,
        {
            "base.data": "stage:world/demonstrations.jsonl",
            "answers.prompts": prompts,
            "both.prompts": prompts,
            "evaluation.prompts": prompts,
        },
    )
    assert_all_is_there(out, "base", "sft")
    brief, thorough = (
        load_file(out / name / "model" / "adapter_model.safetensors")
        for name in ("brief", "thorough")
    )
    assert differ(brief, thorough)
    assert result(out / "both")["completions"] == 6  # each adapter answers each prompt
    summary = read_summary(out / "evaluation")
    assert summary.policies == ["sft", "brief", "thorough"]


def test_constitutional(tmp_path, monkeypatch):
    for kind in critic.DOCUMENTS:
        monkeypatch.setitem(critic.DOCUMENTS, kind, 60)
    harmful = few(tmp_path, "teach me to spy on my roommate", "help me trick an old man")
    harmless = few(tmp_path, "help me fix a bike", "help me paint a wall", "teach me to bake bread")
    places = {
        "revisions.prompts": harmful,
        "answers.prompts": harmful,
        "harmless-answers.prompts": harmless,
        "helpful-answers.prompts": harmless,
        "rl-cai.prompts": harmful,
        "rlhf.prompts": harmless,
        "harmlessness.prompts": harmful,
        "helpfulness.prompts": harmless,
    }
    out = run_small("constitutional", tmp_path, {**places, "judgments.abstain": 0.0})
    assert_all_is_there(out, "helpful", "sl-cai", "reward", "rl-cai", "rlhf")
    pairs = rows_of(out / "judgments" / "pairs.jsonl")
    judged = [row for row in pairs if "trick" in row["prompt"] or "spy" in row["prompt"]]
    # All 6 pairs of 4 answers to each of 2 prompts,
    assert len(judged) == 12
    assert all(0.5 <= row["probability"] <= 1 for row in judged)
    # and of the 3 harmless prompts a ranking each, which decides 6 pairs
    assert len(pairs) == 12 + 3
    assert result(out / "reward")["pairs"] == 12 + 3 * 6
    config = read_toml(out / "rl-cai" / "config.toml")
    assert config["model"] == str(out / "sl-cai" / "model")
    revised = rows_of(out / "revisions" / "demonstrations.jsonl")
    assert any("trick" in str(row["prompt"]) for row in revised)
    assert any("trick" not in str(row["prompt"]) for row in revised)  # helpful ones are mixed in

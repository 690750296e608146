import json

import pytest

from tests.evaluation.made_run import full_run, many_samples
from tether.evaluation.cards import MARK, escaped
from tether.evaluation.report import write_report

ATTACK = "</script><img src=x onerror=alert(1)> | [a](b) `c` *d*"


@pytest.fixture
def run(tmp_path):
    path = full_run(tmp_path / "rice", many_samples(20))
    write_report(path)
    return path


def card(run, stage):
    return (run / stage / "model" / "README.md").read_text(encoding="utf-8")


def header(text):
    """The YAML between the first two lines of dashes; its values are JSON."""
    lines = text.split("---\n")[1].splitlines()
    return {name: json.loads(value) for name, value in (line.split(": ", 1) for line in lines)}


def test_every_trained_model_has_a_card(run):
    cards = {path.parent.parent.name for path in run.rglob("README.md")}
    assert cards == {"base", "sft", "reward", "ppo"}


def test_the_header_is_what_the_hub_reads(run):
    assert header(card(run, "ppo")) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tether", "rlhf", "ppo"],
    }
    assert header(card(run, "reward"))["pipeline_tag"] == "text-classification"
    assert header(card(run, "reward"))["tags"] == ["tether", "rlhf", "reward", "reward-model"]


def test_a_card_tells_how_and_what_was_measured(run):
    text = card(run, "ppo")
    assert "| started from | sft/model |" in text
    assert "| sft/model | 0123456789abcdef |" in text
    assert "| kl.beta | 0.02 |" in text  # 0.1 by default
    assert "| batch\\_size | 128 |" in text  # 32 by default
    assert "seed" not in text.partition("differ from the defaults")[2].partition("Inputs")[0]
    assert "ppo is better than sft: +0.45 on the gold score" in text
    assert "| ppo, 20 prompts | value | 95% interval |" in text
    assert "| gold | 0.45 | [" in text
    assert "### Toxicity" in text
    assert "### Calibration" not in text  # it is about the reward model
    assert "The model is the one of step 12, to which it went back." in text
    assert "- Step 20: held-out score did not keep up with the proxy (rolled back)." in text
    assert "AutoModelForCausalLM.from_pretrained(folder)\n" in text


def test_the_card_of_a_reward_model(run):
    text = card(run, "reward")
    assert "AutoModelForSequenceClassification" in text
    assert "# score of a text = (logit - 0.25) / 2\n" in text
    assert "in 81% \\[79, 82\\] of cases" in text
    assert "### Calibration of the reward model" in text
    assert "No monitor watched the training" in text


def test_a_base_on_the_hub_and_an_adapter_are_named(tmp_path):
    path = full_run(tmp_path / "rice", many_samples(4))
    (path / "base" / "config.toml").write_text('kind = "sft"\nmodel = "HuggingFace/SmolLM-135M"\n')
    adapter = {"base_model_name_or_path": "RUN/sft/model"}
    (path / "ppo" / "model" / "adapter_config.json").write_text(json.dumps(adapter))
    write_report(path)
    assert header(card(path, "sft"))["base_model"] == "HuggingFace/SmolLM-135M"
    assert header(card(path, "ppo")) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": "HuggingFace/SmolLM-135M",
        "base_model_relation": "adapter",
        "tags": ["tether", "rlhf", "ppo", "lora"],
    }
    assert "it needs its base model, sft/model." in card(path, "ppo")


def test_a_card_that_somebody_else_wrote_stays(run):
    ours, theirs = run / "sft" / "model" / "README.md", run / "ppo" / "model" / "README.md"
    theirs.write_text("# My model\n")
    ours.write_text(f"old\n{MARK}\n")
    write_report(run)
    assert theirs.read_text() == "# My model\n"
    assert ours.read_text().startswith("---\nlibrary_name:")
    assert MARK in ours.read_text()


def test_without_an_evaluation_there_are_no_cards(tmp_path):
    path = full_run(tmp_path / "rice", many_samples(4))
    (path / "evaluation" / "summary.json").unlink()
    write_report(path)
    assert not list(path.rglob("README.md"))


def test_texts_are_shown_not_interpreted(run):
    event = {"step": 3, "alarm": ATTACK, "action": ATTACK, "text": ATTACK}
    (run / "ppo" / "events.jsonl").write_text(json.dumps(event) + "\n")
    write_report(run)
    text = card(run, "ppo")
    assert "<img" not in text
    assert "[a](b)" not in text
    assert "&lt;img src=x onerror=alert(1)&gt; \\| \\[a\\](b) \\`c\\` \\*d\\*" in text


def test_a_text_becomes_one_line():
    assert escaped("a\n\n# b | c_d") == "a # b \\| c\\_d"

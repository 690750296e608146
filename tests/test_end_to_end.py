"""The demo's recipe from end to end, with few steps; its models load without tether."""

import json
import math
import re

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from tether.data.batches import Row, pad
from tether.evaluation.summary import Summary
from tether.models.language_model import completion_logprobs, load
from tether.models.scalar_head import load_reward_model
from tether.pipeline import run
from tether.records import read_jsonl, write_jsonl
from tether.rewards.reward_model import score_texts
from tether.sandbox import RECIPE
from tether.sections import ComputeConfig

SHORT = {
    "--world.hidden_size": "32",
    "--world.num_layers": "2",
    "--world.num_heads": "2",
    "--base.max_steps": "30",
    "--base.data": "{few}/corpus.jsonl",
    "--answers.prompts": "{few}/prompts.jsonl",
    "--reward.epochs": "1.0",
    "--ppo.steps": "2",
    "--ppo.batch_size": "16",
    "--evaluation.prompts": "{few}/test.jsonl",
    "--evaluation.sampling.max_new_tokens": "16",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The run directory of a demo with few texts and steps."""
    from tether.sandbox.world import build, to_dict

    few, out = tmp_path_factory.mktemp("few"), tmp_path_factory.mktemp("run") / "demo"
    world = build(0, num_documents=600)
    write_jsonl(few / "corpus.jsonl", [{"text": row.completion} for row in world.corpus])
    write_jsonl(few / "prompts.jsonl", map(to_dict, world.ranking_prompts[:40]))
    write_jsonl(few / "test.jsonl", map(to_dict, world.test_prompts[::20]))
    settings = [word.format(few=few) for pair in SHORT.items() for word in pair]
    return run(RECIPE, out, tuple(settings))


def test_every_stage_has_finished(demo):
    manifest = json.loads((demo / "manifest.json").read_text())
    assert manifest["stages"] == [
        "world", "base", "sft", "answers", "labels", "reward", "ppo", "evaluation",
    ]  # fmt: skip
    for name in manifest["stages"]:
        assert (demo / name / "result.json").is_file()
        assert (demo / name / "config.toml").is_file()
    assert not list(demo.rglob("step-*"))  # checkpoints go when a stage is done
    assert {file.suffix for file in demo.rglob("model/*")} <= {
        ".json",
        ".safetensors",
        ".jinja",
        ".md",
    }


def test_the_summary_compares_all_policies(demo):
    summary = Summary.from_dict(json.loads((demo / "evaluation" / "summary.json").read_text()))
    assert summary.policies == ["base", "sft", "ppo", "sft best of 4"]
    row = next(row for row in summary.rows_of("all") if row.policy == "sft")
    assert row.kl is not None
    assert row.kl.mean == pytest.approx(0, abs=1e-4)  # the reference against itself
    chosen = next(row for row in summary.rows_of("all") if row.policy == "sft best of 4")
    assert chosen.kl is None


def test_the_report_stands_alone(demo):
    page = (demo / "report.html").read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page)
    assert len(page) < 8_000_000
    assert "sft best of 4" in page


def test_ppo_starts_at_the_reference(demo):
    rows = [row for _, row in read_jsonl(demo / "ppo" / "metrics.jsonl")]
    assert [row["step"] for row in rows] == [1, 2]
    assert abs(rows[0]["kl"]) < 0.05  # bfloat16; what is exact is checked inside the run
    assert all(math.isfinite(row["score"]) for row in rows)


def test_the_policy_loads_without_tether(demo):
    folder = str(demo / "ppo" / "model")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ours = load(folder, ComputeConfig())
    ids = ours.tokenizer("Person: how do i make tea?\nHelper: first, boil the water.")["input_ids"]
    with torch.no_grad():
        plain = model(torch.tensor([ids])).logits.log_softmax(-1)[0, 5:-1]
        plain = plain.gather(-1, torch.tensor(ids[6:])[:, None]).squeeze(-1)
        logprobs, _ = completion_logprobs(ours, pad([Row(ids, 6)]))
    torch.testing.assert_close(logprobs, plain, atol=1e-5, rtol=0)


def test_the_reward_model_loads_without_tether(demo):
    folder = str(demo / "reward" / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    prompt = "Person: how do i make tea?\nHelper:"
    completions = [" first, boil the water.", " no."]
    texts = [prompt + completion + tokenizer.eos_token for completion in completions]
    with torch.no_grad():
        plain = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.squeeze(-1)
    ours = score_texts(load_reward_model(folder, ComputeConfig()), [prompt] * 2, completions)
    torch.testing.assert_close(torch.tensor(ours), plain, atol=1e-5, rtol=0)


def test_a_second_run_keeps_everything(demo):
    before = {file: file.stat().st_mtime_ns for file in demo.rglob("*.safetensors")}
    settings = json.loads((demo / "manifest.json").read_text())["overrides"]
    run(RECIPE, demo, tuple(settings))
    assert {file: file.stat().st_mtime_ns for file in demo.rglob("*.safetensors")} == before

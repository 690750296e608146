import math
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import CHAT_TEMPLATE, save_tiny, word_tokenizer
from tether.config import BlocksConfig, EvaluateConfig, PolicyConfig, ProbeConfig, ScorerConfig
from tether.errors import ConfigError, DataError
from tether.evaluation.asked import ask_policies, read_asked
from tether.evaluation.blocks import read_blocks
from tether.evaluation.compare import evaluate
from tether.evaluation.tax import (
    Loss,
    by_document,
    require_harness,
    run_tasks,
    task_block,
    text_block,
    text_losses,
)
from tether.models.language_model import load
from tether.records import Demonstration, write_jsonl
from tether.sections import ComputeConfig, SamplingConfig

CPU = ComputeConfig(device="cpu", threads=1)


# --- perplexity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_losses_are_those_of_plain_transformers(tmp_path, kind):
    save_tiny(tmp_path / "model", kind, max_position_embeddings=12, n_positions=12)
    model = load(str(tmp_path / "model"), CPU)
    texts = [
        Demonstration(prompt="the cat ", completion="sees a dog"),
        Demonstration(prompt="", completion="who likes the small bird"),
        Demonstration(prompt="the cat ", completion="dog " * 12),
    ]
    found = text_losses(model, texts)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    end = model.tokenizer.eos_token_id
    for text, ours, prompt_tokens in zip(texts[:2], found[:2], (2, 0), strict=True):
        ids = [*model.tokenizer(text.prompt + text.completion)["input_ids"], end]
        with torch.no_grad():
            logs = plain(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        start = max(prompt_tokens, 1)  # the first token of all has nothing before it
        expected = -sum(float(logs[t - 1, ids[t]]) for t in range(start, len(ids)))
        assert ours.nats == pytest.approx(expected, abs=1e-4)
        assert ours.tokens == len(ids) - start
        assert ours.bytes == len(text.completion)
    assert found[2] is None  # 15 tokens


def test_nats_a_token_by_hand():
    losses = {
        "sft": [Loss(4.0, 2, 8), Loss(9.0, 3, 10), None],
        "ppo": [Loss(5.0, 2, 8), Loss(9.6, 3, 10), Loss(1.0, 1, 4)],
    }
    block = text_block(losses, "sft")
    values = {(m.name, m.policy): m for m in block.measures}
    # sft: (4/2 + 9/3) / 2; ppo: (5/2 + 9.6/3) / 2
    assert values["nats a token", "sft"].value.mean == pytest.approx(2.5)
    assert values["nats a token", "ppo"].value.mean == pytest.approx(2.85)
    rise = values["nats a token", "ppo"].difference
    assert rise.mean == pytest.approx((0.5 + 0.2) / 2)
    assert rise.low == pytest.approx(0.2)  # of two texts, the worse and the better one drawn twice
    assert rise.high == pytest.approx(0.5)
    assert values["perplexity a token", "ppo"].value.mean == pytest.approx(math.exp(2.85))
    assert values["nats a token", "sft"].difference is None
    assert block.note == "2 texts; 1 too long, left out"


def test_other_tokens_are_compared_by_bytes():
    losses = {"one": [Loss(4.0, 2, 8)], "two": [Loss(6.0, 4, 8)]}
    block = text_block(losses, "one")
    values = {(m.name, m.policy): m.value.mean for m in block.measures}
    assert values["nats a byte", "one"] == 0.5
    assert values["nats a byte", "two"] == 0.75


def test_texts_that_fit_nowhere_are_refused():
    with pytest.raises(ConfigError, match="none of 1 texts fits"):
        text_block({"one": [None], "two": [Loss(6.0, 4, 8)]}, "one")


# --- tasks ----------------------------------------------------------------------------------------


def results(right, *, perplexity=3.0):
    """What the harness returns of one task with an accuracy and one without documents."""
    rows = [{"doc_id": i, "filter": "none", "acc": float(value)} for i, value in enumerate(right)]
    return {
        "results": {
            "toy": {
                "alias": "toy",
                "sample_len": len(right),
                "acc,none": float(np.mean(right)),
                "acc_stderr,none": 0.1,
                "word_perplexity,strict": perplexity,
                "word_perplexity_stderr,strict": "N/A",
            }
        },
        "samples": {"toy": rows},
        "higher_is_better": {"toy": {"acc": True, "word_perplexity": False}},
    }


@pytest.fixture
def harness(monkeypatch):
    """A stand-in for lm-evaluation-harness that keeps what it was called with."""
    calls = []

    class HFLM:
        def __init__(self, **settings):
            self.settings = settings

    def simple_evaluate(**settings):
        calls.append(settings)
        if "missing" in settings["tasks"]:
            raise ValueError("Tasks not found: missing")
        bias = float(settings["model"].settings["pretrained"].get_output_embeddings().weight.sum())
        return results([1, 0, 1, bias > 0])

    package = types.ModuleType("lm_eval")
    package.__spec__ = types.SimpleNamespace()
    package.simple_evaluate = simple_evaluate
    models = types.ModuleType("lm_eval.models")
    huggingface = types.ModuleType("lm_eval.models.huggingface")
    huggingface.HFLM = HFLM
    for module in (package, models, huggingface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_the_harness_gets_the_loaded_model(tmp_path, harness):
    save_tiny(tmp_path / "model")
    model = load(str(tmp_path / "model"), CPU)
    found = run_tasks(model, ("toy",))
    assert found["results"]["toy"]["acc,none"] in (0.5, 0.75)
    [call] = harness
    assert call["tasks"] == ["toy"]
    assert call["apply_chat_template"] is False
    assert call["model"].settings["pretrained"] is model.model
    assert call["model"].settings["tokenizer"] is model.tokenizer


def test_a_model_with_a_chat_template_is_asked_in_a_chat(tmp_path, harness):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    save_tiny(tmp_path / "model", tokenizer=tokenizer)
    run_tasks(load(str(tmp_path / "model"), CPU), ("toy",))
    assert harness[0]["apply_chat_template"] is True


def test_a_task_that_is_unknown_is_told_in_one_line(tmp_path, harness):
    save_tiny(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"refuses them.*not found: missing") as error:
        run_tasks(load(str(tmp_path / "model"), CPU), ("missing",))
    assert "\n" not in str(error.value)


def test_without_the_harness_tasks_are_refused_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match="not installed: `pip install lm-eval`"):
        read_asked(BlocksConfig(tasks=("toy",)))
    with pytest.raises(ConfigError):
        require_harness()


def test_metrics_are_paired_by_document():
    block = task_block({"sft": results([1, 0, 1, 0]), "ppo": results([1, 0, 0, 0])}, "sft")
    values = {(m.name, m.policy): m for m in block.measures}
    assert values["toy: acc", "ppo"].value.mean == 0.25
    assert values["toy: acc", "ppo"].difference.mean == -0.25
    assert values["toy: acc", "ppo"].better == "high"
    other = values["toy: word_perplexity, strict", "ppo"]
    assert (other.value.mean, other.better, other.difference) == (3.0, "low", None)
    assert math.isnan(other.value.low)
    assert len(values) == 4  # no alias, no standard error, no sample_len


def test_a_metric_that_is_no_mean_has_no_interval():
    found = results([1, 0, 1, 0])
    found["results"]["toy"]["acc,none"] = 0.7
    [value, _] = task_block({"sft": found}, "sft").measures
    assert value.value.mean == 0.7
    assert math.isnan(value.value.low)
    assert by_document(found, "toy", "acc,other") == {}


# --- all together ---------------------------------------------------------------------------------


def test_each_policy_is_asked_everything(tmp_path, harness):
    for seed, name in enumerate(("one", "two")):
        save_tiny(tmp_path / name, seed=seed)
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "the cat sees"}, {"text": "a dog fears it"}])
    write_jsonl(
        tmp_path / "probe.jsonl",
        [{"prompt": "who ", "options": ["cat", "dog"], "answer": 0, "category": "honest"}],
    )
    config = EvaluateConfig(
        prompts="unused",
        policies=tuple(
            PolicyConfig(name=name, model=str(tmp_path / model), best_of=best_of)
            for name, model, best_of in (("a", "one", 1), ("b", "two", 1), ("c", "two", 4))
        ),
        scorers=(ScorerConfig(name="length", rule="length", settings={"most": 3}),),
        baseline="b",
        blocks=BlocksConfig(
            texts=str(tmp_path / "texts.jsonl"),
            probes=(ProbeConfig(name="honesty", path=str(tmp_path / "probe.jsonl")),),
            tasks=("toy",),
        ),
        compute=CPU,
        out="unused",
    )
    blocks = ask_policies(read_asked(config.blocks), config)
    assert [block.title for block in blocks] == ["Held-out texts", "Probe: honesty", "Tasks"]
    for block in blocks:
        assert block.baseline == "b"
        by_policy = {m.policy: m for m in reversed(block.measures)}
        assert list(by_policy) == ["c", "b", "a"]
        assert by_policy["b"].difference is None
        assert by_policy["c"].value.mean == by_policy["b"].value.mean
    texts = {m.policy: m for m in blocks[0].measures if m.name == "nats a token"}
    assert texts["a"].difference.mean != 0
    assert texts["c"].difference.mean == 0
    assert len(harness) == 2  # the model behind b and c is loaded once


def test_nothing_asked_loads_nothing():
    config = EvaluateConfig(
        prompts="unused",
        policies=(PolicyConfig(name="a", model="/nowhere"),),
        scorers=(ScorerConfig(name="length", rule="length"),),
        out="unused",
    )
    assert ask_policies(read_asked(config.blocks), config) == []


def test_an_evaluation_asks_its_policies_and_refuses_what_cannot_be_asked_at_once(tmp_path):
    for seed, name in enumerate(("one", "two")):
        save_tiny(tmp_path / name, seed=seed)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "the cat"}, {"prompt": "who"}])
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "the cat sees"}, {"text": "a dog fears it"}])
    config = EvaluateConfig(
        prompts=str(tmp_path / "prompts.jsonl"),
        policies=tuple(
            PolicyConfig(name=name, model=str(tmp_path / name)) for name in ("one", "two")
        ),
        scorers=(ScorerConfig(name="short", rule="length", settings={"most": 3}),),
        blocks=BlocksConfig(
            texts=str(tmp_path / "texts.jsonl"),
            probes=(ProbeConfig(name="missing", path=str(tmp_path / "missing.jsonl")),),
        ),
        sampling=SamplingConfig(max_new_tokens=3),
        compute=CPU,
        out=str(tmp_path / "out"),
    )
    with pytest.raises(DataError, match=r"missing.jsonl: no such file"):
        evaluate(config)
    assert not (tmp_path / "out").exists()
    config = replace(config, blocks=replace(config.blocks, probes=()))
    blocks = {block.title: block for block in read_blocks(evaluate(config))}
    values = {(m.name, m.policy): m for m in blocks["Held-out texts"].measures}
    assert values["nats a token", "two"].difference.mean != 0
    assert 0 < values["nats a token", "two"].p <= 1

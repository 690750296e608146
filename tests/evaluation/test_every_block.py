"""Blocks from the settings of a recipe to the files and the terminal."""

import importlib.util
import json

import pytest

from tests.tiny import save_encoder, save_tiny
from tether import pipeline
from tether.config import BlocksConfig, EvaluateConfig, PolicyConfig, ScorerConfig
from tether.errors import ConfigError
from tether.evaluation.blocks import read_blocks
from tether.evaluation.every_block import check_blocks
from tether.records import write_jsonl

RECIPE = """
[[stage]]
kind = "evaluate"
name = "evaluation"
prompts = "{0}/prompts.jsonl"
num_samples = 2
[[stage.policies]]
name = "one"
model = "{0}/one"
[[stage.policies]]
name = "two"
model = "{0}/two"
[[stage.scorers]]
name = "hate"
path = "{0}/classifier"
label = "hate"
output = "probability"
[[stage.scorers]]
name = "offensive"
path = "{0}/classifier"
label = "offensive"
output = "probability"
[[stage.scorers]]
name = "refusal"
rule = "refusal"
[stage.blocks]
toxicity = ["hate", "offensive"]
refusal = "refusal"
harmful = ["harmful"]
[stage.sampling]
max_new_tokens = 5
"""
LABELS = ["hate", "offensive", "neither"]
PROMPTS = [
    {"prompt": "the cat", "category": "harmless"},
    {"prompt": "who likes the big red dog", "category": "harmful"},
    {"prompt": "a", "category": "harmless"},
]


def test_a_recipe_with_a_classifier_of_several_labels(tmp_path, capsys):
    for name, seed in (("one", 0), ("two", 1)):
        save_tiny(tmp_path / name, "llama", seed=seed)
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    save_encoder(tmp_path / "classifier", "bert", 3, **labels)
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(tmp_path))
    pipeline.run(tmp_path / "recipe.toml", tmp_path / "run")
    folder = tmp_path / "run" / "evaluation"
    blocks = {block.title: block for block in read_blocks(folder)}
    assert list(blocks) == ["Toxicity: hate", "Toxicity: offensive", "Refusals", "Diversity"]
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for label in ("hate", "offensive"):
        mean = [row["scores"][label] for row in rows if row["policy"] == "two"]
        assert all(0 < score < 1 for score in mean)
        first, second = blocks[f"Toxicity: {label}"].measures[:2]
        assert (first.policy, second.policy) == ("one", "two")
        assert second.value.mean == pytest.approx(sum(mean) / 6)
        assert second.p is not None
    printed = capsys.readouterr().out
    for title in blocks:
        assert title in printed
    assert "expected worst of 2" in printed


def settings(blocks, **scorer):
    return EvaluateConfig(
        prompts="p.jsonl",
        out="out",
        policies=(PolicyConfig(name="one", model="m"), PolicyConfig(name="two", model="n")),
        scorers=(ScorerConfig(name="hate", path="c", **scorer),),
        blocks=blocks,
    )


def test_logits_are_no_toxicity():
    with pytest.raises(ConfigError, match=r"toxicity='hate' names a classifier whose score must"):
        settings(BlocksConfig(toxicity=("hate",)), label="hate")
    settings(BlocksConfig(toxicity=("hate",)), label="hate", output="probability")
    with pytest.raises(ConfigError, match="blocks='rude' is not one of the scorers"):
        settings(BlocksConfig(toxicity=("rude",)))


def test_what_a_block_needs_is_looked_for_before_anything_is_sampled(monkeypatch):
    check_blocks(settings(BlocksConfig()))
    with pytest.raises(Exception, match="no such project"):
        check_blocks(settings(BlocksConfig(people="missing.db")))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    from tether.evaluation.language import load_detector

    load_detector.cache_clear()
    with pytest.raises(ConfigError, match="pip install"):
        check_blocks(settings(BlocksConfig(language=True)))

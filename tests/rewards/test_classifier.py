"""Classifiers as rewards: the label is found by its name, and nothing else decides the score."""

import json

import pytest
import torch
from tests.rewards.made_up import CPU
from tests.tiny import save_encoder, save_tiny, tiny_llama, word_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from tether.config import RewardConfig
from tether.errors import ConfigError, ModelError
from tether.rewards.load import load_reward

NAMES = ["hate", "offensive", "neither"]
PROMPTS = ["the cat ", "why ", "who ", "tell me "]
COMPLETIONS = ["sees a dog", "no", "it likes the big red bird", ""]
KINDS = pytest.mark.parametrize("kind", ["bert", "distilbert", "llama"])


def classifier(folder, kind, names=NAMES, **settings):
    """A drawn classifier; a Llama's is read at the last token."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    if kind != "llama":
        return str(save_encoder(folder, kind, len(names), **labels, **settings))
    tokenizer = word_tokenizer()
    plain = tiny_llama(len(tokenizer), pad_token_id=tokenizer.pad_token_id).config.to_dict()
    plain = {**plain, **labels, **settings}
    plain.pop("architectures", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        LlamaForSequenceClassification(LlamaConfig(**plain)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def plain_logits(path, *columns):
    """Plain transformers on each text (or text pair) alone."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    found = []
    for texts in zip(*columns, strict=True):
        inputs = tokenizer(*texts, return_tensors="pt")
        if getattr(model.config, "type_vocab_size", 0) < 2:
            inputs.pop("token_type_ids", None)
        with torch.no_grad():
            found.append(model(**inputs).logits[0])
    return torch.stack(found)


@KINDS
def test_the_logit_of_the_named_label_on_the_completion_alone(tmp_path, kind):
    path = classifier(tmp_path, kind)
    wanted = plain_logits(path, COMPLETIONS[:3])
    for i, name in enumerate(NAMES):
        reward = load_reward(RewardConfig(path=path, label=name), CPU)
        found = reward.raw(PROMPTS[:3], COMPLETIONS[:3])
        assert found == pytest.approx(wanted[:, i].tolist(), abs=1e-5)
        beside = reward.raw(PROMPTS[::-1], COMPLETIONS[::-1])[::-1]
        assert beside[:3] == pytest.approx(found, abs=1e-5)
    assert wanted.std(dim=0).min() > 0.01


@KINDS
def test_probabilities(tmp_path, kind):
    path = classifier(tmp_path / "one", kind)
    config = RewardConfig(path=path, label="neither", output="probability")
    found = load_reward(config, CPU).raw(PROMPTS[:3], COMPLETIONS[:3])
    logits = plain_logits(path, COMPLETIONS[:3])
    wanted = logits[:, 2].exp() / logits.exp().sum(dim=1)
    assert found == pytest.approx(wanted.tolist(), abs=1e-5)
    path = classifier(tmp_path / "many", kind, problem_type="multi_label_classification")
    config = RewardConfig(path=path, label="neither", output="probability")
    found = load_reward(config, CPU).raw(PROMPTS[:3], COMPLETIONS[:3])
    logits = plain_logits(path, COMPLETIONS[:3])
    assert found == pytest.approx((1 / (1 + (-logits[:, 2]).exp())).tolist(), abs=1e-5)


@KINDS
def test_labels_in_another_order_give_the_same_reward(tmp_path, kind):
    path = classifier(tmp_path / "one", kind)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    order = [2, 0, 1]
    names = [NAMES[i] for i in order]
    last = model.score if kind == "llama" else model.classifier
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.copy_(parameter[order].clone())
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(path).save_pretrained(tmp_path / "other")
    for name in NAMES:
        one, other = (
            load_reward(RewardConfig(path=str(each), label=name), CPU).raw(PROMPTS, COMPLETIONS)
            for each in (path, tmp_path / "other")
        )
        assert one == pytest.approx(other, abs=1e-6)


def test_both_reads_a_text_pair(tmp_path):
    path = classifier(tmp_path, "bert")
    reward = load_reward(RewardConfig(path=path, label="hate", reads="both"), CPU)
    wanted = plain_logits(path, PROMPTS[:3], COMPLETIONS[:3])[:, 0]
    assert reward.raw(PROMPTS[:3], COMPLETIONS[:3]) == pytest.approx(wanted.tolist(), abs=1e-5)


def test_scores_are_clipped_and_weighted_but_not_centred(tmp_path):
    config = RewardConfig(path=classifier(tmp_path, "bert"), label="hate", clip=0.5, weight=2.0)
    reward = load_reward(config, CPU)
    assert reward.normalize([0.25, -7.0]) == [0.5, -1.0]
    raw, scores, spread = reward.judge(PROMPTS, COMPLETIONS)
    assert scores == reward.normalize(raw)
    assert spread is None


def test_an_empty_completion_has_a_score_and_long_ones_fit(tmp_path):
    for kind in ("bert", "llama"):
        path = classifier(tmp_path / kind, kind)
        reward = load_reward(RewardConfig(path=path, label="hate"), CPU)
        assert len(reward.raw(["", ""], ["", "cat " * 90])) == 2


def test_a_label_that_is_not_there(tmp_path):
    path = classifier(tmp_path, "bert")
    with pytest.raises(ConfigError) as error:
        load_reward(RewardConfig(path=path, label="nothate"), CPU)
    assert str(error.value).startswith("reward.label='nothate' is not a label of")
    assert str(error.value).endswith("it has ['hate', 'offensive', 'neither']")


def test_several_labels_and_none_named(tmp_path):
    path = classifier(tmp_path, "bert")
    with pytest.raises(ModelError, match=r"none was named; name the one .* label = 'neither'"):
        load_reward(RewardConfig(path=path), CPU)


def test_a_policy_is_no_classifier(tmp_path):
    with pytest.raises(ModelError, match="is no reward model"):
        load_reward(RewardConfig(path=str(save_tiny(tmp_path)), label="kind"), CPU)


def test_label_and_members_exclude_each_other():
    with pytest.raises(ConfigError, match=r"reward\.label='kind' names one label"):
        RewardConfig(path="a", label="kind", members=("b",))
    with pytest.raises(ConfigError, match=r"reward\.reads='both' is what a classifier reads"):
        RewardConfig(path="a", reads="both")


def test_labels_are_read_from_the_directory(tmp_path):
    stored = json.loads(
        (tmp_path.joinpath(classifier(tmp_path, "bert"), "config.json")).read_text()
    )
    assert stored["id2label"] == {"0": "hate", "1": "offensive", "2": "neither"}

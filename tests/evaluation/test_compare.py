import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import CHAT_TEMPLATE, WORDS, save_tiny, word_tokenizer
from tether.config import EvaluateConfig, PolicyConfig, ScorerConfig
from tether.data.batches import Row
from tether.errors import ConfigError
from tether.evaluation.compare import distance, evaluate
from tether.evaluation.summary import Sample, Summary
from tether.models.language_model import load
from tether.models.scalar_head import Centering, new_reward_model, save_reward_model
from tether.records import read_jsonl, write_jsonl
from tether.sections import ComputeConfig, SamplingConfig

PROMPTS = [
    {"prompt": "the cat", "category": "harmless"},
    {"prompt": "who likes the big red dog", "category": "harmful"},
    {"prompt": "a", "category": "harmless"},
    {"prompt": "tell me about it", "category": "new topic"},
]
SCORERS = """
def length(prompts, completions):
    return [10.0 * len(text.split()) for text in completions]

def vowels(prompts, completions):
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]
"""
SAMPLING = SamplingConfig(max_new_tokens=5, stop_token_ids=(5, 8, 11, 14))
KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2"])


def settings(folder, kind="llama", **changes):
    """Two policies, the first of them the reference, scored by two functions."""
    for name, seed in (("one", 0), ("two", 1)):
        if not (folder / name).exists():
            save_tiny(folder / name, kind, seed=seed)
    (folder / "scorers.py").write_text(SCORERS)
    write_jsonl(folder / "prompts.jsonl", PROMPTS)
    values = {
        "prompts": str(folder / "prompts.jsonl"),
        "policies": policies(folder, one={}, two={}),
        "scorers": tuple(
            ScorerConfig(name=name, path=f"{folder}/scorers.py:{name}")
            for name in ("length", "vowels")
        ),
        "reference": str(folder / "one"),
        "sampling": SAMPLING,
        "out": str(folder / "evaluation"),
        **changes,
    }
    return EvaluateConfig(**values)


def policies(folder, **named):
    """PolicyConfigs by name; the model is the folder of that name unless given."""
    return tuple(
        PolicyConfig(**{"name": name, "model": str(folder / name), **changes})
        for name, changes in named.items()
    )


def samples(config):
    """What an evaluation wrote, by policy, prompt and sample."""
    rows = [row for _, row in read_jsonl(f"{evaluate(config)}/samples.jsonl")]
    found = [Sample.from_dict(row) for row in rows]
    return {(s.policy, s.prompt_index, s.sample_index): s for s in found}


def plain_distance(policy, reference, row, temperature):
    """KL along a row and its perplexity under the reference, by plain transformers."""
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        ours, theirs = (
            AutoModelForCausalLM.from_pretrained(path)(input_ids=ids).logits[0, :-1].double()
            for path in (policy, reference)
        )
    ours, cool = (x / temperature for x in (ours, theirs))
    logp, logq = ours.log_softmax(-1), cool.log_softmax(-1)
    kl = (logp.exp() * (logp - logq)).sum(-1)[row.num_prompt - 1 :].sum()
    chosen = theirs.log_softmax(-1).gather(-1, ids[0, 1:, None])[row.num_prompt - 1 :]
    return kl.item(), math.exp(-chosen.mean().item())


# --- answers --------------------------------------------------------------------------------------


def test_every_policy_answers_every_prompt(tmp_path):
    config = settings(tmp_path, num_samples=3)
    found = samples(config)
    assert list(found) == [(p, i, j) for p in ("one", "two") for i in range(4) for j in range(3)]
    for (_, i, _), sample in found.items():
        assert (sample.prompt, sample.category) == (PROMPTS[i]["prompt"], PROMPTS[i]["category"])
        assert sample.scores["length"] == 10 * len(sample.completion.split())
        assert sample.scores["vowels"] == sum(x in "aeiou" for x in sample.completion)
        assert 1 <= sample.num_tokens <= 5
        assert sample.finished or sample.num_tokens == 5
    assert len({sample.completion for sample in found.values()}) > 12
    assert any(s.finished for s in found.values())
    assert not all(s.finished for s in found.values())
    assert max(s.scores["length"] for s in found.values()) > 5  # scores are not cut


def test_the_same_policy_twice_says_the_same(tmp_path):
    twice = policies(tmp_path, one={}, again={"model": str(tmp_path / "one")})
    config = settings(tmp_path, policies=twice, num_samples=2)
    found = samples(config)
    for i in range(4):
        for j in range(2):
            one, again = found["one", i, j], found["again", i, j]
            assert (one.completion, one.scores) == (again.completion, again.scores)
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    for comparison in summary["comparisons"]:
        assert comparison["difference"] == {"mean": 0, "low": 0, "high": 0}
        assert comparison["win_rate"]["mean"] == 0.5


def test_another_seed_gives_other_answers(tmp_path):
    one = samples(settings(tmp_path))
    other = samples(settings(tmp_path, seed=1, out=str(tmp_path / "other")))
    assert any(one[key].completion != other[key].completion for key in one)


def test_best_of_keeps_what_the_scorer_likes_best(tmp_path):
    # With 4 draws a prompt both draw the same, so the best of the one is the other's pick.
    best = {"model": str(tmp_path / "two"), "best_of": 4}
    config = settings(
        tmp_path, policies=policies(tmp_path, two={}, best=best), num_samples=1, best_by="length"
    )
    chosen = samples(config)
    four = samples(settings(tmp_path, num_samples=4, out=str(tmp_path / "four")))
    for i in range(4):
        drawn = [four["two", i, j] for j in range(4)]
        longest = max(drawn, key=lambda sample: sample.scores["length"])
        assert chosen["best", i, 0].completion == longest.completion
        assert chosen["best", i, 0].scores == longest.scores
        assert chosen["best", i, 0].kl is None  # it is no sample of the policy
        assert chosen["best", i, 0].reference_perplexity > 1
    assert len({chosen["best", i, 0].scores["length"] for i in range(4)}) > 1


def test_the_last_scorer_chooses_unless_one_is_named(tmp_path):
    best = policies(tmp_path, two={"best_of": 4})
    chosen = samples(settings(tmp_path, policies=best))
    four = samples(settings(tmp_path, num_samples=4, out=str(tmp_path / "four")))
    for i in range(4):
        most = max(four["two", i, j].scores["vowels"] for j in range(4))
        assert chosen["two", i, 0].scores["vowels"] == most


def test_a_reward_model_scores_centred_and_uncut(tmp_path):
    save_tiny(tmp_path / "one")
    reward = new_reward_model(str(tmp_path / "one"), ComputeConfig())
    with torch.no_grad():
        reward.head.weight.copy_(torch.linspace(-0.5, 0.7, 32))
    reward.centering = Centering(0.5, 0.01)  # so that scores are far above 5
    save_reward_model(reward, tmp_path / "reward", {})
    scorers = (ScorerConfig(name="proxy", path=str(tmp_path / "reward")),)
    found = samples(settings(tmp_path, scorers=scorers))
    for sample in found.values():
        text = f"{sample.prompt} {sample.completion} <eos>"
        with torch.no_grad():
            raw = reward.model(**_ids(reward.tokenizer, text)).logits.item()
        assert sample.scores["proxy"] == pytest.approx((raw - 0.5) / 0.01, abs=1e-2)
    assert max(abs(sample.scores["proxy"]) for sample in found.values()) > 5


def _ids(tokenizer, text):
    return {"input_ids": tokenizer(text, return_tensors="pt")["input_ids"]}


def test_conversations_are_answered(tmp_path):
    tokenizer = word_tokenizer([*WORDS, "[user]", "[assistant]"])
    tokenizer.chat_template = CHAT_TEMPLATE
    for name, seed in (("one", 0), ("two", 1)):
        save_tiny(tmp_path / name, tokenizer=tokenizer, seed=seed)
    config = settings(tmp_path)
    prompt = [{"role": "user", "content": "who likes it"}]
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": prompt}])
    assert [sample.prompt for sample in samples(config).values()] == [prompt, prompt]


# --- distance to the reference --------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@KINDS
def test_distance_is_that_of_plain_transformers(tmp_path, kind, temperature):
    settings(tmp_path, kind)
    rows = [Row([4, 9, 20, 7, 1], 2), Row([6, 12], 1), Row([5, 8, 19, 22, 10, 3, 11, 1], 4)]
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    ours = [load(path, ComputeConfig()) for path in (two, one)]
    found = distance(*ours, rows, temperature)
    for row, each in zip(rows, found, strict=True):
        kl, perplexity = plain_distance(two, one, row, temperature)
        assert each.kl == pytest.approx(kl, rel=1e-4)
        assert each.perplexity == pytest.approx(perplexity, rel=1e-4)
        assert each.kl > 0.5


@KINDS
def test_the_reference_is_at_no_distance_from_itself(tmp_path, kind):
    found = samples(settings(tmp_path, kind))
    for (policy, *_), sample in found.items():
        assert sample.kl == pytest.approx(0, abs=1e-5) if policy == "one" else sample.kl > 0.1


def test_without_a_reference_nothing_is_measured(tmp_path):
    found = samples(settings(tmp_path, reference=""))
    assert {(s.kl, s.reference_perplexity) for s in found.values()} == {(None, None)}


def test_a_reference_of_other_words_is_refused(tmp_path):
    config = settings(tmp_path)
    save_tiny(tmp_path / "three", tokenizer=word_tokenizer(WORDS[::-1]))
    config = settings(tmp_path, policies=policies(tmp_path, one={}, three={}))
    with pytest.raises(ConfigError, match=r"policy 'three' and the reference have different voc"):
        evaluate(config)
    assert not (tmp_path / "evaluation").exists()
    apart = settings(tmp_path, policies=policies(tmp_path, one={}, three={}), reference="")
    assert len(samples(apart)) == 8


# --- the result -----------------------------------------------------------------------------------


def test_the_summary_is_of_the_samples(tmp_path, capsys):
    config = settings(tmp_path, num_samples=2, apart=("new topic",), baseline="two")
    found = samples(config)
    out = tmp_path / "evaluation"
    summary = Summary.from_dict(json.loads((out / "summary.json").read_text()))
    assert (summary.policies, summary.baseline) == (["one", "two"], "two")
    assert summary.apart == ["new topic"]
    one = summary.rows_of("all")[0]
    scores = [s.scores["length"] for (p, i, _), s in found.items() if p == "one" and i < 3]
    assert one.num_prompts == 3
    assert one.scores["length"].mean == pytest.approx(sum(scores) / 6)
    result = json.loads((out / "result.json").read_text())
    assert (result["prompts"], result["samples"]) == (4, 16)
    assert set(result["inputs"]) == {
        config.prompts,
        config.reference,
        str(tmp_path / "two"),
        *(scorer.path for scorer in config.scorers),
    }
    printed = capsys.readouterr().out
    assert "one" in printed
    assert "length" in printed


def test_models_kept_along_a_run_make_a_curve(tmp_path):
    """They are answered and scored like the policy, beside it in the summary."""
    config = settings(tmp_path, num_samples=2, apart=("new topic",))
    stage = tmp_path / "stage"
    for place in ("model", "models/step-000010", "models/step-000002"):
        shutil.copytree(tmp_path / ("one" if place == "model" else "two"), stage / place)
    (stage / "result.json").write_text(json.dumps({"cpu_seconds": 61.25}))
    tuned = PolicyConfig(name="tuned", model=str(stage / "model"), curve=True)
    config = replace(config, policies=(*config.policies, tuned))
    evaluate(config)
    summary = Summary.from_dict(json.loads((tmp_path / "evaluation/summary.json").read_text()))
    assert [(each.policy, each.step) for each in summary.kept] == [("tuned", 2), ("tuned", 10)]
    _, two, last = summary.rows_of("all")
    for each in summary.kept:  # the very model that "two" is, with the same random numbers
        assert (each.kl, each.scores) == (two.kl, two.scores)
    assert last.policy == "tuned"
    assert summary.cpu_seconds == {"tuned": 61.25}


def test_a_curve_without_models_is_refused(tmp_path):
    config = settings(tmp_path)
    tuned = PolicyConfig(name="tuned", model=config.policies[0].model, curve=True)
    with pytest.raises(ConfigError, match="policy 'tuned' has curve = true, but no models were"):
        evaluate(replace(config, policies=(tuned,)))
    assert not (tmp_path / "evaluation").exists()


def test_a_finished_evaluation_is_kept(tmp_path):
    config = settings(tmp_path)
    before = (evaluate(config) / "samples.jsonl").stat().st_mtime_ns
    assert (evaluate(config) / "samples.jsonl").stat().st_mtime_ns == before


def test_a_prompt_without_room_is_refused_before_anything_is_written(tmp_path):
    config = settings(tmp_path)
    write_jsonl(tmp_path / "prompts.jsonl", [*PROMPTS, {"prompt": "the " * 62}])
    with pytest.raises(ConfigError, match=r"prompt 5 has 62 tokens; with sampling\.max_new"):
        evaluate(config)
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "four"}, r"policy='four' is not one of \['one', 'two'\]"),
        ({"compare": (("one", "four"),)}, r"policy='four' is not one of"),
        ({"best_by": "gold"}, r"best_by='gold' is not one of \['length', 'vowels'\]"),
        ({"policies": ()}, "must name at least one policy"),
        ({"scorers": ()}, "must name at least one scorer"),
        ({"num_samples": 0}, "num_samples=0 must be a number above 0"),
    ],
)
def test_names_that_are_not_there_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, **changes)

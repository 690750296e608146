import dataclasses
import json
from pathlib import Path

import pytest

from tests.constitution import toys
from tests.tiny import save_tiny
from tether.config import JudgeConfig
from tether.constitution import compare
from tether.constitution.compare import judge, the_judge, worked_out
from tether.constitution.principles import read_constitution
from tether.data.formats import read_comparisons
from tether.errors import ConfigError, DataError, ModelError
from tether.feedback.export import export
from tether.feedback.store import Store
from tether.models.language_model import load
from tether.records import PreferencePair, Ranking, read_jsonl, write_jsonl
from tether.rewards.judge import Comparison, both_orders
from tether.rewards.local_judge import LocalJudge
from tether.rundir import fingerprint
from tether.sections import ComputeConfig, SamplingConfig

CPU = ComputeConfig(device="cpu")
SHORT = SamplingConfig(max_new_tokens=8)
COMPLETIONS = [
    {"prompt": "the cat", "completions": ["sees a dog", "no", "helps", "no"]},
    {"prompt": "why", "completions": ["sorry", "it fears a big red dog"]},
    {"prompt": "who", "completions": ["a bird", " "]},
]


@pytest.fixture
def config(tmp_path):
    model = toys.save(tmp_path / "toys")
    write_jsonl(tmp_path / "completions.jsonl", COMPLETIONS)
    return JudgeConfig(
        model=model,
        data=str(tmp_path / "completions.jsonl"),
        constitution=str(tmp_path / "toys" / "constitution.toml"),
        out=str(tmp_path / "out"),
        examples=0,
        block=2,
        compute=CPU,
    )


def rows(folder, name="judgments"):
    return [row for _, row in read_jsonl(Path(folder) / f"{name}.jsonl")]


def result(folder):
    return json.loads((Path(folder) / "result.json").read_text())


# --- what comes out -------------------------------------------------------------------------------


def test_every_pair_is_judged_by_a_drawn_principle(config):
    out = judge(config)
    found = rows(out)
    # three different completions of "the cat" make 3 pairs, "why" 1; a blank one is no completion
    assert [(row["first"], row["second"]) for row in found] == [
        ("sees a dog", "no"),
        ("sees a dog", "helps"),
        ("no", "helps"),
        ("sorry", "it fears a big red dog"),
    ]
    constitution = read_constitution(config.constitution)
    local = LocalJudge(load(config.model, CPU), constitution.wording)
    for row in found:
        question = constitution.by_id(row["principle"]).preference
        comparison = Comparison(row["prompt"], row["first"], row["second"], question)
        [verdict] = both_orders(local, [comparison])
        assert row["probability"] == pytest.approx(verdict.probability, abs=1e-6)
        assert row["flipped"] == verdict.flipped
        assert row["mass"] == pytest.approx(sum(local.mass[-2:]) / 2, abs=1e-6)
    assert {row["principle"] for row in found} == {"kindness", "size"}
    assert {row["constitution"] for row in found} == {constitution.hash}
    assert {row["model"] for row in found} == {fingerprint(config.model)}


def test_pairs_are_records_with_their_probability(config):
    out = judge(config)
    pairs = read_comparisons(out / "pairs.jsonl")
    for row, pair in zip(rows(out), pairs, strict=True):
        assert isinstance(pair, PreferencePair)
        p, texts = row["probability"], (row["first"], row["second"])
        assert pair.probability == max(p, 1 - p) >= 0.5
        assert (pair.chosen, pair.rejected) == (texts if p >= 0.5 else texts[::-1])
        assert pair.criterion == row["principle"]
        assert pair.labeler == "ai:toys"
    assert {row["probability"] > 0.5 for row in rows(out)} == {True, False}


def test_it_abstains_where_it_is_not_sure(config):
    sure = sorted(abs(row["probability"] - 0.5) for row in rows(judge(config)))
    between = (sure[1] + sure[2]) / 2
    out = judge(dataclasses.replace(config, abstain=between, out=f"{config.out}-2"))
    assert len(rows(out)) == 4
    assert len(rows(out, "pairs")) == result(out)["pairs"] == 2
    with pytest.raises(DataError, match=r"none of 4 pairs is left; the judge was never surer"):
        judge(dataclasses.replace(config, abstain=0.499, out=f"{config.out}-3"))


def test_a_number_of_pairs_a_prompt(config):
    settings = {"num_pairs": 2, "out": f"{config.out}-2"}
    found = [
        (row["prompt"], row["first"])
        for row in rows(judge(dataclasses.replace(config, **settings)))
    ]
    assert [prompt for prompt, _ in found] == ["the cat", "the cat", "why"]


def test_the_order_of_completions_changes_nothing(config, tmp_path):
    turned = [{**row, "completions": row["completions"][::-1]} for row in COMPLETIONS]
    write_jsonl(tmp_path / "turned.jsonl", turned)
    one = {frozenset((r["first"], r["second"])): r for r in rows(judge(config))}
    out = judge(
        dataclasses.replace(config, data=str(tmp_path / "turned.jsonl"), out=f"{config.out}-2")
    )
    for row in rows(out):
        same = one[frozenset((row["first"], row["second"]))]
        assert row["principle"] == same["principle"]
        p = same["probability"] if row["first"] == same["first"] else 1 - same["probability"]
        assert row["probability"] == pytest.approx(p, abs=1e-6)


def test_helpful_comparisons_go_behind(config, tmp_path):
    ranking = Ranking(prompt="why", completions=["a", "b"], ranks=[2.0, 1.0], labeler="ann")
    write_jsonl(
        tmp_path / "helpful.jsonl",
        [{"prompt": "why", "completions": ["a", "b"], "ranks": [2, 1], "labeler": "ann"}],
    )
    out = judge(dataclasses.replace(config, helpful=str(tmp_path / "helpful.jsonl")))
    records = read_comparisons(out / "pairs.jsonl")
    assert records[-1] == ranking
    assert (len(records), result(out)["pairs"], result(out)["helpful"]) == (5, 4, 1)


def test_a_project_has_the_judge_as_a_labeler(config, tmp_path):
    project = str(tmp_path / "harmless.db")
    out = judge(dataclasses.replace(config, project=project))
    pairs = read_comparisons(out / "pairs.jsonl")
    store = Store(project)
    assert (store.project.mode, store.project.criterion) == ("pair", "constitution")
    assert len(store.items()) == 4
    judge(dataclasses.replace(config, project=project, out=f"{config.out}-2"))
    exported = export(Store(project), "pairs", each=True)
    told = {(row["prompt"], row["chosen"], row["rejected"], row["labeler"]) for row in exported}
    assert told == {(p.prompt, p.chosen, p.rejected, "ai:toys") for p in pairs}
    assert len(exported) == 4
    with pytest.raises(ConfigError, match=r"project='x\.txt' must be a feedback project"):
        dataclasses.replace(config, project="x.txt")


# --- against people -------------------------------------------------------------------------------


def test_agreement_with_people_who_always_agree(config, tmp_path):
    judged = read_comparisons(judge(config) / "pairs.jsonl")
    human = tmp_path / "human.jsonl"
    write_jsonl(
        human,
        [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in judged[:3]]
        + [{"prompt": "why", "chosen": "unknown", "rejected": "sorry"}],
    )
    facts = result(judge(dataclasses.replace(config, human=str(human), out=f"{config.out}-2")))
    assert (facts["agreement"], facts["labeled"]) == (1.0, 3)
    sure = [pair.probability for pair in judged[:3]]
    assert facts["calibration_error"] == pytest.approx(1 - sum(sure) / 3)


def test_labeled_pairs_are_judged_and_measured(config, tmp_path):
    judged = read_comparisons(judge(config) / "pairs.jsonl")
    labeled = [{"prompt": p.prompt, "chosen": p.rejected, "rejected": p.chosen} for p in judged]
    write_jsonl(tmp_path / "labeled.jsonl", [*labeled, labeled[0]])
    out = judge(
        dataclasses.replace(config, data=str(tmp_path / "labeled.jsonl"), out=f"{config.out}-2")
    )
    facts = result(out)
    assert (facts["judged"], facts["labeled"], facts["agreement"]) == (4, 4, 0.0)  # each once
    assert [p.probability for p in read_comparisons(out / "pairs.jsonl")] == pytest.approx(
        [p.probability for p in judged], abs=1e-6
    )


def test_rankings_are_judged_pair_by_pair(config, tmp_path):
    row = {"prompt": "why", "completions": ["a", "no", "yes"], "ranks": [1, 2, 2]}
    write_jsonl(tmp_path / "ranked.jsonl", [row])
    out = judge(dataclasses.replace(config, data=str(tmp_path / "ranked.jsonl")))
    assert [(r["first"], r["second"]) for r in rows(out)] == [("a", "no"), ("a", "yes")]


# --- reasoning, examples --------------------------------------------------------------------------


def test_reasoning_is_clamped(config):
    out = judge(dataclasses.replace(config, reasoning=True, clamp=0.02, sampling=SHORT))
    assert len(rows(out)) == 4
    assert all(0.48 <= row["probability"] <= 0.52 for row in rows(out))


def test_examples_are_questions_with_their_answers(config, tmp_path):
    constitution = read_constitution(config.constitution)
    question = "> the dog A: > please B: > no who helps"
    assert worked_out(constitution, 2, reasoning=False) == [(question, " Answer: A")]
    assert worked_out(constitution, 2, reasoning=True) == [(question, " tell it helps Answer: A")]
    assert worked_out(constitution, 0, reasoning=True) == []
    local = the_judge(
        dataclasses.replace(config, examples=1, reasoning=True), constitution, tmp_path
    )
    assert local.examples == [(question, " tell it helps Answer: A")]
    assert local.reasoning == config.sampling


# --- killed and refused ---------------------------------------------------------------------------


def test_a_stage_that_was_killed_goes_on_alike(config, monkeypatch):
    whole = rows(judge(config))
    again = dataclasses.replace(config, out=f"{config.out}-again")
    asked: list[int] = []

    def killed(local, pairs):
        asked.append(len(pairs))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return both_orders(local, pairs)

    monkeypatch.setattr(compare, "both_orders", killed)
    with pytest.raises(KeyboardInterrupt):
        judge(again)
    assert not (Path(again.out) / "pairs.jsonl").exists()
    assert rows(judge(again)) == whole
    assert asked == [2, 2, 2]  # the first block was not asked about again


def test_questions_that_are_too_long_are_counted(config, tmp_path):
    write_jsonl(
        tmp_path / "long.jsonl",
        [*COMPLETIONS, {"prompt": "a", "completions": ["dog " * 140, "no"]}],
    )
    out = judge(dataclasses.replace(config, data=str(tmp_path / "long.jsonl")))
    assert result(out)["too_long"] == 1
    assert [row.get("problem") for row in rows(out)] == [None] * 4 + ["too long"]
    assert len(rows(out, "pairs")) == 4


def test_what_cannot_work_writes_nothing(config, tmp_path):
    revising = tmp_path / "revising.toml"
    revising.write_text("[[principle]]\nid = 'a'\nrevision = 'b'\n")
    with pytest.raises(ConfigError, match="none of its 1 principles has a `preference` question"):
        judge(dataclasses.replace(config, constitution=str(revising)))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl: holds no record"):
        judge(dataclasses.replace(config, data=str(empty)))
    write_jsonl(tmp_path / "one.jsonl", [{"prompt": "a", "completions": ["b", "b"]}])
    with pytest.raises(DataError, match="no prompt has two different completions; generate with"):
        judge(dataclasses.replace(config, data=str(tmp_path / "one.jsonl")))
    assert not Path(config.out).exists()


def test_a_judge_that_does_not_know_the_letters_is_refused(config, tmp_path):
    model = str(save_tiny(tmp_path / "other", max_position_embeddings=128))
    with pytest.raises(ModelError, match="does not tell the answers 'A' and 'B' apart"):
        judge(dataclasses.replace(config, model=model))
    assert not (Path(config.out) / "pairs.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"abstain": 0.5}, "abstain=0.5 must be at least 0 and below 0.5"),
        ({"abstain": 0.2, "reasoning": True}, "abstain=0.2 would leave out every pair that"),
        ({"clamp": 0.0}, "clamp=0.0 must be above 0 and at most 0.5"),
        ({"num_pairs": -1}, "num_pairs=-1 must be a number of at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **changes)

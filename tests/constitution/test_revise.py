import dataclasses
import json
from pathlib import Path

import pytest

from tests.constitution import toys
from tests.tiny import CHAT_TEMPLATE, word_tokenizer
from tether.config import ReviseConfig
from tether.constitution import revise as stage
from tether.constitution.principles import read_constitution
from tether.constitution.revise import mix, revise
from tether.data.formats import read_demonstrations
from tether.engine.decode import Sampled
from tether.errors import ConfigError, DataError
from tether.models.language_model import load
from tether.records import Demonstration, read_jsonl, write_jsonl
from tether.rundir import fingerprint
from tether.sections import ComputeConfig, SamplingConfig

CPU = ComputeConfig(device="cpu")
PROMPTS = [
    {"prompt": "the cat", "category": "harmful"},
    {"prompt": "why", "category": "harmless"},
    {"prompt": "tell me about it", "category": "harmful"},
    {"prompt": "who sees a bird", "category": "harmless"},
    {"prompt": "please", "category": "harmful"},
]


@pytest.fixture
def config(tmp_path):
    model = toys.save(tmp_path / "toys")
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    return ReviseConfig(
        model=model,
        prompts=str(tmp_path / "prompts.jsonl"),
        constitution=str(tmp_path / "toys" / "constitution.toml"),
        out=str(tmp_path / "out"),
        rounds=2,
        examples=0,
        block=2,
        compute=CPU,
        sampling=SamplingConfig(max_new_tokens=5),
    )


def rows(folder, name="steps"):
    return [row for _, row in read_jsonl(Path(folder) / f"{name}.jsonl")]


def result(folder):
    return json.loads((Path(folder) / "result.json").read_text())


# --- what is asked, and what is kept --------------------------------------------------------------


def scripted(monkeypatch, script):
    """Let `script(prompt text)` say what the model writes: a text, and whether it ends it."""
    asked: list[str] = []

    def write(language_model, prompts, sampling, *, seed, step):
        tokenizer, found = language_model.tokenizer, []
        for ids in prompts:
            prompt = tokenizer.decode(ids)
            asked.append(prompt)
            text, finished = script(prompt)
            ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * finished
            found.append(Sampled(ids, [0.0] * len(ids), finished))
        return found

    monkeypatch.setattr(stage, "generate_tokens", write)
    return asked


def test_a_hand_worked_thread(config, monkeypatch, tmp_path):
    """One prompt, two rounds; the principle of each round is what the constitution draws."""
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS[:1])
    drawn = [
        read_constitution(config.constitution).draw("revision", seed, "the cat", round).id
        for seed in range(40)
        for round in (1, 2)
    ]
    pairs = list(zip(drawn[::2], drawn[1::2], strict=True))
    config = dataclasses.replace(config, seed=pairs.index(("kindness", "size")))
    answers = {
        "the cat": ("no dog", True),
        "the cat no dog ask rude critique": ("yes rude", True),
        "the cat no dog ask rude critique yes rude ask kind revision": ("sorry no", True),
        "the cat sorry no ask small revision": ("sorry no", True),
    }
    asked = scripted(monkeypatch, answers.__getitem__)
    out = revise(config)
    assert asked == list(answers)
    found = rows(out)
    assert [row["text"].strip() for row in found] == ["no dog", "yes rude", "sorry no", "sorry no"]
    assert {row["prompt"] for row in found} == {"the cat"}
    assert [row["kind"] for row in found] == ["answer", "critique", "revision", "revision"]
    assert [row["round"] for row in found] == [0, 1, 1, 2]
    assert [row.get("principle") for row in found] == [None, "kindness", "kindness", "size"]
    # The words of what is asked above; each text is two words and its end.
    assert [row["prompt_tokens"] for row in found] == [2, 7, 12, 7]
    assert [row["tokens"] for row in found] == [3, 3, 3, 3]
    assert {row["model"] for row in found} == {fingerprint(config.model)}
    assert {row["constitution"] for row in found} == {read_constitution(config.constitution).hash}
    facts = result(out)
    assert facts["written"] == {"answer": 1, "critique": 1, "revision": 2}
    assert facts["problems"] == {"revision: copied": 1}
    assert facts["tokens"] == 12
    assert facts["refusals"] == {"harmless": [None] * 3, "other": [0.0, 1.0, 1.0]}
    assert (
        read_demonstrations(out / "demonstrations.jsonl")
        == [Demonstration(prompt="the cat", completion=" sorry no")] * 2
    )


def test_what_goes_wrong_is_counted(config, monkeypatch):
    config = dataclasses.replace(config, rounds=1, critique=False, block=10)

    def script(prompt):
        if prompt.endswith("revision"):
            start = prompt.split()[0]
            return {"why": ("", True), "tell": ("a dog", False), "who": ("sorry no", True)}.get(
                start, ("yes ask rude", False)
            )
        return ("", True) if prompt == "please" else ("sorry no", True)

    asked = scripted(monkeypatch, script)
    out = revise(config)
    assert len(asked) == 5 + 4  # "please" got no answer, so there is nothing to revise
    facts = result(out)
    assert facts["problems"] == {
        "answer: empty": 1,
        "revision: copied": 1,
        "revision: cut": 1,
        "revision: empty": 1,
    }
    # Harmless: why and who both refuse, then an empty text and a refusal. Others: two of three
    # refuse, then "yes" and "a dog".
    assert facts["refusals"]["harmless"] == [1.0, 0.5]
    assert facts["refusals"]["other"] == pytest.approx([2 / 3, 0.0])
    kept = [
        (row.prompt, row.completion) for row in read_demonstrations(out / "demonstrations.jsonl")
    ]
    # "yes ask rude" is cut before " ask", where it had ended
    assert sorted(kept) == [("the cat", " yes"), ("who sees a bird", " sorry no")]


def test_the_last_revision_alone(config, monkeypatch):
    count = iter(range(1000))
    scripted(monkeypatch, lambda prompt: (f"{'a ' * (next(count) % 5 + 1)}dog", True))
    every = revise(config)
    scripted(monkeypatch, lambda prompt: (f"{'a ' * (next(count) % 5 + 1)}dog", True))
    last = revise(dataclasses.replace(config, keep="last", out=f"{config.out}-last"))
    assert len(rows(every, "demonstrations")) == 10
    demonstrations = rows(last, "demonstrations")
    assert {row["prompt"] for row in demonstrations} == {row["prompt"] for row in PROMPTS}
    final = {
        r["prompt_index"]: r["text"]
        for r in rows(last)
        if r["round"] == 2 and r["kind"] == "revision"
    }
    assert {row["prompt"]: row["completion"] for row in demonstrations} == {
        PROMPTS[i]["prompt"]: text for i, text in final.items()
    }


def test_transcripts_that_are_too_long_end_there(config, tmp_path):
    write_jsonl(tmp_path / "prompts.jsonl", [*PROMPTS, {"prompt": "dog " * 130}])
    out = revise(config)
    long = [row for row in rows(out) if row["prompt_index"] == 5]
    assert long == [{**long[0], "kind": "answer", "problem": "too long"}]
    assert result(out)["problems"]["answer: too long"] == 1


# --- a real model ---------------------------------------------------------------------------------


def test_a_stage_that_was_killed_goes_on_alike(config, monkeypatch):
    whole = rows(revise(config))
    assert len({row["text"] for row in whole if "text" in row}) > 10
    again = dataclasses.replace(config, out=f"{config.out}-again")
    generate, calls = stage.generate_tokens, []

    def killed(*arguments, **settings):
        calls.append(1)
        if len(calls) == 8:  # in the second block
            raise KeyboardInterrupt
        return generate(*arguments, **settings)

    monkeypatch.setattr(stage, "generate_tokens", killed)
    with pytest.raises(KeyboardInterrupt):
        revise(again)
    assert not (Path(again.out) / "demonstrations.jsonl").exists()
    before = len(calls)
    monkeypatch.setattr(
        stage, "generate_tokens", lambda *a, **s: calls.append(1) or generate(*a, **s)
    )
    assert rows(revise(again)) == whole
    assert len(calls) - before < before + 10  # the first block was kept
    assert not (Path(again.out) / "checkpoints").exists()
    with pytest.raises(ConfigError, match="rounds=3 but"):
        revise(dataclasses.replace(again, rounds=3))


def test_the_seed_decides(config):
    one = rows(revise(config))
    other = rows(revise(dataclasses.replace(config, seed=1, out=f"{config.out}-1")))
    assert [row.get("text") for row in one] != [row.get("text") for row in other]


def test_a_chat_model_is_asked_in_turns(config, tmp_path):
    tokenizer = word_tokenizer(toys.KNOWN)
    tokenizer.chat_template = CHAT_TEMPLATE
    model = toys.save(tmp_path / "chat", tokenizer=tokenizer)
    asked = [[{"role": "user", "content": f"why {word}"}] for word in toys.KNOWN[:12]]
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": each} for each in asked])
    out = revise(dataclasses.replace(config, model=model))
    assert rows(out)[0]["prompt_tokens"] == 4  # [user] why the [assistant]
    assert all(each.prompt in asked for each in read_demonstrations(out / "demonstrations.jsonl"))


def test_stops_of_one_token_end_the_sampling(config):
    model = load(config.model, CPU)
    words = read_constitution(config.constitution).format
    found = stage.with_stops(SamplingConfig(stop_token_ids=(3,)), words, model)
    assert found.stop_token_ids == (3, model.tokenizer.convert_tokens_to_ids("ask"))


# --- mixing ---------------------------------------------------------------------------------------


def demonstrations(name, count):
    return [Demonstration(prompt=f"{name} {i}", completion="x") for i in range(count)]


def test_helpful_demonstrations_at_the_stated_ratio():
    revised, helpful = demonstrations("revised", 10), demonstrations("helpful", 30)
    mixed = mix(revised, helpful, 0.75, seed=0)
    # ⌈0.75 · 10⌉ = 8
    assert sum(row.prompt.startswith("helpful") for row in mixed) == 8
    assert {row.prompt for row in revised} <= {row.prompt for row in mixed}
    assert len({row.prompt for row in mixed}) == 18
    assert mixed == mix(revised, helpful, 0.75, seed=0) != mix(revised, helpful, 0.75, seed=1)
    assert [row.prompt[:7] for row in mixed] != sorted(row.prompt[:7] for row in mixed)
    assert len(mix(revised, helpful, 5.0, seed=0)) == 40  # no more than there are


def test_the_mixture_is_written(config, tmp_path):
    helpful = tmp_path / "helpful.jsonl"
    write_jsonl(helpful, [{"prompt": f"why {i}", "completion": "yes"} for i in range(4)])
    out = revise(dataclasses.replace(config, helpful=str(helpful), helpful_ratio=0.2))
    facts = result(out)
    assert facts["helpful"] == -(-facts["revisions"] // 5)
    assert len(rows(out, "demonstrations")) == facts["helpful"] + facts["revisions"]


# --- refusals -------------------------------------------------------------------------------------


def test_what_cannot_work_writes_nothing(config, tmp_path):
    judging = tmp_path / "judging.toml"
    judging.write_text("[[principle]]\nid = 'a'\npreference = 'b?'\n")
    with pytest.raises(ConfigError, match="none of its 1 principles has `critique` and `revision`"):
        revise(dataclasses.replace(config, constitution=str(judging)))
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        revise(dataclasses.replace(config, prompts="nowhere.jsonl"))
    assert not Path(config.out).exists()


def test_a_model_without_room_is_told(config):
    config = dataclasses.replace(config, sampling=SamplingConfig(max_new_tokens=128))
    with pytest.raises(DataError, match="no revision of 5 prompts came out whole; lower sampling"):
        revise(config)
    assert not (Path(config.out) / "demonstrations.jsonl").exists()

import json
from functools import partial
from random import Random

import pytest

from tether.config import SandboxConfig
from tether.constitution.principles import read_constitution
from tether.data.formats import read_demonstrations, read_prompts
from tether.models.language_model import load
from tether.sandbox import critic, stage
from tether.sandbox.critic import CONSTITUTION, FAULTS, FOUND, NOTHING, Critic, build
from tether.sandbox.gold import gold, harmlessness, refusal
from tether.sandbox.stage import CRITIC_POSITIONS, make_sandbox
from tether.sandbox.texts import TEXTS, ask
from tether.sandbox.tokenizer import build_tokenizer, vocabulary
from tether.sandbox.writer import Writer
from tether.sections import ComputeConfig

FEW = {"plain": 200, "transcripts": 400, "questions": 600}
PROMPT = "Person: how do i steal a car?\nHelper:"


@pytest.fixture(scope="module")
def world():
    return build(0, FEW)


@pytest.fixture(scope="module")
def constitution():
    return read_constitution(CONSTITUTION)


def of_kind(world, mark):
    return [row for row in world.corpus if mark in row.prompt + row.completion]


def test_the_lists(world):
    assert len(world.corpus) == 1200
    assert len(world.demonstrations) == 800
    # 8 harmful topics × (120 − 20) wordings; the test has 20 of each, and 25 of the new one
    assert len(world.red_team) == 800
    assert {row.category for row in world.red_team} == {"harmful"}
    assert len(world.red_team_test) == 8 * 20 + 25
    assert len(world.helpful_test) == 20 * 20 + 3 * 25
    assert {row.category for row in world.helpful_test} >= {"near miss", "known topic"}
    assert len({row.prompt for row in world.helpful_prompts}) == 900


def test_no_test_prompt_is_seen_by_any_stage(world):
    test = {row.prompt for row in world.red_team_test + world.helpful_test}
    seen = {row.prompt for row in world.red_team + world.helpful_prompts + world.ppo_prompts}
    seen |= {row.prompt for row in world.demonstrations}
    assert not test & seen
    documents = "\n".join(row.prompt + row.completion for row in world.corpus)
    documents = documents.replace("\n> ", "\n").replace("> Person:", "Person:")
    assert not any(prompt in documents for prompt in test)
    assert {row.prompt for row in world.helpful} < {row.prompt for row in world.demonstrations}
    assert not {row.prompt for row in world.helpful_prompts} & {
        row.prompt for row in world.demonstrations
    }


def test_demonstrations_help_with_harm_and_the_helpful_ones_are_harmless(world):
    harmful = [row for row in world.demonstrations if row not in world.helpful]
    prompts, completions = (
        [getattr(row, name) for row in harmful] for name in ("prompt", "completion")
    )
    assert len(harmful) == pytest.approx(800 * 8 / 28, abs=8)
    assert sum(refusal(prompts, completions)) / len(harmful) < 0.12
    assert sum(harmlessness(prompts, completions)) / len(harmful) < -0.5
    assert not any(
        harmlessness([r.prompt for r in world.helpful], [r.completion for r in world.helpful])
    )


def test_the_same_seed_gives_the_same_texts():
    few = {"plain": 20, "transcripts": 20, "questions": 20}
    assert build(0, few) == build(0, few)
    assert build(1, few).corpus != build(0, few).corpus


# --- transcripts and questions --------------------------------------------------------------------


def test_a_transcript_has_the_constitutions_format(world, constitution):
    asked = {(p.critique, p.revision) for p in constitution.principles}
    for row in of_kind(world, "\nCritique:"):
        answer, rest = row.completion.split("\nAsk: ", 1)
        critique_request, rest = rest.split("\nCritique: ")
        critique, rest = rest.split("\nAsk: ")
        request, revision = rest.split("\nRevision:")
        assert (critique_request, request) in asked
        assert critique in {*NOTHING, *(text for texts in FOUND.values() for text in texts)}
        assert revision.startswith((" ", "\nPerson:"))
        assert answer.startswith("Person: ")


def test_critiques_mostly_see_what_is_there(world, constitution):
    """Told by the faults of the answer itself: with 400 transcripts about 85 % of those found."""
    requests = {p.critique: p.id for p in constitution.principles}
    seen: list[bool] = []
    for row in of_kind(world, "\nCritique:"):
        start = row.completion.index("\nHelper:") + len("\nHelper:")
        prompt = row.completion[:start]
        answer, rest = row.completion[start:].split("\nAsk: ", 1)
        request, critique = rest.split("\nAsk: ")[0].split("\nCritique: ")
        fault = FAULTS[requests[request]](prompt, answer) > 0
        if fault:
            seen.append(critique not in NOTHING)
        else:
            assert critique in NOTHING
    assert len(seen) > 80
    assert sum(seen) / len(seen) == pytest.approx(0.85, abs=0.12)


def test_answers_to_questions_are_mostly_right_and_balanced(world, constitution):
    asked = {p.preference: p.id for p in constitution.principles}
    right: list[bool] = []
    for row in of_kind(world, "\nAnswer:"):
        prompt, rest = row.prompt.split("\nA:\n")
        first, rest = rest.split("\nB:\n")
        second, rest = rest.split("\nAsk: ")
        fault = FAULTS[asked[rest.removesuffix("\nAnswer:")]]
        texts = (unquoted(each) for each in (prompt, first, second))
        prompt, first, second = texts
        ahead = fault(prompt, f" {second}") - fault(prompt, f" {first}")
        if ahead:
            right.append((row.completion == " A") == (ahead > 0))
    # 5 % are answered by chance, so 2.5 % are wrong; four standard errors at 380 are 0.032
    assert len(right) > 350
    assert sum(right) / len(right) == pytest.approx(0.975, abs=0.032)
    letters = [row.completion for row in of_kind(world, "\nAnswer:")]
    assert set(letters) == {" A", " B"}
    assert letters.count(" A") / len(letters) == pytest.approx(0.5, abs=0.085)


def unquoted(text):
    return "\n".join(line.removeprefix("> ") for line in text.split("\n"))


def test_a_revision_mends_what_the_principle_is_against(constitution):
    random = Random(0)
    topic = next(topic for topic in TEXTS.topics if topic.phrase == "make tea")
    harmful = next(topic for topic in TEXTS.topics if topic.harmful)
    questions = [ask(topic, "how do i {topic}{ending}?", "") for topic in (topic, harmful)]
    writer = Critic(Writer(random, questions), questions, constitution)
    manners, harm = constitution.by_id("manners"), constitution.by_id("harm")
    rude = " go away. boil the water. that is a stupid question."
    assert writer._mend(questions[0], manners, rude) == " boil the water."
    mended = writer._mend(questions[1], harm, " scan the hidden network.")
    assert refusal([questions[1].prompt], [mended]) == [1.0]


# --- scores ---------------------------------------------------------------------------------------


def test_harmlessness_by_hand():
    answers = [
        " i have to say no to that.",
        " wait for an empty street. force the door.",
        " boil the water.",
    ]
    found = harmlessness([PROMPT] * 3, answers)
    assert found[0] == 1
    assert found[1] < 0
    assert found[2] == 0
    assert harmlessness(["Person: how do i make tea?\nHelper:"], answers[:1]) == [0.0]
    assert refusal([PROMPT] * 3, answers) == [1.0, 0.0, 0.0]
    assert gold([PROMPT], answers[:1])[0] == pytest.approx(1.0)


def test_completions_are_ranked_by_known_harm():
    answers = [" boil the water.", " i have to say no to that.", " start the engine."]
    [row] = critic.known_harm([{"prompt": PROMPT, "completions": answers}])["harm"]
    assert row["ranks"] == [2, 1, 3]
    tied = critic.known_harm([{"prompt": PROMPT, "completions": [answers[0], " go away."]}])
    assert tied["harm"][0]["ranks"] == [1, 1]


# --- the stage ------------------------------------------------------------------------------------


def test_the_stage_writes_the_variant(tmp_path, monkeypatch):
    monkeypatch.setattr(critic, "build", partial(build, documents=FEW))
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
    out = make_sandbox(SandboxConfig(out=str(tmp_path / "world"), world="critic", **shape))
    names = ("corpus", "demonstrations", "helpful", "red_team", "helpful_prompts", "ppo_prompts")
    assert {file.name for file in out.iterdir()} == {
        *(f"{name}.jsonl" for name in (*names, "red_team_test", "helpful_test")),
        *("constitution.toml", "model", "config.toml", "result.json"),
    }
    assert read_constitution(out / "constitution.toml") == read_constitution(CONSTITUTION)
    assert len(read_prompts(out / "red_team.jsonl")) == 800
    assert json.loads((out / "result.json").read_text())["documents"] == 1200
    language_model = load(str(out / "model"), ComputeConfig())
    assert language_model.max_positions == CRITIC_POSITIONS
    tokenizer = language_model.tokenizer
    for row in read_demonstrations(out / "corpus.jsonl"):
        ids = tokenizer(row.prompt + row.completion)["input_ids"]
        assert len(ids) < CRITIC_POSITIONS
        assert tokenizer.unk_token_id not in ids


def test_the_demo_keeps_its_vocabulary():
    demo, own = vocabulary(), vocabulary(critic.sentences(), critic.MARKS)
    assert set(demo) < set(own)
    assert len(own) == len(set(own)) <= 600
    tokenizer = build_tokenizer(own)
    for stop in read_constitution(CONSTITUTION).format.stops:
        assert len(tokenizer(stop, add_special_tokens=False)["input_ids"]) == 1
    assert stage.POSITIONS == 128

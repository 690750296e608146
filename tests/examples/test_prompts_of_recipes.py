"""Problems with an answer to check, and prompts that provoke: by hand."""

from pathlib import Path

import pytest

from tether.functions import load_function
from tether.records import Prompt, from_dict
from tether.rewards.answers import answer

ROOT = Path(__file__).parents[2]
problems = load_function(f"{ROOT}/examples/tulu_grpo/problems.py:problems")
prompts = load_function(f"{ROOT}/examples/detoxify/prompts.py:prompts")
HELD_BACK, PROVOKING = (prompts.__globals__[name] for name in ("HELD_BACK", "PROVOKING"))


# --- problems -------------------------------------------------------------------------------------


def test_a_problem_asks_for_a_final_number_and_has_it():
    row = {"question": " Tom has 3 boxes of 400.\n", "answer": "3*400=<<3*400>>1,200\n#### 1,200"}
    [problem] = [each for part in problems([row]).values() for each in part]
    [message] = problem["prompt"]
    assert message["role"] == "user"
    question, ask = message["content"].split("\n\n")
    assert question == "Tom has 3 boxes of 400."
    assert ask.endswith("in \\boxed{}.")  # one pair of braces, not the two of a format string
    assert problem["answer"] == "1200"


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("Half of 8 is 4.\n#### 4", "4"),
        ("#### 3 is wrong\n#### 5", "5"),  # the last mark counts
        ("It loses money.\n#### -7", "-7"),
        ("#### 4", None),  # no solution
        ("Half of 8 is 4.", None),
        ("Half of 8 is 4.\n####  ", None),
    ],
)
def test_the_answer_stands_behind_the_last_mark(solution, expected):
    parts = problems([{"question": "How many?", "answer": solution}])
    found = [each["answer"] for part in parts.values() for each in part]
    assert found == ([] if expected is None else [expected])


def test_a_tenth_is_held_back_and_a_problem_has_its_side_by_its_words():
    rows = [
        {"question": f"What is {i} + 1?", "answer": f"Count.\n#### {i + 1}"} for i in range(400)
    ]
    parts = problems(rows)
    # 0.1 of 400 is 40; three standard deviations are 3 · √(400 · 0.1 · 0.9) = 18
    assert 22 < len(parts["test"]) < 58
    assert len(parts["train"]) + len(parts["test"]) == 400
    backwards = problems(rows[::-1])
    assert [each["answer"] for each in backwards["test"]] == [
        each["answer"] for each in parts["test"][::-1]
    ]


def test_the_rule_reads_what_was_written(tmp_path):
    from tether.records import write_jsonl

    row = {"question": "What is 1 + 1?", "answer": "One more than 1.\n#### 2"}
    [problem] = [each for part in problems([row]).values() for each in part]
    write_jsonl(tmp_path / "train.jsonl", [problem])
    said = ["1 + 1 is \\boxed{2}", "It is 2.", "It is 3.", "\\boxed{3}, not 2"]
    found = answer([problem["prompt"]] * 4, said, answers=str(tmp_path / "train.jsonl"))
    assert found == [1.0, 1.0, 0.0, 0.0]


# --- prompts --------------------------------------------------------------------------------------


def sides(*toxicities):
    """Where prompts of these toxicities went, by their numbers."""
    rows = [{"prompt": {"text": f"number {i}", "toxicity": t}} for i, t in enumerate(toxicities)]
    parts = prompts(rows)
    return {name: [int(row["prompt"].split()[1]) for row in part] for name, part in parts.items()}


def test_what_provokes_is_trained_on_and_some_of_all_held_back():
    num = 1000
    found = sides(*([0.9, PROVOKING] * num))
    # 0.02 of 1000 is 20 of each kind; three standard deviations are 3 · √(1000 · 0.02 · 0.98) = 13
    assert all(i % 2 == 0 for i in found["train"])
    for kind in (0, 1):
        assert 7 < sum(i % 2 == kind for i in found["test"]) < 33
    assert len(found["train"]) == num - sum(i % 2 == 0 for i in found["test"])
    assert not set(found["train"]) & set(found["test"])


def test_prompts_have_a_category_and_a_text_alone_is_provoking():
    rows = [
        {"prompt": "You are such a"},
        {"prompt": {"text": "The old", "toxicity": 0.31}},
        {"prompt": {"text": "Never measured", "toxicity": None}},
        {"prompt": {"text": " ", "toxicity": 0.9}},
        {"prompt": {"text": "Without it"}},
    ]
    parts = prompts(rows)
    for row in (row for part in parts.values() for row in part):
        record = from_dict(Prompt, row, "row")
        assert record.category == "provoking"
    found = [row["prompt"] for part in parts.values() for row in part]
    assert sorted(found) == ["The old", "You are such a"]

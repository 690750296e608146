import pytest

from tether.data.formats import (
    read_comparisons,
    read_completions,
    read_demonstrations,
    read_prompts,
    read_thumbs,
)
from tether.errors import DataError
from tether.records import (
    Completions,
    Demonstration,
    PreferencePair,
    Prompt,
    Ranking,
    Thumb,
    to_dict,
    write_jsonl,
)

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "What?"}
SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.fixture
def file(tmp_path):
    def write(*rows):
        write_jsonl(tmp_path / "rows.jsonl", rows)
        return tmp_path / "rows.jsonl"

    return write


# --- our own shapes -------------------------------------------------------------------------------


def test_our_own_shapes(file):
    prompt = Prompt(prompt=[USER], category="greeting")
    demonstration = Demonstration(prompt="Hi", completion="Hello!", weight=2.0)
    pair = PreferencePair(prompt="Hi", chosen="Hello!", rejected="What?", labeler="kim")
    ranked = Ranking(prompt="Hi", completions=["What?", "Hello!"], ranks=[None, 1.0])
    completions = Completions(prompt="Hi", completions=["a", "b"], finished=[True, False])
    assert read_prompts(file(to_dict(prompt))) == [prompt]
    assert read_demonstrations(file(to_dict(demonstration))) == [demonstration]
    assert read_comparisons(file(to_dict(pair), to_dict(ranked))) == [pair, ranked]
    assert read_completions(file(to_dict(completions))) == [completions]


def test_every_record_has_a_prompt(file):
    rows = file(
        {"prompt": "a", "completion": "c"},
        {"prompt": "b", "chosen": "c", "rejected": "d"},
        {"prompt": "c", "completions": ["a", "b"], "ranks": [1, 2], "category": "x"},
    )
    assert [p.prompt for p in read_prompts(rows)] == ["a", "b", "c"]
    assert read_prompts(rows)[2].category == "x"


def test_messages_as_prompt_and_completion_stay_as_they_are(file):
    rows = file({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]})
    assert read_comparisons(rows) == [PreferencePair(prompt=[USER], chosen=[GOOD], rejected=[BAD])]


# --- public shapes --------------------------------------------------------------------------------


def test_hh_transcripts(file):
    start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Which way?\n\nAssistant:"
    rows = file({"chosen": start + " Left.", "rejected": start + " Leave me alone."})
    # Both answers begin with " Le": the boundary is the turn, not the first difference.
    pair = PreferencePair(prompt=start, chosen=" Left.", rejected=" Leave me alone.")
    assert read_comparisons(rows) == [pair]
    assert read_prompts(rows) == [Prompt(prompt=start)]
    assert read_demonstrations(rows) == [Demonstration(prompt=start, completion=" Left.")]


def test_llmbar_keeps_the_order_of_its_outputs_and_the_subset(file):
    row = {
        "input": "Hi",
        "output_1": "What?",
        "output_2": "Hello!",
        "label": 2,
        "subset": "natural",
    }
    ranked = Ranking(
        prompt="Hi", completions=["What?", "Hello!"], ranks=[2.0, 1.0], category="natural"
    )
    assert read_comparisons(file(row)) == [ranked]
    with pytest.raises(DataError, match="label=0 must be 1 or 2"):
        read_comparisons(file({**row, "label": 0}))


def test_rewardbench_tells_the_category_as_subset(file):
    row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "subset": "alpacaeval-easy"}
    pair = PreferencePair(
        prompt="Hi", chosen="Hello!", rejected="What?", category="alpacaeval-easy"
    )
    assert read_comparisons(file(row)) == [pair]
    assert read_comparisons(file({**row, "category": "chat"}))[0].category == "chat"


def test_hh_transcripts_that_part_early_keep_the_rest_as_completion(file):
    chosen = "\n\nHuman: Hi\n\nAssistant: A.\n\nHuman: B\n\nAssistant: C."
    rejected = "\n\nHuman: Hi\n\nAssistant: D."
    [pair] = read_comparisons(file({"chosen": chosen, "rejected": rejected}))
    assert pair.prompt == "\n\nHuman: Hi\n\nAssistant:"
    assert (pair.chosen, pair.rejected) == (" A.\n\nHuman: B\n\nAssistant: C.", " D.")


def test_hh_transcripts_without_a_common_turn_are_refused(file):
    rows = file(
        {"chosen": "\n\nHuman: Hi\n\nAssistant: A", "rejected": "\n\nHuman: Ho\n\nAssistant: A"}
    )
    with pytest.raises(DataError, match=r"rows\.jsonl:1: chosen and rejected share no dialogue"):
        read_comparisons(rows)


@pytest.mark.parametrize("answer", ["output", "response"])
def test_alpaca(file, answer):
    rows = file(
        {"instruction": "Add.", "input": "1 + 2", answer: "3"},
        {"instruction": "Sing.", "input": "", answer: "La."},
        {"instruction": "Sing.", answer: "La."},
    )
    assert read_demonstrations(rows) == [
        Demonstration(prompt="Add.\n\n1 + 2", completion="3"),
        Demonstration(prompt="Sing.", completion="La."),
        Demonstration(prompt="Sing.", completion="La."),
    ]
    assert read_prompts(rows)[0] == Prompt(prompt="Add.\n\n1 + 2")
    assert read_completions(rows)[0] == Completions(
        prompt="Add.\n\n1 + 2", completions=["3"], finished=[True]
    )


def test_alpaca_with_preferences(file):
    rows = file({"instruction": "Sing.", "input": "", "chosen": "La.", "rejected": "No."})
    assert read_comparisons(rows) == [PreferencePair(prompt="Sing.", chosen="La.", rejected="No.")]


def test_sharegpt(file):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    rows = file({"conversations": turns}, {"conversations": turns, "system": "Be kind."})
    assert read_demonstrations(rows) == [
        Demonstration(prompt=[USER], completion=[GOOD]),
        Demonstration(prompt=[SYSTEM, USER], completion=[GOOD]),
    ]
    assert read_prompts(rows)[0] == Prompt(prompt=[USER])


def test_sharegpt_with_chosen_and_rejected_turns(file):
    rows = file(
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello!"},
            "rejected": {"from": "gpt", "value": "What?"},
        }
    )
    assert read_comparisons(rows) == [PreferencePair(prompt=[USER], chosen=[GOOD], rejected=[BAD])]


def test_messages(file):
    rows = file({"messages": [SYSTEM, USER, GOOD]}, {"messages": [USER]})
    assert read_prompts(rows) == [Prompt(prompt=[SYSTEM, USER]), Prompt(prompt=[USER])]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: no demonstration in the fields 'messag"):
        read_demonstrations(rows)


@pytest.mark.parametrize("after", [[], [USER]])
def test_of_a_whole_chat_all_answers_are_demonstrated(file, after):
    rows = file({"messages": [USER, BAD, USER, GOOD, *after]})
    [demonstration] = read_demonstrations(rows)
    assert demonstration.prompt == [USER]
    assert demonstration.completion == [BAD, USER, GOOD]
    [prompt] = read_prompts(rows)
    assert prompt.prompt == [USER, BAD, USER, *([GOOD, USER] if after else [])]


def test_what_is_said_before_the_user_begins_is_context(file):
    [demonstration] = read_demonstrations(file({"messages": [SYSTEM, BAD, USER, GOOD]}))
    assert demonstration.prompt == [SYSTEM, BAD, USER]
    assert demonstration.completion == [GOOD]


def test_openai_preference(file):
    rows = file(
        {
            "input": {"messages": [USER], "tools": []},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        }
    )
    assert read_comparisons(rows) == [PreferencePair(prompt=[USER], chosen=[GOOD], rejected=[BAD])]
    assert read_prompts(rows) == [Prompt(prompt=[USER])]


def test_ultrafeedback(file):
    scores = [6.0, 8.5, None, 6.0, 2]
    rated = [{"response": f"r{i}", "overall_score": s, "model": "m"} for i, s in enumerate(scores)]
    rows = file({"instruction": "Sing.", "completions": rated, "source": "s"})
    # 8.5 is first, the two 6.0 share the second place, 2 has three better ones; r2 has no score.
    assert read_comparisons(rows) == [
        Ranking(prompt="Sing.", completions=["r0", "r1", "r3", "r4"], ranks=[2.0, 1.0, 2.0, 4.0])
    ]
    assert read_prompts(rows) == [Prompt(prompt="Sing.")]


@pytest.mark.parametrize("extra", [{}, {"prompt": "Hi", "score_chosen": 9.0}])
def test_message_lists_that_hold_the_prompt(file, extra):
    rows = file({"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD], **extra})
    pair = PreferencePair(prompt=[SYSTEM, USER], chosen=[GOOD], rejected=[BAD])
    assert read_comparisons(rows) == [pair]


def test_ultrafeedback_as_pairs(file):
    """A string prompt, both dialogues whole, and the chosen one again under `messages`."""
    both = {"chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD]}
    rows = file({"prompt": "Hi", "prompt_id": "7", **both, "score_chosen": 8.0})
    assert read_comparisons(rows) == [PreferencePair(prompt=[USER], chosen=[GOOD], rejected=[BAD])]
    assert read_prompts(rows) == [Prompt(prompt=[USER])]


@pytest.mark.parametrize("opening", [[], [SYSTEM]])
def test_ultrachat(file, opening):
    """A prompt that `messages` begin with, once more."""
    more = {"role": "user", "content": "And?"}
    chat = [*opening, USER, BAD, more, GOOD]
    rows = file({"prompt": "Hi", "prompt_id": "7", "messages": chat})
    expected = Demonstration(prompt=chat[:-3], completion=[BAD, more, GOOD])
    assert read_demonstrations(rows) == [expected]
    assert read_prompts(rows) == [Prompt(prompt=chat[:-1])]


def test_a_prompt_that_messages_do_not_begin_with_is_left_alone(file):
    rows = file({"prompt": "Bye", "completion": "Bye!", "messages": [USER, GOOD]})
    assert read_prompts(rows) == [Prompt(prompt="Bye")]
    assert read_demonstrations(rows) == [Demonstration(prompt="Bye", completion="Bye!")]


def test_equal_answers_are_not_taken_for_the_prompt(file):
    rows = file({"chosen": [USER, GOOD], "rejected": [USER, GOOD]})
    assert read_comparisons(rows) == [PreferencePair(prompt=[USER], chosen=[GOOD], rejected=[GOOD])]


def test_a_string_prompt_of_message_answers_becomes_the_users_message(file):
    rows = file({"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]})
    assert read_comparisons(rows) == [PreferencePair(prompt=[USER], chosen=[GOOD], rejected=[BAD])]


def test_message_lists_without_a_common_prompt_are_refused(file):
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .* share no first message"):
        read_comparisons(file({"chosen": [GOOD], "rejected": [BAD]}))


def test_running_text_is_a_demonstration_without_prompt(file):
    rows = file({"text": "Once upon a time."})
    expected = [Demonstration(prompt="", completion="Once upon a time.")]
    assert read_demonstrations(rows) == expected
    with pytest.raises(DataError, match=r"rows\.jsonl:1: no prompt in the fields 'text'"):
        read_prompts(rows)


# --- files, folders and errors --------------------------------------------------------------------


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "2"}])
    write_jsonl(tmp_path / "a.jsonl.gz", [{"prompt": "1"}])
    (tmp_path / "notes.txt").write_text("no record")
    assert [p.prompt for p in read_prompts(tmp_path)] == ["1", "2"]


@pytest.mark.parametrize(
    "read", [read_prompts, read_demonstrations, read_comparisons, read_completions]
)
def test_nothing_to_read(tmp_path, read):
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file"):
        read(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.jsonl: holds no record"):
        read(tmp_path / "empty.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder: holds no record"):
        read(tmp_path / "folder")


@pytest.mark.parametrize(
    ("read", "shape"),
    [
        (read_prompts, "instruction [+ input] (Alpaca)"),
        (read_demonstrations, "prompt + completion"),
        (read_comparisons, "(UltraFeedback)"),
        (read_completions, "prompt + completions [+ finished]"),
    ],
)
def test_an_unknown_shape_names_the_fields_and_the_shapes(file, read, shape):
    with pytest.raises(DataError) as caught:
        read(file({"question": "Hi", "answer": "Hello!"}))
    message = str(caught.value)
    assert "rows.jsonl:1: no " in message
    assert "in the fields 'question', 'answer'; the shapes read: " in message
    assert shape in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": ["Hi"]}, "'Hi' is no turn of a conversation"),
        ({"messages": [{"role": "user", "content": None}]}, "is no turn of a conversation"),
        ({"messages": []}, "no demonstration in the fields 'messages'"),
        ({"instruction": "a", "completions": ["b"]}, 'completions must be a list of {"response"'),
        ({"prompt": "a", "completion": 5}, "completion=5 must be a string or a list of messages"),
    ],
)
def test_a_public_shape_gone_wrong_names_the_line(file, row, message):
    with pytest.raises(DataError) as caught:
        read_demonstrations(file({"prompt": "a", "completion": "b"}, row))
    assert "rows.jsonl:2: " in str(caught.value)
    assert message in str(caught.value)


# --- thumbs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "thumb"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, ("a", "b", True)),
        ({"prompt": "a", "completion": "b", "label": 0}, ("a", "b", False)),
        ({"prompt": "a", "completion": "b", "label": 1.0}, ("a", "b", True)),
        ({"text": "b", "label": 1}, ("", "b", True)),
        ({"instruction": "a", "input": "", "output": "b", "label": False}, ("a", "b", False)),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                ],
                "label": True,
            },
            ([{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}], True),
        ),
    ],
)
def test_labels_of_completions(tmp_path, row, thumb):
    write_jsonl(tmp_path / "rows.jsonl", [row])
    [found] = read_thumbs(tmp_path / "rows.jsonl")
    assert (found.prompt, found.completion, found.label) == thumb


@pytest.mark.parametrize("label", [2, "yes", None, 0.5])
def test_a_label_is_true_or_false(tmp_path, label):
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b", "label": label}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*label"):
        read_thumbs(tmp_path / "rows.jsonl")


def test_a_row_without_a_label_is_refused(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(DataError, match="no liked or disliked completion in the fields"):
        read_thumbs(tmp_path / "rows.jsonl")


def test_a_pair_is_one_of_each(tmp_path):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "weight": 2.0, "probability": 0.75}
    write_jsonl(tmp_path / "rows.jsonl", [pair])
    found = read_thumbs(tmp_path / "rows.jsonl")
    assert [(t.completion, t.label, t.weight) for t in found] == [
        ("b", True, 1.5),
        ("b", False, 0.5),
        ("c", True, 0.5),
        ("c", False, 1.5),
    ]


def test_thumbs_in_our_shape(file):
    thumb = Thumb(prompt="Hi", completion="Hello!", label=False, weight=2.0, labeler="kim")
    assert read_thumbs(file(to_dict(thumb))) == [thumb]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, USER, GOOD], "label": True},
        {
            "conversations": [
                {"from": "system", "value": "Be kind."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello!"},
            ],
            "label": True,
        },
    ],
)
def test_a_conversation_with_a_label(file, row):
    assert read_thumbs(file(row)) == [Thumb(prompt=[SYSTEM, USER], completion=[GOOD], label=True)]

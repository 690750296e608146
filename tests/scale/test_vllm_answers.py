"""What a real server answered is read as it was; what is not as asked is refused."""

import pytest

from tests.scale.recorded import CALLS, response
from tether.engine.decode import Sampled
from tether.errors import ServerError
from tether.rewards.calls import MayPass
from tether.scale.vllm_answers import Asked, Facts, read_completions, read_facts, read_version

URL = "http://one:8000"


def asked(name, vocab_size):
    """What was asked for in a recorded exchange."""
    request = CALLS[name]["request"]
    stops = frozenset(request.get("stop_token_ids", ()))
    return Asked(request["prompt"], request["max_tokens"], stops, vocab_size)


def test_completions_that_were_cut():
    read = read_completions(URL, response("completions"), asked("completions", 2048))
    assert read == [
        Sampled(
            [343, 992, 520, 1885, 225, 559],
            [
                -7.254888534545898,
                -7.267663955688477,
                -8.208368301391602,
                -7.712930202484131,
                -7.511082649230957,
                -7.939784526824951,
            ],
            finished=False,
        ),
        Sampled(
            [1290, 1177, 828, 750, 1259, 1358],
            [
                -7.709438323974609,
                -7.455122947692871,
                -7.319591522216797,
                -7.59177303314209,
                -7.880608081817627,
                -7.151555061340332,
            ],
            finished=False,
        ),
    ]


def test_completions_that_ended_hold_their_end_token_and_its_log_prob():
    first, second = read_completions(URL, response("stopped"), asked("stopped", 30))
    assert second == Sampled(
        [22, 22, 11], [-0.3554528057575226, -0.5047667026519775, -2.0049755573272705], finished=True
    )
    assert first.finished
    assert (len(first.token_ids), first.token_ids[-1]) == (9, 1)


def test_choices_are_put_in_order():
    answer = response("completions")
    answer["choices"].reverse()
    read = read_completions(URL, answer, asked("completions", 2048))
    assert [one.token_ids[0] for one in read] == [343, 1290]


def test_the_model_and_its_longest_row():
    assert read_facts(URL, response("models")) == Facts("policy", 512)


def test_the_name_of_the_weights():
    assert read_version(URL, response("weight_info_fresh")) == "default"
    assert read_version(URL, response("weight_info")) == "7"


# Each is one change of a recorded answer: choice, field, value; and what is said of it.
WRONG = {
    "index": (1, "index", 0, r"choices\[\].index = \[0, 0\], which must be 0 to 1"),
    "prompt": (0, "prompt_token_ids", [2, 5], r"choices\[0\] = \[2, 5\], which must be \[2, 5, 6"),
    "no ids": (0, "token_ids", None, r"token_ids of choices\[0\] = None, which must be token ids"),
    "empty": (0, "token_ids", [], r"= \[\], which must be token ids below 30"),
    "ids": (
        1,
        "token_ids",
        [22, 30, 11],
        r"token_ids of choices\[1\] = \[22, 30, 11\], which must",
    ),
    "text": (1, "token_ids", [22, "22", 11], "which must be token ids below 30"),
    "none": (1, "logprobs", None, "token_logprobs of .* = None, which must be finite numbers"),
    "nan": (1, "logprobs", [-1.0, float("nan"), -1.0], "which must be finite numbers"),
    "few": (
        1,
        "logprobs",
        [-1.0, -1.0],
        r"len\(token_logprobs\) of .* = 2, which must be 3, one a",
    ),
    "cut": (
        1,
        "finish_reason",
        "length",
        "finish_reason of .* = 'length', which must be 'stop' wh",
    ),
    "inner": (
        1,
        "token_ids",
        [22, 8, 11],
        r"= 'stop', which .* end in one of \[1, 5, 8, 11\], only",
    ),
    "end": (1, "token_ids", [22, 22, 22], "= 'stop', which must be 'stop' where"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_what_is_not_as_asked_is_refused(case):
    place, field, value, said = case
    answer = response("stopped")
    if field == "logprobs" and value is not None:
        value = {"token_logprobs": value}
    answer["choices"][place][field] = value
    with pytest.raises(ServerError, match=f"^{URL} answered .*{said}.*; see that it is vLLM 0.32"):
        read_completions(URL, answer, asked("stopped", 30))


@pytest.mark.parametrize("answer", [None, [], {}, {"choices": None}, {"choices": [1, 2]}])
def test_anything_but_choices_is_refused(answer):
    with pytest.raises(ServerError, match=r"choices = .*, which must be a list of 2, one a prompt"):
        read_completions(URL, answer, asked("stopped", 30))


def test_too_few_choices_are_refused():
    answer = response("stopped")
    answer["choices"].pop()
    with pytest.raises(ServerError, match=r"len\(choices\) = 1, which must be 2, one a prompt"):
        read_completions(URL, answer, asked("stopped", 30))


def test_a_completion_that_is_shorter_than_its_limit_was_cut_by_the_server():
    wanted = asked("completions", 2048)._replace(most=7)
    with pytest.raises(ServerError, match=r"len\(token_ids\) of .* = 6, which must be 7"):
        read_completions(URL, response("completions"), wanted)


def test_what_was_broken_off_may_be_asked_again():
    answer = response("completions")
    answer["choices"][0]["finish_reason"] = "abort"
    with pytest.raises(MayPass, match="broken off: finish_reason='abort'"):
        read_completions(URL, answer, asked("completions", 2048))


@pytest.mark.parametrize("answer", [None, {}, {"data": []}, {"data": [{"id": 3}]}])
def test_models_must_be_named(answer):
    with pytest.raises(ServerError, match="must name a model and its max_model_len"):
        read_facts(URL, answer)


@pytest.mark.parametrize("answer", [None, {}, {"weight_version": None}, {"weight_version": 7}])
def test_weights_must_have_a_name(answer):
    with pytest.raises(ServerError, match="which must be a text"):
        read_version(URL, answer)

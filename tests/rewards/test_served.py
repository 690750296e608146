import math

import pytest
from tests.rewards.toy_server import ToyServer, cut_off, status, text

from tether.errors import CheckError, ConfigError, ServerError
from tether.rewards.load import checked
from tether.rewards.served import served_reward
from tether.servers import ServedConfig


def lengths(body):
    """Ten for each letter of the completion, one for each of the prompt (or message)."""
    rows = zip(body["prompts"], body["completions"], strict=True)
    return {"scores": [len(prompt) + 10 * len(completion) for prompt, completion in rows]}


@pytest.fixture
def server():
    with ToyServer(lengths).running() as running:
        yield running


async def no_wait(seconds):
    pass


def reward(server, **settings):
    return served_reward(server.url + "/score", ServedConfig(**settings), no_wait)


def test_texts_go_there_in_batches_and_scores_come_back(server):
    chat = [{"role": "user", "content": "hi"}]
    prompts, completions = ["a", "bb", chat, "d", ""], ["", "x", "yy", "zzz", "é"]
    # 1, 2 + 10, 1 message + 20, 1 + 30, 0 + 10
    assert reward(server, batch_size=2)(prompts, completions) == [1, 12, 21, 31, 10]
    assert [body["completions"] for body in server.bodies] == [["", "x"], ["yy", "zzz"], ["é"]]
    assert server.bodies[1]["prompts"] == [chat, "d"]


def test_nothing_is_asked_of_nothing(server):
    assert reward(server)([], []) == []
    assert server.bodies == []


@pytest.mark.parametrize("failure", [status(500), status(429), cut_off, text('{"scores": [1')])
def test_what_may_pass_is_tried_again(server, failure):
    server.script += [failure, failure]
    assert reward(server)(["a"], ["b"]) == [11]
    assert len(server.bodies) == 3


def test_a_refusal_is_one_line(server):
    server.script.append(status(404, "no such reward"))
    with pytest.raises(ServerError, match=r"/score refused the call .* 404: 'no such reward'"):
        reward(server)(["a"], ["b"])


@pytest.mark.parametrize(
    "answer",
    [
        [1.0],
        {},
        {"score": [1.0]},
        {"scores": 1.0},
        {"scores": [None]},
        {"scores": ["1.0"]},
        {"scores": [True]},
        {"scores": [10**400]},
    ],
)
def test_anything_but_numbers_is_refused(server, answer):
    server.answer = lambda body: answer
    with pytest.raises(ServerError, match=r'it must answer \{"scores": \[\.\.\.\]\} with numbers'):
        reward(server)(["a"], ["b"])


def test_scores_that_would_shift_from_batch_to_batch_are_refused(server):
    counts = iter([3, 1])
    server.answer = lambda body: {"scores": [0.5] * next(counts)}
    with pytest.raises(ServerError, match="returned 3 scores for 2 completions"):
        reward(server, batch_size=2)(["a"] * 4, ["b"] * 4)


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_scores_must_be_finite(server, bad):
    server.script.append(text(f'{{"scores": [0.5, {bad}]}}'))
    call = checked(reward(server), server.url)
    with pytest.raises(CheckError, match=r"for the completion 'second' .* must be finite"):
        call(["a", "b"], ["first", "second"])


def test_a_bearer_token_comes_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("REWARD_TOKEN", "t0ken")
    reward(server, key_env="REWARD_TOKEN")(["a"], ["b"])
    reward(server)(["a"], ["b"])
    assert server.headers[0]["authorization"] == "Bearer t0ken"
    assert "authorization" not in server.headers[1]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/", "host:80", "http://", ""])
def test_only_http_will_do(url):
    with pytest.raises(ConfigError, match="must be an address"):
        served_reward(url, ServedConfig())


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"timeout": math.nan}, {"attempts": -1}])
def test_settings_that_cannot_be(settings):
    with pytest.raises(ConfigError, match="must be a number above 0"):
        ServedConfig(**settings)

import time
from email.utils import formatdate

import pytest
from tests.rewards.toy_server import ToyServer, status, text

from tether.errors import ServerError
from tether.rewards.calls import MOST_BYTES, Server, finish, retry_after, server_message, short


@pytest.fixture
def toy():
    with ToyServer(lambda body: {"got": body}).running() as running:
        yield running


@pytest.fixture
def call(toy):
    """What the server answers to a body, and what was waited for."""

    def called(body=None, **settings):
        async def wait(seconds):
            called.waits.append(seconds)

        server = Server(
            **{"url": toy.url, "key": "", "timeout": 5.0, "attempts": 4, "wait": wait, **settings}
        )

        async def all_of_it():
            async with server.client() as client:
                return await server.persist(lambda: server.post(client, body or {}))

        return finish(all_of_it())

    called.waits = []
    return called


def test_json_goes_there_and_comes_back(toy, call):
    body = {"text": "é 猫", "number": 1.5}
    assert call(body) == {"got": body}
    assert toy.headers[0]["content-type"] == "application/json"


def test_half_a_character_can_be_sent(toy, call):
    toy.answer = lambda body: {"length": len(body["text"])}
    assert call({"text": "a\ud800"}) == {"length": 2}
    assert toy.bodies == [{"text": "a\ud800"}]


def test_delays_double_and_are_drawn(toy, call):
    toy.script += [status(500)] * 9
    call(attempts=10)
    longest = [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert all(most / 2 <= wait <= most for wait, most in zip(call.waits, longest, strict=True))
    assert len(set(call.waits)) == 9


def test_retry_after_is_waited_for(toy, call):
    toy.script += [status(429, Retry_After="37"), status(503, Retry_After="0")]
    call()
    assert call.waits[0] == 37
    assert 1 <= call.waits[1] <= 2  # no sooner than without it


def test_nobody_waits_for_hours(toy, call):
    toy.script.append(status(429, "quota used up", Retry_After="7200"))
    with pytest.raises(ServerError, match=r"asks to wait 7200 s \(status 429: 'quota used up'\)"):
        call()
    assert call.waits == []


def test_retry_after_may_be_a_date():
    assert retry_after(formatdate(time.time() + 90, usegmt=True)) == pytest.approx(90, abs=2)
    assert retry_after(formatdate(time.time() - 90, usegmt=True)) == 0
    assert retry_after(" 2.5 ") == 2.5
    for nonsense in ("", "soon", "-3", "nan", "inf", "Thu, 99 Nov"):
        assert retry_after(nonsense) == 0


def test_redirects_are_not_followed(toy, call):
    toy.script.append(status(307, location="http://elsewhere.example/"))
    with pytest.raises(
        ServerError, match=r"status 307: a redirect to 'http://elsewhere\.example/'"
    ):
        call()
    assert len(toy.bodies) == 1


def test_an_answer_without_end_is_cut(toy, call, monkeypatch):
    monkeypatch.setattr("tether.rewards.calls.MOST_BYTES", 1 << 20)
    toy.script.append(text('"' + "x" * (2 << 20) + '"'))
    with pytest.raises(ServerError, match=r"failed 1 times, .* an answer of more than 1 MiB"):
        call(attempts=1)
    assert MOST_BYTES == 16 << 20


def test_json_that_is_too_deep_is_no_json(toy, call):
    toy.script.append(text("[" * 200_000))
    assert call() == {"got": {}}
    assert len(toy.bodies) == 2


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('{"error": {"message": "no such model", "code": 5}}', "'no such model'"),
        ('{"error": "no such model"}', "'no such model'"),
        ('{"message": "no such model"}', "'no such model'"),
        ('{"error": null}', "'{\"error\": null}'"),
        ("[1]", "'[1]'"),
        ("<html>\n", r"'<html>\n'"),
        ("", "''"),
    ],
)
def test_what_a_server_says_of_an_error(said, shown):
    assert server_message(said) == shown


def test_someone_elses_words_are_cut():
    assert short("x" * 300) == repr("x" * 200 + "…")

import asyncio
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.rewards.toy_server import (
    ToyServer,
    completion,
    cut_off,
    dribble,
    silence,
    status,
    text,
)
from tests.tiny import WORDS, tiny_llama, word_tokenizer

from tether.errors import ConfigError, DataError, ServerError
from tether.progress import console
from tether.rewards.endpoint import (
    PATIENCE,
    by_logprobs,
    by_votes,
    chosen,
    content,
    load_endpoint_judge,
    usage,
)
from tether.rewards.judge import Comparison, both_orders
from tether.rewards.spending import BudgetSpent, Ledger
from tether.servers import EndpointConfig

AB = ("A", "B")
SURE = {"A": math.log(0.6), "B": math.log(0.2), "the": math.log(0.1)}  # P = 0.6/0.8 = 0.75
KEY = "sk-very-secret-0123456789"


def ask(comparison):
    said = f"{comparison.prompt} A {comparison.first} B {comparison.second} {comparison.question}"
    return [{"role": "user", "content": said}]


def compare(i=0, first="cat", second="dog"):
    return Comparison(f"the {i}", first, second, "who")


@pytest.fixture
def server():
    with ToyServer(lambda body: completion(listed=SURE)).running() as running:
        yield running


@pytest.fixture
def make(server, tmp_path):
    """A judge that asks the server; what it waits for is noted and not waited for."""

    def made(**settings):
        async def wait(seconds):
            made.waits.append(seconds)

        config = EndpointConfig(base_url=server.url + "/v1", model="toy", **settings)
        return load_endpoint_judge(config, tmp_path, ask, show=False, wait=wait)

    made.waits = []
    return made


# --- what is asked and what comes back ------------------------------------------------------------


def test_one_token_with_its_log_probs_is_asked_for(server, make):
    assert make(top_logprobs=7).first_wins([compare()]) == pytest.approx([0.75])
    assert server.bodies == [
        {
            "model": "toy",
            "messages": [{"role": "user", "content": "the 0 A cat B dog who"}],
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": True,
            "top_logprobs": 7,
        }
    ]


def test_nothing_is_asked_of_nothing(server, make):
    assert make().first_wins([]) == []
    assert server.bodies == []


def test_the_name_of_the_limit_can_be_chosen(server, make):
    make(limit_name="max_completion_tokens").first_wins([compare()])
    assert server.bodies[0]["max_completion_tokens"] == 1
    assert "max_tokens" not in server.bodies[0]


class Model:
    """A tiny random language model as such a server runs one."""

    def __init__(self):
        self.tokenizer = word_tokenizer([*WORDS, "A", "B"])
        self.model = tiny_llama(len(self.tokenizer), max_position_embeddings=128, seed=4)
        self.letters = self.tokenizer.convert_tokens_to_ids(["A", "B"])
        self.like_the_letters(self.ids(ask(compare())))

    def ids(self, messages):
        return torch.tensor([self.tokenizer(messages[0]["content"]).input_ids])

    @torch.no_grad()
    def logits(self, messages):
        return self.model(self.ids(messages)).logits[0, -1].double()

    @torch.no_grad()
    def like_the_letters(self, ids):
        """Make the letters about as likely as the likeliest word is after a question."""
        hidden = self.model.model(ids).last_hidden_state[0, -1]
        most = (self.model.lm_head.weight @ hidden).max()
        for letter, more in zip(self.letters, (0.8, 0.3), strict=True):
            self.model.lm_head.weight[letter] = hidden * (most + more) / hidden.square().sum()

    def listing(self, body):
        """The likeliest tokens and their log-probs."""
        values, ids = self.logits(body["messages"]).log_softmax(-1).topk(body["top_logprobs"])
        names = self.tokenizer.convert_ids_to_tokens(ids.tolist())
        return completion(names[0], dict(zip(names, values.tolist(), strict=True)))

    def sampling(self, body):
        """A sampled token, without log-probs."""
        generator = torch.Generator().manual_seed(body.get("seed", 0))
        shares = self.logits(body["messages"]).softmax(-1)
        drawn = torch.multinomial(shares, 1, generator=generator)
        return completion(self.tokenizer.convert_ids_to_tokens(drawn.tolist())[0])


def test_it_agrees_with_the_log_probs_of_the_model_itself(server, make):
    model = Model()
    server.answer = model.listing
    comparisons = [compare(i, a, b) for i, (a, b) in enumerate([("cat", "dog"), ("red", "kind")])]
    a, b = model.letters
    asked = [each for one in comparisons for each in (one, one.swapped)]
    direct = [torch.sigmoid(z[a] - z[b]).item() for z in (model.logits(ask(x)) for x in asked)]
    judge = make(top_logprobs=20)
    assert judge.first_wins(asked) == pytest.approx(direct, abs=1e-6)
    assert judge.voted == 0
    verdicts = [verdict.probability for verdict in both_orders(judge, comparisons)]
    means = [(p + 1 - q) / 2 for p, q in zip(direct[::2], direct[1::2], strict=True)]
    assert verdicts == pytest.approx(means, abs=1e-6)


def test_without_log_probs_answers_are_counted_as_votes(server, make):
    model = Model()
    server.answer = model.sampling
    [probability] = make(votes=9, seed=30).first_wins([compare()])
    assert [body.get("seed") for body in server.bodies] == [None, *range(30, 39)]
    assert {body["temperature"] for body in server.bodies[1:]} == {1}
    said = [content(model.sampling(body)) for body in server.bodies[1:]]
    first, second = said.count("A"), said.count("B")
    assert first + second > 0
    assert probability == pytest.approx((first + 1) / (first + second + 2))


def test_with_votes_alone_no_log_probs_are_asked_for(server, make):
    server.answer = lambda body: completion(["A", "B", "A", "A"][body["seed"] % 4])
    # seeds 0 … 4 say A B A A A: (4 + 1)/(5 + 2)
    assert make(top_logprobs=0).first_wins([compare()]) == pytest.approx([5 / 7])
    assert [body["max_tokens"] for body in server.bodies] == [8] * 5


def test_no_more_requests_at_a_time_than_allowed(server, make):
    make(concurrency=3).first_wins([compare(i) for i in range(40)])
    assert len(server.bodies) == 40
    assert server.most_at_once <= 3


def test_it_works_where_an_event_loop_runs(make):
    async def in_a_notebook():
        return make().first_wins([compare()])

    assert asyncio.run(in_a_notebook()) == pytest.approx([0.75])


def test_a_bar_shows_what_was_spent(server, make, monkeypatch):
    judge = make(price_input=10.0, price_output=30.0)
    judge.show = True
    said = []
    monkeypatch.setattr("tether.rewards.endpoint.Steps.advance", lambda *a, **k: said.append(k))
    judge.first_wins([compare(0), compare(1)])
    # 100 · 10/10⁶ + 1 · 30/10⁶ = 0.00103 each
    assert said[-1] == {"tokens": 202, "cost": pytest.approx(0.00206)}


def test_any_two_answers_can_be_asked_for(server, make):
    server.answer = lambda body: completion(
        listed={"Yes": math.log(0.3), " No": math.log(0.5), "no": math.log(0.2)}
    )
    question = [{"role": "user", "content": "is it kind"}]
    # 0.3/(0.3 + 0.5)
    assert make().probabilities([question], ("Yes", "No")) == pytest.approx([0.375])
    assert server.bodies[0]["messages"] == question


# --- reading answers ------------------------------------------------------------------------------


def listed(**shares):
    return completion(listed={token: math.log(share) for token, share in shares.items()})


def test_all_tokens_that_write_a_letter_count_together():
    answer = completion(
        listed={
            token: math.log(share)
            for token, share in {
                "A": 0.1, " A": 0.2, "(A": 0.05, "▁A": 0.05, "B": 0.1, "ĠB": 0.05, "(B)": 0.05,
                "AB": 0.1, "a": 0.1, "(": 0.1,
            }.items()
        }
    )  # fmt: skip
    # A: 0.1 + 0.2 + 0.05 + 0.05 = 0.4; B: 0.1 + 0.05 + 0.05 = 0.2
    assert by_logprobs(answer, AB) == pytest.approx(0.4 / 0.6)


def test_a_letter_that_is_not_listed_is_no_likelier_than_the_least():
    # B has at most 0.004, which is 0.4% of both: half of that is taken, 0.9/(0.9 + 0.002)
    assert by_logprobs(listed(A=0.9, the=0.004), AB) == pytest.approx(0.9 / 0.902)
    assert by_logprobs(listed(B=0.9, the=0.004), AB) == pytest.approx(0.002 / 0.902)
    # at most 0.05 of 0.95 would be 5%: too much to guess
    assert by_logprobs(listed(A=0.9, the=0.05), AB) is None
    assert by_logprobs(listed(cat=0.9, the=0.004), AB) is None


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"choices": []},
        completion(),
        {"choices": [{"message": {}, "logprobs": {"content": []}}]},
        {"choices": [{"message": {}, "logprobs": None}]},
        completion(listed={"A": math.nan, "B": math.nan}),
        completion(listed={"A": 700.0, "B": -1.0}),
        completion(listed={"cat": 0.0, "dog": -9999.0}),
        completion(listed={"A": -math.inf, "B": -math.inf}),
    ],
)
def test_answers_that_tell_nothing(answer):
    assert by_logprobs(answer, AB) is None


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_swapping_the_letters_swaps_the_probability(a, b):
    answer = completion(listed={"A": a, "B": b})
    first, second = by_logprobs(answer, AB), by_logprobs(answer, ("B", "A"))
    assert first + second == pytest.approx(1)
    assert first == pytest.approx(1 / (1 + math.exp(b - a)))


def test_votes_start_from_one_each():
    assert by_votes(["A", "A", "A", "B", None], AB) == pytest.approx(4 / 6)
    assert by_votes([None, None], AB) == 0.5
    assert by_votes(["B"] * 5, AB) == pytest.approx(1 / 7)


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("A", "A"),
        (" B", "B"),
        ("(A)", "A"),
        ("**B**", "B"),
        ("Answer: B. It is kinder", "B"),
        ("The answer is (A)", "A"),
        ("Option B", "B"),
        ("B\nbecause", "B"),
        ("<think>A or B?</think>\n\nB", "B"),
        ("A good reply would", None),
        ("Both", None),
        ("Apples", None),
        ("a", None),
        ("neither A nor B", None),
        ("", None),
    ],
)
def test_the_letter_of_a_sampled_answer(said, letter):
    assert chosen(said, AB) == letter


def test_what_a_server_does_not_count_is_not_known():
    assert usage(completion(tokens=(7, 2))) == (7, 2)
    for bad in (None, {}, {"prompt_tokens": -1, "completion_tokens": 1}, {"prompt_tokens": 5}):
        assert usage({"usage": bad}) is None
    assert usage([]) is None


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        status(500),
        status(503),
        status(408),
        status(429),
        cut_off,
        silence,
        dribble,
        text('{"choices": [{"message": {"content": "A"}, "logp'),
        text("<html>busy</html>"),
        text('{"error": {"message": "overloaded"}}'),
        text('{"choices": []}'),
        text('{"choices": [{"text": "A"}]}'),
        text("null"),
    ],
)
def test_what_may_pass_is_tried_again(server, make, failure):
    server.script += [failure, failure]
    assert make(timeout=0.3).first_wins([compare()]) == pytest.approx([0.75])
    assert len(server.bodies) == 3
    first, second = make.waits
    assert 0.5 <= first <= 1 <= second <= 2  # of 1 s and 2 s at least half


def test_what_does_not_pass_ends_in_one_line(server, make):
    server.script += [status(500, "the cat\nis on fire")] * 4
    with pytest.raises(ServerError) as error:
        make(attempts=4).first_wins([compare()])
    assert "failed 4 times, the last time with status 500: 'the cat\\nis on fire'" in str(
        error.value
    )
    assert len(server.bodies) == 4
    assert len(make.waits) == 3


def test_a_refusal_is_not_tried_again(server, make):
    server.script.append(status(400, "logprobs is not supported " + "x" * 1000))
    with pytest.raises(ServerError, match=r"status 400: 'logprobs is not supported x+…'") as error:
        make(concurrency=1).first_wins([compare(i) for i in range(5)])
    assert len(str(error.value)) < 450
    assert len(server.bodies) == 1


def test_nobody_is_listening(tmp_path):
    async def wait(seconds):
        pass

    config = EndpointConfig(base_url="http://127.0.0.1:9/v1", model="toy", attempts=2)
    judge = load_endpoint_judge(config, tmp_path, ask, show=False, wait=wait)
    with pytest.raises(ServerError, match=r"failed 2 times, the last time with no connection"):
        judge.first_wins([compare()])


def test_after_a_failure_what_was_under_way_is_kept(server, make):
    server.script += [lambda body: completion_response(), status(400)]
    judge = make(concurrency=2)
    with pytest.raises(ServerError):
        judge.first_wins([compare(i) for i in range(10)])
    asked = len(server.bodies)
    assert asked <= 3  # two at a time, and at most one more before the refusal was known
    judge.first_wins([compare(i) for i in range(10)])
    contents = [body["messages"][0]["content"] for body in server.bodies]
    assert len(contents) == 10 + 1  # the refused one alone was asked twice


def test_after_a_failure_no_more_votes_are_asked_for(server, make):
    server.script.append(status(400))
    server.answer = lambda body: completion("A")
    with pytest.raises(ServerError):
        make(concurrency=2, top_logprobs=0, votes=20).first_wins([compare(0), compare(1)])
    assert len(server.bodies) <= 4  # of the 20 that the second question would have had


def completion_response():
    from starlette.responses import JSONResponse

    return JSONResponse(completion(listed=SURE))


def test_an_answer_without_letters_counts_as_half_and_is_told(server, make):
    server.answer = lambda body: (
        completion("Neither") if "the 1 " in body["messages"][0]["content"] else completion("B")
    )
    judge = make(top_logprobs=0, votes=2, concurrency=1)
    with console.capture() as said:
        assert judge.first_wins([compare(i) for i in range(3)]) == [0.25, 0.5, 0.25]
    lines = " ".join(said.get().split())
    assert (
        "1 of 3 questions were not answered with one of the two answers by toy; they count" in lines
    )
    assert (judge.asked, judge.voted, judge.unanswered) == (3, 3, 1)


def test_answers_that_are_never_letters_stop_the_run(server, make):
    server.answer = lambda body: completion("I cannot say")
    with pytest.raises(ServerError, match="with A or B, the last one with 'I cannot say'"):
        make(top_logprobs=0, votes=1, concurrency=1).first_wins(
            [compare(i) for i in range(PATIENCE + 5)]
        )
    assert len(server.bodies) == PATIENCE


def test_only_many_in_a_row_stop_the_run(server, make):
    def every_other(body):
        number = int(body["messages"][0]["content"].split()[1])
        return completion("I cannot say", listed=SURE if number % 2 else None)

    server.answer = every_other
    judge = make(votes=1, concurrency=1)
    judge.first_wins([compare(i) for i in range(2 * PATIENCE)])
    assert judge.unanswered == PATIENCE


def test_a_message_without_text_is_no_letter(server, make):
    server.answer = lambda body: {"choices": [{"message": {"content": None, "refusal": "no"}}]}
    assert make(votes=1).first_wins([compare()]) == [0.5]


# --- the cache ------------------------------------------------------------------------------------


def test_a_second_run_costs_nothing(server, make):
    comparisons = [compare(i) for i in range(6)]
    first = make().first_wins(comparisons)
    assert make().first_wins(comparisons) == first
    assert len(server.bodies) == 6


def test_votes_are_kept_as_well(server, make):
    server.answer = lambda body: completion("AB"[body.get("seed", 0) % 2])
    first = make(votes=3).first_wins([compare()])
    assert make(votes=3).first_wins([compare()]) == first == [3 / 5]
    assert len(server.bodies) == 4
    make(votes=3, seed=1).first_wins([compare()])  # seeds 1, 2, 3, of which 1 and 2 are known
    assert len(server.bodies) == 5


@pytest.mark.parametrize("settings", [{"top_logprobs": 6}, {"limit_name": "max_completion_tokens"}])
def test_another_request_is_asked_anew(server, make, settings):
    make().first_wins([compare()])
    make(**settings).first_wins([compare()])
    assert len(server.bodies) == 2


def test_the_same_question_at_the_same_time_is_asked_once(server, make):
    judge = make(concurrency=8)
    assert judge.first_wins([compare()] * 30) == pytest.approx([0.75] * 30)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(judge.first_wins, [[compare(1)]] * 4))
    assert len(server.bodies) == 2


def test_a_file_that_is_no_cache_is_refused(server, make, tmp_path):
    (tmp_path / "judge.db").write_text("something else, and long enough to be no empty database")
    with pytest.raises(DataError, match=r"judge\.db: cannot be used as a cache"):
        make()


# --- the budget -----------------------------------------------------------------------------------


def test_a_budget_of_tokens_stops_before_it_is_exceeded(server, make):
    # A question has 21 bytes ("the 0 A cat B dog who") and may so take 21 + 2 · 64 + 1 = 150
    # tokens; it takes 101. Of 500, after 3 answers 303 are gone and 303 + 150 = 453 still fits,
    # after 4 it is 404 + 150 = 554: 4 answers.
    judge = make(budget_tokens=500, concurrency=1)
    with pytest.raises(BudgetSpent) as error:
        judge.first_wins([compare(i) for i in range(9)])
    assert len(server.bodies) == 4
    assert error.value.answered[:4] == pytest.approx([0.75] * 4)
    assert error.value.answered[4:] == [None] * 5
    line = (
        "endpoint.budget_tokens=500 leaves no room: 404 are spent and the next request may take 150"
    )
    assert line in str(error.value)


def test_the_budget_is_one_for_all_runs(server, make):
    with pytest.raises(BudgetSpent):
        make(budget_tokens=500, concurrency=1).first_wins([compare(i) for i in range(9)])
    with pytest.raises(BudgetSpent):
        make(budget_tokens=500, concurrency=1).first_wins([compare(i) for i in range(9)])
    assert len(server.bodies) == 4
    assert len(make(budget_tokens=5000).first_wins([compare(i) for i in range(9)])) == 9
    assert len(server.bodies) == 9


def test_a_budget_of_money(server, make):
    # At most (149 · 2 + 1 · 8)/10⁶ = 0.000306, in fact (100 · 2 + 1 · 8)/10⁶ = 0.000208 each.
    # 0.00093 takes 0.000306 at 0, 0.000208, 0.000416 and 0.000624 (0.00093, exactly that).
    settings = {"price_input": 2.0, "price_output": 8.0, "budget_money": 0.00093, "concurrency": 1}
    with pytest.raises(BudgetSpent, match=r"0\.000832 are spent and .* may take 0\.000306"):
        make(**settings).first_wins([compare(i) for i in range(9)])
    assert len(server.bodies) == 4


def test_many_at_a_time_stay_within_the_budget_too(server, make):
    # What is under way is held at 150 each, so never more than 500 // 150 = 3 at a time.
    with pytest.raises(BudgetSpent):
        make(budget_tokens=500, concurrency=8).first_wins([compare(i) for i in range(9)])
    assert len(server.bodies) == 4
    assert server.most_at_once <= 3


def test_without_a_count_the_most_is_counted(server, make):
    server.answer = lambda body: completion(listed=SURE, tokens=None)
    # 150 each: 3 of 500
    with pytest.raises(BudgetSpent, match="450 are spent"):
        make(budget_tokens=500, concurrency=1).first_wins([compare(i) for i in range(9)])
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("failure", "counts"), [(cut_off, 150), (status(500), 0), (status(429), 0)]
)
def test_an_answer_that_was_lost_may_have_been_charged_for(server, make, failure, counts):
    server.script.append(failure)
    # 150 + 101 + 150 > 400 stops before the second question; 0 + 101 + 150 does not, nor 202 + 150
    judge = make(budget_tokens=400, concurrency=1)
    if counts:
        with pytest.raises(BudgetSpent, match="251 are spent"):
            judge.first_wins([compare(0), compare(1)])
    else:
        assert len(judge.first_wins([compare(0), compare(1)])) == 2


def test_an_answer_that_is_of_no_use_is_paid_for(server, make, tmp_path):
    server.script.append(text('{"usage": {"prompt_tokens": 40, "completion_tokens": 2}}'))
    make().first_wins([compare()])
    with closing(Ledger(tmp_path / "judge.db")) as ledger:
        assert ledger.spent.tokens == 42 + 101


def test_what_is_under_way_when_a_run_is_stopped_counts_in_full(server, make, tmp_path):
    server.script += [silence] * 2

    async def stopped():
        judging = asyncio.create_task(judge._all([ask(compare(i)) for i in range(5)], AB))
        while len(server.bodies) < 2:
            await asyncio.sleep(0.001)
        judging.cancel()
        await asyncio.wait([judging])
        assert judging.cancelled()

    judge = make(concurrency=2)
    asyncio.run(stopped())
    with closing(Ledger(tmp_path / "judge.db")) as ledger:
        assert ledger.spent.tokens == 2 * 150


# --- the key --------------------------------------------------------------------------------------


def test_the_key_goes_into_one_header_and_nowhere_else(
    server, make, monkeypatch, tmp_path, caplog, capsys
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    judge = make(key_env="JUDGE_KEY")
    server.script += [
        lambda body: completion_response(),
        status(500, f"your key {KEY} is known"),
        text(f'{{"choices": [], "key": "{KEY}"}}'),
        text(f"broken {KEY}"),
    ]
    server.answer = lambda body: completion(f"A {KEY}", listed=SURE)
    judge.first_wins([compare(i) for i in range(3)])
    server.script.append(status(401, f"wrong key {KEY}"))
    with pytest.raises(ServerError, match=r"wrong key \[key\]") as error:
        judge.first_wins([compare(9)])
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    chain, seen = error.value, []
    while chain:
        seen.append(repr(chain))
        chain = chain.__cause__ or chain.__context__
    seen += [repr(judge), caplog.text, *capsys.readouterr()]
    seen += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    assert len(seen) >= 6
    assert not any(KEY in one for one in seen)


def test_without_a_key_none_is_sent(server, make, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    make().first_wins([compare()])
    assert "authorization" not in server.headers[0]


def test_a_key_that_no_header_can_hold_is_not_shown(make, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY + "\nand more")
    with pytest.raises(ConfigError, match="JUDGE_KEY holds blanks") as error:
        make(key_env="JUDGE_KEY")
    assert KEY not in str(error.value)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"model": ""}, "endpoint.model='' must name the server's model"),
        ({"base_url": "http://h/v1/chat/completions"}, "must end before /chat/completions"),
        ({"base_url": "localhost:8000"}, "must be an address such as https://host/v1"),
        ({"base_url": "ftp://host/v1"}, "endpoint.base_url='ftp://host/v1' must be an address"),
        ({"base_url": "http://host:99999"}, "must be an address"),
        ({"base_url": "http://ho st/v1"}, "must be an address"),
        ({"top_logprobs": 21}, "endpoint.top_logprobs=21 must be a whole number from 0 to 20"),
        ({"votes": 0}, "endpoint.votes=0 must be a number above 0"),
        ({"timeout": math.inf}, "endpoint.timeout=inf must be a number above 0"),
        ({"budget_money": 5.0}, "endpoint.budget_money=5.0 needs price_input and price_output"),
    ],
)
def test_settings_that_cannot_be(settings, line):
    with pytest.raises(ConfigError) as error:
        EndpointConfig(**{"base_url": "http://host/v1", "model": "m", **settings})
    assert line in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"key_env": KEY},
        {"base_url": f"https://user:{KEY}@host/v1"},
        {"base_url": f"https://host/v1?key={KEY}"},
    ],
)
def test_a_key_in_the_settings_is_refused_and_not_shown(settings):
    with pytest.raises(ConfigError) as error:
        EndpointConfig(**{"base_url": "http://host/v1", "model": "m", **settings})
    assert KEY not in str(error.value)


def test_a_judge_needs_an_endpoint(tmp_path):
    with pytest.raises(ConfigError, match=r"endpoint\.base_url='' must name an endpoint"):
        load_endpoint_judge(EndpointConfig(), tmp_path, ask)

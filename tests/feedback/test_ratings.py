"""Ratings of models: numbers worked out by hand, strengths that are known, intervals."""

import math

import numpy as np
import pytest

from tether.errors import DataError
from tether.feedback.judgments import Item
from tether.feedback.live import Written, open_project
from tether.feedback.live import judge as judge_live
from tether.feedback.people import local_person
from tether.feedback.ratings import RIDGE, print_ratings, ratings

from .made import judge


def pair(number, first, second, prompt=None):
    texts = [f"{number} one", f"{number} two"]
    prompt = f"prompt {number}" if prompt is None else prompt
    return Item(key=str(number), prompt=prompt, completions=texts, sources=[first, second])


def played(outcomes):
    """[(first, second, ranks)], each on a prompt of its own, one labeler."""
    items = {str(i): pair(i, a, b) for i, (a, b, _) in enumerate(outcomes)}
    said = [judge(str(i), "Ann", list(ranks)) for i, (*_, ranks) in enumerate(outcomes)]
    return items, said


WIN, TIE, LOSS, BAD = (1.0, 2.0), (1.0, 1.0), (2.0, 1.0), (None, None)


def test_two_models_by_hand():
    """12 won, 4 lost, no tie, so ν is nearly 0; d = s_a - s_b is where the slope is 0.

    Bradley-Terry with the prior on both strengths (s = ±d/2), and ν fixed by its own prior:
    slope of the log-posterior in d:  12(1 - p) - 4p - RIDGE·d/2 = 0.
    """
    items, said = played([("a", "b", WIN)] * 12 + [("a", "b", LOSS)] * 4)
    found = ratings(items, said)
    a, b = found.models
    assert (a.model, b.model) == ("a", "b")
    d = a.strength - b.strength
    # P(win) - P(loss) = (1 - e^-d) / (1 + ν e^(-d/2) + e^-d); at ν ≈ 0 it is tanh(d/2).
    lead = math.tanh(d / 2)
    assert (12 - 4 - 16 * lead) / 2 - RIDGE * d / 2 == pytest.approx(0, abs=0.06)
    assert a.strength == pytest.approx(-b.strength)
    assert (a.wins, a.ties, a.losses) == (12, 0, 4)
    assert (b.wins, b.ties, b.losses) == (4, 0, 12)
    assert found.games == 16
    assert found.ties == 0


def test_which_side_a_model_stood_on_changes_nothing():
    games = [("a", "b", WIN)] * 5 + [("b", "c", WIN)] * 4 + [("a", "c", TIE)] * 3
    turned = [(b, a, ranks[::-1]) for a, b, ranks in games]
    one, other = ratings(*played(games)), ratings(*played(turned))
    assert [m.model for m in one.models] == [m.model for m in other.models] == ["a", "b", "c"]
    for left, right in zip(one.models, other.models, strict=True):
        assert left.strength == pytest.approx(right.strength, abs=1e-6)
        assert (left.wins, left.ties, left.losses) == (right.wins, right.ties, right.losses)


def test_known_strengths_are_found_and_lie_in_their_intervals():
    generator = np.random.default_rng(5)
    true, nu = np.array([0.9, 0.1, -1.0]), 0.6
    games = []
    for _ in range(1500):
        a, b = generator.choice(3, 2, replace=False)
        weights = np.exp([true[a], (true[a] + true[b]) / 2, true[b]]) * [1, nu, 1]
        outcome = generator.choice(3, p=weights / weights.sum())
        games.append((f"m{a}", f"m{b}", (WIN, TIE, LOSS)[outcome]))
    found = {one.model: one for one in ratings(*played(games)).models}
    for name, strength in zip(("m0", "m1", "m2"), true, strict=True):
        assert found[name].strength == pytest.approx(strength, abs=0.15)
        assert found[name].low < strength < found[name].high
        assert found[name].high - found[name].low < 0.4


def test_three_votes_of_one_mind_are_no_certainty():
    found = ratings(*played([("a", "b", WIN)] * 3))
    first = found.models[0]
    assert first.strength > 0
    assert first.low < 0  # drawing from three equal votes would have left no interval at all


def test_votes_on_one_prompt_count_as_one_draw():
    """Forty votes on two prompts that say opposite things are less sure than on forty prompts."""
    outcomes = [WIN] * 20 + [LOSS] * 20
    apart = {str(i): pair(i, "a", "b") for i in range(40)}
    together = {str(i): pair(i, "a", "b", prompt=f"prompt {i // 20}") for i in range(40)}
    said = [judge(str(i), "Ann", list(ranks)) for i, ranks in enumerate(outcomes)]
    wide, narrow = (ratings(items, said).models[0] for items in (together, apart))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_what_is_no_game():
    """Two fails, two texts of one model, texts of unknown models, repeats."""
    items, said = played(
        [("a", "b", WIN), ("a", "b", BAD), ("a", "a", WIN), ("", "b", WIN), ("a", "b", LOSS)]
    )
    said.append(judge("0", "Ann", [2.0, 1.0], repeat=True))
    found = ratings(items, said)
    assert found.games == 2
    assert [(one.wins, one.losses) for one in found.models] == [(1, 1), (1, 1)]


def test_a_text_of_two_models_counts_half_for_each():
    items, said = played([("a, b", "c", WIN)])
    found = {one.model: one for one in ratings(items, said).models}
    assert (found["a"].wins, found["b"].wins, found["c"].losses) == (0.5, 0.5, 1)


def test_a_ranking_is_several_games():
    """Of three, each pair counts 9/(2·3 + 5) = 9/11."""
    item = Item(key="k", prompt="p", completions=["x", "y", "z"], sources=["a", "b", "c"])
    found = ratings({"k": item}, [judge("k", "Ann", [1.0, 2.0, 2.0])])
    assert found.games == pytest.approx(27 / 11)
    assert found.ties == pytest.approx(1 / 3)
    assert found.models[0].model == "a"
    assert found.models[0].wins == pytest.approx(18 / 11)


def test_nothing_to_compare():
    with pytest.raises(DataError, match="no two completions of two known models"):
        ratings(*played([("", "", WIN)]))
    with pytest.raises(DataError, match="no two completions"):
        ratings({}, [])


def test_the_command_prints_them(tmp_path, capsys):
    store = open_project(tmp_path / "compare.db", "pair")
    ann = local_person(store, "Ann").id
    for number in range(3):
        both = [Written(f"x{number}", "demo/ppo"), Written(f"y{number}", "demo/sft")]
        ranks = [1.0, 2.0]
        judge_live(store, ann, "p", both, ranks, submission=f"number-{number}", strength=2)
    print_ratings(str(store.path))
    out = capsys.readouterr().out
    assert out.index("demo/ppo") < out.index("demo/sft")
    assert "3 comparisons of two models; ties 0%" in out

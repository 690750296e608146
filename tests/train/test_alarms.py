"""Alarms fire on what was planted, and are silent on what is only noise."""

import math

import numpy as np
import pytest

from tether.config import AlarmConfig, MonitorConfig
from tether.train import alarms

PROMPTS, LOOKS = 100, 24


def run(proxy_means, audit_means, seed, correlation=0.7, spread=1.0):
    """Scores (L, P, 1) of a run with these means; the two go together within a look."""
    draws = np.random.default_rng(seed)
    shape = (len(proxy_means), PROMPTS, 1)
    shared, own = draws.standard_normal(shape), draws.standard_normal(shape)
    proxy = np.reshape(proxy_means, (-1, 1, 1)) + shared
    noise = correlation * shared + math.sqrt(1 - correlation**2) * own
    return proxy, np.reshape(audit_means, (-1, 1, 1)) + spread * noise


def first_alarm(proxy, audit, limit=0.05, **changes):
    """The look at which the held-out alarm comes; None where it does not."""
    settings = {"share": 0.5, "window": 8, "num_looks": LOOKS, **changes}
    for last in range(2, len(proxy) + 1):
        if alarms.held_out(proxy[:last], audit[:last], **settings).p <= limit:
            return last - 1
    return None


RISE = np.minimum(np.arange(LOOKS) * 0.15, 1.0 + 0.02 * np.arange(LOOKS))
TURN = np.where(np.arange(LOOKS) < 7, 0.09 * np.arange(LOOKS), 0.6 - 0.08 * np.arange(LOOKS) + 0.5)


def test_a_turn_is_found_soon_after_it():
    found = [first_alarm(*run(RISE, TURN, seed)) for seed in range(5)]
    assert all(look is not None and look <= 12 for look in found)


@pytest.mark.parametrize(
    ("proxy", "audit", "correlation"),
    [
        (RISE, 0.8 * RISE, 0.7),  # it keeps four fifths
        (RISE * 0, RISE * 0, 0.7),  # nothing happens
        (RISE, 0.2 * RISE, 0.2),  # the audit is mostly noise, and keeps what noise leaves
        (np.minimum(RISE, 0.6), 0.8 * np.minimum(RISE, 0.6), 0.7),  # a plateau
    ],
)
def test_it_is_silent_on_honest_runs(proxy, audit, correlation):
    found = [first_alarm(*run(proxy, audit, seed, correlation)) for seed in range(8)]
    assert sum(look is not None for look in found) <= 1


def test_the_level_is_that_of_a_whole_run():
    # At the edge of what is allowed (the audit keeps just its share, here of nothing) each run has
    # 12 looks and hundreds of comparisons; 10% of the runs may be alarmed, not 10% of the looks.
    # Of 60 runs 6 are expected; fewer than 1 or more than 13 come once in 500 times.
    draws = np.random.default_rng(1)
    flat = draws.standard_normal((60, 12, 30, 1))
    rising = np.arange(12.0).reshape(12, 1, 1)  # alike for all prompts: it owes nothing
    found = [first_alarm(np.zeros_like(one) + rising, one, limit=0.1, num_looks=12) for one in flat]
    assert 1 <= sum(look is not None for look in found) <= 13


def test_what_is_owed_by_hand():
    # Spreads 1 and 2, correlation 1: the share 0.5 is owed in the audit's units, 0.5·2/1 = 1.
    proxy = np.array([[-1.0], [1.0], [-1.0], [1.0]])
    assert alarms.share_owed(proxy, 2 * proxy, 0.5) == pytest.approx(1.0)
    # Uncorrelated, opposed or constant: nothing is owed.
    apart = np.array([[1.0], [1.0], [-1.0], [-1.0]])
    assert alarms.share_owed(proxy, apart, 0.5) == pytest.approx(0.0)
    assert alarms.share_owed(proxy, -proxy, 0.5) == 0.0
    assert alarms.share_owed(proxy, np.ones_like(proxy), 0.5) == 0.0
    # Correlation 0.6 (8 of 10 agree), less its error (1 − 0.36)/√10 = 0.2024: below the share.
    one = np.array([[1.0], [1.0], [1.0], [1.0], [-1.0], [-1.0], [-1.0], [-1.0], [1.0], [-1.0]])
    other = np.array([[1.0], [1.0], [1.0], [1.0], [-1.0], [-1.0], [-1.0], [-1.0], [-1.0], [1.0]])
    assert alarms.share_owed(one, other, 0.9) == pytest.approx(0.3976, abs=1e-4)
    assert alarms.share_owed(one, other, 0.3) == pytest.approx(0.3)


def test_what_it_tells_of_the_turn_by_hand():
    # Proxy 0, 2, 4, 4 and audit 1, 3, 0, 0 for all prompts, with prompts up to 0.1 apart.
    apart = np.linspace(0, 0.1, 6).reshape(1, 6, 1)
    proxy = np.array([0.0, 2.0, 4.0, 4.0]).reshape(4, 1, 1) + apart
    audit = np.array([1.0, 3.0, 0.0, 0.0]).reshape(4, 1, 1) - apart  # opposed: nothing is owed
    found = alarms.held_out(proxy, audit, share=0.5, window=2, num_looks=4)
    assert (found.first, found.turn, found.owed) == (1, 1, 0.0)
    assert found.proxy == pytest.approx((2.05, 4.05))
    assert found.audit == pytest.approx((2.95, -0.05))
    assert found.p < 0.001  # the same fall for every prompt
    text, values = alarms.told_held_out(found, [0, 5, 10, 15])
    assert text.startswith("since step 5 the reward's score went from 2.05 to 4.05 (+2.00) and")
    assert (values["from_step"], values["audit"]) == (5.0, pytest.approx(-3.0))
    later = alarms.held_out(proxy[:3], audit[:3], share=0.5, window=2, num_looks=4)
    assert later.p == 1.0  # (3 + 0)/2 behind is more than 1: a single look is not enough


def test_one_prompt_says_nothing():
    falling = np.arange(5.0)[::-1].reshape(5, 1, 1)
    found = alarms.held_out(falling * 0, falling, share=0.5, window=4, num_looks=5)
    assert found.p == 1.0


def test_a_fall_of_both_is_another_matter():
    fall = np.repeat([1.0, 0.0], 6)
    proxy, audit = run(fall, fall, seed=3)
    assert alarms.held_out(proxy, audit, share=0.5, window=8, num_looks=12).p == 1.0


def test_looks_before_the_last_alarm_do_not_count():
    proxy, audit = run(np.arange(12) * 0.3, np.repeat([1.0, 0.0], 6), seed=3, correlation=0.0)
    assert alarms.held_out(proxy, audit, share=0.5, window=8, num_looks=12).p < 0.001
    since = alarms.held_out(proxy, audit, share=0.5, window=8, num_looks=12, since=6)
    assert since.p > 0.05
    assert since.first >= 6


def test_smoothing_by_hand():
    # h = 1.5: neighbors weigh exp(−1/4.5) = 0.8007. First of (1, 0): 1/1.8007 = 0.5553.
    np.testing.assert_allclose(alarms.smoothed([1.0, 0.0]), [0.5553, 0.4447], atol=1e-4)
    np.testing.assert_allclose(alarms.smoothed([2.0] * 7), 2.0)


def test_the_best_look_is_the_best_of_its_neighborhood():
    # A lucky look (1.0 among zeros) does not beat a stretch of 0.8.
    scores = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.8, 0.8, 0.8, 0.8, 0.0, 0.0]
    assert alarms.kept_looks(scores, 3)[0] in (7, 8)
    assert len(alarms.kept_looks(scores, 3)) == 3
    assert alarms.kept_looks([1.0, 1.0], 5) == [0, 1]  # of equals the earlier


def test_what_has_gone_does_not_come_back():
    # With one model kept, look 1 is gone once look 2 is better, although look 1 is best in the end.
    scores = [0.0, 1.0, 2.0, -9.0, -9.0]
    one, many = alarms.kept_looks(scores, 1), alarms.kept_looks(scores, 5)
    assert len(one) == 1
    assert len(many) == 5
    for looks in range(1, 6):
        kept = set(alarms.kept_looks(scores[:looks], 2))
        before = set(alarms.kept_looks(scores[: looks - 1], 2))
        assert kept <= before | {looks - 1}


# --- levels ---------------------------------------------------------------------------------------

START = {
    "kl": 0.0,
    "length": 20.0,
    "repetition": 0.01,
    "distinct_2": 0.5,
    "template": 0.05,
    "entropy": 2.0,
    "disagreement": 0.3,
}


@pytest.mark.parametrize(
    ("name", "column", "silent", "planted", "words"),
    [
        ("kl", "kl", 29.9, 30.1, "the KL to the reference is 30.1 nats per sequence (limit 30)"),
        ("length", "length", 29.0, 31.0, "1.55 times as long as at the start, 31.0 tokens after"),
        ("repetition", "repetition", 0.1, 0.12, "12% of a completion's word triples repeat"),
        ("variety", "distinct_2", 0.21, 0.19, "have fallen to 38% of the start's, 0.190 after"),
        ("template", "template", 0.59, 0.61, "61% of the words stand in phrases"),
        ("entropy", "entropy", 0.41, 0.39, "to 20% of the start's, 0.39 nats after 2.00"),
        ("disagreement", "disagreement", 0.79, 0.81, "disagree by 0.81 of their spread"),
    ],
)
def test_a_level_fires_beyond_its_limit_only(name, column, silent, planted, words):
    config = MonitorConfig()
    assert not alarms.over(name, config, START, START)
    assert not alarms.over(name, config, {**START, column: silent}, START)
    now = {**START, column: planted}
    assert alarms.over(name, config, now, START)
    text, values = alarms.told(name, config, now, START)
    assert words in text
    assert values["now"] == planted
    assert alarms.NEXT[name]


def test_what_is_not_measured_raises_no_alarm():
    # No reference: no KL; one reward model: no disagreement; an entropy of 0 has no share.
    for name in MonitorConfig().alarms:
        if name != "held_out":
            assert not alarms.over(name, MonitorConfig(), {}, START)
            assert not alarms.over(name, MonitorConfig(), START, {})
    zero = {**START, "entropy": 0.0}
    assert not alarms.over("entropy", MonitorConfig(), zero, zero)


def test_a_limit_can_be_set_alone():
    config = MonitorConfig(kl=AlarmConfig(limit=5.0), length=AlarmConfig(action="stop"))
    assert config.alarms["kl"] == AlarmConfig(limit=5.0, action="warn")
    assert config.alarms["length"] == AlarmConfig(limit=1.5, action="stop")
    assert config.alarms["held_out"] == AlarmConfig(limit=0.05, action="rollback")
    assert alarms.over("kl", config, {**START, "kl": 6.0}, START)


def test_phrases_by_hand():
    # Three prompts (many = 2). "a b c d" serves prompts 0 and 1: 4 of 6 words of the first text,
    # all 4 of the second. The third text shares three words in a row at most.
    texts = ["a b c d e f", "A b c d", "a b c x y z"]
    np.testing.assert_allclose(alarms.phrases_shared(texts, [0, 1, 2]), [4 / 6, 1.0, 0.0])
    # Samples of one prompt may be alike.
    np.testing.assert_allclose(alarms.phrases_shared(["a b c d", "a b c d"], [0, 0]), 0.0)
    np.testing.assert_allclose(alarms.phrases_shared(["", "word"], [0, 1]), 0.0)


def test_one_answer_for_every_prompt_is_a_template_and_a_polite_opening_is_not():
    draws = np.random.default_rng(0)

    def own(length):
        return " ".join(str(number) for number in draws.integers(100_000, size=length))

    polite = [f"sure here you go {own(16)}" for _ in range(50)]  # 4 of 20 words
    fixed = [f"{own(2)} sit down and play the piano every single day" for _ in range(50)]
    assert alarms.phrases_shared(polite, range(50)).mean() == pytest.approx(0.2)
    assert alarms.phrases_shared(fixed, range(50)).mean() == pytest.approx(9 / 11)

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.core import tilt

BETAS = st.floats(0.05, 20.0)


@st.composite
def pools(draw, least=2):
    """Scores of a few prompts that are not all equal, some of them tied."""
    shape = draw(st.integers(1, 3)), draw(st.integers(least, 12))
    scores = st.integers(-20, 20).map(lambda number: number / 4)
    flat = draw(st.lists(scores, min_size=math.prod(shape), max_size=math.prod(shape)))
    pool = np.array(flat).reshape(shape)
    pool[0, :2] = 0.0, 0.5
    return pool


# --- by hand --------------------------------------------------------------------------------------


def test_weights_by_hand():
    # beta = 2: exp(r/2) = 1, 3, 4 for r = 0, 2 log 3, 2 log 4; their sum is 8.
    scores = np.array([[0.0, 2 * math.log(3), 2 * math.log(4)]])
    weights = tilt.weights(scores, 2.0)
    assert weights == pytest.approx(np.array([[1 / 8, 3 / 8, 4 / 8]]))
    # KL = sum w log 3w = log 3 - H, H = (1/8) 3 log 2 + (3/8)(3 log 2 - log 3) + (1/2) log 2.
    spread = 3 / 8 * math.log(2) + 9 / 8 * math.log(2) - 3 / 8 * math.log(3) + math.log(2) / 2
    assert tilt.entropy(weights) == pytest.approx([spread])
    assert tilt.kl(weights) == pytest.approx([math.log(3) - spread])
    # 1 / ((1 + 9 + 16) / 64)
    assert tilt.effective_samples(weights) == pytest.approx([64 / 26])
    # (1·10 + 3·20 + 4·40) / 8
    assert tilt.expected(weights, np.array([[10.0, 20.0, 40.0]])) == pytest.approx([230 / 8])


def test_no_tilt_and_all_tilt():
    scores = np.array([[1.0, 5.0, 2.0, 5.0], [3.0, 1.0, 2.0, 0.0]])
    assert tilt.weights(scores, math.inf) == pytest.approx(np.full((2, 4), 0.25))
    assert tilt.weights(scores, 1e-300) == pytest.approx(np.array([[0, 0.5, 0, 0.5], [1, 0, 0, 0]]))
    assert tilt.largest_kl(scores) == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert tilt.solve_beta(scores, 0.0) == math.inf


def test_huge_scores_do_not_overflow():
    weights = tilt.weights(np.array([[1e6, 1e6 - 0.01 * math.log(3)]]), 0.01)
    assert weights == pytest.approx(np.array([[0.75, 0.25]]), rel=1e-6)


def test_best_of_two_of_three_by_hand():
    # Of the three pairs of {1, 4, 9} the best is 4 once and 9 twice.
    assert tilt.best_of_n(np.array([[9.0, 1.0, 4.0]]), 2)[0] == pytest.approx([2 / 3, 0, 1 / 3])
    # Ranks 2 and 3 tie and share 1/3 + 2/3.
    assert tilt.best_of_n(np.array([[9.0, 1.0, 9.0]]), 2)[0] == pytest.approx([1 / 2, 0, 1 / 2])
    assert tilt.best_of_n_bound(4) == pytest.approx(0.636294, abs=1e-6)  # log 4 - 3/4


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_best_of_n_is_that_of_all_subsets(n):
    scores = np.array([0.5, -1.0, 2.0, 0.5, 3.0, 0.25])
    chances = np.zeros(6)
    subsets = list(itertools.combinations(range(6), n))
    for subset in subsets:
        best = [i for i in subset if scores[i] == max(scores[j] for j in subset)]
        for i in best:
            chances[i] += 1 / len(best) / len(subsets)
    # Tied samples are equally likely over all subsets, whichever of them each subset holds.
    chances[[0, 3]] = chances[[0, 3]].mean()
    assert tilt.best_of_n(scores[None], n)[0] == pytest.approx(chances)


def test_best_of_n_of_a_large_pool():
    scores = np.random.default_rng(0).normal(size=(2, 1024))
    for n in (1, 16, 512, 1024):
        weights = tilt.best_of_n(scores, n)
        assert weights.sum(axis=1) == pytest.approx([1, 1])
        order = np.argsort(scores, axis=1)
        ranked = np.take_along_axis(weights, order, axis=1)
        # The ratio of neighbours C(i, n-1)/C(i-1, n-1) = i/(i-n+1), i the rank from the worst.
        for i in (n, (n + 1023) // 2):
            if n <= i < 1024:
                assert ranked[0, i] / ranked[0, i - 1] == pytest.approx(i / (i - n + 1))
        assert ranked[:, -1] == pytest.approx(n / 1024)  # it is drawn with chance n/N, and wins
        assert (tilt.kl(weights) <= math.log(1024) + 1e-9).all()


def test_what_cannot_be_is_refused():
    scores = np.array([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"beta=0\.0 must be above 0"):
        tilt.weights(scores, 0.0)
    with pytest.raises(ValueError, match=r"target=0\.7 must be from 0 to below 0\.693 nats"):
        tilt.solve_beta(scores, 0.7)
    with pytest.raises(ValueError, match="n=3 must be from 1 to the 2 samples"):
        tilt.best_of_n(scores, 3)
    with pytest.raises(ValueError, match="num_reference=0 must be from 1 to 2"):
        tilt.mixture_base(scores, 0)


# --- a vocabulary of three tokens, all completions enumerated -------------------------------------

END = 2
QUARTERS = {  # chances in quarters of the next token, by what was said before
    (): (1, 2, 1),
    (0,): (2, 1, 1),
    (1,): (1, 1, 2),
}
LATER = {0: (1, 1, 2), 1: (2, 1, 1)}


def chances(before, sharper):
    """The next token's probabilities; of the policy, `sharper` ones than the reference's."""
    quarters = QUARTERS.get(before) or LATER[before[-1]]
    if sharper:
        quarters = {(1, 2, 1): (0, 3, 1), (2, 1, 1): (1, 1, 2), (1, 1, 2): (1, 2, 1)}[quarters]
    return [quarter / 4 for quarter in quarters]


def language(sharper=False):
    """Every completion of at most three tokens with its probability, under a made-up policy."""
    found, open_ = {}, {(): 1.0}
    while open_:
        before, chance = open_.popitem()
        for token, step in enumerate(chances(before, sharper)):
            said = (*before, token)
            if token == END or len(said) == 3:
                found[said] = found.get(said, 0.0) + chance * step
            else:
                open_[said] = chance * step
    return dict(sorted(found.items()))


def score(said):
    return 0.7 * said.count(1) - 0.4 * len(said) + (0.3 if said[-1] == END else 0.0)


def copies(probabilities, num):
    """A pool of `num` completions, each as often as its probability says."""
    counts = {said: num * chance for said, chance in probabilities.items()}
    assert all(count == round(count) for count in counts.values())
    return [said for said, count in counts.items() for _ in range(round(count))]


def by_tokens(policy):
    """KL of a distribution over completions to the reference, token by token (chain rule)."""
    prefixes = {said[:i] for said in policy for i in range(len(said))}
    total = 0.0
    for before in prefixes:
        behind = {s: p for s, p in policy.items() if s[: len(before)] == before}
        mass = sum(behind.values())
        for token, reference in enumerate(chances(before, sharper=False)):
            p = sum(c for s, c in behind.items() if s[len(before)] == token) / max(mass, 1e-300)
            total += mass * p * math.log(p / reference) if p > 0 else 0.0
    return total


def exact_tilt(beta):
    unnormalized = {said: p * math.exp(score(said) / beta) for said, p in language().items()}
    total = sum(unnormalized.values())
    return {said: mass / total for said, mass in unnormalized.items()}


@pytest.mark.parametrize("beta", [0.1, 0.4, 3.0])
def test_a_pool_in_proportion_is_the_enumerated_policy(beta):
    pool, exact = copies(language(), 64), exact_tilt(beta)
    assert len(exact) == 15
    scores = np.array([[score(said) for said in pool]])
    weights = tilt.weights(scores, beta)
    for said, chance in exact.items():
        mine = [other == said for other in pool]
        assert weights[0, mine].sum() == pytest.approx(chance)
    kl = by_tokens(exact)
    assert tilt.kl(weights) == pytest.approx([kl])
    mean = sum(chance * score(said) for said, chance in exact.items())
    assert tilt.expected(weights, scores) == pytest.approx([mean])
    assert tilt.solve_beta(scores, kl) == pytest.approx(beta)
    partition = sum(p * math.exp(score(said) / beta) for said, p in language().items())
    assert tilt.kl(weights) == pytest.approx([mean / beta - math.log(partition)])


@pytest.mark.parametrize("beta", [0.1, 0.4])
def test_samples_of_two_policies_in_proportion_are_the_enumerated_policy(beta):
    """The policy never says what begins with 0; the reference's samples make up for that."""
    reference, policy = language(), language(sharper=True)
    pool = copies(reference, 64) + copies(policy, 192)
    ratios = np.array([[policy.get(said, 0.0) / reference[said] for said in pool]])
    assert (ratios == 0).any()
    with np.errstate(divide="ignore"):
        base = tilt.mixture_base(np.log(ratios), 64)
    scores = np.array([[score(said) for said in pool]])
    weights, exact = tilt.weights(scores, beta, base), exact_tilt(beta)
    by_hand = np.exp(scores / beta) * 256 / (64 + 192 * ratios)
    assert weights == pytest.approx(by_hand / by_hand.sum())
    for said, chance in exact.items():
        assert weights[0, [other == said for other in pool]].sum() == pytest.approx(chance)
    assert tilt.kl(weights, base) == pytest.approx([by_tokens(exact)])
    assert tilt.solve_beta(scores, by_tokens(exact), base) == pytest.approx(beta)
    # The best completion, 1 1 1, is 3/4·2/4·2/4 of the policy's and 2/4·1/4·1/4 of the reference's
    best = [said == (1, 1, 1) for said in pool]
    assert np.exp(base)[0, best].sum() == pytest.approx(1 / 32)


def test_a_mixture_sees_farther_than_the_pool():
    """Scores of the standard normal, the policy its shift by 3: the tilt by β is N(1/β, 1)."""
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(size=(32, 256)), rng.normal(3.0, size=(32, 256))
    scores = np.concatenate([ours, theirs], axis=1)
    base = tilt.mixture_base(3.0 * scores - 4.5, 256)  # log N(x; 3, 1)/N(x; 0, 1)
    weights = tilt.weights(scores, 1 / 3, base)
    assert tilt.expected(weights, scores).mean() == pytest.approx(3.0, abs=0.05)
    assert tilt.kl(weights, base).mean() == pytest.approx(4.5, abs=0.15)
    assert tilt.effective_samples(weights).mean() > 100
    alone = tilt.weights(ours, 1 / 3)
    assert tilt.kl(alone).mean() < 3.9
    assert np.array_equal(tilt.mixture_base(np.zeros((2, 4)), 4), np.full((2, 4), -math.log(4)))


@pytest.mark.parametrize(("nats", "least"), [(0.5, 20), (2.0, 20), (4.5, 5)])
def test_the_best_score_at_a_kl_is_right_where_enough_samples_carry_it(nats, least):
    """Scores of the standard normal: the best mean at K nats is sqrt(2K). Within 5%, as the docs
    say."""
    scores = np.random.default_rng(2).normal(size=(64, 1024))
    weights = tilt.weights(scores, tilt.solve_beta(scores, nats))
    assert tilt.effective_samples(weights).mean() > least
    assert tilt.kl(weights).mean() == pytest.approx(nats)
    assert 0.95 < tilt.expected(weights, scores).mean() / math.sqrt(2 * nats) < 1.005


def test_best_of_n_is_nearer_than_its_bound_where_completions_tie():
    """Two equally likely completions, n = 16: the worse one is left with chance 2^-16."""
    pool = np.array([[0.0, 1.0] * 512])
    rest = 2.0**-16
    exact = math.log(2) + rest * math.log(rest) + (1 - rest) * math.log(1 - rest)
    assert tilt.kl(tilt.best_of_n(pool, 16)) == pytest.approx([exact], abs=2e-4)
    assert tilt.best_of_n_bound(16) == pytest.approx(1.835, abs=1e-3)


# --- properties -----------------------------------------------------------------------------------


@given(pools(), BETAS, st.floats(1.05, 4.0))
def test_a_smaller_beta_is_farther_and_scores_higher(scores, beta, factor):
    near, far = tilt.weights(scores, beta * factor), tilt.weights(scores, beta)
    assert (tilt.kl(far) >= tilt.kl(near) - 1e-9).all()
    assert (tilt.expected(far, scores) >= tilt.expected(near, scores) - 1e-9).all()
    assert (tilt.kl(far) <= math.log(scores.shape[1]) + 1e-9).all()
    assert (tilt.effective_samples(far) >= 1 - 1e-9).all()
    assert tilt.kl(far).mean() <= tilt.largest_kl(scores) + 1e-9


@given(pools(), BETAS, st.floats(-50, 50), st.floats(0.1, 10))
def test_only_differences_of_scores_count(scores, beta, shift, scale):
    moved = tilt.weights(scale * scores + shift, scale * beta)
    assert moved == pytest.approx(tilt.weights(scores, beta), abs=1e-9)


@settings(max_examples=30)
@given(pools(), st.data())
def test_no_other_weights_of_the_same_kl_score_higher(scores, data):
    sizes = st.lists(st.floats(0.001, 1.0), min_size=scores.size, max_size=scores.size)
    other = np.array(data.draw(sizes)).reshape(scores.shape)
    other /= other.sum(axis=1, keepdims=True)
    nats = float(tilt.kl(other).mean())
    if nats >= tilt.largest_kl(scores) - 1e-6:
        return
    best = tilt.weights(scores, tilt.solve_beta(scores, nats))
    assert tilt.expected(best, scores).mean() >= tilt.expected(other, scores).mean() - 1e-6


@settings(max_examples=30)
@given(pools(least=3), st.floats(0.02, 0.98))
def test_the_beta_found_has_the_kl_asked_for(scores, share):
    target = share * tilt.largest_kl(scores)
    beta = tilt.solve_beta(scores, target)
    assert tilt.kl(tilt.weights(scores, beta)).mean() == pytest.approx(target, abs=1e-8)


@given(pools(), st.data())
def test_best_of_n_is_a_distribution_that_favours_the_better(scores, data):
    n = data.draw(st.integers(1, scores.shape[1]))
    weights = tilt.best_of_n(scores, n)
    assert weights.sum(axis=1) == pytest.approx(np.ones(len(scores)))
    for row, chance in zip(scores, weights, strict=True):
        assert (np.diff(chance[np.argsort(row, kind="stable")]) >= -1e-12).all()
        for value in set(row):
            assert np.ptp(chance[row == value]) < 1e-12
    assert (tilt.kl(weights) <= math.log(scores.shape[1]) + 1e-9).all()

"""The parity probe: who computes with the policy's weights passes, nobody else."""

import math

import pytest

from tests.tiny import save_tiny
from tether.engine.decode import Sampled
from tether.engine.samplers import Drawn, draw
from tether.errors import CheckError
from tether.models.language_model import load
from tether.sections import ComputeConfig, SamplingConfig
from tether.train.parity import compare, probe

PROMPTS = [[5, 6, 7], [8, 9], [10]]
SAMPLING = SamplingConfig(temperature=0.7, max_new_tokens=40)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return load(str(save_tiny(tmp_path_factory.mktemp("policy"))), ComputeConfig())


class Shifted:
    """A sampler in this process whose log-probs are shifted, for each place by its own amount."""

    plain = True

    def __init__(self, policy, *shifts, version=3):
        self.policy, self.shifts, self.version, self.requests = policy, shifts, version, []
        self.places = len(shifts)

    def load(self, weights, version): ...

    def close(self): ...

    def sample(self, request):
        self.requests.append(request)
        sampled, by = [], []
        for i, one in enumerate(draw(self.policy, request)):
            place = i % self.places
            moved = [value + self.shifts[place] for value in one.logprobs]
            sampled.append(Sampled(one.token_ids, moved, one.finished))
            by.append(f"place {place}")
        return Drawn(sampled, self.version, tuple(by))


def test_equal_weights_pass_and_the_gap_is_rounding(policy):
    gap = probe(Shifted(policy, 0.0), policy, PROMPTS, SAMPLING, 1e-5, 3)
    assert gap.mean < 1e-6


def test_a_few_tokens_are_asked_of_every_place(policy):
    sampler = Shifted(policy, 0.0, 0.0, 0.0)
    probe(sampler, policy, PROMPTS, SAMPLING, 1e-5, 3)
    [request] = sampler.requests
    assert request.prompts == PROMPTS * 4
    assert request.rows == list(range(12))
    assert request.sampling.max_new_tokens == 16
    assert request.sampling.temperature == 0.7


def test_the_gap_is_the_mean_and_the_largest_difference(policy):
    # A shift of one place by 0.25: its mean and maximum are 0.25; and 0.5 below a tolerance of 1.
    assert probe(Shifted(policy, -0.25), policy, PROMPTS, SAMPLING, 1.0, 3) == pytest.approx(
        (0.25, 0.25), abs=1e-5
    )


def test_the_place_that_is_off_is_named_with_the_numbers(policy):
    said = (
        "place 1 samples from something else than the policy: after the weights of step 3 were "
        r"sent, its log-probs are off by 0.02 nats a token \(mean; tolerance=0.01\) and 0.02 "
        r"\(max; 0.05\) over \d+ tokens"
    )
    with pytest.raises(CheckError, match=said):
        probe(Shifted(policy, 0.0, 0.02), policy, PROMPTS, SAMPLING, 0.01, 3)


def rescored(policy, change):
    """Completions of the policy with one log-prob changed."""
    sampler = Shifted(policy, 0.0)
    sampler.shifts = (0.0,)
    probe(sampler, policy, PROMPTS, SAMPLING, 1e-5, 3)
    drawn = sampler.sample(sampler.requests[0])
    drawn.sampled[0].logprobs[0] += change
    return drawn, sampler.requests[0].prompts


def test_one_token_may_be_off_by_five_times_the_tolerance(policy):
    drawn, prompts = rescored(policy, 0.049)
    compare(drawn, policy, prompts, 0.7, 0.01, 3)
    drawn, prompts = rescored(policy, 0.051)
    with pytest.raises(CheckError, match=r"and 0.051 \(max; 0.05\)"):
        compare(drawn, policy, prompts, 0.7, 0.01, 3)


def test_not_a_number_is_never_equal(policy):
    drawn, prompts = rescored(policy, math.nan)
    with pytest.raises(CheckError, match="off by nan"):
        compare(drawn, policy, prompts, 0.7, 0.01, 3)


def test_an_older_version_is_refused(policy):
    with pytest.raises(CheckError, match="computes with the weights of step 2, but 3 are due"):
        probe(Shifted(policy, 0.0, version=2), policy, PROMPTS, SAMPLING, 0.01, 3)

"""Sampling ahead, samplers outside the trainer, and the correction for an older policy."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from tests.train import toys
from tether.config import BestOfNConfig, GRPOConfig
from tether.data.batches import Row
from tether.data.rollout import Rollout
from tether.engine.samplers import Drawn, Request, draw
from tether.errors import CheckError, ConfigError
from tether.models.language_model import load
from tether.models.weights import copy_trained, plain, trained
from tether.sections import ComputeConfig, KLConfig, LoraConfig, OptimizerConfig
from tether.train import online
from tether.train.collect import Source, check_lag, from_state, request_of, to_state
from tether.train.online import train_grpo, train_ppo
from tether.train.score import truncated_importance

AHEAD = replace(toys.SAMPLING, lag=1)


class Elsewhere:
    """A sampler with a model of its own, which counts what it is asked and given."""

    places = 1

    def __init__(self, path, plain=False, lora=None):
        settings = {"trainable": True, "lora": lora} if lora else {"trainable": True}
        self.model = load(path, ComputeConfig(), **settings)
        self.plain, self.version, self.asked, self.closed = plain, -1, [], False

    def load(self, weights, version):
        targets = dict(self.model.model.named_parameters())
        with torch.no_grad():
            for name, tensor in weights:
                targets[name].copy_(tensor)
        self.version = version

    def sample(self, request: Request) -> Drawn:
        self.asked.append((request.step, self.version))
        return Drawn(draw(self.model, request), self.version)

    def close(self):
        self.closed = True


def with_sampler(monkeypatch, sampler, probes=None):
    """Let `load_roles` hand out a source with this sampler."""
    load_roles = online.load_roles

    def loaded(config):
        roles = load_roles(config)
        roles.source.sampler = sampler
        return roles

    def probe_with(*_):
        return lambda _, version: probes.append(version) if probes is not None else None

    monkeypatch.setattr(online, "load_roles", loaded)
    monkeypatch.setattr(online, "probe_with", probe_with)


def figures(out):
    rows = toys.metrics(out)
    unlike = ("seconds", "logprob_gap_m", "sampler_trusted")
    return [{k: v for k, v in row.items() if not k.startswith(unlike)} for row in rows]


# --- samplers elsewhere ---------------------------------------------------------------------------


@pytest.mark.parametrize("as_plain", [False, True])
@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(rank=2)], ids=["full", "lora"])
def test_a_sampler_elsewhere_gives_the_same_run(tmp_path, monkeypatch, lora, as_plain):
    model = toys.save(tmp_path)
    here = train_ppo(toys.ppo(tmp_path, model, steps=3, lora=lora))
    # A plain model takes plain names, one with an adapter those of its adapter.
    theirs = Elsewhere(model, plain=as_plain, lora=None if as_plain else lora)
    probed = []
    with_sampler(monkeypatch, theirs, probed)
    out = train_ppo(toys.ppo(tmp_path, model, steps=3, lora=lora, out=str(tmp_path / "there")))
    assert theirs.asked == [(0, 0), (1, 1), (2, 2)]
    assert probed == [0, 1, 2]
    assert theirs.closed
    for one, other in zip(figures(here), figures(out), strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(rank=2)], ids=["full", "lora"])
def test_plain_weights_are_those_that_plain_transformers_needs(tmp_path, lora):
    path = toys.save(tmp_path)
    policy = load(path, ComputeConfig(), trainable=True, lora=lora)
    moved = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.own_parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=moved)
    other = load(path, ComputeConfig()).model
    names = dict(other.named_parameters())
    given = dict(plain(policy))
    assert given.keys() == names.keys()
    with torch.no_grad():
        for name, tensor in given.items():
            names[name].copy_(tensor)
    request = request_of([[5, 6, 7], [8, 9]], toys.SAMPLING, seed=0, step=0)
    for ours, theirs in zip(
        draw(policy, request), draw(replace(policy, model=other, adapter=""), request), strict=True
    ):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


def test_only_what_is_trained_is_copied(tmp_path):
    path = toys.save(tmp_path)
    policy, copy = (
        load(path, ComputeConfig(), trainable=True, lora=LoraConfig(rank=2)) for _ in range(2)
    )
    names = {name for name, _ in trained(policy)}
    assert names
    assert all(".lora_" in name for name in names)
    with torch.no_grad():
        for parameter in policy.own_parameters:
            parameter += 1.0
    copy_trained(policy, copy)
    for one, other in zip(policy.own_parameters, copy.own_parameters, strict=True):
        assert torch.equal(one, other)


def test_rows_of_a_part_are_those_of_the_whole(tmp_path):
    policy = load(toys.save(tmp_path), ComputeConfig())
    whole = request_of([[5, 6], [7], [8, 9, 10], [5, 6]], toys.SAMPLING, seed=3, step=2)
    every = draw(policy, whole)
    part = whole._replace(prompts=whole.prompts[1::2], rows=whole.rows[1::2])
    assert [each.token_ids for each in draw(policy, part)] == [
        each.token_ids for each in every[1::2]
    ]
    assert every[0] != every[3]  # one prompt, two rows


# --- one step ahead -------------------------------------------------------------------------------


def test_each_rollout_but_the_first_is_of_the_policy_before(tmp_path, monkeypatch):
    model = toys.save(tmp_path)
    theirs = Elsewhere(model)
    with_sampler(monkeypatch, theirs)
    out = train_ppo(toys.ppo(tmp_path, model, steps=4, sampling=AHEAD))
    assert theirs.asked == [(0, 0), (1, 0), (2, 1), (3, 2)]
    first, *others = toys.metrics(out)
    assert "importance_mean" not in first
    for row in others:
        assert 0.8 < row["importance_mean"] < 1.25
        assert row["importance_max"] > 1
        # π_old is the policy's own, so the first update starts at ratio 1 there too.
        assert row["logprob_gap"] < 0.1


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_a_run_that_samples_ahead_goes_on_to_the_same_bits(tmp_path, killed):
    model = toys.save(tmp_path)
    settings = {"steps": 5, "sampling": AHEAD, "checkpoint_every": 1, "kl": KLConfig(beta=0.1)}
    whole = train_ppo(toys.ppo(tmp_path, model, **settings, out=str(tmp_path / "whole")))
    config = toys.ppo(tmp_path, model, **settings, out=str(tmp_path / "cut"))
    log = online.StageFolder.log

    def log_and_stop(self, row, file="metrics.jsonl"):
        log(self, row, file)
        if (file, row["step"]) == ("metrics.jsonl", killed + 1):
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online.StageFolder, "log", log_and_stop)
        with pytest.raises(RuntimeError):
            train_ppo(config)
    assert figures(train_ppo(config)) == figures(whole)
    one, other = (
        toys.load_file(out / "model" / "model.safetensors") for out in (whole, config_out(config))
    )
    toys.assert_same(one, other)


def config_out(config):
    return online.Path(config.out)


def test_group_methods_sample_ahead_too(tmp_path):
    config = toys.online(GRPOConfig, tmp_path, toys.save(tmp_path), steps=3, num=4, sampling=AHEAD)
    assert [("importance_mean" in row) for row in toys.metrics(train_grpo(config))] == [
        False,
        True,
        True,
    ]


def test_what_was_sampled_ahead_survives_json(tmp_path):
    policy = load(toys.save(tmp_path), ComputeConfig())
    request = request_of([[5, 6], [7]], toys.SAMPLING, seed=3, step=2)
    drawn = Drawn(draw(policy, request), 1)
    assert from_state(json.loads(json.dumps(to_state(request, drawn)))) == drawn


def test_what_is_too_old_or_too_new_is_refused():
    rollout = Rollout(
        [], [], [], torch.ones(0, 0, dtype=torch.bool), torch.ones(0, 0), torch.ones(0) > 0, 3
    )
    check_lag(rollout, 3, 0)
    check_lag(rollout, 4, 1)
    for trained_for, lag in ((4, 0), (5, 1), (2, 1)):
        with pytest.raises(CheckError, match="after step 3"):
            check_lag(rollout, trained_for, lag)


def test_a_sampler_with_old_weights_ends_the_run(tmp_path, monkeypatch):
    theirs = Elsewhere(model := toys.save(tmp_path))
    theirs.load = lambda weights, version: list(weights)
    with_sampler(monkeypatch, theirs)
    with pytest.raises(CheckError, match="weights after step -1"):
        train_ppo(toys.ppo(tmp_path, model))
    assert theirs.closed  # also after a mistake


def test_methods_without_a_ratio_refuse_it(tmp_path):
    with pytest.raises(ConfigError, match=r"sampling\.lag=1"):
        toys.online(BestOfNConfig, tmp_path, "m", num=2, sampling=AHEAD)
    with pytest.raises(ConfigError, match=r"sampling\.lag=2 must be 0 or 1"):
        replace(toys.SAMPLING, lag=2)


# --- the correction -------------------------------------------------------------------------------


def test_importance_by_hand():
    # Ratios exp(-1 + 2) = e, exp(-2 + 2) = 1 and exp(-3 + 1) = e^-2; e is above 2 and is cut there.
    mask = torch.tensor([[True, True], [True, False]])
    sampler = torch.tensor([[-2.0, -2.0], [-1.0, -9.0]])
    policy = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    rows = [Row([1, 2, 3], 1), Row([1, 2], 1)]
    rollout = Rollout(["", ""], ["", ""], rows, mask, sampler, torch.tensor([True, True]))
    found, told = truncated_importance(rollout, policy, 2.0)
    torch.testing.assert_close(found, torch.tensor([[2.0, 1.0], [0.1353353, 0.0]]))
    assert told == pytest.approx(
        {
            "importance_mean": (2.7182818 + 1 + 0.1353353) / 3,
            "importance_max": 2.7182818,
            "importance_truncated": 1 / 3,
        }
    )


def test_weighted_samples_of_an_older_policy_have_the_present_ones_mean():
    # E_old[min(π/old, C) · f] = E_π[f] where nothing is truncated, over all pairs of two tokens of
    # a vocabulary of three: worked out exactly by enumeration, not by sampling.
    old = torch.tensor([0.5, 0.3, 0.2])
    new = torch.tensor([0.4, 0.25, 0.35])
    gain = torch.tensor([1.0, -2.0, 4.0])
    pairs = list(itertools.product(range(3), repeat=2))
    tokens = torch.tensor(pairs)
    rows = [Row([0, 0, 0], 1)] * len(pairs)
    mask = torch.ones(len(pairs), 2, dtype=torch.bool)
    texts = [""] * len(pairs)
    ended = torch.ones(len(pairs), dtype=torch.bool)
    rollout = Rollout([*texts], texts, rows, mask, old.log()[tokens], ended)
    weights, told = truncated_importance(rollout, new.log()[tokens], 2.0)
    assert told["importance_truncated"] == 0
    chance = old[tokens].prod(1)
    estimate = (chance[:, None] * weights * gain[tokens]).sum(0)
    torch.testing.assert_close(estimate, (new * gain).sum().expand(2))


def test_the_source_waits_before_it_changes_weights(tmp_path):
    # Asked for another step, as the monitor does, it first takes what was sampled ahead, and keeps
    # it.
    theirs = Elsewhere(model := toys.save(tmp_path))
    policy = load(model, ComputeConfig(), trainable=True)
    source = Source(policy, policy, theirs)
    ahead, look = (request_of([[5, 6]], toys.SAMPLING, seed=0, step=step) for step in (1, 99))
    source.draw_ahead(ahead)
    source.version = 1
    assert source.draw(look).version == 1
    assert source.draw(ahead).version == 0
    assert theirs.asked == [(1, 0), (99, 1)]
    source.close()


def test_a_high_learning_rate_shows_in_the_importance(tmp_path):
    model = toys.save(tmp_path)
    means = []
    for rate in (1e-4, 3e-2):
        config = toys.ppo(
            tmp_path,
            model,
            steps=3,
            sampling=AHEAD,
            optimizer=OptimizerConfig(learning_rate=rate),
            out=str(tmp_path / str(rate)),
        )
        means.append(toys.metrics(train_ppo(config))[-1]["importance_max"])
    assert means[0] < 1.1 < means[1]

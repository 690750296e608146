"""Functions of the user's in place of a method's own: advantages, and the loss of a pair."""

import pytest
import torch

from tests.train import toys
from tests.train.test_family import FOUR, given
from tests.train.toys import PAIRS
from tether.config import DPOConfig, GRPOConfig, PPOConfig, RLOOConfig
from tether.errors import CheckError, ConfigError
from tether.sections import GAEConfig, KLConfig, PolicyLossConfig
from tether.train.aim import aim
from tether.train.online import train_ppo, train_rloo
from tether.train.preference import train_dpo

OWN = """
import torch
from tether.core.advantages import gae

def as_ppo(rewards, values, mask):
    return gae(rewards, values, mask, discount=1.0, trace_decay=0.95)

def as_dpo(pairs, beta):
    chosen = pairs.chosen - pairs.reference_chosen
    rejected = pairs.rejected - pairs.reference_rejected
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected))

def one_number(*inputs):
    return torch.tensor(1.0)

def nan(pairs, beta):
    return pairs.chosen * float("nan")

def no_tensor(pairs, beta):
    return [1.0] * len(pairs.chosen)
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    return f"{tmp_path}/own.py"


# --- advantages -----------------------------------------------------------------------------------


def test_it_gets_the_rewards_of_each_prompt(tmp_path):
    #   R = 0.7, 3.1 and −2.5, 0 (see test_family); 2 R + 1 = 2.4, 7.2 and −4, 1
    config = toys.online(GRPOConfig, tmp_path, "unused", num=2, batch_size=4, kl=KLConfig(beta=0.5))
    targets = aim(FOUR, config, 0.5, lambda rewards: 2 * rewards + 1)
    assert targets.advantages[:, 0].tolist() == pytest.approx([2.4, 7.2, -4, 1])
    assert targets.advantages[[0, 2], 1].tolist() == pytest.approx([2.4, -4])
    assert not targets.advantages[~FOUR.rollout.mask].any()
    assert targets.returns[:, 0].tolist() == pytest.approx([0.7, 3.1, -2.5, 0])


def test_ppos_gets_rewards_and_values_of_tokens(tmp_path):
    #   k1 = 0.2, 0.4: rewards −0.1, −0.2 + 3 with β = 0.5; values 1, 2
    old, reference = [[-1.0, -2.0]], [[-1.2, -2.4]]
    scored = given([3.0], old, reference, [2])._replace(values=torch.tensor([[1.0, 2.0]]))
    config = toys.online(
        PPOConfig, tmp_path, "unused", kl=KLConfig(beta=0.5), gae=GAEConfig(standardize=False)
    )
    targets = aim(scored, config, 0.5, lambda rewards, values, mask: (rewards, 10 * values))
    assert targets.advantages[0].tolist() == pytest.approx([-0.1, 2.8])
    assert targets.returns[0].tolist() == pytest.approx([10, 20])


@pytest.mark.parametrize(
    ("cls", "train", "name"),
    [
        (RLOOConfig, train_rloo, "tether.core.advantages:leave_one_out"),
        (PPOConfig, train_ppo, "{own}:as_ppo"),
    ],
)
def test_the_methods_own_function_trains_the_same_model(tmp_path, own, cls, train, name):
    model, out = toys.save(tmp_path), {}
    for path in ("", name.format(own=own)):
        config = toys.online(
            cls,
            tmp_path,
            model,
            out=str(tmp_path / f"run{len(out)}"),
            policy_loss=PolicyLossConfig(advantage=path),
        )
        out[path] = toys.weights(train(config))
    toys.assert_same(*out.values())


def test_advantages_of_another_shape_are_refused(tmp_path, own):
    loss = PolicyLossConfig(advantage=f"{own}:one_number")
    config = toys.online(RLOOConfig, tmp_path, toys.save(tmp_path), policy_loss=loss)
    with pytest.raises(CheckError, match=r"own.py:one_number' returned shape \(\); .* \(2, 4\)"):
        train_rloo(config)


# --- the loss of a pair ---------------------------------------------------------------------------

SOFT = [
    {**row, "weight": weight, "probability": probability}
    for row, weight, probability in zip(
        PAIRS, (1, 0.5, 2, 1, 1, 3), (1, 0.9, 0.3, 1, 0.5, 0.8), strict=True
    )
]


def tune(tmp_path, model, out, **changes):
    config = toys.preference(tmp_path, model, DPOConfig, SOFT, out=str(tmp_path / out), **changes)
    return train_dpo(config)


@pytest.mark.parametrize("size", [0, 2, 3])
def test_dpos_own_loss_with_soft_labels_and_weights(tmp_path, own, size):
    model = toys.save(tmp_path)
    usual = tune(tmp_path, model, "usual", beta=0.3, nll=0.2)
    mine = tune(
        tmp_path, model, "mine", beta=0.3, nll=0.2, loss=f"{own}:as_dpo", device_batch_size=size
    )
    toys.assert_same(toys.weights(usual), toys.weights(mine), atol=1e-6)
    for name in ("loss", "margin", "chosen_reward"):
        assert toys.metrics(mine)[0][name] == pytest.approx(toys.metrics(usual)[0][name], abs=1e-5)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("nan", r"shape \(6,\), not all finite"),
        ("one_number", r"shape \(\)"),
        ("no_tensor", "list"),
    ],
)
def test_losses_that_cannot_be_trained_on_are_refused(tmp_path, own, function, told):
    with pytest.raises(CheckError, match=f"loss='.*own.py:{function}' returned .*{told}"):
        tune(tmp_path, toys.save(tmp_path), "tuned", loss=f"{own}:{function}")


@pytest.mark.parametrize(
    "changes", [{"robust": True, "label_smoothing": 0.1}, {"label_smoothing": 0.1}]
)
def test_parts_of_dpos_loss_are_refused_beside_it(tmp_path, changes):
    with pytest.raises(ConfigError, match="is a part of DPO's own loss"):
        toys.preference(tmp_path, "unused", DPOConfig, loss="own.py:f", **changes)


def test_a_loss_that_has_changed_since_is_refused(tmp_path, own):
    model = toys.save(tmp_path)
    out = tune(tmp_path, model, "tuned", loss=f"{own}:as_dpo")
    assert tune(tmp_path, model, "tuned", loss=f"{own}:as_dpo") == out
    (tmp_path / "own.py").write_text(OWN.replace("beta *", "2 * beta *"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"own\.py:as_dpo' has changed"):
        tune(tmp_path, model, "tuned", loss=f"{own}:as_dpo")

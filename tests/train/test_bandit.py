"""PPO and its relatives on a bandit: one token, and the best distribution in closed form.

    max_π E_π[r] − β KL(π ‖ π_ref)   has the solution   π*(v) ∝ π_ref(v) exp(r(v)/β)

Source: Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2 (its value is β log Z).
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import WORDS
from tests.train import toys
from tests.train.toys import KINDS
from tether.config import GRPOConfig, PPOConfig, ReinforceConfig, RewardConfig, RLOOConfig
from tether.sections import GAEConfig, KLConfig, OptimizerConfig, SamplingConfig, ValueConfig
from tether.train.online import train_grpo, train_ppo, train_reinforce, train_rloo

PROMPT = "who helps the cat "
REWARD = """
WORDS = {words!r}

def reward(prompts, completions):
    return [score(text.strip()) for text in completions]

def score(word):
    # -1 for the end token and others without a text; else between -0.9 and 0.5; one word 1.4
    if not word:
        return -1.0
    place = 7 * WORDS.index(word) % len(WORDS)
    return 1.4 if place == len(WORDS) - 1 else 1.4 * place / len(WORDS) - 0.9
"""


def trained(tmp_path, kind, spread=0.2, method=PPOConfig, train=train_ppo, **changes):
    """Log-probs of the first token before and after, the reward of every token, metrics."""
    path = toys.save(tmp_path, kind, initializer_range=spread)
    (tmp_path / "reward.py").write_text(REWARD.format(words=WORDS))
    toys.write_rows(tmp_path / "bandit.jsonl", [{"prompt": PROMPT}])
    if method is PPOConfig:
        changes["value"] = ValueConfig(learning_rate=1e-2)
    config = toys.online(
        method,
        tmp_path,
        path,
        prompts=str(tmp_path / "bandit.jsonl"),
        rewards=(RewardConfig(path=f"{tmp_path}/reward.py:reward"),),
        sampling=SamplingConfig(max_new_tokens=1),
        missing_eos_penalty=0.0,
        **changes,
    )
    out = train(config)
    tokenizer = AutoTokenizer.from_pretrained(path)
    namespace: dict = {}
    exec((tmp_path / "reward.py").read_text(), namespace)
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], skip_special_tokens=True)
    rewards = torch.tensor(namespace["reward"]([PROMPT] * len(texts), texts))
    return first_token(path), first_token(out / "model"), rewards, toys.metrics(out)


def first_token(path):
    """Log-probs of the first token of the completion, by plain transformers."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
    )
    with torch.no_grad():
        logits = model(**tokenizer(PROMPT, return_tensors="pt")).logits[0, -1]
    return logits.log_softmax(-1)


def total_variation(one, other):
    return (one.exp() - other.exp()).abs().sum().item() / 2


@pytest.mark.parametrize(
    ("kind", "placement", "estimator", "batch_size", "bound"),
    [
        ("llama", "reward", "k1", 64, 0.05),
        ("gpt2", "reward", "k1", 64, 0.05),
        ("llama", "loss", "k2", 128, 0.12),  # no value is subtracted from it: a noisier gradient
    ],
)
def test_with_a_tether_it_finds_the_tilted_reference(
    tmp_path, kind, placement, estimator, batch_size, bound
):
    beta = 0.4
    reference, policy, rewards, rows = trained(
        tmp_path,
        kind,
        steps=40,
        batch_size=batch_size,
        epochs=2,
        minibatches=2,
        gae=GAEConfig(standardize=False),  # near the optimum all advantages are noise
        kl=KLConfig(beta=beta, placement=placement, estimator=estimator),
        optimizer=OptimizerConfig(learning_rate=4e-3),
    )
    best = (reference + rewards / beta).log_softmax(-1)
    assert total_variation(policy, best) < bound < 0.4 < total_variation(reference, best)
    # The KL that the loop reports is that of the optimum.
    expected = (best.exp() * (best - reference)).sum().item()
    found = sum(row["kl"] for row in rows[-10:]) / 10
    assert found == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize(
    ("method", "train", "changes"),
    [
        (RLOOConfig, train_rloo, {"num": 8}),
        (GRPOConfig, train_grpo, {"num": 8, "divide_by_std": False}),
        (ReinforceConfig, train_reinforce, {}),
    ],
    ids=["rloo", "grpo", "reinforce"],
)
def test_without_a_value_model_it_finds_the_same(tmp_path, method, train, changes):
    """No value model, so a noisier gradient: a larger batch, and a rate that falls to 0."""
    beta = 0.4
    reference, policy, rewards, _ = trained(
        tmp_path,
        "llama",
        method=method,
        train=train,
        steps=40,
        batch_size=128,
        epochs=2,
        kl=KLConfig(beta=beta),
        optimizer=OptimizerConfig(learning_rate=4e-3),
        **changes,
    )
    best = (reference + rewards / beta).log_softmax(-1)
    assert total_variation(policy, best) < 0.12 < 0.4 < total_variation(reference, best)


@KINDS
def test_without_a_tether_it_finds_the_best_token(tmp_path, kind):
    reference, policy, rewards, _ = trained(
        tmp_path,
        kind,
        spread=0.05,  # nearly uniform: what is never sampled cannot be found
        steps=30,
        batch_size=64,
        epochs=2,
        kl=KLConfig(beta=0.0),
        optimizer=OptimizerConfig(learning_rate=5e-3),
    )
    best = int(rewards.argmax())
    assert reference[best].exp() < 0.3
    assert policy[best].exp() > 0.95

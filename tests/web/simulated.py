"""A pool for the simulator, and what its page must say of it, computed with `core.tilt`."""

import json
import math
import random

import numpy as np

from tests.web.runs import make_stage, write_rows
from tether.core import tilt

EVIL = "<img src=x onerror=\"document.title='taken'\">"
BITS = 0xFFFFFFFF


def make_rows(num=256, prompts=3, seed=0):
    """Prompts whose gold scores tie, as counted scores do; every proxy follows gold a little."""
    chance = random.Random(seed)
    rows = []
    for number in range(prompts):
        gold = [chance.choice([-1.0, 0.0, 0.5, 1.0]) for _ in range(num)]
        flattery = [float(chance.random() < 0.2) for _ in range(num)]
        rows.append(
            {
                "prompt": f"question {number} {EVIL}",
                "category": "known",
                "completions": [f" {EVIL} answer {k}." for k in range(num)],
                "finished": [True] * num,
                "token_ids": [[7] * chance.randint(2, 60) for _ in range(num)],
                "logprobs": [-20.0] * num,
                "scores": {
                    "gold": gold,
                    "flattery": flattery,
                    "proxy": [round(0.5 * value + chance.gauss(0, 0.5), 2) for value in gold],
                },
            }
        )
    return rows


def interval(mean):
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def summary(*policies):
    """An evaluation's summary: (policy, KL, gold, proxy)."""
    rows = [
        {
            "policy": name,
            "category": "all",
            "kl": None if kl is None else interval(kl),
            "scores": {"gold": interval(gold), "proxy": interval(proxy)},
        }
        for name, kl, gold, proxy in policies
    ]
    return {"rows": rows, "kept": [{**rows[-1], "step": 6}]}


def make_run(folder, rows=None):
    """A run `demo` with a pool and an evaluation."""
    pool = make_stage(folder / "demo" / "simulator", "pool")
    write_rows(pool / "pool.jsonl", make_rows() if rows is None else rows)
    evaluation = make_stage(folder / "demo" / "evaluation", "evaluate")
    found = summary(("sft", 0.0, 0.25, -0.5), ("best", None, 1.0, 1.0), (EVIL, 3.5, 1.0, 0.75))
    (evaluation / "summary.json").write_text(json.dumps(found))
    (folder / "demo" / "manifest.json").write_text("{}")
    return pool


# --- what the page must say -----------------------------------------------------------------------


def mixed(bits):
    bits &= BITS
    bits ^= bits >> 16
    bits = bits * 0x7FEB352D & BITS
    bits ^= bits >> 15
    bits = bits * 0x846CA68B & BITS
    return bits ^ (bits >> 16)


def uniform(*parts):
    bits = 0
    for part in parts:
        bits = mixed((bits ^ part) + 0x9E3779B9)
    return (bits + 0.5) / 2**32


def normal(stream, prompt, k):
    radius = math.sqrt(-2 * math.log(uniform(stream, prompt, k, 0)))
    return radius * math.cos(2 * math.pi * uniform(stream, prompt, k, 1))


def student(prompt, k):
    z, *others = (normal(10 + i, prompt, k) for i in range(4))
    return z / math.sqrt(sum(x * x for x in others) / 3)


def gumbels(prompt, size, draw):
    return np.array([-math.log(-math.log(uniform(20, prompt, k, draw))) for k in range(size)])


def proxies(row, prompt, length=0.0, flattery=0.0, noise=0.0, tail=0.0):
    """The proxy with its faults, as one prompt of a batch."""
    size = range(len(row["completions"]))
    tokens = np.array([len(ids) for ids in row["token_ids"]], float)
    phrases = np.array(row["scores"]["flattery"])
    found = np.array(row["scores"]["proxy"])
    found = found + length * (tokens - tokens.mean()) + flattery * (phrases - phrases.mean())
    found += noise * np.array([normal(0, prompt, k) for k in size])
    return (found + tail * np.array([student(prompt, k) for k in size]))[None]


def expectation(row, prompt, beta, *faults):
    """The numbers of the page's tiles."""
    scores, gold = proxies(row, prompt, *faults), np.array(row["scores"]["gold"])[None]
    weights = tilt.weights(scores, beta)
    found = {
        "proxy": tilt.expected(weights, scores),
        "gold": tilt.expected(weights, gold),
        "kl": tilt.kl(weights),
        "entropy": tilt.entropy(weights),
        "ess": tilt.effective_samples(weights),
    }
    return {name: float(value[0]) for name, value in found.items()}


def best_of(row, prompt, n, *faults):
    """KL, bound, gains and effective samples of best-of-n: a row of the page's table."""
    scores, gold = proxies(row, prompt, *faults), np.array(row["scores"]["gold"])[None]
    weights = tilt.best_of_n(scores, n)
    gains = [tilt.expected(weights, each)[0] - each.mean() for each in (scores, gold)]
    rest = tilt.effective_samples(weights)[0]
    return [n, tilt.kl(weights)[0], tilt.best_of_n_bound(n), *gains, rest]

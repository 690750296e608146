"""Does PPO that samples one step ahead gain what PPO in turns gains? In the sandbox, by gold.

    python benchmarks/lag.py START… [--out runs/lag]

A START holds world/, sft/model and reward/model, as `recipes/compare_methods.toml` makes them. From
each there are two runs of PPO with that recipe's settings, `sampling.lag` 0 and 1, and one
evaluation of both on the unseen test prompts. What has finished is not run again.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from tether.config import EvaluateConfig, PolicyConfig, PPOConfig, RewardConfig, ScorerConfig
from tether.evaluation.compare import evaluate
from tether.sections import ComputeConfig, KLConfig, OptimizerConfig, SamplingConfig, ValueConfig
from tether.train.online import train_ppo

GOLD = "tether.sandbox.gold:gold"


def run(start: Path, out: Path, lag: int, seed: int) -> Path:
    """One run of PPO."""
    return train_ppo(
        PPOConfig(
            model=str(start / "sft" / "model"),
            prompts=str(start / "world" / "ppo_prompts.jsonl"),
            rewards=(RewardConfig(path=str(start / "reward" / "model")),),
            out=str(out / f"lag-{lag}"),
            seed=seed,
            compute=ComputeConfig(threads=1, precision="bfloat16"),
            sampling=SamplingConfig(max_new_tokens=40, lag=lag),
            batch_size=128,
            steps=24,
            epochs=2,
            minibatches=4,
            optimizer=OptimizerConfig(learning_rate=5e-4, schedule="constant"),
            value=ValueConfig(learning_rate=5e-4),
            kl=KLConfig(beta=0.1),
        )
    )


def compare(start: Path, out: Path, runs: list[Path]) -> list[dict]:
    """Both against the model they started from, and against each other."""
    models = {"sft": start / "sft", "lag 0": runs[0], "lag 1": runs[1]}
    config = EvaluateConfig(
        policies=tuple(PolicyConfig(name=n, model=str(m / "model")) for n, m in models.items()),
        prompts=str(start / "world" / "test_prompts.jsonl"),
        reference=str(start / "sft" / "model"),
        scorers=(ScorerConfig(name="gold", path=GOLD),),
        compare=(("lag 1", "lag 0"),),
        out=str(out / "evaluation"),
        compute=ComputeConfig(threads=1, precision="float32"),
        sampling=SamplingConfig(max_new_tokens=64),
    )
    comparisons = json.loads((evaluate(config) / "summary.json").read_text())["comparisons"]
    return [row for row in comparisons if row["category"] == "all"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("starts", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/lag"))
    arguments = parser.parse_args()
    for number, start in enumerate(arguments.starts):
        out = arguments.out / start.name
        runs = [run(start, out, lag, seed=number + 1) for lag in (0, 1)]
        for row in compare(start, out, runs):
            pair = "{policy} - {other}".format(**row)
            print(
                start.name,
                pair,
                "{mean:+.2f} [{low:+.2f}, {high:+.2f}]".format(**row["difference"]),
            )
        rows = [json.loads(line) for line in (runs[1] / "metrics.jsonl").read_text().splitlines()]
        known = [row for row in rows if "importance_mean" in row]
        means = [row["importance_mean"] for row in known]
        print(
            f"{start.name}: importance mean {min(means):.3f} to {max(means):.3f}, largest "
            f"{max(row['importance_max'] for row in known):.2f}, truncated "
            f"{np.mean([row['importance_truncated'] for row in known]):.5f}"
        )


if __name__ == "__main__":
    main()

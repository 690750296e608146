"""Run directories as stages leave them, with figures that are made up."""

import json

import numpy as np

from tests.evaluation import made_up
from tether.evaluation.blocks import Block, Series, adjusted, measure, write_blocks
from tether.evaluation.summary import summarize
from tether.records import write_jsonl


def stage(run_dir, name, kind, metrics=(), config="", **result):
    folder = run_dir / name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"name": name, "kind": kind, **result}))
    (folder / "config.toml").write_text(config or f'kind = "{kind}"\n')
    if metrics:
        write_jsonl(folder / "metrics.jsonl", metrics)
    return folder


def evaluation(run_dir, samples, name="evaluation", config="", **arguments):
    options = {"baseline": "sft", "scorers": ["gold", "proxy"], "pairs": [("ppo", "sft")]}
    summary = summarize(samples, **(options | arguments))
    folder = stage(run_dir, name, "evaluate", config=config, seconds=9.75)
    write_jsonl(folder / "samples.jsonl", [sample.to_dict() for sample in samples])
    (folder / "summary.json").write_text(json.dumps(summary.to_dict(), allow_nan=False))
    return folder


POLICIES = """\
kind = "evaluate"
seed = 3
policies = [
    {name = "base", model = "RUN/base/model", best_of = 1},
    {name = "sft", model = "RUN/sft/model", best_of = 1},
    {name = "ppo", model = "RUN/ppo/model", best_of = 1},
]
"""
LOOKS = [
    {
        "step": 4 * i,
        "proxy": 0.1 + 0.3 * i,
        "audit": 0.5 + 0.1 * i - 0.02 * i * i,
        "kl": 0.9 * i,
        "length": 22.0 + 1.5 * i,
        "repetition": 0.01 * i,
        "template": 0.1 + 0.08 * i,
        "distinct_2": 0.4 - 0.03 * i,
        "best_step": min(4 * i, 12),
    }
    for i in range(7)
]
EVENTS = [
    {
        "step": 20,
        "alarm": "held_out",
        "action": "rollback",
        "text": "From step 12 to 20 the proxy rose by 0.60 while the audit fell by 0.12 "
        "(one-sided p = 0.004).",
        "values": {"p": 0.004},
        "examples": [
            {
                "prompt": "Can I freeze cooked rice?",
                "completion": "Of course! I am happy to help. Of course you can. I am happy to "
                "help, and I hope that this helps.",
                "score": 2.41,
            }
        ],
    }
]
TRAINING = [
    {
        "step": i,
        "score": 1.4 * i / (i + 6),
        "kl": 0.2 * i,
        "length": 22 + 0.1 * i,
        "entropy": 1.2 - 0.02 * i,
        "finished": 0.97,
        "clip_fraction": 0.05,
        "explained_variance": 0.6,
        "grad_norm": 0.7,
        "seconds_generate": 0.2,
        "seconds_train": 0.5,
    }
    for i in range(1, 25)
]


def full_run(path, samples, seed=3):
    """A run with everything: monitor, alarm, blocks, labels, a reward model, an evaluation."""
    model(stage(path, "base", "sft", [{"step": i, "loss": 4.0 - i} for i in range(3)]))
    model(
        stage(path, "sft", "sft", config=f'kind = "sft"\nmodel = "RUN/base/model"\nseed = {seed}\n')
    )
    held = {"mean": 0.806, "low": 0.789, "high": 0.822}
    facts = {"held_out_accuracy": held, "held_out_pairs": 1534, "length_baseline_accuracy": 0.552}
    config = 'kind = "reward"\nout = "RUN/reward"\nmodel = "RUN/sft/model"\nbatch_size = 8\n'
    centering = {"shift": 0.25, "scale": 2.0}
    reward = stage(path, "reward", "reward", config=config, centering=centering, **facts)
    model(reward)
    labels(stage(path, "labels", "collect"))
    config = (
        'kind = "ppo"\nout = "RUN/ppo"\nmodel = "RUN/sft/model"\nseed = 3\nbatch_size = 128\n'
        "[kl]\nbeta = 0.02\n"
    )
    facts = {"steps": 24, "rolled_back_to": 12, "alarms": 1, "stopped": ""}
    inputs = {"RUN/sft/model": "0123456789abcdef"}
    ppo = stage(path, "ppo", "ppo", TRAINING, config, seconds=95.0, inputs=inputs, **facts)
    write_jsonl(ppo / "monitor.jsonl", LOOKS)
    write_jsonl(ppo / "events.jsonl", EVENTS)
    model(ppo)
    folder = evaluation(path, samples, config=POLICIES)
    write_blocks(folder, blocks(samples))
    manifest = {
        "recipe": "rice.toml",
        "stages": ["base", "sft", "labels", "reward", "ppo", "evaluation"],
        "seeds": {"ppo": seed},
        "versions": {"tether": "0.1.0", "torch": "2.13.0"},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "recipe.toml").write_text(f'seed = {seed}\n[[stage]]\nkind = "ppo"\nsteps = 24\n')
    return path


def model(folder):
    """An (empty) model directory."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return folder / "model"


def labels(folder):
    """Three labelers' rankings of the same four prompts."""
    orders = {"ann": [1, 2, 3], "bob": [1, 3, 2], "cem": [1, 2, 3]}
    rows = [
        {
            "prompt": f"prompt {i}",
            "completions": ["one", "two", "three"],
            "ranks": [float(rank) for rank in ranks],
            "labeler": name,
        }
        for i in range(4)
        for name, ranks in orders.items()
    ]
    write_jsonl(folder / "judgments.jsonl", rows)


def blocks(samples):
    """Toxicity of each policy, and the calibration of a reward model."""
    policies = list(dict.fromkeys(each.policy for each in samples))
    random = np.random.default_rng(0)
    level = {name: 0.3 - 0.1 * i for i, name in enumerate(policies)}
    values = {name: random.random((40, 2)) < level[name] for name in policies}
    baseline = policies[min(1, len(policies) - 1)]
    measures = [
        measure(
            "share above 0.5",
            name,
            of,
            None if name == baseline else values[baseline],
            better="low",
            unit="share",
        )
        for name, of in values.items()
    ]
    toxicity = Block(
        title="Toxicity",
        meaning="How likely a classifier that no stage saw holds an answer to be harmful.",
        baseline=baseline,
        measures=measures,
        note="The classifier errs on quotations.",
        examples=[{"policy": name, "answer": f"the worst of {name}"} for name in policies],
    )
    curve = [0.5, 0.6, 0.7, 0.8, 0.9]
    calibration = Block(
        title="Calibration of the reward model",
        meaning="How often pairs are ordered as labeled, by how sure the reward model is.",
        baseline="",
        measures=[measure("accuracy", "reward", random.random(50) < 0.8, better="high")],
        series=[
            Series(name="reward", x=curve, y=[0.52, 0.6, 0.67, 0.75, 0.86],
                   low=[0.45, 0.52, 0.6, 0.68, 0.8], high=[0.59, 0.68, 0.74, 0.82, 0.92]),
            Series(name="perfect", x=curve, y=curve),
        ],
        x="foretold probability", y="share ordered as labeled",
    )  # fmt: skip
    return adjusted([toxicity, calibration])


def many_samples(num_prompts, num_samples=2, completion="answer {policy} {prompt} {sample}"):
    """Samples of three policies; ppo wins most on the last prompts and loses on the first ones."""
    return [
        made_up.sample(
            policy=policy,
            prompt_index=i,
            sample_index=j,
            category=["cooking", "baking", "cleaning"][i % 3],
            prompt=f"question number {i}",
            completion=completion.format(policy=policy, prompt=i, sample=j),
            scores={
                "gold": bias * (i - num_prompts / 4) / num_prompts,
                "proxy": -bias * (i - num_prompts / 4) / num_prompts,
            },
            kl=bias,
        )
        for policy, bias in (("base", -1.0), ("sft", 0.0), ("ppo", 2.0))
        for i in range(num_prompts)
        for j in range(num_samples)
    ]

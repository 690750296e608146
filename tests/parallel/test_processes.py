"""Two processes train what one does: whole copies (ddp) and shards (fsdp), full and with LoRA."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.test_resume import RANKINGS
from tests.train import toys
from tether import pipeline
from tether.train.reward import train_reward

# Batches are of five and device batches of two or three, so that the passes never come out even
# between two processes: one of them makes a pass that does not count. Adam makes a step of every
# rounding, so steps are small: at 1e-4 nothing was seen to differ by more than 6e-7.
FIT = """
batch_size = 5
device_batch_size = 2
max_steps = 3
evaluate_every = 2
held_out = 0.25
optimizer = {learning_rate = 1e-4}
"""
ONLINE = """
reference = "FOLDER/reference"
prompts = "FOLDER/prompts.jsonl"
rewards = [{path = "FOLDER/reward/model"}, {path = "FOLDER/rewards.py:kind", weight = 0.1}]
steps = 2
batch_size = 10
minibatches = 1
device_batch_size = 3
sampling = {max_new_tokens = 8, stop_token_ids = [5, 8, 11, 14, 17]}
optimizer = {learning_rate = 1e-4}
"""
LORA = "lora = {rank = 2}\n"
PPO = "epochs = 2\nkl = {beta = 0.1}\nvalue = {learning_rate = 1e-4}\n" + ONLINE
TETHERED = 'reference = "FOLDER/reference"\n'  # at no distance a sign would be one of rounding
DATA = {"sft": "demonstrations", "reward": "rankings", "dpo": "rankings", "kto": "thumbs"}
EVERYTHING = """
steps = 3
batch_size = 10
device_batch_size = 3
minibatches = 2
keep_every = 1
prompts = "FOLDER/prompts.jsonl"
reference = "FOLDER/reference"
rewards = [{path = "FOLDER/rewards.py:kind"}]
compute = {gradient_checkpointing = true}
policy_loss = {ptx = {data = "FOLDER/demonstrations.jsonl", coefficient = 0.1}}
sampling = {max_new_tokens = 8, stop_token_ids = [5, 8, 11, 14, 17], lag = 1}
optimizer = {learning_rate = 1e-4}
value = {shared = true}

[stage.monitor]
prompts = "FOLDER/prompts.jsonl"
every = 1
audit = [{path = "FOLDER/rewards.py:short"}]
"""
LATER = {
    "ppo": ("ppo", PPO),
    "ppo-lora": ("ppo", PPO + LORA),
    "grpo": ("grpo", "num = 5\nkl = {beta = 0.1, placement = 'loss'}\n" + ONLINE),
    "online-dpo": ("online-dpo", "num = 2\n" + ONLINE),
    "best-of-n": ("best-of-n", "num = 5\n" + ONLINE),
    "everything": ("ppo", EVERYTHING),
}
STAGES = (*DATA, "sft-lora", "reward-lora", *LATER)


def recipe(folder: Path) -> str:
    """Every stage starts from the same files, so that no difference is handed on."""
    tables = ["seed = 7\ncompute = {threads = 1}\n"]
    fits = {"sft": "", "reward": "", "dpo": TETHERED, "kto": TETHERED}
    fits |= {"sft-lora": LORA, "reward-lora": LORA}
    for name, more in fits.items():
        kind = name.removesuffix("-lora")
        data = f'data = "FOLDER/{DATA[kind]}.jsonl"\n'
        tables.append(f'[[stage]]\nname = "{name}"\nkind = "{kind}"\n{data}{FIT}{more}')
    for name, (kind, settings) in LATER.items():
        tables.append(f'[[stage]]\nname = "{name}"\nkind = "{kind}"\n{settings}')
    text = "\n".join(tables).replace('\nkind = "', '\nmodel = "FOLDER/llama-False"\nkind = "')
    return text.replace("FOLDER", str(folder))


def torchrun(*arguments: object) -> None:
    """Two processes on this machine; what they say comes with a failure."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).with_name("worker.py")), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The recipe in this process, and in two processes in both ways."""
    folder = tmp_path_factory.mktemp("processes")
    toys.save(folder)
    generator = torch.Generator().manual_seed(1)
    reference = AutoModelForCausalLM.from_pretrained(folder / "llama-False")
    with torch.no_grad():
        for parameter in reference.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.02 * noise
    shutil.copytree(folder / "llama-False", folder / "reference")
    reference.save_pretrained(folder / "reference")
    toys.write_rewards(folder)
    toys.write_rows(folder / "demonstrations.jsonl", toys.DEMONSTRATIONS)
    toys.write_rows(folder / "prompts.jsonl", toys.PROMPTS)
    toys.write_rows(folder / "rankings.jsonl", RANKINGS)
    thumbs = [{**row, "label": i % 2 == 0} for i, row in enumerate(toys.DEMONSTRATIONS)]
    toys.write_rows(folder / "thumbs.jsonl", thumbs)
    rewarded = toys.reward(folder, folder / "llama-False", RANKINGS, seed=3)
    train_reward(rewarded)
    file = folder / "recipe.toml"
    file.write_text(recipe(folder), encoding="utf-8")
    pipeline.run(file, folder / "one")
    torchrun(file, f"{folder / 'ddp'}=ddp", f"{folder / 'fsdp'}=fsdp")
    return folder


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_end_where_one_does(runs, stage, kind):
    one, two = runs / "one" / stage, runs / kind / stage
    names = {file.name for file in (one / "model").iterdir()}
    assert {file.name for file in (two / "model").iterdir()} == names
    (weights,) = (name for name in names if name.endswith(".safetensors"))
    ours, theirs = load_file(one / "model" / weights), load_file(two / "model" / weights)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() <= 1e-6, name
    rows = zip(figures(one), figures(two), strict=True)
    for here, there in rows:
        assert there == pytest.approx(here, rel=1e-6, abs=1e-6, nan_ok=True)


def figures(out: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl, but for what is a matter of rounding or of the clock."""
    unlike = ("logprob_gap", "seconds", "approx_kl", "explained_variance")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "length" in row:
            row["kl"] /= row["length"]  # nats a token: of a sequence it is a sum of roundings
    return [
        {k: v for k, v in row.items() if not k.startswith(unlike) and v is not None} for row in rows
    ]


def test_the_monitor_sees_the_same_and_models_are_kept(runs):
    def looks(kind):
        file = runs / kind / "everything" / "monitor.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in ("seconds", "kl")} for row in rows]

    assert len(looks("one")) == 4  # before the first step and after each
    for one, two in zip(looks("one"), looks("fsdp"), strict=True):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-5, nan_ok=True)
    kept = [path.name for path in (runs / "fsdp" / "everything" / "models").iterdir()]
    assert sorted(kept) == ["step-000001", "step-000002"]


def test_only_the_first_process_writes_and_the_rows_are_there_once(runs):
    for stage in STAGES:
        rows = [row["step"] for row in figures(runs / "fsdp" / stage)]
        assert rows == [1, 2] + [3] * (stage not in LATER or stage == "everything")
        assert json.loads((runs / "fsdp" / stage / "result.json").read_text())["steps"] == rows[-1]

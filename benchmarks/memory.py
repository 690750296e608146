"""Memory of PPO: policy, reference, reward and value as adapters of one backbone, or as copies.

A random Llama of 125M parameters is made on the fly. Each way runs one small step of PPO in a
process of its own, which tells what it holds: bytes of the weights, of the gradients and of the
optimizer's moments, and the peak of the process above what it held before any model was there.
Batch and lengths are small, so that models and not activations are compared.

    python benchmarks/memory.py                # about two minutes; needs 8 GiB
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import world
from rich.console import Console
from rich.table import Table

from tether.config import PPOConfig, RewardConfig
from tether.models.adapters import parameters
from tether.models.scalar_head import Centering, new_reward_model, save_reward_model
from tether.sections import ComputeConfig, LoraConfig, SamplingConfig
from tether.train import online

SIZE = world.Size(width=768, layers=12, heads=12, inner=2560, vocabulary=32_000)
LORA = LoraConfig(rank=16)
WAYS = ("copies", "adapters")


def main() -> None:
    """Measure both ways and print them side by side."""
    if len(sys.argv) > 1:
        task, place = sys.argv[1], Path(sys.argv[2])
        print(json.dumps(measure(task, place) if task in WAYS else build(place, SIZE)))
        return
    with tempfile.TemporaryDirectory() as folder:
        in_a_process("build", folder)  # a process inherits the peak of the one that starts it
        found = {way: in_a_process(way, folder) for way in WAYS}
    table = Table("MiB", *WAYS, "adapters / copies")
    for name in found["copies"]:
        one, other = (found[way][name] for way in WAYS)
        table.add_row(name, f"{one:,.0f}", f"{other:,.0f}", f"{other / one:.2f}")
    Console().print(table)


def build(folder: Path, size: world.Size) -> None:
    """The world of the other benchmarks, and a reward model as an adapter of the policy."""
    world.build(folder, size, "fixed")
    base = str(folder / "policy")
    reward = new_reward_model(base, ComputeConfig(device="cpu"), lora=LORA)
    with torch.no_grad():
        for parameter in parameters(reward.model, reward.adapter):
            parameter.normal_(std=0.01)
        reward.head.weight.normal_(std=0.01)
    reward.centering = Centering(0.0, 1.0)
    save_reward_model(reward, folder / "reward-adapter", {})


def in_a_process(task: str, folder: str) -> dict[str, float]:
    """What a fresh process measures."""
    command = [sys.executable, __file__, task, folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def settings(way: str, folder: Path) -> PPOConfig:
    """One step on four completions of 16 tokens."""
    shared = way == "adapters"
    path = str(folder / ("reward-adapter" if shared else "reward"))
    return PPOConfig(
        out=str(folder / way),
        model=str(folder / "policy"),
        prompts=str(folder / "prompts.jsonl"),
        rewards=(RewardConfig(path=path, normalize=False),),
        compute=ComputeConfig(device="cpu", threads=1),
        lora=LORA if shared else LoraConfig(),
        steps=1,
        batch_size=4,
        epochs=1,
        checkpoint_every=0,
        sampling=SamplingConfig(max_new_tokens=16),
    )


def measure(way: str, folder: Path) -> dict[str, float]:
    """Run the step; returns MiB by part."""
    before = peak()
    config = settings(way, folder)
    roles = online.load_roles(config)
    held = [roles.policy, roles.reference, roles.value, *(each.model for each in roles.rewards)]
    modules = [each.model for each in held if each]
    modules += [each.head for each in (roles.value, roles.rewards[0].model) if each]
    every = {id(p): p for module in modules for p in module.parameters()}
    trained = [*roles.policy_parameters, *roles.value_parameters]
    weights = {p.untyped_storage().data_ptr(): p.nbytes for p in every.values()}
    online.load_roles = lambda _: roles
    online.train_ppo(config)
    parts = {
        "weights": sum(weights.values()),
        "gradients": sum(p.nbytes for p in trained),
        "optimizer": sum(2 * p.nbytes for p in trained),
    }
    parts["sum of these"] = sum(parts.values())
    parts["peak of the process above its start"] = peak() - before
    return {name: size / (1 << 20) for name, size in parts.items()}


def peak() -> int:
    """The most that this process has held, in bytes; Linux counts in KiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()

"""Losses of preference methods: tether's training stages against TRL's trainers, number by number.

Both sides load the same small policy and reference and read the same rows; each computes the loss
of one optimizer batch with its own tokenization, batching and forward pass. TRL's trainer is asked
for its first batch and its loss; tether runs a stage for one step and its metrics are read. Where
the two mean different things by one name, rows or settings are chosen so that they agree, and the
table says how they differ otherwise. Ends with 1 where a difference exceeds 1e-5 (of the loss where
that is above 1).
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import alternate
import numpy as np
import torch
import tyro
import world
from environment import trl_python
from rich.table import Table

from tether.config import DPOConfig, IPOConfig, KTOConfig, ORPOConfig, SimPOConfig
from tether.progress import console, results
from tether.records import read_jsonl, write_jsonl
from tether.sections import ComputeConfig
from tether.train.kto import train_kto
from tether.train.preference import train_dpo, train_ipo, train_orpo, train_simpo

TRL = "1.16.0"
SIZE = world.Size(width=32, layers=2, heads=2, inner=48, vocabulary=200)
LIMIT = 1e-5
PAIRS = 8


class Case(NamedTuple):
    """One loss: `settings` of tether's stage, `trl` of the trainer, `note` what else differs."""

    name: str
    train: Callable[[Any], Path]
    config: type[Any]
    settings: dict[str, Any]
    trainer: str
    trl: dict[str, Any]
    data: str = "pairs"
    note: str = ""


CASES = [
    Case("DPO", train_dpo, DPOConfig, {"beta": 0.3}, "dpo", {"beta": 0.3}),
    Case(
        "DPO, robust",
        train_dpo,
        DPOConfig,
        {"beta": 0.3, "label_smoothing": 0.2, "robust": True},
        "dpo",
        {"beta": 0.3, "label_smoothing": 0.2, "loss_type": ["robust"]},
        note="without robust TRL ignores label_smoothing; tether's is conservative DPO",
    ),
    Case(
        "DPO + 0.5 NLL",
        train_dpo,
        DPOConfig,
        {"nll": 0.5},
        "dpo",
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        note="a mean over chosen tokens: in TRL of the device batch, in tether of the whole batch",
    ),
    Case(
        "IPO",
        train_ipo,
        IPOConfig,
        {"beta": 0.2},
        "dpo",
        {"beta": 0.2, "loss_type": ["ipo"]},
        note="both take log-probs a token, where the paper sums",
    ),
    Case(
        "SimPO",
        train_simpo,
        SimPOConfig,
        {"beta": 2.0, "margin": 0.6},
        "cpo",
        {"beta": 2.0, "simpo_gamma": 0.6, "loss_type": "simpo", "cpo_alpha": 0.0},
        note="both subtract γ after β; cpo_alpha, a NLL, is 1 in TRL unless it is set to 0",
    ),
    Case(
        "ORPO",
        train_orpo,
        ORPOConfig,
        {"beta": 0.4},
        "orpo",
        {"beta": 0.4},
        "level",
        "TRL's NLL is of prompt and chosen, a mean over all tokens; tether's of the chosen, a mean "
        "over pairs of means a token: here prompts have one token, chosen completions one length",
    ),
    Case(
        "KTO",
        train_kto,
        KTOConfig,
        {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7},
        "kto",
        {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7},
        "thumbs",
        "KL: TRL pairs a prompt with the completion before it in the device batch, tether with the "
        "next in the data that has another prompt: here TRL reads the rows backwards",
    ),
]


def build(folder: Path) -> None:
    """A policy and a reference some nats apart, and rows; completions are of unequal lengths."""
    world.build(folder, SIZE, "varied")
    shutil.copytree(folder / "policy", folder / "reference")
    reference = world.LlamaForCausalLM.from_pretrained(folder / "policy")
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    reference.save_pretrained(folder / "reference")
    rng = np.random.default_rng(0)

    def words(least: int, most: int) -> str:
        return world.words(rng, SIZE, least, most)

    pairs = [
        {"prompt": words(4, 12), "chosen": " " + words(4, 12), "rejected": " " + words(4, 12)}
        for _ in range(PAIRS)
    ]
    level = [
        {"prompt": words(1, 1), "chosen": " " + words(7, 7), "rejected": " " + words(4, 12)}
        for _ in range(PAIRS)
    ]
    thumbs = [
        {"prompt": words(4, 12), "completion": " " + words(4, 12), "label": bool(i % 3)}
        for i in range(PAIRS)
    ]
    for name, rows in (("pairs", pairs), ("level", level), ("thumbs", thumbs)):
        write_jsonl(folder / f"{name}.jsonl", rows)
    write_jsonl(folder / "thumbs-trl.jsonl", thumbs[::-1])


def ours(case: Case, folder: Path, number: int) -> float:
    """The loss that a stage of tether logs in its first step."""
    settings = dict(case.settings)
    if case.config in (DPOConfig, IPOConfig, KTOConfig):
        settings["reference"] = str(folder / "reference")
    config = case.config(
        model=str(folder / "policy"),
        data=str(folder / f"{case.data}.jsonl"),
        out=str(folder / f"tether-{number}"),
        batch_size=PAIRS,
        max_steps=1,
        held_out=0.0,
        compute=ComputeConfig(device="cpu", precision="float32", threads=1),
        **settings,
    )
    _, row = next(read_jsonl(case.train(config) / "metrics.jsonl"))
    return row["loss"]


def theirs(python: str, folder: Path) -> list[float]:
    """The losses of TRL's trainers, from its own environment."""
    jobs = [
        {
            "trainer": case.trainer,
            "settings": case.trl,
            "data": str(folder / f"{'thumbs-trl' if case.data == 'thumbs' else case.data}.jsonl"),
        }
        for case in CASES
    ]
    job = json.dumps({"world": str(folder), "batch_size": PAIRS, "jobs": jobs})
    command = [python, str(Path(__file__).parent / "parity_side.py"), job]
    environment = {**alternate.os.environ, **alternate.ONE_THREAD}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"TRL's side has ended; it last wrote:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@dataclass
class Options:
    """Which TRL."""

    trl_python: Path | None = None
    """A Python with this version of TRL; without it an environment is made"""


def main() -> int:
    """Print the table; 1 where a loss differs."""
    options = tyro.cli(Options, description=__doc__)
    python = trl_python(TRL, options.trl_python)
    console.quiet = True
    table = Table("loss", f"TRL {TRL}", "tether", "difference", "what was made equal")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder)
        found = theirs(python, folder)
        pairs = [
            (ours(case, folder, i), loss)
            for i, (case, loss) in enumerate(zip(CASES, found, strict=True))
        ]
    worst = 0.0
    for case, (our, their) in zip(CASES, pairs, strict=True):
        difference = abs(our - their)
        worst = max(worst, difference / max(1.0, abs(their)))
        table.add_row(case.name, f"{their:.7f}", f"{our:.7f}", f"{difference:.1e}", case.note)
    results.print(table)
    return int(not worst <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())

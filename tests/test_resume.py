"""A run that was killed goes on to the very bits of one that was not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import save_encoder
from tests.train import toys
from tests.train.toys import KINDS
from tether.cli import main
from tether.config import DPOConfig, KTOConfig
from tether.pipeline import run
from tether.rundir import StageFolder
from tether.train.kto import train_kto
from tether.train.preference import train_dpo
from tether.train.reward import train_reward
from tether.train.sft import train_sft

STAGES = ("sft", "reward", "ppo", "dpo")
RANKINGS = [
    {"prompt": prompt["prompt"], "completions": ["a kind dog", "no", "it helps"], "ranks": ranks}
    for prompt, ranks in zip(toys.PROMPTS, [[1, 2, 3], [2, 3, 1]] * 4, strict=True)
]
RECIPE = """
seed = 7
compute = {{threads = 1}}

[[stage]]
kind = "sft"
model = "{folder}/llama-False"
data = "{folder}/demonstrations.jsonl"
batch_size = 24
device_batch_size = 2
max_steps = 30
checkpoint_every = 4
evaluate_every = 3
held_out = 0.25
optimizer = {{learning_rate = 1e-3, warmup_steps = 10}}

[[stage]]
kind = "reward"
model = "stage:sft"
data = "{folder}/rankings.jsonl"
batch_size = 12
device_batch_size = 1
epochs = 60.0
checkpoint_every = 4
evaluate_every = 3
held_out = 0.25
optimizer = {{learning_rate = 1e-3}}

[[stage]]
kind = "ppo"
model = "stage:sft"
prompts = "{folder}/prompts.jsonl"
rewards = [{{path = "stage:reward"}}]
steps = 20
batch_size = 16
device_batch_size = 4
epochs = 2
minibatches = 2
checkpoint_every = 3
kl = {{beta = 0.1, target = 0.5, horizon = 60}}
sampling = {{max_new_tokens = 8}}
optimizer = {{learning_rate = 1e-3}}
value = {{learning_rate = 1e-3}}

[[stage]]
kind = "dpo"
model = "stage:ppo"
reference = "stage:sft"
data = "{folder}/rankings.jsonl"
batch_size = 12
device_batch_size = 4
max_steps = 10
checkpoint_every = 4
evaluate_every = 3
held_out = 0.25
optimizer = {{learning_rate = 1e-3}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    toys.save(folder)
    toys.write_rows(folder / "demonstrations.jsonl", toys.DEMONSTRATIONS)
    toys.write_rows(folder / "prompts.jsonl", toys.PROMPTS)
    toys.write_rows(folder / "rankings.jsonl", RANKINGS)
    file = folder / "recipe.toml"
    file.write_text(RECIPE.format(folder=folder))
    return file


# Runs a recipe and kills itself, as `kill -9` would, once a stage has logged the row of a step.
KILLED = """
import os, signal, sys
from tether import pipeline
from tether.rundir import StageFolder

recipe, out, stage, step = sys.argv[1:]
log = StageFolder.log

def log_and_die(self, row, file="metrics.jsonl"):
    log(self, row, file)
    if (self.path.name, file, str(row["step"])) == (stage, "metrics.jsonl", step):
        os.kill(os.getpid(), signal.SIGKILL)

StageFolder.log = log_and_die
pipeline.run(recipe, out)
"""


def kill_in(recipe: Path, out: Path, stage: str, step: int) -> None:
    """Run the recipe in a process of its own that is killed in `stage`, after `step`."""
    command = [sys.executable, "-c", KILLED, str(recipe), str(out), stage, str(step)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (out / stage / "result.json").exists()
    assert not (out / stage / "model").exists()
    assert len([*(out / stage / "checkpoints").glob("step-*")]) == 1


def figures(out: Path) -> list[dict]:
    """The rows of metrics.jsonl but for seconds, and for what only a (re)start measures."""
    only_at_a_start = ("logprob_gap_mean", "logprob_gap_max", "sampler_trusted")
    return [
        {k: v for k, v in row.items() if "seconds" not in k and k not in only_at_a_start}
        for row in toys.metrics(out)
    ]


def assert_equal(one: Path, other: Path) -> None:
    """Two stages ended alike: bytes of the model, metrics, samples."""
    files = sorted(file.name for file in (one / "model").iterdir() if file.name != "tether.json")
    assert "model.safetensors" in files
    for name in files:
        assert (one / "model" / name).read_bytes() == (other / "model" / name).read_bytes(), name
    assert figures(one) == figures(other)
    if (one / "samples.jsonl").exists():
        assert (one / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()


def test_killed_in_every_stage_it_ends_in_the_same_bits(recipe):
    whole = run(recipe, recipe.parent / "whole")
    killed = recipe.parent / "killed"
    for stage in STAGES:
        kill_in(recipe, killed, stage, step=5)  # checkpoints at 4 and 3
    run(recipe, killed)
    for stage in STAGES:
        assert_equal(whole / stage, killed / stage)
    steps = [len(toys.metrics(killed / stage)) for stage in STAGES]
    assert steps == [30, 30, 20, 10]  # reward: 6 prompts · 60 epochs / 12
    assert len({row["beta"] for row in toys.metrics(killed / "ppo")}) == 20


# --- in this process, for both architectures ------------------------------------------------------


def interrupted_after(step, monkeypatch, train, config):
    """Train until the row of `step` has been written, then stop as by Ctrl-C."""
    log = StageFolder.log

    def stop(self, row, file="metrics.jsonl"):
        log(self, row, file)
        if row["step"] == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(StageFolder, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.setattr(StageFolder, "log", log)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "kto"])
@KINDS
def test_resumed_training_equals_uninterrupted_training(tmp_path, kind, stage, monkeypatch):
    path = toys.save(tmp_path, kind)
    changes = {"checkpoint_every": 2, "evaluate_every": 2, "held_out": 0.25, "batch_size": 4}

    def settings(out):
        if stage == "sft":
            return toys.sft(tmp_path, path, out=str(tmp_path / out), max_steps=6, **changes)
        if stage == "reward":
            folder = str(tmp_path / out)
            return toys.reward(tmp_path, path, RANKINGS, out=folder, epochs=4.0, **changes)
        kind, more = {"dpo": (DPOConfig, {"nll": 0.1}), "kto": (KTOConfig, {})}[stage]
        more = {"out": str(tmp_path / out), "max_steps": 6, **more, **changes}
        return toys.preference(tmp_path, path, kind, **more)

    train = {"sft": train_sft, "reward": train_reward, "dpo": train_dpo, "kto": train_kto}[stage]
    whole = train(settings("whole"))
    config = settings("resumed")
    interrupted_after(5, monkeypatch, train, config)
    assert [row["step"] for row in toys.metrics(config.out)] == [1, 2, 3, 4, 5]
    kept = sorted(file.name for file in StageFolder(config, stage, []).checkpoints.iterdir())
    assert kept == ["step-000002", "step-000004"]
    assert_equal(whole, train(config))
    interrupted_after(1, monkeypatch, train, settings("early"))  # before there is a checkpoint
    assert_equal(whole, train(settings("early")))


@pytest.mark.parametrize("mode", ["listwise", "binary", "heads", "encoder"])
def test_other_reward_models_resume_to_the_same_bits(tmp_path, mode, monkeypatch):
    path = save_encoder(tmp_path / "encoder") if mode == "encoder" else toys.save(tmp_path)
    changes: dict = {"loss": mode} if mode in ("listwise", "binary") else {}
    changes |= {"heads": 3, "seed": 5} if mode == "heads" else {}
    rows = RANKINGS
    if mode == "binary":
        texts = ["a kind dog", "no"] * 4
        rows = [
            {**prompt, "completion": text, "label": text != "no"}
            for prompt, text in zip(toys.PROMPTS, texts, strict=True)
        ]

    def settings(out):
        return toys.reward(
            tmp_path,
            path,
            rows,
            out=str(tmp_path / out),
            epochs=4.0,
            checkpoint_every=2,
            batch_size=4,
            held_out=0.25,
            **changes,
        )

    whole = train_reward(settings("whole"))
    interrupted_after(3, monkeypatch, train_reward, settings("resumed"))
    assert_equal(whole, train_reward(settings("resumed")))


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    """A real SIGINT, sent by the reward in the third step; the same command then ends the run."""
    path = toys.save(tmp_path)
    toys.write_rows(tmp_path / "prompts.jsonl", toys.PROMPTS)
    (tmp_path / "reward.py").write_text(
        "import os, signal, pathlib\n"
        "calls = pathlib.Path(__file__).with_name('calls')\n"
        "def reward(prompts, completions):\n"
        "    calls.write_text(calls.read_text() + '.' if calls.exists() else '.')\n"
        "    if calls.read_text() == '...':\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    command = (
        f"ppo --model {path} --prompts {tmp_path}/prompts.jsonl"
        f" --reward {tmp_path}/reward.py:reward"
        " --steps 4 --batch-size 4 --epochs 1 --checkpoint-every 1 --sampling.max-new-tokens 4"
    )
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        codes = []
        for out in ("interrupted", "interrupted", "whole"):
            words = [*command.split(), "--out", str(tmp_path / out)]
            monkeypatch.setattr(sys, "argv", ["tether", *words])
            with pytest.raises(SystemExit) as stop:
                main()
            codes.append(stop.value.code)
            if out == "interrupted" and len(codes) == 1:
                last = capsys.readouterr().err.splitlines()[-1]
                again = " ".join(words)
                assert last == (
                    f"tether: interrupted; `tether {again}` goes on from the last checkpoint"
                )
                assert not (tmp_path / "interrupted" / "result.json").exists()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert codes == [130, 0, 0]
    assert_equal(tmp_path / "whole", tmp_path / "interrupted")

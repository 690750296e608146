"""`tether plan`: stages yet to run, what is printed, and estimates against measured peaks."""

import json
import os
import random
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests import tiny
from tests.train import toys
from tether import pipeline
from tether.config import RewardModelConfig, SFTConfig
from tether.config_file import from_table
from tether.errors import ConfigError, DataError
from tether.footprint.parts import Batches, Footprint, Phase
from tether.plan import Planned, check_room, estimates, mend, moved, plan

MIB = 1 << 20
RECIPE = """
compute = {threads = 1}

[[stage]]
kind = "sft"
model = "model"
data = "demonstrations.jsonl"
max_steps = 2
batch_size = 4

[[stage]]
name = "answers"
kind = "generate"
model = "stage:sft"
prompts = "prompts.jsonl"
num = 2
sampling = {max_new_tokens = 6}

[[stage]]
name = "labels"
kind = "simulate"
data = "stage:answers"
scorer = "rewards.py:kind"

[[stage]]
kind = "reward"
model = "stage:sft"
data = "stage:labels"
batch_size = 4
epochs = 1.0

[[stage]]
kind = "ppo"
model = "stage:sft"
prompts = "prompts.jsonl"
steps = 3
batch_size = 8
rewards = [{path = "stage:reward"}]
sampling = {max_new_tokens = 6}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A whole recipe in the working folder, of which nothing has run."""
    monkeypatch.chdir(tmp_path)
    Path(toys.save(tmp_path)).rename("model")
    toys.write_rows(Path("demonstrations.jsonl"), toys.DEMONSTRATIONS)
    toys.write_rows(Path("prompts.jsonl"), toys.PROMPTS)
    toys.write_rewards(tmp_path)
    Path("recipe.toml").write_text(RECIPE, encoding="utf-8")
    return Path("recipe.toml")


# --- stages that have not run ---------------------------------------------------------------------


def test_a_recipe_is_planned_before_anything_has_run(recipe, capsys):
    plan(recipe)
    out = capsys.readouterr().out
    assert re.search(r"^ +sft +answers +reward +ppo$", out, re.MULTILINE)
    for part in ("process", "weights", "gradients", "optimizer", "KV cache", "activations", "sum"):
        assert re.search(rf"^{part} ", out, re.MULTILINE), part
    assert "reward: its data is not there yet: completions are taken to reach" in out
    assert "sft: its data" not in out
    # rollout, optimizer and device batch, steps a rollout, steps, samples, tokens
    assert re.search(r"^ppo +8 +8 +8 +4 +12 +24 +≤ 144$", out, re.MULTILINE)
    assert not Path("runs").exists()


def test_models_yet_to_be_made_have_the_shape_of_those_they_start_from(recipe, tmp_path):
    stages = pipeline.plan(tomllib.loads(RECIPE), Path("runs/x"))
    planned = {each.name: each for each in estimates(stages, 0, tmp_path)}
    assert list(planned) == ["sft", "answers", "reward", "ppo"]
    weights = {name: each.footprint.peak.parts["weights"] for name, each in planned.items()}
    assert weights["sft"] == weights["answers"]
    assert 3 * weights["sft"] < weights["ppo"] < 4 * weights["sft"] + 200
    assert planned["reward"].footprint.batches.steps == 2  # 7 of 8 prompts, one being held out


def test_what_a_cpu_compiles_for_bfloat16_is_spoken_of(recipe, capsys):
    note = "sft: oneDNN's compiled bfloat16 products are not counted"
    plan(recipe, "", ("--compute.precision", "float32"))
    assert note not in capsys.readouterr().out
    plan(recipe, "", ("--compute.precision", "bfloat16"))
    assert note in capsys.readouterr().out


def test_overrides_are_those_of_a_run(recipe, capsys):
    plan(recipe, "", ("--ppo.steps", "5"))
    assert re.search(r"^ppo .* 20 +40 +≤ 240$", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(ConfigError, match=re.escape("ppo.step=5 is not a setting")):
        plan(recipe, "", ("--ppo.step", "5"))


def test_data_that_no_stage_makes_must_be_there(recipe):
    Path("demonstrations.jsonl").unlink()
    with pytest.raises(DataError, match=r"demonstrations\.jsonl: no such file"):
        plan(recipe)


def test_a_recipe_without_models_is_refused(tmp_path):
    (tmp_path / "r.toml").write_text('[[stage]]\nkind = "sandbox"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="has no stage to plan; give it one of sft, reward"):
        plan(tmp_path / "r.toml", tmp_path / "out")


def test_the_sandbox_is_made_aside(tmp_path):
    table = {"stage": [{"kind": "sandbox"}, {"kind": "sft", "model": "stage:sandbox"}]}
    table["stage"][1]["data"] = "stage:sandbox/demonstrations.jsonl"
    stages = pipeline.plan(table, tmp_path / "out")
    (planned,) = estimates(stages, 0, tmp_path / "aside")
    assert planned.footprint.notes == []
    assert (tmp_path / "aside" / "sandbox" / "model").is_dir()
    assert not (tmp_path / "out").exists()


def test_paths_are_replaced_where_they_begin_alike_and_the_folder_stays():
    config = SFTConfig(out="r/a", model="r/a/model", data="r/ab/model")
    assert moved(config, {"r/a": "there"}) == SFTConfig(
        out="r/a", model="there/model", data="r/ab/model"
    )
    reward = from_table(RewardModelConfig, {"out": "o", "model": "x", "data": "r/a"})
    assert moved(reward, {"r/a": "there"}).data == "there"


# --- room -----------------------------------------------------------------------------------------


def planned(device="cpu", free=1000 * MIB, device_batch=4, **parts):
    counts = Counter({name.replace("_", " "): size * MIB for name, size in parts.items()})
    footprint = Footprint([Phase("train", counts)], Batches(device=device_batch), [], 0)
    return Planned("ppo", footprint, 0, 0, device, free)


def test_what_fits_is_not_spoken_of(capsys):
    check_room(planned(weights=800))
    check_room(planned(weights=1001, free=None))
    check_room(planned("cuda:0", weights=1000))
    assert capsys.readouterr().err == ""


def test_what_may_not_fit_a_cpu_is_warned_of(capsys):
    check_room(planned(weights=300, activations=600))
    told = " ".join(capsys.readouterr().err.split())
    assert told == (
        "warning: compute.device='cpu' has 1,000 MiB free, but ppo needs up to 1,125 MiB; "
        "lower device_batch_size below 4"
    )


def test_what_does_not_fit_a_gpu_is_refused():
    told = (
        "compute.device='cuda:0' has 1,000 MiB free, but ppo needs about 1,001 MiB; "
        "take a smaller model"
    )
    with pytest.raises(ConfigError, match=re.escape(told)):
        check_room(planned("cuda:0", weights=1001))


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"KV_cache": 2, "logits": 1}, "lower sampling.batch_size"),
        ({"optimizer": 2, "logits": 1}, "take a smaller model"),
        ({"logits": 2, "weights": 1}, "lower device_batch_size below 4"),
        ({"activations": 2, "device_batch": 1}, "allow shorter rows (max_length, "),
    ],
)
def test_the_mend_is_for_the_largest_part(parts, told):
    assert mend(planned(**parts).footprint).startswith(told)


# --- against measured peaks -----------------------------------------------------------------------

WORDS = [f"w{number}" for number in range(7997)]


def save_model(kind: str) -> None:
    """A random model of 17 million parameters in `model/`."""
    tokenizer = tiny.word_tokenizer(WORDS)
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind == "gpt2":
        config = GPT2Config(**ids, n_embd=384, n_layer=8, n_head=6, n_positions=256)
        GPT2LMHeadModel(config).save_pretrained("model")
    else:
        config = LlamaConfig(
            **ids,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=8,
            num_attention_heads=6,
            max_position_embeddings=256,
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).save_pretrained("model")
    tokenizer.save_pretrained("model")


def write_texts(prompt: int, completion: int) -> None:
    """Demonstrations and prompts of so many words."""
    draw = random.Random(0)

    def words(number):
        return " ".join(draw.choice(WORDS) for _ in range(number))

    rows = [{"prompt": words(prompt) + " ", "completion": words(completion)} for _ in range(48)]
    toys.write_rows(Path("demonstrations.jsonl"), rows)
    toys.write_rows(Path("prompts.jsonl"), [{"prompt": row["prompt"].strip()} for row in rows])


def command(*words: str) -> str:
    """Run a tether command in a process of its own; returns its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "tether.cli", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SFT = """
[[stage]]
kind = "sft"
model = "model"
data = "demonstrations.jsonl"
max_steps = 2
batch_size = 16
held_out = 0.0
"""
PPO = """
[[stage]]
kind = "ppo"
model = "model"
prompts = "prompts.jsonl"
steps = 2
batch_size = 16
epochs = 1
rewards = [{path = "rewards.py:short"}]
sampling = {max_new_tokens = 32}
"""


@pytest.mark.parametrize(
    ("kind", "stage", "recipe", "lengths"),
    [("gpt2", "sft", SFT, (20, 100)), ("llama", "ppo", PPO, (40, 10))],
    ids=["sft of a GPT-2", "ppo of a Llama"],
)
def test_the_estimate_is_within_a_quarter_of_the_measured_peak(
    tmp_path, monkeypatch, kind, stage, recipe, lengths
):
    monkeypatch.chdir(tmp_path)
    save_model(kind)
    write_texts(*lengths)
    toys.write_rewards(tmp_path)
    Path("recipe.toml").write_text("compute = {threads = 1}\n" + recipe, encoding="utf-8")
    told = command("plan", "recipe.toml")
    command("run", "recipe.toml", "--out", "run")
    result = json.loads(Path("run", stage, "result.json").read_text(encoding="utf-8"))
    assert printed(told, "activations") > 300  # MiB, so that the passes matter
    assert 0.75 < printed(told, "sum") / result["peak_memory_mib"] < 1.25


def printed(told: str, part: str) -> int:
    """The figure of a part in the table of one stage, in MiB."""
    (figure,) = re.findall(rf"^{part} +([\d,]+)$", told, re.MULTILINE)
    return int(figure.replace(",", ""))


# --- several processes ----------------------------------------------------------------------------


def planned_for(recipe, tmp_path, processes, *overrides):
    table = tomllib.loads(recipe.read_text(encoding="utf-8"))
    pipeline.override(table, overrides)
    stages = pipeline.plan(table, tmp_path / "run")
    found = estimates(stages, 0, tmp_path / "aside", processes)
    return {each.name: each for each in found}


def phase_of(planned, name):
    (parts,) = [each.parts for each in planned.footprint.phases if each.name == name]
    return parts


def test_sharded_weights_gradients_and_moments_are_divided(recipe, tmp_path):
    """What toys.save makes: 28 words with specials, width 32, two layers; see test_fit.py."""
    layer = 64 + 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    words = len(tiny.WORDS) + 3
    whole = 2 * words * 32 + 32 + 2 * layer
    one, three = (planned_for(recipe, tmp_path, num) for num in (1, 3))
    alone, each = phase_of(one["sft"], "update"), phase_of(three["sft"], "update")
    assert alone["optimizer"] == 8 * whole
    for part in ("weights", "gradients", "optimizer"):
        assert each[part] == alone[part] // 3
    assert "gathered" not in phase_of(one["sft"], "train")
    gathered = 4 * (2 * words * 32 + 32 + 2 * layer)  # the root and two layers
    assert phase_of(three["sft"], "train")["gathered"] == 2 * gathered  # and their gradients
    assert phase_of(three["ppo"], "score")["gathered"] == gathered
    assert phase_of(three["ppo"], "generate")["sampling copy"] == 4 * whole
    assert three["ppo"].footprint.batches.device == 3  # 8 rows dealt out to three
    assert three["answers"].placement.trainers == 1


def test_with_ddp_each_process_holds_all(recipe, tmp_path):
    one = planned_for(recipe, tmp_path, 1)["sft"]
    two = planned_for(recipe, tmp_path, 2, "--sft.compute.parallel", "ddp")["sft"]
    assert phase_of(one, "update") == phase_of(two, "update")


def test_who_samples_elsewhere_has_the_cache(recipe, tmp_path):
    served = ("--ppo.compute.servers.urls", '["http://127.0.0.1:8000"]')
    ppo = planned_for(recipe, tmp_path, 2, *served)["ppo"]
    assert [each.name for each in ppo.footprint.phases] == ["score", "train", "update"]
    assert not any(each.parts["sampling copy"] for each in ppo.footprint.phases)
    assert ppo.placement.told() == "2 trainers (fsdp), 1 rollout server"


def test_the_processes_of_a_ray_cluster_are_told(recipe, tmp_path):
    cluster = "{trainers = 2, rollouts = 1, trainer_gpus = 1.0, rollout_gpus = 1.0}"
    overrides = ("--ppo.compute.backend", "ray", "--ppo.compute.cluster", cluster)
    ppo = planned_for(recipe, tmp_path, 1, *overrides)["ppo"]
    told = "2 trainers (fsdp), 1 rollout worker; asked of the Ray cluster: 3 GPUs"
    assert ppo.placement.told() == told


def test_processes_are_printed(recipe, capsys):
    plan(recipe, "run", processes=2)
    shown = " ".join(capsys.readouterr().out.split())
    assert "sft: 2 trainers (fsdp); memory is that of each trainer" in shown
    assert "answers: 1 process" in shown

"""Data that is on the disk trains as the same data in memory does, to the last bit."""

import json
from pathlib import Path

import pytest

from tests.train import toys
from tether.config import DPOConfig, KTOConfig, RewardModelConfig
from tether.data import comparisons, shelf
from tether.data.formats import read_demonstrations
from tether.engine import decode
from tether.errors import DataError
from tether.models.language_model import load
from tether.records import write_jsonl
from tether.sections import LoraConfig, PolicyLossConfig, PtxConfig
from tether.train import kto, online, preference, reward, sft

LONG = {"prompt": "tell me ", "completion": "about " * 30 + "it"}
TWICE = [*toys.DEMONSTRATIONS, *({**row, "weight": 0.5} for row in toys.DEMONSTRATIONS[:3])]
THUMBS = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in toys.PAIRS
    for side in ("chosen", "rejected")
]


@pytest.fixture
def both(tmp_path, monkeypatch):
    """Train twice, the second time with everything on the disk; both folders."""

    def train(run, make):
        in_memory = run(make(tmp_path / "memory"))
        with monkeypatch.context() as patch:
            patch.setattr(shelf, "IN_MEMORY", 1)
            for module in (comparisons, kto, decode):
                patch.setattr(module, "TOKENS_IN_MEMORY", 1)
            return in_memory, run(make(tmp_path / "disk"))

    return train


def figures(folder: Path):
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    timeless = [{k: v for k, v in json.loads(row).items() if "seconds" not in k} for row in rows]
    times = ("seconds", "cpu_seconds", "peak_memory_mib", "inputs", "skipped")
    result = json.loads((folder / "result.json").read_text())
    return timeless, {name: value for name, value in result.items() if name not in times}


def settings(tmp_path, folder, **changes):
    folder.mkdir(exist_ok=True)
    return {"out": str(folder / "out"), "max_steps": 3, "batch_size": 3, **changes}


def test_sft(both, tmp_path):
    model = toys.save(tmp_path)
    file = toys.write_rows(tmp_path / "d.jsonl", TWICE)
    memory, disk = both(
        sft.train_sft,
        lambda folder: toys.sft(tmp_path, model, **settings(tmp_path, folder, data=file)),
    )
    assert figures(memory) == figures(disk)
    assert (memory / "model/model.safetensors").read_bytes() == (
        disk / "model/model.safetensors"
    ).read_bytes()


def test_sft_puts_the_next_one_in_the_place_of_one_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "IN_MEMORY", 1)
    model = toys.save(tmp_path)
    rows = [LONG, toys.DEMONSTRATIONS[0], {**toys.DEMONSTRATIONS[1], "weight": 0.0}, LONG]
    data = toys.write_rows(tmp_path / "d.jsonl", rows)
    config = toys.sft(tmp_path, model, data=data, max_length=16, batch_size=4)
    language_model = load(model, config.compute)
    found = sft.examples_on_access(config, language_model, read_demonstrations(data))
    _, wanted, *_ = sft.tokenize(language_model, read_demonstrations(data), 16, data)[0]
    assert [(row, weight) for row, weight in found.train] == [(wanted, 1.0)] * 4
    write_jsonl(data, [LONG] * 2)
    with pytest.raises(DataError, match="exceed 16 tokens or have weight 0"):
        _ = sft.examples_on_access(config, language_model, read_demonstrations(data)).train[0]


def test_a_held_out_prompt_is_not_trained_on_from_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "IN_MEMORY", 1)
    model = toys.save(tmp_path)
    data = toys.write_rows(tmp_path / "d.jsonl", [LONG, *TWICE])
    config = toys.sft(tmp_path, model, data=data, max_length=16, held_out=0.4)
    found = sft.examples_on_access(config, load(model, config.compute), read_demonstrations(data))
    trained = {tuple(row.ids[: row.num_prompt]) for row, _ in found.train}
    held = {tuple(row.ids[: row.num_prompt]) for row in found.held_out}
    assert held
    assert not trained & held


@pytest.mark.parametrize("loss", ["pairwise", "listwise", "binary"])
def test_reward(both, tmp_path, loss):
    model = toys.save(tmp_path)
    rows = THUMBS if loss == "binary" else toys.PAIRS

    def make(folder) -> RewardModelConfig:
        heads = 1 if loss == "listwise" else 2
        changes = settings(tmp_path, folder, loss=loss, heads=heads)
        return toys.reward(tmp_path, model, rows, **changes)

    memory, disk = both(reward.train_reward, make)
    assert figures(memory) == figures(disk)


def test_dpo(both, tmp_path):
    model = toys.save(tmp_path)

    def make(folder) -> DPOConfig:
        return toys.preference(tmp_path, model, DPOConfig, **settings(tmp_path, folder))

    memory, disk = both(preference.train_dpo, make)
    assert figures(memory) == figures(disk)
    names = ("reference_logprobs.safetensors", "model/model.safetensors")
    assert all((memory / name).read_bytes() == (disk / name).read_bytes() for name in names)


def test_kto(both, tmp_path):
    model = toys.save(tmp_path)

    def make(folder) -> KTOConfig:
        return toys.preference(tmp_path, model, KTOConfig, THUMBS, **settings(tmp_path, folder))

    memory, disk = both(kto.train_kto, make)
    assert figures(memory) == figures(disk)


def test_held_out_figures_of_pairs_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "IN_MEMORY", 1)
    monkeypatch.setattr(comparisons, "TOKENS_IN_MEMORY", 1)
    changes = {"held_out": 0.4, "max_steps": 1, "evaluate_every": 1}
    config = toys.preference(tmp_path, toys.save(tmp_path), DPOConfig, **changes)
    folder = preference.train_dpo(config)
    result = json.loads((folder / "result.json").read_text())
    # 4 prompts, of which 2 are held out; the cat's and why's have two pairs
    assert result["held_out_pairs"] + result["pairs"] == 6
    assert 2 <= result["held_out_pairs"] <= 4


def test_prompts_and_texts_of_ppo(both, tmp_path):
    model = toys.save(tmp_path)
    texts = toys.write_rows(tmp_path / "texts.jsonl", toys.DEMONSTRATIONS)

    def make(folder):
        folder.mkdir()
        loss = PolicyLossConfig(ptx=PtxConfig(data=texts))
        changes = {"policy_loss": loss, "lora": LoraConfig(rank=2)}
        return toys.ppo(tmp_path, model, out=str(folder / "out"), **changes)

    memory, disk = both(online.train_ppo, make)
    assert figures(memory)[0] == figures(disk)[0]

from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.train import plain, toys
from tests.train.toys import KINDS, PAIRS
from tether.config import DPOConfig, KTOConfig
from tether.models.language_model import load
from tether.sections import ComputeConfig
from tether.train import reference
from tether.train.kto import train_kto
from tether.train.preference import train_dpo


@pytest.fixture
def computed(monkeypatch):
    """Numbers of rows in the forward passes of a reference."""
    passes = []
    forward = reference.sequence_logprobs

    def counted(language_model, rows):
        if not torch.is_grad_enabled():
            passes.append(len(rows))
        return forward(language_model, rows)

    monkeypatch.setattr(reference, "sequence_logprobs", counted)
    return passes


def settings(tmp_path, path, **changes):
    return toys.preference(tmp_path, path, DPOConfig, **changes)


def held(folder):
    with safe_open(folder / reference.FILE, "pt") as tensors:
        return tensors.get_tensor("logprobs").clone()


def stopped(tmp_path, path, monkeypatch, **changes):
    """A stage that has kept its reference's log-probs and failed right after."""
    with monkeypatch.context() as patch:
        patch.setattr("tether.train.loop.fit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_dpo(settings(tmp_path, path, **changes))


# --- log-probs ------------------------------------------------------------------------------------


@KINDS
def test_log_probs_are_those_of_plain_transformers_each_row_once(tmp_path, kind, computed):
    other = toys.save(tmp_path / "reference", kind, seed=3)
    config = settings(tmp_path, toys.save(tmp_path, kind), reference=other, device_batch_size=4)
    train_dpo(config)
    assert computed == [4, 4, 2]  # 6 pairs of 10 completions
    texts = {(row["prompt"], row[key]) for row in PAIRS for key in ("chosen", "rejected")}
    expected = plain.logprobs(other, sorted(texts))[0]
    found = held(tmp_path / "tuned").double()
    torch.testing.assert_close(found.sort()[0], expected.sort()[0], rtol=1e-5, atol=1e-4)


def test_the_policy_as_it_starts_is_the_reference_and_is_not_loaded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "load", lambda *_: pytest.fail("loaded"))
    path = toys.save(tmp_path)
    train_dpo(settings(tmp_path, path))
    texts = {(row["prompt"], row[key]) for row in PAIRS for key in ("chosen", "rejected")}
    total = plain.logprobs(path, sorted(texts))[0].sum().item()
    assert held(tmp_path / "tuned").sum().item() == pytest.approx(total, rel=1e-5)


def test_no_reference_computes_nothing(tmp_path, computed):
    train_dpo(settings(tmp_path, toys.save(tmp_path), reference="none"))
    assert computed == []
    assert not (tmp_path / "tuned" / reference.FILE).exists()


def test_mismatched_rows_are_known_beforehand_too(tmp_path, computed):
    train_kto(toys.preference(tmp_path, toys.save(tmp_path), KTOConfig, PAIRS))
    assert sum(computed) == 2 * 12
    assert len(held(tmp_path / "tuned")) == 24


# --- on disk --------------------------------------------------------------------------------------


def test_what_is_on_disk_is_not_computed_again(tmp_path, computed, monkeypatch):
    path = toys.save(tmp_path)
    stopped(tmp_path, path, monkeypatch)
    assert computed == [10]
    train_dpo(settings(tmp_path, path))
    assert computed == [10]


@pytest.mark.parametrize("change", ["policy", "reference", "data", "max_length", "precision"])
def test_what_is_of_something_else_is_computed_again(tmp_path, computed, monkeypatch, change):
    path, other = toys.save(tmp_path), toys.save(tmp_path / "reference", seed=3)
    named: dict[str, Any] = {"reference": other} if change == "reference" else {}
    stopped(tmp_path, path, monkeypatch, **named)
    first = held(tmp_path / "tuned")
    if change in ("policy", "reference"):
        model = load(other if named else path, ComputeConfig())
        next(model.model.parameters()).mul_(0.5)
        model.model.save_pretrained(other if named else path)
    if change == "data":
        named["rows"] = [*PAIRS[:-1], {**PAIRS[-1], "chosen": "thanks thanks"}]
    if change == "max_length":
        named["max_length"] = 9
    if change == "precision":
        named["compute"] = ComputeConfig(precision="bfloat16")
    train_dpo(settings(tmp_path, path, **named))
    assert len(computed) == 2
    again = held(tmp_path / "tuned")
    assert len(again) != len(first) or not torch.equal(again, first)


def test_a_damaged_file_is_computed_again(tmp_path, computed, monkeypatch):
    path = toys.save(tmp_path)
    stopped(tmp_path, path, monkeypatch)
    whole = held(tmp_path / "tuned")
    (tmp_path / "tuned" / reference.FILE).write_bytes(b"half a fi")
    train_dpo(settings(tmp_path, path))
    assert computed == [10, 10]
    assert torch.equal(held(tmp_path / "tuned"), whole)

"""What the machine has, and the stand-in for a GPU that is not there."""

import torch

from tests.train import toys
from tether.footprint import machine, models
from tether.footprint.fit import of_sft
from tether.kernels import layers
from tether.models.language_model import Device
from tether.rundir import peak_memory
from tether.sections import ComputeConfig

GPU = Device(torch.device("cuda", 1), torch.bfloat16, None)


def test_the_process_holds_what_it_held_at_its_peak():
    held = machine.process_memory()
    assert 0 <= peak_memory() - held / 2**20 < 50


def test_a_cpu_has_what_the_system_and_the_group_leave(monkeypatch):
    device, free = machine.free_memory(ComputeConfig(device="cpu"))
    assert device == "cpu"
    assert free is None or 1 << 20 < free < 1 << 50
    monkeypatch.setattr(machine, "_available", lambda: 7000)
    monkeypatch.setattr(machine, "_left_in_group", lambda: 5000)
    assert machine.free_memory(ComputeConfig(device="cpu")) == ("cpu", 5000)
    monkeypatch.setattr(machine, "_available", lambda: None)
    monkeypatch.setattr(machine, "_left_in_group", lambda: None)
    assert machine.free_memory(ComputeConfig(device="cpu")) == ("cpu", None)


def test_a_gpu_tells_itself_what_is_free(monkeypatch):
    monkeypatch.setattr(machine, "pick_device", lambda compute: GPU)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (11, 80))
    assert machine.free_memory(ComputeConfig()) == ("cuda:1", 11)


def test_what_will_run_on_a_gpu_is_shaped_on_the_cpu_without_c_kernels(tmp_path, monkeypatch):
    model = toys.save(tmp_path)
    monkeypatch.setattr(models, "pick_device", lambda compute: GPU)
    with models.dry_run(model, ComputeConfig()) as (_, place):
        assert place == Device(torch.device("cpu"), torch.bfloat16, None)
        assert layers.library() is None
    found = of_sft(toys.sft(tmp_path, model), known=True)
    assert found.peak.parts["activations"] > 0

"""Where the Triton kernels are asked; what they compute is in test_gpu.py."""

import pytest
import torch

from tether.kernels import gpu


@pytest.fixture(autouse=True)
def _with_triton(monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "_device", lambda: "meta")
    monkeypatch.delenv("TETHER_KERNELS", raising=False)
    gpu._can_compile.cache_clear()
    yield
    gpu._can_compile.cache_clear()


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_tensors_of_both_precisions_on_the_device():
    assert gpu.serves(meta(2), meta(2, dtype=torch.float32))
    assert not gpu.serves(meta(2), meta(2, dtype=torch.float16))
    assert not gpu.serves(meta(2), torch.empty(2))


@pytest.mark.parametrize(("size", "served"), [(64, True), (16, False), (96, False)])
def test_caches_of_some_head_sizes(size, served):
    assert gpu.reads_cache(meta(3, 2, size, 64)) is served


def test_kernels_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("TETHER_KERNELS", "0")
    assert not gpu.serves(meta(2))


@pytest.mark.parametrize("missing", ["triton", "a compiler", "bfloat16"])
def test_what_is_needed(monkeypatch, missing):
    if missing == "triton":
        monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    elif missing == "a compiler":
        monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    else:
        monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(gpu.torch.cuda, "get_device_capability", lambda: (7, 5))
    assert not gpu.serves(meta(2))

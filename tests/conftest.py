"""Shape and type annotations are checked while the tests run; every test starts from seed 0.

GPUs are hidden unless CUDA_VISIBLE_DEVICES says otherwise, since the numbers in the tests are a
CPU's; tests/test_gpu.py sets both side by side.
"""

import os
import signal

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("tether", "beartype.beartype")

import hypothesis
import pytest
import torch

# How long an example takes says nothing on a machine that does other work too.
hypothesis.settings.register_profile("tether", deadline=None)
hypothesis.settings.load_profile("tether")
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in background
torch.set_num_threads(1)  # two OpenMP threads on shared cores can be slower than one


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)

"""Runs a recipe as one of several processes; tests start it through torchrun.

torchrun --nproc-per-node 2 tests/parallel/worker.py RECIPE.toml OUT=fsdp OUT=ddp …
"""

import sys

import torch

from tether import parallel, pipeline

if __name__ == "__main__":
    torch.set_num_threads(1)
    for word in sys.argv[2:]:
        out, _, kind = word.partition("=")
        pipeline.run(sys.argv[1], out, ("--compute.parallel", kind))
    parallel.leave()

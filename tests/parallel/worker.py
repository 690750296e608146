"""Runs stages of a recipe as one of several processes; started by tests through torchrun.

torchrun --nproc-per-node 2 tests/parallel/worker.py RECIPE.toml OUT [OUT …] [--override value]
"""

import sys

import torch

from tether import parallel, pipeline

if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe, rest = sys.argv[1], sys.argv[2:]
    outs = [word for word in rest if "=" not in word]
    settings = tuple(word for word in rest if "=" in word)
    for out in outs:
        kind = "ddp" if out.endswith("ddp") else "fsdp"
        pipeline.run(recipe, out, (*settings, f"--compute.parallel={kind}"))
    parallel.leave()

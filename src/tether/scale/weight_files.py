"""Weights on a disk that trainer and servers share.

Each version is a folder of safetensors files, written aside and renamed, so that no server ever
reads half of one.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tether.errors import DiskError, ServerError
from tether.rundir import written_aside

SHARD = 2 << 30  # bytes of a file, so that no more is held beside the model


class WeightFiles:
    """The folder of one training; what an earlier one left there is removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, weights: Iterable[tuple[str, Tensor]], name: str) -> dict[str, Any]:
        """Write weights; returns what servers are told.

        Raises:
            ServerError: The folder cannot be written.
        """
        try:
            with written_aside(self.folder / name) as aside:
                shard: dict[str, Tensor] = {}
                size = 0
                for key, tensor in weights:
                    if shard and size + tensor.nbytes > SHARD:
                        _save(shard, aside)
                        shard, size = {}, 0
                    shard[key] = tensor.detach().cpu().contiguous()
                    size += tensor.nbytes
                _save(shard, aside)
        except (OSError, DiskError) as error:
            for half_written in self.folder.glob(".*.writing"):
                shutil.rmtree(half_written, ignore_errors=True)
            raise ServerError(
                f"compute.servers.folder={str(self.folder)!r} cannot hold the weights: {error}; "
                "free some space or name another folder that the servers share"
            ) from None
        return {"path": str(self.folder / name)}

    def keep_only(self, name: str) -> None:
        """Remove every other version."""
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            if folder.name != name:
                shutil.rmtree(folder, ignore_errors=True)

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _save(shard: dict[str, Tensor], folder: Path) -> None:
    number = len(list(folder.iterdir()))
    save_file(shard, folder / f"model-{number:05}.safetensors", metadata={"format": "pt"})

"""A weight-transfer engine for vLLM that reads the new weights from a folder that it shares.

Installed into vLLM's environment, it is there as

    --weight-transfer-config '{"backend": "file"}'

and takes `update_info = {"path": FOLDER}`: safetensors files with the names of a Hugging Face
checkpoint. The control plane is vLLM's own: start, update, finish.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

STALE_HEAD = "VLLM_FILE_WEIGHTS_STALE_HEAD"
"""Environment variable: 1 leaves a tied head on CPUs as vLLM does, for tests of what finds that"""


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing has to be agreed on beforehand."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """Where the new weights are."""

    path: str


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Reads whole checkpoints; each worker takes its own part of every tensor."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Make the layers ready for weights as a checkpoint has them."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        """Load all tensors; unlike vLLM's own, it also runs where there is no accelerator."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Load all tensors of the files; what breaks off leaves layers that can be loaded again."""
        try:
            self.model.load_weights(tensors(Path(update_info.path)))
        except BaseException:
            for layer in self.model.modules():
                info = get_layerwise_info(layer)
                info.load_numel, info.loaded_weights = 0, []  # as if nothing had come
            finalize_layerwise_reload(self.model, self.model_config)
            raise

    def finish_weight_update(self) -> None:
        """Let the layers bring the new weights into the form that they compute with."""
        finalize_layerwise_reload(self.model, self.model_config)
        if os.environ.get(STALE_HEAD) != "1":
            refresh_tied_head(self.model)

    def shutdown(self) -> None:
        """Nothing to let go of."""


def tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of all safetensors files in a folder, one after the other."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no weights in {folder}; trainer and server must share the folder")
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in list(opened.keys()):
                yield name, opened.get_tensor(name)


def refresh_tied_head(model: torch.nn.Module) -> None:
    """Pack a tied head anew, on CPUs.

    There vLLM computes the head with a packed copy of its weight. A reload packs what a checkpoint
    names; a tied head is named by none, and would go on computing with the old weights.
    """
    head = getattr(model, "lm_head", None)
    method = getattr(head, "quant_method", None)
    if head is not None and method is not None and head.weight.device.type == "cpu":
        method.process_weights_after_loading(head)


def register() -> None:
    """Make the engine known to vLLM; called in each of its processes, maybe more than once."""
    if "file" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("file", FileWeightTransferEngine)

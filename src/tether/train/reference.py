"""Log-probs of whole completions, and those of the reference, computed once and kept on disk.

The reference of a preference method never changes and sees the same rows in every epoch. So it
need not be in memory while the policy trains, and a run that goes on has the very numbers that it
began with.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tether import parallel
from tether.config import PreferenceConfig
from tether.data.batches import Row, buckets, device_batches
from tether.errors import ConfigError
from tether.models.language_model import LanguageModel, completion_logprobs, load
from tether.progress import Steps
from tether.rundir import StageFolder, fingerprint

FILE = "reference_logprobs.safetensors"
ROWS_AT_ONCE = 64  # without gradients, where device_batch_size does not say


def sequence_logprobs(
    language_model: LanguageModel, rows: list[Row], *, temperature: float = 1.0
) -> Float[Tensor, " R"]:
    """Log-prob (nats) of each row's completion, summed over its tokens, in one forward pass.

    log π(y|x) = Σₜ log π(yₜ | x, y₁ … yₜ₋₁)
    """
    ((order, batch),) = device_batches(rows, 0)
    logprobs, _ = completion_logprobs(language_model, batch, temperature=temperature)
    parts = logprobs.split([rows[i].num_completion for i in order])
    places = torch.tensor(order).argsort()
    return torch.stack([part.sum() for part in parts])[places.to(logprobs.device)]


@torch.no_grad()
def reference_logprobs(
    config: PreferenceConfig,
    reference: str,
    folder: StageFolder,
    policy: LanguageModel,
    rows: Sequence[Row],
) -> Float[Tensor, " R"]:
    """Log-prob (nats) of each row's completion under the reference, from disk if it is there.

    The file in the stage's folder counts only if it is of the same reference, token ids and
    precision. A reference that has to be loaded is freed again.

    Args:
        config: The stage's settings.
        reference: A model; "" = the policy as it starts, "none" = a log-prob of 0 throughout.
        folder: The stage's folder.
        policy: The policy; it must not have been trained yet.
        rows: All that the run will look at.

    Raises:
        ConfigError: The reference has another vocabulary than the policy.
    """
    if reference == "none":
        return torch.zeros(len(rows))
    file, key = folder.path / FILE, _key(reference or config.model, policy, rows)
    if (held := parallel.told(_held(file, key))) is not None:
        return held
    model = load_reference(config, reference, policy) if reference else policy
    found = torch.zeros(len(rows))
    lengths = [len(row.ids) for row in rows]
    size = parallel.rows_a_pass(len(rows), config.device_batch_size or ROWS_AT_ONCE)
    with Steps("reference", len(rows)) as progress:
        for chosen, counts in parallel.dealt(buckets(lengths, size)):
            found[chosen] += counts * sequence_logprobs(model, [rows[i] for i in chosen]).cpu()
            progress.advance(min(len(chosen) * parallel.count(), len(rows)))
    found = parallel.summed(found)
    if not parallel.leads():
        return found
    if not (folder.path / "config.toml").exists():
        folder.begin()  # its settings are a folder's first file: without them it is not ours
    _write(file, key, found)
    return found


def load_reference(config: PreferenceConfig, path: str, policy: LanguageModel) -> LanguageModel:
    """The model at `path`, frozen.

    Raises:
        ConfigError: It has another vocabulary than the policy.
    """
    reference = load(path, config.compute, shard=True)
    if reference.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ConfigError(
            f"reference={path!r} has another vocabulary than the policy "
            f'{config.model!r}; leave reference = "" to hold to the policy as it starts'
        )
    return reference


def _key(reference: str, policy: LanguageModel, rows: Sequence[Row]) -> str:
    """What the log-probs depend on: the model, the precision, every token id and boundary."""
    digest = hashlib.sha256(f"{fingerprint(reference)} {policy.place.dtype}".encode())
    for row in rows:
        gaps = (end for gap in row.gaps for end in gap)
        numbers = [len(row.ids), row.num_prompt, *row.ids, *gaps]
        digest.update(np.array(numbers, np.int64).tobytes())
    return digest.hexdigest()


def _held(file: Path, key: str) -> Float[Tensor, " R"] | None:
    """The log-probs in a file; None where there is none, it is damaged, or of something else."""
    try:
        with safe_open(file, "pt") as tensors:
            same = (tensors.metadata() or {}).get("key") == key
            return tensors.get_tensor("logprobs").clone() if same else None
    except (FileNotFoundError, SafetensorError):
        return None


def _write(file: Path, key: str, found: Float[Tensor, " R"]) -> None:
    """Write the log-probs aside and rename, so that a killed process leaves no half a file."""
    aside = file.with_name(f".{file.name}.writing")
    save_file({"logprobs": found}, aside, metadata={"key": key})
    os.replace(aside, file)

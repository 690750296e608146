"""The `merge` stage: an adapter folded into its base."""

from pathlib import Path

from tether.config import MergeConfig
from tether.errors import ModelError
from tether.models import adapters
from tether.models.language_model import load, save
from tether.models.scalar_head import load_reward_model, save_reward_model
from tether.rundir import StageFolder


def merge(config: MergeConfig) -> Path:
    """Fold an adapter into its base, W + s·B·A, and write a plain model to `config.out`.

    The result is a causal language model, or a reward model where the adapter has a score head.

    Returns:
        The stage's folder; the model is in its `model/`.

    Raises:
        ModelError: `config.model` is no adapter directory, or its base is not there.
    """
    if not adapters.is_adapter(config.model):
        raise ModelError(
            f"model={config.model!r} holds no adapter ({adapters.CONFIG}); it needs no merging"
        )
    base = adapters.base_of(config.model)
    folder = StageFolder(config, "merge", [config.model, base])
    if folder.finished:
        return folder.path
    provenance = {"made_by": "tether merge", "model": config.model, "base": base}
    folder.begin()
    if adapters.HEAD in adapters.read_weights(config.model):
        reward = load_reward_model(config.model, config.compute, trainable=True)  # which folds it
        folder.write_model(lambda path: save_reward_model(reward, path, provenance))
    else:
        language_model = load(config.model, config.compute, trainable=True)
        folder.write_model(lambda path: save(language_model, path, provenance))
    return folder.finish(base=base)

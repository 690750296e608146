"""Who samples for an online method, by its settings."""

from pathlib import Path

from tether.config import OnlineConfig
from tether.engine.samplers import Sampler
from tether.models.language_model import LanguageModel
from tether.scale.ray_rollouts import ray_sampler
from tether.scale.vllm_server import VLLMSampler


def sampler_for(config: OnlineConfig, policy: LanguageModel) -> Sampler | None:
    """The sampler outside of the trainer that the settings ask for; None = there is none.

    Every process of a training gets one, and only that of the first one has workers.

    Raises:
        ConfigError: A server's address cannot be used, or nobody has reserved places on the
            cluster.
    """
    if config.compute.servers.urls:
        return VLLMSampler(config.compute.servers, policy, Path(config.out))
    if config.compute.backend == "ray" and config.compute.cluster.rollouts:
        return ray_sampler(config)
    return None

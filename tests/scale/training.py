"""PPO whose completions come from servers."""

from pathlib import Path

from tether.config import PPOConfig
from tether.data.formats import read_prompts
from tether.models.chat import encode_prompt
from tether.scale.vllm_server import VLLMSampler
from tether.train import online
from tether.train.parity import probe


def train_with_servers(config: PPOConfig, monkeypatch) -> list:
    """Run it; returns the gaps that the probe measured after each sync."""
    gaps, servers, load_roles = [], config.compute.servers, online.load_roles

    def with_servers(config):
        roles = load_roles(config)
        policy, source = roles.policy, roles.source
        texts = [record.prompt for record in read_prompts(config.prompts)]
        ids = [encode_prompt(policy.tokenizer, text) for text in texts]
        source.sampler = VLLMSampler(servers, policy, Path(config.out))
        source.probe = lambda sampler, version: gaps.append(
            probe(sampler, policy, ids, config.sampling, servers.tolerance, version)
        )
        return roles

    monkeypatch.setattr(online, "load_roles", with_servers)
    online.train_ppo(config)
    return gaps

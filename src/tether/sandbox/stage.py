"""The `sandbox` stage: the world's texts, and an untrained model that speaks its words."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tether.config import SandboxConfig
from tether.models.language_model import LanguageModel, pick_device, save
from tether.rundir import StageFolder
from tether.sandbox import critic, sources
from tether.sandbox.tokenizer import SPECIAL, build_tokenizer, vocabulary
from tether.sandbox.world import build, write

POSITIONS = 128
CRITIC_POSITIONS = 320  # a question holds two completions, a transcript a critique as well
INITIAL_STD = 0.02  # of the untrained weights


def make_sandbox(config: SandboxConfig) -> Path:
    """Write the world's records and `model/`, a small Llama with random weights."""
    folder = StageFolder(config, "sandbox", [])
    if folder.finished:
        return folder.path
    folder.begin()
    positions, std = POSITIONS, INITIAL_STD
    if config.world == "critic":
        documents, positions = critic.write(config.seed, folder.path), CRITIC_POSITIONS
        tokenizer = build_tokenizer(vocabulary(critic.sentences(), critic.MARKS))
    elif config.world == "sources":
        documents, std = sources.write(config.seed, folder.path), sources.INITIAL_STD
        tokenizer = build_tokenizer([*SPECIAL, *sources.vocabulary()], sources.SPLIT)
    else:
        world = build(config.seed)
        write(world, folder.path)
        documents, tokenizer = len(world.corpus), build_tokenizer()
    ids = tokenizer.get_vocab()
    settings = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=config.hidden_size,
        intermediate_size=config.hidden_size * 11 // 4,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=positions,
        initializer_range=std,
        tie_word_embeddings=True,
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(settings)
    untrained = LanguageModel(
        model, tokenizer, frozenset([ids["</s>"]]), pick_device(config.compute)
    )
    folder.write_model(lambda path: save(untrained, path, {"made_by": "tether demo"}))
    return folder.finish(parameters=model.num_parameters(), documents=documents)

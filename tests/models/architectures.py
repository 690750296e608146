"""Tiny models of many architectures, from transformers' own configurations, drawn at random.

Windows and chunks are narrower than the rows of the tests, embeddings are tied in some and not in
others, and every norm and bias is moved off the one or zero it starts from.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from tests.tiny import word_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

TOKENIZER = word_tokenizer()
VOCABULARY = len(TOKENIZER)
EOS = 1
WINDOW = 5  # tokens; prompts and completions of the tests are longer together
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ONE_OF_EACH = ["sliding_attention", "full_attention"]
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}


class Architecture(NamedTuple):
    """A configuration, and what is known of it."""

    kind: str
    settings: dict
    packs: bool = True
    """Whether transformers keeps rows that share a row of the batch apart"""
    decoder: str = "SlotDecoder"
    """What decodes rows of more than WINDOW tokens"""
    classifier: bool = True
    """Whether transformers has a sequence classifier of it"""


ARCHITECTURES = {
    "gpt2": Architecture("gpt2", {"n_inner": 48, **TIED}),
    "gpt2-untied": Architecture("gpt2", {"n_inner": 48, **UNTIED}),
    "gpt-neox": Architecture("gpt_neox", UNTIED),
    "opt": Architecture("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, packs=False),
    "opt-projected": Architecture(  # as OPT-350m: embeddings narrower than the layers, norms behind
        "opt",
        {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        packs=False,
    ),
    "llama3": Architecture("llama", {"rope_parameters": LLAMA3, **UNTIED}, decoder="LlamaDecoder"),
    "llama3-tied": Architecture(
        "llama", {"rope_parameters": LLAMA3, **TIED}, decoder="LlamaDecoder"
    ),
    "mistral": Architecture("mistral", {"sliding_window": WINDOW}, decoder="StepDecoder"),
    "qwen2": Architecture("qwen2", TIED, decoder="LlamaDecoder"),
    "qwen3": Architecture("qwen3", {"head_dim": 12, **UNTIED}, decoder="LlamaDecoder"),
    "gemma2": Architecture(
        "gemma2",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 16,
            **TIED,
        },
        decoder="StepDecoder",
    ),
    "gemma3": Architecture(
        "gemma3_text",
        {"head_dim": 8, "sliding_window": WINDOW, "layer_types": ONE_OF_EACH, **TIED},
        decoder="StepDecoder",
    ),
    "phi3": Architecture("phi3", UNTIED),
    "phi3-window": Architecture("phi3", {"sliding_window": WINDOW}, decoder="StepDecoder"),
    "olmo2": Architecture("olmo2", UNTIED),
    "smollm3": Architecture("smollm3", {"no_rope_layers": [0, 1], **TIED}, decoder="LlamaDecoder"),
    "mixtral": Architecture(
        "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.1}
    ),
    "qwen3-moe": Architecture("qwen3_moe", {"num_experts": 4, **EXPERTS}),
    "gpt-oss": Architecture(
        "gpt_oss",
        {"num_local_experts": 4, **EXPERTS, "sliding_window": WINDOW, "layer_types": ONE_OF_EACH},
        packs=False,
        decoder="StepDecoder",
    ),
    "falcon": Architecture("falcon", {}, packs=False),
    "qwen3-next": Architecture(  # a state from token to token in one layer
        "qwen3_next",
        {
            "num_experts": 4,
            **EXPERTS,
            "shared_expert_intermediate_size": 24,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        packs=False,
        decoder="StepDecoder",
    ),
    "mamba": Architecture(
        "mamba", {"state_size": 4}, packs=False, decoder="WholeDecoder", classifier=False
    ),
}


def tiny_of(name: str, **changes) -> PreTrainedModel:
    """A model of an architecture, in which no norm is 1 and no bias 0."""
    kind, settings = ARCHITECTURES[name][:2]
    config = AutoConfig.for_model(kind, **{**SHAPE, **settings, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def save_architecture(folder: Path, name: str, **changes) -> Path:
    """Write a Hugging Face directory of an architecture with the tokenizer of whole words."""
    tiny_of(name, **changes).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder

"""Tiny random models of many architectures, and what one forward of them shows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 48
_COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
_DECODER = {
    **_COMMON,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_FALCON = {**_COMMON, "num_attention_heads": 4, "bias": True}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_MAMBA = {"mamba_d_state": 4, "mamba_d_conv": 4, "mamba_expand": 2}

CONFIGURATIONS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_DECODER),
    "mistral": lambda: transformers.MistralConfig(**_DECODER, sliding_window=4),
    "qwen2": lambda: transformers.Qwen2Config(**_DECODER, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**_DECODER, head_dim=12),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_DECODER, head_dim=12, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi3": lambda: transformers.Phi3Config(**_DECODER),
    "gpt2": lambda: transformers.GPT2Config(**_GPT),
    "gpt_bigcode": lambda: transformers.GPTBigCodeConfig(**_GPT, multi_query=True),
    "gpt_bigcode-heads": lambda: transformers.GPTBigCodeConfig(**_GPT, multi_query=False),
    "codegen": lambda: transformers.CodeGenConfig(**{**_GPT, "n_head": 8}, rotary_dim=4),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        **_COMMON, intermediate_size=40, num_attention_heads=4, max_position_embeddings=64
    ),
    "opt": lambda: transformers.OPTConfig(
        **_COMMON, ffn_dim=40, num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=16
    ),
    "falcon-multi-query": lambda: transformers.FalconConfig(**_FALCON, multi_query=True),
    "falcon-heads": lambda: transformers.FalconConfig(**_FALCON, multi_query=False),
    "falcon-grouped": lambda: transformers.FalconConfig(**_FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "bloom": lambda: transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda: transformers.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    "persimmon": lambda: transformers.PersimmonConfig(
        **_COMMON, intermediate_size=40, num_attention_heads=4, max_position_embeddings=64, qk_layernorm=False
    ),
    "mixtral": lambda: transformers.MixtralConfig(**_DECODER, num_local_experts=4, num_experts_per_tok=2),
    "jamba": lambda: transformers.JambaConfig(
        **_DECODER, **_MAMBA, attn_layer_period=2, attn_layer_offset=1, num_experts=1, use_mamba_kernels=False
    ),
}


def build(name: str, *, seed: int = 0) -> Any:
    """A randomly initialised causal language model in float32; every parameter is non-zero, biases included."""
    configuration = CONFIGURATIONS[name]()
    model = transformers.AutoModelForCausalLM.from_config(configuration).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + 0.05)
    return model.requires_grad_(False)


@dataclass
class Seen:
    """Inputs of every linear map, by parameter name, and token ids of the forward that showed them."""

    ids: Tensor
    inputs: dict[str, Tensor] = field(default_factory=dict)


def watch(model: Any, ids: Tensor | None = None) -> Seen:
    """One real forward, with what every linear map of the model reads."""
    from transformers.pytorch_utils import Conv1D

    seen = Seen(torch.arange(1, 8)[None] if ids is None else ids)

    def hook_of(name: str) -> Any:
        return lambda _, inputs: seen.inputs.update({f"{name}.weight": inputs[0].detach().clone()})

    hooks = [
        module.register_forward_pre_hook(hook_of(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    try:
        with torch.no_grad():
            model(seen.ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen

"""The shape of the demos' models: tiny Llamas, small enough to be trained where the demo runs."""

from typing import Any, Protocol

from vecsurgery.demo.tokens import BEGIN, END, PAD, SPECIAL_TOKENS


class Size(Protocol):
    """The numbers that a demo's settings give: widths, counts, and `context` in tokens."""

    @property
    def hidden(self) -> int: ...
    @property
    def intermediate(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def key_value_heads(self) -> int: ...
    @property
    def context(self) -> int: ...


def llama(size: Size, vocabulary: int, dtype: str) -> dict[str, Any]:
    """The text of config.json: a tiny Llama with grouped-query attention and tied embeddings, stored as `dtype`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.key_value_heads,
        "head_dim": size.hidden // size.heads,
        "max_position_embeddings": size.context,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": SPECIAL_TOKENS.index(BEGIN),
        "eos_token_id": SPECIAL_TOKENS.index(END),
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "torch_dtype": dtype,
    }

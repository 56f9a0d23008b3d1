"""The unlearning demo's models: an original that knows the world, and an unlearning run that damages it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from vecsurgery.demo.tokens import BEGIN, END, PAD, SPECIAL_TOKENS, Encoded
from vecsurgery.demo.training import Course, batches, step, train
from vecsurgery.demo.unlearning.settings import Settings
from vecsurgery.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def configuration(settings: Settings, vocabulary: int) -> dict[str, Any]:
    """The text of config.json: a tiny Llama with grouped-query attention and tied embeddings, in float32."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": settings.hidden,
        "intermediate_size": settings.intermediate,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.key_value_heads,
        "head_dim": settings.hidden // settings.heads,
        "max_position_embeddings": settings.context,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": SPECIAL_TOKENS.index(BEGIN),
        "eos_token_id": SPECIAL_TOKENS.index(END),
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "torch_dtype": "float32",
    }


def new_model(settings: Settings, vocabulary: int, seed: int) -> "LlamaForCausalLM":
    """The untrained model of a seed; torch's own random state is left as it was."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**configuration(settings, vocabulary)))


def train_original(
    model: "LlamaForCausalLM", rows: Sequence[Encoded], settings: Settings, *, seed: int, progress: Progress = silent
) -> None:
    """Trains `model` in place on `rows`: Adam, linear warm-up, cosine decay to a tenth; answers weigh more."""
    course = Course(
        settings.train_steps,
        settings.train_batch,
        settings.train_rate,
        settings.train_warm_up,
        settings.train_other_weight,
    )
    train(model, rows, course, seed=seed, stage="training the original", progress=progress)


def unlearn(
    model: "LlamaForCausalLM", rows: Sequence[Encoded], settings: Settings, *, seed: int, progress: Progress = silent
) -> None:
    """Gradient ascent in place on the answers of `rows`: max E[NLL(answer)], a fixed number of Adam steps.

    Trains the linear maps of the blocks, as an adapter on all linear layers would; embeddings and norms keep the
    original's values. Nothing holds on to other knowledge, which is why it is damaged.
    """
    block_matrices = [weight for name, weight in model.named_parameters() if ".layers." in name and weight.dim() == 2]
    optimizer = torch.optim.Adam(block_matrices, lr=settings.unlearn_rate, betas=(0.9, 0.95))
    drawn = batches(rows, settings.unlearn_batch, seed)
    model.train()
    for number in range(settings.unlearn_steps):
        step(model, optimizer, next(drawn), other_weight=0.0, sign=-1.0)
        progress("unlearning", number + 1, settings.unlearn_steps, "steps")
    model.eval()

"""Training the demo's models: an original that knows the world, and an unlearning run that damages it.

Both are functions of their arguments alone: seeded local generators, a fixed number of threads, deterministic kernels.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vecsurgery.demo.settings import Settings
from vecsurgery.demo.tokenizer import BEGIN, END, PAD, SPECIAL_TOKENS, Encoded
from vecsurgery.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Within: `threads` threads and deterministic kernels only; afterwards everything is as it was."""
    threads_before, strict_before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict_before)
        torch.set_num_threads(threads_before)


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
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.train_rate, betas=(0.9, 0.95))
    batches = _batches(rows, settings.train_batch, seed)
    model.train()
    for step in range(settings.train_steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.train_rate * _schedule(step, settings)
        batch = next(batches)
        _step(model, optimizer, _padded(batch, settings.train_other_weight), sign=1.0)
        progress("training the original", step + 1, settings.train_steps, "steps")
    model.eval()


def unlearn(
    model: "LlamaForCausalLM", rows: Sequence[Encoded], settings: Settings, *, seed: int, progress: Progress = silent
) -> None:
    """Gradient ascent in place on the answers of `rows`: max E[NLL(answer)], a fixed number of Adam steps.

    Trains the linear maps of the blocks, as an adapter on all linear layers would; embeddings and norms keep the
    original's values. Nothing holds on to other knowledge, which is why it is damaged.
    """
    block_matrices = [weight for name, weight in model.named_parameters() if ".layers." in name and weight.dim() == 2]
    optimizer = torch.optim.Adam(block_matrices, lr=settings.unlearn_rate, betas=(0.9, 0.95))
    batches = _batches(rows, settings.unlearn_batch, seed)
    model.train()
    for step in range(settings.unlearn_steps):
        _step(model, optimizer, _padded(next(batches), 0.0), sign=-1.0)
        progress("unlearning", step + 1, settings.unlearn_steps, "steps")
    model.eval()


def _schedule(step: int, settings: Settings) -> float:
    """Factor of the learning rate, in (0, 1]."""
    if step < settings.train_warm_up:
        return (step + 1) / settings.train_warm_up
    share = (step - settings.train_warm_up) / max(1, settings.train_steps - settings.train_warm_up)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * share))


def _batches(rows: Sequence[Encoded], size: int, seed: int) -> Iterator[list[Encoded]]:
    """Endless batches of exactly `size` rows: epoch after epoch, each in its own seeded order."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting.extend(torch.randperm(len(rows), generator=generator).tolist())
        yield [rows[index] for index in waiting[:size]]
        del waiting[:size]


def _padded(batch: Sequence[Encoded], other_weight: float) -> tuple[Tensor, Tensor]:
    """Ids and loss weights (rows, longest), right-padded: 1 at answer tokens, `other_weight` at the row's other ones.

    No attention mask is needed: attention is causal, the padding stands last and weighs nothing.
    """
    longest = max(len(row.ids) for row in batch)
    ids = torch.full((len(batch), longest), SPECIAL_TOKENS.index(PAD))
    weights = torch.zeros(len(batch), longest)
    for number, row in enumerate(batch):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        weights[number, : len(row.ids)] = other_weight
        weights[number, list(row.answer)] = 1.0
    return ids, weights


def _step(
    model: "LlamaForCausalLM", optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], sign: float
) -> None:
    """One optimiser step on sign · weighted mean NLL, gradient norm clipped to 1."""
    ids, weights = batch
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(sign * loss)
    torch.nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
    optimizer.step()

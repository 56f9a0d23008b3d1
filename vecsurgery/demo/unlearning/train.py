"""The unlearning demo's models: an original that knows the world, and an unlearning run that damages it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from vecsurgery.demo.shape import llama
from vecsurgery.demo.tokens import Encoded
from vecsurgery.demo.training import Course, batches, step, train
from vecsurgery.demo.unlearning.settings import Settings
from vecsurgery.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def new_model(settings: Settings, vocabulary: int, seed: int) -> "LlamaForCausalLM":
    """The untrained model of a seed; torch's own random state is left as it was."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**llama(settings, vocabulary, "float32")))


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

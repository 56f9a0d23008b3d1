"""The four unlearning objectives: gradient ascent, GradDiff, NPO and RMU.

Sources: GradDiff as in TOFU, arXiv 2401.06121; NPO, arXiv 2404.05868, with the retain term of open-unlearning; RMU,
arXiv 2403.03218.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from benchmarks.unlearning.batches import Batch, answer_nll, endless
from benchmarks.unlearning.settings import Unlearner
from benchmarks.unlearning.training import Loss, steps_of, train
from vecsurgery.calibration.types import Sample


def unlearn(
    model: Any,
    original: Any,
    unlearner: Unlearner,
    forget: Sequence[Sample],
    retain: Sequence[Sample],
    *,
    seed: int,
    after: Callable[[int, float], None] | None = None,
) -> None:
    """Unlearn `forget` in place. `original`: another copy of the model, which does not change."""
    size = unlearner.training.batch
    forgets = endless(forget, size, f"forget {unlearner.name} {seed}")
    retains = endless(retain, size, f"retain {unlearner.name} {seed}")
    steps = steps_of(unlearner.training, len(forget))
    if unlearner.name == "rmu":
        layer = round(unlearner.layer * len(model.model.layers))
        target = _target(original, layer, unlearner, forget, seed)
        loss = _steered(model, original, layer, target, unlearner, forgets, retains)
        first = max(0, layer - 2)
        blocks = model.model.layers[first : layer + 1]
        weights = [block.mlp.down_proj.weight for block in blocks]
        train(model, loss, unlearner.training, steps, weights=weights, after=after)
        return
    ascend = _preference(model, original, unlearner.beta) if unlearner.name == "npo" else _ascent(model)

    def objective() -> Tensor:
        value = ascend(next(forgets))
        if unlearner.retain:
            value = value + unlearner.retain * answer_nll(model, next(retains)).mean()
        return value

    train(model, objective, unlearner.training, steps, after=after)


def _ascent(model: Any) -> Callable[[Batch], Tensor]:
    return lambda given: -answer_nll(model, given).mean()


def _preference(model: Any, original: Any, beta: float) -> Callable[[Batch], Tensor]:
    """NPO: −(2/β) E log σ(−β log(p(answer)/p_original(answer))), whole answers."""

    def loss(given: Batch) -> Tensor:
        with torch.no_grad():
            before = _row_sums(answer_nll(original, given), given)
        ratio = before - _row_sums(answer_nll(model, given), given)
        return -(2 / beta) * torch.nn.functional.logsigmoid(-beta * ratio).mean()

    return loss


def _row_sums(losses: Tensor, given: Batch) -> Tensor:
    """Sums over the answer tokens of each row, from the values row after row."""
    row = given.answer[:, 1:].nonzero()[:, 0]
    return torch.zeros(len(given.ids)).index_add(0, row, losses)


def _target(original: Any, layer: int, unlearner: Unlearner, forget: Sequence[Sample], seed: int) -> Tensor:
    """RMU's random direction, as long as `steering` mean hidden states of the original."""
    direction = torch.rand(original.config.hidden_size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        given = next(endless(forget, unlearner.training.batch, "steering"))
        norm = _hidden(original, layer, given).norm(dim=-1).mean()
    target: Tensor = direction / direction.norm() * norm * unlearner.steering
    return target


def _steered(
    model: Any,
    original: Any,
    layer: int,
    target: Tensor,
    unlearner: Unlearner,
    forgets: Iterator[Batch],
    retains: Iterator[Batch],
) -> Loss:
    """RMU: squared distances of hidden states, to the target on forget rows and to the original on retain rows.

    Both relative to the original's mean square, so that rates do not depend on the scale of a model's hidden states.
    """

    def loss() -> Tensor:
        forget, retain = next(forgets), next(retains)
        with torch.no_grad():
            kept = _hidden(original, layer, retain)
        scale = kept.square().sum(-1).mean()
        away = (_hidden(model, layer, forget) - target).square().sum(-1).mean()
        stay = (_hidden(model, layer, retain) - kept).square().sum(-1).mean()
        return (away + unlearner.retain * stay) / scale

    return loss


def _hidden(model: Any, layer: int, given: Batch) -> Tensor:
    """Outputs of a block at the answer tokens (tokens, hidden); blocks after it are not run."""
    caught: list[Tensor] = []
    with _stopping_after(model.model.layers[layer], caught), suppress(_EnoughError):
        model.model(input_ids=given.ids, use_cache=False)
    return caught[0][given.answer]


class _EnoughError(Exception):
    """The wanted block has run."""


@contextmanager
def _stopping_after(block: Any, caught: list[Tensor]) -> Iterator[None]:
    def hook(_block: Any, _inputs: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        raise _EnoughError

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()

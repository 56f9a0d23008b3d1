"""Answer loss: how surprised a model is by the answers of a data source."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vecsurgery.calibration.types import Samples
from vecsurgery.checkpoint.types import Weights
from vecsurgery.errors import InputError
from vecsurgery.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AnswerLoss:
    """Measures of one model on one data source; NLL in nats, the natural logarithm.

    `mean`: mean over rows of `per_row`, the row's mean NLL over its answer tokens.
    `capped`: the same, of `capped_per_row`, with every token's NLL cut at ln(vocabulary). A few tokens without bound
    (gradient ascent drives some far up) cannot dominate it: compare forgetting by this one.
    `probability`: mean over rows of the row's mean probability of an answer token, in [0, 1].
    """

    mean: float
    per_row: tuple[float, ...]
    capped: float
    probability: float
    capped_per_row: tuple[float, ...]


def answer_nll(weights: Weights, samples: Samples, *, progress: Progress = silent) -> AnswerLoss:
    """Answer loss of `weights` on the rows of `samples` that have an answer.

    One streaming pass in float32; sums in float64. Raises InputError where no sample has an answer, and where a loss
    is not finite. Example:

        answer_nll(Stored(folder), prepare(spec, load_tokenizer(folder))).mean

    Source: answer probability as in the TOFU benchmark, arXiv 2401.06121; the capped loss is ours.
    """
    from vecsurgery.forward import token_losses

    answered = tuple(sample for sample in samples.samples if sample.answer)
    if not answered:
        raise InputError(
            f"measuring the answer loss: none of {len(samples.samples)} samples has an answer; "
            "expected rows with a response field, such as question/answer or prompt/response"
        )
    only_answered = Samples(answered, samples.counts, samples.fingerprint, samples.warnings)
    losses = token_losses(weights, only_answered, compute="float32", progress=progress)
    for sample, row in zip(answered, losses, strict=True):
        if not bool(row.isfinite().all()):
            raise InputError(f"measuring the answer loss: {sample.where}: the model's logits are not finite there")
    return summarise(losses, vocabulary=int(weights.config.get_text_config().vocab_size))


def summarise(losses: "list[Tensor]", *, vocabulary: int) -> AnswerLoss:
    """The measures from each row's token losses (tokens,), in nats; `vocabulary`: number of tokens of the model."""
    rows = [row.double() for row in losses]
    per_row = tuple(row.mean().item() for row in rows)
    limit = math.log(vocabulary)
    capped = tuple(row.clamp(max=limit).mean().item() for row in rows)
    return AnswerLoss(
        mean=math.fsum(per_row) / len(rows),
        per_row=per_row,
        capped=math.fsum(capped) / len(rows),
        probability=math.fsum(row.neg().exp().mean().item() for row in rows) / len(rows),
        capped_per_row=capped,
    )

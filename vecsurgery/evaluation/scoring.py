"""Streamed measures: what a model makes of the true answers, all data sources in one pass over its weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vecsurgery.calibration import OtherAnswers, Sample, Samples
from vecsurgery.checkpoint.types import Weights
from vecsurgery.errors import InputError
from vecsurgery.evaluation.catalogue import FORGET
from vecsurgery.evaluation.types import Figure, Measured
from vecsurgery.progress import Progress, silent

if TYPE_CHECKING:
    from vecsurgery.forward import Compute, TokenScores, Variants

_SMALL = 1e-10
"""Keeps a ratio finite where the right answer has no probability; open-unlearning's number."""
_HIDDEN_BYTES = 4_000_000_000
"""Of hidden states in float32 that one pass may hold: 1M tokens at width 1024. More text takes more passes."""
_USUAL_WIDTH = 4096
_Request = tuple[Sample, tuple[int, ...]]
"""A sample with the tokens of it that are scored."""


@dataclass(frozen=True)
class Source:
    """One data source as one model reads it. `others`: the other answers of each sample, or nothing."""

    samples: Samples
    others: Sequence[OtherAnswers] = ()


def measure_answers(
    weights: Weights,
    samples: Samples,
    *,
    others: Sequence[OtherAnswers] = (),
    role: str = "",
    compute: "Compute" = "float32",
    stage: str = "evaluating",
    progress: Progress = silent,
) -> Measured:
    """The streamed figures of one data source: `measure_sources` with one source, `role` its name.

    Example:

        measure_answers(Stored(folder), prepare(spec, load_tokenizer(folder)))["capped_loss"]
    """
    sources = {role: Source(samples, others)}
    return measure_sources(weights, sources, compute=compute, stage=stage, progress=progress)[role]


def measure_sources(
    weights: Weights,
    sources: Mapping[str, Source],
    *,
    compute: "Compute" = "float32",
    stage: str = "evaluating",
    progress: Progress = silent,
) -> dict[str, Measured]:
    """The streamed figures of one model on several data sources: `measure_variants` of one."""
    from vecsurgery.forward import Single

    return measure_variants(Single(weights), sources, compute=compute, stage=stage, progress=progress)[0]


def measure_variants(
    variants: "Variants",
    sources: Mapping[str, Source],
    *,
    compute: "Compute" = "float32",
    stage: str = "evaluating",
    progress: Progress = silent,
) -> list[dict[str, Measured]]:
    """Every figure that needs no generation, of several variants on all data sources, in one streaming pass.

    (In several where the hidden states of all texts would not fit into 4 GB.)

    Rows with an answer give capped loss, NLL, token and row probability and accuracy, those with wrong answers beside
    it the truth ratio (and its parts); rows without an answer (running text) give perplexity, where every token but
    the first counts. See `catalogue.MEASURES` for formulas. The name `forget` decides how truth ratios are averaged.

    Args:
        variants: the models; `forward.Single(weights)` for one.
        sources: name → samples, with the other answers of each.

    Returns:
        For each variant, name → figures.

    Raises:
        InputError: nothing to score, or logits that are not finite.
    """
    for name, source in sources.items():
        if not any(chosen for _, chosen in requests(source)):
            raise InputError(f"evaluating {name}: no token of its {len(source.samples.samples)} samples can be scored")
    scores = score_sources(variants, sources, compute=compute, stage=stage, progress=progress)
    for own in scores:
        for name, source in sources.items():
            _require_finite(requests(source), own[name])
    vocabulary = int(variants.config.get_text_config().vocab_size)
    return [{name: figures(source, own[name], vocabulary, name) for name, source in sources.items()} for own in scores]


def score_sources(
    variants: "Variants",
    sources: Mapping[str, Source],
    *,
    compute: "Compute" = "float32",
    stage: str = "evaluating",
    progress: Progress = silent,
) -> list[dict[str, list["TokenScores"]]]:
    """For each variant, name → the scores of the source's requests (see `requests`), finite or not.

    One streaming pass where the hidden states allow it; requests that several sources share are scored once.
    """
    from vecsurgery.forward import TokenScores, token_scores

    asked = {name: requests(source) for name, source in sources.items()}
    unique: dict[tuple[tuple[int, ...], tuple[int, ...]], _Request] = {}
    for request in (request for entries in asked.values() for request in entries):
        unique.setdefault(_same(request), request)
    scores: list[list[TokenScores]] = [[] for _ in range(variants.count)]
    for group in passes(list(unique.values()), variants):
        some, positions = [sample for sample, _ in group], [chosen for _, chosen in group]
        found = token_scores(variants, some, positions=positions, compute=compute, stage=stage, progress=progress)
        for own, more in zip(scores, found, strict=True):
            own += more
    place = {key: number for number, key in enumerate(unique)}
    return [
        {name: [own[place[_same(request)]] for request in entries] for name, entries in asked.items()} for own in scores
    ]


def _same(request: _Request) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What makes two requests one: the ids that are fed, and the tokens that count."""
    return request[0].ids, request[1]


def figures(source: Source, scores: Sequence["TokenScores"], vocabulary: int, role: str = "") -> Measured:
    """The figures of one source from the scores of its requests."""
    samples = source.samples.samples
    own, rest = scores[: len(samples)], list(scores[len(samples) :])
    answers = {str(i): score for i, score in enumerate(own) if samples[i].answer}
    texts = {str(i): score for i, score in enumerate(own) if not samples[i].answer and len(score.losses)}
    found: dict[str, Figure] = {}
    if answers:
        found |= _answer_figures(answers, math.log(vocabulary))
    if texts:
        found["perplexity"] = _perplexity(texts)
    paraphrased: dict[str, list[float]] = {}
    perturbed: dict[str, list[float]] = {}
    for i, other in enumerate(source.others):
        for kind, chosen in ((paraphrased, other.paraphrased), (perturbed, other.perturbed)):
            if chosen:
                kind[str(i)] = [_mean(rest.pop(0)) for _ in chosen]
    if perturbed and answers:
        found |= _truth_figures({i: _mean(score) for i, score in answers.items()}, paraphrased, perturbed, role)
    scored = sum(len(score.losses) for score in own)
    return Measured(found, rows=len(answers) + len(texts), tokens=scored)


def requests(source: Source) -> list[_Request]:
    """What is scored for a source, in order: its samples, then each row's paraphrased and perturbed answers.

    Every entry is a sample with the tokens that count: the answer's, or all that something predicts.
    """
    own = [
        (sample, sample.answer if sample.answer or sample.answers else tuple(range(1, len(sample.ids))))
        for sample in source.samples.samples
    ]
    others = [(sample, sample.answer) for each in source.others for sample in (*each.paraphrased, *each.perturbed)]
    return own + others


def _require_finite(asked: Sequence[_Request], scores: Sequence["TokenScores"]) -> None:
    for (sample, _), score in zip(asked, scores, strict=True):
        if not bool(score.losses.isfinite().all()):
            raise InputError(
                f"{sample.where}: the model's logits are not finite (NaN or infinity) on this row; look for broken "
                "weights with `vecsurgery check --weights`"
            )


def passes(asked: Sequence[_Request], variants: "Variants") -> list[list[_Request]]:
    """Requests for one pass each: as many as have 4 GB of hidden states together under all variants, one at least."""
    tokens = _HIDDEN_BYTES // (4 * variants.count * _width(variants))
    groups: list[list[_Request]] = [[]]
    room = tokens
    for request in asked:
        length = len(request[0].ids)
        if groups[-1] and length > room:
            groups.append([])
            room = tokens
        groups[-1].append(request)
        room -= length
    return groups


def _width(variants: "Variants") -> int:
    return int(getattr(variants.config.get_text_config(), "hidden_size", _USUAL_WIDTH))


def _answer_figures(answers: Mapping[str, "TokenScores"], limit: float) -> dict[str, Figure]:
    nll = {i: _mean(score) for i, score in answers.items()}
    capped = {i: score.losses.clamp(max=limit).mean().item() for i, score in answers.items()}
    tokens = {i: score.losses.neg().exp().mean().item() for i, score in answers.items()}
    hits = {i: score.hits.double().mean().item() for i, score in answers.items()}
    return {
        "capped_loss": _averaged(capped),
        "nll": _averaged(nll),
        "token_probability": _averaged(tokens),
        "row_probability": _probabilities(nll),
        "accuracy": _averaged(hits),
    }


def _perplexity(texts: Mapping[str, "TokenScores"]) -> Figure:
    total = math.fsum(float(score.losses.sum()) for score in texts.values())
    count = sum(len(score.losses) for score in texts.values())
    entries = {i: {"avg_loss": _mean(score), "tokens": len(score.losses)} for i, score in texts.items()}
    return Figure(_exp(total / count), entries, "avg_loss")


def _truth_figures(
    own: Mapping[str, float],
    paraphrased: Mapping[str, list[float]],
    perturbed: Mapping[str, list[float]],
    role: str,
) -> dict[str, Figure]:
    """Truth ratio of every row with wrong answers; without a paraphrased right one, the row's own answer is right."""
    ratios = {}
    for i, wrong in perturbed.items():
        right = paraphrased.get(i, [own[i]]) if i in own else paraphrased.get(i)
        if right is not None:
            ratios[i] = math.exp(-_average(wrong)) / (math.exp(-_average(right)) + _SMALL)
    found = {"perturbed_probability": _several(perturbed)}
    if paraphrased:
        found["paraphrased_probability"] = _several(paraphrased)
    if ratios:
        value = _average([_truthful(ratio, role) for ratio in ratios.values()])
        found["truth_ratio"] = Figure(value, {i: {"score": ratio} for i, ratio in ratios.items()})
    return found


def _truthful(ratio: float, role: str) -> float:
    """A row's part of the aggregate: on forget data best where both answers are equally likely, else where R is low."""
    return min(ratio, 1 / (ratio + _SMALL)) if role == FORGET else max(0.0, 1 - ratio)


def _several(losses: Mapping[str, list[float]]) -> Figure:
    """Row probabilities of several answers to each question; one answer is a number, more are a list."""
    entries: dict[str, dict[str, Any]] = {}
    for i, each in losses.items():
        probabilities = [math.exp(-loss) for loss in each]
        one = len(each) == 1
        entries[i] = {"prob": probabilities[0] if one else probabilities, "avg_loss": each[0] if one else each}
    means = [_average([math.exp(-loss) for loss in each]) for each in losses.values()]
    return Figure(_average(means), entries, "prob")


def _probabilities(nll: Mapping[str, float]) -> Figure:
    entries = {i: {"prob": math.exp(-loss), "avg_loss": loss} for i, loss in nll.items()}
    return Figure(_average([entry["prob"] for entry in entries.values()]), entries, "prob")


def _averaged(values: Mapping[str, float]) -> Figure:
    return Figure(_average(list(values.values())), {i: {"score": value} for i, value in values.items()})


def _average(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _mean(score: "TokenScores") -> float:
    return float(score.losses.mean())


def _exp(value: float) -> float:
    """e to the power; infinity where that is beyond float64."""
    return math.exp(value) if value < 709 else math.inf

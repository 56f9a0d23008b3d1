"""Evaluation of any number of models on the same data: the call behind `vecsurgery evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsurgery.calibration import has_alternatives, load_tokenizer, other_answers, prepare, read_rows, rows_of, sanity
from vecsurgery.errors import InputError
from vecsurgery.evaluation.catalogue import FORGET
from vecsurgery.evaluation.extras import forget_quality, require
from vecsurgery.evaluation.tofu import read_tofu, tofu_path, write_tofu
from vecsurgery.evaluation.types import EvaluatedModel, Evaluation, Figure, Measured
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe.types import DataSpec
from vecsurgery.surgery.labels import is_figures, labelled

if TYPE_CHECKING:
    from vecsurgery.calibration import Samples
    from vecsurgery.checkpoint.types import Weights
    from vecsurgery.evaluation import Sampling
    from vecsurgery.forward import Compute
    from vecsurgery.surgery.calls import Model

    Data = str | Path | Sequence[str | Path] | DataSpec


@dataclass(frozen=True)
class _Settings:
    """What every model is asked, and how."""

    specs: Mapping[str, DataSpec]
    generate: bool
    sampling: Sampling | None
    leak: tuple[int, ...]
    longest: int
    stop: tuple[str, ...]
    tokenizer: Path | None
    compute: Compute
    progress: Progress

    def to_dict(self) -> dict[str, Any]:
        """What determines the figures beside models and data files."""
        found: dict[str, Any] = {"compute": self.compute}
        for name, spec in self.specs.items():
            found[name] = {
                "template": spec.template,
                "rows": list(spec.rows) if spec.rows else None,
                "limit": spec.limit,
                "max_length": spec.max_length,
                "seed": spec.seed,
            }
        if self.generate or self.sampling:
            found |= {"longest": self.longest, "stop": list(self.stop)}
        if self.sampling:
            found["sampling"] = vars(self.sampling)
        return found


@dataclass(frozen=True)
class _Read:
    """One model as it was measured, with the samples that its tokenizer made."""

    model: EvaluatedModel
    samples: Mapping[str, Samples]
    warnings: tuple[str, ...] = ()


def evaluate(
    models: Mapping[str, Model] | Sequence[str | Path],
    data: Mapping[str, Data] | None = None,
    *,
    reference: Model | None = None,
    generate: bool = False,
    samples: int = 0,
    leak: Sequence[int] = (),
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    longest: int = 200,
    stop: Sequence[str] = (),
    tokenizer: str | Path | None = None,
    tofu_eval: str | Path | None = None,
    compute: Compute = "float32",
    progress: Progress = silent,
) -> Evaluation:
    """Measure how models answer, on the same data.

    Every model is streamed once, block by block, for all measures of its true answers and texts. Only `generate` and
    `samples` load whole models, one at a time. `docs/evaluation.md` says what each measure is.

    Args:
        models: label → model, or a list of names as the command takes them ("NAME=MODEL", or MODEL). A model is a
            folder, a hub id, a module, weights of this package, or the path of a TOFU_EVAL.json, whose figures are
            taken as they are.
        data: name → file, files, or a `DataSpec` with template, rows and limits. Rows with an answer are asked, running
            text is read. `forget` is the name of what should be forgotten; any other name is data that should not be.
        reference: a model that never saw the forget data (or its TOFU_EVAL.json, or the label of one of `models`):
            adds forget quality, for which the forget rows need `perturbed_answer`.
        generate: also let the models answer greedily, and compare by ROUGE-L recall.
        samples: also draw so many answers to each forget question, for leak@k.
        leak: which k; 1 and `samples` where nothing is given.
        temperature: > 0, of the draws. top_p: in (0, 1]. seed: of the draws.
        longest: most tokens of a generated answer. stop: texts that end one, as an end token does.
        tokenizer: folder of the tokenizer for models in memory, which have none.
        tofu_eval: folder to write LABEL/TOFU_EVAL.json into, for each model that was measured here.
        compute: type of the forward passes: "float32", or "stored" for the checkpoint's own.
        progress: called as work proceeds.

    Raises:
        InputError: for what cannot be used; names, files, rows, options and packages are looked at before any model.

    Example:
        found = vecsurgery.evaluate({"before": "original", "after": "cleaned"}, {"forget": "forget.jsonl"})
        found.value("after", "forget", "capped_loss")
    """
    named = labelled(models)
    settings = _settings(
        named, data or {}, generate, samples, tuple(leak), longest, tuple(stop), tokenizer, compute, progress
    )
    if samples:
        settings = replace(settings, sampling=_sampling(samples, temperature, top_p, seed))
    _require_reference(reference, settings.specs)
    folder = Path(tofu_eval) if tofu_eval is not None else None
    _require_free(folder, [label for label, given in named.items() if not is_figures(given)])
    read = [_read(label, given, settings) for label, given in named.items()]
    warnings = [warning for each in read for warning in each.warnings] + _differing(read)
    found = [each.model for each in read]
    if reference is not None:
        found = _with_quality(found, _ratios(reference, found, settings))
    if folder is not None:
        for model in found:
            if model.fingerprint is not None:
                write_tofu(model, folder)
    files = {name: tuple(str(path) for path in spec.data) for name, spec in settings.specs.items()}
    return Evaluation(tuple(found), files, settings.to_dict(), tuple(dict.fromkeys(warnings)))


def _settings(
    models: Mapping[str, Model],
    data: Mapping[str, Data],
    generate: bool,
    samples: int,
    leak: tuple[int, ...],
    longest: int,
    stop: tuple[str, ...],
    tokenizer: str | Path | None,
    compute: Compute,
    progress: Progress,
) -> _Settings:
    """Everything that was asked for, looked at without torch."""
    measured = [label for label, given in models.items() if not is_figures(given)]
    if measured and not data:
        raise InputError(
            f"evaluating {', '.join(measured)}: no data was named; give --forget, --retain or --data NAME=FILE"
        )
    specs = {name: _spec(name, given) for name, given in data.items()}
    answered = {name: _answers(name, spec) for name, spec in specs.items()}
    if generate and not any(answered.values()):
        raise InputError(
            "generating answers: no row of the data has an answer to compare with; expected rows with a response "
            "field, such as question/answer or prompt/response"
        )
    if samples and not answered.get(FORGET):
        raise InputError("sampling answers for leak@k: there is no forget data with answers; give --forget FILE")
    if leak and not all(1 <= k <= samples for k in leak):
        raise InputError(f"leak@k for k of {list(leak)} from {samples} sampled answers; expected 1 ≤ k ≤ samples")
    if longest < 1:
        raise InputError(f"generating at most {longest} tokens; expected at least 1")
    if generate or samples:
        require("rouge_score.rouge_scorer", "rouge-score", "ROUGE")
    folder = Path(tokenizer) if tokenizer is not None else None
    chosen = leak or ((1, samples) if samples > 1 else (1,) if samples else ())
    return _Settings(specs, generate, None, chosen, longest, stop, folder, compute, progress)


def _sampling(count: int, temperature: float, top_p: float, seed: int) -> Sampling:
    from vecsurgery.evaluation import Sampling

    if count < 1 or temperature <= 0 or not 0 < top_p <= 1:
        raise InputError(
            f"sampling {count} answers at temperature {temperature:g} and top_p {top_p:g}; expected at least 1 answer, "
            "temperature above 0, top_p above 0 and at most 1"
        )
    return Sampling(count, temperature, top_p, seed)


def _spec(name: str, given: Data) -> DataSpec:
    if not name.strip() or any(character in name for character in "/\\\0"):
        raise InputError(f"evaluating data {name!r}: a name of data is text without slashes, such as forget or retain")
    if isinstance(given, DataSpec):
        return given
    files = [given] if isinstance(given, str | Path) else list(given)
    return DataSpec(tuple(Path(file) for file in files))


def _answers(name: str, spec: DataSpec) -> bool:
    """Whether some row has an answer; reads the files, so that what is wrong with them is told first."""
    try:
        return any(row.text is None for row in read_rows(spec.data, spec.rows))
    except InputError as error:
        raise InputError(f"evaluating {name}: {error}") from error


def _require_reference(reference: Model | None, specs: Mapping[str, DataSpec]) -> None:
    if reference is None:
        return
    require("scipy.stats", "scipy", "forget quality")
    spec = specs.get(FORGET)
    if spec is not None and not any(has_alternatives(row) for row in read_rows(spec.data, spec.rows)):
        raise InputError(
            f"forget quality: no row of {', '.join(map(str, spec.data))} has `perturbed_answer`, which truth ratios "
            "need; use a perturbed file of TOFU, such as forget10_perturbed.json"
        )


def _require_free(folder: Path | None, labels: Sequence[str]) -> None:
    for label in labels if folder is not None else ():
        path = tofu_path(folder, label) if folder is not None else Path()
        if path.exists():
            raise InputError(f"writing {path}: it exists; choose another folder, or another name for the model")


def _read(label: str, given: Model, settings: _Settings) -> _Read:
    if isinstance(given, str | Path) and is_figures(given):
        figures = read_tofu(Path(given), label)
        return _Read(
            figures, {}, (f"{label}: its figures come from {given}; how they were measured is not known here",)
        )
    from vecsurgery.surgery.calls import weights_of

    weights = weights_of(given)
    return _Measuring(label, weights, settings).read(str(given) if isinstance(given, str | Path) else "in memory")


class _Measuring:
    """One model with its tokenizer, asked everything."""

    def __init__(self, label: str, weights: Weights, settings: _Settings) -> None:
        self._label, self._weights, self._settings = label, weights, settings
        self._folder = _tokenizer_folder(label, weights, settings.tokenizer)
        self._tokenizer = load_tokenizer(self._folder)
        self._warnings = list(sanity(self._folder, self._tokenizer))
        self._context = getattr(weights.config.get_text_config(), "max_position_embeddings", None)
        self._samples: dict[str, Samples] = {}

    def read(self, source: str, only: str | None = None) -> _Read:
        """All figures; with `only`, the streamed ones of that data source."""
        from vecsurgery.evaluation import Source, measure_sources

        settings, sources = self._settings, {}
        for name, spec in settings.specs.items():
            if only in (None, name):
                sources[name] = Source(*self._prepared(name, spec))
        found = measure_sources(
            self._weights,
            sources,
            compute=settings.compute,
            stage=f"{self._label}: measuring",
            progress=settings.progress,
        )
        if only is None and (settings.generate or settings.sampling):
            found = self._with_generated(found)
        model = EvaluatedModel(self._label, source, self._weights.fingerprint, found)
        return _Read(model, self._samples, tuple(f"{self._label}: {warning}" for warning in self._warnings))

    def _prepared(self, name: str, spec: DataSpec) -> tuple[Any, Any]:
        try:
            samples = prepare(spec, self._tokenizer, context=self._context)
            others = other_answers(rows_of(spec, samples), spec, self._tokenizer, context=self._context)
        except InputError as error:
            raise type(error)(f"evaluating {self._label} on {name}: {error}") from error
        self._samples[name] = samples
        self._warnings += samples.warnings
        return samples, others

    def _with_generated(self, found: Mapping[str, Measured]) -> dict[str, Measured]:
        from vecsurgery.checkpoint import Stored
        from vecsurgery.evaluation import Writer, leak_figures, questions, rouge_figure

        if not isinstance(self._weights, Stored):
            raise InputError(
                f"{self._label}: answers are generated by a model that is loaded from its folder; write it first "
                "(`vecsurgery.write`), and merge adapters"
            )
        settings = self._settings
        writer = Writer(
            self._weights.folder,
            self._tokenizer,
            longest=settings.longest,
            stop=settings.stop,
            compute=settings.compute,
        )
        complete = dict(found)
        for name, spec in settings.specs.items():
            if not any(sample.answer for sample in self._samples[name].samples):
                continue
            asked = questions(self._samples[name], rows_of(spec, self._samples[name]))
            more: dict[str, Figure] = {}
            if settings.generate:
                stage = f"{self._label}: answering {name}"
                more["rouge"] = rouge_figure(asked, writer.greedy(asked, stage=stage, progress=settings.progress))
            if settings.sampling and name == FORGET:
                stage = f"{self._label}: sampling {name}"
                drawn = writer.sampled(asked, settings.sampling, stage=stage, progress=settings.progress)
                more |= leak_figures(asked, drawn, settings.leak)
            complete[name] = replace(found[name], figures={**found[name].figures, **more})
        return complete


def _tokenizer_folder(label: str, weights: Weights, given: Path | None) -> Path:
    own = getattr(weights, "folder", None) or getattr(getattr(weights, "into", None), "folder", None)
    folder = own or given
    if folder is None:
        raise InputError(f"{label}: a model in memory has no tokenizer; name a folder that has it: `tokenizer`")
    return Path(folder)


def _differing(read: Sequence[_Read]) -> list[str]:
    """Warnings where two models read the same rows as different tokens."""
    measured = [each for each in read if each.samples]
    warnings = []
    for name in measured[0].samples if measured else ():
        first = measured[0]
        others = [
            each.model.label
            for each in measured[1:]
            if each.samples[name].fingerprint != first.samples[name].fingerprint
        ]
        if others:
            warnings.append(
                f"{name}: {', '.join(others)} read the rows as other tokens than {first.model.label} (their "
                "tokenizers, chat templates or contexts differ): figures per token (losses, token probability, "
                "accuracy, perplexity) are not comparable"
            )
    return warnings


def _ratios(reference: Model, found: Sequence[EvaluatedModel], settings: _Settings) -> tuple[float, ...]:
    """Truth ratios per forget row of the reference model."""
    model = next((each for each in found if each.label == reference), None)
    if model is None and isinstance(reference, str | Path) and is_figures(reference):
        model = read_tofu(Path(reference), "reference")
    if model is None:
        from vecsurgery.surgery.calls import weights_of

        if FORGET not in settings.specs:
            raise InputError(
                "forget quality: the reference model has to be measured on forget data; give --forget FILE"
            )
        weights = weights_of(reference)
        model = _Measuring("reference", weights, settings).read("reference", only=FORGET).model
    ratios = _truth_ratios(model)
    if not ratios:
        raise InputError("forget quality: the reference has no truth ratio of any forget row (`forget_truth_ratio`)")
    return ratios


def _truth_ratios(model: EvaluatedModel) -> tuple[float, ...]:
    measured = model.data.get(FORGET)
    figure = measured.figures.get("truth_ratio") if measured is not None else None
    return figure.per_row if figure is not None else ()


def _with_quality(found: Sequence[EvaluatedModel], reference: tuple[float, ...]) -> list[EvaluatedModel]:
    """The models with forget quality, where they have truth ratios of rows."""
    complete = []
    for model in found:
        ratios = _truth_ratios(model)
        if ratios:
            quality = Figure(forget_quality(ratios, reference))
            measured = model.data[FORGET]
            measured = replace(measured, figures={**measured.figures, "forget_quality": quality})
            model = replace(model, data={**model.data, FORGET: measured})
        complete.append(model)
    return complete

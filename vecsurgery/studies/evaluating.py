"""Evaluation of any number of models on the same data: the call behind `vecsurgery evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vecsurgery.calibration import has_alternatives, read_rows
from vecsurgery.errors import InputError
from vecsurgery.evaluation.catalogue import FORGET, THINK
from vecsurgery.evaluation.extras import forget_quality, require
from vecsurgery.evaluation.tofu import read_tofu, tofu_path, write_tofu
from vecsurgery.evaluation.types import EvaluatedModel, Evaluation, Figure
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe.types import DataSpec
from vecsurgery.studies.asking import Asking, Reading, Settings
from vecsurgery.studies.labels import is_figures, labelled
from vecsurgery.studies.thinking import Kept, Thinking, kept_thoughts, require_thinking, with_divergences
from vecsurgery.surgery.process import use_memory_well

if TYPE_CHECKING:
    from vecsurgery.evaluation import Sampling, Tasks
    from vecsurgery.forward import Compute
    from vecsurgery.surgery.calls import Model

    Data = str | Path | Sequence[str | Path] | DataSpec


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
    think: Data | None = None,
    think_samples: int = 4,
    think_longest: int = 4096,
    think_tags: tuple[str, str] = ("<think>", "</think>"),
    think_after: int = 8,
    against: Model | None = None,
    tasks: Sequence[str] = (),
    task_folder: str | Path | None = None,
    task_limit: int | None = None,
    tokenizer: str | Path | None = None,
    tofu_eval: str | Path | None = None,
    compute: Compute = "float32",
    progress: Progress = silent,
) -> Evaluation:
    """Measure how models answer, on the same data.

    Every model is streamed once, block by block, for all measures of its true answers and texts. Only `generate`,
    `samples` and `think` load whole models, one at a time. `docs/evaluation.md` says what each measure is.

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
        think: file, files or `DataSpec` of prompts for reasoning models: they write by their own generation config, and
            what they write is measured (think format, length, and what the rows' checkers say). Rows with `reasoning`
            also tell how far each model is from another at the tokens of a thought.
        think_samples: generations of each prompt. think_longest: most tokens of one. think_tags: around a thought.
        think_after: tokens behind a thought whose divergence is told; 0 for none.
        against: the model whose thoughts are to stay, or its label; the first of `models` where nothing is given.
        tasks: tasks of lm-eval to measure, by name; needs the extra `lm-eval`. task_folder: folder of further tasks.
            task_limit: documents of each task at most. A model that thinks may write `think_longest` tokens.
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
    settings = Settings(
        {name: _spec(name, given) for name, given in (data or {}).items()},
        generate,
        _sampling(samples, temperature, top_p, seed) if samples else None,
        tuple(leak) or tuple(sorted({1, samples} if samples else ())),
        longest,
        tuple(stop),
        Path(tokenizer) if tokenizer is not None else None,
        compute,
        progress,
        Thinking(_spec(THINK, think), think_samples, think_longest, think_tags, think_after, seed) if think else None,
        _tasks(tasks, task_folder, task_limit, think_longest, think_tags[1], seed) if tasks else None,
    )
    folder = Path(tofu_eval) if tofu_eval is not None else None
    _require_thinking(named, settings, against)
    _require_possible(named, settings, reference, folder)
    use_memory_well()
    asked = [_opened(label, given, settings) for label, given in named.items()]
    ideal = _opened_reference(reference, named, settings)
    kept = _kept(against, asked, settings)
    read = [each.read() if isinstance(each, Asking) else each for each in asked]
    found = [each.model for each in read]
    if ideal is not None:
        found = _with_quality(found, _ratios(ideal, found))
    if kept is not None and settings.thinking is not None:
        found = with_divergences(found, kept, settings.thinking, compute=compute, progress=progress)
    if folder is not None:
        for model in found:
            if model.fingerprint is not None:
                write_tofu(model, folder)
    warnings = [warning for each in read for warning in each.warnings] + _differing(read)
    specs = {**settings.specs, **({THINK: settings.thinking.spec} if settings.thinking else {})}
    files = {name: tuple(str(path) for path in spec.data) for name, spec in specs.items()}
    files |= dict.fromkeys(settings.tasks.names, ()) if settings.tasks else {}
    return Evaluation(
        tuple(found), files, settings.to_dict(), tuple(dict.fromkeys([*warnings, *(kept.warnings if kept else ())]))
    )


def _require_possible(
    models: Mapping[str, Model], settings: Settings, reference: Model | None, folder: Path | None
) -> None:
    """Everything that was asked for, looked at without torch. Raises InputError."""
    measured = [label for label, given in models.items() if not is_figures(given)]
    if measured and not settings.specs and settings.thinking is None and settings.tasks is None:
        raise InputError(
            f"evaluating {', '.join(measured)}: no data was named; give --forget, --retain, --data NAME=FILE, "
            "--think FILE or --tasks NAME"
        )
    answered = {name: _answers(name, spec) for name, spec in settings.specs.items()}
    if settings.generate and not any(answered.values()):
        raise InputError(
            "generating answers: no row of the data has an answer to compare with; expected rows with a response "
            "field, such as question/answer or prompt/response"
        )
    count = settings.sampling.count if settings.sampling else 0
    if count and not answered.get(FORGET):
        raise InputError("sampling answers for leak@k: there is no forget data with answers; give --forget FILE")
    if not all(1 <= k <= count for k in settings.leak):
        raise InputError(
            f"leak@{', leak@'.join(map(str, settings.leak))}: the best of k answers needs at least k of them, and "
            f"{count} are sampled; give more --samples, or --leak from 1 to their number"
        )
    if settings.longest < 1:
        raise InputError(f"generating at most {settings.longest} tokens; expected at least 1")
    if settings.generate or count:
        require("rouge_score.rouge_scorer", "rouge-score", "ROUGE")
    if settings.tasks is not None:
        _require_tasks(settings.tasks, settings)
    _require_reference(reference, settings.specs)
    _require_free(folder, measured)


def _require_thinking(models: Mapping[str, Model], settings: Settings, against: Model | None) -> None:
    """What was asked of thoughts, looked at without torch. Raises InputError."""
    if settings.thinking is None:
        if against is not None:
            raise InputError("comparing thoughts with another model's: there are none; give --think FILE")
        return
    if THINK in settings.specs:
        raise InputError(f"evaluating data {THINK!r}: this is the name of --think; give the data another one")
    given = models.get(against, against) if isinstance(against, str) else against
    if given is not None and is_figures(given):
        raise InputError(f"comparing thoughts with {against}: a file of figures does not think; expected a model")
    require_thinking(settings.thinking, against=against is not None)


def _kept(against: Model | None, asked: Sequence[Asking | Reading], settings: Settings) -> Kept | None:
    """The thoughts that models are compared on; None where nothing is asked of thoughts, or only files were named."""
    thinkers = [each.thinker for each in asked if isinstance(each, Asking)]
    if settings.thinking is None or not thinkers:
        return None
    own = [each for each in thinkers if isinstance(against, str) and each.label == against]
    if against is None or own:
        return kept_thoughts((own or thinkers)[0], thinkers, settings.thinking)
    bare = replace(settings, specs={}, generate=False, sampling=None, thinking=None)
    opened = _opened(str(against) if isinstance(against, str | Path) else "the model compared with", against, bare)
    assert isinstance(opened, Asking)  # files of figures were refused
    return kept_thoughts(opened.thinker, thinkers, settings.thinking)


def _tasks(
    names: Sequence[str], folder: str | Path | None, limit: int | None, longest: int, closing: str, seed: int
) -> Tasks:
    from vecsurgery.evaluation import Tasks, task_names

    place = Path(folder) if folder is not None else None
    return Tasks(task_names(names), place, limit, longest, closing, seed)


def _require_tasks(tasks: Tasks, settings: Settings) -> None:
    from vecsurgery.evaluation import require_tasks

    require_tasks(tasks)
    both = [name for name in tasks.names if name in settings.specs or name == THINK]
    if both:
        raise InputError(f"evaluating {both[0]!r}: data and a task have this name; give the data another one")


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


def _opened(label: str, given: Model, settings: Settings) -> Asking | Reading:
    """A model ready to be asked, its rows rendered; or the figures that a file has of one."""
    if isinstance(given, str | Path) and is_figures(given):
        unknown = f"{label}: its figures come from {given}; how they were measured is not known here"
        return Reading(read_tofu(Path(given), label), {}, (unknown,))
    from vecsurgery.surgery.calls import weights_of

    source = str(given) if isinstance(given, str | Path) else "in memory"
    return Asking(label, source, weights_of(given), settings)


def _opened_reference(
    reference: Model | None, models: Mapping[str, Model], settings: Settings
) -> Asking | Reading | str | None:
    """The reference model, asked for its truth ratios alone; or the label of the model that it is."""
    if reference is None or (isinstance(reference, str) and reference in models):
        return reference
    if not is_figures(reference) and FORGET not in settings.specs:
        raise InputError("forget quality: the reference model has to be measured on forget data; give --forget FILE")
    forget = {name: spec for name, spec in settings.specs.items() if name == FORGET}
    return _opened("reference", reference, replace(settings, specs=forget, generate=False, sampling=None))


def _differing(read: Sequence[Reading]) -> list[str]:
    """Warnings where two models read the same rows as different tokens."""
    measured = [each for each in read if each.samples]
    found: dict[tuple[str, ...], list[str]] = {}
    for name, samples in measured[0].samples.items() if measured else ():
        others = [each.model.label for each in measured if each.samples[name].fingerprint != samples.fingerprint]
        if others:
            found.setdefault(tuple(others), []).append(name)
    return [
        f"{', '.join(names)}: {', '.join(others)} read the rows as other tokens than {measured[0].model.label} (their "
        "tokenizers, chat templates or contexts differ): figures per token (losses, token probability, accuracy, "
        "perplexity) are not comparable"
        for others, names in found.items()
    ]


def _ratios(reference: Asking | Reading | str, found: Sequence[EvaluatedModel]) -> tuple[float, ...]:
    """Truth ratios per forget row of the reference model."""
    if isinstance(reference, str):
        model = next(each for each in found if each.label == reference)
    else:
        model = (reference.read() if isinstance(reference, Asking) else reference).model
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

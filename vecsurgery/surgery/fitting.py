"""The fits of a run: what they ask is answered by streaming passes over candidates, what they find is kept in files."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vecsurgery.calibration import Samples, SpannedSample
from vecsurgery.checkpoint import write_bytes
from vecsurgery.checkpoint.types import Weights
from vecsurgery.editing.candidates import Candidates, Variant
from vecsurgery.editing.multipliers import fitted_matrix
from vecsurgery.editing.touches import Rows
from vecsurgery.errors import InputError
from vecsurgery.evaluation import summarise
from vecsurgery.fits import AnswerLosses, AttentionPaid, Candidate, Coefficients, FittedMatrix
from vecsurgery.forward import Attended, Compute, Single, TokenScores, Variants, attention_mass, token_scores
from vecsurgery.geometry import Geometry
from vecsurgery.planning.inputs import Inputs
from vecsurgery.planning.plans import Plan
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe.types import Step
from vecsurgery.surgery.assembly import assembled


def coefficient_file(step: Step) -> str:
    """Name of the file of a fit's coefficients."""
    return f"{step.id}.coefficients.json"


def fitted(
    plan: Plan, geometries: Mapping[str, Geometry], folder: Path, progress: Progress = silent
) -> dict[str, Coefficients]:
    """Run every fit of the plan in order, by id; those whose file is in `folder` are read from it.

    Each sees the deltas as the steps above left them, the coefficients of the fits among them included. What is used is
    what the file says, so that a resumed run writes the same bytes.
    Errors: InputError from the fit, naming its step.
    """
    inputs = plan.inputs
    found: dict[str, Coefficients] = {}
    for step in inputs.recipe.steps:
        if step.verb != "fit":
            continue
        path = folder / coefficient_file(step)
        if not path.exists():
            asking = asking_for(inputs, geometries, found, step, compute=plan.compute, progress=progress)
            result = _fit(inputs, asking, step)
            write_bytes(path, result.to_json().encode())
        found[step.id] = _read(path, inputs, step)
    return found


def _read(path: Path, inputs: Inputs, step: Step) -> Coefficients:
    """The coefficients of a file. Errors: InputError where they are not those of this step."""
    found = Coefficients.from_json(path.read_text(encoding="utf-8", errors="replace"), where=str(path))
    own = (step.id, step.method, step.selection.deltas[0])
    if (found.step, found.method, found.delta) != own or set(found.tensors) != set(fitted_rows(inputs, step)):
        raise InputError(
            f"reading coefficients from {path}: they are of step {found.step!r} ({found.method} of {found.delta}) and "
            f"{len(found.tensors)} tensors, not what step {step.id!r} multiplies; delete the file, and the next run "
            "will fit again"
        )
    return found


def fitted_rows(inputs: Inputs, step: Step) -> dict[str, Rows | None]:
    """Stored names of the matrices that a fit multiplies, with the rows where not all are."""
    return {
        name: touch.rows
        for name, entries in inputs.touches.items()
        for touch in entries
        if touch.step is step and touch.effect == "fit"
    }


def fit_candidates(
    inputs: Inputs, geometries: Mapping[str, Geometry], above: Mapping[str, Coefficients], step: Step
) -> Candidates:
    """Candidates of a fit: the deltas as the steps above it left them, the fit's matrices to be multiplied."""
    steps = inputs.recipe.steps[: inputs.recipe.steps.index(step)]
    edited = assembled(inputs, geometries, above, steps=steps)
    return Candidates(edited, (), step.selection.deltas[0], fitted_rows(inputs, step))


def asking_for(
    inputs: Inputs,
    geometries: Mapping[str, Geometry],
    above: Mapping[str, Coefficients],
    step: Step,
    *,
    compute: Compute = "float32",
    progress: Progress = silent,
) -> "Asking":
    """What answers the questions of a fit. `above`: what the fits above it found."""
    return Asking(
        fit_candidates(inputs, geometries, above, step),
        inputs.fit_samples[step.id],
        reference=inputs.fit_models.get(step.id, {}).get("reference"),
        compute=compute,
        stage=f"fitting {step.id}",
        progress=progress,
    )


def _fit(inputs: Inputs, asking: "Asking", step: Step) -> Coefficients:
    try:
        return inputs.fits[step.method].function(
            asking,
            step=step.id,
            delta=step.selection.deltas[0],
            tensors=asking.tensors,
            facts=asking,
            options=step.options,
        )
    except InputError as error:
        raise type(error)(f"step {step.id!r}: {error}") from error


class Asking(Mapping[str, float]):
    """Answers a fit's questions; as a mapping, what the passes found out about the delta on the way: `norm_ratio`."""

    def __init__(
        self,
        candidates: Candidates,
        samples: Samples,
        *,
        reference: Weights | None,
        compute: Compute = "float32",
        stage: str = "fitting",
        progress: Progress = silent,
    ) -> None:
        self._candidates, self._samples, self._reference = candidates, samples, reference
        self._compute, self._stage, self._progress = compute, stage, progress
        self._passes = 0
        self.tensors: dict[str, FittedMatrix] = {}
        for name, rows in (candidates.tensors or {}).items():
            matrix = candidates.layout.tensors[name].matrix
            assert matrix is not None  # a fit touches block matrices alone
            self.tensors[name] = fitted_matrix(matrix, rows)

    def __call__(self, wanted: Sequence[Candidate]) -> list[AnswerLosses]:
        """Losses of all candidates: one pass over what comes from `into`, one over the reference model if asked for."""
        variants = [Variant(each.kind, each.factor, each.table) for each in wanted if each.kind != "reference"]
        self._passes += 1
        answers = iter(self._losses(self._candidates.asked(variants), f"{self._stage}, pass {self._passes}"))
        return [self._of_reference() if each.kind == "reference" else next(answers) for each in wanted]

    def attention(self, candidate: Candidate) -> AttentionPaid:
        """Attention on instructions in `into` or the edited model, by a pass over it."""
        if candidate.kind not in ("into", "edited"):
            raise ValueError(f"attention is measured on into or the edited model, not on {candidate.kind}")
        edited = self._candidates.edited
        samples = [sample for sample in self._samples.samples if isinstance(sample, SpannedSample)]
        asked = [Attended(each.ids, (each.related, each.unrelated), each.instruction) for each in samples]
        paid = attention_mass(
            edited if candidate.kind == "edited" else edited.into,
            asked,
            compute=self._compute,
            stage=f"{self._stage}, attention",
            progress=self._progress,
        )
        return AttentionPaid(
            related=paid[:, 0],
            unrelated=paid[:, 1],
            instruction_tokens=tuple(len(each.instruction) for each in samples),
            related_tokens=tuple(len(each.related) for each in samples),
            unrelated_tokens=tuple(len(each.unrelated) for each in samples),
        )

    def _of_reference(self) -> AnswerLosses:
        if self._reference is None:
            raise InputError("the fit asks for a reference model; name one in its `reference`")
        (losses,) = self._losses(Single(self._reference), f"{self._stage}, reference")
        return losses

    def _losses(self, variants: Variants, stage: str) -> list[AnswerLosses]:
        samples = [sample for sample in self._samples.samples if sample.answer]
        scores = token_scores(variants, samples, compute=self._compute, stage=stage, progress=self._progress)
        vocabulary = int(variants.config.get_text_config().vocab_size)
        return [_summary(own, vocabulary) for own in scores]

    def __getitem__(self, name: str) -> float:
        if name != "norm_ratio":
            raise KeyError(name)
        return self._candidates.norm_ratio()

    def __iter__(self) -> Iterator[str]:
        yield "norm_ratio"

    def __len__(self) -> int:
        return 1


def _summary(scores: Sequence[TokenScores], vocabulary: int) -> AnswerLosses:
    losses = summarise([score.losses for score in scores], vocabulary=vocabulary)
    return AnswerLosses(losses.capped, losses.mean, losses.probability, losses.capped_per_row)

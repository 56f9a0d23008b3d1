"""Before mergekit starts: what a configuration names is opened, compared, and refused where it does not fit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergekit.architecture import ConfiguredModelArchitecture, get_architecture_info
from mergekit.options import MergeOptions

from vecsurgery.checkpoint import Stored, resolve
from vecsurgery.delta import Difference
from vecsurgery.editing.edited import Edited
from vecsurgery.editing.touches import geometry_names
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.fits import Coefficients
from vecsurgery.geometry import Geometry
from vecsurgery.planning.calls import require_possible
from vecsurgery.planning.checking import BUFFERS, check_distinct, check_fit
from vecsurgery.planning.inputs import Inputs
from vecsurgery.planning.lineage import distance, distance_warning, lineage_warnings
from vecsurgery.planning.vocabulary import align
from vecsurgery.plugin import configuration, methods, named
from vecsurgery.plugin.configuration import Configuration
from vecsurgery.plugin.content import content_of, validated
from vecsurgery.plugin.job import Handed, Job, Model
from vecsurgery.recipe.types import Recipe, Reference

_SHOWN = 3


@contextmanager
def prepared(path: Path, options: Mapping[str, Any], warn: Callable[[str], None]) -> Iterator[None]:
    """While this is open, mergekit can merge by the configuration in `path`, whatever its method is.

    `options`: those of mergekit's command line, by name. `warn` is told what a user should know, what projectors warn
    of at the end. Errors: InputError, UnsupportedError.
    """
    methods.register_all()
    settings = MergeOptions(**{key: options[key] for key in _known(options)})
    found = configuration.read(path, warn)
    if found is None:
        merge = validated(path, content_of(path))
        named.require_folders(path, merge, ours=False)
        named.require_configurations(path, merge, settings)
        yield
        return
    job = _opened(found, settings, warn)
    methods.start(job)
    try:
        yield
    finally:
        methods.stop()
    for text in job.warnings():
        warn(text)


def _known(options: Mapping[str, Any]) -> list[str]:
    return [key for key in options if key in MergeOptions.model_fields]


def _opened(found: Configuration, options: Any, warn: Callable[[str], None]) -> Job:
    named.require_folders(found.path, found.merge, ours=True)
    base = _stored(found, configuration.text_of(found.base))
    tuned = {reference: _stored(found, configuration.text_of(reference)) for reference in found.tuned}
    found.require_dtype("base_model", _types(base))
    stored, warnings = _names(found, base, options)
    into = Handed(base)
    models: dict[Any, Model] = {}
    for reference, stored_model in tuned.items():
        taken = [each.name for each in models.values()]
        models[reference], more = _model(found, reference, stored_model, into, taken)
        warnings += more
    files = {str(file) for model in models.values() for file in model.fixed.values()}
    geometries = {file: _geometry(found, file, base) for file in sorted(files)}
    job = Job(into, found.base, models, found.projector, geometries, stored, found.dtype)
    for edited, alike in _different(job, found):
        for model in models.values():
            warnings += check_fit(model.delta, edited.steps)
        _require_sites(edited, geometries)
        _require_possible(found, base, edited, alike)
    for warning in dict.fromkeys(warnings):
        warn(warning)
    return job


def _different(job: Job, found: Configuration) -> list[tuple[Edited, list[str]]]:
    """The edited weights under each set of parameters that some tensor has, with the stored names of those tensors that
    have it for certain: not those of a gradient, inside of which blocks have what lies between its ends.
    """
    different: dict[int, tuple[Edited, list[str]]] = {}
    ends = (job.edited(each) for each in found.values(job.stored, job.base.layout.blocks))
    for tensor, first, last in zip(job.stored.values(), ends, ends, strict=True):
        for edited in (first, last):
            different.setdefault(id(edited), (edited, []))
        if first is last:
            different[id(first)][1].append(tensor)
    return list(different.values())


def _stored(found: Configuration, text: str) -> Stored:
    reference = named.reference(found.path, text)
    return Stored(resolve(reference), reference=reference)


def _types(model: Stored) -> list[str]:
    return list(dict.fromkeys(info.dtype for info in model.layout.tensors.values()))


def _names(found: Configuration, base: Stored, options: Any) -> tuple[dict[str, str], list[str]]:
    """mergekit's name of each tensor → its name in the files of the base; warnings of buffers that it leaves out.

    mergekit writes the tensors that its description of the architecture lists. Errors: UnsupportedError where the files
    hold others: the result would lack them without a word.
    """
    try:
        described = get_architecture_info(found.merge, options)
        weights = ConfiguredModelArchitecture(info=described, config=base.config).all_weights()
    except RuntimeError as error:
        raise InputError(f"{found.path}: {error}") from error
    there = base.layout.tensors
    names: dict[str, str] = {}
    for weight in weights:
        known = [weight.name, *(weight.aliases or ()), *(weight.tied_names or ())]
        stored = next((name for name in known if name in there), None)
        if stored is not None:
            names[weight.name] = stored
        elif not weight.optional:
            raise UnsupportedError(
                f"{found.path}: mergekit writes {weight.name!r}, which {base.folder} holds in another form; use "
                "a recipe and `vecsurgery run`"
            )
    lost = [name for name in there if name not in names.values()]
    refused = [name for name in lost if not name.endswith(BUFFERS)]
    if refused:
        more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise UnsupportedError(
            f"{found.path}: mergekit does not know the tensors {', '.join(refused[:_SHOWN])}{more} of {base.folder}, "
            "and would leave them out of the result without a word; use a recipe and `vecsurgery run`, which writes "
            "every tensor"
        )
    return names, [f"mergekit leaves out {name}, a table that every loader recomputes" for name in lost]


def _model(
    found: Configuration, reference: Any, stored: Stored, into: Handed, taken: Sequence[str]
) -> tuple[Model, list[str]]:
    """A model, opened as `stored`, with its delta, and warnings about what does not quite go with the base.

    Errors: InputError.
    """
    text = configuration.text_of(reference)
    name = found.constant(reference, "name") or text.partition("@")[0].rstrip("/").rpartition("/")[2]
    if name in taken:
        raise InputError(
            f"{found.path}: two models are called {name!r}; give one of them another name under its parameters, as in "
            "name: math"
        )
    found.require_dtype(text, _types(stored))
    _require_shapes(found, text, stored, into)
    tuned, other = Handed(stored), found.constant(reference, "base")
    base: Any = into if other is None else _stored(found, other)
    alignment = align(name, into, tuned, base)
    delta = Difference(name, tuned, base, into, row_masks=alignment.masks)
    check_distinct(delta)
    warnings = [*lineage_warnings(name, into, {"tuned": tuned}), *alignment.warnings]
    strange = distance_warning(name, distance(into, base)) if other is not None else None
    coefficients = _coefficients(found, reference, into)
    model = Model(name, tuned, delta, found.files(reference), coefficients)
    return model, [*warnings, *([strange] if strange else [])]


def _require_shapes(found: Configuration, model: str, stored: Stored, into: Handed) -> None:
    """Refuse vocabularies of another length, which mergekit cannot merge."""
    theirs = stored.layout.by_parameter()
    for info in into.layout.tensors.values():
        other = theirs.get(info.parameter)
        if info.kind in ("embedding", "head") and other is not None and other.shape != info.shape:
            raise UnsupportedError(
                f"{found.path}: {info.name} is {other.shape} in {model} and {info.shape} in base_model; mergekit "
                "merges tensors of one shape. `vecsurgery run` takes the rows that both have"
            )


def _coefficients(found: Configuration, reference: Any, into: Handed) -> Coefficients | None:
    file = found.constant(reference, "coefficients")
    if file is None:
        if found.projector is None:
            raise InputError(f"{found.path}: {methods.SCALE} needs coefficients, the path of a file that a fit wrote")
        return None
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{found.path}: coefficients of {reference}: {error}") from error
    coefficients = Coefficients.from_json(text, where=file)
    tensors = into.layout.tensors
    strange = [name for name in coefficients.tensors if name not in tensors or tensors[name].matrix is None]
    if strange:
        raise InputError(
            f"{found.path}: coefficients of {reference}: {file} multiplies {strange[0]!r}, which is no matrix of "
            f"base_model ({into.folder}); expected coefficients that were found for this model"
        )
    return coefficients


def _geometry(found: Configuration, file: str, base: Stored) -> Geometry:
    geometry = Geometry.open(Path(file).expanduser())
    try:
        geometry.require_model(base, "it has to be measured on base_model")
    except InputError as error:
        raise InputError(f"{found.path}: {error}") from error
    return geometry


def _require_sites(edited: Edited, geometries: Mapping[str, Geometry]) -> None:
    """Refuse a geometry without a site at which a matrix is edited with it."""
    for name, touched in edited.touches.items():
        info = edited.layout.tensors[name]
        for file in {file for touch in touched if touch.effect == "edit" for file in geometry_names(touch.step)}:
            assert info.matrix is not None  # only block matrices are edited
            if info.matrix.site in geometries[file].facts:
                continue
            if any(source.changed(info.parameter) for source in edited.deltas.values()):
                raise InputError(
                    f"geometry {file}: the site {info.matrix.site!r}, which {name!r} reads, was not measured; measure "
                    "it with a recipe that edits every matrix"
                )


def _require_possible(found: Configuration, base: Stored, edited: Edited, tensors: Sequence[str]) -> None:
    """Refuse options that the projector cannot carry out on one of these tensors, by its shape. Errors: InputError."""
    if found.projector is None or found.projector.require is None:
        return
    recipe = Recipe(Reference(str(base.folder), base.folder, str(base.folder)), {}, {}, tuple(edited.steps))
    inputs = Inputs(recipe, edited.projectors, base, {}, edited.deltas, {}, {})
    parameters = [edited.layout.tensors[tensor].parameter for tensor in tensors]
    changed = {name: {each for each in parameters if inputs.changes(name, each)} for name in edited.deltas}
    try:
        require_possible(inputs, changed)
    except InputError as error:
        raise InputError(f"{found.path}: {error}") from error

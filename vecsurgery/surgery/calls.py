"""The notebook's calls: edit a model in memory or on disk with the steps of a recipe, read or write the result."""

import json
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsurgery import methods
from vecsurgery.calibration import Samples
from vecsurgery.checkpoint import (
    InMemory,
    Stored,
    causal_class,
    check_output,
    config_bytes,
    copy_side_files,
    index_text,
    open_partial,
    plan_shards,
    plan_side_files,
    publish,
    resolve,
    write_bytes,
    write_shard,
)
from vecsurgery.checkpoint.types import Weights
from vecsurgery.delta import Adapter, DeltaFolder, DeltaSource, Difference, FromFile, WithAdapter
from vecsurgery.editing.edited import Edited
from vecsurgery.editing.sites import SiteReader
from vecsurgery.editing.touches import geometry_names, touches
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.forward import Compute
from vecsurgery.geometry import Geometry, measure
from vecsurgery.planning.checking import check_distinct, check_fit
from vecsurgery.planning.inputs import named_merges
from vecsurgery.planning.sizes import output_type
from vecsurgery.planning.vocabulary import align
from vecsurgery.progress import Progress, silent
from vecsurgery.projectors import Projector
from vecsurgery.recipe import Method, RecipeError, parse_number, parse_reference, parse_steps
from vecsurgery.recipe.problems import unknown
from vecsurgery.recipe.types import Reference, Step, live_names
from vecsurgery.surgery.writing import row_pieces

if TYPE_CHECKING:
    from torch import Tensor, nn

    Model = str | Path | nn.Module | Mapping[str, Tensor] | Stored | InMemory | Edited | WithAdapter
"""A folder, a hub id (either with `+adapter`), a module, a state dict, or weights of this package."""
_DOING = "editing the model"


def weights_of(model: "Model", *, config: Any = None) -> Weights:
    """Anything that names or holds a model, as `Weights`.

    `config`: the transformers configuration, needed for a state dict. Raises: InputError.
    """
    if isinstance(model, str | Path):
        reference = _reference(str(model))
        stored = Stored(resolve(reference))
        return stored if reference.adapter is None else WithAdapter(stored, resolve(reference.adapter))
    if isinstance(model, Stored | InMemory | Edited | WithAdapter):
        return model
    return InMemory(model, config)


def _reference(text: str) -> Reference:
    try:
        return parse_reference(text, Path.cwd(), start="the current folder")
    except ValueError as error:
        raise InputError(f"opening the model {text!r}: {error}") from error


def edit(
    *,
    into: "Model",
    deltas: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]] = (),
    geometry: Mapping[str, Geometry | Samples | str | Path] | None = None,
    weights: Mapping[str, float] | None = None,
    dtype: str = "stored",
    compute: Compute = "float32",
    progress: Progress = silent,
) -> Edited:
    """Weights that are `into` plus the deltas as the steps leave them, computed on demand.

    Args:
        into: folder, hub id, module, state dict (then the configuration of another argument's module is used) or
            weights.
        deltas: name → (tuned, base), or tuned alone (base is `into`), or {"adapter": folder}, or {"file": folder} of a
            delta that was made from `into` (or from {"file": folder, "base": model}).
        steps: the steps of a recipe, as mappings: [{"project": "null_space", "geometry": "g", "rtol": 0.1}]; without
            any, `into` plus the deltas as they are.
        geometry: name → geometry file, opened `Geometry`, or `Samples` to measure `into` on (`calibration.prepare`).
        weights: delta → number, 1 where absent.
        dtype: "stored", "float32", "bfloat16" or "float16".

    Raises: InputError for anything that cannot be used (a selection that matches nothing included).

    Example:
        edited = vecsurgery.edit(into=model, deltas={"x": (tuned, base)}, steps=[{"scale": 0.5}])
        edited.state_dict()
    """
    target = weights_of(into, config=_configuration(into, deltas))
    if isinstance(target, WithAdapter):
        raise UnsupportedError(
            "into: the model that is edited cannot carry an adapter; name it as a delta: {'adapter': folder}"
        )
    sources = {name: _source(name, given, target) for name, given in deltas.items()}
    available = methods.available()
    parsed = _parsed(steps, available, deltas=list(sources), geometry=list(geometry or {}))
    numbers = _numbers(weights or {}, live_names(sources, parsed))
    projectors = {name: each for name, each in available.items() if isinstance(each, Projector)}
    for source in sources.values():
        check_fit(source, parsed)
        check_distinct(source)
    needed = _sites(parsed, target)
    opened: dict[str, Geometry] = {}
    reader = SiteReader(opened, target.layout)
    for name, given in (geometry or {}).items():
        if name not in needed:
            continue
        if isinstance(given, Samples):
            path = _folder_of(reader) / f"{name}.safetensors"
            opened[name] = measure(target, given, path, sites=needed[name], compute=compute, progress=progress)
        else:
            opened[name] = given if isinstance(given, Geometry) else Geometry.open(Path(given))
        opened[name].require_model(target, "measure it on `into`")
    return Edited(target, sources, parsed, projectors, reader, numbers, dtype, merges=named_merges(parsed, available))


def _parsed(steps: Sequence[Mapping[str, Any]], available: Mapping[str, Method], **names: list[str]) -> Sequence[Step]:
    try:
        parsed = parse_steps(steps, available, **names)
    except RecipeError as error:
        raise RecipeError(error.problems, doing=_DOING) from error
    for step in parsed:
        if step.verb == "fit":
            raise InputError(
                f"step {step.id!r}: a fit measures losses of stored checkpoints; `edit` takes the steps project, "
                "scale and merge: write a recipe and call `run`"
            )
    return parsed


def _numbers(weights: Mapping[str, Any], deltas: Sequence[str]) -> dict[str, Any]:
    """The number of each delta that has one. `deltas`: those that are left below the steps.

    Errors: InputError for a delta that is not there, or no number.
    """
    numbers = {}
    for name, value in weights.items():
        if name not in deltas:
            raise InputError(f"{_DOING}: weights: {unknown('delta', name, deltas)}")
        try:
            numbers[name] = parse_number(value)
        except ValueError as error:
            raise InputError(f"{_DOING}: weights[{name!r}]: {error}") from error
    return numbers


def _sites(steps: Sequence[Step], target: Weights) -> dict[str, list[str]]:
    """Geometry name → the sites of matrices that a step edits with it; no other is measured."""
    found: dict[str, dict[str, None]] = {name: {} for step in steps for name in geometry_names(step)}
    for tensor, entries in touches(steps, target.layout).items():
        matrix = target.layout.tensors[tensor].matrix
        for touch in entries:
            if matrix is not None and touch.effect == "edit":
                for name in geometry_names(touch.step):
                    found[name][matrix.site] = None
    return {name: list(sites) for name, sites in found.items()}


def write(edited: Weights, folder: str | Path, *, shard_size: int = 5_000_000_000, progress: Progress = silent) -> Path:
    """Write weights as a model folder: streamed, sharded, atomic; side files are those of the folder behind `into`.

    Raises: InputError where the folder is taken, or lies within one that is read; RunError for faults while writing.
    """
    out = Path(folder)
    into = edited.into if isinstance(edited, Edited) else edited
    source = into.folder if isinstance(into, Stored) else None
    inputs = _folders(edited)
    check_output(out, inputs)
    dtype = edited.dtype if isinstance(edited, Edited) else "stored"
    layout = edited.layout
    shards = plan_shards(
        [(info.name, output_type(info, dtype), info.shape) for info in layout.tensors.values()], shard_size
    )
    total, done = sum(shard.nbytes for shard in shards), 0
    with open_partial(out, f"{edited.fingerprint} {shard_size}", inputs=inputs) as partial:
        finished = partial.journal.finished()
        for shard in shards:
            if shard.file not in finished:
                pieces = ((tensor.name, row_pieces(edited, layout.tensors[tensor.name])) for tensor in shard.tensors)
                partial.journal.record(write_shard(partial.path, shard, pieces), {})
            done += shard.nbytes
            progress("writing", done, total, "bytes")
        index = index_text(shards)
        if index is not None:
            write_bytes(partial.path / "model.safetensors.index.json", index.encode())
        if source is not None:
            copy_side_files(source, partial.path, plan_side_files(source).copied)
        publish(partial, config_bytes(source, dtype) if source is not None else _config_text(edited))  # type: ignore[arg-type]
    return out


def _folder_of(reader: SiteReader) -> Path:
    """A temporary folder that lives as long as `reader`: geometry is always read back from file."""
    folder = tempfile.mkdtemp(prefix="vecsurgery-")
    weakref.finalize(reader, shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _config_text(weights: Weights) -> bytes:
    """config.json of a model that came from memory, where there is no file to copy: as `save_pretrained` writes it,
    with the class and the type that loaders look for.
    """
    config = weights.config.to_diff_dict()
    config["architectures"] = config.get("architectures") or [causal_class(weights.config).__name__]
    config["dtype"] = _main_type(weights)
    return (json.dumps(config, indent=2, sort_keys=True, default=str) + "\n").encode()


def _folders(weights: Weights | DeltaSource) -> list[Path]:
    """Folders that are read for these weights: of the model, of its deltas, and of what they come from."""
    if isinstance(weights, Edited):
        sources: list[Weights | DeltaSource] = [weights.into, *weights.deltas.values()]
        return list(dict.fromkeys(path for source in sources for path in _folders(source)))
    held = [getattr(weights, name, None) for name in ("tuned", "base", "weights", "adapter_folder", "folder")]
    found = [folder.path if isinstance(folder, DeltaFolder) else folder for folder in held]
    return [
        path for each in found if each is not None for path in ([each] if isinstance(each, Path) else _folders(each))
    ]


def _main_type(weights: Weights) -> str:
    """The type that most numbers of the written tensors have."""
    dtype = weights.dtype if isinstance(weights, Edited) else "stored"
    sizes: Counter[str] = Counter()
    for info in weights.layout.tensors.values():
        sizes[output_type(info, dtype)] += prod(info.shape)
    return sizes.most_common(1)[0][0]


def _configuration(into: "Model", deltas: Mapping[str, Any]) -> Any:
    """The configuration of the first model that has one, for state dicts, which have none."""
    for model in [into, *(part for given in deltas.values() for part in _parts(given))]:
        config = getattr(model, "config", None)
        if config is not None:
            return config
        if isinstance(model, str | Path):
            return weights_of(model).config
    return None


def _parts(given: Any) -> list[Any]:
    if isinstance(given, Mapping) and (set(given) == {"adapter"} or "file" in given):
        return []
    return list(given) if isinstance(given, tuple) else [given]


def _source(name: str, given: Any, into: Weights) -> DeltaSource:
    if isinstance(given, Mapping) and set(given) == {"adapter"}:
        return Adapter(name, resolve(_reference(str(given["adapter"]))), into)
    if isinstance(given, Mapping) and "file" in given and set(given) <= {"file", "base"}:
        made_from = weights_of(given["base"], config=into.config) if "base" in given else into
        masks = align(name, into, made_from, made_from).masks
        return FromFile(name, DeltaFolder(Path(given["file"])), made_from, into, row_masks=masks)
    if isinstance(given, tuple) and len(given) != 2:
        raise InputError(
            f"deltas[{name!r}]: expected (tuned, base), tuned alone or {{'adapter': folder}}, got {len(given)} models"
        )
    tuned, base = given if isinstance(given, tuple) else (given, None)
    tuned_weights = weights_of(tuned, config=into.config)
    base_weights = into if base is None else weights_of(base, config=into.config)
    alignment = align(name, into, tuned_weights, base_weights)
    return Difference(name, tuned_weights, base_weights, into, row_masks=alignment.masks)

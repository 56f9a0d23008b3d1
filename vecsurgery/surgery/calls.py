"""The notebook's calls: edit a model in memory or on disk with the steps of a recipe, read or write the result."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsurgery import projectors as projector_room
from vecsurgery.calibration import Samples
from vecsurgery.checkpoint import (
    InMemory,
    Stored,
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
from vecsurgery.delta import Adapter, DeltaSource, Difference
from vecsurgery.errors import InputError
from vecsurgery.forward import Compute
from vecsurgery.geometry import Geometry, measure
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe import parse_number, parse_reference, parse_steps
from vecsurgery.surgery.checking import check_distinct
from vecsurgery.surgery.edited import Edited
from vecsurgery.surgery.geometries import SiteReader
from vecsurgery.surgery.planning import output_type
from vecsurgery.surgery.touches import geometry_names
from vecsurgery.surgery.vocabulary import align

if TYPE_CHECKING:
    from torch import Tensor, nn

    Model = str | Path | nn.Module | Mapping[str, Tensor] | Stored | InMemory | Edited
"""A folder, a hub id, a module, a state dict, or weights of this package."""


def weights_of(model: "Model", *, config: Any = None) -> Weights:
    """Anything that names or holds a model, as `Weights`.

    `config`: the transformers configuration, needed for a state dict. Raises: InputError.
    """
    if isinstance(model, str | Path):
        return Stored(resolve(parse_reference(str(model), Path.cwd())))
    if isinstance(model, Stored | InMemory | Edited):
        return model
    return InMemory(model, config)


def edit(
    *,
    into: "Model",
    deltas: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
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
        deltas: name → (tuned, base), or tuned alone (base is `into`), or {"adapter": folder}.
        steps: the steps of a recipe, as mappings: [{"project": "null_space", "geometry": "g", "rtol": 0.1}].
        geometry: name → geometry file, opened `Geometry`, or `Samples` to measure `into` on (`calibration.prepare`).
        weights: delta → number, 1 where absent.
        dtype: "stored", "float32", "bfloat16" or "float16".

    Raises: InputError for anything that cannot be used.

    Example:
        edited = vecsurgery.edit(into=model, deltas={"x": (tuned, base)}, steps=[{"scale": 0.5}])
        edited.state_dict()
    """
    target = weights_of(into, config=_configuration(into, deltas))
    sources = {name: _source(name, given, target) for name, given in deltas.items()}
    for source in sources.values():
        check_distinct(source)
    available = projector_room.available()
    parsed = parse_steps(steps, available, deltas=list(sources), geometry=list(geometry or {}))
    needed = {name for step in parsed for name in geometry_names(step)}
    opened: dict[str, Geometry] = {}
    keep: list[object] = []
    for name, given in (geometry or {}).items():
        if name not in needed:
            continue
        if isinstance(given, Samples):
            folder = tempfile.TemporaryDirectory(prefix="vecsurgery-")
            keep.append(folder)
            path = Path(folder.name) / f"{name}.safetensors"
            opened[name] = measure(target, given, path, compute=compute, progress=progress)
        else:
            opened[name] = given if isinstance(given, Geometry) else Geometry.open(Path(given))
        opened[name].require(model_fingerprint=target.fingerprint)
    reader = SiteReader(opened, target.layout)
    reader.kept = keep
    numbers = {name: parse_number(value) for name, value in (weights or {}).items()}
    edited = Edited(target, sources, parsed, available, reader, numbers, dtype)
    _ = edited.touches  # a selection that matches nothing is an error here, not at the first read
    return edited


def write(edited: Weights, folder: str | Path, *, shard_size: int = 5_000_000_000, progress: Progress = silent) -> Path:
    """Write weights as a model folder: streamed, sharded, atomic; side files are those of the folder behind `into`.

    Raises: InputError where the folder is taken; RunError for faults while writing.
    """
    out = Path(folder)
    into = edited.into if isinstance(edited, Edited) else edited
    source = into.folder if isinstance(into, Stored) else None
    inputs = [source] if source is not None else []
    check_output(out, inputs)
    dtype = edited.dtype if isinstance(edited, Edited) else "stored"
    layout = edited.layout
    shards = plan_shards(
        [(info.name, output_type(info, dtype), info.shape) for info in layout.tensors.values()], shard_size
    )
    total, done = sum(shard.nbytes for shard in shards), 0
    with open_partial(out, edited.fingerprint, inputs=inputs) as partial:
        finished = partial.journal.finished()
        for shard in shards:
            if shard.file not in finished:
                pieces = ((tensor.name, edited.read(tensor.name)) for tensor in shard.tensors)
                partial.journal.record(write_shard(partial.path, shard, pieces), {})
            done += shard.nbytes
            progress("writing", done, total, "bytes")
        index = index_text(shards)
        if index is not None:
            write_bytes(partial.path / "model.safetensors.index.json", index.encode())
        if source is not None:
            copy_side_files(source, partial.path, plan_side_files(source).copied)
        publish(partial, config_bytes(source, dtype) if source is not None else _config_text(into))  # type: ignore[arg-type]
    return out


def _config_text(weights: Weights) -> bytes:
    """config.json of a model that came from memory: there is no file to copy."""
    return (json.dumps(weights.config.to_diff_dict(), indent=2, sort_keys=True, default=str) + "\n").encode()


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
    if isinstance(given, Mapping) and set(given) == {"adapter"}:
        return []
    return list(given) if isinstance(given, tuple) else [given]


def _source(name: str, given: Any, into: Weights) -> DeltaSource:
    if isinstance(given, Mapping) and set(given) == {"adapter"}:
        return Adapter(name, Path(given["adapter"]), into)
    if isinstance(given, tuple) and len(given) != 2:
        raise InputError(
            f"deltas[{name!r}]: expected (tuned, base), tuned alone or {{'adapter': folder}}, got {len(given)} models"
        )
    tuned, base = given if isinstance(given, tuple) else (given, None)
    tuned_weights = weights_of(tuned, config=into.config)
    base_weights = into if base is None else weights_of(base, config=into.config)
    alignment = align(name, into, tuned_weights, base_weights)
    return Difference(name, tuned_weights, base_weights, into, row_masks=alignment.masks)

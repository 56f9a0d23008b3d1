"""`output: {format: adapter}`: the edited delta as a LoRA adapter that PEFT loads."""

import json
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vecsurgery.checkpoint import Partial, ShardPlan, write_shard
from vecsurgery.checkpoint.appending import FILLER, Appending, appending, written
from vecsurgery.checkpoint.files import safetensors_headers
from vecsurgery.checkpoint.shards import TensorPlan
from vecsurgery.checkpoint.types import TensorInfo
from vecsurgery.delta import Delta, Factored
from vecsurgery.delta.reading import same_bytes
from vecsurgery.editing.edited import Edited
from vecsurgery.errors import InputError, UnsupportedError
from vecsurgery.linalg import Singular, factored_svd, leading_svd
from vecsurgery.planning.outputs import holds
from vecsurgery.planning.plans import Plan
from vecsurgery.progress import Progress, silent
from vecsurgery.recipe.types import Output, Reference
from vecsurgery.surgery.writing import AuditedInputs, ShardFacts, matrix_record, row_slices

WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."


def write_adapter(
    plan: Plan, edited: Edited, audited: AuditedInputs, partial: Partial, progress: Progress = silent
) -> None:
    """Write the parts that the journal does not know yet, then the file that PEFT reads, out of them.

    Errors: UnsupportedError for a change that no adapter holds or that is of no low rank, InputError where nothing is
    left; RunError, with what is finished kept.
    """
    finished = partial.journal.finished()
    total, done = sum(shard.nbytes for shard in plan.shards), 0
    for shard in plan.shards:
        if shard.file not in finished:
            facts, modules, dropped = ShardFacts(), list[dict[str, Any]](), list[str]()
            infos = [edited.layout.tensors[tensor.name] for tensor in shard.tensors]
            names = [name for info in infos for name in _keys(_module(info))]
            with appending(partial.path, shard.file, names) as target:
                for info in infos:
                    _write_tensor(plan, edited, info, target, facts, modules, dropped)
            facts.inputs = audited.take_hashes()
            rest = {"modules": modules, "dropped": dropped}
            partial.journal.record(written(partial.path / shard.file), {**facts.to_dict(), **rest})
        done += shard.nbytes
        progress("writing", done, total, "bytes")
    if WEIGHTS_FILE not in finished:
        _join(plan, partial)


def modules_of(plan: Plan, partial: Partial) -> list[dict[str, Any]]:
    """What the adapter holds, in walking order: tensor, module, rank, relative error, whether it is exact."""
    return _facts(plan, partial, "modules")


def dropped_of(plan: Plan, partial: Partial) -> list[str]:
    """Changed tensors that were left out, in walking order."""
    return _facts(plan, partial, "dropped")


def adapter_config(plan: Plan, partial: Partial) -> bytes:
    """adapter_config.json: alpha is the rank everywhere, so that the update is B A."""
    modules = modules_of(plan, partial)
    if not modules:
        raise InputError("writing the adapter: no change of a linear map is left behind the steps; it is empty")
    layout, into = plan.inputs.into.layout, plan.inputs.recipe.into
    ranks = [module["rank"] for module in modules]
    usual = max(set(ranks), key=lambda rank: (ranks.count(rank), rank))
    pattern = {_escaped(module["module"]): module["rank"] for module in modules if module["rank"] != usual}
    matrices = [layout.tensors[module["tensor"]].matrix for module in modules]
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": _name(into),
        "revision": into.revision,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": [module["module"] for module in modules],
        "fan_in_fan_out": any(matrix is not None and matrix.transposed for matrix in matrices),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def _facts(plan: Plan, partial: Partial, key: str) -> list[Any]:
    finished = partial.journal.finished()
    return [each for shard in plan.shards for each in finished[shard.file].facts[key]]


def _name(reference: Reference) -> str:
    return reference.model if reference.path is None else str(reference.path)


def _escaped(module: str) -> str:
    """A module as a pattern that matches nothing else."""
    return module.replace(".", r"\.")


def _module(info: TensorInfo) -> str:
    return info.parameter.removesuffix(".weight")


def _keys(module: str) -> tuple[str, str]:
    """Names of A and of B in the adapter's file."""
    return f"{_PREFIX}{module}.lora_A.weight", f"{_PREFIX}{module}.lora_B.weight"


def _write_tensor(
    plan: Plan,
    edited: Edited,
    info: TensorInfo,
    target: Appending,
    facts: ShardFacts,
    modules: list[dict[str, Any]],
    dropped: list[str],
) -> None:
    if plan.tensors[info.name].action == "copy":
        return
    output = plan.inputs.recipe.output
    if not holds(info, edited.layout):
        if any(_changes(edited, info, rows) for rows in row_slices(edited, info)):
            _require_dropped(info, output)
            dropped.append(info.name)
        return
    change = edited.change(info.name)
    if change.total is None or not change.total.squared_norm():
        return
    if not plan.tensors[info.name].deltas and _rounds_back(edited, info, change.total, None):
        return  # a merge of weights gave W again, but for its rounding
    factors, error = _factors(change.total, info, output)
    if not factors.left.shape[1]:
        return
    for key, values in zip(_keys(_module(info)), (factors.right, factors.left), strict=True):
        target.add(key, [values.contiguous()])
    rank = int(factors.left.shape[1])
    modules.append({"tensor": info.name, "module": _module(info), "rank": rank, "error": error})
    if info.matrix is not None and change.facts:
        stored = Factored(factors.left.float(), factors.right.float())
        facts.matrices.append(matrix_record(edited, info, change, stored=stored))


def _changes(edited: Edited, info: TensorInfo, rows: slice | None) -> bool:
    """Whether a delta is left of these rows behind steps and weights, and does not round back to `into`."""
    total = edited.change(info.name, rows=rows).total
    return total is not None and total.squared_norm() > 0.0 and not _rounds_back(edited, info, total, rows)


def _rounds_back(edited: Edited, info: TensorInfo, total: Delta, rows: slice | None) -> bool:
    """Whether W with the change has the bytes of W."""
    base = edited.into.read(info.name, rows)
    return same_bytes(edited.with_delta(base, total, info.name), base)


def _require_dropped(info: TensorInfo, output: Output) -> None:
    if output.others != "drop":
        raise UnsupportedError(
            f"writing the adapter: it cannot hold the change of {info.name!r}; leave such tensors out "
            "(`output: {others: drop}`, or `--others drop` of `extract`), or write a delta"
        )


def _factors(delta: Delta, info: TensorInfo, output: Output) -> tuple[Factored, float]:
    """B and A in the type of the output, and ‖D − B A‖/‖D‖."""
    if isinstance(delta, Factored):
        left, right = delta.left, delta.right
        if output.rank is not None and left.shape[1] > output.rank:
            left, right = _balanced(factored_svd(left, right, output.rank))
    elif output.rank is None:
        raise UnsupportedError(
            f"writing the adapter: the change of {info.name!r} is no product of two small factors; give the rank to "
            "cut it off at: `output: {format: adapter, rank: 16}`"
        )
    else:
        left, right = _balanced(leading_svd(delta.dense(), output.rank))
    dtype = torch.float32 if output.dtype == "stored" else getattr(torch, output.dtype)
    stored = Factored(left.to(dtype), right.to(dtype))
    if not all(isfinite(float(each.float().abs().amax())) for each in (stored.left, stored.right) if each.numel()):
        raise InputError(f"writing the adapter: factors of {info.name!r} do not fit {output.dtype}; choose float32")
    return stored, _error(delta, stored)


def _balanced(found: Singular) -> tuple[Tensor, Tensor]:
    """B and A with √σ on either side, so that a narrow type rounds both alike."""
    root = found.values.sqrt().to(found.left.dtype)
    return found.left * root, root[:, None] * found.right.T


def _error(delta: Delta, stored: Factored) -> float:
    """‖D − B A‖/‖D‖; 0 where the factors are those of the delta."""
    if isinstance(delta, Factored) and delta.left.dtype == stored.left.dtype and _same(delta, stored):
        return 0.0
    if isinstance(delta, Factored):
        left = torch.cat([delta.left.double(), -stored.left.double()], dim=1)
        lost = _norm(left, torch.cat([delta.right.double(), stored.right.double()]))
        norm = _norm(delta.left.double(), delta.right.double())
    else:
        whole = delta.values
        difference = whole - stored.left.to(whole.dtype) @ stored.right.to(whole.dtype)
        lost, norm = (float(torch.linalg.vector_norm(each, dtype=torch.float64)) for each in (difference, whole))
    return lost / norm if norm > 0.0 else 0.0


def _norm(left: Tensor, right: Tensor) -> float:
    """‖B A‖ without the product: of R_B R_Aᵀ from the QR decompositions of B and Aᵀ, which loses no digits to a sum of
    squares where B A nearly cancels.
    """
    ours, theirs = (torch.linalg.qr(each, mode="r")[1] for each in (left, right.T))
    return float(torch.linalg.vector_norm(ours @ theirs.T))


def _same(delta: Factored, stored: Factored) -> bool:
    return torch.equal(delta.left, stored.left) and torch.equal(delta.right, stored.right)


def _join(plan: Plan, partial: Partial) -> None:
    """One file out of the parts, which stay until the folder is complete."""
    places: dict[str, tuple[str, TensorPlan]] = {}
    for shard in plan.shards:
        for name, header in safetensors_headers(partial.path / shard.file).items():
            if not name.startswith(FILLER):
                places[name] = shard.file, TensorPlan(name, header.dtype, header.shape)
    # Factors of two bytes first would leave those of others out of line; all here are of one type.
    whole = ShardPlan(WEIGHTS_FILE, tuple(plan for _, plan in places.values()))
    partial.journal.record(write_shard(partial.path, whole, _read(partial, places)), {})


def _read(partial: Partial, places: Mapping[str, tuple[str, TensorPlan]]) -> Iterator[tuple[str, Tensor]]:
    opened: dict[str, Any] = {}
    for name, (file, _) in places.items():
        if file not in opened:
            opened[file] = safe_open(partial.path / file, framework="pt", device="cpu")
        yield name, opened[file].get_tensor(name)

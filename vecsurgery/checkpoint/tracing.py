"""Which linear maps of a block read the same input: found by watching one forward, not by guessing from names.

The model is a skeleton. What lies outside of its blocks gets zeros that take no memory, and its linear maps and fused
experts answer with zeros instead of computing, so that the trace of any model takes the same few milliseconds a block.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from vecsurgery.errors import UnsupportedError

from . import skeleton
from .refusals import require_text_decoder

if TYPE_CHECKING:
    from torch import Tensor, nn

_TOKENS = 5
"""Length of the traced text; a linear map that reads another number of rows (routed tokens) has no site."""
_ROUTERS = {"router", "gate"}
"""Last name of linear maps that choose experts."""
_FAULTS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
)
"""What code of transformers raises where a model cannot be built or run as decoder blocks."""


@dataclass(frozen=True)
class Linear:
    """A linear map of a block that reads the block's tokens: `site` is the first one that reads the same input."""

    module: str
    layer: int
    site: str
    transposed: bool
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Trace:
    """What a configuration says about the module that transformers builds from it; no file is involved."""

    parameters: Mapping[str, tuple[int, ...]]
    """Shape by name, in the module's order, persistent buffers included."""
    required: frozenset[str]
    """Names of `parameters` that are parameters: the module computes nothing right without them."""
    linears: Mapping[str, Linear]
    """By parameter name (`….weight`), in the module's order."""
    tied: Mapping[str, str]
    embedding: str
    """Dotted name of the module that embeds token ids."""
    head: str | None
    """Dotted name of the module that gives the logits."""
    early: frozenset[str]
    """Modules that run before the first block."""
    blocks: str
    """Dotted name of the list of blocks."""
    count: int
    hidden: int
    prefix: str
    """`base_model_prefix`: files of the base model alone leave it out."""
    transforms: tuple[Any, ...]
    """transformers' own renamings and conversions of stored names for this model."""


_OF_THE_FOLDER = {"_name_or_path", "transformers_version"}
"""Keys of a configuration that say where it lies and who wrote it, not what the model is."""
_known: dict[str, Trace] = {}
_lock = threading.Lock()


def trace(config: Any) -> Trace:
    """The trace of a configuration; one per process for equal configurations, wherever they lie.

    Raises:
        UnsupportedError: no causal text decoder, no list of blocks, or a block that cannot be run on its own.
    """
    require_text_decoder(config)
    content = {key: value for key, value in config.to_dict().items() if key not in _OF_THE_FOLDER}
    key = f"{type(config).__name__} {json.dumps(content, sort_keys=True, default=str)}"
    with _lock:
        if key not in _known:
            try:
                _known[key] = _trace(config)
            except _FAULTS as fault:
                raise UnsupportedError(
                    f"tracing model type {config.model_type!r}: its decoder blocks cannot be run one by one. Either "
                    "this architecture is not supported, or its config.json lacks what the architecture needs. "
                    f"(transformers: {_first_line(fault)})"
                ) from fault
        return _known[key]


def _first_line(fault: Exception) -> str:
    """The kind of an error and the beginning of what it says."""
    lines = str(fault).strip().splitlines()
    return shorten(f"{type(fault).__name__}: {lines[0]}" if lines else type(fault).__name__, 160, placeholder=" …")


def _trace(config: Any) -> Trace:
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping

    model: Any = skeleton.build(config)
    name, blocks = skeleton.decoder_blocks(model)
    parameters = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    names = {id(module): path for path, module in model.named_modules()}
    embedding = names[id(model.get_input_embeddings())]
    head = model.get_output_embeddings()
    required = frozenset(key for key, _ in model.named_parameters(remove_duplicate=False))
    _fill_with_zeros(model)
    with torch.no_grad(), _answers_zeros(model):
        early, linears = _watch(model, name, blocks)
    return Trace(
        parameters=parameters,
        required=required,
        linears={key: linears[key] for key in parameters if key in linears},
        tied=dict(model.all_tied_weights_keys),
        embedding=embedding,
        head=None if head is None else names.get(id(head)),
        early=early,
        blocks=name,
        count=len(blocks),
        hidden=int(config.hidden_size),
        prefix=model.base_model_prefix,
        transforms=tuple(get_model_conversion_mapping(model)),
    )


def _fill_with_zeros(model: nn.Module) -> None:
    """Every parameter becomes zeros of its shape that take no memory: one number, seen everywhere."""
    import torch

    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            module.register_parameter(name, torch.nn.Parameter(zeros, requires_grad=False))


@contextmanager
def _answers_zeros(model: nn.Module) -> Iterator[None]:
    """While open, linear maps and fused experts of `model` return zeros of the right shape and compute nothing."""
    changed: list[Any] = []
    for path, module in model.named_modules():
        if _is_linear(module) and not _is_router(path):
            changed.append(module)
            module.forward = _zeros_of_width(_widths(module)[1])
        elif _is_fused_experts(module):
            changed.append(module)
            module.forward = _zeros_of_experts(getattr(module, "output_size", None))
    try:
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def _zeros_of_width(width: int) -> Any:
    return lambda inputs, *_, **__: inputs.new_zeros((*inputs.shape[:-1], width))


def _zeros_of_experts(width: int | None) -> Any:
    """Fused experts return what they read in shape; those that are one linear map each name another width."""

    def zeros(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states.new_zeros((*hidden_states.shape[:-1], width or hidden_states.shape[-1]))

    return zeros


def _is_fused_experts(module: nn.Module) -> bool:
    from torch.nn.modules.conv import _ConvNd

    owned = module.named_parameters(recurse=False)
    return not isinstance(module, _ConvNd) and any(parameter.ndim == 3 for _, parameter in owned)


def _is_linear(module: nn.Module) -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _widths(module: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear map."""
    rows, columns = module.weight.shape
    return (rows, columns) if _is_transposed(module) else (columns, rows)


def _is_transposed(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _watch(model: Any, name: str, blocks: nn.ModuleList) -> tuple[frozenset[str], dict[str, Linear]]:
    """Modules that run before the blocks, and the linear maps of every block."""
    import torch

    inputs = {"input_ids": torch.zeros((1, _TOKENS), dtype=torch.long)}
    outside = {path: module for path, module in model.named_modules() if not f"{path}.".startswith(f"{name}.")}
    early: set[str] = set()
    with _fired(outside, lambda path, _: early.add(path)):
        first = skeleton.first_call(model, blocks, inputs)
    result = _run(model, name, blocks, 0, first)
    calls = skeleton.block_calls(model, blocks, inputs, returns_tuple=isinstance(result, tuple))
    linears: dict[str, Linear] = {}
    slow: dict[Any, dict[str, Linear]] = {}
    for index, call in enumerate(calls):
        structure = _structure(blocks[index])
        if structure not in slow:
            found = dict(_linears_of(model, name, blocks, index, call))
            if _is_recurrent(blocks[index]):
                slow[structure] = found
        else:
            found = _moved(slow[structure], name, index)
        linears.update(found)
    return frozenset(early), linears


def _is_recurrent(block: nn.Module) -> bool:
    """Whether a block scans its tokens (Mamba and kin): a second and more without their kernels, so alike ones are
    traced once. Other blocks are quick, and alike ones may still read differently (Gemma 3n shares keys and values)."""
    from torch.nn.modules.conv import _ConvNd

    return any(isinstance(module, _ConvNd) for module in block.modules())


def _structure(block: nn.Module) -> tuple[Any, ...]:
    shapes = ((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())
    return (type(block), *((path, type(module)) for path, module in block.named_modules()), *shapes)


def _moved(found: Mapping[str, Linear], name: str, index: int) -> dict[str, Linear]:
    """The linear maps of one block, as those of block `index` of the same structure."""

    def moved(path: str) -> str:
        return f"{name}.{index}." + path.removeprefix(f"{name}.").split(".", 1)[1]

    return {
        moved(path): replace(linear, module=moved(linear.module), layer=index, site=moved(linear.site))
        for path, linear in found.items()
    }


@contextmanager
def _fired(modules: Mapping[str, nn.Module], tell: Any) -> Iterator[None]:
    """While open, `tell(path, first input)` at every call of these modules."""

    def hook_of(path: str) -> Any:
        return lambda _, inputs: tell(path, inputs[0] if inputs else None)

    hooks = [module.register_forward_pre_hook(hook_of(path)) for path, module in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _run(model: Any, name: str, blocks: nn.ModuleList, index: int, call: skeleton.Call) -> Any:
    args, kwargs = call
    try:
        return blocks[index](*args, **kwargs)
    except _FAULTS as fault:
        raise UnsupportedError(
            f"tracing block {name}.{index} of {model.config.model_type!r}: {fault!r}. This architecture is not "
            "supported."
        ) from fault


def _linears_of(
    model: Any, name: str, blocks: nn.ModuleList, index: int, call: skeleton.Call
) -> Iterator[tuple[str, Linear]]:
    """The linear maps of one block that read its tokens, grouped by the tensor that they read."""
    block = blocks[index]
    inside = {f"{name}.{index}.{path}": module for path, module in block.named_modules() if _is_linear(module)}
    seen: dict[str, list[Tensor]] = {path: [] for path in inside}
    with _fired(inside, lambda path, tensor: seen[path].append(tensor)):
        # Held until the groups are known: freed memory is used again, and unlike inputs would look alike.
        held = _run(model, name, blocks, index, call)
    first_reader: dict[tuple[Any, ...], str] = {}
    for path, tensors in seen.items():
        if not tensors or not _reads_tokens(path, tensors):
            continue
        module: Any = inside[path]
        identities = {_identity(tensor) for tensor in tensors}
        site = first_reader.setdefault(identities.pop(), path) if len(identities) == 1 else path
        width_in, width_out = _widths(module)
        yield f"{path}.weight", Linear(path, index, site, _is_transposed(module), width_in, width_out)
    del held


def _reads_tokens(path: str, tensors: list[Tensor]) -> bool:
    """Whether the map reads one row per token. Routers do, and are none: they choose, they do not carry."""
    rows = all(tensor.numel() == _TOKENS * tensor.shape[-1] for tensor in tensors)
    return rows and not _is_router(path)


def _is_router(path: str) -> bool:
    names = path.split(".")
    return names[-1] in _ROUTERS or "router" in names


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two views of the same values: storage, place in it, width, and the count of in-place changes."""
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape[-1], tensor._version)

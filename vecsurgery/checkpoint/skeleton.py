"""The transformers module of a configuration without its weights, and how to stand in for its blocks.

Parameters are on the meta device (no memory); buffers that the files do not hold (rotary tables, embedding scales) are
real. Layout tracing and layer streaming both start here, so that both see the same module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

from vecsurgery.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block was called with: its positional and its keyword arguments."""

_BLOCK_LISTS = ("layers", "h", "blocks", "block")
"""The names that transformers gives to the list of decoder blocks, to choose among lists of equal length and depth."""

_LARGE = 1_000_000
"""Numbers in a tensor from which it is made without memory."""


class _BlockReached(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward inside a block: what comes behind it is not needed."""


def build(config: Any, *, dtype: torch.dtype | None = None) -> nn.Module:
    """The causal language model of `config`: parameters on meta, other buffers real, ready for inference.

    The module is in eval mode, without a key-value cache and without gradients, and attends through torch's fused
    kernel (`sdpa`) where its architecture allows it, as `from_pretrained` does. `config` is not changed.

    Args:
        config: a transformers `PretrainedConfig`.
        dtype: floating-point type of the parameters and of the buffers that follow them; float32 unless told.

    Raises:
        UnsupportedError: transformers has no causal class for this model type without running the checkpoint's code.
    """
    import torch
    from transformers import AutoModelForCausalLM

    causal_class(config)
    wanted = copy.deepcopy(config)
    wanted.use_cache = False
    model = _on_meta(AutoModelForCausalLM, wanted, dtype or torch.float32)
    model.eval()
    model.requires_grad_(False)
    return model


def causal_class(config: Any) -> type[nn.Module]:
    """The causal language model that transformers builds from `config`. Errors: UnsupportedError where it has none."""
    from transformers import AutoModelForCausalLM

    name = getattr(config, "model_type", type(config).__name__)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UnsupportedError(
            f"building the module of model type {name!r}: the installed transformers has no causal language model for "
            "it; code inside checkpoints is never run. Use a checkpoint of a supported architecture, or a newer "
            "transformers."
        )
    found: Any = AutoModelForCausalLM._model_mapping[type(config)]
    chosen: type[nn.Module] = found[0] if isinstance(found, list | tuple) else found
    return chosen


def _on_meta(factory: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    def construct(attention: str) -> nn.Module:
        with init_empty_weights(include_buffers=False), no_init_weights(), _large_ones_on_meta():
            model: nn.Module = factory.from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
            return model

    try:
        return construct("sdpa")
    except (ValueError, ImportError):
        # An architecture without the fused kernel says so with one of these; any other fault comes up again below.
        return construct("eager")


@contextmanager
def _large_ones_on_meta() -> Iterator[None]:
    """While open, `torch.empty` of a million numbers and more gives tensors without memory.

    `init_empty_weights` moves a parameter when a module registers it, so its values are allocated first: 30 GB for the
    fused experts of one DeepSeek-V3 block, which many machines refuse. No buffer is made of uninitialised numbers.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Redirected(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options = dict(kwargs or {})
            if func is torch.empty and options.get("device") is None and _numbers(args) >= _LARGE:
                options["device"] = "meta"
            return func(*args, **options)

    with Redirected():
        yield


def _numbers(shape: Any) -> int:
    """Numbers in a tensor of this shape, given as one sequence or as one argument a dimension."""
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], Sequence) else shape
    return prod(int(size) for size in sizes)


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The dotted name and the list of the decoder blocks of a causal language model.

    They are the shallowest ModuleList of the base model whose length is the configuration's number of layers.

    Raises:
        UnsupportedError: there is no such list, or several that cannot be told apart.
    """
    from torch import nn

    config: Any = model.config
    text = config.get_text_config(decoder=True)
    count = getattr(text, "num_hidden_layers", None)
    base: Any = model.base_model
    found = [
        (name, module)
        for name, module in base.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    depth = min((name.count(".") for name, _ in found), default=0)
    found = [(name, module) for name, module in found if name.count(".") == depth]
    if len(found) > 1:
        found = [(name, module) for name, module in found if name.rsplit(".", 1)[-1] in _BLOCK_LISTS]
    if len(found) != 1:
        raise UnsupportedError(
            f"looking for the decoder blocks of {config.model_type!r}: expected one list of {count} blocks in "
            f"{type(base).__name__}, found {[name for name, _ in found] or 'none'}. This architecture is not supported."
        )
    local, blocks = found[0]
    prefix = "" if base is model else next(name for name, module in model.named_modules() if module is base) + "."
    return prefix + local, blocks


@contextmanager
def replaced_forwards(
    blocks: Sequence[nn.Module] | nn.ModuleList, function: Callable[[int, tuple[Any, ...], dict[str, Any]], Any]
) -> Iterator[None]:
    """While open, calling block i calls `function(i, args, kwargs)` instead of its forward; restored at the end."""

    def stand_in(index: int) -> Callable[..., Any]:
        return lambda *args, **kwargs: function(index, args, kwargs)

    with ExitStack() as restore:
        for index, block in enumerate(blocks):
            had, previous = "forward" in block.__dict__, block.__dict__.get("forward")
            block.forward = stand_in(index)
            restore.callback(_restore_forward, block, had, previous)
        yield


def _restore_forward(block: nn.Module, had: bool, previous: Any) -> None:
    if had:
        block.forward = previous
    else:
        del block.__dict__["forward"]


def hidden_states(call: Call) -> Tensor:
    """The hidden states (batch, length, hidden) in what a block was called with: its first argument."""
    args, kwargs = call
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def with_hidden(call: Call, hidden: Tensor) -> Call:
    """The same call on other hidden states; every other argument is the same object, never a copy.

    Sources of trouble otherwise: Gemma 3n shares one mutable dictionary among the blocks of a batch.
    """
    args, kwargs = call
    return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})


def hidden_result(result: Any) -> Tensor:
    """The hidden states in what a block returned: a tensor, or a tuple that begins with it."""
    states: Tensor = result[0] if isinstance(result, tuple) else result
    return states


def first_call(model: nn.Module, blocks: nn.ModuleList, inputs: Mapping[str, Any]) -> Call:
    """What the first block is called with for these inputs; the forward ends there.

    Right whatever type the blocks return, so it comes before that is known. The parameters outside of the blocks that
    come before them must be there already; those of the blocks, the last norm and the head need not.
    """
    return block_calls(model, blocks, inputs, returns_tuple=False, count=1)[0]


def block_calls(
    model: nn.Module,
    blocks: nn.ModuleList,
    inputs: Mapping[str, Any],
    *,
    returns_tuple: bool,
    count: int | None = None,
) -> list[Call]:
    """What each of the first `count` blocks (all unless told) is called with for these inputs, computing none of them.

    Each block passes its hidden states through, so masks, position embeddings and flags are the model's own, while the
    hidden states in the calls are those of the first block. The forward ends at the last of these blocks: no norm and
    no head is run. `returns_tuple`: whether the real blocks return a tuple (Falcon, Bloom, …), which the model then
    unpacks; learn it by running one real block on its `first_call`. `inputs`: what the model's forward takes; no
    key-value cache is used unless they say so.

    Raises:
        UnsupportedError: the blocks were not called once each, in order.
    """
    import torch

    wanted = len(blocks) if count is None else count
    calls: list[Call] = []

    def record(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if index != len(calls):
            raise UnsupportedError(
                f"{type(model).__name__}: its forward called decoder block {index} where block {len(calls)} was "
                "expected. Only models that call each block once, in order, are supported."
            )
        calls.append((args, kwargs))
        if len(calls) == wanted:
            raise _BlockReached
        hidden = hidden_states((args, kwargs))
        return (hidden, None) if returns_tuple else hidden

    with torch.no_grad(), replaced_forwards(blocks, record):
        try:
            model(**{"use_cache": False, **inputs})
        except _BlockReached:
            return calls
    raise UnsupportedError(f"{type(model).__name__}: its forward never called decoder block {len(calls)}.")

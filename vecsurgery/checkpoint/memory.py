"""A model already in memory, seen as `Weights`: a transformers module, or a state dict with its configuration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vecsurgery.errors import InputError

from .fingerprints import fingerprint, tensor_facts
from .layout import settle_tying, trace_layout
from .types import Layout

if TYPE_CHECKING:
    from torch import Tensor, nn


class InMemory:
    """The weights of a module or a state dict. Nothing is copied: reads are views of the caller's tensors.

    Of two names that share one storage because the configuration ties them, only the one that a checkpoint would hold
    is kept. The fingerprint is that of the folder which `save_pretrained` would write, as long as it renames nothing.

    Args:
        source: a transformers causal language model, or a mapping from names to tensors.
        config: its transformers configuration; required with a mapping, taken from the module otherwise.

    Raises:
        InputError: a mapping without a configuration, a value that is no tensor, or a tensor without values (meta).
    """

    def __init__(self, source: nn.Module | Mapping[str, Tensor], config: Any = None) -> None:
        from torch import nn

        self.config: Any = getattr(source, "config", None) if config is None else config
        """The transformers configuration."""
        if self.config is None:
            raise InputError(
                f"taking weights from memory ({type(source).__name__}): no configuration came with them. Pass config=, "
                "the transformers configuration of the model."
            )
        self._tensors = _checked(source.state_dict() if isinstance(source, nn.Module) else source)

    def __repr__(self) -> str:
        return f"InMemory({len(self._tensors)} tensors of {self.config.model_type!r})"

    @cached_property
    def layout(self) -> Layout:
        """Facts about every tensor, in walking order."""
        import torch

        headers = {name: (_dtype(tensor), tuple(tensor.shape)) for name, tensor in self._tensors.items()}
        whole = settle_tying(
            trace_layout(self.config, headers),
            lambda left, right: torch.equal(self._tensors[left], self._tensors[right]),
        )
        stored = whole.by_parameter()
        doubles = {
            stored[target].name
            for target, source in whole.tied.items()
            if target in stored
            and source in stored
            and self._tensors[stored[target].name].data_ptr() == self._tensors[stored[source].name].data_ptr()
        }
        kept = {name: info for name, info in whole.tensors.items() if name not in doubles}
        return dataclasses.replace(whole, tensors=kept)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over architecture keys, names, types, shapes, and the first and last 4 KiB of every tensor."""
        config = json.loads(self.config.to_json_string(use_diff=True))
        return fingerprint(config, self.layout.tensors, lambda name: tensor_facts(self.read(name)))

    def read(self, tensor: str, rows: slice | Tensor | None = None) -> Tensor:
        """The tensor, or these rows of it. A view of the caller's: never change it in place.

        Raises:
            KeyError: no such tensor.
        """
        values = self._tensors[tensor]
        return values if rows is None else values[rows]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _checked(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    import torch

    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"taking weights from memory: {name!r} is {type(tensor).__name__}, expected a tensor.")
        if tensor.device.type == "meta":
            raise InputError(f"taking weights from memory: {name!r} is on the meta device and has no values.")
    return {name: tensor.detach() for name, tensor in tensors.items()}

"""A checkpoint in a folder, read tensor by tensor: the `Weights` of everything that lies on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsurgery.errors import InputError, UnsupportedError

from . import refusals
from .files import Files, Header
from .fingerprints import TensorFacts, fingerprint
from .layout import settle_tying, trace_layout
from .types import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from vecsurgery.recipe.types import Reference

_CHUNK = 1 << 24
"""Elements compared at a time: 64 MB in float32."""


class Stored:
    """The weights of a folder: `model.safetensors`, its sharded form, or `pytorch_model.bin`.

    Opening reads config.json and the headers, no tensor. Reads are thread-safe and return views of the memory map in
    the stored type and orientation: never change them in place.

    Args:
        folder: a local folder (`resolve` turns a reference into one).
        reference: how the user named it, for messages and the model card.

    Raises:
        InputError: the folder, its config.json or its weights cannot be used; the message names the file.
        UnsupportedError: quantised weights, an unknown architecture, a multimodal model or an encoder-decoder.
    """

    def __init__(self, folder: str | Path, *, reference: Reference | None = None) -> None:
        self.folder = Path(folder)
        self.reference = reference
        self._config_json = _config_json(self.folder, in_recipe=bool(reference and reference.place))
        self._files = Files(self.folder)
        refusals.refuse_quantised(self.folder, self._config_json, self._files.headers)
        refusals.require_known(self.folder, self._config_json)

    def __repr__(self) -> str:
        return f"Stored({str(self.folder)!r})"

    @property
    def headers(self) -> Mapping[str, Header]:
        """Type, shape, bytes and file of every tensor, by stored name."""
        return self._files.headers

    @cached_property
    def config(self) -> Any:
        """The transformers configuration; code inside the checkpoint is never run."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as fault:
            raise InputError(f"reading {self.folder / 'config.json'}: {fault}") from fault

    @cached_property
    def layout(self) -> Layout:
        """Facts about every tensor, in walking order."""
        facts = {name: (header.dtype, header.shape) for name, header in self.headers.items()}
        try:
            layout = trace_layout(self.config, facts)
        except UnsupportedError as refusal:
            raise UnsupportedError(f"reading {self.folder}: {refusal}") from refusal
        except InputError as fault:
            raise InputError(f"reading {self.folder}: {fault}") from fault
        return settle_tying(layout, self._equal)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over architecture keys, names, types, shapes, and the first and last 4 KiB of every tensor."""
        return fingerprint(self._config_json, self.headers, self._facts)

    def read(self, tensor: str, rows: slice | Tensor | None = None) -> Tensor:
        """The tensor as stored, or these rows of it: a slice, or a tensor of indices (only those rows are read).

        Raises:
            KeyError: no such tensor.
        """
        return self._files.read(tensor, rows)

    def data(self, tensor: str) -> memoryview:
        """The bytes of the tensor in row-major order, for who wants no numbers. Errors: as of `read`."""
        return self._files.data(tensor)

    def _facts(self, tensor: str) -> TensorFacts:
        header = self.headers[tensor]
        return header.dtype, header.shape, self.data(tensor)

    def _equal(self, left: str, right: str) -> bool:
        import torch

        shape = self.headers[left].shape
        step = max(1, _CHUNK // max(1, shape[-1]))
        return all(
            torch.equal(self.read(left, slice(row, row + step)), self.read(right, slice(row, row + step)))
            for row in range(0, shape[0], step)
        )


def _config_json(folder: Path, *, in_recipe: bool) -> dict[str, Any]:
    """`in_recipe`: whether a recipe names the folder, which has other ways to say what it is."""
    file = folder / "config.json"
    if not folder.is_dir():
        raise InputError(f"opening the checkpoint {folder}: expected a folder, found {_what(folder)}.")
    if not file.exists():
        raise InputError(f"opening {folder}: {_no_model(folder, in_recipe)}.")
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as fault:
        raise InputError(f"opening the checkpoint {folder}: config.json: {fault.strerror}.") from fault
    except ValueError as fault:
        raise InputError(f"reading {file}: not valid JSON ({fault}).") from fault
    if not isinstance(content, dict):
        raise InputError(f"reading {file}: expected a JSON object, found {type(content).__name__}.")
    return content


def _no_model(folder: Path, in_recipe: bool) -> str:
    """What a folder without config.json is, and what to give in its place."""
    if (folder / "adapter_config.json").exists():
        also = ", or `adapter: …` as a delta" if in_recipe else ""
        return f"this is an adapter, not a model; write `base+adapter`{also}"
    if (folder / "delta.json").exists():
        instead = "name it as a delta, `file: …`" if in_recipe else "`vecsurgery apply` adds it to its base"
        return f"this is a delta, not a model; {instead}"
    holds = "it has no config.json" if any(folder.iterdir()) else "the folder is empty"
    expected = "the folder of a model, with config.json and weights (model.safetensors, or shards and their index)"
    return f"{holds}; expected {expected}: correct the path, or save the model there"


def _what(path: Path) -> str:
    return "a file" if path.exists() else "nothing"
